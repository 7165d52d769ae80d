"""Drawn splits, and the grid's own."""

import numpy as np
import pytest

from eoseg.errors import SetupError
from eoseg.splits import best_draw, by_column, by_draw, imbalance, sums
from eoseg.tiles import largest_remainder

USUAL = (0.75, 0.20, 0.05)


def drawn(total, ratios=USUAL, seed=42, pixels=None, scenes=None, sizes=None):
    pixels = np.ones((total, 1)) if pixels is None else pixels
    return by_draw(np.zeros(total, int) if scenes is None else scenes, np.ones(total) if sizes is None else sizes, pixels, ratios, seed)


def counts(split):
    return np.bincount(split, minlength=3).tolist()


@pytest.mark.parametrize("total, ratios, wanted", [
    (100, USUAL, [75, 20, 5]),
    (20, USUAL, [15, 4, 1]),
    (10, USUAL, [8, 2, 0]),  # 7.5 2 0.5: the tie goes to train
    (7, USUAL, [5, 2, 0]),  # 5.25 1.4 0.35: the largest remainder is validation's
    (3, (1 / 3, 1 / 3, 1 / 3), [1, 1, 1]),
    (1, USUAL, [1, 0, 0]),
    (5, (0, 1, 0), [0, 5, 0]),
    (24, (0.5, 0.5, 0), [12, 12, 0]),
])
def test_counts_are_those_of_the_largest_remainder(total, ratios, wanted):
    assert counts(drawn(total, ratios)) == wanted


def test_the_same_seed_gives_the_same_split_and_0_is_a_seed():
    assert all((drawn(40, seed=seed) == drawn(40, seed=seed)).all() for seed in (0, 1, 42))
    assert len({tuple(drawn(40, seed=seed)) for seed in range(10)}) == 10


def test_every_unit_may_come_into_every_split():
    assert {(unit, split) for seed in range(100) for unit, split in enumerate(drawn(10, (0.4, 0.3, 0.3), seed).tolist())} == {(u, s) for u in range(10) for s in range(3)}


def worst(split, pixels):
    """How far a class's share of a split is from its share of all, at worst."""
    held = sums(np.atleast_2d(split), pixels)
    return np.abs(held / held.sum(2, keepdims=True) - held.sum(1, keepdims=True) / held.sum()).max((1, 2))


@pytest.mark.parametrize("total, better", [(40, 2), (100, 2.4), (576, 2.4)])
def test_the_best_of_many_draws_has_classes_far_better_balanced_than_chance(total, better):
    pixels = np.random.default_rng(1).dirichlet([0.2] * 6, total) * 50000
    chance = np.stack([np.random.default_rng(seed).permutation(np.repeat([0, 1, 2], largest_remainder(total, USUAL))) for seed in range(200)])
    found = drawn(total, pixels=pixels)
    assert counts(found) == largest_remainder(total, USUAL)
    assert worst(found, pixels)[0] * better < np.median(worst(chance, pixels))


def test_a_rare_class_comes_into_validation():
    for seed in range(20):
        pixels = np.full((60, 2), 1000)
        pixels[:, 1] = 0
        pixels[np.random.default_rng(seed).permutation(60)[:5], 1] = 100  # five of sixty patches hold it
        assert sums(drawn(60, seed=seed, pixels=pixels)[None], pixels)[0, 1, 1] > 0


def test_imbalance_by_hand():
    pixels = np.array([[10, 0], [10, 0], [0, 20], [20, 20]])
    split = np.array([[0, 0, 1, 0]])
    # patches 3/4, 1/4 against 1/2, 1/2; class 0 is 40/40 in train (0.5 off), class 1 20/40; class 1 makes 1/3 of train and all of validation, 1/2 of the whole
    assert imbalance(split, np.ones(4), pixels, (0.5, 0.5, 0), (np.zeros(3), np.zeros((3, 2)))) == pytest.approx(0.25 + 0.5 + 0.5)
    empty = np.array([[0, 0, 0, 0]])
    assert imbalance(empty, np.ones(4), pixels, (0.5, 0.5, 0), (np.zeros(3), np.zeros((3, 2)))) == pytest.approx(0.5 + 1 + 0.5 + 0.5)


@pytest.mark.parametrize("parts", [2, 5, 200])
def test_any_number_of_parts_is_drawn(parts):
    found = best_draw(np.ones(400), np.ones((400, 2)), np.full(parts, 1 / parts), (np.zeros(parts), np.zeros((parts, 2))), np.random.default_rng(0))
    assert np.bincount(found, minlength=parts).tolist() == [400 // parts] * parts


def test_sizes_count_patches_not_units():
    sizes = np.array([30, 30, 20, 10, 10] * 6)
    held = sums(drawn(30, pixels=np.ones((30, 1)), sizes=sizes)[None], sizes)[0]
    assert np.abs(held / 600 - USUAL).max() < 0.02


@pytest.mark.parametrize("first, more", [(100, 80), (100, 7), (6, 6), (1, 1)])
def test_scenes_that_come_later_move_no_unit(first, more):
    rng = np.random.default_rng(3)
    pixels = rng.random((first + 4 * more, 4))
    scenes = np.repeat(range(5), [first, more, more, more, more])
    whole = drawn(len(scenes), scenes=scenes, pixels=pixels)
    for upto in (first, first + more, first + 2 * more):
        assert (drawn(upto, scenes=scenes[:upto], pixels=pixels[:upto]) == whole[:upto]).all()


def test_a_large_scene_is_divided_by_itself_wherever_it_stands():
    pixels = np.random.default_rng(4).random((90, 3))
    scenes = np.repeat([0, 1, 2], 30)
    whole = drawn(90, scenes=scenes, pixels=pixels)
    assert (drawn(60, scenes=np.repeat([0, 1], 30), pixels=pixels[30:]) == whole[30:]).all()
    assert [counts(part) for part in whole.reshape(3, 30)] == [[23, 6, 1]] * 3


def test_single_chips_come_near_to_the_ratios_and_the_classes_together():
    pixels = np.random.default_rng(5).dirichlet([0.2] * 6, 200) * 50000
    found = drawn(200, scenes=np.arange(200), pixels=pixels)
    assert np.abs(np.array(counts(found)) - [150, 40, 10]).max() <= 2
    assert worst(found, pixels)[0] < 0.08
    assert counts(found[:3]) == [2, 1, 0]  # validation is never forgotten


def test_patches_without_a_class_are_divided_all_the_same():
    assert counts(drawn(20, pixels=np.zeros((20, 0)))) == counts(drawn(20, pixels=np.zeros((20, 2)))) == [15, 4, 1]


def test_a_column_is_read_in_the_spellings_people_use():
    words = ["train", "Training", " VAL ", "valid", "validation", "test", "TESTING"]
    assert by_column(words, "set") == ["train", "train", "validation", "validation", "validation", "test", "test"]


@pytest.mark.parametrize("value", ["", None, float("nan"), "holdout", 1])
def test_another_word_or_none_is_refused(value):
    with pytest.raises(SetupError, match="^--split_column set: holds .*write train, validation or test"):
        by_column(["train", value], "set")


def test_how_many_draws_are_scored_at_once_changes_nothing(monkeypatch):
    pixels = np.random.default_rng(3).dirichlet([0.2] * 6, 60) * 50000
    together = drawn(60, pixels=pixels)
    monkeypatch.setattr("eoseg.splits.AT_ONCE", 60 * 7)  # 7 draws at a time, and 3 at last
    assert (drawn(60, pixels=pixels) == together).all()
