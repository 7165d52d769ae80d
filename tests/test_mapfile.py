"""The GeoTIFF at the end: whole, in its place, with colours, names and overviews; and the counts that go with it."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from eoseg import plots, raster
from eoseg.errors import SetupError
from eoseg.blending import Finished
from eoseg.config import PredictionConfig
from eoseg.mapfile import BINS, ONE, MapFile, layers_of
from eoseg.vrt import vrt_of

UTM = Affine(10, 0, 500000, 0, -10, 4800000)
PLACES = {
    "utm": (CRS.from_epsg(32630), UTM),
    "rotated": (CRS.from_epsg(32630), Affine(10, 3, 500000, 2, -10, 4800000)),
    "south up": (CRS.from_epsg(32630), Affine(10, 0, 500000, 0, 10, 4800000)),
    "degrees": (CRS.from_epsg(4326), Affine(1 / 3600, 0, 11.00013, 0, -1 / 3600, 48.1)),
    "axes north first": (CRS.from_epsg(2180), Affine(0.1, 0, 500000.07, 0, -0.1, 300000.03)),
    "heights too": (CRS.from_user_input("EPSG:32630+5773"), UTM),
    "no CRS": (None, UTM),
    "no place": (None, Affine.identity()),
    "a plan": (CRS.from_wkt('LOCAL_CS["plan",UNIT["metre",1]]'), UTM),
}


def finished(classes, sure, valid, count, nodata=255):
    """Rows as blending hands them on."""
    counts = np.stack([((classes == number) & valid).sum(1) for number in range(count)], 1)
    histogram = np.histogram(np.minimum(sure[valid], 1), BINS, (0, 1))[0]
    layers = {"classes": np.where(valid, classes, nodata)[None], "confidence": np.where(valid, sure, np.nan)[None]}
    return Finished(layers, counts, histogram, round(float(sure[valid].sum(dtype=float)) * ONE), True)


def made(folder, classes, sure=None, valid=None, names=("a", "b", "c"), place="utm", nodata=255, rows=7, name="map.tif"):
    """A finished MapFile of `classes` (H, W), written `rows` at a time."""
    look = dict(zip(("height", "width", "crs", "transform"), (*classes.shape, *PLACES[place])))
    options = PredictionConfig(output_nodata=nodata, save_confidence=sure is not None)
    layers = [layer._replace(path=folder / "sure.tif") if layer.kind == "confidence" else layer for layer in layers_of(folder / name, names, names, plots.colours(names), options)]
    sure = np.full(classes.shape, 0.5, "float32") if sure is None else sure
    valid = np.ones(classes.shape, bool) if valid is None else valid
    canvas = MapFile(folder / name, look, list(names), layers, {"patch_size": 64})
    for row in range(0, len(classes), rows):
        canvas.write(0, row, finished(*(part[row : row + rows] for part in (classes, sure, valid)), len(names), nodata))
    assert canvas.strip == canvas.strips == 1  # all rows are there
    canvas.finish()
    canvas.discard()
    return canvas


def painted(height=60, width=50, classes=3):
    return np.random.default_rng(0).integers(0, classes, (height, width))


@pytest.mark.parametrize("place", PLACES)
def test_the_map_lies_where_the_scene_lay(tmp_path, place):
    canvas = made(tmp_path, painted(), painted().astype("float32"), place=place)
    crs, transform = PLACES[place]
    for name in ("map.tif", "sure.tif"):
        with rasterio.open(tmp_path / name) as src:
            assert src.crs == crs and src.transform.almost_equals(transform, 1e-9) and src.shape == (60, 50) and src.count == 1
            assert (src.read(1) == painted()).all()
    known = place not in ("no CRS", "no place", "a plan")
    assert (canvas.summary()["classes"]["a"]["hectares"] is not None) == known


def test_the_map_tells_its_classes_and_colours(tmp_path):
    names = ["water & <ice>", "Wald, öffentlich", "built \"up\""]
    made(tmp_path, painted(), names=names)
    with rasterio.open(tmp_path / "map.tif") as src:
        assert (src.dtypes[0], src.nodata, src.descriptions) == ("uint8", 255, ("class",))
        assert [src.tags()[f"CLASS_{i}"] for i in range(3)] == names
        assert [src.colormap(1)[i] for i in range(3)] == [(*colour, 255) for colour in plots.colours(names)]
        assert src.colorinterp[0].name == "palette"
    tree = ElementTree.parse(tmp_path / "map.tif.aux.xml")
    assert [node.text for node in tree.iter("Category")] == names


def test_the_map_is_a_small_cog_with_overviews(tmp_path):
    classes = np.zeros((1100, 1300), int)
    classes[:, 700:] = 2
    sure = np.linspace(0, 1, classes.size, dtype="float32").reshape(classes.shape)
    made(tmp_path, classes, sure, rows=500)
    for name in ("map.tif", "sure.tif"):
        with rasterio.open(tmp_path / name) as src:
            assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and src.block_shapes == [(512, 512)]
            assert src.overviews(1) == [2, 4] and src.compression.name == "deflate"
    with rasterio.open(tmp_path / "sure.tif", overview_level=0) as src:
        assert src.read(1)[0, 0] == pytest.approx(sure[:2, :2].mean(), rel=1e-5)
    assert (tmp_path / "map.tif").stat().st_size < 20_000


def test_overviews_show_the_commonest_class_never_one_between(tmp_path):
    common = painted(300, 300, 9)
    classes = np.kron(common, np.ones((2, 2), int))
    classes[::2, 1::2] = (common + 1 + painted(300, 300, 3)) % 9
    classes[1::2, ::2] = (common + 5 + painted(300, 300, 3)) % 9
    made(tmp_path, classes, names=list("abcdefghi"))
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as src:
        assert (src.read(1) == common).all()


def test_confidence_is_float32_and_nan_where_nothing_is_known(tmp_path):
    valid = np.ones((60, 50), bool)
    valid[3:9, 40:] = False
    sure = np.random.default_rng(1).random((60, 50), dtype="float32")
    made(tmp_path, painted(), sure, valid)
    with rasterio.open(tmp_path / "sure.tif") as src:
        assert src.dtypes[0] == "float32" and np.isnan(src.nodata) and src.descriptions == ("confidence",)
        assert np.array_equal(src.read(1), np.where(valid, sure, np.nan), equal_nan=True)
        assert (src.read_masks(1) > 0).sum() == valid.sum()
        assert "CLASS_0" not in src.tags() and src.colorinterp[0].name == "gray"


def test_the_summary_counts_what_the_map_holds(tmp_path):
    classes, valid = painted(), np.random.default_rng(2).random((60, 50)) > 0.3
    sure = np.random.default_rng(3).random((60, 50), dtype="float32")
    sure[0, :3] = 1
    found = made(tmp_path, classes, sure, valid, names=("a", "b", "c", "never")).summary()
    assert (found["valid_pixels"], found["total_pixels"]) == (valid.sum(), 3000)
    counts = [(classes[valid] == number).sum() for number in range(4)]
    assert [part["pixels"] for part in found["classes"].values()] == counts and counts[3] == 0
    assert [part["hectares"] for part in found["classes"].values()] == pytest.approx([count * 0.01 for count in counts])
    assert sum(part["share"] for part in found["classes"].values()) == pytest.approx(1)
    seen = sure[valid].astype(float)
    assert found["confidence"]["mean"] == pytest.approx(seen.mean(), abs=1e-6)
    assert [found["confidence"][key] for key in ("p5", "p50")] == pytest.approx(np.percentile(seen, [5, 50]), abs=2e-3)


def test_hectares_in_degrees_grow_towards_the_equator(tmp_path):
    classes = np.repeat([0, 1], 30)[:, None].repeat(50, 1)  # upper and lower half alike in pixels
    look = {"height": 60, "width": 50, "crs": CRS.from_epsg(4326), "transform": Affine(1, 0, 0, 0, -1, 60)}
    canvas = MapFile(tmp_path / "map.tif", look, ["north", "south"], layers_of(tmp_path / "map.tif", ["north", "south"], ["north", "south"], [], PredictionConfig()), {})
    canvas.write(0, 0, finished(classes, np.ones((60, 50), "float32"), np.ones((60, 50), bool), 2))
    parts = canvas.summary()["classes"]
    zone = lambda low, high: 6371007.2**2 * np.radians(50) * (np.sin(np.radians(high)) - np.sin(np.radians(low))) / 1e4  # of a sphere of Earth's area
    assert parts["north"]["hectares"] == pytest.approx(zone(30, 60), rel=5e-3)
    assert parts["south"]["hectares"] == pytest.approx(zone(0, 30), rel=5e-3)


def test_a_map_that_was_not_written_whole_never_gets_its_name(tmp_path, monkeypatch):
    copy = raster.rasterio.shutil.copy

    def torn(source, part, **options):
        copy(source, part, **options)
        part.write_bytes(part.read_bytes()[:-300])

    monkeypatch.setattr(raster.rasterio.shutil, "copy", torn)
    with pytest.raises(SetupError, match="map.tif: could not be written"):
        made(tmp_path, painted(600, 600))
    assert not list(tmp_path.glob("map*"))


def test_the_notes_of_an_older_map_do_not_stay_on_a_new_one(tmp_path):
    (tmp_path / "sure.tif.aux.xml").write_text('<PAMDataset><PAMRasterBand band="1"><NoDataValue>0.5</NoDataValue></PAMRasterBand></PAMDataset>')
    made(tmp_path, painted(), painted().astype("float32"))
    with rasterio.open(tmp_path / "sure.tif") as src:
        assert np.isnan(src.nodata)


@pytest.mark.parametrize("name", ["a & b.tif", "mit Leerzeichen äöü.tif", "it's 100%.tif", "x" * 200 + ".tif"])
def test_any_file_name_will_do(tmp_path, name):
    made(tmp_path, painted(), name=name)
    with rasterio.open(tmp_path / name) as src:
        assert (src.read(1) == painted()).all() and src.tags()["CLASS_0"] == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.aux.xml"]


def test_a_map_of_one_pixel_and_of_one_row(tmp_path):
    for shape in ((1, 1), (1, 700), (700, 1)):
        made(tmp_path, painted(*shape))
        assert (raster.thumbnail(tmp_path / "map.tif")[0][0] == painted(*shape)).all()


def test_vrt_text_is_whole_xml_whatever_the_names(tmp_path):
    look = {"height": 2, "width": 3, "dtype": "uint16", "crs": None, "transform": UTM, "nodata": 300, "bands": ["<&>"], "colours": [(1, 2, 3)], "names": ["<&>"]}
    tree = ElementTree.fromstring(vrt_of(tmp_path / "a&b.raw", look))
    assert tree.find(".//Category").text == "<&>" and tree.find(".//SourceFilename").text == "a&b.raw"
    assert [float(part) for part in tree.find("GeoTransform").text.split(",")] == list(UTM.to_gdal()) and tree.find(".//LineOffset").text == "6"


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("count", [2, 9, 10, 60, 255, 300])
def test_every_class_has_a_colour_of_its_own(count):
    chosen = plots.colours([f"class_{i}" for i in range(count)])
    assert len(set(chosen)) == count and all(0 <= part <= 255 for colour in chosen for part in colour)
    assert plots.colours([f"class_{i}" for i in range(count)]) == chosen


def test_usual_names_get_the_colours_readers_expect():
    water, tree, other, lake = plots.colours(["Water", "tree", "quarry", "lake"])
    assert water[2] == max(water) and tree[1] == max(tree) and len({water, tree, other, lake}) == 4


def test_painting_leaves_white_what_has_no_colour():
    picture = plots.painted(np.array([[0, 1, 2, 255, 400]]), [(1, 2, 3), (4, 5, 6)])
    assert picture.tolist() == [[[1, 2, 3], [4, 5, 6], [255] * 3, [255] * 3, [255] * 3]]


def test_bands_are_shown_red_green_blue_whatever_their_order():
    assert plots.rgb_order(["Blue", "Green", "Red", "NIR"]) == [2, 1, 0]
    assert plots.rgb_order(["a", "b", "c", "d"]) == [0, 1, 2] and plots.rgb_order(["a", "b"]) == [0]


@pytest.mark.parametrize("shape", [(3000, 900), (40, 2500), (50, 60)])
def test_a_thumbnail_is_at_most_1200_long_and_tells_its_step(tmp_path, shape):
    classes = np.zeros(shape, int)
    classes[:, shape[1] // 2 :] = 1
    made(tmp_path, classes, valid=np.indices(shape)[0] >= shape[0] // 2)
    small, step = raster.thumbnail(tmp_path / "map.tif")
    assert max(small.shape) <= 1200 and step == max(1, max(shape) / 1200)
    assert small.shape[1:] == tuple(max(1, round(side / step)) for side in shape)
    assert small.mask[0, 0].all() and not small.mask[0, -1].any() and small[0, -1, 0] == 0 and small[0, -1, -1] == 1


@pytest.mark.parametrize("metres, wanted", [(10, "2 km"), (0.07, "10 m"), (30, "5 km"), (1e-5, "0.01 m")])
def test_the_scale_bar_is_a_round_length_of_its_true_size(metres, wanted):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plots.add_scale(axes, metres, (800, 1000))
    assert axes.texts[0].get_text() == wanted
    start, end = axes.lines[0].get_xdata()
    number, unit = wanted.split()
    assert (end - start) * metres == pytest.approx(float(number) * {"km": 1000, "m": 1}[unit])
