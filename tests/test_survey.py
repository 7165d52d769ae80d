"""The first look at patches: what is refused, how it is said, and what is remembered."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import coded, write_raster
from tinypatches import change, config, make

from eoseg import patchset, raster, survey
from eoseg.errors import SetupError, describe

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
QUIET = lambda items, **settings: items
RGB = survey.Bands([0, 1, 2], list("abc"), [1, 2, 3], 3)
NORTH_UP = Affine(10, 0, 500000, 0, -10, 4800000)
SOUTH_UP = Affine(10, 0, 500000, 0, 10, 4700000)
ROTATED = Affine.translation(500000, 4800000) * Affine.rotation(30) * Affine.scale(10, -8)
DEGREES = Affine(1e-4, 0, -3.5, 0, -1e-4, 43.25)
OTHER_UTM = {"crs": "EPSG:32631"}


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "data", (4, 2, 0))


def check(root, bands=RGB, memory=None, **changes):
    """The Survey of all splits of a folder."""
    splits, lonely = patchset.match_splits(root, ("train", "validation", "test"))
    pairs = [pair for part in splits.values() for pair in part]
    return survey.survey(pairs, bands, config(root, "out", **changes), QUIET, lonely, memory)


@pytest.fixture
def problems(root, capsys):
    """The lines that a check of `root` prints: the error's own, or those it counts."""
    def call(**changes):
        with pytest.raises(SetupError) as caught:
            check(root, **changes)
        lines, error = capsys.readouterr().err.splitlines(), str(caught.value)
        if not lines:
            return [error]
        assert error.startswith(f"--dataset_root {root}: {len(lines)} problems with its patches") and error.endswith("; mend or remove these files.")
        assert f"(first: {lines[0].split('; ')[0]})" in error
        return lines

    return call


def spot(value, dtype=None):
    """Puts `value` at one pixel of every band."""
    def put(pixels):
        pixels = pixels.astype(dtype or pixels.dtype)
        pixels[:, 3, 5] = value
        return pixels

    return put


def cut(path, bytes_left):
    path.write_bytes(path.read_bytes()[:bytes_left])


def same_again(path, pixels=None, **settings):
    """Write a raster's own pixels, or others, once more, with other settings."""
    with rasterio.open(path) as src:
        pixels = src.read() if pixels is None else pixels
    path.unlink()
    return write_raster(path, pixels, **settings)


# ---------------------------------------------------------------- one pair


IMAGE, LABEL = "train/images/p1.tif", "train/labels/p1.tif"


@pytest.mark.parametrize("spoil, place, parts", [
    (lambda image, label: label.unlink(), IMAGE, ["image without a label of the same name in labels/", "remove this image"]),
    (lambda image, label: image.unlink(), LABEL, ["label without an image of the same name in images/", "remove this label"]),
    (lambda image, label: cut(image, 900), IMAGE, ["extract it again"]),
    (lambda image, label: cut(label, 500), LABEL, ["extract it again"]),
    (lambda image, label: image.write_bytes(b""), IMAGE, ["empty (0 bytes)", "again"]),
    (lambda image, label: label.write_bytes(b"no raster"), LABEL, ["no TIFF", "again"]),
    (lambda image, label: (label.unlink(), label.symlink_to("nowhere")), LABEL, ["no such file", "check the path"]),
    (lambda image, label: (image.unlink(), image.mkdir()), IMAGE, ["not a file"]),
    (lambda image, label: same_again(image, np.ones((3, 32, 32), "complex64")), IMAGE, ["complex pixels", "amplitude"]),
    (lambda image, label: same_again(label, np.ones((32, 32), "complex64")), LABEL, ["complex pixels", "amplitude"]),
    (lambda image, label: change(label, lambda label: label.repeat(2, 0)), LABEL, ["2 bands", "a label is one band"]),
    (lambda image, label: change(label, lambda label: label[:, :-1]), LABEL, ["is 31 x 32 pixels, its image 32 x 32", "extract them again"]),
    (lambda image, label: change(label, lambda label: spot(200)(np.where(label == 2, 3, label))), LABEL, ["values 3, 200", "classes are 0 to 2", "--label_map"]),
    (lambda image, label: change(label, spot(3)), LABEL, ["values 3,", "--classes 4"]),
    (lambda image, label: change(label, spot(1.5, "float32")), LABEL, ["values 1.5", "mend the label"]),
    (lambda image, label: change(label, spot(-1, "int16")), LABEL, ["values -1", "mend the label"]),
    (lambda image, label: same_again(label, nodata=0), LABEL, ["nodata tag 0", "--label_nodata none", "--label_nodata 0"]),
    (lambda image, label: same_again(image, np.full((3, 32, 32), 7, "uint16"), nodata=7), IMAGE, ["no valid pixel", "remove it and its label"]),
    (lambda image, label: same_again(label, **OTHER_UTM), LABEL, ["EPSG:32631", "its image's EPSG:32630", "gdal_edit.py -a_srs"]),
    (lambda image, label: same_again(label, transform=NORTH_UP * Affine.translation(3, 0)), LABEL, ["lies 3 pixels away", "gdal_edit.py -a_ullr"]),
], ids=["no label", "no image", "cut image", "cut label", "empty", "no tiff", "dead link", "folder", "complex image",
        "complex label", "bands", "size", "beyond", "first beyond", "fraction",
        "negative", "tag", "nodata alone", "crs", "place"])
def test_whatever_is_wrong_with_a_pair_is_one_line_that_names_the_file_and_a_remedy(root, problems, spoil, place, parts):
    spoil(root / IMAGE, root / LABEL)
    (line,) = problems()
    assert line.startswith(f"{root / place}: ") and all(part in line for part in parts) and ("; " in line) and "\n" not in line


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_image_without_a_finite_pixel_is_refused(tmp_path, capsys, broken):
    root = make(tmp_path / "data", (2, 1, 0))
    for path in root.glob("*/images/*"):
        change(path, lambda image: image.astype("float32"))
    check(root)
    change(root / IMAGE, lambda image: image * np.float32(broken))
    with pytest.raises(SetupError, match="p1.tif: holds no valid pixel"):
        check(root)


def test_only_the_bands_in_use_decide_whether_an_image_holds_a_pixel(root, problems):
    same_again(root / IMAGE, np.stack([np.full((32, 32), value, "uint16") for value in (7, 7, 8)]), nodata=7)
    check(root)
    assert "no valid pixel" in problems(bands=RGB._replace(of_patch=[1, 0]))[0]
    assert "no valid pixel" in problems(bands=RGB._replace(require_all_bands=True))[0]
    check(root, bands=RGB._replace(of_patch=[2], require_all_bands=True))


def test_whole_numbers_and_nan_in_float_labels_are_classes_and_unlabelled(root):
    change(root / LABEL, spot(np.nan, "float32"))
    counts = check(root).class_pixels
    assert counts[root / LABEL.replace("labels", "images")].sum() == 32 * 32 - 1


def test_a_file_that_may_not_be_read_is_named_like_any_other(root, problems, monkeypatch):
    real = raster.stored

    def stored(path, label=False):
        if path in (root / IMAGE, root / LABEL):
            raise PermissionError(13, "Permission denied", str(path)) if label else OSError(5, "Input/output error")
        return real(path, label)

    monkeypatch.setattr(raster, "stored", stored)
    image, label = problems()
    assert image.startswith(f"{root / IMAGE}: ") and "Input/output error" in image
    assert label == describe(PermissionError(13, "Permission denied", str(root / LABEL)))


# ---------------------------------------------------------------- all together


def test_all_problems_are_reported_at_once(root, problems):
    cut(root / IMAGE, 700)
    change(root / LABEL, spot(9))
    (root / "train/labels/p0.tif").unlink()
    change(root / "train/images/p2.tif", lambda image: image[:2])
    change(root / "train/labels/p2.tif", spot(8))
    same_again(root / "validation/labels/p0.tif", np.full((1, 31, 32), 9, "uint8"))
    lines = problems()
    assert [line.split(": ")[0] for line in lines] == [str(root / name) for name in (
        "train/images/p0.tif", IMAGE, LABEL, "train/labels/p2.tif", "validation/labels/p0.tif", "validation/labels/p0.tif", "train/images/p2.tif")]
    assert "values 9" in lines[2] and "values 8" in lines[3] and "values 9" in lines[4] and "31 x 32" in lines[5] and "2 bands" in lines[6]


def test_many_problems_are_listed_up_to_fifty_and_the_rest_counted(root, capsys):
    settings = config(root, "out")
    with pytest.raises(SetupError, match="60 problems .*first: a/0.tif: bad.; mend or remove"):
        survey.refuse([f"a/{i}.tif: bad; away\nwith it." for i in range(60)], settings)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 51 and lines[49] == "a/49.tif: bad; away with it." and lines[50] == "and 10 more"
    survey.refuse([], settings)


def test_patches_unlike_most_training_patches_are_each_named(root, problems):
    """Validation has more of the odd kind than training of the usual one."""
    make(root.parent / "more", (5, 0, 0), bands=2, seed=3)
    for kind in ("images", "labels"):
        shutil.rmtree(root / "validation" / kind)
        (root.parent / "more/train" / kind).rename(root / "validation" / kind)
    change(root / IMAGE, lambda image: image.astype("float32"))
    lines = problems()
    assert lines[0].startswith(f"{root / IMAGE}: has 3 bands of float32, most training patches 3 of uint16; extract it like them")
    assert [line.split(":")[0] for line in lines[1:]] == [str(root / f"validation/images/p{i}.tif") for i in range(5)] and "2 bands of uint16" in lines[1]


def test_several_sizes_are_one_problem_and_none_with_a_patch_size(root, problems):
    make(root.parent / "more", (2, 0, 0), size=(45, 50), seed=4)
    for kind in ("images", "labels"):
        (root.parent / "more/train" / kind / "p0.tif").rename(root / "train" / kind / "odd.tif")
    assert problems() == ["--patch_size: the patches differ in size: 32 x 32 (6), 45 x 50 (1); give --patch_size N to cut or pad them to N pixels."]
    found = check(root, patch_size=40)
    assert found.sizes == {(32, 32): 6, (45, 50): 1} and (found.count, found.dtype) == (3, "uint16")


def test_classes_are_counted_where_image_and_label_say_something(tmp_path):
    label = np.array([[0, 0, 1, 2], [2, 2, 1, 255], [1, 1, 1, 9]], "uint8")
    image = coded(3, 4).astype("float32")
    image[:, 0, 0] = -1  # in all bands: no pixel
    image[1, 0, 1] = -1  # in one: a pixel still
    image[2, 1, 0] = np.nan  # none
    for kind, pixels, nodata in (("images", image, -1), ("labels", label, 9)):
        (tmp_path / "train" / kind).mkdir(parents=True)
        write_raster(tmp_path / "train" / kind / "p.tif", pixels, nodata)
    found = check(tmp_path)
    counts = found.class_pixels[tmp_path / "train/images/p.tif"]
    assert counts.tolist() == [1, 5, 2] and counts.dtype == np.int64
    assert check(tmp_path, bands=RGB._replace(require_all_bands=True)).class_pixels[tmp_path / "train/images/p.tif"].tolist() == [0, 5, 2]
    mapped = check(tmp_path, num_classes=4, label_map=["0=3", "1=0", "2=ignore"])
    assert mapped.class_pixels[tmp_path / "train/images/p.tif"].tolist() == [5, 0, 0, 1]
    assert (found.count, found.dtype, found.sizes) == (3, "float32", {(3, 4): 1})


# ---------------------------------------------------------------- where image and label lie


def placed(root, image, label, **settings):
    """Write the first training pair anew, each with its own settings."""
    same_again(root / IMAGE, **image, **settings)
    same_again(root / LABEL, **label, **settings)


@pytest.mark.parametrize("move", [Affine.translation(1, 0), Affine.translation(0, -1)], ids=["columns", "rows"])
@pytest.mark.parametrize("place, crs", [(NORTH_UP, "EPSG:32630"), (SOUTH_UP, "EPSG:32630"), (ROTATED, "EPSG:32630"), (DEGREES, "EPSG:4326")],
                         ids=["north up", "south up", "rotated", "degrees"])
def test_a_label_lies_within_a_hundredth_pixel_of_its_image(root, problems, place, crs, move):
    for share, fits in ((0.005, True), (0.02, False)):
        placed(root, {"transform": place}, {"transform": place * Affine.translation(move.c * share, move.f * share)}, crs=crs)
        if fits:
            check(root)
        else:
            assert f"{root / LABEL}: lies 0.02 pixels away" in problems()[0]


@pytest.mark.parametrize("place, far", [
    (NORTH_UP * Affine.scale(1.001), "0.032"),  # the far corner tells
    (NORTH_UP * Affine.translation(0, 32) * Affine.scale(1, -1), "32"),  # the same ground, upside down
    (NORTH_UP * Affine.rotation(0.1), "0.0559"),  # degrees
], ids=["larger pixels", "upside down", "turned"])
def test_all_corners_are_compared(root, problems, place, far):
    same_again(root / LABEL, transform=place)
    assert f"lies {far} pixels away" in problems()[0]


@pytest.mark.parametrize("how", [{}, {"compress": "lzw"}], ids=["by tifffile", "by GDAL"])
def test_who_reads_the_file_makes_no_difference(root, problems, how):
    placed(root, {}, {}, **how)
    check(root)
    placed(root, {}, {"transform": NORTH_UP * Affine.translation(0.02, 0)}, **how)
    assert "lies 0.02 pixels away" in problems()[0]
    placed(root, {}, OTHER_UTM, transform=NORTH_UP, **how)
    assert "its CRS is EPSG:32631" in problems()[0]


@pytest.mark.parametrize("without", [{"crs": None}, {"transform": Affine.identity()}, {"crs": None, "transform": Affine.identity()}],
                         ids=["crs", "place", "both"])
@pytest.mark.parametrize("which", [IMAGE, LABEL])
@pytest.mark.parametrize("how", [{}, {"compress": "lzw"}], ids=["by tifffile", "by GDAL"])
def test_what_is_not_georeferenced_is_not_compared(root, without, which, how):
    placed(root, {}, {"crs": "EPSG:32631", "transform": NORTH_UP * Affine.translation(40, 0)}, **how)
    same_again(root / which, **without, **how)
    check(root)


LAEA = "+proj=laea +lat_0={} +lon_0=5 +datum=WGS84"


@pytest.mark.parametrize("crs, other, fits", [
    (LAEA.format(50), LAEA.format(50), True),
    (LAEA.format(50), LAEA.format(51), False),  # their keys are the same, but not the numbers these point to
    ("EPSG:32630", "+proj=utm +zone=30 +datum=WGS84", True),  # other keys for the same CRS
    ("EPSG:25830", "EPSG:32630", False),
    ("EPSG:4326", "EPSG:32630", False),
])
def test_a_crs_is_the_same_however_it_is_spelled(root, problems, crs, other, fits):
    placed(root, {"crs": crs}, {"crs": other})
    if fits:
        check(root)
    else:
        assert f"{root / LABEL}: its CRS is " in problems()[0] and len(problems()[0]) < 300


def test_coordinates_of_pixel_middles_mean_the_same_place(root, problems):
    for name, place in ((IMAGE, NORTH_UP), (LABEL, NORTH_UP), ("train/labels/p2.tif", NORTH_UP * Affine.translation(0, 0.5))):
        same_again(root / name, transform=place)
        with rasterio.open(root / name, "r+") as dst:
            dst.update_tags(AREA_OR_POINT="Point")
    (line,) = problems()
    assert line.startswith(f"{root / 'train/labels/p2.tif'}: lies 0.5 pixels away")
    same_again(root / LABEL)  # one by the middle, one by the corner
    assert problems() == [line]


@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("place", [NORTH_UP, SOUTH_UP, ROTATED, Affine(3, 0, 5, 0, -7, 9)])
def test_tags_are_understood_as_gdal_understands_them(tmp_path, place, point):
    path = write_raster(tmp_path / "p.tif", coded(5, 6), transform=place)
    if point:
        with rasterio.open(path, "r+") as dst:
            dst.update_tags(AREA_OR_POINT="Point")
    tags = raster.stored(path).place
    assert survey.keys_of(tags)[survey.RASTER_TYPE] == (2 if point else 1)
    assert survey.transform_of(tags).almost_equals(raster.header(path).transform, 1e-9)


def test_a_tie_point_may_be_any_pixel():
    tags = {survey.SCALE: (10.0, 5.0, 0.0), survey.TIES: (2.0, 3.0, 0.0, 520.0, 985.0, 0.0)}
    assert survey.transform_of(tags) == Affine(10, 0, 500, 0, -5, 1000)
    assert survey.transform_of({survey.TIES: tags[survey.TIES] * 4}) is None  # control points
    assert survey.transform_of({**tags, survey.SCALE: (0.0, 5.0, 0.0)}) is None


def test_control_points_are_no_georeference_to_compare(root):
    points = [rasterio.control.GroundControlPoint(row, col, 500000 + 10 * col, 4800000 - 10 * row) for row, col in ((0, 0), (0, 32), (32, 0), (32, 32))]
    with rasterio.open(root / LABEL) as src:
        pixels = src.read()
    with rasterio.open(root / LABEL, "w", driver="GTiff", width=32, height=32, count=1, dtype="uint8", gcps=points, crs="EPSG:32630") as dst:
        dst.write(pixels)
    check(root)


def test_equal_pairs_are_opened_once(root, monkeypatch):
    monkeypatch.setattr(raster, "open_raster", lambda *args: pytest.fail("opened by GDAL"))
    placed(root, {}, {"transform": NORTH_UP * Affine.translation(0.003, 0)})
    check(root)


# ---------------------------------------------------------------- what is remembered


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were read, since the last look at them."""
    real, paths = raster.stored, []
    monkeypatch.setattr(raster, "stored", lambda path, label=False: (paths.append(path), real(path, label))[1])

    def call():
        seen = sorted(f"{path.parent.parent.name}/{path.parent.name}/{path.name}" for path in paths)
        paths.clear()
        return seen

    return call


@pytest.fixture
def memory(root):
    return root / ".eoseg"


def plain(found):
    return found._replace(stamps={}, class_pixels={path.name: (path.parent, counts.tolist()) for path, counts in found.class_pixels.items()}), list(found.sizes)


def test_nothing_is_opened_twice_and_one_changed_file_opens_its_pair_alone(root, memory, opened):
    first = check(root, memory=memory)
    assert len(opened()) == 12
    again = check(root, memory=memory)
    assert opened() == [] and plain(again) == plain(first) and list(again.class_pixels) == list(first.class_pixels)
    assert all(counts.dtype == np.int64 for counts in again.class_pixels.values())
    change(root / LABEL, spot(255))
    third = check(root, memory=memory)
    assert opened() == [IMAGE, LABEL] and third.class_pixels[root / IMAGE].sum() == 32 * 32 - 1
    state = (root / IMAGE).stat()
    os.utime(root / IMAGE, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    check(root, memory=memory)
    assert opened() == [IMAGE, LABEL]


def test_nothing_is_written_where_nothing_is_to_be_remembered(root, opened):
    before = sorted(root.rglob("*"))
    check(root)
    check(root)
    assert len(opened()) == 24 and sorted(root.rglob("*")) == before


@pytest.mark.parametrize("change", [{"num_classes": 4}, {"label_nodata": "2"}, {"label_map": ["0=0", "1=1", "2=0"]}, {"bands": RGB._replace(of_patch=[0])},
                                    {"bands": RGB._replace(require_all_bands=True)}], ids=lambda change: next(iter(change)))
def test_facts_hold_for_the_options_they_hang_on(root, memory, opened, change):
    check(root, memory=memory)
    before = {path: path.read_bytes() for path in memory.iterdir()}
    opened()
    fresh = check(root, **change)
    assert opened() and plain(check(root, memory=memory, **change)) == plain(fresh) and len(opened()) == 12
    assert len(list(memory.iterdir())) == 2 and all(path.read_bytes() == text for path, text in before.items())
    check(root, memory=memory, epochs=7, label_nodata=change.get("label_nodata"), **{key: value for key, value in change.items() if key != "label_nodata"})
    assert opened() == []


def test_the_order_of_a_label_map_changes_no_fact(root, memory, opened):
    check(root, memory=memory, label_map=["0=0", "1=1", "2=0"])
    opened()
    check(root, memory=memory, label_map=["2=0", "0=0", "1.0=1"])
    assert opened() == []


def facts_in(memory):
    (path,) = memory.iterdir()
    return json.loads(path.read_text())["pairs"]


def test_files_that_are_gone_are_forgotten_and_others_are_not(root, memory, opened):
    check(root, memory=memory)
    assert sorted(facts_in(memory)) == [f"../{name}/images/p{i}.tif" for name, count in (("train", 4), ("validation", 2)) for i in range(count)]
    for name in (IMAGE, LABEL):
        (root / name).unlink()
    pairs = patchset.find_pairs(root, "train")  # a fold: validation is not asked for
    survey.survey(pairs, RGB, config(root, "out"), QUIET, memory=memory)
    assert sorted(facts_in(memory)) == [f"../{name}/images/p{i}.tif" for name, i in (("train", 0), ("train", 2), ("train", 3), ("validation", 0), ("validation", 1))]
    opened()
    check(root, memory=memory)
    assert opened() == []


def test_files_with_problems_are_never_remembered(root, memory, opened, problems):
    change(root / LABEL, spot(9))
    change(root / "train/images/p2.tif", lambda image: image[:2])
    first = problems(memory=memory)
    assert len(first) == 2 and len(opened()) == 12 and len(facts_in(memory)) == 4
    assert problems(memory=memory) == first
    assert opened() == [IMAGE, "train/images/p2.tif", LABEL, "train/labels/p2.tif"]


@pytest.mark.parametrize("damage", [
    lambda text: "", lambda text: text[:200], lambda text: text.replace("32,32", "32,64", 1), lambda text: "[1, 2]", lambda text: '{"pairs": {"a": 1}}',
    lambda text: '{"pairs": 3, "sha256": ""}', lambda text: "\0" * 50, lambda text: text.replace("uint16", "uint8"), lambda text: "null",
], ids=["empty", "cut", "a digit", "list", "foreign", "number", "zeros", "type", "null"])
def test_a_damaged_or_foreign_file_of_facts_is_ignored_and_written_anew(root, memory, opened, damage):
    first = check(root, memory=memory)
    (path,) = memory.iterdir()
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    opened()
    assert plain(check(root, memory=memory)) == plain(first) and len(opened()) == 12
    assert path.read_text() == text


def test_bytes_that_are_no_text_are_ignored(root, memory):
    check(root, memory=memory)
    (path,) = memory.iterdir()
    path.write_bytes(b"\xff\xfe\x00")
    check(root, memory=memory)
    assert len(facts_in(memory)) == 6


def test_a_folder_that_cannot_be_written_is_not_used(root, memory, opened):
    memory.write_text("a file stands where the folder should")
    first = check(root, memory=memory)
    assert plain(check(root, memory=memory)) == plain(first) and len(opened()) == 24 and memory.read_text().startswith("a file")


def test_facts_move_with_their_folder_and_name_no_path_above_it(root, memory, opened, monkeypatch):
    check(root, memory=memory)
    assert str(root.parent) not in next(memory.iterdir()).read_text()
    moved = root.rename(root.parent / "elsewhere")
    opened()
    check(moved, memory=moved / ".eoseg")
    monkeypatch.chdir(moved)
    check(Path("."), memory=Path(".eoseg"))
    monkeypatch.chdir(moved.parent)
    check(Path("elsewhere"), memory=moved / ".eoseg")
    assert opened() == []


def test_an_unchanged_folder_of_facts_is_not_written_again(root, memory, monkeypatch):
    check(root, memory=memory)
    monkeypatch.setattr("eoseg.files.write_text", lambda *args: pytest.fail("written"))
    check(root, memory=memory)


def test_a_patch_folder_beneath_the_root_has_names_of_its_own(tmp_path, opened):
    root = make(tmp_path / "Patch", (1, 1, 0))
    check(root, memory=tmp_path / ".eoseg")
    assert sorted(facts_in(tmp_path / ".eoseg")) == ["../Patch/train/images/p0.tif", "../Patch/validation/images/p0.tif"]


# ---------------------------------------------------------------- bands and classes


def choose(root, *words, metadata=None, **changes):
    images = [image for image, _ in patchset.find_pairs(root, "train")]
    return survey.choose_bands(images, config(root, "out", bands=list(words) or None, **changes), metadata or {})


def test_bands_are_chosen_by_number_or_name_and_traced_to_the_scene(tmp_path):
    root = make(tmp_path / "data", (2, 1, 0), bands=4)
    metadata = {"bands": {"names": ["blue", "red", "nir", "vv"], "source_bands": [1, 3, 7, 8], "source_count": 9}, "settings": {"require_all_bands": True}}
    assert choose(root, "nir", "1", metadata=metadata) == choose(root, "3", "blue", metadata=metadata) == survey.Bands([2, 0], ["nir", "blue"], [7, 1], 9, True)
    assert choose(root) == survey.Bands([0, 1, 2, 3], ["band_1", "band_2", "band_3", "band_4"], [1, 2, 3, 4], 4)
    assert choose(root, metadata={"bands": {"names": ["too", "few"], "source_count": 9}}).scene_count == 4


@pytest.mark.parametrize("words, changes, parts", [
    ([], {"in_channels": 4}, ["--in_channels 4", "3 bands"]),
    (["1", "2"], {"in_channels": 3}, ["--in_channels 3", "2 bands"]),
    (["4"], {}, ["no band 4", "1 to 3"]),
    (["nir"], {}, ["no band nir", "band_1"]),
])
def test_bands_that_are_not_there_are_refused(root, words, changes, parts):
    with pytest.raises(SetupError) as caught:
        choose(root, *words, **changes)
    assert all(part in str(caught.value) for part in parts)


def test_a_damaged_or_odd_first_patch_does_not_speak_for_all(root, problems):
    cut(root / "train/images/p0.tif", 700)
    change(root / "train/images/p1.tif", lambda image: image[:2])
    assert len(choose(root).of_patch) == 3
    assert [line.split(":")[0] for line in problems(bands=choose(root))] == [str(root / "train/images" / name) for name in ("p0.tif", "p1.tif")]


def test_patches_that_are_all_damaged_are_all_named(root, capsys):
    for path in root.glob("train/images/*"):
        cut(path, 700)
    with pytest.raises(SetupError, match="4 problems"):
        choose(root)
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("changes, names", [
    ({"class_names": list("xyz")}, ["x", "y", "z"]),
    ({"label_map": ["water=0", "sea=0", "wood=2"]}, ["water/sea", "class_1", "wood"]),
    ({}, ["a", "b", "c"]),
    ({"label_map": ["11=0", "12=1", "13=2"]}, ["class_0", "class_1", "class_2"]),  # the patches' names are those of other codes
])
def test_names_of_classes_come_from_the_nearest_source(root, changes, names):
    assert survey.class_names(config(root, "out", **changes), {"class_names": list("abc")}) == names


def test_another_number_of_names_than_classes_is_refused(root):
    with pytest.raises(SetupError, match="--classes 3: the patches name 4 .a, b, c, d.; give --classes 4, or --class_names"):
        survey.class_names(config(root, "out"), {"class_names": list("abcd")})
    with pytest.raises(SetupError, match="--mode multiclass"):
        survey.class_names(config(root, "out", mode="binary", num_classes=2), {"class_names": list("abcd")})


@pytest.mark.parametrize("changes, parts", [
    ({"label_map": ["0=0", "1=1", "2=3"]}, ["--label_map: leads to class 3", "--classes 4"]),
    ({"mode": "binary", "label_map": ["0=0", "2=2"]}, ["--label_map: leads to class 2", "binary mode has 0 and 1"]),
])
def test_a_map_to_classes_that_are_not_there_is_refused(root, changes, parts):
    with pytest.raises(SetupError) as caught:
        check(root, **changes)
    assert all(part in str(caught.value) for part in parts)


def test_splits_without_a_label_are_refused_and_classes_without_a_pixel_are_said(capsys):
    counts = {"train": np.array([3, 0, 1]), "validation": np.array([0, 1, 0])}
    survey.check_labels(counts, ["a", "b", "c"])
    assert "no training pixel of b;" in capsys.readouterr().out
    for split in counts:
        with pytest.raises(SetupError, match=f"{split}: not one pixel"):
            survey.check_labels({**counts, split: np.zeros(3, int)}, ["a", "b", "c"])
