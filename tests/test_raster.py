import numpy as np
import pytest
import rasterio
import tifffile
from conftest import coded, write_raster
from cutouts import PLACE
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin

from eoseg import patchfile, raster, validity
from eoseg.errors import DataError, ReadError, SetupError
from eoseg.tiles import Window

DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"]


def extremes(bands, height, width, dtype):
    """Noise with the type's extremes in it."""
    rng, dtype = np.random.default_rng(0), np.dtype(dtype)
    if dtype.kind == "f":
        pixels = rng.normal(0, 1e3, (bands, height, width)).astype(dtype)
        pixels[:, 0, :3], pixels[:, -1, -1] = [0.0, -0.0, np.finfo(dtype).max], np.finfo(dtype).smallest_subnormal
        return pixels
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    pixels = rng.integers(low, high, (bands, height, width), dtype, endpoint=True)
    pixels[:, 0, :2] = low, high
    return pixels


def save(path, content):
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd", "none"])
@pytest.mark.parametrize("bands, height, width", [(1, 5, 7), (3, 3, 3), (4, 4, 8), (13, 8, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_patch_comes_back_bit_for_bit_from_every_reader(tmp_path, dtype, bands, height, width, compress):
    pixels = extremes(bands, height, width, dtype)
    names = [f"name {n}" for n in range(bands)]
    path = save(tmp_path / "p.tif", patchfile.patch_bytes(pixels, PLACE, "EPSG:32630", 7, names, compress))
    with rasterio.open(path) as src:
        assert src.read().tobytes() == pixels.tobytes() and src.dtypes == (dtype,) * bands
        assert src.transform == PLACE and src.crs == "EPSG:32630" and src.nodata == 7 and src.descriptions == tuple(names)
        assert src.block_shapes == [(height, width)] * bands
        assert src.compression is None if compress == "none" else src.compression.name == compress
        assert ColorInterp.alpha not in src.colorinterp
    if compress in ("deflate", "none"):  # for others tifffile needs a further package
        assert tifffile.imread(path).reshape(pixels.shape).tobytes() == pixels.tobytes()
    got, missing, valid = raster.read_patch(path)
    assert got.dtype == dtype and got.tobytes() == pixels.tobytes()
    beyond = np.abs(pixels.astype("float64")) > 3.5e38  # no network can take such numbers
    assert (missing == (pixels == 7) | beyond).all() and (valid == ~((pixels == 7).all(0) | beyond.any(0))).all()


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("options", [{}, {"compress": "lzw"}, {"compress": "zstd"}, {"compress": "packbits"}, {"compress": "deflate", "predictor": 2},
                                     {"compress": "deflate", "predictor": 3}, {"compress": "lzw", "predictor": 2}, {"tiled": True, "blockxsize": 16, "blockysize": 16},
                                     {"endianness": "big"}, {"bigtiff": "yes"}, {"photometric": "miniswhite"}], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_patches_of_other_programs_are_read_as_gdal_reads_them(tmp_path, dtype, options, interleave):
    if options.get("predictor") == 3 and dtype != "float32":
        pytest.skip("predictor 3 is for floats")
    pixels = extremes(3, 20, 3, dtype)  # as many columns as bands: an axis that is guessed is guessed wrong
    path = write_raster(tmp_path / "p.tif", pixels, interleave=interleave, **options)
    got, _, valid = raster.read_patch(path)
    assert got.tobytes() == pixels.tobytes() and valid.all()


def test_a_patch_with_a_mask_brings_it_along(tmp_path):
    mask = np.arange(35).reshape(5, 7) % 3 > 0
    path = save(tmp_path / "p.tif", patchfile.patch_bytes(np.ones((2, 5, 7), "uint8"), PLACE, None, mask=mask))
    assert (raster.read_patch(path)[2] == mask).all()
    assert (raster.read_with_gdal(path)[2] == mask).all()


@pytest.mark.parametrize("tag", ["-3.4028234663852886e+38", "-9999", "0", "nan"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_nodata_tags_are_understood_and_those_no_pixel_can_hold_are_harmless(tmp_path, dtype, tag, capfd):
    pixels = np.zeros((2, 2), dtype)
    if np.dtype(dtype).kind == "f":
        pixels[0, 0] = np.float32(tag)
    path = tmp_path / "p.tif"
    tifffile.imwrite(path, pixels, extratags=[(42113, "s", 0, tag, True)])
    _, missing, valid = raster.read_patch(path)
    can_hold = dtype == "float32" or tag == "0"
    assert missing[0, 0, 0] == can_hold and valid[0, 0] != can_hold
    with raster.Scene(path) as scene:
        assert scene.read(Window(0, 0, 2, 2))[2][0, 0] != can_hold
    assert "castable" not in capfd.readouterr().err  # tifffile's words about a tag it cannot take


def test_damage_and_files_of_several_images_are_named(tmp_path):
    good = patchfile.patch_bytes(extremes(3, 64, 64, "uint16"), PLACE, "EPSG:32630")
    with pytest.raises(DataError, match="cut.tif: "):
        raster.read_patch(save(tmp_path / "cut.tif", good[: len(good) // 2]))
    with pytest.raises(DataError, match="flip.tif: "):
        raster.read_patch(save(tmp_path / "flip.tif", good[:5000] + b"\xff" * 400 + good[5400:]))
    pages = tmp_path / "pages.tif"
    tifffile.imwrite(pages, np.zeros((5, 4, 4), "uint8"), photometric="minisblack")
    with pytest.raises(DataError, match="pages.tif: holds 5 images"):
        raster.read_patch(pages)
    with pytest.raises(DataError, match="two.tif: has 2 bands; a label is one"):
        raster.read_label(save(tmp_path / "two.tif", patchfile.patch_bytes(np.zeros((2, 4, 4), "uint8"), PLACE, None)))


def test_a_label_comes_with_the_value_of_its_nodata_tag(tmp_path):
    codes = np.arange(12, dtype="int16").reshape(3, 4)
    assert raster.read_label(write_raster(tmp_path / "a.tif", codes, nodata=-1))[1] == -1
    got, tag = raster.read_label(write_raster(tmp_path / "b.tif", codes))
    assert (got == codes).all() and tag is None


# ---------------------------------------------------------------- which pixels count


@pytest.mark.parametrize("first, second, nodata, valid, strict", [
    (1.0, 2.0, [0, 0], True, True),
    (0.0, 2.0, [0, 0], True, False),  # GDAL's rule: one band with data is enough
    (0.0, 0.0, [0, 0], False, False),
    (np.nan, 2.0, [0, 0], False, False),
    (1.0, np.inf, [0, 0], False, False),
    (1.0, -np.inf, [None, None], False, False),
    (np.nan, 2.0, [np.nan, np.nan], False, False),
    (0.0, 5.0, [0, 5], False, False),  # each band by its own value
    (5.0, 0.0, [0, 5], True, True),
    (0.0, 0.0, [None, 0], True, False),
])
def test_a_pixel_counts_when_one_band_holds_data_and_none_is_broken(first, second, nodata, valid, strict):
    pixels = np.array([[[first]], [[second]]], "float32")
    assert validity.missing_and_valid(pixels, nodata)[1].item() is valid
    assert validity.missing_and_valid(pixels, nodata, require_all_bands=True)[1].item() is strict


@pytest.mark.parametrize("nodata, dtype, held", [
    (None, "uint8", None), (255, "uint8", 255), (256, "uint8", None), (-1, "uint8", None), (0.5, "int16", None), (-9999.0, "int16", -9999),
    (float("nan"), "uint16", None), (-3.4e38, "float32", float(np.float32(-3.4e38))), (1e300, "float32", None), (1e300, "float64", 1e300),
])
def test_a_nodata_value_is_what_pixels_can_hold(nodata, dtype, held):
    assert validity.held(nodata, dtype) == held
    pixels = np.zeros(3, dtype)
    if held is None:
        assert validity.equals_nodata(pixels, nodata) is None
    else:
        pixels[1] = held
        assert validity.equals_nodata(pixels, nodata).tolist() == [held == 0, True, held == 0]


@pytest.fixture
def rgba(tmp_path):
    """Four 8-bit bands, which GDAL takes for red, green, blue and alpha; alpha is 0 in the first row, 100 in the second."""
    pixels = np.full((4, 4, 5), 200, "uint8")
    pixels[3, 0], pixels[3, 1] = 0, 100
    return write_raster(tmp_path / "rgba.tif", pixels)


def test_an_alpha_band_is_the_mask_unless_it_is_asked_for(rgba):
    with raster.Scene(rgba) as scene:
        pixels, missing, valid = scene.read(Window(0, 0, 4, 5))
        assert scene.bands == [1, 2, 3] and scene.alpha and pixels.shape == (3, 4, 5)
        assert not valid[0].any() and valid[1:].all() and not missing.any()
    with raster.Scene(rgba, bands=[4, 1]) as scene:  # a near-infrared band that was never meant as alpha
        pixels, _, valid = scene.read(Window(0, 0, 4, 5))
        assert valid.all() and pixels[0, 0, 0] == 0 and not scene.alpha


@pytest.mark.parametrize("nodata", [None, 0])
def test_an_internal_mask_counts_together_with_nodata(tmp_path, nodata):
    path = write_raster(tmp_path / "m.tif", np.ones((2, 4, 5), "uint16"), nodata=nodata)
    mask = np.ones((4, 5), bool)
    mask[1] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dst:
        if nodata == 0:
            dst.write(np.zeros((1, 1), "uint16"), 1, window=((3, 4), (0, 1)))
            dst.write(np.zeros((1, 1), "uint16"), 2, window=((3, 4), (0, 1)))
        dst.write_mask(mask)
    with raster.Scene(path) as scene:
        valid = scene.read(Window(0, 0, 4, 5))[2]
    assert not valid[1].any() and valid[[0, 2]].all() and valid[3, 1:].all() and valid[3, 0] == (nodata is None)


@pytest.mark.parametrize("value", [-9999, 0.5, float("nan"), 1e9])
def test_an_input_nodata_no_pixel_can_hold_is_refused(tmp_path, value):
    path = write_raster(tmp_path / "s.tif", coded(4, 4))
    with pytest.raises(SetupError, match="--input_nodata .*s.tif.*uint16"):
        raster.Scene(path, nodata=value)


def test_bands_are_chosen_by_number_or_name_in_the_order_given(tmp_path):
    path = write_raster(tmp_path / "s.tif", coded(4, 4, 4), names=["blue", "green", "nir", "nir"])
    with raster.Scene(path, bands=["green", "4", 1]) as scene:
        pixels = scene.read(Window(1, 2, 1, 1))[0]
        assert scene.bands == [2, 4, 1] and scene.names == ["green", "nir", "blue"] and pixels.ravel().tolist() == [20102, 40102, 10102]
    for wanted in (["0"], ["5"], ["swir"], ["nir"], ["-1"]):  # "nir" stands there twice
        with pytest.raises(SetupError, match="s.tif: has no band"):
            raster.Scene(path, bands=wanted)


# ---------------------------------------------------------------- files that cannot be used


def test_files_that_cannot_be_used_are_refused_with_a_remedy(tmp_path):
    (tmp_path / "folder.tif").mkdir()
    points = [GroundControlPoint(0, 0, 5, 5), GroundControlPoint(0, 4, 6, 5), GroundControlPoint(4, 0, 5, 4)]
    with rasterio.open(tmp_path / "gcp.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", gcps=points, crs="EPSG:4326") as dst:
        dst.write(np.ones((1, 4, 4), "uint8"))
    refused = {
        tmp_path / "none.tif": "no such file",
        tmp_path / "folder.tif": "is not a file",
        save(tmp_path / "zero.tif", b""): r"0 bytes",
        save(tmp_path / "text.tif", b"hello, I am a text"): "is no TIFF",
        save(tmp_path / "text.img", b"hello, I am a text"): "cannot be opened as a raster",
        save(tmp_path / "web.tif", b"<GDAL_WMS><Service name='TMS'/></GDAL_WMS>"): "is no TIFF",
        save(tmp_path / "cut.tif", write_raster(tmp_path / "a.tif", coded(4, 4)).read_bytes()[:60]): "",
        write_raster(tmp_path / "complex.tif", np.ones((1, 4, 4), "complex64")): "complex",
        tmp_path / "gcp.tif": "gdalwarp",
    }
    for path, text in refused.items():
        with pytest.raises(DataError, match=text) as stop:
            raster.open_raster(path)
        assert str(stop.value).startswith(f"{path}: ")


@pytest.mark.parametrize("blocks", [{"blockysize": 65535}, {"tiled": True, "blockxsize": 32768, "blockysize": 32768}], ids=["strips", "tiles"])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused(tmp_path, blocks):
    path = tmp_path / "huge.tif"
    with rasterio.open(path, "w", driver="GTiff", width=65535, height=65535, count=1, dtype="uint8", sparse_ok=True, **blocks):
        pass  # nothing is written: some 500 bytes
    with pytest.raises(DataError, match="huge.tif: claims 65535 x 65535 pixels in"):
        raster.open_raster(path)


@pytest.mark.parametrize("filled", [0, 2])
def test_a_sparse_file_is_not_taken_for_a_damaged_one(tmp_path, filled):
    path = tmp_path / "sparse.tif"
    with rasterio.open(path, "w", driver="GTiff", width=8192, height=32768, count=4, dtype="uint16", sparse_ok=True, tiled=True, blockxsize=512, blockysize=512, compress="deflate") as dst:
        for row in range(filled):
            dst.write(np.full((4, 512, 512), 7, "uint16"), window=((row * 512, row * 512 + 512), (0, 512)))
    with raster.Scene(path) as scene:
        assert (scene.height * scene.width * 8) / path.stat().st_size > 50_000
        assert scene.read(Window(500, 500, 20, 20))[0].max() == (7 if filled else 0)


def test_a_short_file_that_lists_no_blocks_is_not_taken_for_a_sparse_one(tmp_path):
    path = tmp_path / "cut.tif"
    with rasterio.open(path, "w", driver="GTiff", width=65535, height=65535, count=1, dtype="uint16", sparse_ok=True, tiled=True, blockxsize=512, blockysize=512):
        pass
    save(path, path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cut.tif"):
        raster.open_raster(path)


def test_one_block_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("eoseg.vetting.BIGGEST_BLOCK", 1000)
    with pytest.raises(DataError, match="one block of 40 x 30 pixels .*TILED=YES"):
        raster.open_raster(write_raster(tmp_path / "s.tif", coded(30, 40), blockysize=30))


def test_a_constant_image_is_not_taken_for_a_damaged_one(tmp_path):
    path = write_raster(tmp_path / "s.tif", np.zeros((1, 2048, 2048), "uint16"), compress="zstd", tiled=True, blockxsize=1024, blockysize=1024)
    raster.open_raster(path).close()


def test_a_truncated_file_names_its_rows_and_the_others_stay_readable(tmp_path):
    path = write_raster(tmp_path / "s.tif", coded(60, 40), blockysize=1)
    save(path, path.read_bytes()[: 600 + 60 * 40 * 3])
    with raster.Scene(path) as scene:
        assert (scene.read(Window(0, 0, 10, 40))[0] == coded(60, 40)[:, :10]).all()
        with pytest.raises(ReadError, match="s.tif: rows 50 to 59 cannot be read"):
            scene.read(Window(50, 0, 10, 40))


VRT = """{before}<VRTDataset rasterXSize="4" rasterYSize="4"><SRS>EPSG:32630</SRS><GeoTransform>500000,10,0,4800000,0,-10</GeoTransform>
<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>
</SimpleSource></VRTRasterBand></VRTDataset>"""


@pytest.fixture
def home(tmp_path):
    """A folder of VRTs with one raster, and a raster beside the folder that none of them may reach."""
    write_raster(tmp_path / "secret.tif", coded(4, 4, 1))
    (tmp_path / "home" / "deeper").mkdir(parents=True)
    for path in ("in.tif", "deeper/in.tif"):
        write_raster(tmp_path / "home" / path, coded(4, 4, 1))
    return tmp_path / "home"


@pytest.mark.parametrize("source", ["in.tif", "deeper/in.tif", "deeper/../in.tif"])
def test_a_vrt_over_its_own_folder_is_read(home, source):
    (home / "a.vrt").write_text(VRT.format(before="", relative=1, source=source))
    with raster.Scene(home / "a.vrt") as scene:
        assert scene.read(Window(0, 0, 4, 4))[0][0, 2, 3] == 10203


@pytest.mark.parametrize("relative, source", [
    (1, "../secret.tif"), (1, "deeper/../../secret.tif"), (0, "{secret}"), (1, "{secret}"), (0, "{escaped}"), (0, "<![CDATA[{secret}]]>"), (1, "link.tif"),
    (0, "vrt://{secret}"), (0, "GTIFF_DIR:1:{secret}"), (0, "/vsicurl/http://127.0.0.1:1/x.tif"), (0, "http://127.0.0.1:1/x.tif"), (1, "nested.vrt"),
    (1, "disguised.tif"), (1, "a.vrt"), (0, "in.tif"), (1, "missing.tif"), (1, "<!-- x -->{secret}"),
])
def test_a_vrt_never_reaches_out_of_its_folder(home, relative, source):
    secret = home.parent / "secret.tif"
    (home / "link.tif").symlink_to(secret)
    for name in ("nested.vrt", "disguised.tif"):
        (home / name).write_text(VRT.format(before="", relative=1, source="../secret.tif"))
    text = VRT.format(before="", relative=relative, source=source.format(secret=secret, escaped=str(secret).replace("/", "&#47;")))
    (home / "a.vrt").write_text(text)
    with pytest.raises(DataError, match="^[^:]*home/"):
        raster.open_raster(home / "a.vrt")


def test_a_vrt_whose_tags_are_spelt_otherwise_is_refused(home):  # GDAL does not mind case
    text = VRT.format(before="", relative=1, source="../secret.tif").replace("SourceFilename", "sourcefilename")
    (home / "a.vrt").write_text(text)
    with pytest.raises(DataError, match="unusual"):
        raster.open_raster(home / "a.vrt")


@pytest.mark.parametrize("before", ["", " " * 700, f"<!-- {'x' * 900} -->"])
def test_a_vrt_under_another_suffix_is_refused(home, before):
    (home / "a.tif").write_text(VRT.format(before=before, relative=1, source="in.tif"))
    with pytest.raises(DataError, match="a.tif: is "):
        raster.open_raster(home / "a.tif")


# ---------------------------------------------------------------- places


def test_two_grids_are_the_same_to_a_hundredth_of_a_pixel(tmp_path):
    def grid(name, **other):
        return raster.header(write_raster(tmp_path / f"{name}.tif", np.zeros((1, 20, 30), "uint8"), **other))

    base = grid("base")
    assert raster.same_grid(base, grid("hair", transform=from_origin(500000 + 1e-8, 4800000, 10, 10)))
    assert raster.same_grid(base, grid("near", transform=from_origin(500000.05, 4800000, 10, 10)))
    for name, other in {"moved": {"transform": from_origin(500000.2, 4800000, 10, 10)}, "stretched": {"transform": from_origin(500000, 4800000, 10.01, 10)},
                        "flipped": {"transform": Affine(10, 0, 500000, 0, 10, 4799800)}, "zone": {"crs": "EPSG:32631"}}.items():
        assert not raster.same_grid(base, grid(name, **other))


def test_a_window_is_placed_where_its_pixels_lie(tmp_path):
    turned = Affine.translation(1000, 2000) * Affine.rotation(30) * Affine.scale(2, -3)
    with raster.Scene(write_raster(tmp_path / "s.tif", coded(8, 8), transform=turned)) as scene:
        placed = scene.placed(Window(3, 5, 4, 4), scale=(2.0, 0.5))
        assert np.allclose(placed * (0, 0), turned * (5, 3)) and np.allclose(placed * (4, 1), turned * (7, 5))


def test_windows_are_read_in_strips_that_hold_a_row_of_them(tmp_path):
    path = write_raster(tmp_path / "s.tif", coded(40, 60), 10000)
    windows = [Window(row, col, 10, 12) for row in range(0, 40, 10) for col in range(0, 60, 12)]
    with raster.Scene(path) as scene:
        assert scene.reading_order(windows[::-1]) == list(range(19, -1, -1))
        assert scene.strips(windows) == [(Window(row, 0, 10, 60), list(range(row // 2, row // 2 + 5))) for row in range(0, 40, 10)]
        pixels, mask = scene.raw(Window(10, 12, 10, 12))
        assert (pixels == coded(40, 60)[:, 10:20, 12:24]).all() and mask is True
        assert all(np.array_equal(one, other) for one, other in zip(scene.judged(pixels, mask), scene.read(Window(10, 12, 10, 12))[1:]))


def test_wide_tiled_scenes_are_read_down_columns_whose_blocks_stay_in_memory(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "s.tif", np.zeros((1, 64, 256), "uint8"), tiled=True, blockxsize=16, blockysize=16)
    windows = [Window(row, col, 8, 8) for row in range(0, 64, 8) for col in range(0, 256, 8)]
    monkeypatch.setattr(raster, "KEPT", 32 * 64)
    with raster.Scene(path) as scene:
        ordered = [windows[i] for i in scene.reading_order(windows)]
    assert ordered == sorted(windows, key=lambda window: (window.col // 64, window.row, window.col)) and len(set(ordered)) == len(windows)
