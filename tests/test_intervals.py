"""Intervals: of scores over patches, of areas; Student's over folds is in test_folds.py."""

import math

import numpy as np
import pytest
from scipy import stats

from eoseg import intervals, scoring

NAMES = ["land", "water"]


def whole_patches(right, count, pixels=100):
    """Margins of `count` patches of land, each of them called land (the first `right`) or water as a whole."""
    margins = np.zeros((count, 3, 2), int)
    margins[:, 1, 0] = pixels
    margins[:right, [0, 2], 0] = pixels
    margins[right:, 2, 1] = pixels
    return margins


def random_margins(patches, seed=0, absent=None):
    """Margins (P, 3, 2) of patches with pixels of both classes; class `absent` is never true."""
    matrices = np.random.default_rng(seed).integers(1, 60, (patches, 2, 2))
    if absent is not None:
        matrices[:, absent] = 0
    return np.stack([matrices.diagonal(axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)], 1)


# ---------------------------------------------------------------- scores over patches


def test_the_width_is_that_of_a_share_of_independent_patches():
    """240 of 400 patches are right: accuracy 0.6, standard error sqrt(0.6 * 0.4 / 400) = 0.0245; 100 pixels of each tell no more than one."""
    low, high = intervals.bootstrap(whole_patches(240, 400), NAMES)["accuracy"]
    half = 1.959964 * math.sqrt(0.6 * 0.4 / 400)
    assert low == pytest.approx(0.6 - half, abs=0.006) and high == pytest.approx(0.6 + half, abs=0.006)
    assert high - low == pytest.approx(2 * half, rel=0.1)


def test_the_level_is_the_share_that_lies_within():
    low, high = intervals.bootstrap(whole_patches(240, 400), NAMES, level=0.5)["accuracy"]
    assert high - low == pytest.approx(2 * 0.67449 * math.sqrt(0.6 * 0.4 / 400), rel=0.15)


def test_every_score_lies_within_its_interval_and_each_class_has_its_own():
    margins = random_margins(60)
    found, whole = intervals.bootstrap(margins, NAMES), scoring.from_margins(*margins.sum(0))
    assert found.keys() == {*scoring.OF_ALL, *(f"{key}_{name}" for key in ("iou", "f1", "precision", "recall") for name in NAMES)}
    for key, (low, high) in found.items():
        score, _, name = key.rpartition("_")
        value = whole[key] if key in scoring.OF_ALL else whole[score][NAMES.index(name)]
        assert low < value < high


def test_patches_are_drawn_as_often_as_they_come_in_a_plain_bootstrap():
    margins, rng = random_margins(12, seed=3), np.random.default_rng(9)
    slow = [scoring.from_margins(*margins[rng.integers(12, size=12)].sum(0))["mean_iou"] for _ in range(4000)]
    assert intervals.bootstrap(margins, NAMES)["mean_iou"] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.005)


def test_the_same_seed_gives_the_same_interval_another_seed_another_and_memory_does_not_matter(monkeypatch):
    margins = random_margins(40)
    first = intervals.bootstrap(margins, NAMES, seed=1)
    assert intervals.bootstrap(margins, NAMES, seed=1) == first != intervals.bootstrap(margins, NAMES, seed=2)
    monkeypatch.setattr(intervals, "AT_ONCE", 300)  # seven draws of 40 patches; 1000 is no multiple of it
    assert intervals.bootstrap(margins, NAMES, seed=1) == first


def test_patches_that_are_all_alike_leave_no_doubt():
    one = random_margins(1)
    low, high = intervals.bootstrap(np.tile(one, (20, 1, 1)), NAMES)["kappa"]
    assert low == pytest.approx(high) == pytest.approx(float(scoring.from_margins(*one[0])["kappa"]))


@pytest.mark.parametrize("labelled", [0, 1])
def test_fewer_than_two_labelled_patches_give_nan(labelled):
    margins = np.concatenate([random_margins(labelled), np.zeros((3, 3, 2), int)])
    assert np.isnan(list(intervals.bootstrap(margins, NAMES).values())).all()


def test_patches_without_a_label_change_nothing():
    margins = random_margins(10)
    assert intervals.bootstrap(np.insert(margins, [0, 4, 10], 0, axis=0), NAMES) == intervals.bootstrap(margins, NAMES)


def test_a_class_that_is_never_true_is_nan_and_the_others_are_not():
    found = intervals.bootstrap(random_margins(20, absent=1), NAMES)
    assert np.isnan(found["iou_water"] + found["recall_water"]).all()
    assert found["mean_iou"] == found["iou_land"] and not np.isnan(found["iou_land"]).any()


def test_draws_without_a_rare_class_do_not_count_for_it():
    margins = random_margins(20, absent=1)
    margins[:2] = random_margins(2, seed=5)  # an eighth of all draws, 0.9 to the 20th, holds neither
    found = intervals.bootstrap(margins, NAMES)
    low, high = found["iou_water"]
    assert 0 <= low < scoring.from_margins(*margins.sum(0))["iou"][1] < high
    assert not np.isnan(list(found.values())).any()


# ---------------------------------------------------------------- areas


# Section 5 of Olofsson et al. 2014: deforestation, forest gain, stable forest, stable non-forest; rows are the map's classes, pixels of 30 m
SAMPLED = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED = [200_000, 150_000, 3_200_000, 6_450_000]
HECTARES = 0.09


def test_a_mean_is_over_the_same_classes_in_every_draw():
    """Forty patches of a class called right in nine pixels of ten; in one of them also a class that is always missed."""
    margins = np.zeros((40, 3, 2), int)
    margins[:, :, 0] = (90, 100, 100)
    margins[0, 1, 1], margins[0, 2, 0] = 100, 200
    found = intervals.bootstrap(margins, ["common", "rare"])
    low, high = found["mean_iou"]
    assert 0.35 < low < high < 0.41  # 0.82 in draws without the rare class


def test_areas_are_those_of_the_papers_example():
    area, error, low, high = intervals.areas(SAMPLED.T, MAPPED)
    assert area * HECTARES == pytest.approx([21_158, 11_686, 285_770, 581_386], abs=0.5)
    assert 1.96 * error * HECTARES == pytest.approx([6_158, 3_756, 15_510, 16_282], abs=0.5)
    assert (high - area) * HECTARES == pytest.approx([6_158, 3_756, 15_510, 16_282], abs=1)
    assert area.sum() == pytest.approx(sum(MAPPED)) and area - low == pytest.approx(high - area)


def test_deforestation_follows_from_equations_9_and_10_by_hand():
    area, error, low, high = intervals.areas(SAMPLED.T, MAPPED)
    share = 0.02 * 66 / 75 + 0.015 * 0 / 75 + 0.32 * 1 / 165 + 0.645 * 2 / 325
    spread = 0.02**2 * (66 / 75) * (9 / 75) / 74 + 0.32**2 * (1 / 165) * (164 / 165) / 164 + 0.645**2 * (2 / 325) * (323 / 325) / 324
    assert (area[0], error[0]) == (pytest.approx(1e7 * share), pytest.approx(1e7 * math.sqrt(spread)))
    assert (area[0], error[0]) == (pytest.approx(235_086, abs=1), pytest.approx(34_907, abs=1))
    assert (low[0], high[0]) == pytest.approx((area[0] - 1.959964 * error[0], area[0] + 1.959964 * error[0]))


def test_areas_follow_the_unit_and_the_level_that_are_asked_for():
    area, error, _, _ = intervals.areas(SAMPLED.T, MAPPED)
    scaled, scaled_error, _, high = intervals.areas(SAMPLED.T, np.multiply(MAPPED, HECTARES), level=0.9)
    assert scaled == pytest.approx(area * HECTARES) and scaled_error == pytest.approx(error * HECTARES)
    assert high - scaled == pytest.approx(stats.norm.ppf(0.95) * scaled_error)


def test_a_map_without_a_mistake_keeps_its_areas():
    area, error, low, high = intervals.areas(np.diag([10, 20, 30]), [5.0, 7.0, 9.0])
    assert area == pytest.approx([5, 7, 9]) and (error == 0).all() and low == pytest.approx(high)


def test_no_area_is_below_0():
    area, error, low, _ = intervals.areas([[1, 1], [1, 50]], [1.0, 99.0])
    assert area[0] < 1.96 * error[0] and low[0] == 0


def test_a_mapped_class_without_a_sample_gives_nan_and_one_sample_no_error(recwarn):
    assert np.isnan(intervals.areas([[5, 0], [3, 0]], [1.0, 1.0])).all()
    area, error, low, high = intervals.areas([[5, 0], [3, 1]], [8.0, 8.0])
    assert area == pytest.approx([5, 11]) and np.isnan([error, low, high]).all()
    assert not recwarn.list


def test_a_class_that_is_not_on_the_map_needs_no_sample_and_still_has_an_area():
    area, error, _, _ = intervals.areas([[6, 0], [2, 0]], [4.0, 0.0])
    assert area == pytest.approx([3, 1]) and error == pytest.approx([4 * math.sqrt(0.75 * 0.25 / 7)] * 2)


def test_areas_over_patches_are_as_wide_as_their_few_patches_say():
    """100 patches of 50 pixels, mapped as land; 30 are water throughout: share 0.3, standard error sqrt(0.3 * 0.7 / 100)."""
    matrices = np.zeros((100, 2, 2), int)
    matrices[:30, 1, 0] = matrices[30:, 0, 0] = 50
    low, high = intervals.areas_by_patch(matrices, [1000.0, 0.0])
    half = 1.959964 * 1000 * math.sqrt(0.3 * 0.7 / 100)
    assert (low[1], high[1]) == (pytest.approx(300 - half, abs=15), pytest.approx(300 + half, abs=15))
    assert low + high[::-1] == pytest.approx([1000, 1000])  # what is not water is land
    _, _, narrow, wide = intervals.areas(matrices.sum(0), [1000.0, 0.0])
    assert high[1] - low[1] == pytest.approx(math.sqrt(50) * (wide[1] - narrow[1]), rel=0.1)


def test_areas_over_patches_come_again_with_their_seed_and_unlabelled_patches_change_nothing():
    matrices = np.random.default_rng(0).integers(1, 60, (12, 3, 3))
    first = intervals.areas_by_patch(matrices, [1.0, 2.0, 3.0], seed=4)
    assert np.array_equal(intervals.areas_by_patch(np.insert(matrices, [0, 7], 0, axis=0), [1.0, 2.0, 3.0], seed=4), first)
    assert not np.array_equal(intervals.areas_by_patch(matrices, [1.0, 2.0, 3.0], seed=5), first)
    area = intervals.areas(matrices.sum(0), [1.0, 2.0, 3.0])[0]
    assert (first[0] < area).all() and (area < first[1]).all()


@pytest.mark.parametrize("labelled", [0, 1])
def test_areas_over_fewer_than_two_labelled_patches_are_nan(labelled):
    matrices = np.concatenate([np.ones((labelled, 2, 2), int), np.zeros((2, 2, 2), int)])
    found = intervals.areas_by_patch(matrices, [1.0, 2.0])
    assert found.shape == (2, 2) and np.isnan(found).all()
