"""Scenes brought to the pixel size of the training: pixels keep their place and value, holes stay holes."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import write_raster
from tinynet import Spy, by_hand, identity, mapped, opened, remainder

from eoseg.errors import DataError

METRES = [10.0, 10.0, "metre"]


def north_up(size):
    return Affine(size, 0, 5e5, 0, -size, 48e5)


def slope(transform, height, width):
    """A plane over the map's coordinates, as a scene has it: it rises by 30 from pixel to pixel of 10 m to the east, by 10 to the north."""
    x, y = transform * np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return (3 * (x - 5e5) + (y - 48e5) + 5000).astype("float32")


@pytest.mark.parametrize("size", [2.5, 5, 20])
@pytest.mark.parametrize("turn", [Affine.identity(), Affine.scale(1, -1), Affine.rotation(30), Affine.rotation(-100) * Affine.scale(1, -1)], ids=["north up", "south up", "turned", "turned and mirrored"])
def test_resampled_pixels_keep_their_place_and_value(tmp_path, size, turn):
    place = Affine.translation(5e5, 48e5) * turn * Affine.scale(size, -size)
    scene, net = write_raster(tmp_path / "s.tif", slope(place, 40, 48)[None], transform=place), Spy(remainder(7))
    mapped(by_hand(tmp_path, net, classes=7, pixel_size=METRES), scene, tmp_path / "m.tif", resample_to_training=True, overlap=0, patch_size=96)
    with rasterio.open(tmp_path / "m.tif") as src:
        found, ratio = src.read(1), size / 10
        assert src.shape == (40 * ratio, 48 * ratio) and src.transform.almost_equals(place * Affine.scale(10 / size), 1e-6)
    wanted = slope(src.transform, *found.shape)
    seen = net.seen[0][0, 0, : found.shape[0], : found.shape[1]].numpy()
    assert abs(seen - wanted)[2:-2, 2:-2].max() < 0.01
    assert (found == np.round(seen) % 7).all()


def test_blocks_of_one_value_keep_their_class_and_a_cut_pixel_is_mapped(tmp_path):
    classes = np.array([[1, 2], [3, 4]], "uint8").repeat(15, 0).repeat(15, 1)[:, :29]
    scene = write_raster(tmp_path / "s.tif", classes, transform=north_up(2))
    mapped(by_hand(tmp_path, Spy(remainder(7)), classes=7, pixel_size=METRES), scene, tmp_path / "m.tif", resample_to_training=True)
    assert opened(tmp_path / "m.tif").tolist() == np.array([[1, 2], [3, 4]]).repeat(3, 0).repeat(3, 1).tolist()


@pytest.mark.parametrize("kind", ["tag", "flag", "nan", "alpha", "mask"])
def test_a_hole_stays_a_hole_and_changes_no_neighbour(tmp_path, kind):
    pixels, hole = np.full((3, 40, 40), 8, "float32" if kind == "nan" else "uint8"), np.zeros((40, 40), bool)
    hole[8:16, 20:30] = True
    pixels[:, hole] = np.nan if kind == "nan" else 200
    extra = {"photometric": "rgb", "alpha": "yes"} if kind == "alpha" else {}
    stored = np.concatenate([pixels, np.where(hole, 0, 255)[None].astype("uint8")]) if kind == "alpha" else pixels
    scene = write_raster(tmp_path / "s.tif", stored, transform=north_up(5), nodata=200 if kind == "tag" else None, **extra)
    if kind == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(scene, "r+") as dst:
            dst.write_mask(~hole)
    net = by_hand(tmp_path, Spy(remainder(7)), 3, 7, pixel_size=METRES, normalizer=identity(3, fill=3.0))
    mapped(net, scene, tmp_path / "m.tif", resample_to_training=True, input_nodata=200 if kind == "flag" else None)
    assert (opened(tmp_path / "m.tif") == np.where(hole[::2, ::2], 255, 1)).all()
    assert (net.net.seen[0][0, :, :20, :20].numpy() == np.where(hole[::2, ::2], 3, 8)).all()


def test_a_hole_in_one_band_is_filled_and_mixed_into_no_band(tmp_path):
    pixels = np.full((3, 40, 40), 8, "uint8")
    pixels[1, 8:16, 20:30] = 200
    net = by_hand(tmp_path, Spy(remainder(7)), 3, 7, pixel_size=METRES, normalizer=identity(3, fill=3.0))
    mapped(net, write_raster(tmp_path / "s.tif", pixels, transform=north_up(5), nodata=200), tmp_path / "m.tif", resample_to_training=True)
    seen = net.net.seen[0][0, :, :20, :20].numpy()
    assert (opened(tmp_path / "m.tif") == 1).all() and (seen[[0, 2]] == 8).all()
    assert set(np.unique(seen[1])) == {3, 8} and (seen[1, 5:7, 11:14] == 3).all()  # the border may be told by pixels around it


def test_a_fourth_band_that_only_gdal_calls_alpha_cannot_be_resampled(tmp_path):
    scene = write_raster(tmp_path / "s.tif", np.random.default_rng(0).integers(0, 255, (4, 40, 40)).astype("uint8"), transform=north_up(5), photometric="rgb", alpha="yes")
    for bands in (3, 4):
        with pytest.raises(DataError, match="s.tif: lies on another grid than --resample_to_training .* and has a band that GDAL calls alpha; .*gdalwarp"):
            mapped(by_hand(tmp_path, Spy(remainder(7)), bands, 7, pixel_size=METRES), scene, tmp_path / "m.tif", resample_to_training=True)
    assert not (tmp_path / "m.tif").exists()
