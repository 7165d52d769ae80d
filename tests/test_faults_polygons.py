"""Label polygons as people really have them: drawn onto the right pixels, or refused in one line that names the file or the flag."""

import json
import sqlite3
import struct
import subprocess
import sys

import geopandas
import numpy as np
import pandas
import pyproj
import pytest
import rasterio
import shapely
from conftest import ROOT, coded, write_raster
from cutouts import drawn, feature, square, write_geojson, write_vector
from faults import assert_refused, assert_worked
from shapely import LineString, MultiPolygon, Point, Polygon, box

pytestmark = pytest.mark.usefixtures("without_fsync")
N = 32
FOUR = [square(row, col, 12) for row in (0, 16) for col in (0, 16)]  # each in a patch of its own
FIELD, BURN = ["--label_field", "n"], ["--label_burn", 1]
UTM = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32630"}}


@pytest.fixture
def cut(fate, tmp_path):
    """Cut a scene of 32 x 32 pixels with polygons (a file, or shapes with what `write_vector` takes) into four patches; the Fate."""
    def call(label, *words, name="p.gpkg", **columns):
        image = write_raster(tmp_path / "scene.tif", coded(N, N, 1))
        if not hasattr(label, "suffix"):
            label = write_vector(tmp_path / name, label, **columns)
        return fate("Patch_extraction_v2", "single", "--image", image, "--label", label, "--output", tmp_path / "out", "--patch_size", 16, "--compress", "none", *words)

    call.folder = tmp_path / "out"
    return call


def four(*classes, outside=255):
    """What FOUR draw, with a class each."""
    found = np.full((N, N), outside)
    for number, (row, col) in zip(classes, ((0, 0), (0, 16), (16, 0), (16, 16))):
        found[row : row + 12, col : col + 12] = number
    return found


def lonlat_of_pixels():
    """Longitude and latitude of every pixel's centre: (32, 32) each."""
    rows, cols = np.indices((N, N)) + 0.5
    return pyproj.Transformer.from_crs(32630, 4326, always_xy=True).transform(500000 + 10 * cols, 4800000 - 10 * rows)


# ---------------------------------------------------------------- attributes


@pytest.mark.parametrize("values, words, wanted, said", [
    ([0, 1, 2, 254], [], (0, 1, 2, 254), ""),
    ([0.0, 1.0, 2.0, 3.0], [], (0, 1, 2, 3), ""),
    (["01", "1", "002", "3"], [], (1, 1, 2, 3), ""),
    ([0, 255, 2, 3], [], (0, 255, 2, 3), ""),
    ([0, None, 2, 3], [], (0, 255, 2, 3), "p.gpkg: 1 of 4 polygons hold nothing in n; they are unlabelled"),
    (["", None, "2", "3"], [], (255, 255, 2, 3), "2 of 4 polygons hold nothing in n"),
    ([True, False, True, False], ["True=1", "False=0"], (1, 0, 1, 0), ""),
    (["bare soil", "a=b", "-1", " water "], ["bare soil=0", "a=b=1", "-1=ignore", "water=2"], (0, 1, 255, 2), ""),
    (["Wald", "wald", "WALD", "\u00c4cker"], ["Wald=0", "wald=1", "WALD=2", "\u00c4cker=3"], (0, 1, 2, 3), ""),
    (["1_1", "11", "1.10", "1.1"], ["1_1=0", "11=1", "1.10=2", "1.1=3"], (0, 1, 2, 3), ""),
    ([2**53, 2**53 + 1, 2**53 + 2, -(2**53) - 1], [f"{2**53}=0", f"{2**53 + 1}=1", f"{2**53 + 2}=2", f"{-(2**53) - 1}=3"], (0, 1, 2, 3), ""),
    (pandas.to_datetime(["2020-01-01", None, "2021-01-01", "2021-01-01"]), ["2020-01-01 00:00:00=0", "2021-01-01 00:00:00=1"], (0, 255, 1, 1), ""),
], ids=["numbers", "whole floats", "leading zeros", "255", "null", "empty", "bool", "spaces and =", "capitals", "nearly numbers", "64 bits", "dates"])
def test_attributes_become_the_classes_they_are_mapped_to(cut, values, words, wanted, said):
    assert_worked(cut(FOUR, *FIELD, *(["--label_map", *words] if words else []), n=values), said)
    assert (drawn(cut.folder, N, N) == four(*wanted)).all()


@pytest.mark.parametrize("values, wanted", [
    (pandas.array([1, None, 3, 4], dtype="Int64"), (1, 255, 3, 4)),
    (pandas.Categorical([2, None, 2, 5]), (2, 255, 2, 5)),
])
def test_parquet_has_its_own_ways_to_hold_nothing(cut, tmp_path, values, wanted):
    geopandas.GeoDataFrame({"n": values}, geometry=FOUR, crs=32630).to_parquet(tmp_path / "p.parquet")
    assert_worked(cut(tmp_path / "p.parquet", *FIELD), "1 of 4 polygons hold nothing in n")
    assert (drawn(cut.folder, N, N) == four(*wanted)).all()


@pytest.mark.parametrize("values, words, parts", [
    (["a", "b c", "b c", "1"], FIELD, ["--label_field n", "--label_map a=0 'b c=1'"]),
    ([1.5, 2.0, 1.0, 1.0], FIELD, ["--label_field n", "1.5=0"]),
    ([True, False, True, False], FIELD, ["--label_field n", "False=0 True=1"]),
    ([1, 300, 255, -1], FIELD, ["p.gpkg", "n holds -1, 300", "no classes"]),
    (["1", "9" * 5000, "1", "1"], FIELD, ["--label_field n", "999"]),
    ([None] * 4, FIELD, ["--output", "no labelled pixel"]),
    (["Water"] * 4, [*FIELD, "--label_map", "water=0"], ["p.gpkg", "n holds Water", "Water=ignore"]),
    (["1_1", "11", "11", "11"], [*FIELD, "--label_map", "11=0"], ["p.gpkg", "n holds 1_1,"]),
    ([2**53, 2**53 + 1, 2**53, 2**53], [*FIELD, "--label_map", f"{2**53}=0"], ["p.gpkg", f"n holds {2**53 + 1},"]),
    ([1] * 4, ["--label_field", "N"], ["--label_field N", "p.gpkg", "it has n", "Did you mean n"]),
    ([1] * 4, ["--label_field", "klasse"], ["--label_field klasse", "it has n"]),
    ([1] * 4, ["--label_field", "geometry"], ["--label_field geometry", "it has n"]),
    ([1] * 4, ["--label_field", ""], ["--label_field: is empty"]),
    ([1] * 4, [], ["p.gpkg", "--label_field NAME", "--label_burn V"]),
    ([1] * 4, [*FIELD, *BURN], ["--label_field and --label_burn"]),
    ([1] * 4, [*BURN, "--label_map", "water=0"], ["--label_burn and --label_map"]),
    ([1] * 4, ["--label_burn", 255], ["--label_burn 255"]),
    ([1] * 4, ["--label_burn", -1], ["--label_burn"]),
    ([1] * 4, [*FIELD, "--label_outside", 255], ["--label_outside 255"]),
    ([1] * 4, [*FIELD, "--label_outside", "\u00b2"], ["--label_outside \u00b2"]),
    ([1] * 4, [*FIELD, "--label_outside", "9" * 5000], ["--label_outside 999"]),
    ([1] * 4, [*FIELD, "--label_nodata", 0], ["--label_nodata", "p.gpkg"]),
    ([1] * 4, [*FIELD, "--label_map", "1=0", "01=1"], ["--label_map", "twice"]),
])
def test_attributes_that_say_no_class_are_refused(cut, values, words, parts):
    assert_refused(cut(FOUR, *words, n=values), *parts)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, [[1], [2]]], ids=["list", "dict", "nested"])
def test_attributes_of_several_values_are_no_classes(cut, tmp_path, value):
    assert_refused(cut(write_geojson(tmp_path / "p.geojson", feature(FOUR[0], n=value)), *FIELD), "--label_field n", "--label_map")


def test_the_nearest_of_very_many_columns_is_named(cut, tmp_path):
    columns = {f"c{i}": i for i in range(3000)} | {"Class": 1}
    assert_refused(cut(write_geojson(tmp_path / "p.geojson", feature(FOUR[0], **columns)), "--label_field", "class"), "and 2989 more", "Did you mean Class?")


# ---------------------------------------------------------------- shapes


def curved(path):
    """FOUR, of which the first is a circle of radius 5 around row 6, column 6, as a curve."""
    write_vector(path, FOUR, n=[1, 2, 3, 4])
    points = [(500010, 4799940), (500060, 4799990), (500110, 4799940), (500060, 4799890), (500010, 4799940)]
    shape = struct.pack("<BIIBII", 1, 10, 1, 1, 8, 5) + b"".join(struct.pack("<dd", *point) for point in points)
    with sqlite3.connect(path) as table:
        for (name,) in table.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            table.execute(f'DROP TRIGGER "{name}"')
        table.execute("UPDATE gpkg_geometry_columns SET geometry_type_name = 'CURVEPOLYGON'")
        table.execute(f"UPDATE {path.stem} SET geom = ? WHERE fid = 1", (b"GP\x00\x01" + struct.pack("<i", 32630) + shape,))
    table.close()
    return path


def test_curves_are_drawn_as_they_bend(cut, tmp_path):
    assert_worked(cut(curved(tmp_path / "p.gpkg"), *FIELD))
    rows, cols = np.indices((N, N)) + 0.5
    wanted = four(255, 2, 3, 4)
    wanted[np.hypot(rows - 6, cols - 6) < 5] = 1
    assert (drawn(cut.folder, N, N) == wanted).all()


@pytest.mark.parametrize("shapes, said", [
    ([FOUR[0], None, Polygon(), FOUR[3]], "2 of 4 polygons have no shape; left out"),
    ([MultiPolygon([FOUR[0], FOUR[3]])], ""),
    ([shapely.force_3d(FOUR[0], 7), shapely.force_3d(FOUR[3], -3)], ""),
    ([FOUR[0], FOUR[3], square(500, 500)], ""),
    ([FOUR[0], FOUR[3], square(40.1, 40.1, 0.2)], ""),
    ([FOUR[0], Polygon([*FOUR[3].exterior.coords[:2], FOUR[3].exterior.coords[0], *FOUR[3].exterior.coords[1:]])], ""),
], ids=["none and empty", "two parts", "3D", "far away as well", "smaller than a pixel", "back and forth"])
def test_odd_shapes_are_drawn_where_they_lie(cut, shapes, said):
    assert_worked(cut(shapes, *BURN), said)
    assert (drawn(cut.folder, N, N) == four(1, 0, 0, 1, outside=0)).all()


@pytest.mark.parametrize("crs, shape", [(4326, box(-180, -90, 180, 90)), (4326, box(-170, 20, 175, 80)), (3857, box(-1.9e7, -1.9e7, 1.9e7, 1.9e7)), (32630, box(-1e12, -1e12, 1e12, 1e12))])
def test_a_polygon_around_the_earth_covers_the_scene(cut, crs, shape):
    assert_worked(cut([shape], *BURN, crs=crs))
    assert (drawn(cut.folder, N, N) == 1).all()


@pytest.mark.parametrize("west, north", [(-100, 43.3517), (-170, 43.3517), (-3.5, 43.3517)])
def test_long_sides_bend_as_parallels_do(cut, west, north):
    assert_worked(cut([box(west, 43, -2.998, north)], *BURN, crs="EPSG:4326"))
    lon, lat = lonlat_of_pixels()
    assert (drawn(cut.folder, N, N) == ((lon < -2.998) & (lat < north))).all() and 0 < (lat < north).mean() < 1


@pytest.mark.parametrize("shapes, words, parts", [
    ([], BURN, ["p.geojson", "holds no polygon"]),
    ([None, None], BURN, ["p.geojson", "holds no polygon"]),
    ([Point(500050, 4799950)], BURN, ["p.geojson", "holds Point"]),
    ([FOUR[0], LineString([(500000, 4800000), (500100, 4799950)]), Point(500050, 4799950)], BURN, ["p.geojson", "holds LineString, Point"]),
    ([shapely.GeometryCollection([FOUR[0], Point(500050, 4799950)])], BURN, ["p.geojson", "GeometryCollection"]),
    ([square(500, 500)], BURN, ["p.geojson", "lies beside"]),
    ([Polygon([(500000, 4800000), (-1e308, 4800000), (500300, 4799700)]), FOUR[0]], BURN, ["p.geojson", "1 of 2 shapes", "row 1"]),
    ([FOUR[0], Polygon([(500000, 4800000), (float("inf"), 4800000), (500300, 4799700)])], BURN, ["p.geojson", "1 of 2 shapes", "row 2"]),
    ([FOUR[0]], [*BURN, "--vector_crs", "EPSG:32631"], ["p.geojson", "lies beside"]),
    ([FOUR[0]], [*BURN, "--vector_crs", "EPSG:999999"], ["--vector_crs EPSG:999999"]),
    ([FOUR[0]], [*BURN, "--vector_crs", 'LOCAL_CS["plan",UNIT["metre",1]]'], ["p.geojson", "nothing leads"]),
    ([FOUR[0]], [*BURN, "--vector_crs", "EPSG:4326"], ["p.geojson", "degrees", "--vector_crs"]),
], ids=["empty", "nothing drawn", "point", "mixed", "collection", "beside", "huge", "infinite", "another zone", "no such crs", "local crs", "metres as degrees"])
def test_shapes_that_cannot_be_labels_are_refused(cut, tmp_path, shapes, words, parts):
    text = json.dumps({"type": "FeatureCollection", "crs": UTM, "features": [feature(shape) for shape in shapes]})
    (tmp_path / "p.geojson").write_text(text.replace("Infinity", "1e308"))
    assert_refused(cut(tmp_path / "p.geojson", *words), *parts)


def test_countries_are_not_drawn_across_the_180th_meridian(fate, tmp_path):
    image = write_raster(tmp_path / "scene.tif", coded(N, N, 1), crs="EPSG:32601", transform=rasterio.transform.from_origin(165900, 100, 10, 10))
    label = write_vector(tmp_path / "p.gpkg", [box(-180, -10, 180, 10)], crs="EPSG:4326")
    found = fate("Patch_extraction_v2", "single", "--image", image, "--label", label, *BURN, "--output", tmp_path / "out", "--patch_size", 16)
    assert_refused(found, "p.gpkg", "180th meridian")


# ---------------------------------------------------------------- files


WKT = "POLYGON ((500000 4800000, 500120 4800000, 500120 4799880, 500000 4799880, 500000 4800000))"
RING = "-3,43.3517 -2.9985,43.3517 -2.9985,43.35 -3,43.35 -3,43.3517"
KML = ('<?xml version="1.0"?>{}<kml xmlns="http://www.opengis.net/kml/2.2"><Document><Placemark><name>{}</name><Polygon><outerBoundaryIs><LinearRing><coordinates>'
       + RING + "</coordinates></LinearRing></outerBoundaryIs></Polygon></Placemark></Document></kml>")


def test_a_table_with_wkt_is_drawn_in_the_images_crs(cut, tmp_path):
    (tmp_path / "p.csv").write_text(f'n,WKT\n1,"{WKT}"\n')
    assert_worked(cut(tmp_path / "p.csv", *FIELD), "p.csv: has no CRS; taken as the image's")
    assert (drawn(cut.folder, N, N) == four(1)).all()


def test_kml_is_drawn_in_degrees(cut, tmp_path):
    (tmp_path / "p.kml").write_text(KML.format("", "wood"))
    assert_worked(cut(tmp_path / "p.kml", "--label_field", "Name", "--label_map", "wood=3"))
    lon, lat = lonlat_of_pixels()
    assert (drawn(cut.folder, N, N) == np.where((lon < -2.9985) & (lat > 43.35) & (lat < 43.3517), 3, 255)).all()


def test_ids_that_repeat_in_geojson_are_said_and_drawn(cut, tmp_path):
    write_geojson(tmp_path / "p.geojson", feature(FOUR[0], n=1) | {"id": 1}, feature(FOUR[3], n=2) | {"id": 1})
    assert_worked(cut(tmp_path / "p.geojson", *FIELD))
    assert (drawn(cut.folder, N, N) == four(1, 255, 255, 2)).all()


@pytest.mark.parametrize("coordinate", ["null", '"x"'])
def test_shapes_whose_coordinates_are_no_numbers_are_left_out_with_a_word(cut, tmp_path, coordinate):
    text = json.dumps({"type": "FeatureCollection", "crs": UTM, "features": [feature(FOUR[0], n=1), feature(FOUR[3], n=2)]})
    (tmp_path / "p.geojson").write_text(text.replace("500280.0", coordinate, 1))
    assert_worked(cut(tmp_path / "p.geojson", *FIELD), "1 of 2 polygons have no shape; left out")
    assert (drawn(cut.folder, N, N) == four(1)).all()


WHOLE = json.dumps({"type": "FeatureCollection", "crs": UTM, "features": [feature(shape, n=1) for shape in FOUR]})
LINES = "\n".join(json.dumps(feature(box(-3, 43.35, -2.999, 43.3517), n=n)) for n in range(3))


@pytest.mark.parametrize("name, content, parts", [
    ("p.geojson", WHOLE[:-150], ["cannot be read"]),
    ("p.geojson", WHOLE.encode("utf-16"), ["cannot be read"]),
    ("p.geojson", "<!DOCTYPE html><html>404</html>", ["cannot be read"]),
    ("p.geojson", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", ["cannot be read"]),
    ("p.geojson", '{"a": 1}', ["cannot be read"]),
    ("p.geojson", LINES[:-40], ["1 of its 3 lines are no GeoJSON features", "truncated"]),
    ("p.geojson", LINES.replace("Polygon", "Poly\x00gon", 1), ["p.geojson"]),
    ("p.geojson", WHOLE.replace("500120.0", "NaN", 1), ["1 of 4 shapes have a coordinate that is no number", "row 1"]),
    ("p.geojson", WHOLE.replace("500120.0", "1e999", 1), ["p.geojson"]),
    ("p.geojson", WHOLE.replace("EPSG::32630", "EPSG::99999"), ["degrees", "--vector_crs"]),
    ("p.geojson", WHOLE.replace('"crs": ' + json.dumps(UTM), '"crs": null'), ["degrees", "--vector_crs"]),
    ("p.json", '{"type": "Topology", "objects": {}}', ["cannot be read"]),
    ("p.kml", KML.format('<!DOCTYPE k [<!ENTITY a SYSTEM "file:///etc/hostname">]>', "&a;"), ["cannot be read"]),
    ("p.kml", KML.format("", "wood")[:-90], ["cannot be read"]),
    ("p.csv", "n,x,y\n1,2,3\n", ["no layer with geometries"]),
    ("p.csv", f'n,WKT\n1,"{WKT[:-60]}', ["holds no polygon"]),
    ("p.parquet", b"PAR1" + b"\0" * 90 + b"PAR1", ["cannot be read"]),
    ("p.fgb", b"fgb\x03fgb\x00" + b"\xff" * 90, ["p.fgb"]),
    ("p.gpkg", "hello\n", ["cannot be read"]),
    ("p.gpkg", b"", ["cannot be read"]),
    ("p.shp", b"\0\0\x27\x0a" + b"\0" * 200, ["p.shp"]),
], ids=["cut", "utf-16", "html", "git lfs", "another json", "lines cut", "a damaged line", "nan", "beyond floats", "crs unknown", "crs null", "empty topology", "entity", "kml cut", "no wkt", "wkt cut",
        "parquet noise", "fgb noise", "text", "nothing", "shp noise"])
def test_files_that_are_not_what_they_say_are_refused(cut, tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(cut(path, *BURN), name, *parts)


@pytest.mark.slow
def test_gdals_warnings_reach_no_users_terminal_raw(tmp_path):
    image = write_raster(tmp_path / "scene.tif", coded(N, N, 1))
    label = write_geojson(tmp_path / "p.geojson", feature(FOUR[0], n=1) | {"id": 1}, feature(FOUR[3], n=2) | {"id": 1})
    words = ["single", "--image", image, "--label", label, *FIELD, "--output", tmp_path / "out", "--patch_size", 16]
    run = subprocess.run([sys.executable, ROOT / "Patch_extraction_v2.py", *map(str, words)], capture_output=True, text=True, check=False)
    (line,) = run.stderr.splitlines()
    assert run.returncode == 0 and line.startswith(f"note: {label}: GDAL: Several features with id = 1")
