"""Splits that do not leak: by place over all scenes, overlaps kept together, blocks with a buffer."""

import re

import numpy as np
import pytest
from conftest import coded, write_raster
from cutouts import PLACE, UTM31, error_of, metadata_of, rows_of, scene_and_label, square, table_of, write_vector
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points

pytestmark = pytest.mark.usefixtures("without_fsync")
SIZE = 8


@pytest.fixture
def cut(tmp_path, script):
    """Run `single` or `batch` into a new folder with patches of 8 pixels; the folder, what was said in `cut.said`."""

    def run(*words, status=0):
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        command = "batch" if "--data_dir" in map(str, words) else "single"
        got, cut_said, err = script("Patch_extraction_v2", command, *words, "--output", folder, "--patch_size", SIZE)
        run.said = cut_said
        assert got == status, err
        return folder if status == 0 else error_of(got, err)

    return run


def speckled(height, width, seed=0):
    """Classes in lumps, some of them rare."""
    lumps = np.random.default_rng(seed).choice(5, (height // 4 + 1, width // 4 + 1), p=[0.5, 0.3, 0.1, 0.07, 0.03])
    return lumps.repeat(4, 0).repeat(4, 1)[:height, :width].astype("uint8")


def write_scene(folder, number, height=64, width=96, place=PLACE, crs="EPSG:32630", label_seed=0, value=0):
    """image_N.tif and label_N.tif at a place."""
    folder.mkdir(exist_ok=True)
    pixels = np.full((1, height, width), 100 + value, "uint16")
    write_raster(folder / f"image_{number}.tif", pixels, transform=place, crs=crs)
    write_raster(folder / f"label_{number}.tif", speckled(height, width, label_seed), transform=place, crs=crs)


def moved(col, row):
    """The place of a scene `col` and `row` pixels away."""
    return PLACE * Affine.translation(col, row)


def boxes_of(folder):
    """Per patch: split and bounds (west, south, east, north) in metres, from patches.csv; 10 m pixels."""
    return [(row["split"], float(row["x"]), float(row["y"]) - 10 * SIZE, float(row["x"]) + 10 * SIZE, float(row["y"])) for row in table_of(folder)]


def gap(one, other):
    """Metres between two boxes along the axis on which they are farther apart; negative where they overlap."""
    return max(one[1] - other[3], other[1] - one[3], one[2] - other[4], other[2] - one[4])


def closest(folder):
    """Least gap between patches of different splits."""
    boxes = boxes_of(folder)
    return min(gap(one, other) for one in boxes for other in boxes if one[0] != other[0])


def splits_of(folder):
    return {row["patch"]: row["split"] for row in table_of(folder)}


# ---------------------------------------------------------------- overlaps


@pytest.mark.parametrize("words", [[], ["--split_strategy", "block"], ["--split_strategy", "block", "--block_size", "150m"]], ids=["random", "block", "metres"])
def test_overlapping_cells_never_lie_in_different_splits(tmp_path, cut, words):
    image, label, _, _ = scene_and_label(tmp_path, 64, 96)
    rng = np.random.default_rng(5)
    cells = [square(int(r), int(c), SIZE) for r, c in zip(rng.integers(0, 56, 60), rng.integers(0, 88, 60))]
    folder = cut("--image", image, "--label", label, "--grid", write_vector(tmp_path / "g.gpkg", cells), "--val_ratio", 0.3, "--train_ratio", 0.6, "--test_ratio", 0.1, *words)
    assert len(set(splits_of(folder).values())) == 3 and closest(folder) >= 0


def test_a_stride_overlaps_everything_and_block_parts_it(tmp_path, cut):
    write_scene(tmp_path, 1)
    inputs = ["--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif", "--stride", 4]
    folder = cut(*inputs)
    assert set(splits_of(folder).values()) == {"train"} and "overlap one another in one chain; --split_strategy block parts them" in cut.said
    folder = cut(*inputs, "--split_strategy", "block")
    assert closest(folder) >= 0 and metadata_of(folder)["patches"]["validation"] > 0
    assert metadata_of(folder)["skipped"]["overlaps another split"]["count"] + len(table_of(folder)) == 15 * 23


def test_neighbours_that_snapping_moves_onto_each_other_stay_two_places(tmp_path, cut):
    image, label, _, _ = scene_and_label(tmp_path, 64, 96)
    cells = [square(r * 7.6, c * 7.6, 7.6) for r in range(8) for c in range(12)]  # windows of 8 pixels, which overlap by one
    folder = cut("--image", image, "--label", label, "--grid", write_vector(tmp_path / "g.gpkg", cells))
    assert metadata_of(folder)["places"] == 96 and metadata_of(folder)["patches"] == {"train": 72, "validation": 19, "test": 5}


def test_a_column_that_parts_overlapping_cells_loses_the_training_ones(tmp_path, cut):
    image, label, _, _ = scene_and_label(tmp_path)
    cells = write_vector(tmp_path / "g.gpkg", [square(0, 0, SIZE), square(4, 4, SIZE), square(4, 8, SIZE), square(20, 20, SIZE)], part=["train", "val", "test", "train"])
    error = cut("--image", image, "--label", label, "--grid", cells, "--split_column", "part", status=2)
    assert "no usable patch is left for validation" in error  # which overlaps test
    cells = write_vector(tmp_path / "h.gpkg", [square(0, 0, SIZE), square(4, 4, SIZE), square(20, 20, SIZE)], part=["train", "val", "train"])
    folder = cut("--image", image, "--label", label, "--grid", cells, "--split_column", "part")
    assert splits_of(folder) == {"patch_1.tif": "validation", "patch_2.tif": "train"} and "left out 1: overlaps another split" in cut.said


# ---------------------------------------------------------------- one place, several scenes


def test_dates_of_one_place_share_its_split_without_a_common_grid(tmp_path, cut):
    for number in (1, 2, 3):
        write_scene(tmp_path / "data", number, label_seed=number)
    folder = cut("--data_dir", tmp_path / "data")
    for cell in range(96):
        assert len({splits_of(folder)[f"img{number}_patch_{cell}.tif"] for number in (1, 2, 3)}) == 1
    assert len({row["place"] for row in table_of(folder)}) == 96 and metadata_of(folder)["patches"] == {"train": 3 * 72, "validation": 3 * 19, "test": 3 * 5}


def test_scenes_that_share_some_ground_never_part_it(tmp_path, cut):
    write_scene(tmp_path / "data", 1)
    write_scene(tmp_path / "data", 2, place=moved(51, 3))
    write_scene(tmp_path / "data", 3, place=moved(500, 0))
    folder = cut("--data_dir", tmp_path / "data")
    assert closest(folder) >= 0 and len(set(splits_of(folder).values())) == 3


def test_scenes_in_two_zones_that_show_one_place_are_found(tmp_path, cut):
    write_scene(tmp_path / "data", 1)
    x, y = warp_points("EPSG:32630", UTM31, [500000], [4800000])
    write_scene(tmp_path / "data", 2, place=Affine.translation(x[0], y[0]) * Affine.scale(10, -10), crs=UTM31)
    folder = cut("--data_dir", tmp_path / "data")
    rows = table_of(folder)
    corners = [warp_points(UTM31 if row["scene"] == "image_2.tif" else "EPSG:32630", "EPSG:32630", [float(row["x"]) + 40], [float(row["y"]) - 40]) for row in rows]
    for one, (x, y) in zip(rows, corners):
        for other, (u, v) in zip(rows, corners):
            if abs(x[0] - u[0]) < 50 and abs(y[0] - v[0]) < 50:  # centres nearer than 5 pixels: the same ground for certain
                assert one["split"] == other["split"]


def test_scenes_without_a_place_share_none(tmp_path, cut):
    for number in (1, 2):
        write_scene(tmp_path / "data", number, 16, 16, place=Affine.identity(), crs=None)
    assert len({row["place"] for row in table_of(cut("--data_dir", tmp_path / "data"))}) == 8


@pytest.mark.parametrize("words", [[], ["--split_strategy", "block", "--block_size", "3"], ["--split_strategy", "scene"]], ids=["random", "block", "scene"])
def test_adding_scenes_moves_no_place(tmp_path, cut, words):
    write_scene(tmp_path / "data", 1, label_seed=1)
    write_scene(tmp_path / "data", 2, place=moved(60, 30), label_seed=2)
    write_scene(tmp_path / "data", 3, 16, 16, place=moved(1000, 0), label_seed=3)
    before = splits_of(cut("--data_dir", tmp_path / "data", *words))
    write_scene(tmp_path / "data", 4, label_seed=4, value=9)  # another date of the first
    write_scene(tmp_path / "data", 5, place=moved(-300, 0), label_seed=5)
    write_scene(tmp_path / "data", 6, place=moved(0, 0), crs=UTM31, label_seed=6)  # far away, in another zone
    after = splits_of(cut("--data_dir", tmp_path / "data", *words))
    same = before.keys() & after.keys()
    assert len(after) > len(before) * 1.5 and len(same) >= 0.9 * len(before) and all(before[name] == after[name] for name in same)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("block, cells", [("2", 2), ("4", 4), ("160m", 2), ("0.24km", 3)])
def test_blocks_go_to_one_split_as_a_whole(tmp_path, cut, block, cells):
    write_scene(tmp_path, 1, 96, 96)
    folder = cut("--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif", "--split_strategy", "block", "--block_size", block)
    found = {}
    for row in rows_of(folder).values():
        found.setdefault((int(row["row"]) // (SIZE * cells), int(row["col"]) // (SIZE * cells)), set()).add(row["split"])
    assert len(found) == (12 // cells) ** 2 and all(len(splits) == 1 for splits in found.values())
    assert {split for splits in found.values() for split in splits} >= {"train", "validation"}


def test_blocks_are_measured_on_the_ground_in_degrees_too(tmp_path, cut):
    place = Affine(1e-4, 0, 30.0, 0, -1e-4, 60.0)  # a pixel: 11.1 m by 5.6 m
    write_scene(tmp_path, 1, 96, 96, place=place, crs="EPSG:4326")
    folder = cut("--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif", "--split_strategy", "block", "--block_size", "179m")
    found = {}
    for row in rows_of(folder).values():  # 179 m are 16.1 pixels of a column, 32.2 of a row
        found.setdefault((int(row["row"]) // 16, int(row["col"]) // 32), set()).add(row["split"])
    assert len(found) == 18 and all(len(splits) == 1 for splits in found.values()) and len({min(splits) for splits in found.values()}) > 1


@pytest.mark.parametrize("buffer", [1, 2])
def test_a_buffer_leaves_that_many_cells_between_the_splits(tmp_path, cut, buffer):
    write_scene(tmp_path, 1, 128, 128)
    inputs = ["--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif", "--split_strategy", "block"]
    folder = cut(*inputs, "--buffer", buffer)
    assert closest(folder) == buffer * SIZE * 10 and "touch a training patch" not in cut.said
    plain = cut(*inputs)
    assert closest(plain) == 0
    kept = {name: split for name, split in splits_of(plain).items() if split == "test"}
    assert kept and kept.items() <= splits_of(folder).items()  # the test patches stay
    assert metadata_of(folder)["skipped"][f"less than {buffer} patches from another split (--buffer)"]["count"] == 256 - len(table_of(folder)) > 0


def test_touching_patches_are_counted_and_the_flag_that_avoids_it_is_named(tmp_path, cut):
    write_scene(tmp_path, 1)
    inputs = ["--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif"]
    for words, remedy in (([], "--split_strategy block keeps neighbours together"), (["--split_strategy", "block"], "--buffer 1 leaves such training patches out")):
        boxes = boxes_of(cut(*inputs, *words))
        train = [box for box in boxes if box[0] == "train"]
        held = [box for box in boxes if box[0] != "train"]
        touching = sum(any(gap(box, other) <= 0 for other in train) for box in held)
        assert touching and f"note: {touching} of {len(held)} validation and test patches touch a training patch" in cut.said and remedy in cut.said


def test_all_in_one_block_or_scene_is_refused(tmp_path, cut):
    write_scene(tmp_path, 1, 32, 32)
    inputs = ["--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif"]
    assert "--split_strategy block: all patches lie in one block; give a smaller --block_size" in cut(*inputs, "--split_strategy", "block", status=2)
    assert "--split_strategy scene: all patches lie in one scene" in cut(*inputs, "--split_strategy", "scene", status=2)
    assert "all patches lie in one block" in cut(*inputs, "--split_strategy", "block", "--dry_run", status=2)


def test_scenes_go_to_one_split_as_a_whole_and_overlapping_ones_together(tmp_path, cut):
    for number in range(1, 9):
        write_scene(tmp_path / "data", number, 32, 32, place=moved(1000 * (number // 2), 5 * number), label_seed=number)  # 2 and 3 share ground, 4 and 5 ...
    folder = cut("--data_dir", tmp_path / "data", "--split_strategy", "scene")
    of = {}
    for row in table_of(folder):
        of.setdefault(row["scene"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in of.values()) and set.union(*of.values()) >= {"train", "validation"}
    assert all(of[f"image_{n}.tif"] == of[f"image_{n + 1}.tif"] for n in (2, 4, 6))


@pytest.mark.parametrize("words, text", [
    (["--split_strategy", "block", "--split_column", "x"], "--split_strategy block and --split_column"), (["--split_strategy", "column"], "needs --split_column"),
    (["--block_size", "3"], "--block_size 3: is for --split_strategy block"), (["--split_strategy", "block", "--block_size", "2.5"], "--block_size 2.5"),
    (["--split_strategy", "block", "--block_size", "0"], "--block_size 0"), (["--split_strategy", "block", "--block_size", "4miles"], "--block_size 4miles"),
    (["--buffer", "-1"], "--buffer"), (["--split_strategy", "cluster"], "--split_strategy"),
])
def test_splits_that_cannot_be_are_named(tmp_path, cut, words, text):
    write_scene(tmp_path, 1, 32, 32)
    assert text in cut("--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif", *words, status=2)


def test_classes_are_balanced_far_better_than_by_chance(tmp_path, cut):
    write_scene(tmp_path, 1, 128, 160)
    folder = cut("--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif")
    rows = table_of(folder)
    pixels = np.array([[int(row[f"class_{c}"]) for c in range(5)] for row in rows], float)
    split = np.array([("train", "validation", "test").index(row["split"]) for row in rows])

    def worst(split):
        shares = np.array([pixels[split == s].sum(0) / pixels[split == s].sum() for s in range(3)])
        return np.abs(shares - pixels.sum(0) / pixels.sum()).max()

    chance = [worst(np.random.default_rng(seed).permutation(split)) for seed in range(100)]
    assert worst(split) < np.median(chance) / 2.4
    assert re.search(r"class +4 +train +[\d,]+ +[\d.]+%", cut.said)


def test_coded_scenes_keep_their_pixels_whatever_the_split(tmp_path, cut):
    pixels = coded(64, 96, 2)
    image = write_raster(tmp_path / "scene.tif", pixels)
    write_scene(tmp_path, 1)
    folder = cut("--image", image, "--label", tmp_path / "label_1.tif", "--split_strategy", "block", "--buffer", 1)
    import rasterio

    for row in table_of(folder):
        with rasterio.open(folder / row["split"] / "images" / row["patch"]) as src:
            assert (src.read() == pixels[:, int(row["row"]) : int(row["row"]) + SIZE, int(row["col"]) : int(row["col"]) + SIZE]).all()
    assert len(list(folder.glob("*/images/*.tif"))) == len(table_of(folder))


def test_a_later_date_on_an_offset_grid_moves_nothing_and_gives_way(tmp_path, cut):
    write_scene(tmp_path / "data", 1, label_seed=1)
    for words in ([], ["--split_strategy", "block"]):
        before = splits_of(cut("--data_dir", tmp_path / "data", *words))
        write_scene(tmp_path / "data", 2, place=moved(5, 3), label_seed=2)
        folder = cut("--data_dir", tmp_path / "data", *words)
        after = splits_of(folder)
        assert {name: split for name, split in after.items() if name.startswith("img1_")} == before
        assert closest(folder) >= 0 and "overlaps another split" in cut.said and len(after) > len(before) * 1.2
        (tmp_path / "data/image_2.tif").unlink()
        (tmp_path / "data/label_2.tif").unlink()


def test_a_scene_in_another_zone_joins_nothing_that_was_apart(tmp_path, cut):
    image, label, _, _ = scene_and_label(tmp_path / "data", 64, 96, 1)
    write_raster(image, np.ones((64, 96), "uint16"))
    image.rename(tmp_path / "data/image_1.tif"), label.rename(tmp_path / "data/label_1.tif")
    brick = [square(r * SIZE, c * SIZE + r % 2 * SIZE / 2, SIZE) for r in range(8) for c in range(11)]  # sides that meet the middle of other sides
    write_vector(tmp_path / "data/grid_1.gpkg", brick)
    write_vector(tmp_path / "data/grid_2.gpkg", [square(0, 0, SIZE)], crs=UTM31)
    before = splits_of(cut("--data_dir", tmp_path / "data", "--use_per_image_grid"))
    write_scene(tmp_path / "data", 2, crs=UTM31)
    folder = cut("--data_dir", tmp_path / "data", "--use_per_image_grid")
    assert metadata_of(folder)["places"] == 89 and before.items() <= splits_of(folder).items()


def test_a_scene_across_the_180th_meridian_shares_no_ground_with_the_rest_of_the_world(tmp_path, cut):
    import geopandas

    x, y = warp_points("EPSG:4326", "EPSG:32601", [-179.996], [43.35])
    write_scene(tmp_path / "data", 1, place=Affine.translation(x[0] - 480, y[0]) * Affine.scale(10, -10), crs="EPSG:32601")
    write_scene(tmp_path / "data", 2)
    folder = cut("--data_dir", tmp_path / "data")
    assert metadata_of(folder)["places"] == 192
    assert (geopandas.read_file(folder / "patches.gpkg").bounds.eval("maxx - minx") < 0.01).all()


def test_a_coarse_patch_over_many_fine_ones_is_no_twin_of_the_middle_one(tmp_path, cut):
    write_scene(tmp_path / "data", 1, 40, 40)
    write_scene(tmp_path / "data", 2, 8, 8, place=moved(8, 8) * Affine.scale(3))
    folder = cut("--data_dir", tmp_path / "data")
    assert closest(folder) >= 0 or "img2" not in str(splits_of(folder))
    assert len([name for name in splits_of(folder) if name.startswith("img1")]) == 25


def test_millimetre_pixels_in_degrees_are_many_places(tmp_path, cut):
    write_scene(tmp_path, 1, 64, 64, place=Affine(1e-8, 0, 30.0, 0, -1e-8, 43.0), crs="EPSG:4326")
    folder = cut("--image", tmp_path / "image_1.tif", "--label", tmp_path / "label_1.tif")
    assert metadata_of(folder)["places"] == 64 and metadata_of(folder)["patches"]["validation"] == 13


def test_patches_that_would_have_one_name_are_refused(tmp_path, cut):
    for number in ("1", "1_patch_0"):
        write_scene(tmp_path / "data", number, 8, 8)
    for name, ids in (("1", ["0_patch_a"]), ("1_patch_0", ["a"])):
        write_vector(tmp_path / "data" / f"grid_{name}.geojson", [square(0, 0, SIZE)], cell=ids)
    assert "would be written twice" in refused(tmp_path, cut)


def refused(tmp_path, cut):
    """Two pairs whose ids and cells make the same name; the grids are given pair by pair."""
    from eoseg import pairing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "GRID_PATTERN", r"^grid_(\w+)\.geojson$")
        return cut("--data_dir", tmp_path / "data", "--image_pattern", r"^image_(\w+)\.tif$", "--label_pattern", r"^label_(\w+)\.tif$", "--use_per_image_grid", "--id_column", "cell", status=2)


def test_sides_bend_as_they_do_in_the_other_crs():
    import shapely
    from pyproj import Transformer

    from eoseg.places import carried

    wide = shapely.box(0, 60, 4, 62)  # degrees; its southern side bows some 2 km off the straight line between its ends
    shape, = carried([wide], 4326, 32631)
    for degrees in (0.5, 1.3, 2.0, 3.1):
        on_side = shapely.Point(Transformer.from_crs(4326, 32631, always_xy=True).transform(degrees, 60))
        assert shape.exterior.distance(on_side) < 120
