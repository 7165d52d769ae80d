"""Tiles along a side of a scene, and strips of columns."""

import numpy as np
import pytest
import torch
from conftest import coded, write_raster
from tinynet import Function, by_hand, mapped, opened

from eoseg import budget
from eoseg.config import PredictionConfig
from eoseg.tiling import Axis, narrow_enough, strips_of, widest

CASES = [(300, 64, 16), (300, 64, 0), (300, 64, 40), (64, 64, 16), (65, 64, 16), (20, 64, 16), (200, 64, 63), (97, 32, 31), (1, 64, 16), (301, 100, 51)]


def axis(length, size=64, overlap=16, fit=lambda size: size):
    return Axis(length, PredictionConfig(patch_size=size, overlap=overlap), fit)


def test_an_axis_by_hand():
    one = axis(150, fit=lambda size: -(-size // 50) * 50)
    assert (one.length, one.size, one.starts, one.padded) == (150, 64, [0, 48, 86], 100)
    assert [one.finished(index) for index in range(3)] == [48, 86, 150] and one.weights.shape == (3, 64)


@pytest.mark.parametrize("length, overlap", [(20, 16), (20, 63), (1, 5)])
def test_a_tile_larger_than_the_scene_shrinks(length, overlap):
    one = axis(length, overlap=overlap, fit=lambda size: size + 1)
    assert (one.size, one.padded, one.starts, one.finished(0)) == (length, length + 1, [0], length) and (one.weights == 1).all()


@pytest.mark.parametrize("length, size, overlap", CASES)
def test_strips_share_the_columns_out_and_hold_each_tile_that_touches_them(length, size, overlap):
    one = axis(length, size, overlap)
    for count in range(1, len(one.starts) + 1):
        strips = strips_of(one, count)
        owners = np.zeros(length, int)
        for strip in strips:
            owners[strip.left : strip.right] += 1
            assert list(strip.tiles) == [i for i, start in enumerate(one.starts) if start < strip.right and start + one.size > strip.left]
            assert (strip.begin, strip.end) == (one.starts[strip.tiles[0]], one.starts[strip.tiles[-1]] + one.size)
            assert strip.begin <= strip.left < strip.right <= strip.end
        assert len(strips) == count and (owners == 1).all() and [strip.left for strip in strips] == sorted(strip.left for strip in strips)


def test_one_strip_is_the_whole_and_two_share_the_tile_across_their_border():
    assert strips_of(axis(300), 1) == [(0, 300, range(6), 0, 300)]
    assert strips_of(axis(300), 2) == [(0, 144, range(3), 0, 160), (144, 300, range(2, 6), 96, 300)]
    assert strips_of(axis(160, 64, 40), 2) == [(0, 48, range(2), 0, 88), (48, 160, range(5), 0, 160)]  # each column lies in up to three tiles


@pytest.mark.parametrize("length, size, overlap", CASES)
def test_as_few_strips_as_are_narrow_enough(length, size, overlap):
    one = axis(length, size, overlap)
    widths = [widest(strips_of(one, count)) for count in range(1, len(one.starts) + 1)]
    for most in range(-1, length + 2):
        found = narrow_enough(one, most)
        wanted = next((count for count, width in enumerate(widths, 1) if width <= most), None)
        assert (found and len(found)) == wanted and (found is None or found == strips_of(one, wanted))


@pytest.mark.parametrize("strips, overlap, blend", [(2, 16, "cosine"), (3, 40, "gaussian"), (4, 0, "none")])
def test_strip_by_strip_the_map_has_the_same_bytes(tmp_path, monkeypatch, strips, overlap, blend):
    pixels = coded(150, 230, 1)
    pixels[0, 30:60, 100:180] = 0
    scene = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    torch.manual_seed(0)
    around = torch.nn.Conv2d(1, 3, 3, padding=1)  # what it says hangs on where its tile ends
    network = by_hand(tmp_path, Function(lambda x: around(x / 5000)), classes=3)
    found = []
    for count in (1, strips):
        (tmp_path / str(count)).mkdir()
        monkeypatch.setattr(budget, "costs_of", lambda *told: budget.Costs(count, 0, 0, None))
        found.append(mapped(network, scene, tmp_path / f"{count}/m.tif", overlap=overlap, blend=blend, save_confidence=True))
    assert found[0] == found[1] and len(set(np.unique(opened(tmp_path / "1/m.tif")))) > 2
    for name in ("m.tif", "m_confidence.tif", "m.tif.aux.xml"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / str(strips) / name).read_bytes()
