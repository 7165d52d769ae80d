"""Grids as people really have them: every cell is cut from its own pixels, or the grid is refused in one line that names the file or the flag."""

import os
import sqlite3
import subprocess
import sys
import unicodedata
import zipfile

import geopandas
import numpy as np
import pytest
import shapely
from conftest import ROOT, coded, write_raster
from cutouts import PLACE, UTM31, assert_exact, feature, rows_of, scene_and_label, square, write_geojson, write_vector
from faults import assert_refused, assert_worked
from shapely import LineString, MultiPolygon, Point, Polygon, affinity, box

pytestmark = pytest.mark.usefixtures("without_fsync")
FOUR = [square(row, col) for row in (0, 16) for col in (0, 16)]
NAMED = ["--id_column", "n"]


@pytest.fixture
def cut(fate, tmp_path):
    """Cut a scene of 32 x 32 pixels, each of which tells its place, by a grid (a file, or shapes with what `write_vector` takes); the Fate."""
    image, label, pixels, codes = scene_and_label(tmp_path, 32, 32)

    def call(grid, *words, name="g.gpkg", **columns):
        grid = write_vector(tmp_path / name, grid, **columns) if isinstance(grid, list) else grid
        return fate("Patch_extraction_v2", "single", "--image", image, "--label", label, "--grid", grid, "--output", tmp_path / "out", "--patch_size", 16, "--compress", "none", *words)

    call.folder = tmp_path / "out"
    call.exact = lambda: assert_exact(call.folder, pixels, codes)
    return call


# ---------------------------------------------------------------- where cells lie


@pytest.mark.parametrize("shapes, settings, words, said, ids", [
    (FOUR, {}, [], "", "0123"),
    (FOUR, {"crs": None}, [], "g.gpkg: has no CRS; taken as the image's", "0123"),
    (FOUR, {"to": "EPSG:4326"}, [], "", "0123"),
    (FOUR, {"to": UTM31}, [], "", "0123"),
    (FOUR, {"crs": UTM31}, ["--vector_crs", "EPSG:32630"], "", "0123"),
    ([*FOUR, square(500, 500)], {}, [], "left out 1: outside the image", "0123"),
    ([*FOUR, None, Polygon()], {}, [], "left out 2: no geometry", "0123"),
    ([*FOUR, square(8, 8), square(8, 8)], {}, [], "", "012345"),
    ([MultiPolygon([shape]) for shape in FOUR], {}, [], "", "0123"),
    ([shapely.force_3d(shape, 9) for shape in FOUR], {}, [], "", "0123"),
    ([affinity.rotate(square(8, 8), 30)], {}, [], "rotated               1", "0"),
    ([square(0.4, 0.4), square(15.6, 15.6)], {}, [], "by 0.400 px at most", "01"),
], ids=["plain", "no crs", "degrees", "other zone", "wrong crs put right", "one outside", "two without a shape", "overlapping and equal", "multipolygons", "3D", "rotated", "off the pixels"])
def test_cells_are_cut_from_their_own_pixels(cut, shapes, settings, words, said, ids):
    assert_worked(cut(shapes, *words, **settings), said)
    assert set(cut.exact()) == set(ids)


@pytest.mark.parametrize("shapes, settings, words, parts", [
    ([], {}, [], ["g.gpkg", "holds no cell"]),
    ([square(500, 500)], {}, [], ["g.gpkg", "no cell overlaps", "--vector_crs"]),
    ([None, None], {}, [], ["g.gpkg", "no cell overlaps"]),
    (FOUR, {"crs": UTM31}, [], ["g.gpkg", "no cell overlaps", "EPSG:32631", "EPSG:32630"]),
    (FOUR, {"crs": "EPSG:4326"}, [], ["g.gpkg", "degrees", "--vector_crs"]),
    ([*FOUR, Point(500050, 4799950)], {"name": "g.geojson", "to": "EPSG:4326"}, [], ["--grid", "cells 4", "no single polygons"]),
    ([LineString([(500000, 4800000), (500100, 4799900)])], {}, [], ["--grid", "no single polygons"]),
    ([MultiPolygon([FOUR[0], FOUR[3]])], {}, [], ["--grid", "no single polygons"]),
    ([Polygon([(500000, 4800000)] * 4)], {}, [], ["--grid", "no single polygons"]),
    ([square(0, 0, 32)], {}, [], ["--patch_size 16", "0: 32.0 x 32.0", "--resample"]),
    ([square(0, 0, 0.2)], {}, [], ["--patch_size 16", "0.2 x 0.2"]),
    ([*FOUR[:2], square(16, 0, 14, 16)], {}, [], ["--patch_size 16", "1 of 3 cells", "2: 16.0 x 14.0"]),
    ([square(3, 3, 0.2), FOUR[0]], {}, ["--resample"], ["--patch_size 16", "1 of 2 cells", "smaller than a pixel"]),
    ([square(0, 0, 1e-9)], {}, ["--resample"], ["--patch_size 16", "smaller than a pixel"]),
    ([square(-300, -300, 632)], {}, ["--resample"], ["--patch_size 16", "16 times as large as a patch", "632.0 x 632.0"]),
    ([square(-3e8, -3e8, 6e8)], {}, ["--resample"], ["--patch_size 16", "16 times as large as a patch"]),
    ([*FOUR, box(1e300, 1e300, 2e300, 2e300)], {}, ["--resample"], ["g.gpkg", "1 of 5 shapes", "row 5"]),
    ([*FOUR, Polygon([(500000, 4800000), (float("inf"), 4800000), (500300, 4799700)])], {}, [], ["g.gpkg", "1 of 5 shapes", "row 5"]),
    ([box(-180, 89, 180, 90)], {"crs": "EPSG:4326"}, [], ["g.gpkg", "no cell overlaps"]),
    (FOUR, {}, ["--vector_crs", "EPSG:999999"], ["--vector_crs EPSG:999999"]),
    (FOUR, {}, ["--stride", 8], ["--stride 8"]),
], ids=["empty", "elsewhere", "no shape", "wrong crs", "metres as degrees", "a point", "a line", "several parts", "no area", "larger", "smaller", "shorter", "below a pixel", "far below", "far larger", "beyond memory",
        "huge", "infinite", "pole", "no such crs", "stride"])
def test_grids_that_cannot_be_cut_are_refused(cut, shapes, settings, words, parts):
    assert_refused(cut(shapes, *words, **settings), *parts)


def test_a_cell_the_images_crs_cannot_express_is_left_out(cut):
    assert_worked(cut([*(affinity.scale(shape) for shape in geopandas.GeoSeries(FOUR, crs=32630).to_crs(4326)), box(-180, 89, 180, 90)], crs="EPSG:4326"), "left out 1")
    assert set(cut.exact()) == set("0123")


# ---------------------------------------------------------------- ids


@pytest.mark.parametrize("ids, wanted", [
    ([1.0, 2.0, 3.0, 4.0], ["1", "2", "3", "4"]),
    ([1.5, 2.5, 3.5, 4.5], ["1.5", "2.5", "3.5", "4.5"]),
    (["01", "1", "001", "10"], ["01", "1", "001", "10"]),
    (["CON", "nul", "aux.", "COM1"], ["CON", "nul", "aux.", "COM1"]),
    (["..", ".", "-", "_"], ["..", ".", "-", "_"]),
    (["\u00e9", "\u0641\u062f\u0627\u0646", "\u7530", "\u00df"], ["\u00e9", "\u0641\u062f\u0627\u0646", "\u7530", "\u00df"]),
    ([-1, 0, 2**62, 2**62 + 1], ["-1", "0", str(2**62), str(2**62 + 1)]),
    (["x" * 128, "a", "b", "c"], ["x" * 128, "a", "b", "c"]),
], ids=["floats", "halves", "leading zeros", "names of devices", "dots", "other scripts", "64 bits", "128 bytes"])
def test_ids_name_the_patches(cut, ids, wanted):
    assert_worked(cut(FOUR, *NAMED, n=ids))
    assert set(cut.exact()) == set(wanted)


@pytest.mark.parametrize("ids, parts", [
    (["a", "a", "b", "c"], ["a stand there more than once"]),
    (["a", "A", "b", "c"], ["A, a stand there more than once"]),
    (["\uac00", unicodedata.normalize("NFD", "\uac00"), "b", "c"], ["more than once"]),
    (["\u00e9", unicodedata.normalize("NFD", "\u00e9"), "b", "c"], ["cannot be part of a file name"]),
    ([1.0, 1.0, 2.0, 3.0], ["1 stand there more than once"]),
    (["a/b", "c", "d", "e"], ["'a/b' cannot be part of a file name"]),
    (["a\\b", "c", "d", "e"], ["cannot be part of a file name"]),
    (["../../etc/x", "c", "d", "e"], ["'../../etc/x' cannot be"]),
    (["a:b", "c", "d", "e"], ["'a:b' cannot be"]),
    (["a\nb", "c", "d", "e"], ["cannot be part of a file name"]),
    (["\U0001f642", "c", "d", "e"], ["cannot be part of a file name"]),
    (["", "c", "d", "e"], ["'' cannot be"]),
    ([None, "c", "d", "e"], ["'' cannot be"]),
    ([float("nan"), 1.0, 2.0, 3.0], ["'' cannot be"]),
    (["x" * 129, "c", "d", "e"], ["up to 128"]),
    (["\u00fc" * 65, "c", "d", "e"], ["up to 128"]),
])
def test_ids_that_cannot_name_files_are_refused(cut, ids, parts):
    assert_refused(cut(FOUR, *NAMED, n=ids), "--id_column n", *parts)


@pytest.mark.parametrize("ids", [["a/b", "c", "d", "e"], ["a", "A", "b", "c"], ["x" * 300, "a", "b", "c"], [None, 1, 2, 3], ["", "a", "b", "c"]], ids=str)
def test_by_itself_a_column_unfit_for_names_is_not_taken(cut, ids):
    assert_worked(cut(FOUR, id=ids))
    assert set(cut.exact()) == set("0123")


@pytest.mark.parametrize("column, parts", [("geometry", ["it has n"]), ("N", ["Did you mean n?"]), ("", ["is empty"]), ("fid", ["it has n"])])
def test_an_id_column_that_is_not_there_is_named(cut, column, parts):
    assert_refused(cut(FOUR, "--id_column", column, n=list("abcd")), "--id_column", *parts)


def test_thousands_of_columns_do_no_harm(cut, tmp_path):
    table = geopandas.GeoDataFrame({f"c{i}": list("abcd") for i in range(2000)}, geometry=FOUR, crs=32630)
    table.to_parquet(tmp_path / "g.parquet")
    assert_worked(cut(tmp_path / "g.parquet", "--id_column", "c1999"))
    assert set(cut.exact()) == set("abcd")


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("words", [["train", "train", "validation", "test"], ["TRAIN ", "Training", " Val", "Test"]])
def test_a_split_column_is_obeyed_however_it_is_spelled(cut, words):
    assert_worked(cut(FOUR, "--split_column", "s", s=words))
    assert [row["split"] for row in rows_of(cut.folder).values()] == ["train", "train", "validation", "test"]


@pytest.mark.parametrize("words, parts", [
    (["train", "train", "val", None], ["holds nothing"]),
    (["train", "train", "val", ""], ["holds nothing"]),
    (["train", "train", "val", "holdout"], ["holds holdout"]),
    ([0, 0, 1, 2], ["holds 0, 1, 2"]),
    ([float("nan")] * 4, ["holds nothing"]),
    (["train"] * 4, ["left for validation"]),
    (["val"] * 4, ["left for train"]),
    (["train, val"] * 4, ["holds train, val"]),
], ids=str)
def test_a_split_column_that_says_something_else_is_refused(cut, words, parts):
    assert_refused(cut(FOUR, "--split_column", "s", s=words), "--split_column s", *parts)


@pytest.mark.parametrize("column", ["S", "geometry", "split"])
def test_a_split_column_that_is_not_there_is_named(cut, column):
    assert_refused(cut(FOUR, "--split_column", column, s=["train"] * 4), f"--split_column {column}", "g.gpkg", "it has s")


# ---------------------------------------------------------------- files


def damaged(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("lost, words, said", [(".prj", [], "has no CRS; taken as the image's"), (".cpg", NAMED, ""), (".dbf", [], ""), (".shx", [], None), (".dbf", NAMED, None)])
def test_a_shapefile_without_one_of_its_files(cut, tmp_path, lost, words, said):
    grid = write_vector(tmp_path / "g.shp", FOUR, n=list("abcd"))
    grid.with_suffix(lost).unlink()
    fate = cut(grid, *words)
    if said is None:
        assert_refused(fate, {".shx": "g.shx", ".dbf": "--id_column n"}[lost])
        return
    assert_worked(fate, said)
    assert set(cut.exact()) == set("abcd" if words else "0123")


@pytest.mark.parametrize("suffix", [".shp", ".shx", ".dbf", ".prj", ".gpkg", ".fgb", ".geojson", ".gml", ".parquet"])
@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_truncated_grid_is_refused_or_loses_nothing(cut, tmp_path, suffix, part):
    grid = tmp_path / ("g.shp" if suffix in (".shx", ".dbf", ".prj") else f"g{suffix}")
    if suffix == ".parquet":
        geopandas.GeoDataFrame({"n": list("abcd")}, geometry=FOUR, crs=32630).to_parquet(grid)
    else:
        write_vector(grid, FOUR, n=list("abcd"))
    damaged(grid.with_suffix(suffix), lambda content: content[: int(part * len(content))])
    fate = cut(grid, *NAMED)
    if fate.status == 0:
        assert suffix == ".prj" and set(cut.exact()) == set("abcd")
    else:
        assert_refused(fate)
        assert "g." in fate.line or "--id_column n" in fate.line


@pytest.mark.parametrize("seed", range(8))
def test_a_geopackage_with_flipped_bytes_is_refused_or_right(cut, tmp_path, seed):
    grid, rng = write_vector(tmp_path / "g.gpkg", FOUR, n=list("abcd")), np.random.default_rng(seed)
    places = rng.integers(0, grid.stat().st_size, 1 + 3 * seed) if seed > 1 else np.arange(4, 12) + 92 * seed

    def flip(content):
        content = bytearray(content)
        for place in places.tolist():
            content[place] ^= 0xFF
        return bytes(content)

    damaged(grid, flip)
    fate = cut(grid, *NAMED)
    assert_refused(fate) if fate.status else cut.exact()


def layers(path):
    for name in ("first", "second"):
        write_vector(path, FOUR, layer=name)


@pytest.mark.parametrize("layer, parts", [("", ["g.gpkg", "layers first, second", "|layername=first"]), ("|layername=", ["layers first, second"]), ("|layername=third", ["g.gpkg", "third"])])
def test_of_several_layers_none_is_guessed(cut, tmp_path, layer, parts):
    layers(tmp_path / "g.gpkg")
    assert_refused(cut(f"{tmp_path / 'g.gpkg'}{layer}"), *parts)


def test_a_layer_that_is_named_is_cut(cut, tmp_path):
    layers(tmp_path / "g.gpkg")
    assert_worked(cut(f"{tmp_path / 'g.gpkg'}|layername=second"))
    assert set(cut.exact()) == set("0123")


def test_a_layer_without_shapes_is_refused(cut, tmp_path):
    write_vector(tmp_path / "g.gpkg", FOUR, layer="cells")
    with sqlite3.connect(tmp_path / "g.gpkg") as table:
        table.execute("CREATE TABLE notes (fid INTEGER PRIMARY KEY, text TEXT)")
        table.execute("INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('notes', 'attributes', 'notes')")
    table.close()
    assert_refused(cut(f"{tmp_path / 'g.gpkg'}|layername=notes"), "layer notes holds no geometries", "cells")
    assert_worked(cut(tmp_path / "g.gpkg"))


def zipped(path, *members):
    inner = write_vector(path.parent / "inner.gpkg", FOUR)
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.write(inner, name)
    inner.unlink()


def views(path):
    """A geopackage whose layer calls a function that no reader should run."""
    write_vector(path, FOUR)
    with sqlite3.connect(path) as table:
        table.execute("DROP TABLE IF EXISTS gpkg_ogr_contents")
        table.execute("CREATE VIEW v AS SELECT load_extension('/tmp/none.so') AS x, * FROM g")
        table.execute("UPDATE gpkg_contents SET table_name = 'v' WHERE table_name = 'g'")
        table.execute("PRAGMA foreign_keys = OFF")
        table.execute("UPDATE gpkg_geometry_columns SET table_name = 'v'")
    table.close()


@pytest.mark.parametrize("name, make, part", [
    ("g.gpkg", lambda path: path.write_text("hello\n"), "cannot be read"),
    ("g.gpkg", lambda path: path.write_bytes(b""), "cannot be read"),
    ("g.gpkg", lambda path: path.write_text("id,x,y\n1,2,3\n"), "cannot be read"),
    ("g.gpkg", lambda path: zipped(path, "g.gpkg"), "cannot be read"),
    ("g.zip", lambda path: zipped(path), "cannot be read"),
    ("g.zip", lambda path: zipped(path, "a.gpkg", "b.gpkg"), "g.zip"),
    ("g.gpkg", views, "g.gpkg"),
    ("g.geojson", lambda path: path.write_text('{"type": "FeatureCollection", "features": []}'), "holds no cell"),
    ("g.tif", lambda path: write_raster(path, coded(8, 8)), "cannot be read"),
    ("g.gdb", lambda path: path.mkdir(), "cannot be read"),
    ("folder", lambda path: path.mkdir(), "cannot be read"),
    ("g.gpkg", lambda path: None, "no such file"),
    ("g.gpkg", lambda path: path.symlink_to(path), "no such file"),
    ("g.gpkg", lambda path: path.symlink_to("nowhere"), "no such file"),
], ids=["text", "nothing", "table", "zip as gpkg", "empty zip", "zip of two", "a view that loads code", "no features", "raster", "empty gdb", "folder", "missing", "loop", "dangling"])
def test_files_that_hold_no_grid_are_refused(cut, tmp_path, name, make, part):
    make(tmp_path / name)
    assert_refused(cut(tmp_path / name), name, part)


@pytest.mark.parametrize("grid", ["http://127.0.0.1:9/g.geojson", "/vsicurl/http://127.0.0.1:9/g.geojson", "g\u00fc.gpkg", "x" * 300 + ".gpkg"])
def test_grids_that_are_nowhere_are_refused(cut, grid):
    assert_refused(cut(grid), grid)


def test_names_with_spaces_and_other_letters_are_fine(cut):
    assert_worked(cut(FOUR, name="mein Gitter \u00fc \u7530.gpkg"))
    assert set(cut.exact()) == set("0123")


def test_geojson_that_asks_for_its_crs_elsewhere_asks_nobody(cut, tmp_path):
    """A local server waits for the question."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        link = {"type": "link", "properties": {"href": f"http://127.0.0.1:{server.getsockname()[1]}/crs"}}
        assert_refused(cut(write_geojson(tmp_path / "g.geojson", *map(feature, FOUR), crs=link)), "g.geojson", "--vector_crs")
        with pytest.raises(TimeoutError):
            server.accept()


def test_geojson_in_metres_is_believed_when_it_says_so(cut, tmp_path):
    assert_worked(cut(write_geojson(tmp_path / "g.geojson", *map(feature, [*FOUR, None]))), "left out 1: no geometry")
    assert set(cut.exact()) == set("0123")


# ---------------------------------------------------------------- batches


def test_a_pair_with_a_broken_grid_fails_alone(fate, tmp_path):
    for number, content in enumerate([None, b"SQLite format 3\0" + b"x" * 200, b"", None], 1):
        image, label, _, _ = scene_and_label(tmp_path / "data" / str(number), 32, 32, transform=PLACE * PLACE.translation(100 * number, 0))
        image.rename(tmp_path / f"data/image_{number}.tif"), label.rename(tmp_path / f"data/label_{number}.tif")
        os.rmdir(image.parent)
        grid = tmp_path / f"data/grid_{number}.gpkg"
        write_vector(grid, [square(row, col, place=PLACE * PLACE.translation(100 * number, 0)) for row in (0, 16) for col in (0, 16)])
        if content is not None:
            grid.write_bytes(content)
    found = fate("Patch_extraction_v2", "batch", "--data_dir", tmp_path / "data", "--output", tmp_path / "out", "--patch_size", 16, "--use_per_image_grid", "--compress", "none")
    assert_refused(found, "2 inputs could not be used", status=1, left="out/")
    assert found.err.count("failed   ") == 2 and "grid_2.gpkg: cannot be read" in found.err and len(list((tmp_path / "out").glob("*/images/*.tif"))) == 8


def test_ids_of_scenes_too_long_for_file_names_are_refused(fate, tmp_path):
    image, label, _, _ = scene_and_label(tmp_path / "data", 16, 16)
    image.rename(tmp_path / f"data/image_{'1' * 120}.tif"), label.rename(tmp_path / f"data/label_{'1' * 120}.tif")
    assert_refused(fate("Patch_extraction_v2", "batch", "--data_dir", tmp_path / "data", "--output", tmp_path / "out", "--patch_size", 16), "--image_pattern", "up to 100")


@pytest.mark.parametrize("suffix, parts", [(".gpkg", []), (".geojson", []), (".fgb", []), (".shp", ["--output"]), (".txt", ["--output"])])
def test_the_automatic_grid_is_written_or_refused(fate, tmp_path, suffix, parts):
    image = write_raster(tmp_path / "scene.tif", coded(20, 36))
    found = fate("Patch_extraction_v2", "grid", "--image", image, "--output", tmp_path / f"g{suffix}", "--patch_size", 16)
    if parts:
        assert_refused(found, *parts)
        return
    assert_worked(found, "6 cells of 16 pixels")
    assert len(geopandas.read_file(tmp_path / f"g{suffix}")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name, text", [
    ("g.gpkg", "<OGRVRTDataSource><OGRVRTLayer name='s'><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"),
    ("g.geojson", '{{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline ! read {secret}"}}'),
    ("g.gml", "<OGRWFSDataSource><URL>http://127.0.0.1:9/wfs</URL></OGRWFSDataSource>"),
])
def test_pointers_to_other_files_are_followed_by_no_process(tmp_path, name, text):
    image, label, _, _ = scene_and_label(tmp_path, 32, 32)
    secret = write_vector(tmp_path / "s.gpkg", FOUR)
    (tmp_path / name).write_text(text.format(secret=secret))
    words = ["single", "--image", image, "--label", label, "--grid", tmp_path / name, "--output", tmp_path / "out", "--patch_size", 16]
    run = subprocess.run([sys.executable, ROOT / "Patch_extraction_v2.py", *map(str, words)], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and f"{name}: cannot be read" in run.stderr and not (tmp_path / "out").exists()
