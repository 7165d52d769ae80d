"""Seeded splits, and the grid's own."""

import random

import pytest

from eoseg.errors import SetupError
from eoseg.splits import SPLITS, by_column, by_ratio

USUAL = (0.75, 0.20, 0.05)


def counts(split):
    return [list(split.values()).count(name) for name in SPLITS]


@pytest.mark.parametrize("total, ratios, wanted", [
    (100, USUAL, [75, 20, 5]),
    (20, USUAL, [15, 4, 1]),
    (10, USUAL, [8, 2, 0]),  # 7.5 2 0.5: the tie goes to train
    (7, USUAL, [5, 2, 0]),  # 5.25 1.4 0.35: the largest remainder is validation's
    (3, (1 / 3, 1 / 3, 1 / 3), [1, 1, 1]),
    (1, USUAL, [1, 0, 0]),
    (5, (0, 1, 0), [0, 5, 0]),
    (0, USUAL, [0, 0, 0]),
])
def test_counts_are_those_of_the_largest_remainder(total, ratios, wanted):
    assert counts(by_ratio([str(i) for i in range(total)], ratios, 42)) == wanted


def test_the_same_seed_gives_the_same_split_whatever_the_order_and_0_is_a_seed():
    places = [f"a/{i}" for i in range(40)]
    for seed in (0, 1, 42):
        wanted = by_ratio(places, USUAL, seed)
        for _ in range(3):
            random.shuffle(places)
            assert by_ratio(places, USUAL, seed) == wanted
    splits = [tuple(sorted(by_ratio(places, USUAL, seed).items())) for seed in range(10)]
    assert len(set(splits)) == 10


def test_every_place_may_come_into_every_split():
    places = [str(i) for i in range(10)]
    seen = {(place, split) for seed in range(100) for place, split in by_ratio(places, (0.4, 0.3, 0.3), seed).items()}
    assert len(seen) == 30


def test_a_place_given_several_times_counts_once():
    assert by_ratio(["a", "b", "a", "c", "b"], USUAL, 3) == by_ratio(["a", "b", "c"], USUAL, 3)


def test_a_column_is_read_in_the_spellings_people_use():
    words = ["train", "Training", " VAL ", "valid", "validation", "test", "TESTING"]
    assert by_column(words, "set") == ["train", "train", "validation", "validation", "validation", "test", "test"]


@pytest.mark.parametrize("value", ["", None, float("nan"), "holdout", 1])
def test_another_word_or_none_is_refused(value):
    with pytest.raises(SetupError, match="^--split_column set: holds .*write train, validation or test"):
        by_column(["train", value], "set")
