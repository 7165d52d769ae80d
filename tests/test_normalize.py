"""Band statistics and the normaliser against numpy."""

import json
import math

import numpy as np
import pytest

from eoseg.normalize import BandStatistics, Normalizer

INTEGERS = ("uint8", "int8", "int16", "uint16", "int32")
FLOATS = ("float32", "float64")
PERCENTS = (*range(101), 2.5, 99.9)

KINDS = ("percentile", "zscore", "none")


def patches(dtype, seed=0):
    """Ten patches (2, 12, 9) over most of the type's range, with masks that leave a third out."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 1, (10, 2, 12, 9)) * np.array([300, 40])[:, None, None] + np.array([1000, -5])[:, None, None]
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        pixels = np.clip(np.rint(pixels), info.min, info.max)
    return pixels.astype(dtype), rng.random(pixels.shape) > 1 / 3


def collected(pixels, good, order=slice(None)):
    statistics = BandStatistics(pixels.shape[1])
    for part, mask in zip(pixels[order], good[order]):
        statistics.add(part, mask)
    return statistics


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_statistics_are_numpys(dtype):
    pixels, good = patches(dtype)
    statistics = collected(pixels, good)
    for band, found in enumerate(statistics.result()):
        values = pixels[:, band][good[:, band]]
        assert found["valid_pixels"] == values.size
        assert (found["min"], found["max"]) == (values.min(), values.max())
        assert found["mean"] == pytest.approx(values.mean(dtype=float), rel=1e-12)
        assert found["std"] == pytest.approx(values.std(dtype=float), rel=1e-12)
        assert [found["p1"], found["p50"], found["p99"]] == [statistics.percentile(band, p) for p in (1, 50, 99)]
        exact = dtype in INTEGERS  # int32 too, as these values need no more than 12 bits
        for percent in PERCENTS:
            wanted = np.percentile(values.astype(float), percent)
            assert statistics.percentile(band, percent) == pytest.approx(wanted, rel=1e-12 if exact else 2**-12)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_any_order_of_patches_gives_the_same(dtype):
    pixels, good = patches(dtype)
    forth, back = collected(pixels, good).result(), collected(pixels, good, slice(None, None, -1)).result()
    for one, other in zip(forth, back):
        assert one == pytest.approx(other, rel=1e-12)
        assert all(one[key] == other[key] for key in ("valid_pixels", "min", "max", "p1", "p50", "p99"))


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_extremes_of_the_type_do_not_overflow(dtype):
    info = np.iinfo(dtype) if dtype in INTEGERS else np.finfo(dtype)
    pixels = np.array([[[info.min, info.max, 0, 1]]], dtype)
    with np.errstate(all="ignore" if dtype == "float64" else "raise"):
        found = collected(pixels[None], np.ones((1, 1, 1, 4), bool)).result()[0]
    assert (found["min"], found["max"]) == (float(info.min), float(info.max))
    assert found["p1"] <= 0 <= found["p50"] <= 1 <= found["p99"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_percentiles_of_the_values_people_keep_in_floats_are_exact(dtype):
    values = np.concatenate([np.zeros(50), np.full(30, -0.0), np.arange(-4096, 4096), np.full(9000, 7.0)]).astype(dtype)[None, None]
    statistics = collected(values[None], np.ones((1, *values.shape), bool))
    for percent in PERCENTS:
        assert statistics.percentile(0, percent) == np.percentile(values, percent)


@pytest.mark.parametrize("offset, spread", [(1e9, 1.0), (-3e7, 10.0), (4e5, 0.01)])
def test_a_huge_offset_costs_no_deviation(offset, spread):
    rng = np.random.default_rng(1)
    pixels = offset + rng.normal(0, spread, (20, 1, 30, 30))
    found = collected(pixels, np.ones(pixels.shape, bool)).result()[0]
    assert found["std"] == pytest.approx(pixels.std(), rel=1e-6) and found["mean"] == pytest.approx(pixels.mean(), rel=1e-14)
    assert found["min"] <= found["p1"] <= found["p50"] <= found["p99"] <= found["max"]


def test_what_is_not_good_counts_nowhere():
    pixels, good = patches("float32")
    pixels[~good] = np.nan
    pixels[0, 0][~good[0, 0]] = -9999
    pixels[1, 1][~good[1, 1]] = np.inf
    clean = np.where(good, pixels, 0)
    assert collected(pixels, good).result() == collected(clean, good).result()
    assert all(math.isfinite(value) for value in collected(pixels, good).result()[0].values())


def test_a_band_without_a_good_pixel_is_nan_and_the_other_is_not():
    pixels, good = patches("uint16")
    good[:, 1] = False
    first, second = collected(pixels, good).result()
    assert first["valid_pixels"] > 0 and second["valid_pixels"] == 0
    assert all(math.isnan(value) for key, value in second.items() if key != "valid_pixels")


def test_statistics_are_plain_numbers():
    assert {type(value) for value in collected(*patches("int16")).result()[0].values()} == {int, float}


@pytest.mark.parametrize("name", ["l8_parana_scene/image.tif", "chesapeake_tile/landsat-leaf-on.tif"])
def test_a_real_scene_in_strips_has_the_statistics_of_the_whole(shared, name):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(shared / name) as src:
        pixels, nodata = src.read(), src.nodata
    good = np.isfinite(pixels) if nodata is None else pixels != nodata
    statistics = BandStatistics(len(pixels))
    for row in range(0, pixels.shape[1], 100):
        statistics.add(pixels[:, row : row + 100], good[:, row : row + 100])
    for values, mask, found in zip(pixels, good, statistics.result()):
        values = values[mask].astype(float)
        assert (found["valid_pixels"], found["min"], found["max"]) == (values.size, values.min(), values.max())
        assert [found["mean"], found["std"]] == pytest.approx([values.mean(), values.std()], rel=1e-9)
        assert [found["p1"], found["p50"], found["p99"]] == pytest.approx(np.percentile(values, [1, 50, 99]), rel=2**-12)


# ---------------------------------------------------------------- the normaliser


def fitted(kind, dtype="float32"):
    pixels, good = patches(dtype)
    return Normalizer.fitted(kind, collected(pixels, good).result()), pixels, good


def band(**values):
    return {"min": 0.0, "max": 9.0, "mean": 4.0, "std": 2.0, "p1": 1.0, "p50": 5.0, "p99": 8.0, "valid_pixels": 9, **values}


NONE_MISSING = np.zeros((1, 1, 5), bool)


def test_percentile_maps_p1_to_0_and_p99_to_1_and_clips():
    normalizer = Normalizer.fitted("percentile", [band(p1=-20.0, p99=-10.0)])  # SAR in dB
    found = normalizer(np.array([[[-30, -20, -12.5, -10, 3]]], "float32"), NONE_MISSING)
    assert found[0, 0].tolist() == [0, 0, 0.75, 1, 1] and found.dtype == np.float32


def test_zscore_has_mean_0_and_deviation_1_over_the_training_pixels():
    normalizer, pixels, good = fitted("zscore")
    found = np.stack([normalizer(part, np.zeros(part.shape, bool)) for part in pixels])
    for number in range(2):
        values = found[:, number][good[:, number]].astype(float)
        assert values.mean() == pytest.approx(0, abs=1e-6) and values.std() == pytest.approx(1, rel=1e-6)
    assert found.min() < -2 and found.max() > 2  # not clipped


def test_none_leaves_the_pixels_as_they_are():
    normalizer, pixels, _ = fitted("none", "uint16")
    found = normalizer(pixels[0], np.zeros(pixels[0].shape, bool))
    assert found.dtype == np.float32 and np.array_equal(found, pixels[0])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_pixels_become_the_bands_median(kind):
    normalizer = Normalizer.fitted(kind, [band(), band(p50=2.0)])
    pixels = np.full((2, 1, 2), np.nan, "float32")
    pixels[:, 0, 0] = [5, 2]
    missing = np.isnan(pixels)
    found = normalizer(pixels, missing)
    assert np.isfinite(found).all() and np.array_equal(found[..., 0], found[..., 1])
    assert {"percentile": [4 / 7, 1 / 7], "zscore": [0.5, -1], "none": [5, 2]}[kind] == pytest.approx(found[:, 0, 1].tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 7.0, 1e9, -1e-9])
def test_a_constant_band_stays_finite(kind, value):
    pixels = np.full((1, 1, 8, 8), value)
    normalizer = Normalizer.fitted(kind, collected(pixels, np.ones(pixels.shape, bool)).result())
    found = normalizer(pixels[0], np.zeros(pixels[0].shape, bool))
    assert np.unique(found).tolist() == [np.float32(value) if kind == "none" else 0]


def test_a_band_that_is_nearly_constant_uses_all_of_its_range():
    normalizer = Normalizer.fitted("percentile", [band(min=0.0, max=4.0, p1=0.0, p99=0.0)])  # a rare mark in a band of zeros
    assert normalizer(np.array([[[0, 1, 2, 4, 8]]], "uint8"), NONE_MISSING)[0, 0].tolist() == [0, 0.25, 0.5, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_a_crop_gives_the_crop_of_the_whole(kind, dtype):
    normalizer, pixels, good = fitted(kind, dtype)
    whole = normalizer(pixels[0], ~good[0])
    part = normalizer(pixels[0][:, 3:8, 2:7], ~good[0][:, 3:8, 2:7])
    assert np.array_equal(part, whole[:, 3:8, 2:7])


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_given_are_not_changed(kind):
    normalizer, pixels, good = fitted(kind)
    before = pixels.copy()
    normalizer(pixels[0], ~good[0])
    assert np.array_equal(pixels, before)


def older(image, percent=99, per_channel=False):
    """The older system's scaling."""
    image = image.astype(np.float32)
    tops = [np.percentile(image[b], percent) for b in range(len(image))] if per_channel else [np.percentile(image, percent)] * len(image)
    return np.stack([np.clip(part / top if top > 0 else part, 0, 1) for part, top in zip(image, tops)])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("percent", [99, 95.5])
def test_patch_percentile_is_the_older_systems(percent, per_channel):
    pixels, _ = patches("uint16")
    normalizer = Normalizer.of_each_patch(2, percent, per_channel)
    for part in pixels:
        found = normalizer(part, np.zeros(part.shape, bool))
        np.testing.assert_allclose(found, older(part, percent, per_channel), rtol=1e-6)
        assert found.dtype == np.float32


def test_patch_percentile_of_an_empty_patch_is_0():
    assert (Normalizer.of_each_patch(3)(np.zeros((3, 4, 4), "uint8"), np.zeros((3, 4, 4), bool)) == 0).all()


@pytest.mark.parametrize("make", [*[lambda kind=kind: fitted(kind)[0] for kind in KINDS], lambda: Normalizer.of_each_patch(2, 95.0, True)])
def test_a_saved_normaliser_is_the_same_one(make):
    normalizer, pixels = make(), patches("float32")[0][0]
    saved = json.loads(json.dumps(normalizer.to_dict()))
    assert Normalizer.from_dict(saved) == normalizer
    assert np.array_equal(Normalizer.from_dict(saved)(pixels, pixels < 0), normalizer(pixels, pixels < 0))
