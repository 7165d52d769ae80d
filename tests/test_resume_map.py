"""A map that was cut off goes on where it stopped, and ends as if it never had."""

import math
import subprocess
import sys
import time

import pytest
import rasterio
from conftest import ROOT, coded, write_raster
from tinynet import Spy, by_hand, mapped, opened, remainder

from eoseg.budget import Costs
from eoseg.errors import SetupError


class Stop(Exception):
    pass


def interrupted(folder, scene, output, after, **options):
    """Run into an exception at the forward pass number `after`."""
    calls = []

    def until(x):
        calls.append(0)
        if len(calls) > after:
            raise Stop
        return remainder(7)(x) * 0.05 + x / 30000

    with pytest.raises(Stop):
        mapped(by_hand(folder, Spy(until), classes=7), scene, output, **options)


def steady(folder):
    return by_hand(folder, Spy(lambda x: remainder(7)(x) * 0.05 + x / 30000), classes=7)


@pytest.mark.parametrize("overlap, after", [(0, 4), (16, 0), (16, 5), (16, 11), (48, 20)])
def test_a_run_cut_off_and_resumed_gives_the_same_bytes(tmp_path, overlap, after):
    pixels = coded(300, 70, 1)
    pixels[0, 100:200, :9] = 0
    scene = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    options = {"overlap": overlap, "save_confidence": True}
    plain = mapped(steady(tmp_path), scene, tmp_path / "a/m.tif", **options)
    interrupted(tmp_path, scene, tmp_path / "b/m.tif", after, **options)
    assert not list((tmp_path / "b").glob("m*"))
    network = steady(tmp_path)
    resumed = mapped(network, scene, tmp_path / "b/m.tif", resume=True, **options)
    assert resumed == plain
    assert_alike(tmp_path)
    if after > 10:
        assert len(network.net.seen) < len(range(0, 236, 64 - overlap)) * 2 + 2


def assert_alike(folder):
    """A map in a/ and one in b/ have the same bytes, and nothing is left of the making."""
    for name in ("m.tif", "m_confidence.tif", "m.tif.aux.xml"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
    assert not list((folder / "b").glob(".*"))


def cut(monkeypatch, count):
    """Have new maps made in `count` strips of columns."""
    monkeypatch.setattr("eoseg.budget.costs_of", lambda network, scene, rows, cols, options, layers, strips=None, means=None: Costs(strips or count, 0, 1, None))


@pytest.mark.parametrize("overlap, after", [(16, 0), (16, 3), (16, 11), (16, 20), (48, 40)])
def test_a_map_in_strips_goes_on_in_those_it_was_begun_with(tmp_path, monkeypatch, overlap, after):
    pixels = coded(150, 300, 1)
    pixels[0, 60:120, :100] = 0
    scene = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    options = {"overlap": overlap, "save_confidence": True}
    plain = mapped(steady(tmp_path), scene, tmp_path / "a/m.tif", **options)
    cut(monkeypatch, 3)
    interrupted(tmp_path, scene, tmp_path / "b/m.tif", after, **options)
    cut(monkeypatch, 2)  # there is more memory now
    network = steady(tmp_path)
    resumed = mapped(network, scene, tmp_path / "b/m.tif", resume=True, **options)
    assert resumed["confidence"] == plain["confidence"] and resumed["valid_pixels"] == plain["valid_pixels"]
    assert_alike(tmp_path)
    if after == 20:
        assert len(network.net.seen) < 10


@pytest.mark.parametrize("ruin", ["torn line", "short rows", "only the settings", "torn settings", "rows lost"])
def test_a_journal_that_is_torn_costs_rows_but_no_pixel(tmp_path, ruin):
    scene = write_raster(tmp_path / "s.tif", coded(300, 70, 1))
    mapped(steady(tmp_path), scene, tmp_path / "a.tif")
    interrupted(tmp_path, scene, tmp_path / "m.tif", 9)
    journal, rows = tmp_path / ".m.tif.journal.part", tmp_path / ".m.tif.classes.part"
    text = journal.read_bytes()
    if ruin == "short rows":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif ruin == "rows lost":
        rows.unlink()
    else:
        keep = {"torn line": len(text) - 40, "only the settings": text.index(b"\n") + 1, "torn settings": 20}[ruin]
        journal.write_bytes(text[:keep])
    mapped(steady(tmp_path), scene, tmp_path / "m.tif", resume=True)
    assert (tmp_path / "m.tif").read_bytes() == (tmp_path / "a.tif").read_bytes()


@pytest.mark.parametrize("other", [{"overlap": 8}, {"patch_size": 96}, {"output_nodata": 99}, {"save_confidence": True}, {"input_nodata": 5.0}])
@pytest.mark.parametrize("finished", [True, False])
def test_resuming_with_other_options_is_refused_and_names_them(tmp_path, other, finished):
    scene = write_raster(tmp_path / "s.tif", coded(300, 70, 1))
    if finished:
        mapped(steady(tmp_path), scene, tmp_path / "m.tif")
    else:
        interrupted(tmp_path, scene, tmp_path / "m.tif", 9)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SetupError, match=f"--resume: .*m.tif was made with other {next(iter(other))}"):
        mapped(steady(tmp_path), scene, tmp_path / "m.tif", resume=True, **other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resuming_a_finished_map_does_nothing(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(90, 70, 1, "float32"))
    mapped(steady(tmp_path), scene, tmp_path / "m.tif", input_nodata=math.nan)
    before, network = (tmp_path / "m.tif").stat().st_mtime_ns, steady(tmp_path)
    assert mapped(network, scene, tmp_path / "m.tif", input_nodata=math.nan, resume=True) is None
    assert not network.net.seen and (tmp_path / "m.tif").stat().st_mtime_ns == before


def test_a_map_cut_off_while_it_was_replaced_is_resumed_not_taken_for_finished(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(300, 70, 1))
    mapped(by_hand(tmp_path, Spy(remainder(5)), classes=5), scene, tmp_path / "m.tif")
    interrupted(tmp_path, scene, tmp_path / "m.tif", 9, overwrite=True)
    assert mapped(steady(tmp_path), scene, tmp_path / "m.tif", resume=True)["valid_pixels"] == 21000
    assert (opened(tmp_path / "m.tif") == coded(300, 70, 1)[0] % 7).all()


def test_resuming_over_a_file_of_another_origin_is_refused(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(30, 30, 1))
    write_raster(tmp_path / "m.tif", coded(30, 30, 1))
    with pytest.raises(SetupError, match="--resume: .*m.tif"):
        mapped(steady(tmp_path), scene, tmp_path / "m.tif", resume=True)




# ---------------------------------------------------------------- in a process of its own

DRIVER = """
import sys, time
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from tinynet import Function, by_hand, mapped, remainder
from pathlib import Path

def net(x):
    time.sleep({pause})
    return remainder(7)(x) * 0.05 + x / 30000

folder, output = Path(sys.argv[1]), Path(sys.argv[2])
mapped(by_hand(folder, Function(net), classes=7), folder / "s.tif", output, save_confidence=True, resume={resume}, patch_size={size})
from eoseg import memory
print(memory.told("VmHWM"))
"""


def start(folder, output, pause=0.0, resume=False, size=64):
    code = DRIVER.format(paths=[str(ROOT), str(ROOT / "tests")], pause=pause, resume=resume, size=size)
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_run_and_its_resumption_give_the_same_bytes(tmp_path):
    write_raster(tmp_path / "s.tif", coded(500, 70, 1))
    for name in "ab":
        (tmp_path / name).mkdir()
    mapped(steady(tmp_path), tmp_path / "s.tif", tmp_path / "a/m.tif", save_confidence=True)
    victim, journal = start(tmp_path, tmp_path / "b/m.tif", pause=1), tmp_path / "b/.m.tif.journal.part"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    other = start(tmp_path, tmp_path / "b/m.tif")  # the first still has 16 s to go
    assert other.wait() == 1 and "another run is writing" in other.stderr.read()
    victim.kill()
    victim.wait()
    assert not list((tmp_path / "b").glob("m*"))
    again = start(tmp_path, tmp_path / "b/m.tif", resume=True)
    assert again.wait() == 0, again.stderr.read()
    assert_alike(tmp_path)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_the_scene(tmp_path):
    peaks = []
    for rows in (4096, 32768):
        with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", height=rows, width=512, count=1, dtype="uint16", sparse_ok=True, tiled=True,
                           crs="EPSG:32630", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 48e5)):
            pass
        done = start(tmp_path, tmp_path / f"{rows}.tif", size=256)
        said, error = done.communicate()
        assert done.returncode == 0, error
        peaks.append(int(said))
        with rasterio.open(tmp_path / f"{rows}.tif") as src:
            assert src.shape == (rows, 512) and src.read(1).max() == 0
    assert peaks[1] < 1.1 * peaks[0]
