"""Files appear whole or not at all; one run holds a folder."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from eoseg import files
from eoseg.errors import SetupError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_is_written_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "deep" / "a.tif"
    for content in (b"old", b"new"):
        with files.replacing(path) as part:
            assert part.parent == path.parent and not part.match("*.tif") and not part.match("*.pth")
            part.write_bytes(content)
        assert path.read_bytes() == content and names(path.parent) == ["a.tif"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_the_old_file_and_no_leftover(tmp_path, error):
    path = tmp_path / "a.tif"
    path.write_bytes(b"old")
    with pytest.raises(error), files.replacing(path) as part:
        part.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.tif"]


def test_a_file_that_fails_its_check_never_gets_its_name(tmp_path):
    def check(part):
        assert part.read_bytes() == b"bad"
        raise SetupError("bad")

    with pytest.raises(SetupError), files.replacing(tmp_path / "a.tif", check) as part:
        part.write_bytes(b"bad")
    assert names(tmp_path) == []


def test_nothing_written_is_an_error_not_an_empty_file(tmp_path):
    with pytest.raises(OSError), files.replacing(tmp_path / "a.tif"):
        pass
    assert names(tmp_path) == []


def test_until_the_end_the_old_file_stands_there_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with files.replacing(path) as part:
        part.write_text("x" * 10000)
        assert json.loads(path.read_text()) == {"a": 1}
        part.write_text("{}")


def test_a_killed_runs_leftover_is_used_up_by_the_next(tmp_path):
    path = tmp_path / "a.pth"
    code = f"import os; from eoseg import files\nwith files.replacing({str(path)!r}) as part:\n    part.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert not path.exists() and len(names(tmp_path)) == 1
    files.write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole" and names(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("fails", ["sync", "check", "replace"])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.csv"
    path.write_text("old")
    if fails != "check":
        monkeypatch.setattr(*{"sync": (files, "sync"), "replace": (files.os, "replace")}[fails], full)
    with pytest.raises(OSError), files.replacing(path, full if fails == "check" else None) as part:
        part.write_text("new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.csv"]


# ---------------------------------------------------------------- text


def test_json_holds_null_for_what_is_no_number(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": (1, "x", None, True), 3: np.float64("nan"), "\u00e9": "\u00fc"}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None, {"c": None}], "d": [1, "x", None, True], "3": None, "\u00e9": "\u00fc"}
    assert text.endswith("}\n") and "\u00fc" in text and b"\r" not in (tmp_path / "a.json").read_bytes()
    assert files.read_json(tmp_path / "a.json")["a"] is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(SetupError, match="a.json: is not readable as JSON"):
        files.read_json(path)


def test_csv_columns_come_in_order_of_appearance_and_nan_is_blank(tmp_path):
    rows = [{"epoch": 1, "iou": math.nan}, {"epoch": 2, "iou": 0.1, "iou_a, b": 0.25}, {"epoch": 3, "name": 'x "y"'}]
    files.write_csv(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_bytes() == b'epoch,iou,"iou_a, b",name\n1,,,\n2,0.1,0.25,\n3,,,"x ""y"""\n'


def test_numbers_in_a_csv_come_back_exactly(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1e300, -0.0]
    files.write_csv(tmp_path / "a.csv", [{"v": v} for v in values])
    assert [float(line) for line in (tmp_path / "a.csv").read_text().split()[1:]] == values


def test_the_digest_hangs_on_names_and_sizes_in_any_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name, size in (("a.tif", 3), ("b.tif", 5), ("b/a.tif", 3), ("c.tif", 5), ("d.tif", 4)):
        (tmp_path / name).write_bytes(b"x" * size)
    def of(*names, pixels=(1, 2)):
        paths = [tmp_path / name for name in names]
        return files.digest(files.lines_of([(path, path) for path in paths], dict.fromkeys(paths, pixels)))

    assert of("a.tif", "b.tif") == of("b.tif", "a.tif") == of("b/a.tif", "b.tif")
    assert len({of("a.tif", "b.tif"), of("a.tif"), of("a.tif", "c.tif"), of("a.tif", "d.tif"), of(), of("a.tif", pixels=(2, 1))}) == 6


def test_remove_takes_files_folders_links_and_nothing(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("folder", "link", "kept/file", "nothing"):
        files.remove(tmp_path / name)
    assert names(tmp_path) == ["kept"]


# ---------------------------------------------------------------- locks


def holder(folder):
    """A process that holds the lock of `folder`; it has it when this returns."""
    code = f"import sys, time; from eoseg import files\nwith files.lock({str(folder)!r}):\n    print('held', flush=True)\n    time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def take(folder, tries=50):
    """Take the lock and give it back, waiting a little for a killed process to be gone."""
    for _ in range(tries):
        try:
            with files.lock(folder):
                return True
        except SetupError:
            time.sleep(0.05)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, end):
    process = holder(tmp_path)
    try:
        with pytest.raises(SetupError, match="another run is writing here; wait"), files.lock(tmp_path):
            pytest.fail("both hold it")
        assert process.poll() is None
    finally:
        process.send_signal(end)
        process.wait()
    assert take(tmp_path)


def test_a_refused_process_does_not_disturb_the_holder(tmp_path):
    with files.lock(tmp_path):
        code = f"from eoseg import files\nwith files.lock({str(tmp_path)!r}): pass"
        for _ in range(2):
            refused = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
            assert refused.returncode and "another run" in refused.stderr
        assert names(tmp_path) == [".lock"]
    assert names(tmp_path) == []


def test_a_lock_is_given_back_after_an_error_and_leaves_no_empty_folder(tmp_path):
    folder = tmp_path / "new" / "run"
    with pytest.raises(ValueError), files.lock(folder):
        raise ValueError
    assert not folder.exists()
    with files.lock(folder):
        (folder / "result").write_text("x")
    assert names(folder) == ["result"]
    os.unlink(folder / "result")
    with files.lock(folder):
        pass
    assert folder.exists()  # it was there before: an empty folder of the user's stays


def test_locks_of_two_names_do_not_meet(tmp_path):
    with files.lock(tmp_path, ".a.tif.lock"), files.lock(tmp_path, ".b.tif.lock"):
        with pytest.raises(SetupError), files.lock(tmp_path, ".a.tif.lock"):
            pass


@pytest.mark.skipif(files.fcntl is None, reason="flock only")
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def unable(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", unable)
    with files.lock(tmp_path):
        (tmp_path / "result").write_text("x")
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err
    assert names(tmp_path) == ["result"]


def test_what_stood_there_lives_on_under_another_name(tmp_path):
    path, kept = tmp_path / "a", tmp_path / "b"
    for text in ("1", "2", "3"):
        with files.replacing(path, keep=kept) as part:
            part.write_text(text)
    assert path.read_text() == "3" and kept.read_text() == "2"
    with pytest.raises(ValueError), files.replacing(path, keep=kept) as part:
        raise ValueError
    assert path.read_text() == "3" and kept.read_text() == "2" and len(list(tmp_path.iterdir())) == 2


def test_a_waiting_run_gets_the_lock_when_the_first_is_done(tmp_path, capsys):
    import threading

    order, held, first = [], threading.Event(), files.lock(tmp_path)
    first.__enter__()

    def second():
        held.set()
        with files.lock(tmp_path, wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    held.wait()
    thread.join(0.5)
    order.append("first")
    first.__exit__(None, None, None)
    thread.join()
    assert order == ["first", "second"] and capsys.readouterr().err.count("waiting for it") == 1
