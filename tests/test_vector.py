import geopandas
import numpy as np
import pytest
from cutouts import PLACE, UTM30, UTM31, square, write_vector
from rasterio.crs import CRS
from rasterio.transform import Affine
from shapely import LineString, MultiPolygon, Point, Polygon, affinity, box

from eoseg import vector
from eoseg.errors import DataError, SetupError
from eoseg.tiles import Window


def frame_of(shapes, crs=UTM30, **columns):
    return geopandas.GeoDataFrame(columns or {"n": range(len(shapes))}, geometry=list(shapes), crs=crs)


def cells_of(*shapes, size=16, place=PLACE, resample=False):
    return vector.cells(frame_of(shapes), [f"c{i}" for i in range(len(shapes))], place, size, resample)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "geojson", "fgb"])
@pytest.mark.parametrize("crs", [UTM30, "EPSG:4326"])
def test_every_format_gives_shapes_attributes_and_crs(tmp_path, suffix, crs):
    path = write_vector(tmp_path / f"grid.{suffix}", [square(0, 0), square(16, 32)], to=crs, name=["ä", "b"])
    frame = vector.read_layer(path)
    assert vector.is_vector(path) and frame.crs == crs
    frame = frame.to_crs(UTM30).set_index("name")  # FlatGeobuf sorts by place
    for name, bounds in {"ä": (500000, 4799840, 500160, 4800000), "b": (500320, 4799680, 500480, 4799840)}.items():
        assert np.allclose(frame.loc[name].geometry.bounds, bounds, rtol=0, atol=0.02)  # GeoJSON keeps 7 decimals of a degree: 1 cm


def test_one_of_several_layers_is_chosen_as_qgis_writes_it(tmp_path):
    path = tmp_path / "two.gpkg"
    for layer, row in (("first", 0), ("second", 16)):
        frame_of([square(row, 0)]).to_file(path, layer=layer)
    assert vector.is_vector(f"{path}|layername=second")
    assert vector.read_layer(f"{path}|layername=second").total_bounds[3] == 4800000 - 160
    with pytest.raises(SetupError, match=r"two.gpkg: holds the layers first, second; .*layername=first"):
        vector.read_layer(path)
    with pytest.raises(SetupError, match="third"):
        vector.read_layer(f"{path}|layername=third")


@pytest.mark.parametrize("name, content, text", [
    ("none.gpkg", None, "no such file"), ("zero.gpkg", b"", "cannot be read"), ("noise.gpkg", b"SQLite format 3\0" + b"x" * 200, "cannot be read"),
    ("cut.geojson", b'{"type": "FeatureCollection", "features": [', "cannot be read"), ("lonely.shp", b"\0" * 100, "cannot be read"),
])
def test_files_that_hold_no_shapes_are_named(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{text}"):
        vector.read_layer(tmp_path / name)


def test_a_table_without_shapes_is_refused(tmp_path):
    geopandas.pd.DataFrame({"a": [1]}).to_csv(tmp_path / "table.csv")
    with pytest.raises(DataError, match="table.csv: holds no layer"):
        vector.read_layer(tmp_path / "table.csv")


def test_metres_that_read_as_degrees_are_refused_until_the_crs_is_named(tmp_path):
    path = write_vector(tmp_path / "undeclared.geojson", [square(0, 0)], crs=None)
    with pytest.raises(DataError, match="undeclared.geojson: reads as EPSG:4326 .*500000 4799840 to 500160 4800000.*--vector_crs"):
        vector.read_layer(path)
    assert vector.read_layer(path, "EPSG:32631").crs == UTM31
    assert vector.read_layer(path, "image").crs is None
    with pytest.raises(SetupError, match="--vector_crs EPSG:99999: no such CRS"):
        vector.read_layer(path, "EPSG:99999")


def test_the_frame_is_brought_onto_the_image_and_guesses_are_said():
    frame, said = frame_of([square(0, 0)]), []
    assert vector.onto(frame, CRS.from_epsg(32630), "g", said.append).equals(frame) and not said
    moved = vector.onto(frame.to_crs(UTM31), CRS.from_epsg(32630), "g", said.append)
    assert np.allclose(moved.total_bounds, frame.total_bounds, rtol=0, atol=1e-6) and not said
    assert vector.onto(frame.set_crs(None, allow_override=True), CRS.from_epsg(32630), "g", said.append).crs == UTM30
    vector.onto(frame, None, "h", said.append)
    assert ["g: has no CRS" in said[0], "h: the image has no CRS" in said[1], len(said)] == [True, True, 2]


def test_a_crs_from_which_nothing_leads_to_the_images_is_an_error():
    plan = CRS.from_wkt('LOCAL_CS["plan of a building",UNIT["metre",1]]')
    with pytest.raises(DataError, match="^g: nothing leads"):
        vector.onto(frame_of([square(0, 0)]), plan, "g", print)


# ---------------------------------------------------------------- cells


@pytest.mark.parametrize("down, right, window, shift", [
    (0, 0, (16, 32), (0, 0)),
    (1e-9, -1e-9, (16, 32), (0, 0)),
    (0.4, -0.3, (16, 32), (-0.4, 0.3)),
    (0.6, -0.7, (17, 31), (0.4, -0.3)),
    (-0.4, 0.49, (16, 32), (0.4, -0.49)),
])
def test_a_cell_is_moved_to_the_nearest_pixels_and_the_shift_says_how_far(down, right, window, shift):
    (cell,), empty = cells_of(square(16 + down, 32 + right))
    assert cell.window == Window(*window, 16, 16) and not empty
    assert cell.shift == pytest.approx(shift, abs=1e-6) and cell.size == pytest.approx((16, 16)) and cell.rotation == 0


def test_rows_and_columns_are_not_exchanged():
    (cell,), _ = cells_of(square(3, 7, height=10, width=20), resample=True)
    assert cell.window == Window(3, 7, 10, 20) and cell.size == pytest.approx((10, 20))


def test_odd_sizes_stay_on_whole_pixels():
    (cell,), _ = cells_of(square(2, 3, height=5), size=5)
    assert cell.window == Window(2, 3, 5, 5) and cell.shift == (0, 0)


@pytest.mark.parametrize("angle, told", [(10, -10), (-10, 10), (45, 45), (80, 10), (100, -10), (0.01, 0)])  # rows run down, so the sign turns
def test_a_turned_cell_keeps_its_centre_and_its_rotation_is_told(angle, told):
    (cell,), _ = cells_of(affinity.rotate(square(20, 40), angle))
    assert cell.window == Window(20, 40, 16, 16) and cell.size == pytest.approx((16, 16)) and cell.rotation == pytest.approx(told, abs=1e-3)


@pytest.mark.parametrize("place", [Affine.translation(500000, 4800000) * Affine.rotation(30) * Affine.scale(10, -10), Affine(10, 0, 500000, 0, 10, 4700000),
                                   Affine(25, 0, 500000, 0, -10, 4800000)], ids=["turned", "south up", "oblong"])
def test_cells_follow_the_pixels_of_any_raster(place):
    found, _ = cells_of(square(16, 32, place=place), square(0.4, 5, place=place), place=place)
    assert [cell.window for cell in found] == [Window(16, 32, 16, 16), Window(0, 5, 16, 16)]
    assert all(cell.rotation == 0 and cell.size == pytest.approx((16, 16)) for cell in found)


def test_cells_without_a_shape_are_told_apart():
    found, empty = cells_of(square(0, 0), None, Polygon(), square(0, 16))
    assert [cell.id for cell in found] == ["c0", "c3"] and empty == ["c1", "c2"]


def test_cells_the_images_crs_cannot_express_are_left_out():
    frame = frame_of([box(-180, 89, 180, 90), box(-3, 43.3, -2.998, 43.302)], crs="EPSG:4326").to_crs(UTM30)
    found, empty = vector.cells(frame, ["pole", "here"], PLACE, 16)
    assert [cell.id for cell in found] == ["here"] and empty == ["pole"]


@pytest.mark.parametrize("shape", [Point(500000, 4800000), LineString([(500000, 4800000), (500160, 4799840)]), MultiPolygon([square(0, 0), square(16, 16)])],
                         ids=lambda shape: shape.geom_type)
def test_points_lines_and_cells_of_several_parts_are_errors(shape):
    with pytest.raises(DataError, match="cells c1 are no single polygons"):
        cells_of(square(0, 0), shape)


def test_a_multipolygon_of_one_part_is_a_cell():
    (cell,), _ = cells_of(MultiPolygon([square(0, 16)]))
    assert cell.window == Window(0, 16, 16, 16)


def test_a_size_may_be_off_by_half_a_pixel_or_by_two_percent_of_a_reprojection():
    found, _ = cells_of(square(0, 0, 100), square(0, 0, 100.4), square(0, 0, 99, 100), square(0, 0, 101.9), square(0, 0, 103), size=100)
    assert [cell.id for cell in vector.wrong_sizes(found, 100, other_crs=False)] == ["c2", "c3", "c4"]
    assert [cell.id for cell in vector.wrong_sizes(found, 100, other_crs=True)] == ["c4"]


# ---------------------------------------------------------------- ids


@pytest.mark.parametrize("columns, wanted", [
    ({"id": [7, 8], "fid": [1, 2], "patch_id": ["a", "b"]}, ["7", "8"]),
    ({"fid": [1, 2], "patch_id": ["a", "b"]}, ["1", "2"]),
    ({"patch_id": ["a", "b"], "fid": [1, 1]}, ["a", "b"]),
    ({"ID": [3.0, 4.0]}, ["3", "4"]),
    ({"id": ["x", "x"], "name": ["a", "b"]}, ["0", "1"]),  # other columns are not asked
    ({"id": ["a/b", "c"]}, ["0", "1"]),
    ({"id": [None, "c"]}, ["0", "1"]),
    ({"id": [1.5, 2.0]}, ["1.5", "2"]),
])
def test_auto_ids_are_the_first_fit_column_or_the_row(columns, wanted):
    assert vector.cell_ids(frame_of([square(0, 0), square(16, 0)], **columns), "AUTO", list) == (wanted, [])


@pytest.mark.parametrize("column, text", [("nowhere", "no such column; it has good, twice, path, gap"), ("path", "'../a'"), ("gap", "''")])
def test_a_named_id_column_must_be_there_and_fit_for_a_file_name(column, text):
    frame = frame_of([square(0, 0), square(16, 0)], good=["a-1", "b_2"], twice=["x", "x"], path=["../a", "b"], gap=[None, "b"])
    assert vector.cell_ids(frame, "good") == (["a-1", "b_2"], []) and vector.cell_ids(frame, "twice") == (["x", "x"], ["x"])
    with pytest.raises(SetupError, match=f"--id_column {column}: .*{text}"):
        vector.cell_ids(frame, column)
