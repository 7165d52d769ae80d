"""Labels as people really have them: each is turned into the right classes, pixel for pixel, or refused in one line that names the file or the flag."""

import numpy as np
import pytest
import rasterio
from conftest import coded, write_raster
from cutouts import PLACE, drawn
from faults import assert_refused, assert_worked
from rasterio.transform import Affine

from eoseg.coding import IGNORE

pytestmark = pytest.mark.usefixtures("without_fsync")
N = 32
CODES = np.indices((N, N)).sum(0) // 3 % 3  # classes 0 to 2
BIG = 2**53  # whole numbers beyond it are rounded as floats
ROUND = Affine.scale(0.5)


@pytest.fixture
def cut(fate, tmp_path):
    """Cut a scene of 32 x 32 pixels with a label (a file, or pixels with what `write_raster` takes) into four patches; the Fate and the folder."""
    def call(label, *words, **options):
        image = write_raster(tmp_path / "scene.tif", coded(N, N, 1))
        if not hasattr(label, "suffix"):
            label = write_raster(tmp_path / "label.tif", label, **options)
        return fate("Patch_extraction_v2", "single", "--image", image, "--label", label, "--output", tmp_path / "out", "--patch_size", 16, "--compress", "none", *words)

    call.folder = tmp_path / "out"
    return call


def fine(codes):
    return codes.repeat(2, 0).repeat(2, 1)


def without(value, codes=CODES):
    """The classes once a code is unlabelled."""
    return np.where(codes == value, IGNORE, codes)


def mapped(codes):
    """Words that map codes to classes 0, 1, 2 ..."""
    return ["--label_map", *(f"{code}={number}" for number, code in enumerate(codes))]


# ---------------------------------------------------------------- rasters that work


@pytest.mark.parametrize("pixels, options, words, wanted", [
    (without(1), {}, [], without(1)),
    (CODES - 1, {}, ["--label_map", "-1=ignore", "0=1", "1=2"], np.where(CODES == 0, 255, CODES)),
    (np.where(CODES == 1, np.nan, CODES).astype("float32"), {}, [], without(1)),
    (np.where(CODES == 1, np.inf, CODES).astype("float64"), {}, [], without(1)),
    (CODES.astype("float32"), {}, [], CODES),
    (CODES + 252.0, {}, [], CODES + 252),
    (CODES * 0 + 2, {}, [], CODES * 0 + 2),
    (np.where(CODES == 1, -128, CODES).astype("int8"), {"nodata": -128}, [], without(1)),
    (CODES, {"nodata": 0}, ["--label_nodata", "none"], CODES),
    (CODES, {"nodata": 0}, ["--label_nodata", 0], without(0)),
    (CODES % 2, {"nbits": 1}, [], CODES % 2),
    ((CODES + 2**31).astype("uint32"), {}, mapped([2**31, 2**31 + 1, 2**31 + 2]), CODES),
    (CODES + BIG, {}, mapped([BIG, BIG + 1, BIG + 2]), CODES),
    (CODES.astype("uint64") + np.uint64(2**64 - 3), {}, mapped([2**64 - 3, 2**64 - 2, 2**64 - 1]), CODES),
    (np.where(CODES == 1, BIG + 1, CODES), {}, ["--label_nodata", BIG + 1], without(1)),
    (np.arange(N * N).reshape(N, N) % 300, {}, ["--label_map", *(f"{code}={code % 255}" for code in range(300))], np.arange(N * N).reshape(N, N) % 300 % 255),
    (CODES + 10, {}, ["--label_map", "10=0", "11=0", "12=254"], np.choose(CODES, [0, 0, 254])),
    (fine(CODES), {"transform": PLACE * ROUND}, [], CODES),
    (np.pad(CODES, 4), {"transform": PLACE * Affine.translation(-4, -4)}, [], CODES),
    (CODES[:16], {}, [], np.where(np.arange(N)[:, None] < 16, CODES, 255)),
    (CODES, {"transform": PLACE * Affine.translation(0, 16)}, [], np.where(np.arange(N)[:, None] < 16, 255, np.roll(CODES, 16, 0))),
    (CODES, {"transform": PLACE * Affine.translation(0.4, -0.4)}, [], None),
    (CODES[::-1], {"transform": Affine(10, 0, 500000, 0, 10, 4800000 - 10 * N)}, [], CODES),
], ids=["255", "minus one mapped", "nan", "inf", "whole floats", "up to 254", "one class", "int8 with its tag", "tag is a class", "tag is unlabelled", "one bit", "beyond 31 bits", "beyond 53 bits",
        "the last 64-bit codes", "nodata beyond 53 bits", "300 codes", "codes that share a class", "finer", "larger", "smaller", "shifted by half", "shifted by 0.4", "south up"])
def test_unusual_rasters_give_the_right_classes(cut, pixels, options, words, wanted):
    pixels = pixels.astype("int16") if pixels.dtype == int and abs(pixels).max() < 2**15 and "nbits" not in options else pixels.astype("uint8") if "nbits" in options else pixels
    assert_worked(cut(pixels, *words, **options))
    got = drawn(cut.folder, N, N)
    assert (got == wanted).all() if wanted is not None else (got[1:-1, 1:-1] == CODES[1:-1, 1:-1]).all()


@pytest.mark.parametrize("same_grid", [True, False])
def test_what_a_mask_hides_is_never_judged(cut, tmp_path, same_grid):
    pixels = np.where(CODES == 1, 999, CODES).astype("uint16")  # no class, but hidden
    label = write_raster(tmp_path / "label.tif", pixels if same_grid else fine(pixels), transform=PLACE * (ROUND if not same_grid else Affine.identity()))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(label, "r+") as dst:
        dst.write_mask((pixels != 999) if same_grid else fine(pixels != 999))
    assert_worked(cut(label))
    assert (drawn(cut.folder, N, N) == without(1)).all()


def test_a_palette_is_codes_and_a_vrt_leads_to_them(cut, tmp_path):
    label = write_raster(tmp_path / "label.tif", CODES.astype("uint8"))
    with rasterio.open(label, "r+") as dst:
        dst.write_colormap(1, {0: (9, 9, 9, 255), 1: (0, 200, 0, 255), 2: (0, 0, 200, 0)})
    vrt = tmp_path / "label.vrt"
    vrt.write_text(f'<VRTDataset rasterXSize="{N}" rasterYSize="{N}"><SRS>EPSG:32630</SRS><GeoTransform>500000, 10, 0, 4800000, 0, -10</GeoTransform>'
                   '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">label.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>')
    assert_worked(cut(vrt))
    assert (drawn(cut.folder, N, N) == CODES).all()


# ---------------------------------------------------------------- rasters that do not


@pytest.mark.parametrize("pixels, options, parts", [
    (CODES - 1, {}, ["label.tif", "values -1", "--label_map -1=ignore"]),
    (CODES + 0.5 * (CODES == 1), {}, ["label.tif", "values 1.5"]),
    (CODES + 300, {}, ["values 300, 301, 302"]),
    (CODES + 2**31, {}, ["values 2147483648,"]),
    (CODES.astype("uint64") + np.uint64(2**64 - 3), {}, ["values 18446744073709551613,"]),
    (np.where(CODES == 1, BIG + 1, CODES), {"nodata": BIG}, ["values 9007199254740993"]),
    (CODES, {"nodata": 0}, ["nodata tag 0", "--label_nodata none", "--label_nodata 0"]),
    (CODES * 0 + 255, {}, ["--output", "no labelled pixel", "nothing was written"]),
    (CODES * np.nan, {}, ["--output", "no labelled pixel"]),
    (np.stack([CODES, CODES]), {}, ["label.tif", "2 bands"]),
    (np.stack([CODES * 80] * 3).astype("uint8"), {"photometric": "RGB"}, ["label.tif", "3 bands", "colours of a picture are no codes"]),
    (CODES.astype("uint8"), {"compress": "JPEG"}, ["label.tif", "JPEG"]),
    (CODES.astype("complex64"), {}, ["label.tif", "complex"]),
    (CODES, {"crs": None}, ["label.tif", "no CRS", "gdal_edit.py"]),
    (CODES, {"crs": None, "transform": Affine.identity()}, ["label.tif", "-a_ullr"]),
    (CODES, {"transform": Affine.identity()}, ["label.tif", "lies beside"]),
    (CODES, {"crs": "EPSG:32631"}, ["label.tif", "lies beside"]),
    (CODES, {"crs": "EPSG:4326"}, ["label.tif", "lies beside"]),
    (CODES, {"transform": PLACE * Affine.translation(40, 0)}, ["label.tif", "lies beside"]),
    (CODES, {"transform": Affine(10, 0, 1e300, 0, -10, 4800000)}, ["label.tif"]),
    (CODES, {"transform": Affine(0, 0, 500000, 0, 0, 4800000)}, ["label.tif", "geotransform"]),
    (CODES, {"transform": Affine(float("nan"), 0, 500000, 0, -10, 4800000)}, ["label.tif", "geotransform"]),
    (CODES, {"crs": 'LOCAL_CS["plan of a building",UNIT["metre",1]]'}, ["label.tif", "nothing leads"]),
    (fine(CODES) + BIG, {"transform": PLACE * ROUND}, ["label.tif", "another grid", "rounds"]),
], ids=["minus one", "halves", "from 300", "beyond 31 bits", "the last 64-bit codes", "tag one beside", "tag is a class", "all 255", "all nan", "two bands", "rendered", "jpeg", "complex", "no crs",
        "no place", "identity", "other zone", "metres as degrees", "beside", "far away", "degenerate", "nan in its place", "local crs", "beyond 53 bits elsewhere"])
def test_rasters_that_cannot_be_labels_are_refused(cut, pixels, options, parts):
    pixels = pixels.astype("int16") if pixels.dtype == int and abs(pixels).max() < 2**15 else pixels
    assert_refused(cut(pixels, **options), *parts)


@pytest.mark.parametrize("words, parts", [
    (["--label_map", "0=0", "00=1"], ["--label_map", "0 is given twice"]),
    (["--label_map", "0=0", "0.0=ignore"], ["--label_map", "0 is given twice"]),
    (["--label_map", "0=" + "9" * 5000], ["--label_map 0=999"]),
    (["--label_map", "9" * 5000 + "=0"], ["label.tif", "values 0, 1, 2"]),
    (["--label_map", "0=255"], ["--label_map 0=255", "0 to 254"]),
    (["--label_map", "0=-1"], ["--label_map 0=-1"]),
    (["--label_map", "0=\u00b2"], ["--label_map 0=\u00b2"]),
    (["--label_map", " = "], ["--label_map", "CODE=CLASS"]),
    (["--label_map", "0=0", "1=1"], ["label.tif", "values 2,"]),
    (["--label_map", "0=0", "1=1", "2_0=2"], ["label.tif", "values 2,"]),
    (["--label_map", "water=0", "1=1", "2=2"], ["label.tif", "values 0,"]),
    (["--label_nodata", "water"], ["--label_nodata water"]),
    (["--label_nodata", ""], ["--label_nodata"]),
    (["--label_channels", 3], ["--label_channels 3"]),
    (["--label_field", "class"], ["--label_field", "is a raster"]),
    (["--label_burn", 1], ["--label_burn", "is a raster"]),
    (["--label_outside", 1], ["--label_outside", "is a raster"]),
], ids=lambda value: " ".join(map(str, value))[:40] if str(value[0]).startswith("--") else "")
def test_flags_that_cannot_be_are_refused(cut, words, parts):
    assert_refused(cut(CODES.astype("uint8"), *words), *parts)
