"""Folds by place: no patch trains beside one that validates, every patch validates once, folds are alike."""

from pathlib import Path

import numpy as np
import pytest
from conftest import write_raster
from rasterio.transform import Affine

from eoseg import partition
from eoseg.errors import SetupError

SIDE = 8  # pixels of a patch


def write(folder, name, row, col, crs="EPSG:32630", corner=(500000, 4800000), turn=0):
    """A patch whose upper left corner is so many pixels of 10 m from `corner`."""
    transform = Affine.translation(*corner) * Affine.rotation(turn) * Affine.scale(10, -10) * Affine.translation(col, row)
    return write_raster(folder / name, np.zeros((SIDE, SIDE), "uint8"), crs=crs, transform=transform), f"label of {name}"


def write_all(folder, corners, **place):
    """Pairs of patches r<row>_c<col>.tif with these corners."""
    return [write(folder, f"r{row}_c{col}.tif", row, col, **place) for row, col in corners]


def lattice(rows, cols, step=SIDE):
    return [(row * step, col * step) for row in range(rows) for col in range(cols)]


def corner(pair):
    return [int(word[1:]) for word in Path(pair[0]).stem.split("_")[:2]]


def least_gap(one, other):
    """Pixels between the nearest patches of two lists, along the axis where they are further apart; 0: they touch; negative: they overlap."""
    apart = abs(np.array([corner(pair) for pair in one])[:, None] - np.array([corner(pair) for pair in other])[None])
    return apart.max(2).min() - SIDE


def sound(division, pairs, count):
    """Every pair validates once, and never trains in that fold; those that do neither are counted; order is kept."""
    held = [pair for _, part in division.folds for pair in part]
    assert len(division.folds) == len(division.left_out) == count and sorted(held) == sorted(pairs) and all(part for _, part in division.folds)
    for (train, validation), left_out in zip(division.folds, division.left_out):
        assert not {*train} & {*validation} and len(train) + len(validation) + left_out == len(pairs)
        assert train == [pair for pair in pairs if pair in train] and validation == [pair for pair in pairs if pair in validation]
    return [len(part) for _, part in division.folds]


def fold_of(division):
    return {pair: number for number, (_, held) in enumerate(division.folds) for pair in held}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """64 patches that cover a scene."""
    return write_all(tmp_path_factory.mktemp("full"), lattice(8, 8))


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """Twelve patches in pairs of neighbours: beside, below and across a corner; 300 pixels from pair to pair."""
    steps = [(0, SIDE), (SIDE, 0), (SIDE, SIDE)] * 2
    return write_all(tmp_path_factory.mktemp("loose"), [(300 * i + down * k, right * k) for i, (down, right) in enumerate(steps) for k in (0, 1)])


def test_patches_that_touch_share_a_fold_and_none_is_lost(loose):
    found = partition.divide(loose, 3, seed=1)
    assert found.by == "block" and sound(found, loose, 3) == [4, 4, 4] and found.left_out == [0, 0, 0]
    fold = fold_of(found)
    assert all(fold[one] == fold[other] for one, other in zip(loose[::2], loose[1::2]))
    assert found.said == "folds     by block, patches that touch together; 4 patches validate in each"


def test_patches_that_touch_are_parted_where_folds_would_stay_empty(loose):
    found = partition.divide(loose, 7, seed=1)  # six pairs, each no larger than a fold may be
    assert max(sound(found, loose, 7)) == 2 and any(found.left_out)


@pytest.mark.parametrize("gap, touching", [(0, 1), (0.25, 1), (-0.25, 1), (1.5, 0)])
def test_a_gap_of_more_than_a_pixel_parts_patches(tmp_path, gap, touching):
    pairs = write_all(tmp_path, [(0, 0), (0, SIDE + gap), (900, 0), (900, SIDE + gap)])
    assert partition.divide(pairs, 4, 0, "block").left_out == [touching] * 4  # each validates alone


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_scene_covered_by_patches_is_cut_and_what_touches_is_left_out(full, count):
    found = partition.divide(full, count, seed=1)
    sizes = sound(found, full, count)
    assert max(sizes) <= 2 * min(sizes) and max(sizes) - min(sizes) <= 2
    assert all(least_gap(train, held) > 0 for train, held in found.folds)
    assert min(found.left_out) > 0 and found.said.endswith("more touch these and do not train in that fold")


def test_four_folds_of_a_square_are_its_quarters(full):
    found = partition.divide(full, 4, seed=0)  # 4 x 4 patches; 4 + 4 along the two inner sides and 1 at the corner touch them
    assert found.left_out == [9] * 4 and found.said.endswith("; 16 patches validate in each; 9 more touch these and do not train in that fold")
    assert sorted(str({(row // 32, col // 32) for row, col in map(corner, held)}) for _, held in found.folds) == ["{(0, 0)}", "{(0, 1)}", "{(1, 0)}", "{(1, 1)}"]


def test_a_large_scene_gives_each_fold_two_blocks(tmp_path):
    pairs = write_all(tmp_path, lattice(15, 14))
    found = partition.divide(pairs, 4, seed=2)
    assert max(sound(found, pairs, 4)) <= 54 and all(least_gap(train, held) > 0 for train, held in found.folds)
    assert all(len(train) > 80 for train, _ in found.folds)
    assert len({str(sorted(sorted(map(corner, held)) for _, held in partition.divide(pairs, 4, seed).folds)) for seed in range(5)}) > 1  # which two is drawn


def test_scenes_a_little_larger_than_a_fold_stay_whole(tmp_path):
    pairs = write_all(tmp_path, [(900 * scene + row, col) for scene, rows in enumerate((3, 3, 2)) for row, col in lattice(rows, 4)])
    for seed in range(4):
        found = partition.divide(pairs, 3, seed)
        assert sorted(sound(found, pairs, 3)) == [8, 12, 12] and found.left_out == [0, 0, 0]


def test_the_order_of_the_patches_and_rounding_do_not_fray_the_blocks(full, tmp_path):
    rng = np.random.default_rng(0)
    pairs = write_all(tmp_path, (np.array(lattice(8, 8)) + rng.uniform(-1e-5, 1e-5, (64, 2)))[rng.permutation(64)].tolist())
    assert sorted(partition.divide(pairs, 5, 0).left_out) == sorted(partition.divide(full, 5, 0).left_out)


def test_a_turned_grid_is_cut_as_well(tmp_path):
    pairs = write_all(tmp_path, lattice(6, 6), turn=30)
    found = partition.divide(pairs, 3, seed=0)
    assert max(sound(found, pairs, 3)) <= 13 and all(least_gap(train, held) > 0 for train, held in found.folds)


@pytest.mark.parametrize("place", [None, "img1_patch_1"])
def test_overlapping_patches_are_cut_and_never_stand_on_both_sides(tmp_path, place):
    """An extraction calls a chain of overlapping patches one place."""
    pairs = write_all(tmp_path, lattice(9, 9, SIDE // 2))
    found = partition.divide(pairs, 3, seed=0, rows=[{"patch": Path(image).name, "place": place} for image, _ in pairs])
    assert max(sound(found, pairs, 3)) <= 30 and all(least_gap(train, held) > 0 for train, held in found.folds)


@pytest.mark.parametrize("rows", [True, False])
def test_dates_of_a_place_share_a_fold_in_every_mode(tmp_path, rows):
    pairs = [write(tmp_path, f"r{row}_c{col}_{date}.tif", row, col) for date in (1, 2, 3) for row, col in lattice(6, 6)]
    table = [{"patch": Path(image).name, "place": Path(image).stem[:-2]} for image, _ in pairs] if rows else []
    for by in ("block", "random") if rows else ("block",):
        found = partition.divide(pairs, 3, seed=5, by=by, rows=table)
        fold, sizes = fold_of(found), sound(found, pairs, 3)
        assert sizes == [36, 36, 36] and all(len({fold[pair] for pair in pairs[i::36]}) == 1 for i in range(36))
        assert by == "random" or all(least_gap(train, held) > 0 for train, held in found.folds)


def test_places_named_alike_share_a_fold_wherever_they_lie(tmp_path):
    pairs = write_all(tmp_path, [(0, 100 * i) for i in range(6)])
    rows = [{"patch": "r0_c0.tif", "place": "a"}, {"patch": "r0_c500.tif", "place": "a"}]
    for seed in range(8):
        fold = fold_of(partition.divide(pairs, 2, seed, rows=rows))
        assert fold[pairs[0]] == fold[pairs[5]]


def test_patches_of_two_utm_zones_touch_across_the_border(tmp_path):
    """Zones 30 and 31 meet at Greenwich: on the equator 833978.557 m east in one is 166021.443 m in the other."""
    west = [write(tmp_path, f"west{i}.tif", 0, 0, "EPSG:32630", (833978.557 - 80, 40 + 1000 * i)) for i in range(4)]
    east = [write(tmp_path, f"east{i}.tif", 0, 0, "EPSG:32631", (166021.443, 40 + 1000 * i)) for i in range(4)]
    far = [write(tmp_path, f"far{i}.tif", 0, 0, "EPSG:32755", (500000, 5800000 + 1000 * i)) for i in range(4)]
    found = partition.divide(west + east + far, 4, seed=3)
    assert found.by == "block" and sound(found, west + east + far, 4) and found.left_out == [0] * 4
    assert all(fold_of(found)[one] == fold_of(found)[other] for one, other in zip(west, east))


def test_a_grid_across_two_zones_is_cut(tmp_path):
    pairs = [write(tmp_path, f"w{i}_{j}.tif", 0, 0, "EPSG:32630", (833978.557 - 80 * (j + 1), 80 * i)) for i in range(6) for j in range(3)]
    pairs += [write(tmp_path, f"e{i}_{j}.tif", 0, 0, "EPSG:32631", (166021.443 + 80 * j, 80 * i)) for i in range(6) for j in range(3)]
    found = partition.divide(pairs, 2, seed=3)
    assert sound(found, pairs, 2) == [18, 18] and found.left_out == [6, 6]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Twelve patches without a CRS, four of each of three scenes by their names."""
    folder = tmp_path_factory.mktemp("bare")
    return [write(folder, f"img{scene}_patch_{i}.tif", 0, SIDE * i, crs=None) for scene in "abc" for i in range(4)]


def test_patches_without_a_crs_are_divided_at_random_and_that_is_said(bare):
    found = partition.divide(bare, 5, seed=1)
    assert found.by == "random" and sorted(sound(found, bare, 5)) == [2, 2, 2, 3, 3] and found.left_out == [0] * 5
    assert found.said == (f"folds     at random, patches of one place (patches.csv) in one fold ({bare[0][0]} is not georeferenced: nobody knows which patches touch); 2 to 3 patches validate in each")


def test_a_single_patch_without_a_place_is_enough(tmp_path, loose):
    lost = write(tmp_path, "lost.tif", 0, 0, crs=None)
    assert partition.divide([*loose, lost], 3, seed=1).by == "random"
    with pytest.raises(SetupError, match="^--fold_by block: .*lost.tif is not georeferenced.*--fold_by scene or random"):
        partition.divide([*loose, lost], 3, seed=1, by="block")


def test_random_opens_no_file_and_heeds_places():
    pairs = [(f"nowhere/{date}_{i}.tif", "label") for date in range(3) for i in range(8)]
    found = partition.divide(pairs, 4, 0, "random", [{"patch": f"{date}_{i}.tif", "place": f"p{i}"} for date in range(3) for i in range(8)])
    assert sound(found, pairs, 4) == [6] * 4 and all(len({image[-5] for image, _ in held}) == 2 for _, held in found.folds)


def test_scenes_stay_whole_by_name_or_by_table(bare):
    found = partition.divide(bare, 3, seed=1, by="scene")
    assert found.by == "scene" and sound(found, bare, 3) == [4, 4, 4] and all(len({Path(image).name[3] for image, _ in held}) == 1 for _, held in found.folds)
    rows = [{"patch": Path(image).name, "scene": "north.tif" if i % 2 else "south.tif"} for i, (image, _) in enumerate(bare)]
    assert sorted(held for _, held in partition.divide(bare, 2, seed=1, by="scene", rows=rows).folds) == sorted([bare[::2], bare[1::2]])


def test_scenes_that_overlap_share_a_fold_and_those_that_touch_do_not_train(tmp_path):
    lie = {"a": 0, "b": 4, "c": 200, "d": 200 + 2 * SIDE}  # a and b overlap, d begins where c ends
    pairs = [write(tmp_path, f"r0_c{left + SIDE * i}_{name}.tif", 0, left + SIDE * i) for name, left in lie.items() for i in (0, 1)]
    rows = [{"patch": Path(image).name, "scene": Path(image).stem[-1]} for image, _ in pairs]
    found = partition.divide(pairs, 3, seed=1, by="scene", rows=rows)
    assert sorted(sound(found, pairs, 3)) == [2, 2, 4] and sorted(found.left_out) == [0, 1, 1]
    assert [pairs[:4]] == [held for _, held in found.folds if len(held) == 4] and all(least_gap(train, held) > 0 for train, held in found.folds)


def test_one_large_scene_leaves_no_fold_empty():
    sizes = {"a": 40, "b": 1, "c": 1, "d": 1}
    pairs = [(f"{name}{i}.tif", "label") for name, size in sizes.items() for i in range(size)]
    rows = [{"patch": image, "place": image[0]} for image, _ in pairs]
    assert sorted(sound(partition.divide(pairs, 4, 0, "random", rows), pairs, 4)) == [1, 1, 1, 40]


def test_a_patch_of_no_known_scene_is_named(loose):
    with pytest.raises(SetupError, match="^--fold_by scene: nothing says which scene .*r0_c0.tif was cut from.*--fold_by block or random"):
        partition.divide(loose, 3, seed=1, by="scene")


def test_more_folds_than_units_are_refused(bare, tmp_path):
    with pytest.raises(SetupError, match="^--n_splits 13: the 12 patches show 12 places; give at most as many folds as places.$"):
        partition.divide(bare, 13, seed=1)
    with pytest.raises(SetupError, match="^--n_splits 4: the 12 patches show 3 groups of scenes"):
        partition.divide(bare, 4, seed=1, by="scene")
    same = [write(tmp_path, f"date{i}.tif", 0, 0) for i in range(3)]
    with pytest.raises(SetupError, match="^--n_splits 2: the 3 patches show 1 places"):
        partition.divide(same, 2, seed=1, by="block")
    said = partition.divide(same, 2, seed=1).said  # nobody asked for blocks: the same corner in every file is more likely than one place alone
    assert "warning: --fold_by: by their coordinates the 3 patches show 1 place, too few for 2 folds" in said


def test_a_fold_with_nothing_left_to_learn_from_is_refused(tmp_path):
    pairs = write_all(tmp_path, lattice(2, 2))
    with pytest.raises(SetupError, match="^--n_splits 2: in fold 1 no patch is left to train .* 2 that validate; .*--fold_by random"):
        partition.divide(pairs, 2, seed=1)
    assert sound(partition.divide(pairs, 2, 1, "random"), pairs, 2) == [2, 2]
    strip = write_all(tmp_path, lattice(1, 6))
    labelled = {image: np.array([9 * (corner((image, "")) in ([0, 16], [0, 24]))]) for image, _ in strip}  # the two in the middle: each is left out where the other validates
    with pytest.raises(SetupError, match="in fold 1 no labelled patch is left to train"):
        partition.divide(strip, 2, 1, class_pixels=labelled)


def test_the_same_seed_gives_the_same_folds_and_another_gives_others(full, loose):
    for pairs in (full, loose):
        assert partition.divide(pairs, 3, 4) == partition.divide(pairs, 3, 4)
        assert len({str(partition.divide(pairs, 3, seed).folds) for seed in range(6)}) > 1


def test_classes_are_spread_over_the_folds():
    rng = np.random.default_rng(0)
    pairs = [(f"p{i}.tif", "label") for i in range(60)]
    pixels = {image: 1000 * rng.dirichlet([0.2] * 4) for image, _ in pairs}
    total = sum(pixels.values())

    def worst(**known):
        folds = partition.divide(pairs, 5, 3, "random", **known).folds
        return max(abs(sum(pixels[image] for image, _ in held) / total - 0.2).max() for _, held in folds)

    assert worst(class_pixels=pixels) < 0.07 and worst() > 0.09
