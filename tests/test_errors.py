"""How a script leaves: its exit status, and one last line on stderr."""

import os
import signal
import subprocess
import sys

import pytest
import rasterio.errors
from conftest import ROOT

from eoseg import errors, tracking
from eoseg.errors import DataError, PartialFailure, ReadError, SetupError, describe, listing


@pytest.fixture(autouse=True)
def own_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def left(capsys, error, *words):
    """Exit status, stdout and stderr of a script whose main raises `error`."""
    def main():
        print("half way")
        raise error

    sys.argv[1:] = words
    with pytest.raises(SystemExit) as stop:
        errors.run(main)
    return (stop.value.code, *capsys.readouterr())


@pytest.fixture(autouse=True)
def own_words(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"])


def oserror(number, *names):
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize("error, status, line", [
    (SetupError("--epochs: 0; give 1."), 2, "--epochs: 0; give 1."),
    (SetupError("a.tif: two\n  lines;\tmend it."), 2, "a.tif: two lines; mend it."),
    (DataError("a.tif: damaged; copy it."), 2, "a.tif: damaged; copy it."),
    (ReadError("a.tif: damaged; copy it."), 2, "a.tif: damaged; copy it."),
    (PartialFailure("out: 2 of 9 failed"), 1, "out: 2 of 9 failed"),
    (KeyboardInterrupt(), 130, "interrupted; nothing half-written was left under a final name"),
    (errors.Terminated(), 143, "terminated; nothing half-written was left under a final name"),
    (oserror(28), 2, "output folder: the disk is full; free some space and run again."),
    (oserror(28, "/x/map.tif"), 2, "/x/map.tif: the disk is full; free some space and run again."),
    (oserror(122), 2, "output folder: the disk is full; free some space and run again."),
    (oserror(13, "/x/map.tif"), 2, "/x/map.tif: Permission denied; check the path and its permissions."),
    (oserror(5, "/x/map.tif"), 2, "/x/map.tif: Input/output error; check the disk and the connection to it, and run again."),
    (FileNotFoundError(2, "No such file or directory", "a.json"), 2, "a.json: No such file or directory; check the path and its permissions."),
    (oserror(21, "/x/.map.tif.part", None, "/x/map.tif"), 2, "/x/map.tif: Is a directory; check the path and its permissions."),
    (MemoryError("2 GiB"), 2, "memory: not enough for this step (2 GiB); use a smaller --batch_size or --patch_size."),
    (RuntimeError("CUDA out of memory. Tried"), 2, "memory: not enough for this step (CUDA out of memory. Tried); use a smaller --batch_size or --patch_size."),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2,
     "memory: not enough for this step (DefaultCPUAllocator: can't allocate memory); use a smaller --batch_size or --patch_size."),
    (rasterio.errors.CRSError("no such thing"), 2, "rasterio: no such thing; one of the files given is damaged or odd, look at them with gdalinfo and ogrinfo (--debug shows which step failed)."),
    (DataError('Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x.py", line 1\neoseg.errors.DataError: '
               "a.tif: cannot be read (RasterioIOError: bad); copy it."), 2, "a.tif: cannot be read (RasterioIOError: bad); copy it."),
])
def test_what_a_user_can_mend_is_one_last_line(capsys, error, status, line):
    code, out, err = left(capsys, error)
    assert (code, out, err) == (status, "half way\n", f"error: {line}\n")


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("size mismatch"), OSError("no number"), oserror(22), AssertionError(), ZeroDivisionError()])
@pytest.mark.parametrize("words", [(), ("--debug",)])
def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, error, words):
    def main():
        raise error

    sys.argv[1:] = words
    with pytest.raises(type(error)) as raised:
        errors.run(main)
    assert raised.value is error


@pytest.mark.parametrize("error, status", [(SetupError("x: y; z."), 2), (PartialFailure("x"), 1), (oserror(28), 2), (MemoryError(), 2)])
def test_debug_shows_the_traceback_and_changes_neither_status_nor_last_line(capsys, error, status):
    plain = left(capsys, error)
    code, _, err = left(capsys, error, "--debug")
    assert code == plain[0] == status
    assert err.startswith("Traceback") and err.splitlines()[-1] == plain[2].strip()
    assert "Traceback" not in plain[2]


def test_a_main_that_ends_well_leaves_nothing(capsys):
    assert errors.run(lambda: print("done")) is None
    assert capsys.readouterr() == ("done\n", "")


def test_help_and_its_status_pass(capsys):
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: sys.exit(0))
    assert stop.value.code == 0


# ---------------------------------------------------------------- in processes of their own

HEAD = "import os, signal, sys, time\nfrom eoseg import errors\n"


def process(main, **settings):
    code = HEAD + f"def main():\n    {main}\nerrors.run(main)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, env=environment,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings})


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_status_after_cleaning_up(number, status):
    ready = "print('ready', flush=True)"
    run = process(f"try:\n        {ready}\n        try: time.sleep(60)\n        except Exception: pass\n    finally: print('cleaned')")
    assert run.stdout.readline() == "ready\n"
    run.send_signal(number)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out) == (status, "cleaned\n")
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("main, line", [("print('x')", "output folder: the disk is full"), ("print('x'); raise errors.SetupError('a: b; c.')", "a: b; c.")])
def test_a_full_disk_under_stdout_is_said_too(main, line):
    with open("/dev/full", "w") as full:
        run = process(main, stdout=full)
        _, err = run.communicate(timeout=20)
    assert run.returncode == 2 and err.startswith(f"error: {line}") and err.count("\n") == 1


def test_a_warning_of_a_library_is_a_note_of_ours():
    run = process("import warnings; warnings.warn('two\\n lines')")
    assert run.communicate(timeout=20)[1] == "note: two lines\n"


def test_a_reader_that_has_gone_is_no_traceback():
    run = process("print('ready', flush=True); time.sleep(0.3)\n    for _ in range(9999): print('x' * 99)")
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == "" and run.wait() == 1


def test_a_mistake_of_ours_leaves_with_status_1_and_its_place():
    run = process("x = {}['gone']")
    _, err = run.communicate(timeout=20)
    assert run.returncode == 1 and "Traceback" in err and err.endswith("KeyError: 'gone'\n")


# ---------------------------------------------------------------- words


def test_a_list_names_the_first_and_counts_the_rest():
    assert listing([]) == "" and listing(["a"]) == "a" and listing(range(5)) == "0, 1, 2, 3, 4"
    assert listing(range(12)) == "0, 1, 2, 3, 4 and 7 more" and listing(iter("abc"), 2) == "a, b and 1 more"


def test_data_errors_are_setup_errors_and_termination_is_no_exception():
    assert issubclass(ReadError, DataError) and issubclass(DataError, SetupError)
    assert not issubclass(PartialFailure, SetupError) and not issubclass(errors.Terminated, Exception)
    assert describe(ValueError("allocate")) is None


def test_without_a_terminal_progress_is_a_line_a_minute(capsys, monkeypatch):
    clock = iter(range(0, 10000, 25))
    monkeypatch.setattr(tracking.time, "monotonic", lambda: next(clock))
    assert list(tracking.bar(iter("abcdefgh"), desc="cutting", total=8, unit="patch")) == list("abcdefgh")
    said = capsys.readouterr().err.splitlines()
    assert said == ["cutting: 2 of 8, 0.0267 patch/s, 03:45 left", "cutting: 5 of 8, 0.0333 patch/s, 01:30 left"]  # an item is looked at every 25 s


def test_quick_work_without_a_terminal_says_nothing(capsys):
    assert list(tracking.bar([1, 2, 3], desc="cutting", unit="patch")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_the_score_table_and_the_epochs_line_hold_their_numbers():
    nan = float("nan")
    part = {"iou": 0.5, "f1": 2 / 3, "precision": 0.8, "recall": 4 / 7, "support": 1234567}
    gone = {key: nan for key in part} | {"support": 0}
    scores = {"mean_iou": 0.5, "mean_f1": 2 / 3, "mean_precision": 0.8, "mean_recall": 4 / 7, "accuracy": 0.75, "kappa": 0.5, "absent": ["ice"],
              "patches": 7, "intervals": {"mean_iou": [0.4, 0.6], "accuracy": [0.7, 0.8]}, "per_class": {"water": part, "ice": gone}}
    table = tracking.score_table(scores)
    assert [word for word in table.splitlines()[1].split()] == ["water", "0.500", "0.667", "0.800", "0.571", "1,234,567"]
    assert "left out of the mean: ice" in table and "accuracy 0.750, kappa 0.500\n" in table and "over 7 patches: mean IoU 0.400 to 0.600, accuracy 0.700 to 0.800" in table
    assert "one labelled patch: no intervals" in tracking.score_table(scores | {"patches": 1})
    row = {"epoch": 3, "train_loss": 0.5, "val_loss": 0.25, "val_iou": 0.125, "val_f1": 0.2, "val_accuracy": 0.3, "learning_rate": 5e-4, "epoch_time": 1.26}
    line = tracking.epoch_line(row, 10, best=True)
    assert line.split()[1] == "3/10" and "val_iou 0.1250" in line and "lr 5.00e-04" in line and line.endswith("*")
    assert not tracking.epoch_line(row, 10, best=False).endswith("*")
    assert "val_iou 0.1250 (flood 0.0500)" in tracking.epoch_line(row, 10, best=False, two={"dry": 0.2, "flood": 0.05})
