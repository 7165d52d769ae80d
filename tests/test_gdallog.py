"""GDAL's own words: what they tell of damage is an error, the rest a note; none reaches the terminal raw."""

import logging
import threading

import numpy as np
import pytest
from conftest import coded, write_raster

from eoseg import gdallog, raster
from eoseg.errors import DataError
from eoseg.tiles import Window


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(gdallog, "said", set())


def tag(content, number):
    """Where a classic little-endian TIFF's directory holds the entry of a tag."""
    start = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[start : start + 2], "little")
    return next(at for at in range(start + 2, start + 2 + 12 * count, 12) if int.from_bytes(content[at : at + 2], "little") == number)


@pytest.mark.parametrize("number", [33550, 33922, 34735, 34737, 42112])  # scale, tie points, CRS and its texts, band names
def test_a_tag_that_lies_beyond_the_end_of_the_file_is_damage(tmp_path, capfd, number):
    path = write_raster(tmp_path / "a.tif", coded(16, 16), names=["a", "b", "c"])
    content = bytearray(path.read_bytes())
    content[tag(content, number) + 8 : tag(content, number) + 12] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.tif: is damaged or truncated .*copy, download or extract"):
        raster.open_raster(path)
    assert capfd.readouterr().err == ""


def test_a_patch_that_lost_its_nodata_value_is_not_read_without_it(tmp_path):
    path = write_raster(tmp_path / "a.tif", coded(16, 16, dtype="float32"), nodata=-12345)
    content = bytearray(path.read_bytes())
    content[tag(content, 42113) + 8 : tag(content, 42113) + 12] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="GDALNoDataValue"):
        raster.read_patch(path)


def test_a_jpeg_block_cut_short_is_not_filled_up_in_silence(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64), "uint8")
    path = write_raster(tmp_path / "a.tif", noise, compress="jpeg", photometric="ycbcr", interleave="pixel", tiled=True, blockxsize=32, blockysize=32)
    content = bytearray(path.read_bytes())
    at = content.rfind(b"\xff\xd9") - 40
    content[at : at + 10] = b"\xff\xd9" * 5  # the end of an image, too early
    path.write_bytes(content)
    with raster.Scene(path) as scene, pytest.raises(DataError, match="cannot be read .*JPEG"):
        scene.read(Window(0, 0, 64, 64))
    assert capfd.readouterr().err == ""


def test_other_messages_are_notes_that_name_the_first_file_and_come_once(tmp_path, capfd):
    paths = [write_raster(tmp_path / name, coded(16, 16, 1), names=["a"]) for name in ("a.tif", "b.tif")]
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b'<Item name="DESCRIPTION"', b'<Item name=DESCRIPTION  '))
        raster.open_raster(path).close()
    said = capfd.readouterr().err
    assert said.startswith(f"note: {paths[0]}: GDAL: ") and said.count("\n") == 1


def test_what_is_said_in_another_thread_is_not_taken_for_this_ones():
    logger = logging.getLogger("rasterio._env")
    with gdallog.listening() as mine:
        other = threading.Thread(target=lambda: logger.warning("CPLE_AppDefined in x.tif: theirs"))
        other.start()
        other.join()
        logger.warning("CPLE_AppDefined in x.tif: mine")
        with gdallog.listening() as inner:
            logger.warning("CPLE_AppDefined:inner")
    assert (mine, inner) == (["mine"], ["inner"])


@pytest.mark.parametrize("text, lost", [
    ('TIFFFetchNormalTag:IO error during reading of "Software"; tag ignored', True),
    ('TIFFFetchNormalTag:Incorrect count for "GeoPixelScale"; tag ignored', True),
    ('TIFFFetchNormalTag:Incorrect count for "XResolution"; tag ignored', False),
    ('TIFFReadDirectory:Bogus "StripByteCounts" field, ignoring and calculating from imagelength', True),
    ('TIFFFetchNormalTag:ASCII value for tag "GDALNoDataValue" contains null byte in value; value incorrectly truncated', True),
    ('TIFFFetchNormalTag:ASCII value for tag "Software" does not end in null byte. Forcing it to be null', False),
    ("<tifffile.TiffTag 42113 @340> invalid value", False),
    ("<TiffTag.fromfile> raised TiffFileError('invalid value offset 2147483647')", True),
    ("<tifffile.TiffPages @8> invalid offset to first page 0", False),
    ("TIFFReadDirectoryCheckOrder:Invalid TIFF directory; tags are not sorted in ascending order", False),
    ("PROJ: internal_proj_uom_get_info_from_database: unit of measure not found", False),
])
def test_words_of_loss_are_told_from_others(text, lost):
    assert gdallog.damage(["fine", text]) == (text if lost else None)
