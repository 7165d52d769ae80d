"""Divisions into train, validation and test, and into folds, of many random layouts: no ground on two sides, shares as near as can be, and no order of the input shows."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine
from cutouts import bytes_of, scene_and_label, square, write_vector
from hypothesis import given
from hypothesis import strategies as st
from test_properties import whole  # with it the profile

from eoseg import partition, places
from eoseg.config import ExtractionConfig
from eoseg.errors import SetupError
from eoseg.places import Ground
from eoseg.splits import SPLITS, best_draw, by_draw
from eoseg.tiles import Window, largest_remainder

UTM = "EPSG:32630"
RATIOS = st.sampled_from([(0.75, 0.2, 0.05), (0.5, 0.3, 0.2), (0.6, 0.4, 0.0), (1 / 3, 1 / 3, 1 / 3)])


@st.composite
def layouts(draw, scenes=(1, 2, 3), steps=(8, 12, 16, 17, 40)):
    """Rows as in patches.csv and the plan of each scene: patches of 16 pixels, side by side, apart or overlapping, in scenes that may show the same ground."""
    rng = np.random.default_rng(draw(whole(0, 2**32 - 1)))
    count, scenes, step = draw(whole(2, 40)), draw(st.sampled_from(scenes)), draw(st.sampled_from(steps))
    rows, plans = [], {}
    for number in range(scenes):
        shift = int(rng.choice([0, 0, 5, 1000])) * 10
        plan = SimpleNamespace(crs_text=UTM, transform=Affine(10, 0, 500000 + shift, 0, -10, 4800000), found=[])
        spots = rng.permutation(64)[: max(1, count // scenes)]
        for spot in sorted(spots.tolist()):
            window = Window(spot // 8 * step, spot % 8 * step, 16, 16)
            plan.found.append(SimpleNamespace(window=window))
            classes = {str(c): int(n) for c, n in enumerate(rng.integers(0, 200, 3)) if n}
            rows.append({"patch": f"img{number}_patch_{spot}.tif", "pair": str(number), "split": "", "classes": classes, "shift_rows": 0.0, "shift_cols": 0.0, "rotation": 0.0,
                         **window._asdict()} | {"labelled_pixels": sum(classes.values())})
        plans[str(number)] = plan
    return rows, plans


def box(row, plans):
    """West, south, east and north of a patch."""
    (west, north), (east, south) = (plans[row["pair"]].transform * (row["col"] + dx, row["row"] + dy) for dx, dy in ((0, 0), (row["width"], row["height"])))
    return west, south, east, north


def share_ground(one, other, gap=0.0):
    """Do two boxes overlap, or lie within `gap` metres?"""
    return one[0] < other[2] + gap and other[0] < one[2] + gap and one[1] < other[3] + gap and other[1] < one[3] + gap


def divided(told, plans, options):
    rows, left_out, touching = places.divide([dict(row) for row in told], plans, options)
    return {row["patch"]: row for row in rows}, {row["patch"] for some in left_out.values() for row in some}, touching


@given(layouts(), RATIOS, st.sampled_from(["random", "block", "scene"]), st.sampled_from([0, 0, 1]), whole(0, 5))
def test_no_ground_is_in_two_splits_and_no_patch_is_lost_or_doubled(told, ratios, strategy, buffer, seed):
    rows, plans = told
    options = ExtractionConfig(split_strategy=strategy, buffer=buffer, random_seed=seed, **dict(zip(("train_ratio", "val_ratio", "test_ratio"), ratios)))
    try:
        kept, left_out, touching = divided(rows, plans, options)
    except SetupError as refused:
        assert strategy != "random" and "--split_strategy" in str(refused)
        return
    assert kept.keys() | left_out == {row["patch"] for row in rows} and not kept.keys() & left_out
    assert all(row["split"] in SPLITS and (ratios[SPLITS.index(row["split"])] > 0) for row in kept.values())
    boxes, beside = {name: box(row, plans) for name, row in kept.items()}, set()
    for name, row in kept.items():
        for other, rival in kept.items():
            if row["split"] != rival["split"]:
                assert not share_ground(boxes[name], boxes[other], 160 * buffer - 1 if buffer else 0), (name, other)
                beside |= {name} if row["split"] != "train" == rival["split"] and share_ground(boxes[name], boxes[other], 0.001) else set()
            elif share_ground(boxes[name], boxes[other]):
                assert row["place"] == rival["place"]
    assert touching == len(beside)


@given(layouts(scenes=[1], steps=[16, 17, 40]), RATIOS, whole(0, 3), st.randoms())
def test_the_order_of_patches_that_share_no_ground_decides_nothing(told, ratios, seed, chance):
    rows, plans = told
    options, shuffled = ExtractionConfig(random_seed=seed, **dict(zip(("train_ratio", "val_ratio", "test_ratio"), ratios))), rows.copy()
    chance.shuffle(shuffled)
    one, other = (divided(some, plans, options) for some in (rows, shuffled))
    assert {name: row["split"] for name, row in one[0].items()} == {name: row["split"] for name, row in other[0].items()} and one[1:] == other[1:]


@pytest.mark.parametrize("how", [["random"], ["block", "--block_size", 2]])
def test_the_order_of_a_grids_cells_decides_nothing_not_even_where_they_overlap(tmp_path, script, without_fsync, how):
    image, label, *_ = scene_and_label(tmp_path, 64, 96)
    cells = [(row, col) for row in range(0, 48, 12) for col in range(0, 84, 14)]
    for name, seed in (("a", 1), ("b", 2)):
        order = np.random.default_rng(seed).permutation(len(cells)).tolist()
        grid = write_vector(tmp_path / f"{name}.gpkg", [square(*cells[i]) for i in order], id=order)
        status, _, complaint = script("Patch_extraction_v2", "single", "--image", image, "--label", label, "--grid", grid, "--output", tmp_path / name, "--patch_size", 16,
                                      "--split_strategy", *how)
        assert status == 0, complaint
    one, other = (bytes_of(tmp_path / name) for name in "ab")
    assert one == other and len(one) > 20


@given(whole(20, 300), RATIOS, whole(0, 99))
def test_units_of_one_size_are_divided_as_near_to_the_shares_as_can_be(count, ratios, seed):
    found = by_draw(np.zeros(count, int), np.ones(count), np.zeros((count, 0)), ratios, seed)
    assert np.bincount(found, minlength=3).tolist() == largest_remainder(count, ratios)


@given(whole(2, 9), whole(0, 60), whole(0, 99))
def test_folds_of_single_patches_differ_by_one_at_most(folds, more, seed):
    count = folds + more
    fold = partition.drawn(np.arange(count), folds, seed, np.zeros((count, 0)))
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.sum() == count and sizes.max() - sizes.min() <= 1


@given(st.lists(whole(1, 30), min_size=1, max_size=40), RATIOS, whole(0, 99))
def test_every_unit_has_one_split_and_the_same_seed_gives_the_same(sizes, ratios, seed):
    none = np.zeros(3), np.zeros((3, 2))
    counts = np.random.default_rng(len(sizes)).integers(0, 50, (len(sizes), 2)).astype(float)
    one, other = (best_draw(np.array(sizes, float), counts, ratios, none, np.random.default_rng([seed, 1])) for _ in range(2))
    assert (one == other).all() and one.shape == (len(sizes),) and set(one.tolist()) <= {0, 1, 2}
    assert ratios[2] > 0 or not (one == 2).any()


def test_seed_0_is_a_seed_like_any_other():
    drawn = {tuple(by_draw(np.zeros(60, int), np.ones(60), np.zeros((60, 0)), (0.6, 0.3, 0.1), seed)) for seed in (0, 1, 2, 0)}
    assert len(drawn) == 3


@given(layouts(), whole(2, 5), whole(0, 5), st.sampled_from([None, "block", "scene", "random"]))
def test_no_fold_trains_on_ground_it_validates_on_and_every_patch_validates_once(told, count, seed, by):
    rows, plans = told
    named = [{"patch": row["patch"], "place": f"{row['row']} {row['col']}", "scene": row["pair"]} for row in rows]
    pairs = [(row["patch"], row["patch"]) for row in rows]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(partition, "locate", lambda images: (Ground(rows, plans), None))
        try:
            division = partition.divide(pairs, count, seed, by, named)
        except SetupError as refused:
            assert "--n_splits" in str(refused)
            return
    of = {row["patch"]: row for row in rows}
    assert Counter(image for _, held in division.folds for image, _ in held) == Counter([*of])
    for (train, held), out in zip(division.folds, division.left_out):
        assert train and held and len(train) + len(held) + out == len(rows) and not {*train} & {*held}
        for image, _ in train:
            for other, _ in held:
                assert (of[image]["row"], of[image]["col"]) != (of[other]["row"], of[other]["col"])  # what patches.csv calls one place
                assert division.by == "random" or not share_ground(box(of[image], plans), box(of[other], plans), 0.001)
