"""Tiles become one map: however they lie, blend, batch and strip, each pixel gets the answer that is its own."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import coded, write_raster
from tinynet import Function, Point, Spy, by_hand, mapped, opened, remainder

from eoseg.blending import sent, unsigned
from eoseg.budget import Costs
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError
from eoseg.mapfile import BINS, ONE, layers_of
from eoseg.network import network_size
from eoseg.normalize import Normalizer
from eoseg.mapjob import start
from eoseg.predict import fill
from eoseg.raster import Scene
from eoseg.tiles import BLENDS
from eoseg.tiling import Axis

STEP = 2**-12  # of probabilities
PERCENTILE = Normalizer("percentile", (100.0, 0.0, 50.0), (1e-4, 2e-4, 1.1e-4), (5000.0, 2000.0, 7000.0), 0.0, 1.0)


class Canvas:
    """Takes what a MapFile takes, and keeps it as arrays."""

    def __init__(self, shape, strips):
        self.strip, self.row, self.strips = 0, 0, strips
        self.classes, self.confidence, self.written, self.rows = np.full(shape, -1), np.full(shape, -1.0), np.zeros(shape, int), []

    def write(self, left, row, finished):
        height, width = finished.layers["classes"].shape[1:]
        here = slice(row, row + height), slice(left, left + width)
        self.classes[here], self.written[here] = finished.layers["classes"][0], self.written[here] + 1
        self.confidence[here] = finished.layers["confidence"][0] if "confidence" in finished.layers else np.nan
        self.rows.append(finished)

    def summed(self):
        """Counts of the classes, histogram and total of the confidence, over all rows."""
        return sum(rows.counts.sum(0) for rows in self.rows), sum(rows.histogram for rows in self.rows), sum(rows.total for rows in self.rows)


def swept(network, path, strips=1, say=lambda line: None, **options):
    """The scene at `path` as predict sweeps over it, without a file: a Canvas."""
    options = PredictionConfig(**{"patch_size": 32, "overlap": 8, "threshold": 0.5, "save_confidence": True} | options)
    fit = lambda length: network_size(network, length)
    with Scene(path) as scene:
        rows, cols = Axis(scene.height, options, fit), Axis(scene.width, options, fit)
        canvas = Canvas((scene.height, scene.width), min(strips, len(cols.starts)))
        layers = layers_of(Path("m.tif"), network.class_names, network.class_names, [], options)
        job = SimpleNamespace(network=network, scene=scene, rows=rows, cols=cols, options=options, area=None, layers=layers, say=say)
        start(job, canvas)
        fill(job, lambda items, **settings: items)
    assert (canvas.written == 1).all()
    return canvas


def answers(network, pixels, missing):
    """Probabilities (C, H, W) float64 of a Point, without tiles or torch."""
    weight, bias = (part.detach().double().numpy() for part in (network.net.conv.weight[:, :, 0, 0], network.net.conv.bias))
    chance = np.exp(np.einsum("cb,bhw->chw", weight, network.normalizer(pixels, missing).astype(float)) + bias[:, None, None])
    return chance / chance.sum(0)


# ---------------------------------------------------------------- no tiling shows


@pytest.fixture(scope="module")
def holey(tmp_path_factory):
    """A scene of 53 x 83 pixels without data in places, and in one band alone in others; pixels, and where they are missing."""
    random = np.random.default_rng(0)
    pixels = random.integers(1, 10000, (3, 53, 83)).astype("uint16")
    pixels[:, 20:31, 40:60] = 65535
    pixels[1][random.random((53, 83)) < 0.05] = 65535
    return write_raster(tmp_path_factory.mktemp("holey") / "s.tif", pixels, nodata=65535), pixels, pixels == 65535


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("patch, overlap, ways", [(16, 9, [(2, 64)]), (23, 3, [(99, 2)]), (40, 0, [(1, 1), (2, 3)]), (40, 33, [(1, 3), (99, 64)]), (200, 50, [(1, 2)])])
def test_a_pixels_answer_is_its_own_however_it_is_tiled_blended_and_cut_into_strips(tmp_path, holey, patch, overlap, ways, blend):
    scene, pixels, missing = holey
    network, valid = by_hand(tmp_path, Point(3, 5), 3, 5, normalizer=PERCENTILE), ~missing.all(0)
    truth = answers(network, pixels, missing)
    second, first = np.sort(truth, 0)[-2:]
    sure = valid & (first - second > 2 * STEP)
    assert sure.sum() > 0.995 * valid.sum()
    for strips, batch in ways:
        found = swept(network, scene, strips, patch_size=patch, overlap=overlap, blend=blend, batch_size=batch)
        assert (found.classes == truth.argmax(0))[sure].all() and abs(found.confidence - first)[valid].max() <= 2 * STEP
        assert (found.classes[~valid] == 255).all() and np.isnan(found.confidence[~valid]).all()
        counts, histogram, total = found.summed()
        assert counts.sum() == histogram.sum() == valid.sum() and total == found.confidence[valid].sum() * ONE


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("overlap", [0, 19])
def test_a_constant_probability_comes_back_bit_for_bit(tmp_path, blend, overlap):
    chance = np.array([0.21, 0.36, 0.43])
    net = Function(lambda x: torch.from_numpy(np.log(chance)).float()[None, :, None, None].expand(len(x), 3, *x.shape[-2:]))
    scene = write_raster(tmp_path / "s.tif", coded(61, 47, 1))
    found = swept(by_hand(tmp_path, net, classes=3), scene, 2, overlap=overlap, blend=blend, batch_size=4)
    assert (found.confidence == round(0.43 / STEP) * STEP).all() and (found.classes == 2).all()


@pytest.mark.parametrize("strips, blend", [(1, "none"), (2, "gaussian"), (3, "cosine"), (99, "none")])
def test_strips_shift_no_pixel(tmp_path, strips, blend):
    pixels = coded(70, 99, 1)
    scene = write_raster(tmp_path / "s.tif", pixels, tiled=True, blockxsize=16, blockysize=16)
    found = swept(by_hand(tmp_path, Function(remainder(7)), classes=7), scene, strips, patch_size=24, overlap=14, blend=blend)
    assert (found.classes == pixels[0] % 7).all()


def test_a_map_made_in_strips_has_the_bytes_of_one_that_was_not(tmp_path, monkeypatch):
    scene = write_raster(tmp_path / "s.tif", coded(70, 99, 1))
    torch.manual_seed(0)
    blur, maps = torch.nn.Conv2d(1, 3, 9, padding=4), []
    network = by_hand(tmp_path, blur, classes=3, normalizer=Normalizer("none", (10000.0,), (1e-3,), (0.0,)))
    for strips in (1, 3):
        monkeypatch.setattr("eoseg.budget.costs_of", lambda *given: Costs(strips, 0, 1, None))
        mapped(network, scene, tmp_path / f"{strips}.tif", patch_size=32, overlap=8, save_confidence=True)
        maps.append([(tmp_path / f"{strips}{ending}").read_bytes() for ending in (".tif", "_confidence.tif")])
    assert maps[0] == maps[1] and len(np.unique(opened(tmp_path / "3.tif"))) > 1


@pytest.mark.parametrize("patch, overlap", [(32, 0), (32, 8), (32, 24), (31, 20)])
def test_without_blending_each_pixel_is_the_nearest_tiles(tmp_path, patch, overlap):
    calls = []

    def number(x):
        calls.append(0)
        return 30.0 * torch.nn.functional.one_hot(torch.full((1, *x.shape[-2:]), len(calls) - 1), 60).movedim(-1, 1).float()

    found = swept(by_hand(tmp_path, Function(number), classes=60), write_raster(tmp_path / "s.tif", coded(50, 75, 1)), patch_size=patch, overlap=overlap, blend="none", batch_size=1)
    options = PredictionConfig(patch_size=patch, overlap=overlap)
    nearest = []
    for length in (50, 75):
        middles = np.array(Axis(length, options, int).starts) + patch / 2
        nearest.append(abs(np.arange(length)[:, None] + 0.5 - middles).argmin(1))  # of two as near, the first
    assert (found.classes == nearest[0][:, None] * (nearest[1].max() + 1) + nearest[1]).all()
    assert (found.confidence == 1).all()


# ---------------------------------------------------------------- what the networks are given


@pytest.mark.parametrize("strips", [1, 2])
def test_each_member_of_an_ensemble_has_its_own_normalisation(tmp_path, holey, strips):
    scene, pixels, missing = holey
    zscore = Normalizer("zscore", (3000.0, 4000.0, 5000.0), (1e-3, 5e-4, 2e-4), (1.0, 2.0, 3.0))
    members = [by_hand(tmp_path, Point(3, 4, seed), 3, 4, normalizer=stats) for seed, stats in enumerate((PERCENTILE, zscore, PERCENTILE))]
    found = swept(members[0]._replace(others=tuple(members[1:])), scene, strips, patch_size=40, overlap=10, batch_size=2)
    wanted = sum(answers(one, pixels, missing) for one in members) / 3
    assert abs(found.confidence - wanted.max(0))[~missing.all(0)].max() <= 2 * STEP


@pytest.mark.parametrize("per_band", [False, True])
def test_an_older_network_has_each_tile_divided_by_its_own_percentile(tmp_path, holey, per_band):
    scene, pixels, missing = holey
    net = Spy(remainder(3))
    swept(by_hand(tmp_path, net, 3, 3, normalizer=Normalizer.of_each_patch(3, 98.0, per_band)), scene, patch_size=30, overlap=4, batch_size=2)
    seen = torch.cat(net.seen).numpy()
    places = [(row, col) for row in (0, 23) for col in (0, 26, 52, 53)]
    assert len(seen) == len(places) and seen.shape[2:] == (32, 32)
    for tile, (row, col) in zip(seen, places):
        raw = np.where(missing, 0, pixels)[:, row : row + 30, col : col + 30].astype(float)
        top = np.percentile(raw, 98, axis=(1, 2), keepdims=True) if per_band else np.percentile(raw, 98)
        assert abs(tile[:, :30, :30] - np.minimum(raw / top, 1)).max() < 1e-6
        assert (tile[:, 30:, :30] == tile[:, [29, 28], :30]).all() and (tile[:, :, 30:] == tile[:, :, [29, 28]]).all()


@pytest.mark.parametrize("dtype, wanted", [("uint16", "int16"), ("int16", "int16"), ("uint8", "uint8"), ("bool", "bool"), ("float32", "float32"), ("int32", "int32"),
                                           ("uint32", "float32"), ("float64", "float32"), ("int64", "float32")])
def test_types_that_devices_do_not_know_go_there_as_others(dtype, wanted):
    assert sent(np.zeros((2, 3), dtype), torch.device("meta")).dtype == getattr(torch, wanted)
    assert sent(np.ones((2, 3), dtype), torch.device("cpu")).numpy().dtype == dtype


def test_16_bits_without_a_sign_are_put_right_after_the_way_to_the_device():
    numbers = np.array([0, 1, 32767, 32768, 65535], "uint16")
    assert unsigned(torch.from_numpy(numbers.view("int16")).float()).tolist() == numbers.tolist()


# ---------------------------------------------------------------- finished rows


@pytest.mark.parametrize("nodata, dtype", [(255, "uint8"), (300, "int32")])
def test_finished_rows_count_pixels_and_confidence(tmp_path, nodata, dtype):
    chances = torch.tensor([[[0.25, 0.5, 0.125, 0.5], [0.75, 0.25, 0.25, 0.0625]], [[0.5, 0.25, 0.125, 0.25], [0.125, 0.5, 0.25, 0.0625]],
                            [[0.25, 0.25, 0.75, 0.25], [0.125, 0.25, 0.5, 0.875]]])  # of 3 classes in 2 x 4 pixels
    pixels = np.array([[[0, 1, 1, 1], [1, 0, 1, 1]]], "uint8")
    net = Function(lambda x: torch.nn.functional.pad(chances.log(), (0, 28, 0, 30))[None])
    found = swept(by_hand(tmp_path, net, classes=3), write_raster(tmp_path / "s.tif", pixels, nodata=0), output_nodata=nodata)
    rows, = found.rows
    assert rows.layers["classes"][0].tolist() == [[nodata, 0, 2, 0], [0, nodata, 2, 2]] and rows.layers["classes"].dtype == dtype
    np.testing.assert_array_equal(rows.layers["confidence"][0], [[np.nan, 0.5, 0.75, 0.5], [0.75, np.nan, 0.5, 0.875]])
    assert rows.counts.tolist() == [[2, 0, 1], [1, 0, 2]]
    assert {place: count for place, count in enumerate(rows.histogram) if count} == {512: 3, 768: 2, 896: 1} and len(rows.histogram) == BINS
    assert rows.total == (0.5 + 0.75 + 0.5 + 0.75 + 0.5 + 0.875) * ONE


def test_a_confidence_of_1_counts_in_the_last_bin_and_nobody_is_sent_it_unasked(tmp_path):
    found = swept(by_hand(tmp_path, Function(lambda x: x + 99), binary=True), write_raster(tmp_path / "s.tif", np.ones((5, 4), "uint8")), save_confidence=False)
    counts, histogram, total = found.summed()
    assert counts.tolist() == [0, 20] and histogram[-1] == histogram.sum() == 20 and total == 20 * ONE
    assert set(found.rows[0].layers) == {"classes"}


@pytest.mark.parametrize("threshold, ones", [(0.5, [0, 1, 1]), (0.8, [0, 0, 1])])
def test_a_background_of_1_swaps_numbers_and_counts_but_not_the_confidence(tmp_path, threshold, ones):
    pixels = np.log(np.array([[[0.25, 0.75, 0.875]]]) / np.array([[[0.75, 0.25, 0.125]]])).astype("float32")
    network, scene = by_hand(tmp_path, Function(lambda x: x), binary=True), write_raster(tmp_path / "s.tif", pixels)
    plain, swapped = (swept(network, scene, threshold=threshold, background_value=value).rows[0] for value in (0, 1))
    assert plain.layers["classes"][0, 0].tolist() == ones and swapped.layers["classes"][0, 0].tolist() == [1 - one for one in ones]
    assert plain.counts[0].tolist() == [3 - sum(ones), sum(ones)] == swapped.counts[0, ::-1].tolist()
    assert plain.layers["confidence"][0, 0].tolist() == swapped.layers["confidence"][0, 0].tolist() == [0.75, 0.75 if ones[1] else 0.25, 0.875]


# ---------------------------------------------------------------- what goes wrong


def holding(most, function):
    """A network whose memory holds `most` tiles."""
    def forward(x):
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(x)

    return Spy(forward)


def test_a_batch_that_memory_does_not_hold_is_halved_and_said_once(tmp_path):
    scene, said, net = write_raster(tmp_path / "s.tif", coded(70, 99, 1)), [], holding(2, remainder(7))
    found = swept(by_hand(tmp_path, net, classes=7), scene, batch_size=16, say=said.append)  # a row has four tiles
    assert (found.classes == coded(70, 99, 1)[0] % 7).all()
    assert [line.split(": ")[-1] for line in said] == ["2 at once from here on"]
    assert [len(x) for x in net.seen] == [4] + [2] * 6


def test_one_tile_that_memory_does_not_hold_is_one_error(tmp_path):
    said = []
    with pytest.raises(SetupError, match="^--patch_size 32: not even one tile fits the memory of cpu"):
        swept(by_hand(tmp_path, holding(0, remainder(7)), classes=7), write_raster(tmp_path / "s.tif", coded(70, 56, 1)), batch_size=16, say=said.append)
    assert [line.split(": ")[-1] for line in said] == ["1 at once from here on"]  # of the two that a row has


def test_nan_names_the_rows_where_the_network_gave_it(tmp_path):
    ruined = lambda x: torch.where(x[:, :1] == 16070, math.nan, remainder(7)(x))  # in row 60
    with pytest.raises(SetupError, match="net.pth: .*not finite at row 48;"):
        swept(by_hand(tmp_path, Function(ruined), classes=7), write_raster(tmp_path / "s.tif", coded(99, 99, 1)), patch_size=32, overlap=8)
