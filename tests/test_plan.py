"""The table before the pixels: what becomes of each cell, and what is refused before anything is written."""

import re

import geopandas
import numpy as np
import pytest
from conftest import coded, write_raster
from cutouts import PLACE, UTM30, assert_exact, bytes_of, error_of, metadata_of, rows_of, scene_and_label, square, write_vector
from rasterio.transform import Affine
from shapely import Polygon, affinity

from eoseg import raster
from eoseg.plan import KINDS

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture
def single(tmp_path, script):
    """Run `single` into tmp_path/out with patches of 16 pixels; (exit status, stdout, stderr)."""

    def run(image, label, *words, out="out"):
        return script("Patch_extraction_v2", "single", "--image", image, "--label", label, "--output", tmp_path / out, "--patch_size", 16, *words)

    return run


def table(said):
    """The counts of the plan's table, zeros left out."""
    counts = {kind: int(re.search(rf"^  {kind} +([\d,]+)", said, re.M)[1].replace(",", "")) for kind in ("cells", *KINDS)}
    return {kind: count for kind, count in counts.items() if count}


@pytest.fixture
def mixed(tmp_path):
    """A scene of 64 x 80 pixels with a hole, a label with another, and a grid with a cell of every kind that can be cut or left out."""
    pixels, codes = coded(64, 80), np.ones((64, 80), "uint8")
    pixels[:, 16:32, 16:32] = 0
    codes[32:48, 0:16] = 255
    image, label = write_raster(tmp_path / "scene.tif", pixels, nodata=0), write_raster(tmp_path / "label.tif", codes)
    cells = [square(0, 0), square(0, 16.3), square(56, 32), square(16, 16), square(32, 0), square(900, 900), affinity.rotate(square(20, 50), 20), Polygon(), square(0, 48)]
    return image, label, write_vector(tmp_path / "grid.gpkg", cells, id=list("abcdefghi"))


def test_every_cell_is_counted_once_as_what_it_is(tmp_path, single, mixed):
    image, label, grid = mixed
    status, out, err = single(image, label, "--grid", grid, "--dry_run")
    assert status == 0, err
    assert table(out) == {"cells": 9, "ok": 2, "snapped": 1, "rotated": 1, "partly outside": 1, "no label": 1, "all nodata": 1, "outside": 1, "no geometry": 1}
    for kind, cell in {"snapped": "b", "partly outside": "c", "all nodata": "d", "no label": "e", "outside": "f", "rotated": "g", "no geometry": "h"}.items():
        assert re.search(rf"^  {kind} +1  .*: {cell}$", out, re.M), (kind, out)
    assert "by 0.300 px at most" in out and "padded with nodata (--edge pad)" in out and "5 patches of 16 pixels would be cut" in out
    assert not (tmp_path / "out").exists()


def test_a_dry_run_foretells_what_the_run_then_does(tmp_path, single, mixed):
    image, label, grid = mixed
    for words in ([], ["--edge", "skip"], ["--keep_unlabelled"]):
        foretold = int(re.search(r"(\d+) patches of 16 pixels would be cut", single(image, label, "--grid", grid, *words, "--dry_run", "--overwrite")[1])[1])
        status, out, _ = single(image, label, "--grid", grid, *words, "--overwrite")
        assert status == 0 and len(rows_of(tmp_path / "out")) == foretold
        left = {reason: part["cells"] for reason, part in metadata_of(tmp_path / "out")["skipped"].items()}
        assert left.pop("no valid pixel") == ["d"] and left.pop("outside the image") == ["f"] and left.pop("no geometry") == ["h"]
        assert left == ({} if "--keep_unlabelled" in words else {"no labelled pixel": ["e"]}) | ({"partly outside the image": ["c"]} if "skip" in words else {})


def test_a_dry_run_writes_nothing_and_refuses_what_the_run_would(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    assert single(image, label)[0] == 0
    before = bytes_of(tmp_path)
    assert "holds patches already" in error_of(*single(image, label, "--dry_run")[::2])
    assert single(image, label, "--dry_run", "--overwrite")[0] == 0 and single(image, label, "--dry_run", out="elsewhere")[0] == 0
    assert "has no band 9" in error_of(*single(image, label, "--dry_run", "--bands", 9, out="elsewhere")[::2])
    write_raster(label, np.full((32, 48), 7, "uint8"))
    assert "label values 7" in error_of(*single(image, label, "--dry_run", "--label_map", "1=0", out="elsewhere")[::2])
    assert {path: content for path, content in bytes_of(tmp_path).items() if path != "label.tif"} == {path: content for path, content in before.items() if path != "label.tif"}


def test_wrong_sizes_and_repeated_ids_stand_in_the_table_and_are_refused(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    grid = write_vector(tmp_path / "g.gpkg", [square(0, 0), square(0, 16, 20), square(16, 0)], id=[1, 2, 3], name=["x", "y", "x"])
    status, out, err = single(image, label, "--grid", grid)
    assert table(out) == {"cells": 3, "ok": 2, "wrong size": 1} and "(2: 20.0 x 20.0)" in error_of(status, err)
    status, out, err = single(image, label, "--grid", grid, "--resample", "--id_column", "name")
    assert table(out) == {"cells": 3, "ok": 1, "duplicate id": 2} and "--id_column name: x stand there more than once" in error_of(status, err)
    assert not (tmp_path / "out").exists()


def test_ids_that_differ_in_capitals_alone_are_repeated(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    grid = write_vector(tmp_path / "g.gpkg", [square(0, 0), square(0, 16)], id=["a1", "A1"])
    status, out, _ = single(image, label, "--grid", grid)
    assert status == 0 and "note: the grid's column id holds A1, a1 more than once" in out and sorted(rows_of(tmp_path / "out")) == ["0", "1"]
    assert "A1, a1 stand there" in error_of(*single(image, label, "--grid", grid, "--id_column", "id", "--overwrite")[::2])


def test_nothing_is_decoded_before_the_plan_is_accepted(tmp_path, single, monkeypatch):
    image, label, _, _ = scene_and_label(tmp_path)
    monkeypatch.setattr(raster.Scene, "raw", lambda *args: pytest.fail("a pixel was read"))
    for words in (["--bands", 9], ["--grid", write_vector(tmp_path / "far.gpkg", [square(900, 900)])], ["--grid", write_vector(tmp_path / "big.gpkg", [square(0, 0, 20)])]):
        error_of(*single(image, label, *words)[::2])


def test_cells_that_no_polygon_meets_are_not_even_read(tmp_path, single, monkeypatch):
    image, _, pixels, _ = scene_and_label(tmp_path)
    label = write_vector(tmp_path / "p.gpkg", [square(2, 2, 5)])
    read, raw = [], raster.Scene.raw
    monkeypatch.setattr(raster.Scene, "raw", lambda scene, window: read.append(window) or raw(scene, window))
    status, out, _ = single(image, label, "--label_burn", 1, "--label_outside", "ignore")
    assert status == 0 and table(out) == {"cells": 6, "ok": 1, "no label": 5} and read == [(0, 0, 16, 16)]
    read.clear()
    assert single(image, label, "--label_burn", 1, "--label_outside", 0, "--overwrite")[0] == 0 and len(rows_of(tmp_path / "out")) == 6


@pytest.mark.parametrize("stride", [5, 8, 16, 20])
def test_a_stride_spaces_the_automatic_grid(tmp_path, single, stride):
    image, label, pixels, codes = scene_and_label(tmp_path, 37, 48, nodata=0)
    assert single(image, label, "--stride", stride, "--edge", "skip")[0] == 0
    rows = assert_exact(tmp_path / "out", pixels, codes, nodata=0)
    assert {(int(row["row"]), int(row["col"])) for row in rows.values()} == {(r, c) for r in range(0, 22, stride) for c in range(0, 33, stride)}


def test_a_stride_and_a_grid_exclude_each_other(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    assert "--stride 8: spaces the cells of the automatic grid" in error_of(*single(image, label, "--stride", 8, "--grid", write_vector(tmp_path / "g.gpkg", [square(0, 0)]))[::2])


@pytest.mark.parametrize("crs", [UTM30, "EPSG:4326"])
def test_an_area_of_interest_leaves_out_cells_and_unlabels_pixels_beyond_it(tmp_path, single, crs):
    image, label, pixels, codes = scene_and_label(tmp_path)
    aoi = write_vector(tmp_path / "aoi.geojson", [square(0, 4, 16, 20)], to=crs)
    status, out, err = single(image, label, "--aoi", aoi)
    assert status == 0, err
    inside = np.where((np.indices((32, 48))[1] >= 4) & (np.indices((32, 48))[1] < 24) & (np.indices((32, 48))[0] < 16), codes, 255).astype("uint8")
    kept = assert_exact(tmp_path / "out", pixels, inside)
    assert set(kept) <= {"0", "1", "3", "4"} and {"0", "1"} <= set(kept) and table(out)["outside the aoi"] >= 2
    far = write_vector(tmp_path / "far.gpkg", [square(900, 900)])
    assert "far.gpkg: lies beside" in error_of(*single(image, label, "--aoi", far, "--overwrite")[::2])
    lines = write_vector(tmp_path / "points.gpkg", [square(0, 0).centroid])
    assert "points.gpkg: holds Point" in error_of(*single(image, label, "--aoi", lines, "--overwrite")[::2])


def test_labels_of_another_extent_leave_out_the_cells_beyond_it(tmp_path, single):
    image, _, pixels, codes = scene_and_label(tmp_path)
    label = write_raster(tmp_path / "part.tif", codes[:, :20])
    status, out, _ = single(image, label)
    assert status == 0 and table(out) == {"cells": 6, "ok": 4, "no label": 2}
    codes[:, 20:] = 255
    assert set(assert_exact(tmp_path / "out", pixels, codes)) == {"0", "1", "3", "4"}


# ---------------------------------------------------------------- the grid subcommand


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "fgb"])
def test_the_automatic_grid_can_be_written_and_cuts_the_same_patches(tmp_path, single, script, suffix):
    image, label, pixels, codes = scene_and_label(tmp_path, 40, 56, nodata=0)
    path = tmp_path / f"grid.{suffix}"
    status, out, err = script("Patch_extraction_v2", "grid", "--image", image, "--output", path, "--patch_size", 16, "--stride", 12)
    assert status == 0, err
    assert "15 cells of 16 pixels" in out
    assert single(image, label, "--grid", path)[0] == 0 and single(image, label, "--stride", 12, out="plain")[0] == 0
    for folder in ("out", "plain"):
        assert_exact(tmp_path / folder, np.pad(pixels, ((0, 0), (0, 8), (0, 8))), np.pad(codes, ((0, 8), (0, 8)), constant_values=255), nodata=0)
    key = lambda row: (row["id"], row["row"], row["col"])
    assert sorted(map(key, rows_of(tmp_path / "out").values())) == sorted(map(key, rows_of(tmp_path / "plain").values()))


def test_the_grid_keeps_to_the_area_of_interest_and_its_bytes_repeat(tmp_path, script):
    image, _, _, _ = scene_and_label(tmp_path)
    aoi = write_vector(tmp_path / "aoi.gpkg", [square(1, 1, 5)])
    for name in ("one", "two"):
        assert script("Patch_extraction_v2", "grid", "--image", image, "--output", tmp_path / name / "grid.gpkg", "--patch_size", 16, "--aoi", aoi)[0] == 0
    frame = geopandas.read_file(tmp_path / "one" / "grid.gpkg")
    assert frame["id"].tolist() == [0] and frame.crs == UTM30 and frame.geometry[0].equals(square(0, 0))
    assert (tmp_path / "one/grid.gpkg").read_bytes() == (tmp_path / "two/grid.gpkg").read_bytes()


def test_a_grid_that_exists_or_has_no_place_is_refused(tmp_path, script):
    image, _, _, _ = scene_and_label(tmp_path)
    path = tmp_path / "grid.gpkg"
    grid = lambda image, path, *words: script("Patch_extraction_v2", "grid", "--image", image, "--output", path, *words)
    assert grid(image, path)[0] == 0
    before = path.read_bytes()
    assert "exists; choose another name, or give --overwrite" in error_of(*grid(image, path, "--patch_size", 16)[::2]) and path.read_bytes() == before
    assert grid(image, path, "--overwrite", "--patch_size", 16)[0] == 0 and path.read_bytes() != before
    assert "name a .gpkg, .geojson or .fgb file" in error_of(*grid(image, tmp_path / "grid.shp")[::2])
    plain = write_raster(tmp_path / "plain.tif", coded(32, 32), crs=None, transform=Affine.identity())
    assert "plain.tif: has no geotransform" in error_of(*grid(plain, tmp_path / "new.gpkg")[::2])
    assert sorted(path.name for path in tmp_path.glob("*.gpkg*")) == ["grid.gpkg"]


@pytest.mark.parametrize("place", [Affine.translation(500000, 4800000) * Affine.rotation(30) * Affine.scale(10, -10), Affine(10, 0, 500000, 0, 10, 4799680), PLACE * Affine.scale(1, 1.3)],
                         ids=["turned", "south-up", "oblong"])
def test_the_grid_of_a_scene_that_lies_otherwise_follows_its_pixels(tmp_path, script, single, place):
    image, label, pixels, codes = scene_and_label(tmp_path, transform=place)
    assert script("Patch_extraction_v2", "grid", "--image", image, "--output", tmp_path / "grid.gpkg", "--patch_size", 16)[0] == 0
    assert single(image, label, "--grid", tmp_path / "grid.gpkg")[0] == 0
    assert len(assert_exact(tmp_path / "out", pixels, codes, place)) == 6


@pytest.mark.parametrize("place", [Affine(10, 0, 500000 - 50, 0, 10, 4800000 - 400), Affine(-10, 0, 500000 + 600, 0, -10, 4800000 + 50)], ids=["south-up", "mirrored"])
def test_labels_that_lie_otherwise_on_another_grid_label_every_cell(tmp_path, single, place):
    image, _, _, _ = scene_and_label(tmp_path)
    label = write_raster(tmp_path / "other.tif", np.ones((50, 70), "uint8"), transform=place)
    status, out, err = single(image, label)
    assert status == 0, err
    assert table(out) == {"cells": 6, "ok": 6} and all(row["class_1"] == "256" for row in rows_of(tmp_path / "out").values())


def test_limits_are_exact(tmp_path, single):
    pixels, codes = coded(16, 32), np.full((16, 32), 255, "uint8")
    pixels[:, :, 8:16] = 0  # half of the first cell
    codes[:4] = 1  # a quarter of the second
    image, label = write_raster(tmp_path / "s.tif", pixels, nodata=0), write_raster(tmp_path / "l.tif", codes)
    for words, left in ((["--max_nodata", 0.5], 2), (["--max_nodata", 0.499], 1), (["--min_labelled", 0.25], 1), (["--min_labelled", 0.251], 0), (["--min_labelled", 0.125], 2)):
        status, out, _ = single(image, label, *words, "--overwrite")
        assert (status, len(rows_of(tmp_path / "out")) if status == 0 else 0) == (0 if left else 2, left)


def test_an_area_beside_one_scene_of_several_leaves_that_one_out(tmp_path, script):
    for number, place in ((1, PLACE), (2, PLACE * Affine.translation(900, 0))):
        scene_and_label(tmp_path / f"{number}", transform=place)
    for number in (1, 2):
        for kind, name in (("scene", "image"), ("label", "label")):
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / f"{number}/{kind}.tif").rename(tmp_path / f"data/{name}_{number}.tif")
    aoi = write_vector(tmp_path / "aoi.gpkg", [square(0, 0, 32, 48)])
    status, out, err = script("Patch_extraction_v2", "batch", "--data_dir", tmp_path / "data", "--output", tmp_path / "out", "--patch_size", 16, "--aoi", aoi)
    assert status == 0, err
    assert {row["scene"] for row in rows_of(tmp_path / "out").values()} == {"image_1.tif"} and table(out) == {"cells": 12, "ok": 6, "outside the aoi": 6}


def test_outlines_that_gdal_cannot_write_are_one_line(tmp_path, script, monkeypatch):
    import pyogrio

    image, _, _, _ = scene_and_label(tmp_path)
    monkeypatch.setattr(geopandas.GeoDataFrame, "to_file", lambda *args, **kw: (_ for _ in ()).throw(pyogrio.errors.FeatureError("no such table")))
    assert "grid.gpkg: could not be written (no such table); is the memory full?" in error_of(*script("Patch_extraction_v2", "grid", "--image", image, "--output", tmp_path / "grid.gpkg")[::2])


def test_a_crs_that_a_geopackage_cannot_say_costs_nothing_but_its_name(tmp_path, single):
    crs = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6367470 +no_defs"
    image, label, pixels, codes = scene_and_label(tmp_path, crs=crs, transform=Affine(0.1, 0, 0, 0, -0.1, 10))
    status, _, err = single(image, label)
    assert status == 0, err
    assert len(geopandas.read_file(tmp_path / "out/patches.gpkg")) == 6


def test_an_area_that_only_touches_a_cell_does_not_take_it_in(tmp_path, single):
    image, label, pixels, codes = scene_and_label(tmp_path)
    aoi = write_vector(tmp_path / "aoi.gpkg", [square(0, 16, 16)])  # the second cell, to its very borders
    status, out, err = single(image, label, "--aoi", aoi, "--keep_unlabelled")
    assert status == 0, err
    assert list(assert_exact(tmp_path / "out", pixels, codes)) == ["1"] and table(out) == {"cells": 6, "ok": 1, "outside the aoi": 5}


@pytest.mark.parametrize("kind", ["bicubic", "lanczos"])
@pytest.mark.parametrize("nodata, high", [(0, 255), (255, 254)])
def test_overshoot_of_resampling_never_becomes_nodata(tmp_path, single, kind, nodata, high):
    pixels = np.where(np.indices((1, 24, 24)).sum(0) // 4 % 2 == 0, 1, high).astype("uint8")
    image, label = write_raster(tmp_path / "s.tif", pixels, nodata=nodata), write_raster(tmp_path / "l.tif", np.ones((24, 24), "uint8"))
    grid = write_vector(tmp_path / "g.gpkg", [square(0, 0, 24)])
    status, _, err = single(image, label, "--grid", grid, "--resample", "--interpolation", kind)
    assert status == 0, err
    (path,) = (tmp_path / "out").glob("*/images/*.tif")
    found, missing, valid = raster.read_patch(path)
    assert not missing.any() and valid.all() and found.min() < 10 and found.max() > 245
