"""Maps that were cut off, by a full disk or a kill, and what may have become of them until they are gone on with."""

import errno
import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import rasterio
from conftest import coded, write_raster
from faults import assert_refused, assert_worked
from littlemaps import NAMES, folder_of_a_scene, nearest, prediction, right  # noqa: F401 (fixtures)
from tinynet import Point, save

PARTS = r"\.part$"


@contextmanager
def full_after(count):
    """A disk that takes so many bytes of a file, and no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("count", [100, 1000, 5000, 30000])
def test_a_full_disk_is_said_and_resume_goes_on_when_there_is_room(predict, count):
    words = ["--save_confidence", "--save_probabilities", "--probability_dtype", "float32"]
    with full_after(count):
        fate = predict(*words)
    assert_refused(fate, ": ", "disk", left=PARTS)
    assert_worked(predict(*words, "--resume", may_change=PARTS))
    assert right() and not list(Path().glob(".map*"))


def test_a_full_disk_under_the_finished_map_is_said(predict, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "map.tif")

    monkeypatch.setattr("eoseg.raster.raw_to_cog", full)
    assert_refused(predict(), "map.tif: the disk is full", left=PARTS)


@pytest.fixture
def cut_off(predict, monkeypatch):
    """A map that was cut off after two of its four block rows; the lines of its journal."""
    def begin(*words, **others):
        seen = []

        def forward(self, x):
            seen.append(x)
            if len(seen) > 9:
                raise KeyboardInterrupt
            return self.conv(x)

        with monkeypatch.context() as patched:
            patched.setattr(Point, "forward", forward)
            fate = predict(*words, **others)
        assert fate.status == 130 and all(path.suffix == ".part" for path in fate.made)
        return Path(".map.tif.journal.part").read_bytes().splitlines(keepends=True)

    return begin


def test_a_map_that_was_cut_off_is_gone_on_with(predict, cut_off):
    assert len(cut_off()) > 1
    assert_worked(predict("--resume", may_change=PARTS), "resumed   after row")
    assert right()


@pytest.mark.parametrize("option", ["overlap", "patch_size", "output_nodata", "save_confidence", "tta", "blend", "input_nodata", "use_amp", "temperature", "polygons"])
def test_a_map_is_not_gone_on_with_in_other_ways(predict, cut_off, option):
    cut_off()
    value = {"overlap": [6], "patch_size": [20], "output_nodata": [99], "tta": ["flips"], "blend": ["none"], "input_nodata": [0], "temperature": [2], "polygons": [".gpkg"]}.get(option, [])
    assert_refused(predict(f"--{option}", *value, "--resume"), "--resume: the map map.tif was made with other", option.removeprefix("save_"), "--overwrite")


@pytest.mark.parametrize("change", ["touched", "another", "moved", "other network"])
def test_a_map_is_not_gone_on_with_when_scene_or_network_are_others(predict, cut_off, change):
    cut_off()
    words = {"scene": "scene"}
    if change == "touched":
        os.utime("s.tif", (1, 1))
    elif change == "another":
        os.remove("s.tif")
        write_raster("s.tif", coded(40, 48, 1) % 3, compress="deflate")
    elif change == "moved":
        os.rename("s.tif", "t.tif")
    else:
        words = {"model": "model"}
        save("m.pth", nearest(4), bands=1, names=NAMES[::-1])
    assert_refused(predict("--resume", input="t.tif" if change == "moved" else "s.tif"), "--resume: the map map.tif was made with other", *words)


def test_a_scene_of_another_size_is_not_gone_on_with(predict, cut_off):
    cut_off()
    os.remove("s.tif")
    write_raster("s.tif", coded(30, 30, 1) % 4)
    assert_refused(predict("--resume"), "--resume: ", "scene")


STATES = {"strip": [-1, 7, 10**30, None, True, 0.0, "0"], "row": [-1, 41, 40, 10**30, None, float("nan"), 12.5, "12", True], "sum": [-1, 10**40, None, float("inf"), "x", 1.5],
          "pixels": [None, [], [1], [-1] * 4, [10**30] * 4, [float("nan")] * 4, ["a"] * 4, [[]] * 4, {}, "abcd", [1, 1, 1, 1]], "area": [None, [], [-1.0] * 4, [float("nan")] * 4, [1e400] * 4, ["a"] * 4],
          "histogram": [None, [], [0], [-1] * 1024, [10**30] * 1024, [0] * 1024, {}]}
HEADS = [b"", b"\n", b"x\n", b"[]\n", b"null\n", b"{}\n", b"5\n", b'{"settings": []}\n', b"[" * 10**5 + b"\n", b"\xff\xfe\n", b'{"strips": 1}\n']


def assert_same_as_new(predict, journal, plain):
    Path(".map.tif.journal.part").write_bytes(journal)
    assert_worked(predict("--resume", may_change=PARTS))
    assert right() and [Path(name).read_bytes() for name in ("map.tif", "map.json")] == plain
    for path in Path().glob("map.*"):
        path.unlink()


@pytest.fixture
def plain(predict):
    """Content of map and card of a run that was not cut off."""
    assert_worked(predict(output="plain/map.tif"))
    return [Path("plain", name).read_bytes() for name in ("map.tif", "map.json")]


@pytest.mark.parametrize("key", [*STATES, "a line", "the head", "strips"])
def test_a_journal_that_says_what_cannot_be_costs_rows_but_no_pixel(predict, cut_off, plain, key):
    head, *lines = cut_off()
    rows, state = Path(".map.tif.classes.part").read_bytes(), json.loads(lines[-1])
    if key in STATES:
        journals = [b"".join([head, *lines[:-1], json.dumps(state | {key: value}).encode() + b"\n"]) for value in STATES[key]]
        journals.append(b"".join([head, *lines[:-1], json.dumps({name: value for name, value in state.items() if name != key}).encode() + b"\n"]))
    elif key == "a line":
        journals = [b"".join([head, *lines[:-1], line]) for line in (b"\n", b"5\n", b"[]\n", b"\xff\n", b"[" * 10**5 + b"\n", lines[-1][:50], lines[-1] * 3, b"null\n" + lines[-1])]
    elif key == "the head":
        journals = [first + b"".join(lines) for first in HEADS]
    else:
        journals = [json.dumps(json.loads(head) | {"strips": value}).encode() + b"\n" + b"".join(lines) for value in (0, -1, 10**9, None, True, 1.0, "1", float("nan"), [])]
    for journal in journals:
        Path(".map.tif.classes.part").write_bytes(rows)
        assert_same_as_new(predict, journal, plain)


@pytest.mark.parametrize("ruin", ["short", "long", "lost", "a link"])
def test_rows_that_are_not_those_of_the_journal_are_made_anew(predict, cut_off, plain, ruin):
    cut_off()
    rows, journal = Path(".map.tif.classes.part"), Path(".map.tif.journal.part")
    if ruin == "a link":
        Path("victim").write_bytes(bytes(rows.stat().st_size))
    rows.write_bytes(rows.read_bytes()[:-1]) if ruin == "short" else rows.write_bytes(rows.read_bytes() + b"x") if ruin == "long" else rows.unlink()
    if ruin == "a link":
        os.symlink("victim", rows)
    assert_same_as_new(predict, journal.read_bytes(), plain)


@pytest.mark.parametrize("tag", [None, "x", "[]", "5", "[" * 10**4, "{}"])
def test_a_map_of_another_program_is_not_taken_for_one_to_resume(predict, tag):
    write_raster("map.tif", coded(40, 48, 1))
    if tag is not None:
        with rasterio.open("map.tif", "r+") as target:
            target.update_tags(PREDICTION_SETTINGS=tag)
    assert_refused(predict("--resume"), "--resume: the map map.tif was made with other")
