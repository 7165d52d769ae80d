"""Every score from plain counts: against scikit-learn, against figures worked out by hand, and as parts that are put together."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from sklearn import metrics as sk

from eoseg import files, scoring

NAMES = ["water", "crop", "tree", "town"]


def matrix_of(truth, called, classes=4):
    return np.bincount(truth * classes + called, minlength=classes**2).reshape(classes, classes)


def drawn(seed, absent=(), count=500):
    """Truth and what was called, right in about half of the pixels; classes `absent` are called, but never true."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([c for c in range(4) if c not in absent], count)
    return truth, np.where(rng.random(count) < 0.5, truth, rng.integers(4, size=count))


def bins(*sure):
    """The bins of (confidence in steps, wrong, right)."""
    counts = np.zeros((scoring.STEPS + 1, 2), int)
    for step, *pixels in sure:
        counts[step] += pixels
    return scoring.bins_of(counts)


def counted(seed, absent=()):
    """What a network leaves of some patches: matrix, boundary (3, 4) and confidence (STEPS + 1, 2)."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(1, 500, (4, 4))
    matrix[list(absent)] = 0
    both = rng.integers(0, 50, 4)
    boundary = np.stack([both, both + rng.integers(0, 50, 4), both + rng.integers(0, 50, 4)])
    boundary[:2, list(absent)] = 0
    sure = np.zeros((scoring.STEPS + 1, 2), int)
    sure[rng.integers(500 * seed, 500 * seed + 1000, 40)] = rng.integers(0, 90, (40, 2))  # other seeds fill other bins
    return matrix, boundary, sure


def score(matrix, boundary, sure):
    return scoring.scores(matrix, NAMES, boundary, scoring.bins_of(sure))


# ---------------------------------------------------------------- from the matrix


@pytest.mark.parametrize("absent", [(), (2,), (0, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_kappa_and_means_are_scikit_learns(seed, absent):
    truth, called = drawn(seed, absent)
    there = [c for c in range(4) if c not in absent]
    found = scoring.scores(matrix_of(truth, called), NAMES)
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(truth, called), abs=1e-12)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, called), abs=1e-12)
    for key, theirs in (("iou", sk.jaccard_score), ("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
        assert found[f"mean_{key}"] == pytest.approx(theirs(truth, called, labels=there, average="macro", zero_division=0), abs=1e-12)


@pytest.mark.parametrize("absent", [(), (1,)])
def test_a_classs_kappa_and_accuracy_are_those_of_one_against_all(absent):
    truth, called = drawn(7, absent)
    found = scoring.scores(matrix_of(truth, called), NAMES)["per_class"]
    for c, name in enumerate(NAMES):
        if c in absent:
            assert math.isnan(found[name]["kappa"]) and math.isnan(found[name]["accuracy"])
        else:
            assert found[name]["kappa"] == pytest.approx(sk.cohen_kappa_score(truth == c, called == c), abs=1e-12)
            assert found[name]["accuracy"] == pytest.approx(np.mean((truth == c) == (called == c)), abs=1e-12)


def test_scores_by_hand():
    found = scoring.scores([[20, 10], [5, 15]], ["land", "water"])
    # 35 of 50 right; by chance 30/50 * 25/50 + 20/50 * 25/50 = 0.5, so kappa = (0.7 - 0.5) / 0.5
    assert (found["accuracy"], found["kappa"]) == pytest.approx((0.7, 0.4))
    land = {"iou": 20 / 35, "f1": 40 / 55, "precision": 20 / 25, "recall": 20 / 30, "accuracy": 0.7, "kappa": 0.4, "support": 30}
    water = {"iou": 15 / 30, "f1": 30 / 45, "precision": 15 / 25, "recall": 15 / 20, "accuracy": 0.7, "kappa": 0.4, "support": 20}
    assert found["per_class"] == {"land": pytest.approx(land), "water": pytest.approx(water)}
    means = {"mean_iou": (20 / 35 + 1 / 2) / 2, "mean_f1": (8 / 11 + 2 / 3) / 2, "mean_precision": 0.7, "mean_recall": (2 / 3 + 3 / 4) / 2}
    assert {key: found[key] for key in means} == pytest.approx(means)
    assert found["confusion_matrix"] == [[20, 10], [5, 15]] and found["absent"] == []


def test_kappa_is_1_when_all_is_right_0_for_guessing_and_below_0_for_worse():
    kappa = lambda matrix: scoring.scores(matrix, ["a", "b"])["kappa"]
    assert kappa([[30, 0], [0, 10]]) == 1
    assert kappa([[24, 6], [8, 2]]) == pytest.approx(0)  # 80 % of either class is called a
    assert kappa([[0, 10], [10, 0]]) == -1


def test_kappa_is_nan_where_one_class_is_all_there_is():
    found = scoring.scores([[40, 0], [0, 0]], ["a", "b"])
    assert math.isnan(found["kappa"]) and math.isnan(found["per_class"]["a"]["kappa"]) and found["accuracy"] == found["mean_iou"] == 1


def test_nothing_labelled_is_nan_everywhere_and_no_warning(recwarn):
    found = scoring.scores(np.zeros((2, 2), int), ["a", "b"], np.zeros((3, 2)), bins())
    assert all(math.isnan(found[key]) for key in (*scoring.OF_ALL, "boundary_iou", "ece"))
    assert all(math.isnan(part[key]) for part in found["per_class"].values() for key in (*scoring.OF_CLASS, "boundary_iou"))
    assert found["absent"] == ["a", "b"] and not recwarn.list


def test_margins_of_many_patches_are_scored_each_by_itself():
    matrices = np.stack([matrix_of(*drawn(seed, absent)) for seed, absent in ((1, ()), (2, (0,)), (3, (1, 2)))])
    found = scoring.from_margins(np.stack([m.diagonal() for m in matrices]), matrices.sum(2), matrices.sum(1))
    for i, matrix in enumerate(matrices):
        alone = scoring.scores(matrix, NAMES)
        np.testing.assert_array_equal([found[key][i] for key in scoring.OF_ALL], [alone[key] for key in scoring.OF_ALL])
        np.testing.assert_array_equal(found["class_kappa"][i], [alone["per_class"][name]["kappa"] for name in NAMES])


# ---------------------------------------------------------------- boundaries


def test_boundary_iou_by_hand_and_its_mean_over_classes_that_have_a_true_boundary():
    boundary = [[6, 0, 0], [10, 4, 0], [8, 0, 5]]  # both, true, called
    found = scoring.scores(np.eye(3, dtype=int), ["a", "b", "c"], boundary)
    assert [part["boundary_iou"] for part in found["per_class"].values()] == pytest.approx([6 / 12, 0, math.nan], nan_ok=True)
    assert found["boundary_iou"] == 0.25 and found["boundary"] == boundary


def test_what_was_not_counted_is_not_told():
    assert not {"boundary", "boundary_iou", "ece", "reliability"} & scoring.scores(np.eye(2, dtype=int), ["a", "b"]).keys()


# ---------------------------------------------------------------- calibration


def test_calibration_error_by_hand():
    found = bins((3072, 4, 6), (2048, 0, 30), (4096, 5, 5))
    # 10 pixels at 0.75 of which 60 % are right, 30 at 0.5 all right, 10 at 1 half right: (10 * 0.15 + 30 * 0.5 + 10 * 0.5) / 50
    assert scoring.calibration_error(found) == pytest.approx((1.5 + 15 + 5) / 50)


def test_pixels_of_one_bin_are_compared_by_their_means():
    low, high = 2740, 3000  # both in the bin from 10/15 to 11/15: 2730.7 to 3003.7 steps
    found = bins((low, 3, 0), (high, 0, 9))
    mean = (3 * low + 9 * high) / 12 / 4096
    part, = (part for part in found if part["pixels"])
    assert part == pytest.approx({"low": 10 / 15, "high": 11 / 15, "pixels": 12, "confidence": mean, "accuracy": 0.75})
    assert scoring.calibration_error(found) == pytest.approx(abs(mean - 0.75))


def test_a_bin_is_above_its_lower_limit_and_up_to_its_upper_and_none_is_lost():
    limits = np.arange(16) * scoring.STEPS / 15
    for step in {*np.floor(limits).astype(int).tolist(), *np.ceil(limits).astype(int).tolist()}:
        found = bins((step, 1, 0))
        part, = (part for part in found if part["pixels"])
        assert all(math.isnan(one["confidence"]) and math.isnan(one["accuracy"]) for one in found if one is not part)
        assert part["low"] < step / scoring.STEPS <= part["high"] or step == part["low"] == 0
    found = scoring.bins_of(np.ones((scoring.STEPS + 1, 2), int))
    assert len(found) == 15 and sum(part["pixels"] for part in found) == 2 * 4097
    assert found[0]["low"] == 0 and found[-1]["high"] == 1 and all(one["high"] == other["low"] for one, other in pairwise(found))


def test_no_pixel_has_no_calibration_error():
    assert math.isnan(scoring.calibration_error(bins()))


def test_calibration_error_is_that_of_the_raw_confidences():
    rng = np.random.default_rng(0)
    steps, right = rng.integers(1024, 4097, 3000), rng.random(3000) < 0.7
    counts = np.zeros((4097, 2), int)
    np.add.at(counts, (steps, right.astype(int)), 1)
    sure, slow = steps / 4096, 0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        inside = (sure > low) & (sure <= high)
        slow += inside.mean() * abs(sure[inside].mean() - right[inside].mean()) if inside.any() else 0
    assert scoring.calibration_error(scoring.bins_of(counts)) == pytest.approx(slow)


# ---------------------------------------------------------------- together


def leaves(value, place=""):
    """Every plain value by its place: {"/per_class/water/iou": 0.5, ...}."""
    if not isinstance(value, (dict, list)):
        return {place: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, part in parts for name, leaf in leaves(part, f"{place}/{key}").items()}


def assert_equal(one, other):
    assert leaves(one) == pytest.approx(leaves(other), nan_ok=True)


@pytest.mark.parametrize("through_json", [False, True])
def test_parts_together_are_the_whole(through_json):
    """Of three parts: water never occurs in the first, tree in none; each fills bins that are empty in another."""
    parts = [counted(1, absent=(0, 2)), counted(2, absent=(2,)), counted(3, absent=(2,))]
    whole = score(*(sum(kind) for kind in zip(*parts)))
    told = [score(*part) for part in parts]
    if through_json:
        told = json.loads(json.dumps(files.without_nan(told)))
    found = scoring.together(told, NAMES)
    assert_equal(found, whole)
    assert told[0]["absent"] == ["water", "tree"] and found["absent"] == ["tree"]
    assert found["per_class"]["water"]["support"] > 0 and type(found["per_class"]["town"]["support"]) is int


def test_one_part_together_is_itself_and_parts_without_boundaries_have_none():
    one = score(*counted(4))
    assert_equal(scoring.together([one], NAMES), one)
    bare = scoring.scores(counted(5)[0], NAMES)
    found = scoring.together([one, bare], NAMES)
    assert "boundary_iou" not in found and "ece" not in found
    assert found["confusion_matrix"] == (np.array(one["confusion_matrix"]) + bare["confusion_matrix"]).tolist()
