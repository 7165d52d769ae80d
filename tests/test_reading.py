"""Rows are read once, are those that were asked for, and an error in reading or writing ends a run at once."""

import errno
import time
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import shapely
import torch
from conftest import coded, write_raster
from tinynet import Function, Spy, by_hand, mapped, opened, remainder

from eoseg import mapjob, predict
from eoseg.budget import Costs
from eoseg.config import PredictionConfig
from eoseg.mapfile import MapFile
from eoseg.normalize import Normalizer
from eoseg.raster import Scene
from eoseg.reading import RowReader
from eoseg.tiling import Axis, strips_of

SQUARES, LINES, TALL = {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 1}, {"blockysize": 48}  # a tile is 32 pixels high


@pytest.fixture(autouse=True)
def without_a_glance(monkeypatch):
    """Scenes are not looked at before they are mapped, so that reads can be counted."""
    monkeypatch.setattr("eoseg.fitting.compare_values", lambda *given: None)


@pytest.fixture
def windows(monkeypatch):
    """The windows that scenes are asked for, in order."""
    asked, read = [], Scene.read
    monkeypatch.setattr(Scene, "read", lambda scene, window: asked.append(window) or read(scene, window))
    return asked


def jobs_and_spans(height, width, overlap, strips):
    """What predict asks the reader for: [(span, the row that it begins with)]."""
    options = PredictionConfig(patch_size=32, overlap=overlap)
    rows, cols = Axis(height, options, int), Axis(width, options, int)
    jobs = mapjob.jobs_of(SimpleNamespace(strip=0, row=0, strips=strips), rows, strips_of(cols, strips))
    return list(mapjob.spans_of(jobs, rows)), rows.size


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("overlap, strips", [(0, 1), (12, 3), (16, 1), (24, 3), (31, 1)])  # steps of 32, 20, 16, 8 and 1: larger than a block, the same, smaller
@pytest.mark.parametrize("blocks", [SQUARES, LINES, TALL], ids=["squares", "lines", "tall"])
def test_rows_are_those_asked_for_and_each_block_is_read_once(tmp_path, windows, blocks, overlap, strips):
    pixels = coded(90, 75, 2)
    pixels[:, 40:45, 10:30] = 0
    pixels[1, 70, 5] = 0
    with Scene(write_raster(tmp_path / "s.tif", pixels, nodata=0, interleave="band", **blocks)) as scene:
        assert scene.block_height == blocks["blockysize"]
        spans, tallest = jobs_and_spans(90, 75, overlap, strips)
        found = list(RowReader(scene, tallest).read(iter(spans)))
    seen, missing = np.zeros((90, 75), int), pixels == 0
    for span, rows in zip(spans, found):
        here = np.s_[span.row : span.row + span.height, span.col : span.col + span.width]
        assert rows.row == span.row and (rows.pixels == pixels[:, *here]).all()
        assert (rows.valid == ~missing.all(0)[here]).all()
        assert (missing[:, *here] == (False if rows.holes is None else rows.holes)).all()
        seen[here] += 1
    columns = {(span.col, span.width) for span in spans}
    for col, width in columns:
        read = [window for window in windows if (window.col, window.width) == (col, width)]
        assert [window.row for window in read] == [0, *np.cumsum([window.height for window in read])[:-1]] and sum(window.height for window in read) == 90
        if blocks is not TALL:
            assert all(window.row % scene.block_height == 0 for window in read)
    assert len(columns) == strips and seen.min() == 1


def test_a_block_taller_than_a_tile_is_not_held(tmp_path, windows):
    with Scene(write_raster(tmp_path / "s.tif", coded(90, 75, 1), blockysize=48)) as scene:
        spans, tallest = jobs_and_spans(90, 75, 8, 1)
        list(RowReader(scene, tallest).read(iter(spans)))
    assert windows == spans


# ---------------------------------------------------------------- an area of interest


def outline(folder, shape, crs="EPSG:32630"):
    """A file with one polygon, given in pixels (column, row) of a scene as conftest writes it."""
    placed = shapely.transform(shape, lambda points: points * (10, -10) + (500000, 4800000))
    geopandas.GeoDataFrame(geometry=[placed], crs="EPSG:32630").to_crs(crs).to_file(folder / "area.gpkg")
    return str(folder / "area.gpkg")


AREAS = {"a corner of a block": shapely.box(33, 33, 41, 37), "a block's last rows": shapely.box(0, 58, 99, 64), "aslant": shapely.Polygon([(5.2, 3.1), (90.3, 20.2), (30.7, 50.4)]),
         "two": shapely.union(shapely.box(0, 0, 7, 9), shapely.box(85, 80, 99, 99))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A network that looks far around a pixel, a scene, and all of its map: (network, path, folder of whole.tif)."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    network = by_hand(folder, torch.nn.Conv2d(1, 3, 31, padding=15), classes=3, normalizer=Normalizer("none", (15000.0,), (1e-3,), (15000.0,)))
    scene = write_raster(folder / "s.tif", coded(99, 99, 1), **SQUARES)
    mapped(network, scene, folder / "whole.tif", patch_size=48, overlap=20, save_confidence=True)
    return network, scene, folder


@pytest.mark.parametrize("area, strips, crs", [("a corner of a block", 1, "EPSG:32630"), ("a block's last rows", 2, "EPSG:32630"), ("aslant", 1, "EPSG:4326"), ("two", 2, "EPSG:3857")])
def test_inside_an_area_the_map_is_that_of_the_whole_scene(tmp_path, monkeypatch, whole, area, strips, crs):
    monkeypatch.setattr("eoseg.budget.costs_of", lambda *given: Costs(strips, 0, 1, None))
    network, scene, folder = whole
    summary = mapped(network, scene, tmp_path / "part.tif", aoi=outline(tmp_path, AREAS[area], crs), patch_size=48, overlap=20, save_confidence=True)
    row, col = np.indices((99, 99)) + 0.5
    inside = shapely.contains_xy(AREAS[area], col, row)
    assert summary["valid_pixels"] == inside.sum() > 0
    for ending, outside in ((".tif", 255), ("_confidence.tif", np.nan)):
        np.testing.assert_array_equal(opened(tmp_path / f"part{ending}"), np.where(inside, opened(folder / f"whole{ending}"), outside))


def test_what_lies_far_from_the_area_is_not_read(tmp_path, windows):
    net, pixels = Spy(remainder(7)), coded(99, 99, 1)
    mapped(by_hand(tmp_path, net, classes=7), write_raster(tmp_path / "s.tif", pixels, **SQUARES), tmp_path / "m.tif", patch_size=16, overlap=0,
           aoi=outline(tmp_path, shapely.box(50, 50, 60, 60)))
    assert [tile.tolist() for tile in net.seen[0][0, :, :16, :16]] == pixels[:, 48:64, 48:64].tolist() and len(net.seen) == 1
    rows = {row for window in windows for row in range(window.row, window.row + window.height)}
    assert set(range(48, 64)) <= rows <= set(range(32, 80))


# ---------------------------------------------------------------- errors


class Stop(Exception):
    pass


def until(true):
    """Wait for what another thread does."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kept(monkeypatch, room, name):
    """The objects that a room of the house makes of its class `name`."""
    made, kind = [], getattr(room, name)
    monkeypatch.setattr(room, name, lambda *given, **named: made.append(kind(*given, **named)) or made[-1])
    return made


def test_no_tile_is_run_after_reading_has_failed(tmp_path, monkeypatch):
    reads, readers, calls, read = [], kept(monkeypatch, mapjob, "RowReader"), [], Scene.read

    def third_fails(scene, window):
        reads.append(window)
        if len(reads) == 3:
            until(lambda: len(calls) == 5)  # the first of the second row's four tiles
            raise Stop("the disk is gone")
        return read(scene, window)

    def net(x):
        calls.append(0)
        if len(calls) == 5:
            until(lambda: readers[0].failed)
        return remainder(7)(x)

    monkeypatch.setattr(Scene, "read", third_fails)
    scene = write_raster(tmp_path / "s.tif", coded(99, 99, 1), **SQUARES)
    with pytest.raises(Stop, match="the disk is gone"):
        mapped(by_hand(tmp_path, Function(net), classes=7), scene, tmp_path / "m.tif", patch_size=32, overlap=8)
    assert len(calls) == 5 and len(reads) == 3 and not (tmp_path / "m.tif").exists()


def test_no_tile_is_run_after_writing_has_failed(tmp_path, monkeypatch):
    writers, puts, calls, put = kept(monkeypatch, predict, "Behind"), [], [], MapFile._put

    def second_fails(canvas, *given):
        puts.append(0)
        if len(puts) == 2:
            until(lambda: len(calls) == 9)  # the first of the third row's four tiles
            raise OSError(errno.ENOSPC, "No space left on device")
        put(canvas, *given)

    def net(x):
        calls.append(0)
        if len(calls) == 9:
            until(lambda: writers[0].jobs[-1].done())
        return remainder(7)(x)

    monkeypatch.setattr(MapFile, "_put", second_fails)
    with pytest.raises(OSError, match="No space left") as failure:
        mapped(by_hand(tmp_path, Function(net), classes=7), write_raster(tmp_path / "s.tif", coded(99, 99, 1)), tmp_path / "m.tif", patch_size=32, overlap=8)
    assert failure.value.errno == errno.ENOSPC and len(calls) == 9 and len(puts) == 2 and not (tmp_path / "m.tif").exists()
