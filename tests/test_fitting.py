"""Does a scene fit a network: its bands by name, place or --bands; pixel sizes said, or brought to those of the training."""

import re

import numpy as np
import pytest
from affine import Affine
from conftest import coded, write_raster
from tinynet import Spy, by_hand, identity, mapped, opened, remainder

from eoseg import fitting, raster
from eoseg.errors import DataError, SetupError
from eoseg.georef import METRES_PER_DEGREE
from eoseg.normalize import Normalizer

# ---------------------------------------------------------------- bands


def bands_of(tmp_path, names, taken=None, trained=None, **options):
    """scene_bands for a scene with bands `names`, and what is said; the network took `taken` of the bands `trained`."""
    taken = taken or trained
    kept = {"of_patch": list(range(len(taken))), "names": taken, "of_scene": [trained.index(n) + 1 for n in taken], "scene_count": len(trained)}
    said = []
    net = by_hand(tmp_path, None, len(taken), input=kept)
    scene = write_raster(tmp_path / "s.tif", coded(8, 8, len(names)), names=[] if names[0] == "band_1" else names, **options)
    return fitting.scene_bands(net, scene, say=said.append), " ".join(said)


PLAIN = ["band_1", "band_2", "band_3"]


@pytest.mark.parametrize("names, taken, trained, found, says", [
    (["blue", "green", "red"], None, ["blue", "green", "red"], [1, 2, 3], ""),
    (["red", "green", "blue"], None, ["blue", "green", "red"], [3, 2, 1], "taken by name"),
    (["red", "nir", "green", "blue", "swir"], None, ["blue", "green", "red"], [4, 3, 1], ""),
    (["blue", "green", "red", "nir"], ["nir", "red"], ["blue", "green", "red", "nir"], [4, 3], ""),
    (["nir", "red"], ["nir", "red"], ["blue", "green", "red", "nir"], [1, 2], ""),
    (PLAIN, None, PLAIN, [1, 2, 3], ""),
    (PLAIN, None, ["blue", "green", "red"], [1, 2, 3], ""),
    (PLAIN, ["red", "blue"], ["blue", "green", "red"], [3, 1], ""),
    (["band_1", "band_2"], ["red", "blue"], ["blue", "green", "red"], [1, 2], "2 bands are taken as red, blue"),
    (["B8", "B4", "B3"], None, ["blue", "green", "red"], [1, 2, 3], "warning: .*B8, B4, B3 are taken by place for blue, green, red"),
    (["band_B4", "band_B3"], None, ["band_B3", "band_B4"], [2, 1], "taken by name"),
])
def test_bands_are_found_by_name_then_by_place(tmp_path, names, taken, trained, found, says):
    got, said = bands_of(tmp_path, names, taken, trained)
    assert got == found
    assert re.search(says, said) if says else not said


@pytest.mark.parametrize("names, taken, trained", [
    (["a", "b", "c", "d"], None, ["blue", "green", "red"]),
    (["a", "b"], None, ["blue", "green", "red"]),
    (["red", "green"], None, ["blue", "green", "red"]),
])
def test_a_scene_with_other_bands_is_refused_naming_both(tmp_path, names, taken, trained):
    with pytest.raises(DataError, match=rf"s.tif: has {len(names)} bands \({', '.join(names)}\); the network was trained on blue, green, red of scenes with 3"):
        bands_of(tmp_path, names, taken, trained)


def test_an_alpha_band_the_network_was_not_trained_with_is_a_mask(tmp_path):
    assert bands_of(tmp_path, [*PLAIN, "band_4"], None, PLAIN, photometric="rgb", alpha="yes")[0] == [1, 2, 3]
    assert bands_of(tmp_path, [*PLAIN, "band_4"], PLAIN, [*PLAIN, "band_4"], photometric="rgb", alpha="yes")[0] == [1, 2, 3]
    older_one = by_hand(tmp_path, None, 3)
    assert fitting.scene_bands(older_one, tmp_path / "s.tif") == [1, 2, 3]
    assert fitting.scene_bands(older_one._replace(in_channels=4), tmp_path / "s.tif") == [1, 2, 3, 4]
    with pytest.raises(DataError, match="s.tif: has 4 bands; the network takes 2"):
        fitting.scene_bands(older_one._replace(in_channels=2), tmp_path / "s.tif")


def test_a_reordered_scene_gives_the_same_map(tmp_path):
    pixels, names = coded(50, 60), ["blue", "green", "red"]
    kept = {"of_patch": [0, 1], "names": ["red", "blue"], "of_scene": [3, 1], "scene_count": 3}
    net = by_hand(tmp_path, Spy(remainder(7)), 2, 7, input=kept, normalizer=identity(2))
    write_raster(tmp_path / "a.tif", pixels, names=names)
    write_raster(tmp_path / "b.tif", pixels[[1, 2, 0]], names=["green", "red", "blue"])
    for name in "ab":
        mapped(net, tmp_path / f"{name}.tif", tmp_path / f"m{name}.tif")
        assert (opened(tmp_path / f"m{name}.tif") == pixels[2] % 7).all()


@pytest.mark.parametrize("asked, wanted", [(["3", "1"], [3, 1]), (["nir", "blue"], [4, 1]), (["2", "nir"], [2, 4]), (["red", "red"], [3, 3])])
def test_the_bands_that_are_asked_for_are_taken_in_their_order(tmp_path, asked, wanted):
    scene = write_raster(tmp_path / "s.tif", coded(20, 30, 4), names=["blue", "green", "red", "nir"])
    net = by_hand(tmp_path, Spy(remainder(7)), 2, 7, input={"of_patch": [0, 1], "names": ["green", "red"], "of_scene": [2, 3], "scene_count": 4})
    mapped(net, scene, tmp_path / "m.tif", bands=asked)
    assert net.net.seen[0][0, :, 12, 25].tolist() == [10000 * band + 1225 for band in wanted]
    assert (opened(tmp_path / "m.tif") == coded(20, 30, 4)[wanted[0] - 1] % 7).all()


def test_bands_by_other_names_are_taken_as_told_with_a_warning(tmp_path):
    scene, said = write_raster(tmp_path / "s.tif", coded(8, 8), names=["B2", "B3", "B4"]), []
    net = by_hand(tmp_path, None, 1, input={"of_patch": [0], "names": ["red"], "of_scene": [3], "scene_count": 3})
    assert fitting.scene_bands(net, scene, ["B4"], said.append) == [3]
    assert len(said) == 1 and "bands B4 are taken by place for red" in said[0]


@pytest.mark.parametrize("asked, says", [
    (["red"], r"^--bands: names 1 bands \(red\); the network takes 2 \(green, red\)"),
    (["1", "2", "3"], r"^--bands: names 3 bands \(blue, green, red\); the network takes 2 \(green, red\)"),
    (["red", "pink"], r"s.tif: has no band pink \(--bands\); choose from 1 to 3: blue, green, red"),
    (["0", "1"], r"s.tif: has no band 0 \(--bands\)"),
    (["4", "1"], r"s.tif: has no band 4 \(--bands\)"),
])
def test_bands_that_do_not_fit_are_refused_naming_both(tmp_path, asked, says):
    scene = write_raster(tmp_path / "s.tif", coded(8, 8), names=["blue", "green", "red"])
    net = by_hand(tmp_path, None, 2, input={"of_patch": [0, 1], "names": ["green", "red"], "of_scene": [2, 3], "scene_count": 3})
    with pytest.raises(SetupError, match=says):
        mapped(net, scene, tmp_path / "m.tif", bands=asked)
    assert not (tmp_path / "m.tif").exists()


# ---------------------------------------------------------------- pixel sizes


def north_up(size, x=5e5, y=48e5):
    return Affine(size, 0, x, 0, -size, y)


def grid_of(folder, trained, crs, transform, resample=False):
    """The grid for a scene of 20 x 30 pixels, and what is said; the network was trained on pixels of size `trained`."""
    said, scene = [], write_raster(folder / "s.tif", coded(20, 30, 1), crs=crs, transform=transform)
    return fitting.grid_of(by_hand(folder, None, pixel_size=trained), scene, resample, said.append), " ".join(said)


METRES, FEET, SURVEY = [10.0, 10.0, "metre"], [100.0, 100.0, "foot"], [32.80833, 32.80833, "US survey foot"]


@pytest.mark.parametrize("trained, crs, transform, here, there", [
    (METRES, "EPSG:32630", north_up(30), "30 metre", "10 metre"),
    (METRES, "EPSG:32630", north_up(10.6), "10.6 metre", "10 metre"),
    (METRES, "EPSG:32630", north_up(9.4), "9.4 metre", "10 metre"),
    (METRES, "EPSG:32630", Affine(10, 0, 5e5, 0, -20, 48e5), "10 x 20 metre", "10 metre"),
    (METRES, "EPSG:4326", north_up(0.001, 5, 45), r"0.001 degree \(about 111 m\)", "10 metre"),
    (METRES, "EPSG:4326", north_up(10 / METRES_PER_DEGREE, 5, 60), r"8.98311e-05 degree \(about 10 m\)", "10 metre"),  # half as wide as high, so far north
    ([0.001, 0.001, "degree"], "EPSG:32630", north_up(10), "10 metre", r"0.001 degree \(about 111 m\)"),
    (FEET, "EPSG:32630", north_up(10), "10 metre", "100 foot"),
    (METRES, "EPSG:2263", north_up(10), "10 US survey foot", "10 metre"),
])
def test_another_pixel_size_is_said_with_both_figures(tmp_path, trained, crs, transform, here, there):
    grid, said = grid_of(tmp_path, trained, crs, transform)
    assert grid is None and re.fullmatch(f"warning: .*s.tif: pixels of {here}; the network was trained on {there}: expect a poorer map, or give --resample_to_training", said)


@pytest.mark.parametrize("trained, crs, transform", [
    (METRES, "EPSG:32630", north_up(10.4)),
    (METRES, "EPSG:32630", north_up(9.6)),
    (METRES, "EPSG:32630", Affine(0, 10, 5e5, 10, 0, 48e5)),  # turned by a quarter
    (METRES, "EPSG:4326", Affine(20 / METRES_PER_DEGREE, 0, 5, 0, -10 / METRES_PER_DEGREE, 60)),
    (FEET, "EPSG:32630", north_up(30.48)),
    (SURVEY, "EPSG:2263", north_up(32.8)),
    (METRES, "EPSG:2263", north_up(32.8, 980000, 200000)),
    (None, "EPSG:32630", north_up(30)),
    (METRES, None, Affine.identity()),
])
def test_nothing_is_said_within_5_percent_or_where_a_size_is_unknown(tmp_path, trained, crs, transform):
    assert grid_of(tmp_path, trained, crs, transform) == (None, "")


@pytest.mark.parametrize("size", [10, 10.009, 9.991])
def test_within_a_thousandth_a_scene_is_its_own_grid(tmp_path, size):
    assert grid_of(tmp_path, METRES, "EPSG:32630", north_up(size), resample=True) == (None, "")


@pytest.mark.parametrize("trained, transform, says", [(None, north_up(30), "net.pth does not tell"), (METRES, Affine.identity(), "s.tif does not tell")])
def test_resampling_without_a_pixel_size_is_refused(tmp_path, trained, transform, says):
    with pytest.raises(SetupError, match=f"^--resample_to_training: .*{says} how large its pixels are"):
        grid_of(tmp_path, trained, "EPSG:32630" if trained is None else None, transform, resample=True)


@pytest.mark.parametrize("trained, crs, transform, shape", [
    (METRES, "EPSG:32630", north_up(5), (10, 15)),
    (METRES, "EPSG:32630", north_up(3), (6, 9)),
    (METRES, "EPSG:32630", north_up(3.4), (7, 11)),  # 6.8 x 10.2: what is cut counts whole
    ([10.0, 20.0, "metre"], "EPSG:32630", north_up(5), (5, 15)),
    (METRES, "EPSG:32630", north_up(0.01), (1, 1)),
    (METRES, "EPSG:4326", north_up(20 / METRES_PER_DEGREE, 5, 60 + 200 / METRES_PER_DEGREE), (40, 30)),  # its pixels are 20 m high and, at 60 degrees north, 10 m wide
])
def test_the_grid_covers_the_scene_from_its_corner_in_pixels_of_the_training(tmp_path, trained, crs, transform, shape):
    grid, said = grid_of(tmp_path, trained, crs, transform, resample=True)
    assert (grid.height, grid.width) == shape and f"the map has {shape[0]} x {shape[1]} pixels" in said
    assert (grid.transform.c, grid.transform.f) == (transform.c, transform.f)
    if crs == "EPSG:32630":
        assert (grid.transform.a, -grid.transform.e) == pytest.approx(trained[:2])


@pytest.mark.parametrize("kind, offset, scale, values, warned", [
    ("percentile", 1000, 1 / 2000, 2000, False), ("percentile", 1000, 1 / 2000, 4900, False), ("percentile", 1000, 1 / 2000, 5100, True), ("percentile", 1000, 1 / 2000, 20, False),
    ("percentile", 3000, 1 / 2000, 200, True), ("zscore", 3000, 1 / 300, 5600, False), ("zscore", 3000, 1 / 300, 5800, True), ("none", 0, 1, 60000, False)])
def test_values_far_from_the_training_are_told(tmp_path, kind, offset, scale, values, warned):
    said, pixels = [], np.full((2, 90, 70), values, "uint16")
    pixels[:, 0, 0] = 7
    network = by_hand(tmp_path, None, 2, normalizer=Normalizer(kind, (offset,) * 2, (scale,) * 2, (0.0,) * 2))
    with raster.Scene(write_raster(tmp_path / "s.tif", pixels)) as scene:
        fitting.compare_values(network, scene, said.append)
    assert [f"band_1 has {values} in the middle" in line for line in said] == [True] * warned


@pytest.mark.parametrize("nodata, rows, warned", [(None, 20, True), (None, 0, False), (0, 20, False)])
def test_zeros_that_nobody_calls_nodata_are_told(tmp_path, nodata, rows, warned):
    said, pixels = [], np.full((2, 90, 70), 9, "uint16")
    pixels[:, :rows] = 0
    with raster.Scene(write_raster(tmp_path / "s.tif", pixels, nodata=nodata)) as scene:
        fitting.compare_values(by_hand(tmp_path, None, 2), scene, said.append)
    assert ["0 in every band" in line and "--input_nodata 0" in line for line in said] == [True] * warned


def test_the_largest_numbers_are_compared_without_overflow(tmp_path):
    said, network = [], by_hand(tmp_path, None, 1, normalizer=Normalizer("percentile", (1000,), (1 / 2000,), (0.0,)))
    with raster.Scene(write_raster(tmp_path / "s.tif", np.full((1, 8, 8), 3.4e38, "float32"))) as scene, np.errstate(all="raise"):
        fitting.compare_values(network, scene, said.append)
    assert len(said) == 1 and "band_1 has 3.4e+38 in the middle" in said[0]
