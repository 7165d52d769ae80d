"""What is counted on the device: the confusion matrix against scikit-learn's scores, boundaries, confidence, each patch's margins."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn import metrics as sk

from eoseg import scoring
from eoseg.metrics import Confusion, Tally, edges, reach_of

NAMES = ["water", "crop", "tree", "town", "ice"]


def maps(seed, classes=5, absent=()):
    """Predicted and true maps, (3, 20, 15), true where predicted in about half of the pixels; a third is ignored."""
    rng = np.random.default_rng(seed)
    target = rng.choice([c for c in range(classes) if c not in absent], (3, 20, 15))
    predicted = np.where(rng.random(target.shape) < 0.5, target, rng.integers(classes, size=target.shape))
    target[rng.random(target.shape) < 0.3] = 255
    return torch.from_numpy(predicted), torch.from_numpy(target)


def scored(predicted, target, names=NAMES):
    confusion = Confusion(len(names))
    confusion.add(predicted, target)
    return confusion.scores(names)


@pytest.mark.parametrize("absent", [(), (2,), (0, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns_over_the_labelled_pixels(seed, absent):
    predicted, target = maps(seed, absent=absent)
    scores = scored(predicted, target)
    known = target.numpy() != 255
    truth, called = target.numpy()[known], predicted.numpy()[known]
    there = [c for c in range(5) if c not in absent]
    each = lambda score: score(truth, called, labels=there, average=None, zero_division=0)
    for key, score in (("iou", sk.jaccard_score), ("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        np.testing.assert_allclose([scores["per_class"][NAMES[c]][key] for c in there], each(score), rtol=1e-12)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(truth, called), rel=1e-12)
    assert scores["mean_iou"] == pytest.approx(each(sk.jaccard_score).mean(), rel=1e-12)
    assert scores["mean_f1"] == pytest.approx(each(sk.f1_score).mean(), rel=1e-12)
    assert [scores["per_class"][name]["support"] for name in NAMES] == np.bincount(truth, minlength=5).tolist()
    assert scores["absent"] == [NAMES[c] for c in absent]


def test_an_absent_class_is_nan_and_left_out_of_the_mean_however_often_it_is_called():
    scores = scored(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 0]]), ["a", "b"])
    assert all(math.isnan(scores["per_class"]["b"][key]) for key in ("iou", "f1", "precision", "recall"))
    assert scores["per_class"]["b"]["support"] == 0 and scores["absent"] == ["b"]
    assert scores["mean_iou"] == scores["per_class"]["a"]["iou"] == scores["accuracy"] == 0.5


def test_a_class_that_is_never_called_has_precision_0_not_nan():
    scores = scored(torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 1, 1]]), ["a", "b"])
    assert all(scores["per_class"]["b"][key] == 0 for key in ("iou", "f1", "precision", "recall")) and scores["per_class"]["b"]["support"] == 2
    assert scores["mean_iou"] == 0.25


def test_rows_are_the_truth_and_columns_what_was_called():
    scores = scored(torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 0, 1, 0]]), ["a", "b"])
    a, b = scores["per_class"]["a"], scores["per_class"]["b"]
    assert (a["precision"], a["recall"]) == (1, pytest.approx(1 / 3))
    assert (b["precision"], b["recall"]) == (pytest.approx(1 / 3), 1)


def test_what_is_predicted_under_ignored_pixels_changes_nothing():
    predicted, target = maps(4)
    other = torch.where(target == 255, (predicted + 1) % 5, predicted)
    assert scored(predicted, target) == scored(other, target)


def test_counts_add_up_in_any_order_and_any_grouping():
    parts = [maps(seed) for seed in range(4)]
    one, many = Confusion(5), Confusion(5)
    one.add(torch.cat([p for p, _ in parts]), torch.cat([t for _, t in parts]))
    for predicted, target in reversed(parts):
        many.add(predicted, target)
    assert torch.equal(one.counts, many.counts) and one.counts.dtype == torch.int64


def test_counts_beyond_float32_stay_exact():
    confusion = Confusion(2)
    confusion.counts[0, 0] = 2**40
    confusion.add(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    scores = confusion.scores(["a", "b"])
    assert scores["per_class"]["a"]["support"] == 2**40 + 2
    assert scores["accuracy"] == (2**40 + 1) / (2**40 + 2) < 1


def test_nothing_labelled_gives_nan_and_no_error():
    scores = scored(torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), 255))
    assert math.isnan(scores["mean_iou"]) and math.isnan(scores["accuracy"]) and scores["absent"] == NAMES


def test_scores_are_plain_values_that_json_takes():
    scores = scored(*maps(0))
    assert type(scores["mean_iou"]) is float and type(scores["per_class"]["water"]["support"]) is int


# ---------------------------------------------------------------- boundaries


def square(left, size=20):
    """(1, size, size) of class 0 with a square of class 1, 10 x 10, from row 5 and column `left` on."""
    labels = torch.zeros(1, size, size, dtype=torch.int64)
    labels[:, 5:15, left:left + 10] = 1
    return labels


def tallied(called, target, confidence=None, names=("a", "b"), size=20):
    """A Tally of one batch."""
    confidence = torch.full(target.shape, 0.75) if confidence is None else confidence
    tally = Tally(len(names), "cpu", len(target), size)
    tally.add(called, confidence, target, range(len(target)))
    return tally


def test_boundary_iou_of_a_square_moved_by_one_pixel_by_hand():
    """The rings of 36 pixels share 2 sides of 9, those of 44 around them 2 of 11: 18 / 54 and 22 / 66."""
    tally = tallied(square(6), square(5))
    assert tally.boundary.tolist() == [[22, 18], [44, 36], [44, 36]]
    scores = tally.scores(["a", "b"])
    assert scores["boundary_iou"] == pytest.approx(1 / 3) == scores["per_class"]["b"]["boundary_iou"]
    assert tallied(square(5), square(5)).scores(["a", "b"])["boundary_iou"] == 1


def test_truth_and_prediction_have_their_own_rows_in_the_boundary():
    called = square(5)
    called[:, 8:12, 8:12] = 0  # a hole of 4 x 4: 12 more pixels of a, 20 around them of b
    assert tallied(called, square(5)).boundary.tolist() == [[44, 36], [44, 36], [56, 56]]


def test_a_boundary_is_as_wide_as_its_reach():
    known = torch.ones(1, 20, 20, dtype=torch.bool)
    assert [int((edges(square(5), known, reach) & (square(5) == 1)).sum()) for reach in (1, 2, 3, 5)] == [36, 64, 84, 100]


def test_the_reach_is_2_percent_of_the_diagonal_and_at_least_a_pixel():
    assert [reach_of(size) for size in (8, 64, 256, 512)] == [1, 2, 7, 14]  # 0.02 * 1.41421 * 256 = 7.24


def test_the_frame_of_a_patch_is_no_boundary():
    assert not edges(torch.full((2, 9, 7), 3), torch.ones(2, 9, 7, dtype=torch.bool), 2).any()


def test_ignored_pixels_make_no_boundary_and_are_none():
    target = square(5)
    target[:, :, 15:] = 255  # hides the right side of the square
    target[:, 3:5] = 255  # and lies between its upper side and the rest: nothing known within one pixel
    known = target != 255
    found = edges(target, known, 1)
    assert not (found & ~known).any()
    one = found & (target == 1)
    assert int(one.sum()) == 10 + 9 and one[0, 5:15, 5].all() and one[0, 14, 5:15].all()
    assert edges(target, known, 2)[0, 5:7, 9].tolist() == [False, False]
    assert edges(target, known, 3)[0, 5:7, 9].tolist() == [True, False]  # row 2 lies three rows above row 5


def slow_edges(labels, known, reach):
    """As `edges`, class by class and patch by patch."""
    found = np.zeros(labels.shape, bool)
    for i, (patch, there) in enumerate(zip(labels, known)):
        for c in np.unique(patch[there]):
            others = ndimage.maximum_filter((there & (patch != c)).astype(int), 2 * reach + 1, mode="constant", cval=0) > 0
            found[i] |= there & (patch == c) & others
    return found


@pytest.mark.parametrize("reach", [1, 2, 5, 20])
@pytest.mark.parametrize("classes", [2, 254])
def test_boundaries_are_those_of_a_slow_reference(reach, classes):
    rng = np.random.default_rng(reach)
    labels = rng.integers(classes, size=(3, 6, 8)).repeat(4, 1).repeat(3, 2)
    labels[0] = classes - 1
    labels[0, 0, 0] = 0  # the first and the last class meet
    known = rng.random(labels.shape) < 0.7
    labels[~known & (rng.random(labels.shape) < 0.5)] = 255
    assert np.array_equal(edges(torch.from_numpy(labels), torch.from_numpy(known), reach).numpy(), slow_edges(labels, known, reach))


# ---------------------------------------------------------------- all that is counted


def sure_maps(seed):
    """Maps of `maps`, and a confidence in steps of 1 / 4096."""
    predicted, target = maps(seed)
    return predicted, target, torch.from_numpy(np.random.default_rng(seed).integers(1024, 4097, target.shape) / 4096).float()


def counts_of(tally):
    return {"matrix": tally.confusion.counts[:-1].tolist(), **{key: getattr(tally, key).tolist() for key in ("boundary", "sure", "margins")}}


def test_batches_add_up_to_one_batch_in_any_order():
    called, target, confidence = (torch.cat(parts) for parts in zip(*map(sure_maps, range(3))))
    whole = tallied(called, target, confidence, NAMES, 64)
    pieces = Tally(5, "cpu", len(target), 64)
    for some in ([7, 2], [0], [8, 1, 3, 6], [4, 5]):
        pieces.add(called[some], confidence[some], target[some], some)
    assert counts_of(pieces) == counts_of(whole)


def test_each_patch_has_its_own_pixels_right_true_and_called():
    called, target, confidence = sure_maps(1)
    tally = tallied(called, target, confidence, NAMES)
    for patch, truth, margins in zip(called.numpy(), target.numpy(), tally.margins.numpy()):
        known = truth != 255
        assert margins[0].tolist() == np.bincount(truth[known & (truth == patch)], minlength=5).tolist()
        assert margins[1].tolist() == np.bincount(truth[known], minlength=5).tolist()
        assert margins[2].tolist() == np.bincount(patch[known], minlength=5).tolist()


def test_confidence_is_counted_by_step_and_by_right_or_wrong():
    called, target = torch.tensor([[[0, 0, 1, 1, 0]]]), torch.tensor([[[0, 1, 1, 1, 255]]])
    sure = tallied(called, target, torch.tensor([[[0.5, 0.7499, 1.0, 1.0, 0.25]]])).sure  # 0.7499 is nearest to step 3072
    assert sure[2048].tolist() == [0, 1] and sure[3072].tolist() == [1, 0] and sure[4096].tolist() == [0, 2] and int(sure.sum()) == 4


def test_calibration_error_comes_from_what_was_counted():
    called, target = torch.zeros(1, 2, 10, dtype=torch.int64), torch.zeros(1, 2, 10, dtype=torch.int64)
    target[0, 0, :4] = 1  # of 20 pixels at 0.75, 16 are right
    assert tallied(called, target).scores(["a", "b"])["ece"] == pytest.approx(0.05)


def test_what_is_called_under_ignored_pixels_is_counted_nowhere():
    called, target, confidence = sure_maps(3)
    hidden = target == 255
    other = tallied(torch.where(hidden, (called + 1) % 5, called), target, torch.where(hidden, 0.3, confidence), NAMES)
    assert counts_of(other) == counts_of(tallied(called, target, confidence, NAMES))


def test_intervals_tell_how_many_patches_hold_a_label():
    called, target, _ = sure_maps(0)
    target[1] = 255
    found = tallied(called, target, names=NAMES).scores(NAMES, intervals=True)
    assert found["patches"] == 2 and found["intervals"]["mean_iou"][0] <= found["mean_iou"] <= found["intervals"]["mean_iou"][1]
    assert not {"patches", "intervals"} & tallied(called, target, names=NAMES).scores(NAMES).keys()


def test_two_tallies_together_are_one_of_all_patches():
    called, target, confidence = (torch.cat(parts) for parts in zip(*map(sure_maps, range(3))))
    whole, *parts = (tallied(called[some], target[some], confidence[some], NAMES, 64).scores(NAMES) for some in (slice(9), slice(4), slice(4, 9)))
    found = scoring.together(parts, NAMES)
    assert found["confusion_matrix"] == whole["confusion_matrix"] and found["boundary"] == whole["boundary"]
    assert (found["ece"], found["kappa"], found["boundary_iou"]) == pytest.approx((whole["ece"], whole["kappa"], whole["boundary_iou"]))
