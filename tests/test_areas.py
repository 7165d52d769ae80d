"""Areas of the classes against by-hand figures."""

from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from conftest import write_raster

from eoseg import areas


def ground(tmp_path, **place):
    """Two patches of 4 x 4 pixels of 10 m; in the second the first row holds no data."""
    pairs = []
    for i in range(2):
        label = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [255] * 4, [255] * 4], "uint8")
        pairs.append((write_raster(tmp_path / f"p{i}.tif", np.ones((1, 4, 4), "uint8"), **(place if i else {})), label))
    holes = np.zeros((1, 4, 4), bool)
    holes[:, 0] = True
    fetch = lambda pair: (np.ones((1, 4, 4)), holes if pair is pairs[1] else None, np.where(holes[0], 255, pair[1]) if pair is pairs[1] else pair[1])
    watch = areas.Ground(pairs, SimpleNamespace(fetch=fetch), ["land", "water"])
    called = torch.zeros(2, 8, 8, dtype=torch.int64)  # padded for the network
    called[:, :4, 1:4] = 1
    called[:, 4:] = 1
    watch(called, None, [0, 1])
    return watch


def test_mapped_areas_are_hectares_of_valid_pixels_labelled_or_not(tmp_path):
    watch = ground(tmp_path)
    found = watch.table(watch.matrices.sum(0))
    assert found["unit"] == "hectares"  # a pixel is 0.01 ha; a quarter of 16 + 12 pixels is called land
    assert {name: part["mapped"] for name, part in found["per_class"].items()} == pytest.approx({"land": 0.07, "water": 0.21})
    # labelled: 4 + 4 pixels of the first patch, 2 + 2 of the second; of the 3 called land all are, of the 9 called water 6
    assert watch.matrices.sum(0).tolist() == [[3, 3], [0, 6]]
    assert {name: part["estimated"] for name, part in found["per_class"].items()} == pytest.approx({"land": 0.07 + 0.21 / 3, "water": 0.21 * 2 / 3})
    error = 0.21 * np.sqrt(1 / 3 * 2 / 3 / (9 - 1))  # of the stratum called water; the other has none
    assert [part["standard_error"] for part in found["per_class"].values()] == pytest.approx([error, error])
    assert found["per_class"]["water"]["high"] == pytest.approx(0.14 + 1.959964 * error)


def test_one_patch_without_a_place_on_earth_makes_all_areas_pixels(tmp_path):
    found = ground(tmp_path, crs=None).table([[3, 3], [0, 6]])
    assert found["unit"] == "pixels" and [part["mapped"] for part in found["per_class"].values()] == [7, 21]


def test_degrees_become_hectares_by_latitude(tmp_path):
    place = {"crs": "EPSG:4326", "transform": rasterio.transform.from_origin(10, 60, 1e-4, 1e-4)}
    watch = ground(tmp_path, **place)
    metres = 1e-4 * np.pi / 180 * 6_371_000
    assert watch.hectares[0] == pytest.approx(0.04 + 3 * metres**2 * np.cos(np.radians(60)) / 1e4, rel=0.01)
