"""One confusion matrix against scikit-learn's scores."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from eoseg.metrics import Confusion

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
    assert scores["per_class"]["b"] == {"iou": 0, "f1": 0, "precision": 0, "recall": 0, "support": 2}
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
