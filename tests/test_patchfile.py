"""Patches assembled around GDAL's tags read as those GDAL writes whole."""

import io

import numpy as np
import pytest
import rasterio
import tifffile
from cutouts import PLACE
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from eoseg import raster
from eoseg.patchfile import PatchWriter, assembled, tags_of

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
PLACES = {"north-up": PLACE, "oblong": PLACE * Affine.scale(1, 1.3), "south-up": Affine(10, 0, 5e5, 0, 10, 4.8e6), "turned": PLACE * Affine.rotation(30),
          "pixels": Affine.translation(7, 3), "nowhere": Affine.identity()}


def noise(shape, dtype, seed=0):
    """Any bit pattern of the type, NaNs and infinities among the floats."""
    rng = np.random.default_rng(seed)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape).copy()


def opened(content):
    """Pixels, profile and everything else that rasterio tells of a file."""
    with MemoryFile(content) as memory, memory.open() as src:
        return src.read(), src.profile, (src.descriptions, src.tags(), src.tags(ns="IMAGE_STRUCTURE"), src.block_shapes, src.colorinterp, src.mask_flag_enums, src.nodatavals)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("bands, height, width", [(1, 7, 5), (3, 8, 8), (4, 9, 16), (13, 33, 31)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_patch_reads_as_the_one_that_gdal_writes(dtype, bands, height, width, place):
    names = [f"band {n}" for n in range(bands)]
    crs = None if place in (PLACES["pixels"], PLACES["nowhere"]) else rasterio.CRS.from_epsg(32630)
    write = PatchWriter(crs, 7, names, "deflate")
    for step, kind in ((0, "noise"), (3, "flat"), (9, "noise")):  # the tags come from the first, the place from each
        pixels = noise((bands, height, width), dtype, step) if kind == "noise" else np.full((bands, height, width), 7, dtype)
        here = place * Affine.translation(step, -step)
        content = write(pixels, here)
        wanted = opened(raster.patch_bytes(pixels, here, crs, 7, names))
        found = opened(content)
        assert found[0].tobytes() == wanted[0].tobytes() == pixels.tobytes() and found[1] == wanted[1] and found[2] == wanted[2]
        assert tifffile.imread(io.BytesIO(content)).tobytes() == pixels.tobytes()


def test_the_tags_of_another_kind_are_not_taken_over():
    write = PatchWriter(rasterio.CRS.from_epsg(32630), None, ["a", "b"], "deflate")
    for dtype, shape, place in (("uint8", (2, 8, 8), PLACE), ("uint16", (2, 8, 8), PLACE), ("uint8", (2, 9, 8), PLACE), ("uint8", (2, 8, 8), PLACES["turned"]), ("uint8", (2, 8, 8), PLACE)):
        pixels = noise(shape, dtype)
        found, profile, _ = opened(write(pixels, place))
        assert found.dtype == dtype and (found == pixels).all() and np.allclose(profile["transform"][:6], place[:6], rtol=0, atol=1e-9)
    assert len(write.skeletons) == 4


@pytest.mark.parametrize("crs", [None, "EPSG:4326", "EPSG:32733", "EPSG:3035", '+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=NAD83'])
@pytest.mark.parametrize("nodata", [None, 0, -9999.0, float("nan")])
def test_crs_and_nodata_are_gdals(crs, nodata):
    crs = crs and rasterio.CRS.from_user_input(crs)
    write = PatchWriter(crs, nodata, ["a"], "deflate")
    pixels = noise((1, 8, 8), "float32")
    found, wanted = opened(write(pixels, PLACE)), opened(raster.patch_bytes(pixels, PLACE, crs, nodata, ["a"]))
    assert found[1]["crs"] == wanted[1]["crs"] == crs and str(found[2]) == str(wanted[2]) and found[0].tobytes() == pixels.tobytes()


def test_masks_and_other_compressions_are_left_to_gdal():
    pixels, mask = noise((2, 8, 8), "uint8"), np.arange(64).reshape(8, 8) > 9
    for compress in ("deflate", "lzw", "zstd", "none"):
        write = PatchWriter(None, None, ["a", "b"], compress)
        with MemoryFile(write(pixels, PLACE, mask)) as memory, memory.open() as src:
            assert (src.read() == pixels).all() and ((src.dataset_mask() > 0) == mask).all()
        with MemoryFile(write(pixels, PLACE)) as memory, memory.open() as src:
            assert (src.read() == pixels).all() and (src.compression.name if src.compression else "none") == compress


def test_other_tiffs_lend_no_tags():
    plain = raster.patch_bytes(noise((1, 8, 8), "uint8"), PLACE, None)
    assert tags_of(plain) and tags_of(b"MM" + plain[2:]) is None and tags_of(b"II+\0" + plain[4:]) is None
    masked = raster.patch_bytes(noise((1, 8, 8), "uint8"), PLACE, None, mask=np.eye(8) > 0)
    assert tags_of(masked) is None  # a second image, the mask


def test_values_begin_at_even_places():
    tags = tags_of(raster.patch_bytes(noise((3, 8, 8), "uint8"), PLACE, None, names=["a", "bcd", "e"]))
    content = assembled(tags, [b"1", b"123", b"12345"], PLACE)
    with tifffile.TiffFile(io.BytesIO(content)) as tif:
        page = tif.pages[0]
        assert page.databytecounts == (1, 3, 5) and all(offset % 2 == 0 for offset in page.dataoffsets)
        assert [content[start : start + count] for start, count in zip(page.dataoffsets, page.databytecounts)] == [b"1", b"123", b"12345"]
