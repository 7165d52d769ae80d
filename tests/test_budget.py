"""What a map costs is known before anything is written, and a scene too wide for the memory is mapped in strips."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from conftest import coded, write_raster
from cutouts import square, write_vector
from tinynet import Point, Spy, by_hand, identity, mapped, opened, remainder, save

from eoseg import budget, memory, predict, raster
from eoseg.blending import Blending
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError
from eoseg.mapfile import layers_of
from eoseg.tiling import Axis, strips_of, widest

HELD = 10**9
TIGHT = PredictionConfig(patch_size=64, overlap=16)
LAYERS = layers_of(Path("m.tif"), ["a", "b"], ["a", "b"], [], TIGHT)


def axis(length, size=64, overlap=16):
    return Axis(length, PredictionConfig(patch_size=size, overlap=overlap), lambda size: size)


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def scene_of(bands=3, block_height=1):
    """What of a Scene is counted: bands of 16 bits."""
    return SimpleNamespace(bands=list(range(1, bands + 1)), dtype=np.dtype("uint16"), block_height=block_height)


def zeros(classes):
    return Spy(lambda x: x.new_zeros(len(x), classes, *x.shape[-2:]))


@pytest.fixture
def steady(monkeypatch):
    """The process holds 1 GB, now and at its peak; 100 GB are free."""
    monkeypatch.setattr(memory, "told", lambda key, file=None: HELD)
    monkeypatch.setattr(memory, "available", lambda: 10**11)


# ---------------------------------------------------------------- memory


def test_a_cpu_takes_one_tile_at_once_and_a_gpu_many_unless_told():
    on = lambda kind: SimpleNamespace(device=torch.device(kind))
    assert budget.batch_of(on("cpu"), PredictionConfig()) == 1 < budget.batch_of(on("cuda"), PredictionConfig())
    assert budget.batch_of(on("cpu"), PredictionConfig(batch_size=5)) == budget.batch_of(on("cuda"), PredictionConfig(batch_size=5)) == 5


@pytest.mark.parametrize("what", ["bands", "classes", "height", "normalisers"])
def test_a_column_grows_linearly_with_what_fills_it(tmp_path, what):
    def bytes_at(n):
        bands, classes, height, kinds = (n if what == key else usual for key, usual in (("bands", 3), ("classes", 4), ("height", 64), ("normalisers", 1)))
        first = by_hand(tmp_path, None, bands, classes)
        others = tuple(first._replace(normalizer=identity(bands, fill)) for fill in range(kinds))  # the first is the network's own
        return budget.column_bytes(first._replace(others=others), scene_of(bands), axis(1000, height, 0), LAYERS).host

    found = [bytes_at(n) for n in (4, 5, 6, 7)]
    steps = set(np.diff(found).tolist())
    assert len(steps) == 1 and steps.pop() > 0
    if what == "normalisers":
        assert found[1] - found[0] == 64 * 3 * 4  # three bands of float32, once more


@pytest.mark.parametrize("bands, classes, binary, block", [(1, 2, True, 1), (12, 3, False, 16), (3, 40, False, 512)])
def test_a_column_holds_at_least_what_is_kept_for_it(tmp_path, bands, classes, binary, block):
    network, rows, cols = by_hand(tmp_path, None, bands, classes, binary), axis(300), axis(300)
    strip = strips_of(cols, 1)[0]
    kept = Blending(network, rows, cols, strip, TIGHT, 1, LAYERS)
    tensors = [*kept.inputs.values(), kept.sums, kept.known]
    decoded = bands * 2 * rows.size * cols.length
    assert sum(t.numel() * t.element_size() for t in tensors) + kept.valid.nbytes + decoded < budget.column_bytes(network, scene_of(bands, block), rows, LAYERS).host * cols.length


def test_with_plenty_of_memory_there_is_one_strip_and_no_trial(tmp_path, steady):
    network = by_hand(tmp_path, zeros(2), 3)
    costs = budget.costs_of(network, scene_of(), axis(300), axis(300), TIGHT, LAYERS)
    assert (costs.strips, costs.tried, network.net.seen) == (1, None, []) and HELD < costs.memory < costs.limit == HELD + budget.SPARE * 10**11


@pytest.mark.parametrize("columns, strips", [(300, 1), (299, 2), (204, 2), (203, 3), (160, 3), (159, 4), (155, 6), (112, 6)])
def test_what_memory_allows_decides_the_strips(tmp_path, steady, columns, strips):
    network, rows, cols = by_hand(tmp_path, zeros(2), 3), axis(300), axis(300)
    column = budget.column_bytes(network, scene_of(), rows, LAYERS).host
    limit = HELD + raster.CACHE + column * columns + column - 1
    costs = budget.costs_of(network, scene_of(), rows, cols, PredictionConfig(max_memory=limit), LAYERS)
    assert (costs.strips, costs.limit) == (strips, limit)
    assert costs.memory == HELD + raster.CACHE + column * widest(strips_of(cols, strips)) <= limit
    assert [tuple(tile.shape) for tile in network.net.seen] == [(1, 3, 64, 64)] * 2  # the trial


def test_a_limit_that_holds_a_tile_but_not_those_it_overlaps_is_told_truly(tmp_path, steady):
    network, rows, cols = by_hand(tmp_path, zeros(2), 3), axis(320), axis(320, overlap=32)
    column = budget.column_bytes(network, scene_of(), rows, LAYERS).host
    limit = HELD + raster.CACHE + column * 96 - 1  # a tile of 64, and the half of its neighbour that it does not share
    with pytest.raises(SetupError, match="the narrowest strip, 96 columns for tiles of 64 x 64 pixels"):
        budget.costs_of(network, scene_of(), rows, cols, PredictionConfig(max_memory=limit), LAYERS)
    assert budget.costs_of(network, scene_of(), rows, cols, PredictionConfig(max_memory=limit + 1), LAYERS).strips == 9


def test_a_limit_that_takes_strips_gives_each_pixel_its_class(tmp_path, steady):
    pixels, network = coded(100, 300, 1), by_hand(tmp_path, Spy(remainder(7)), classes=7)
    scene = write_raster(tmp_path / "s.tif", pixels)
    limit = HELD + raster.CACHE + 250 * budget.column_bytes(network, scene_of(1), axis(100), LAYERS).host  # of 300 columns
    mapped(network, scene, tmp_path / "m.tif", max_memory=limit)
    tiles = len(network.net.seen) - 2
    assert tiles > 2 * 6 and (opened(tmp_path / "m.tif") == pixels[0] % 7).all()


def test_too_little_memory_is_one_line_before_anything_is_written(tmp_path):
    scene, network = write_raster(tmp_path / "s.tif", coded(100, 100, 1)), by_hand(tmp_path, zeros(2))
    before = listing(tmp_path)
    with pytest.raises(SetupError, match=r"^--max_memory 2.0 MB: the narrowest strip.* takes about .*; give more, or a smaller --patch_size\.$"):
        mapped(network, scene, tmp_path / "new/m.tif", max_memory="2MB")
    assert listing(tmp_path) == before


# ---------------------------------------------------------------- disk


@pytest.mark.parametrize("options, making, more", [({}, 10**6, 5 * 10**5), ({"save_confidence": True}, 5 * 10**6, 4.9 * 10**6), ({"output_nodata": 256}, 2 * 10**6, 10**6)])
def test_the_disk_holds_classes_and_confidence_by_hand(options, making, more):
    assert budget.disk_bytes(10**6, layers_of(Path('m.tif'), ['a', 'b'], ['a', 'b'], [], PredictionConfig(**options))) == (making, more)


@pytest.mark.parametrize("options", [{}, {"dry_run": True}])
def test_a_disk_too_full_is_one_line_and_nothing_is_left_behind(tmp_path, monkeypatch, options):
    scene, network = write_raster(tmp_path / "s.tif", coded(100, 100, 1)), by_hand(tmp_path, zeros(2))
    before = listing(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10000))
    with pytest.raises(SetupError, match=rf"^--output {tmp_path}/new/m.tif: the map takes about 14.6 kB while it is made, 9.8 kB are free in {tmp_path}"):
        mapped(network, scene, tmp_path / "new/m.tif", **options)
    assert listing(tmp_path) == before
    budget.check_disk(tmp_path / "m.tif", 10000, LAYERS, held=10000)  # of the run that is gone on with


# ---------------------------------------------------------------- a dry run


def test_a_dry_run_says_what_the_map_costs_and_writes_nothing(tmp_path, script, point_models):
    scene, model = write_raster(tmp_path / "s.tif", coded(300, 200)), save(tmp_path / "m.pth", Point(3, 4))
    before = listing(tmp_path)
    status, said, error = script("Predict_large_image_v2", "--model", model, "--input", scene, "--output", tmp_path / "new/map.tif",
                                 "--patch_size", 64, "--overlap", 16, "--dry_run", "--save_confidence", "--quicklook", "--save_patches")
    assert (status, error) == (0, "") and listing(tmp_path) == before
    assert re.search(r"^tiles     24 \(6 x 4 of 64 x 64 pixels, cosine blending\); ", said, re.M)
    assert re.search(r"^memory    about [\d.]+ [MG]B of [\d.]+ [MG]B; 1 strip of at most 200 columns$", said, re.M)
    assert re.search(r"^disk      293 kB while the map is made, then about 287 kB; ", said, re.M)  # 60,000 pixels of 1 + 4 bytes
    assert re.search(r"^time      about \d+ s for the network, ", said, re.M)
    assert said.splitlines()[-1] == "dry run   nothing was written"


def planned(network, scene, output, **options):
    """The lines of a dry run, by their first word."""
    said = []
    predict.predict(network, scene, output, PredictionConfig(**{"patch_size": 64, "overlap": 16, "dry_run": True} | options), say=said.append)
    return {line.split()[0]: line for line in said}


@pytest.mark.parametrize("polygons, count", [([square(0, 0, 40)], 1), ([square(0, 0, 49)], 4), ([square(100, 100, 1), square(290, 0, 1)], 5), ([square(0, 0, 300)], 36)])
def test_with_an_area_only_the_tiles_that_meet_it_are_counted(tmp_path, polygons, count):
    scene, area = write_raster(tmp_path / "s.tif", coded(300, 300, 1)), write_vector(tmp_path / "aoi.gpkg", polygons)
    lines = planned(by_hand(tmp_path, zeros(2)), scene, tmp_path / "m.tif", aoi=str(area))
    assert lines["tiles"].startswith(f"tiles     {count} that meet --aoi (6 x 6 of 64 x 64 pixels")


def test_tiles_across_the_borders_of_strips_are_counted_again():
    rows, cols = axis(300), axis(300)
    assert budget.tiles_within(None, rows, cols, strips_of(cols, 1)) == (36, 0)
    assert budget.tiles_within(None, rows, cols, strips_of(cols, 3)) == (36, 12)  # a column of 6 tiles at either border
    area = SimpleNamespace(hits=lambda window: [0] * (window.row == 0))
    assert budget.tiles_within(area, rows, cols, strips_of(cols, 3)) == (6, 2)


def test_a_huge_scene_is_planned_by_a_glance_at_nine_small_windows(tmp_path, monkeypatch):
    scene = tmp_path / "s.tif"
    with rasterio.open(scene, "w", driver="GTiff", height=100_000, width=100_000, count=1, dtype="uint8", tiled=True, blockxsize=512, blockysize=512, sparse_ok=True,
                       crs="EPSG:32630", transform=rasterio.transform.from_origin(5e5, 48e5, 10, 10)):
        pass
    read, raw = [], raster.Scene.raw
    monkeypatch.setattr(raster.Scene, "raw", lambda scene, window: read.append(window.height * window.width) or raw(scene, window))
    lines = planned(by_hand(tmp_path, zeros(2)), scene, tmp_path / "m.tif", patch_size=512, overlap=128)
    assert lines["tiles"].startswith("tiles     68,121 (261 x 261 of 512 x 512 pixels") and "9.3 GB while the map is made" in lines["disk"]
    assert read == [64 * 64] * 9
