import re

import numpy as np
import pytest
from conftest import coded, write_raster
from cutouts import error_of, metadata_of, opened, square, table_of, write_vector

from eoseg import pairing
from eoseg.errors import SetupError

pytestmark = pytest.mark.usefixtures("without_fsync")
IMAGES, LABELS = {"--image_pattern": r"^[Ii]mage[_-]?(\d+)\.tif{1,2}$"}, r"^[Ll]abel[_-]?(\d+)\.tif{1,2}$"
CELLS = [(0, 0), (0, 16), (0, 32), (16, 0), (16, 16), (16, 32)]


def scene_of(number, bands=3):
    return coded(32, 48, bands) + np.uint16(number)


def write_pair(folder, number, bands=3, label=True):
    folder.mkdir(exist_ok=True)
    write_raster(folder / f"image_{number}.tif", scene_of(number, bands))
    if label:
        write_raster(folder / f"label_{number}.tif", np.full((32, 48), number % 7, "uint8"))


@pytest.fixture
def batch(tmp_path, script):
    """Run `batch` over tmp_path/data into tmp_path/out with patches of 16 pixels; (exit status, stdout, stderr)."""
    return lambda *words: script("Patch_extraction_v2", "batch", "--data_dir", tmp_path / "data", "--output", tmp_path / "out", "--patch_size", 16, *words)


def assert_scenes(folder, numbers, cells=len(CELLS)):
    """Every pair of `numbers` gave all its patches, each from its own scene with its own label."""
    rows = table_of(folder)
    assert sorted({row["scene"] for row in rows}) == sorted(f"image_{n}.tif" for n in numbers) and len(rows) == cells * len(numbers)
    for row in rows:
        number = int(re.match(r"img(\d+)_patch_", row["patch"])[1])
        top, left = int(row["row"]), int(row["col"])
        assert (opened(folder, row)[0] == scene_of(number)[:, top : top + 16, left : left + 16]).all() and row["scene"] == f"image_{number}.tif"
        assert (opened(folder, row, "labels")[0] == number % 7).all()


# ---------------------------------------------------------------- pairing


def test_pairs_are_found_by_the_id_in_their_names_in_order_of_number(tmp_path):
    for name in ("image_10.tif", "Image-2.tiff", "image1.tif", "label10.tif", "Label_2.tif", "label-1.tiff", "image_3.tif", "label_4.tif", "image_x.tif", "image_5.png",
                 "my_image_6.tif", "image_7.tif.aux.xml", "image_8.tifff"):
        (tmp_path / name).touch()
    pairs, lonely = pairing.find_pairs(tmp_path, IMAGES, LABELS)
    assert [(pair.name, pair.image.rsplit("/", 1)[1], pair.label.rsplit("/", 1)[1], pair.grid) for pair in pairs] == [
        ("1", "image1.tif", "label-1.tiff", None), ("2", "Image-2.tiff", "Label_2.tif", None), ("10", "image_10.tif", "label10.tif", None)]
    assert lonely == ["image_3.tif", "label_4.tif"]


def test_folders_are_entered_only_when_told(tmp_path):
    for name in ("image_1.tif", "label_1.tif", "north/image_2.tif", "south/label_2.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [pair.name for pair in pairing.find_pairs(tmp_path, IMAGES, LABELS)[0]] == ["1"]
    assert [pair.name for pair in pairing.find_pairs(tmp_path, IMAGES, LABELS, recursive=True)[0]] == ["1", "2"]


@pytest.mark.parametrize("names, patterns, text", [
    (["image_1.tif", "image_1.tiff", "label_1.tif"], {}, r"--image_pattern: .*image_1.tif and .*image_1.tiff both have the id 1"),
    (["image_1.tif", "label_1.tif", "Label1.tif"], {}, r"--label_pattern: .*both have the id 1"),
    (["image_1.tif", "label_2.tif"], {}, r"no pair of scene and label; 1 names match --image_pattern .* and 1 match"),
    ([], {}, "no pair of scene and label; 0 names"),
    (["a.tif"], {"image_pattern": "(a"}, r"--image_pattern \(a: is no regular expression"),
    (["a.tif"], {"label_pattern": "a"}, "--label_pattern a: has no group"),
    (["image.tif", "label.tif"], {"image_pattern": r"image_?(\d+)?\.tif"}, r"finds no id in image.tif"),
    (["image.tif", "label.tif"], {"image_pattern": r"image_?(\d*)\.tif"}, r"finds no id in image.tif"),
])
def test_names_that_do_not_pair_are_refused(tmp_path, names, patterns, text):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(SetupError, match=text):
        pairing.find_pairs(tmp_path, {"--image_pattern": patterns.get("image_pattern", IMAGES["--image_pattern"])}, patterns.get("label_pattern", LABELS))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SetupError, match="--data_dir .*nowhere: no such folder"):
        pairing.find_pairs(tmp_path / "nowhere", IMAGES, LABELS)


# ---------------------------------------------------------------- runs


def test_every_pair_is_cut_from_its_own_scene(tmp_path, batch):
    for number in (1, 2, 10):
        write_pair(tmp_path / "data", number)
    status, out, err = batch()
    assert status == 0, err
    assert_scenes(tmp_path / "out", (1, 2, 10))
    assert [row["patch"] for row in table_of(tmp_path / "out")][::6] == ["img1_patch_0.tif", "img2_patch_0.tif", "img10_patch_0.tif"]
    assert metadata_of(tmp_path / "out")["patches"] == {"train": 15, "validation": 3, "test": 0}  # one place in three dates: 4.5, 1.2, 0.3 of 6


def test_other_patterns_pair_other_names(tmp_path, batch):
    (tmp_path / "data").mkdir()
    for tile in ("T30", "T31"):
        write_raster(tmp_path / "data" / f"S2_{tile}_img.tif", scene_of(1))
        write_raster(tmp_path / "data" / f"S2_{tile}_lc.tif", np.ones((32, 48), "uint8"))
    status, _, err = batch("--image_pattern", r"^S2_(\w+)_img\.tif$", "--label_pattern", r"^S2_(\w+)_lc\.tif$")
    assert status == 0, err
    assert {row["patch"] for row in table_of(tmp_path / "out")} == {f"img{tile}_patch_{n}.tif" for tile in ("T30", "T31") for n in range(6)}


def test_a_shared_grid_keeps_each_place_in_one_split_over_all_scenes(tmp_path, batch):
    for number in range(1, 5):
        write_pair(tmp_path / "data", number)
    cells = write_vector(tmp_path / "g.gpkg", [square(r, c) for r, c in CELLS])
    status, _, err = batch("--grid", cells, "--train_ratio", 0.5, "--val_ratio", 0.5, "--test_ratio", 0)
    assert status == 0, err
    assert_scenes(tmp_path / "out", range(1, 5))
    splits = {}
    for row in table_of(tmp_path / "out"):
        splits.setdefault(row["id"], set()).add(row["split"])
    assert len(splits) == 6 and all(len(found) == 1 for found in splits.values()) and metadata_of(tmp_path / "out")["patches"] == {"train": 12, "validation": 12, "test": 0}


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "shp"])
def test_each_image_may_have_its_own_grid(tmp_path, batch, suffix):
    for number, cells in ((1, CELLS[:2]), (2, CELLS[3:])):
        write_pair(tmp_path / "data", number)
        write_vector(tmp_path / "data" / f"grid_{number}.{suffix}", [square(r, c) for r, c in cells], to="EPSG:4326")
    status, _, err = batch("--use_per_image_grid")
    assert status == 0, err
    rows = table_of(tmp_path / "out")
    assert {(row["scene"], int(row["row"]), int(row["col"])) for row in rows} == {("image_1.tif", *cell) for cell in CELLS[:2]} | {("image_2.tif", *cell) for cell in CELLS[3:]}


def test_missing_and_contradicting_grids_are_refused(tmp_path, batch):
    write_pair(tmp_path / "data", 1)
    cells = write_vector(tmp_path / "g.gpkg", [square(0, 0)])
    assert "no grid for image_1.tif" in error_of(*batch("--use_per_image_grid")[::2])
    assert "--grid and --use_per_image_grid" in error_of(*batch("--use_per_image_grid", "--grid", cells)[::2])


def break_label(folder):
    (folder / "label_2.tif").write_bytes(b"")


def break_image(folder):
    (folder / "image_2.tif").write_bytes((folder / "image_2.tif").read_bytes()[:100])


def other_bands(folder):
    write_pair(folder, 2, bands=4)


def other_codes(folder):
    write_raster(folder / "label_2.tif", np.full((32, 48), 77, "uint8"))


def all_nan(folder):
    write_raster(folder / "image_2.tif", np.zeros((3, 32, 48), "uint16"), nodata=0)


def no_crs(folder):
    write_raster(folder / "label_2.tif", np.full((32, 48), 2, "uint8"), crs=None)


@pytest.mark.parametrize("damage, text", [(break_label, "label_2.tif: is empty"), (break_image, "image_2.tif: "), (other_bands, "image_2.tif: its bands"),
                                          (other_codes, "label_2.tif: holds label values 77"), (all_nan, "image_2.tif: holds no valid pixel"), (no_crs, "label_2.tif: .* no CRS")])
def test_a_broken_pair_is_named_and_the_others_are_cut(tmp_path, batch, damage, text):
    for number in (1, 2, 3):
        write_pair(tmp_path / "data", number)
    damage(tmp_path / "data")
    status, _, err = batch("--label_map", *(f"{n}={n}" for n in range(7)))
    assert status == 1 and re.search(f"failed +2: {text}", err) and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    assert_scenes(tmp_path / "out", (1, 3))
    failed = metadata_of(tmp_path / "out")["failed"]
    assert list(failed) == ["2"] and str(tmp_path) not in failed["2"]


@pytest.mark.parametrize("content", [b"xx", None, "size", "elsewhere"], ids=["damaged", "empty", "size", "elsewhere"])
def test_a_grid_of_ones_own_that_does_not_fit_fails_its_pair_alone(tmp_path, batch, content):
    shapes = {None: [], "size": [square(0, 0, 10)], "elsewhere": [square(900, 900)]}
    for number in (1, 2):
        write_pair(tmp_path / "data", number)
        write_vector(tmp_path / "data" / f"grid_{number}.geojson", [square(r, c) for r, c in CELLS] if number == 1 else shapes.get(content, []), to="EPSG:4326")
    if content == b"xx":
        (tmp_path / "data" / "grid_2.geojson").write_bytes(content)
    status, _, err = batch("--use_per_image_grid")
    assert status == 1 and re.search(r"failed +2: .*grid_2.geojson", err), err
    assert_scenes(tmp_path / "out", (1,))


def test_a_scene_without_a_label_is_named_and_the_others_are_cut(tmp_path, batch):
    for number in (1, 2):
        write_pair(tmp_path / "data", number, label=number == 1)
    status, _, err = batch()
    assert status == 1 and "failed   image_2.tif: has no partner" in err
    assert_scenes(tmp_path / "out", (1,))


def test_scenes_may_differ_in_bands_when_the_chosen_ones_agree(tmp_path, batch):
    for number, bands in ((1, 3), (2, 5)):
        write_pair(tmp_path / "data", number, bands)
    status, _, err = batch("--bands", 1, 2, 3)
    assert status == 0, err
    assert_scenes(tmp_path / "out", (1, 2))


def test_nothing_is_written_when_every_pair_is_broken(tmp_path, batch):
    for number in (1, 2):
        write_pair(tmp_path / "data", number)
        (tmp_path / "data" / f"label_{number}.tif").write_bytes(b"")
    error = error_of(*batch()[::2])
    assert "label_1.tif: is empty" in error and "label_2.tif: is empty" in error and not (tmp_path / "out").exists()


def test_a_batch_goes_on_where_it_was_stopped(tmp_path, batch, monkeypatch):
    from eoseg import cutting

    for number in (1, 2):
        write_pair(tmp_path / "data", number)
    real, calls = cutting.cut, []

    def stop(*args):
        calls.append(args)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(cutting, "cut", stop)
    assert batch()[0] == 130 and sorted(path.name for path in (tmp_path / "out").iterdir()) == [".unfinished"]
    monkeypatch.setattr(cutting, "cut", real)
    assert batch("--resume")[0] == 0
    assert_scenes(tmp_path / "out", (1, 2))
