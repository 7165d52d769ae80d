"""Rasters of every kind and in every state of damage, as scenes to map and images to cut."""

import struct

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import write_raster
from cutouts import assert_exact, rows_of
from faults import assert_mapped, assert_refused, assert_worked, brightest
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from test_gdallog import tag

from eoseg import raster
from eoseg.errors import SetupError
from eoseg.tiles import Window

HEIGHT, WIDTH = 32, 48
BEGUN = r"/\.map\.tif\.\w+\.part$"  # what --resume would go on with
PIXELS = np.random.default_rng(0).integers(1, 98, (3, HEIGHT, WIDTH))
PIXELS[PIXELS % 3 == 0] += 104  # either well below 100 or well above
BYTES, GREY, FLOATS = PIXELS.astype("uint8"), PIXELS[:1].astype("uint8"), PIXELS.astype("float32")
SHOWN = np.random.default_rng(1).random((HEIGHT, WIDTH)) > 0.3
NOWHERE = np.zeros((HEIGHT, WIDTH), bool)
PLACES = {"turned": Affine.translation(5e5, 48e5) * Affine.rotation(30) * Affine.scale(10, -10), "south-up": Affine(10, 0, 5e5, 0, 10, 48e5),
          "mirrored": Affine(-10, 0, 5e5, 0, -10, 48e5), "not square": Affine(10, 0, 5e5, 0, -25, 48e5), "far away": Affine(10, 0, 1e12, 0, -10, 1e12)}
CORNER = {"EPSG:4326": Affine(0.01, 0, 179.9, 0, -0.01, 10), "EPSG:3413": Affine(10, 0, -240, 0, -10, 160), "EPSG:3031": Affine(10, 0, -240, 0, -10, 160)}


@pytest.fixture
def runs(fate, tmp_path, point_models):
    """runs(scene, bands) maps the scene and cuts it: the fates of both."""
    def call(scene, bands=1, label=None):
        label = label or write_raster(tmp_path / "label.tif", np.ones((HEIGHT, WIDTH), "uint8"), **place_of(scene))
        net = brightest(tmp_path, bands)
        return (fate("Predict_large_image_v2", "--model", net, "--input", scene, "--output", tmp_path / "out" / "map.tif", "--patch_size", 64, "--overlap", 16, "--device", "cpu"),
                fate("Patch_extraction_v2", "single", "--image", scene, "--label", label, "--output", tmp_path / "cut", "--patch_size", 16))

    return call


def place_of(scene):
    """Where the label of a scene has to lie; anywhere when nobody knows."""
    try:
        with rasterio.open(scene) as src:
            return {"crs": src.crs, "transform": src.transform}
    except rasterio.RasterioIOError:
        return {}


def assert_right(fates, folder, pixels, valid=True):
    """The map and every patch are right, and pixels that are not valid are nodata there."""
    for one in fates:
        assert_worked(one)
    assert_mapped(folder / "out" / "map.tif", pixels, valid)
    rows, valid = rows_of(folder / "cut"), np.broadcast_to(valid, pixels.shape[1:])
    assert len(rows) == sum(part.any() for band in np.split(valid, 2) for part in np.split(band, 3, 1))
    for row in rows.values():
        where = np.s_[int(row["row"]) : int(row["row"]) + 16, int(row["col"]) : int(row["col"]) + 16]
        with rasterio.open(folder / "cut" / row["split"] / "labels" / row["patch"]) as src:
            assert (src.read(1) == np.where(valid[where], 1, 255)).all()
        got, _, counts = raster.read_patch(folder / "cut" / row["split"] / "images" / row["patch"])
        assert (counts == valid[where]).all() and (got[:, valid[where]] == pixels[(..., *where)][:, valid[where]]).all()


# ---------------------------------------------------------------- kinds that must work


def plain(pixels, valid=True, **options):
    return lambda path: (write_raster(path, pixels, **options), pixels, valid)


def edited(pixels, change, valid=True, inside=True, **options):
    """A raster that `change` is done to after it was written."""
    def make(path):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(write_raster(path, pixels, **options), "r+") as dst:
            change(dst)
        return path, pixels, valid

    return make


def lossy(**options):
    def make(path):
        with rasterio.open(write_raster(path, BYTES, **options)) as src:
            return path, src.read(), True

    return make


def holed(value, **options):
    """Floats of which one band holds `value` in one place: no number, so nothing counts there."""
    pixels = FLOATS.copy()
    pixels[1, 3, 4] = value
    return plain(pixels, np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) != 3 * WIDTH + 4, **options)


def alpha(bands):
    return lambda path: (write_raster(path, np.concatenate([BYTES[:bands], SHOWN[None] * np.uint8(255)]), alpha="yes"), BYTES[:bands], SHOWN)


def in_one_band(path):
    pixels = BYTES.copy()
    pixels[1, :, :20] = 0
    return write_raster(path, pixels, nodata=0), pixels, True


def set_scales(scale, offset):
    def change(dst):
        dst.scales, dst.offsets = (scale,) * 3, (offset,) * 3

    return change


def sparse(path):
    with rasterio.open(path, "w", driver="GTiff", width=WIDTH, height=HEIGHT, count=1, dtype="uint8", nodata=7, sparse_ok=True, tiled=True, blockxsize=16, blockysize=16) as dst:
        dst.write(np.full((1, 16, 16), 200, "uint8"), window=((0, 16), (0, 16)))
    pixels = np.full((1, HEIGHT, WIDTH), 7, "uint8")
    pixels[0, :16, :16] = 200
    return path, pixels, pixels[0] == 200


def beyond(path):
    """float64 in which one pixel is larger than what networks compute with."""
    pixels = PIXELS.astype("float64")
    pixels[0, 3, 4] = -1.7976931348623157e308
    return write_raster(path, pixels), pixels, np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) != 3 * WIDTH + 4


TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
WORKING = {
    **{dtype: plain((PIXELS // (2 if dtype == "int8" else 1)).astype(dtype)) for dtype in ("int8", "int16", "uint16", "uint32", "int32", "int64", "uint64", "float32", "float64")},
    "largest uint64": plain(np.full((1, HEIGHT, WIDTH), 2**64 - 1, "uint64")),
    "float16": plain(FLOATS, nbits=16),
    **{f"{bits} bit": plain((PIXELS % 2**bits).astype("uint8"), nbits=bits) for bits in (1, 4, 7)},
    "12 bit": plain((PIXELS * 15).astype("uint16"), nbits=12),
    "20 bit": plain(PIXELS.astype("uint32"), nbits=20),
    "a row a strip": plain(BYTES, blockysize=1),
    "band by band": plain(BYTES, interleave="band"),
    "pixel by pixel": plain(BYTES, interleave="pixel", **TILED),
    "BigTIFF": plain(BYTES, bigtiff="yes"),
    "big-endian": plain(PIXELS.astype("uint16"), endianness="big"),
    "white is 0": plain(GREY, photometric="miniswhite"),
    "sparse": sparse,
    **{compress: plain(BYTES, compress=compress) for compress in ("lzw", "zstd", "lzma", "packbits", "lerc", "deflate")},
    "WEBP": lossy(compress="webp"),
    "JPEG in YCbCr": lossy(compress="jpeg", photometric="ycbcr", interleave="pixel"),
    "JPEG in tiles": lossy(compress="jpeg", **TILED),
    "nodata": plain(GREY, GREY[0] != 5, nodata=5),
    "nodata in one band": in_one_band,
    "nodata that no pixel can hold": plain(FLOATS, nodata=float("inf")),
    "NaN": holed(np.nan), "Inf": holed(np.inf), "-Inf": holed(-np.inf), "NaN as nodata": holed(np.nan, nodata=np.nan),
    "beyond 32 bits": beyond,
    "a mask inside": edited(BYTES, lambda dst: dst.write_mask(SHOWN), SHOWN),
    "a mask beside": edited(BYTES, lambda dst: dst.write_mask(SHOWN), SHOWN, inside=False),
    "alpha after one band": alpha(1), "alpha after three": alpha(3),
    "scale and offset": edited(BYTES, set_scales(0.1, 7.0)), "scale that is no number": edited(BYTES, set_scales(np.nan, np.nan)),
    "overviews of other pixels": edited(BYTES, lambda dst: dst.build_overviews([2, 4]) or dst.update_tags(ns="rio_overview", resampling="nearest"), **TILED),
    "no CRS": plain(BYTES, crs=None),
    "no geotransform": plain(BYTES, transform=Affine.identity()),
    "neither": plain(BYTES, crs=None, transform=Affine.identity()),
    **{name: plain(BYTES, transform=place) for name, place in PLACES.items()},
    **{f"at the edge of {crs}": plain(BYTES, crs=crs, transform=place) for crs, place in CORNER.items()},
    "a plan without a place": plain(BYTES, crs='LOCAL_CS["plan",UNIT["metre",1]]'),
    "RPC and a geotransform": lambda path: (write_raster(path, BYTES, rpcs=camera()), BYTES, True),
}


def camera():
    one = [1.0] + [0.0] * 19
    return RPC(height_off=0, height_scale=1, lat_off=45, lat_scale=1, line_den_coeff=one, line_num_coeff=one, line_off=0, line_scale=1, long_off=5, long_scale=1,
               samp_den_coeff=one, samp_num_coeff=one, samp_off=0, samp_scale=1, err_bias=0, err_rand=0)


@pytest.mark.parametrize("kind", WORKING)
def test_every_kind_of_raster_is_mapped_and_cut_right(runs, tmp_path, kind):
    path, pixels, valid = WORKING[kind](tmp_path / "s.tif")
    assert_right(runs(path, len(pixels)), tmp_path, pixels, valid)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 48), (32, 1), (5, 7)])
def test_scenes_smaller_than_a_patch_are_mapped_and_cut_padded(runs, tmp_path, height, width):
    path = write_raster(tmp_path / "s.tif", BYTES[:, :height, :width])
    label = write_raster(tmp_path / "label.tif", np.ones((height, width), "uint8"))
    mapped, cut = runs(path, 3, label)
    assert_worked(mapped)
    assert_mapped(tmp_path / "out" / "map.tif", BYTES[:, :height, :width])
    assert_worked(cut)
    row = rows_of(tmp_path / "cut")["0"]
    with rasterio.open(tmp_path / "cut" / row["split"] / "labels" / row["patch"]) as src:
        assert src.shape == (16, 16) and (src.read(1) == 1).sum() == min(height, 16) * min(width, 16)


@pytest.mark.parametrize("pixels, options", [(GREY * 0, {"nodata": 0}), (FLOATS[:1] * np.nan, {}), (np.stack([FLOATS[0], FLOATS[0] * np.nan]), {}), (FLOATS[:1].astype("float64") + 1e300, {})],
                         ids=["nodata", "NaN", "NaN in one band", "beyond 32 bits"])
def test_a_scene_without_a_valid_pixel_gives_an_empty_map_with_a_warning_and_no_patches(runs, tmp_path, pixels, options):
    mapped, cut = runs(write_raster(tmp_path / "s.tif", pixels, **options), len(pixels))
    assert_worked(mapped, "warning: the scene holds no valid pixel; the map is all nodata")
    assert_mapped(tmp_path / "out" / "map.tif", pixels, NOWHERE)
    assert_refused(cut, "s.tif: holds no valid pixel in any of 6 cells", "--input_nodata")


def test_a_colour_table_is_no_measurement_and_said(runs, tmp_path):
    path, *_ = edited(GREY, lambda dst: dst.write_colormap(1, {i: (i, 255 - i, 7, 255) for i in range(256)}))(tmp_path / "s.tif")
    fates = runs(path)
    assert_right(fates, tmp_path, GREY)
    assert_worked(fates[0], "warning: ", "s.tif: its numbers stand for the colours of a table", "gdal_translate -expand rgb")
    with rasterio.open(path) as src:
        assert src.colorinterp == (ColorInterp.palette,)


def test_metres_under_a_crs_in_degrees_are_warned_of_and_have_no_area(runs, tmp_path):
    fates = runs(write_raster(tmp_path / "s.tif", BYTES, crs="EPSG:4326"), 3)
    assert_right(fates, tmp_path, BYTES)
    assert_worked(fates[0], "warning: ", "its CRS is in degrees and its corner lies at 500000 4.8e+06, which is nowhere on Earth", "gdal_edit.py -a_srs", "unknown")


# ---------------------------------------------------------------- kinds that must be refused


def tagged(number, kind, *values):
    """A raster whose tag of numbers holds others."""
    def make(path):
        content = bytearray(write_raster(path, GREY).read_bytes())
        at = int.from_bytes(content[(start := tag(content, number) + 8) : start + 4], "little")
        content[at : at + struct.calcsize(kind)] = struct.pack(kind, *values)
        path.write_bytes(content)

    return make


def with_points(path):
    points = [GroundControlPoint(0, 0, 5, 5), GroundControlPoint(0, 4, 6, 5), GroundControlPoint(4, 0, 5, 4)]
    write_raster(path, GREY, crs="EPSG:4326", transform=Affine.identity(), gcps=points)


def unwritten(path):
    with rasterio.open(path, "w", driver="GTiff", width=65535, height=65535, count=1, dtype="uint8", sparse_ok=True, blockysize=65535):
        pass


def masked_wrongly(content):
    """A raster with something beside it that should be its mask."""
    def make(path):
        edited(GREY, lambda dst: dst.write_mask(SHOWN), inside=False)(path)
        mask = path.with_name("s.tif.msk")
        mask.write_bytes(content(mask.read_bytes()))

    return make


def other_size(path):
    return write_raster(path, np.ones((7, 9), "uint8")).read_bytes()


def pages(path):
    import tifffile

    with tifffile.TiffWriter(path) as tif:
        for band in BYTES:
            tif.write(band)


REFUSED = {
    "complex": (lambda path: write_raster(path, PIXELS.astype("complex64")), "s.tif: complex pixels; convert"),
    "points only": (with_points, "s.tif: is placed by ground control points only; warp it first: gdalwarp"),
    "RPC only": (lambda path: write_raster(path, GREY, crs=None, transform=Affine.identity(), rpcs=camera()), "s.tif: is placed by a camera model (RPC) only; orthorectify it first: gdalwarp -rpc"),
    "65535 x 65535 in 1 kB": (unwritten, "s.tif: claims 65535 x 65535 pixels in"),
    "pages": (pages, "s.tif: holds 3 images, not one image of several bands; take one out: gdal_translate GTIFF_DIR:1:"),
    "pixels of no size": (tagged(33550, "<ddd", 0, 0, 0), "s.tif: is placed by ground control points only"),
    "pixels of size NaN": (tagged(33550, "<ddd", np.nan, np.nan, 0), "s.tif: its geotransform leads nowhere (nan,"),
    "pixels without end": (tagged(33550, "<ddd", 1e300, 1e300, 0), "s.tif: its geotransform leads nowhere"),
    "a corner at NaN": (tagged(33922, "<dddddd", 0, 0, 0, np.nan, 48e5, 0), "s.tif: its geotransform leads nowhere (nan,"),
    "a corner at Inf": (tagged(33922, "<dddddd", 0, 0, 0, np.inf, 48e5, 0), "s.tif: its geotransform leads nowhere (inf,"),
    "sides that fall together": (lambda path: write_raster(path, GREY, transform=Affine(10, 10, 5e5, 10, 10, 48e5)), "s.tif: its geotransform leads nowhere"),
    "pixels as small as nothing": (lambda path: write_raster(path, GREY, transform=Affine(1e-300, 0, 5e5, 0, -1e-300, 48e5)), "s.tif: its geotransform leads nowhere"),
    "an empty mask beside": (masked_wrongly(lambda content: b""), "s.tif.msk: cannot be used as the mask of"),
    "a text as a mask": (masked_wrongly(lambda content: b"hello"), "s.tif.msk: cannot be used as the mask of"),
    "half a mask": (masked_wrongly(lambda content: content[: len(content) // 2]), "s.tif"),
    "a mask that is cut short": (masked_wrongly(lambda content: content[:-5]), "cannot be read"),
    "a mask whose directory is damaged": (masked_wrongly(lambda content: content[:150] + b"\xff" * 20 + content[170:]), "s.tif.msk: cannot be used as the mask of"),
    "another raster as a mask": (lambda path: write_raster(path, GREY) and path.with_name("s.tif.msk").write_bytes(other_size(path.with_name("other.tif"))), "s.tif.msk: cannot be used"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_raster_that_cannot_be_used_is_refused_by_both_scripts(runs, tmp_path, kind):
    make, words = REFUSED[kind]
    make(tmp_path / "s.tif")
    for one in runs(tmp_path / "s.tif"):
        assert_refused(one, words, left=BEGUN)


@pytest.mark.parametrize("bands, taken", [(1, 3), (3, 2), (3, 4)])
def test_another_number_of_bands_is_refused_naming_both(fate, tmp_path, point_models, bands, taken):
    write_raster(tmp_path / "s.tif", BYTES[:bands])
    one = fate("Predict_large_image_v2", "--model", brightest(tmp_path, taken), "--input", tmp_path / "s.tif", "--output", tmp_path / "map.tif")
    assert_refused(one, f"s.tif: has {bands} bands", f"of scenes with {taken} bands", "--bands")


# ---------------------------------------------------------------- damage


def layouts(folder):
    write_raster(folder / "strips.tif", GREY, 0, names=["red"], blockysize=8)
    write_raster(folder / "tiles.tif", BYTES, 0, names=["a", "b", "c"], compress="deflate", **TILED)
    return write_raster(folder / "big.tif", GREY, 0, compress="lzw", bigtiff="yes"), folder / "strips.tif", folder / "tiles.tif"


def look(path):
    with raster.Scene(path) as scene:
        return scene.raw(Window(0, 0, scene.height, scene.width))[0].tobytes(), scene.crs, scene.transform, scene.nodata, scene.names


def test_a_scene_cut_anywhere_is_refused_or_read_right(tmp_path):
    for whole in layouts(tmp_path):
        content, true, refused = whole.read_bytes(), look(whole), 0
        for length in range(0, len(content), 7):
            (tmp_path / "cut.tif").write_bytes(content[:length])
            try:
                assert look(tmp_path / "cut.tif") == true, length
            except SetupError:
                refused += 1
        assert refused > length / 7 - 20


@pytest.mark.parametrize("share", [0.03, 0.4, 0.8, 0.9, 0.999])
@pytest.mark.parametrize("name", ["strips.tif", "tiles.tif", "big.tif"])
def test_a_scene_cut_short_leaves_no_map_and_no_patches(runs, tmp_path, name, share):
    layouts(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / "s.tif").write_bytes(content[: int(share * len(content))])
    for one in runs(tmp_path / "s.tif", 3 if name == "tiles.tif" else 1):
        assert_refused(one, "s.tif: ", left=BEGUN)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["strips.tif", "tiles.tif", "big.tif"])
def test_a_flipped_byte_in_the_directory_never_ends_in_a_traceback(runs, tmp_path, name, seed):
    layouts(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    start = int.from_bytes(content[8:16] if name == "big.tif" else content[4:8], "little")
    rng = np.random.default_rng(seed)
    content[start + rng.integers(min(240, len(content) - start))] ^= rng.choice([1, 128, 255])
    (tmp_path / "s.tif").write_bytes(content)
    for one in runs(tmp_path / "s.tif", 3 if name == "tiles.tif" else 1):
        assert one.status in (0, 2)  # a byte of the size, say, is none that anybody could tell from a true one


@pytest.mark.parametrize("driver, suffix, bands", [("PNG", "png", 3), ("JPEG", "jpg", 3), ("JP2OpenJPEG", "jp2", 3), ("ENVI", "img", 1), ("EHdr", "bil", 1), ("HFA", "img", 1), ("BMP", "bmp", 1), ("GIF", "gif", 1)])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_other_formats_cut_short_are_refused_too(runs, tmp_path, driver, suffix, bands, share):
    path, pixels = tmp_path / f"s.{suffix}", BYTES[:bands]
    rasterio.shutil.copy(write_raster(tmp_path / "whole.tif", pixels), path, driver=driver)
    with rasterio.open(path) as src:
        pixels = src.read()  # JPEG loses some
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    mapped, cut = runs(path, bands)
    assert_refused(mapped, f"s.{suffix}: ", left=BEGUN)
    if cut.status == 1:  # what lies before the damage is whole
        assert 0 < len(assert_exact(tmp_path / "cut", pixels)) < 6
    else:
        assert_refused(cut, f"s.{suffix}: ")
