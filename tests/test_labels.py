import numpy as np
import pyproj
import pytest
import rasterio
from conftest import coded, write_raster
from cutouts import PLACE, UTM30, UTM31, square, write_vector
from rasterio.transform import Affine, from_bounds, from_origin
from shapely import LineString, Point, Polygon

from eoseg import labels, raster
from eoseg.coding import Coding, parse_map
from eoseg.config import ExtractionConfig
from eoseg.errors import DataError, ReadError, SetupError
from eoseg.tiles import Window

H, W = 24, 36
WHOLE = Window(0, 0, H, W)
BLOCKS = (np.arange(H)[:, None] // 4 * 9 + np.arange(W) // 4 + 1).astype("uint8")  # classes 1 to 54 in squares of 4 pixels


@pytest.fixture
def look(tmp_path):
    """Read the whole label as classes of a scene of 24 x 36 pixels; what was said goes to `look.said`."""

    def read(path, window=WHOLE, image=None, **options):
        image = image or write_raster(tmp_path / "scene.tif", coded(H, W, 1))
        read.said = []
        options = ExtractionConfig(**options)
        with raster.Scene(image) as scene:
            found = labels.open_labels(path, scene, Coding(parse_map(options.label_map), options.label_nodata), options, read.said.append)
            try:
                return found.read(window)
            finally:
                found.close()

    return read


def finer(codes, times=2):
    return codes.repeat(times, 0).repeat(times, 1)


# ---------------------------------------------------------------- rasters


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
def test_a_raster_on_the_images_grid_is_taken_as_it_is(tmp_path, look, dtype):
    got = look(write_raster(tmp_path / "l.tif", BLOCKS.astype(dtype)), Window(3, 5, 10, 20))
    assert got.dtype == np.uint8 and (got == BLOCKS[3:13, 5:25]).all() and not look.said


@pytest.mark.parametrize("times", [2, 5])
def test_finer_and_coarser_labels_are_aligned_by_the_nearest_pixel(tmp_path, look, times):
    fine = write_raster(tmp_path / "fine.tif", finer(BLOCKS, times), transform=from_origin(500000, 4800000, 10 / times, 10 / times))
    assert (look(fine) == BLOCKS).all() and "another grid" in look.said[0]
    coarse = write_raster(tmp_path / "coarse.tif", BLOCKS[::4, ::4], transform=from_origin(500000, 4800000, 40, 40))
    assert (look(coarse) == BLOCKS).all()


@pytest.mark.parametrize("crs", [UTM31, "EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize("window", [WHOLE, Window(7, 9, 16, 16)])
def test_labels_in_another_crs_lie_on_the_right_pixels(tmp_path, look, crs, window):
    forth = pyproj.Transformer.from_crs(UTM30, crs, always_xy=True)
    left, bottom, right, top = forth.transform_bounds(500000, 4799760, 500360, 4800000)
    height, width = 10 * H, 10 * W
    place = from_bounds(left, bottom, right, top, width, height)
    rows, cols = np.indices((height, width)) + 0.5
    x, y = pyproj.Transformer.from_crs(crs, UTM30, always_xy=True).transform(*(place * (cols, rows)))
    row, col = np.floor((4800000 - y) / 10).astype(int), np.floor((x - 500000) / 10).astype(int)
    inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)
    codes = np.where(inside, BLOCKS[row.clip(0, H - 1), col.clip(0, W - 1)], 77).astype("uint8")  # 77 must not appear
    got = look(write_raster(tmp_path / "l.tif", codes, crs=crs, transform=place), window)
    assert (got == BLOCKS[window.row : window.row + window.height, window.col : window.col + window.width]).all()


def test_a_shift_of_half_a_pixel_moves_every_label_alike(tmp_path, look):
    got = look(write_raster(tmp_path / "l.tif", BLOCKS, transform=from_origin(500005, 4799995, 10, 10)))
    candidates = [(dr, dc) for dr in (0, 1) for dc in (0, 1) if (got[1:, 1:] == BLOCKS[1 - dr : H - dr, 1 - dc : W - dc]).all()]
    assert candidates


@pytest.mark.parametrize("part", [0.4, -0.4])
def test_a_smaller_shift_moves_no_label(tmp_path, look, part):
    got = look(write_raster(tmp_path / "l.tif", BLOCKS, transform=from_origin(500000 + part * 10, 4800000, 10, 10)))
    assert (got[:, 1:-1] == BLOCKS[:, 1:-1]).all()


def test_beyond_a_smaller_label_raster_nothing_is_labelled(tmp_path, look):
    got = look(write_raster(tmp_path / "l.tif", BLOCKS[4:10, 8:20], transform=from_origin(500080, 4799960, 10, 10)))
    wanted = np.full((H, W), 255)
    wanted[4:10, 8:20] = BLOCKS[4:10, 8:20]
    assert (got == wanted).all()


@pytest.mark.parametrize("place", [Affine(10, 0, 500000, 0, 10, 4799760), Affine.translation(500000, 4800000) * Affine.rotation(30) * Affine.scale(10, -10)],
                         ids=["south up", "turned"])
def test_labels_find_scenes_that_do_not_lie_north_up(tmp_path, look, place):
    image = write_raster(tmp_path / "image.tif", coded(H, W, 1), transform=place)
    assert (look(write_raster(tmp_path / "l.tif", finer(BLOCKS), transform=place * Affine.scale(0.5)), image=image) == BLOCKS).all()
    drawn = look(write_vector(tmp_path / "p.gpkg", [square(3, 5, 4, 6, place)]), image=image, label_burn=9)
    wanted = np.zeros((H, W))
    wanted[3:7, 5:11] = 9
    assert (drawn == wanted).all()


@pytest.mark.parametrize("same_grid", [True, False])
@pytest.mark.parametrize("tag", [None, 7])
def test_all_256_codes_pass_unchanged(tmp_path, look, same_grid, tag):
    codes = (np.arange(H * W) % 256).reshape(H, W).astype("uint8")
    path = write_raster(tmp_path / "l.tif", codes if same_grid else finer(codes), tag, transform=PLACE if same_grid else PLACE * Affine.scale(0.5))
    got = look(path, label_map=[f"{code}={code // 2}" for code in range(256)], label_nodata="none")
    assert (got == codes // 2).all()


@pytest.mark.parametrize("same_grid", [True, False])
def test_a_tag_among_the_classes_is_refused_and_both_remedies_work(tmp_path, look, same_grid):
    codes = BLOCKS % 3
    path = write_raster(tmp_path / "l.tif", codes if same_grid else finer(codes), 0, transform=PLACE if same_grid else PLACE * Affine.scale(0.5))
    for mapping in (None, ["0=0", "1=1", "2=2"]):
        with pytest.raises(DataError, match=r"l.tif: its nodata tag 0 lies among .*--label_nodata none .*--label_nodata 0 "):
            look(path, label_map=mapping)
    assert (look(path, label_nodata="none") == codes).all()
    assert (look(path, label_nodata="0") == np.where(codes == 0, 255, codes)).all()


@pytest.mark.parametrize("same_grid", [True, False])
def test_a_tag_that_is_no_class_is_unlabelled(tmp_path, look, same_grid):
    codes = np.where(BLOCKS % 3 == 0, -9999, (BLOCKS % 3).astype("int16")).astype("int16")
    path = write_raster(tmp_path / "l.tif", codes if same_grid else finer(codes), -9999, transform=PLACE if same_grid else PLACE * Affine.scale(0.5))
    assert (look(path) == np.where(codes < 0, 255, codes)).all()


@pytest.mark.parametrize("same_grid", [True, False])
def test_pixels_a_label_masks_out_are_unlabelled(tmp_path, look, same_grid):
    path = write_raster(tmp_path / "l.tif", BLOCKS if same_grid else finer(BLOCKS), transform=PLACE if same_grid else PLACE * Affine.scale(0.5))
    mask = np.ones((H, W), bool)
    mask[:5] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dst:
        dst.write_mask(mask if same_grid else finer(mask))
    assert (look(path) == np.where(mask, BLOCKS, 255)).all()


def test_codes_no_map_knows_are_refused_with_file_and_values(tmp_path, look):
    path = write_raster(tmp_path / "l.tif", BLOCKS % 4 + 40)
    with pytest.raises(DataError, match=r"l.tif: holds label values 42, 43, which are no classes .*--label_map 42=ignore"):
        look(path, label_map=["40=0", "41=1"])
    got = look(path, label_map=["40=0", "41=1", "42=ignore", "43=1"])
    assert (got == np.choose(BLOCKS % 4, [0, 1, 255, 1])).all()
    with pytest.raises(DataError, match=r"half.tif: holds label values 1.5"):
        look(write_raster(tmp_path / "half.tif", BLOCKS % 3 + np.float32(0.5) * (BLOCKS % 3 == 1)))
    with pytest.raises(DataError, match=r"low.tif: holds label values -1,"):
        look(write_raster(tmp_path / "low.tif", (BLOCKS % 3).astype("int16") - 1))


def test_nan_in_a_float_label_is_unlabelled(tmp_path, look):
    codes = BLOCKS.astype("float32")
    codes[2, 3] = np.nan
    got = look(write_raster(tmp_path / "l.tif", codes))
    assert got[2, 3] == 255 and (got != 255).sum() == H * W - 1


def test_label_rasters_of_several_bands_are_refused(tmp_path, look):
    with pytest.raises(DataError, match="l.tif: has 2 bands; a label is one band"):
        look(write_raster(tmp_path / "l.tif", np.stack([BLOCKS, BLOCKS])))


@pytest.mark.parametrize("image, label", [({}, {"crs": None}), ({"crs": None}, {}), ({"crs": None}, {"crs": None, "transform": from_origin(500050, 4800000, 10, 10)}),
                                          ({"crs": None}, {"crs": None, "rows": H - 1})], ids=["label", "image", "moved", "smaller"])
def test_without_a_crs_only_the_very_same_grid_is_believed(tmp_path, look, image, label):
    label = dict(label)
    codes = BLOCKS[: label.pop("rows", H)]
    image = write_raster(tmp_path / "image.tif", coded(H, W, 1), **image)
    with pytest.raises(DataError, match="l.tif: lies on another grid .*no CRS"):
        look(write_raster(tmp_path / "l.tif", codes, **label), image=image)


def test_plain_pictures_without_any_place_go_together(tmp_path, look):
    image = write_raster(tmp_path / "image.tif", coded(H, W, 1), crs=None, transform=Affine.identity())
    assert (look(write_raster(tmp_path / "l.tif", BLOCKS, crs=None, transform=Affine.identity()), image=image) == BLOCKS).all()


def test_a_crs_from_which_nothing_leads_to_the_images_is_an_error(tmp_path, look):
    plan = rasterio.crs.CRS.from_wkt('LOCAL_CS["plan of a building",UNIT["metre",1]]')
    with pytest.raises(DataError, match="l.tif: nothing leads"):
        look(write_raster(tmp_path / "l.tif", BLOCKS, crs=plan))


def test_a_truncated_label_names_itself(tmp_path, look):
    path = write_raster(tmp_path / "l.tif", BLOCKS, blockysize=1)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ReadError, match="l.tif: cannot be read"):
        look(path)


# ---------------------------------------------------------------- polygons


def test_a_pixel_belongs_to_a_polygon_when_its_centre_does(tmp_path, look):
    path = write_vector(tmp_path / "p.gpkg", [square(2.4, 3.6, 4, 5)])  # centres at .5: rows 2 to 5, columns 4 to 8
    got = look(path, label_burn=1)
    assert got.sum() == 20 and (got[2:6, 4:9] == 1).all()


def test_names_in_another_crs_become_classes_and_the_rest_is_unlabelled(tmp_path, look):
    path = write_vector(tmp_path / "p.geojson", [square(0, 0, 4), square(8, 10, 4), square(16, 20, 4), square(20, 30, 4)], to="EPSG:4326",
                        kind=["water", "bare soil", "cloud", None])
    got = look(path, label_field="kind", label_map=["water=0", "bare soil=2", "cloud=ignore"])
    wanted = np.full((H, W), 255)
    wanted[:4, :4], wanted[8:12, 10:14] = 0, 2
    assert (got == wanted).all()
    part = look(path, Window(9, 11, 5, 6), label_field="kind", label_map=["water=0", "bare soil=2", "cloud=ignore"])
    assert (part == wanted[9:14, 11:17]).all()


@pytest.mark.parametrize("options, outside", [({"label_field": "n"}, 255), ({"label_burn": 3}, 0), ({"label_field": "n", "label_outside": "0"}, 0),
                                              ({"label_burn": 3, "label_outside": "ignore"}, 255), ({"label_burn": 3, "label_outside": "7"}, 7)], ids=str)
def test_what_lies_outside_the_polygons_is_as_the_options_say(tmp_path, look, options, outside):
    path = write_vector(tmp_path / "p.gpkg", [square(4, 4, 4)], n=[3])
    for window in (WHOLE, Window(12, 20, 8, 8)):  # the second meets no polygon
        got = look(path, window, **options)
        assert (got == outside).sum() == got.size - 16 * (window == WHOLE)
    assert (look(path, **options)[4:8, 4:8] == 3).all()


def test_the_later_polygon_stands_and_holes_stay_open(tmp_path, look):
    ring = square(0, 0, 12).difference(square(4, 4, 4))
    got = look(write_vector(tmp_path / "p.gpkg", [ring, square(2, 8, 4), square(0, 0, 2)], n=[1, 2, 255]), label_field="n")
    wanted = np.full((H, W), 255)
    wanted[:12, :12], wanted[4:8, 4:8], wanted[2:6, 8:12], wanted[:2, :2] = 1, 255, 2, 255
    assert (got == wanted).all()


def test_crossing_spiked_and_empty_shapes_draw_what_they_enclose(tmp_path, look):
    x, y = 500000, 4800000
    bow = Polygon([(x, y), (x + 160, y - 160), (x + 160, y), (x, y - 160)])
    spike = Polygon([(x + 200, y), (x + 240, y), (x + 240, y - 40), (x + 350, y - 200), (x + 240, y - 40), (x + 200, y - 40)])
    flat = Polygon([(x, y - 200), (x + 300, y - 200), (x, y - 200)])
    got = look(write_vector(tmp_path / "p.gpkg", [bow, None, spike, Polygon(), flat]), label_burn=1)
    row, col = np.indices((16, 16)) + 0.5
    to_the_sides, on_a_line = abs(col - 8) > abs(row - 8), abs(col - 8) == abs(row - 8)
    assert (got[:16, :16] == to_the_sides)[~on_a_line].all()
    assert (got[:4, 20:24] == 1).all() and got[:, 20:].sum() == 16 and not got[18:].any()


@pytest.mark.parametrize("shapes, text", [([Point(500050, 4799950)], "Point"), ([square(0, 0), LineString([(500000, 4800000), (500100, 4799900)])], "LineString"),
                                          ([None], "no polygon")], ids=["points", "lines", "nothing"])
def test_points_and_lines_are_no_labels(tmp_path, look, shapes, text):
    with pytest.raises(DataError, match=f"p.geojson: holds {text}"):
        look(write_vector(tmp_path / "p.geojson", shapes, to="EPSG:4326"), label_burn=1)


@pytest.mark.parametrize("values, options, text", [
    (["a", "b b"], {"label_field": "n"}, "--label_field n: holds names.*--label_map a=0 'b b=1'"),
    ([1, 300], {"label_field": "n"}, "p.gpkg: n holds 300"),
    ([1, -2], {"label_field": "n"}, "p.gpkg: n holds -2"),
    (["a", "b"], {"label_field": "n", "label_map": ["a=0"]}, "p.gpkg: n holds b, .*b=ignore"),
    ([1, 2], {"label_field": "m"}, "--label_field m: .*p.gpkg has no such attribute; it has n"),
    ([1, 2], {}, "--label .*p.gpkg: polygons need --label_field .*n.*--label_burn"),
    ([1, 2], {"label_burn": 1, "label_outside": "water"}, "--label_outside water"),
    ([1, 2], {"label_burn": 1, "label_outside": "255"}, "--label_outside 255"),
    ([1, 2], {"label_burn": 1, "label_nodata": "0"}, "--label_nodata: .*p.gpkg holds polygons"),
])
def test_polygons_whose_classes_are_unclear_are_refused(tmp_path, look, values, options, text):
    with pytest.raises(SetupError, match=text):
        look(write_vector(tmp_path / "p.gpkg", [square(0, 0, 4), square(8, 8, 4)], n=values), **options)


@pytest.mark.parametrize("options", [{"label_field": "n"}, {"label_burn": 1}, {"label_outside": "0"}], ids=str)
def test_options_of_polygons_are_refused_for_a_raster(tmp_path, look, options):
    with pytest.raises(SetupError, match="l.tif is a raster"):
        look(write_raster(tmp_path / "l.tif", BLOCKS), **options)


@pytest.mark.parametrize("kind", ["raster", "burnt"])
def test_labels_that_lie_beside_the_image_are_refused(tmp_path, look, kind):
    if kind == "raster":
        path, options = write_raster(tmp_path / "label.tif", BLOCKS, transform=from_origin(700000, 4800000, 10, 10)), {}
    else:
        path, options = write_vector(tmp_path / "label.gpkg", [square(5000, 5000, 9)]), {"label_burn": 1}
    with pytest.raises(DataError, match="lies beside .*scene.tif"):
        look(path, **options)
