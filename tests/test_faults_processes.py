"""What only a process of its own can suffer: to be killed at any moment, to have no right to write, no stdout, no home, no working folder."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tinypatches
from conftest import ROOT, coded, leave, write_raster
from cutouts import assert_exact, bytes_of, scene_and_label
from faults import files_under
from tinynet import Point, opened, save

pytestmark = pytest.mark.slow

PATCHES = ("--dataset_root", "patches", "--save_dir", "run", "--epochs", 2, "--batch_size", 2, *tinypatches.FLAGS)
JOBS = {
    "extraction": ("Patch_extraction_v2", "single", "--image", "in/scene.tif", "--label", "in/label.tif", "--output", "out", "--patch_size", 16),
    "prediction": ("Predict_large_image_v2", "--model", "net.pth", "--input", "scene.tif", "--output", "out/map.tif", "--patch_size", 32, "--overlap", 8, "--save_confidence", "--polygons", ".gpkg"),
    "many scenes": ("Predict_large_image_v2", "--model", "net.pth", "--input", "scene.tif", "other.tif", "--output", "out", "--patch_size", 32, "--overlap", 8),
    "training": ("main_v2", *PATCHES),
}


@pytest.fixture
def place(tmp_path, monkeypatch, point_models_or_narrow):
    """A folder with something for every job, to work in."""
    monkeypatch.chdir(tmp_path)
    scene_and_label(tmp_path / "in")
    write_raster("scene.tif", coded(64, 48))
    write_raster("other.tif", coded(40, 48))
    save(tmp_path / "net.pth", Point(3, 4))
    tinypatches.make("patches", (4, 2, 1), size=16)
    return tmp_path


@pytest.fixture
def point_models_or_narrow(monkeypatch):
    """Networks of one convolution for prediction, a narrow unet-dropout for training; nothing is drawn."""
    from functools import partial

    from eoseg import models, unet

    monkeypatch.setattr(models, "UNetDropout", partial(unet.UNetDropout, width=4))
    real = models.build_model
    monkeypatch.setattr(models, "build_model", lambda name, bands, outputs, *rest: Point(bands, outputs) if outputs == 4 else real(name, bands, outputs, *rest))
    monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)


def forked(words, before=lambda: None):
    """Run a script in a child that has all modules loaded already; `before` is called there first. Returns its exit status (minus the signal), stdout and stderr."""
    with open("said", "wb") as out, open("complained", "wb") as err:
        child = os.fork()
        if not child:
            status = 70
            with contextlib.suppress(BaseException):
                os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                signal.alarm(240)
                before()
                with pytest.MonkeyPatch.context() as patched:
                    status = leave(patched, words[0], words[1:])
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = status, open("said", errors="replace").read(), open("complained", errors="replace").read()
    os.unlink("said"), os.unlink("complained")
    return found


def kill_at(number):
    """Have this process killed at its writing of that number: before it, when that is odd, else right after it."""
    calls = iter(range(1, 10**9))

    def deadly(real):
        def call(*arguments, **named):
            count = next(calls)
            if count * 2 - 1 == number:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*arguments, **named)
            finally:
                if count * 2 == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in ("replace", "rename", "fsync", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))


def kept(folder):
    """Weights and tables of a folder, without what no two runs share."""
    folder, found = Path(folder), {}
    for name, content in bytes_of(folder).items():
        if name.endswith(".pth"):
            found[name] = {key: value.tolist() for key, value in tinypatches.saved(folder, name.removeprefix("unet-dropout_"))["model_state_dict"].items()}
        elif not name.endswith((".png", "run.json", "metrics.json", "_log.csv", "previous.pth")):
            found[name] = content
    return found


def settled(name):
    """What a job left, to be compared: index.csv holds seconds."""
    found = kept("run" if name == "training" else "out")
    if "index.csv" in found:
        found["index.csv"] = [line.split(b",")[:3] for line in found["index.csv"].replace(b"skipped", b"mapped").splitlines()]
    return found


@pytest.mark.parametrize("job", JOBS)
def test_a_run_killed_at_any_write_leaves_nothing_broken_and_goes_on_to_the_same_end(place, job):
    assert forked(JOBS[job])[0] == 0
    whole, goes_on = settled(job), [] if job == "many scenes" else ["--resume"]
    inputs = files_under(place)
    number, killed = 1, 0
    while True:
        for folder in ("out", "run", "patches/.cache"):
            shutil.rmtree(folder, ignore_errors=True)
        status, _, err = forked(JOBS[job], lambda: kill_at(number))
        if status != -signal.SIGKILL:
            assert status == 0, err
            break
        killed += 1
        for path in [path for path in files_under(place) if path.suffix in (".tif", ".gpkg", ".json", ".csv", ".pth") and not any(part.startswith(".") for part in path.relative_to(place).parts)]:
            assert readable(path), path
        complete = job == "extraction" and os.path.exists("out/patch_metadata.json") and not os.path.exists("out/.unfinished/settings.json")
        status, _, err = forked([*JOBS[job], *goes_on])
        assert status == (2 if complete else 0) and "Traceback" not in err, (number, err)  # of patches that are all there nothing is left to do
        assert settled(job) == whole, number
        assert not [path for folder in ("out", "run") for path in files_under(folder) if path.name.startswith(".") or ".unfinished" in path.parts], number
        number += 31 if job == "training" else 9  # odd and even in turn: before a write, after one
    assert killed > 5 and all(files_under(place)[path] == state for path, state in inputs.items() if path.relative_to(place).parts[0] in ("in", "scene.tif", "net.pth"))


def readable(path):
    """Is a file under a final name whole?"""
    if path.suffix == ".json":
        return json.loads(path.read_text()) is not None
    if path.suffix == ".tif":
        return opened(path).size
    return path.suffix != ".pth" or path.name == "net.pth" or tinypatches.saved(path.parent, path.name.removeprefix("unet-dropout_"))


def powerless():
    """Give up root's right to read and write everything."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for place in (0, 1):  # effective, permitted
        data[place] &= ~0b111  # chown, dac_override, dac_read_search
    assert libc.capset(header, data) == 0


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("folder", ["out", "missing below", "input"])
def test_a_folder_without_the_right_to_it_is_named(place, job, folder):
    target = place / ("run" if job == "training" else "out")
    if folder == "input":
        bad = {"extraction": place / "in/scene.tif", "training": place / "patches/train/images/p1.tif"}.get(job, place / "scene.tif")
        bad.chmod(0)
    elif folder == "out":
        target.mkdir(mode=0o555)
        bad = target
    else:
        (place / "ro").mkdir(mode=0o555)
        bad = place / "ro"
    words = [f"ro/{word}" if folder == "missing below" and str(word).startswith(("out", "run")) else word for word in JOBS[job]]
    before = files_under(place)
    status, _, err = forked(words, powerless)
    bad.chmod(0o755)
    partial = job == "many scenes" and folder == "input"
    assert status == (1 if partial else 2) and "Traceback" not in err and bad.name in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: "), err
    assert partial or {path: state for path, state in files_under(place).items() if ".cache" not in path.parts} == before


# ---------------------------------------------------------------- as the shell starts them


def start(words, cwd, shell="", **env):
    """Run a script as the shell does, `shell` being redirections; returns status, stdout and stderr."""
    line = " ".join(f"'{word}'" for word in [sys.executable, ROOT / f"{words[0]}.py", *words[1:]]) + f" {shell}"
    done = subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **env})
    return done.returncode, done.stdout, done.stderr


SMALL = {
    "extraction": JOBS["extraction"],
    "prediction": ("Predict_large_image_v2", "--model", "run/unet-dropout_final.pth", "--input", "scene.tif", "--output", "out/map.tif", "--patch_size", 32, "--overlap", 8, "--quicklook"),
    "training": (*JOBS["training"][:6], 1, *JOBS["training"][7:]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with something for every job, and a network of full width."""
    folder = tmp_path_factory.mktemp("trained")
    scene_and_label(folder / "in")
    write_raster(folder / "scene.tif", coded(64, 48))
    tinypatches.make(folder / "patches", (4, 2, 1), size=16)
    status, _, err = start(SMALL["training"], folder)
    assert (status, err) == (0, "")
    shutil.copytree(folder / "run", folder / "net")
    return folder


@pytest.fixture
def apart(trained, tmp_path):
    """A copy of it, to work in: job -> words, and the folder."""
    shutil.copytree(trained, tmp_path / "here")
    shutil.rmtree(tmp_path / "here/run")
    words = {job: [str(word).replace("run/unet", "net/unet") for word in line] for job, line in SMALL.items()}
    return tmp_path / "here", words


def made(folder, job):
    """Is what the job makes there, and whole?"""
    if job == "extraction":
        pixels = coded(32, 48)
        return len(assert_exact(folder / "out", pixels)) == 6
    return opened(folder / "out/map.tif").shape == (64, 48) if job == "prediction" else bool(tinypatches.saved(folder / "run", "final.pth"))


@pytest.mark.parametrize("shell, status", [(">&-", 0), ("<&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), ("> /dev/full", 2), ("2> /dev/full", 0)])
@pytest.mark.parametrize("job", ["extraction", "prediction"])
def test_a_run_whose_output_nobody_takes_makes_the_same(apart, job, shell, status):
    folder, words = apart
    found, _, err = start(words[job], folder, shell)
    assert found == status and "Traceback" not in err and "Exception" not in err, err
    assert status or made(folder, job)
    if status:
        assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("job", ["extraction", "prediction"])
def test_a_reader_that_goes_away_ends_the_run_and_nothing_half_made_is_left(apart, job):
    folder, words = apart
    status, _, err = start(words[job], folder, "| true; exit ${PIPESTATUS[0]}")
    assert status in (0, 1) and err == ""
    assert made(folder, job) if status == 0 else not list((folder / "out").glob("[!.]*"))


def test_an_error_that_nobody_hears_keeps_its_status(apart):
    folder, _ = apart
    for shell in ("2>&-", "2> /dev/full", ">&- 2>&-"):
        assert start(["Patch_extraction_v2", "info", "--output", "nowhere"], folder, shell)[0] == 2


@pytest.mark.parametrize("env", [{"TMPDIR": "/nowhere"}, {"TMPDIR": "/proc"}, {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/x", "XDG_CONFIG_HOME": "/proc/y"}, {"HOME": ""},
                                 {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"MPLCONFIGDIR": "/proc/z"}, {"PYTHONDONTWRITEBYTECODE": "1", "PATH": "/nowhere", "LANG": ""}],
                         ids=lambda env: " ".join(env))
@pytest.mark.parametrize("job", SMALL)
def test_a_run_needs_neither_home_nor_temporary_folder_nor_locale(apart, job, env):
    folder, words = apart
    path = {"PATH": os.environ["PATH"]} if "PATH" not in env else {}
    done = subprocess.run([sys.executable, ROOT / f"{words[job][0]}.py", *words[job][1:]], cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, **path, **env})
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert made(folder, job)


@pytest.mark.parametrize("job", SMALL)
def test_a_working_folder_that_is_gone_is_named(apart, tmp_path, job):
    folder, words = apart
    before = files_under(folder)
    line = " ".join(f"'{word}'" for word in [sys.executable, ROOT / f"{words[job][0]}.py", *words[job][1:]])
    done = subprocess.run(["bash", "-c", f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; {line}"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (2, "error: working folder: is not there any more; change into one that is, and run again.\n") and files_under(folder) == before


# ---------------------------------------------------------------- many files


def test_a_folder_of_twenty_thousand_patches_is_trained_on_in_minutes(tmp_path, monkeypatch, point_models_or_narrow):
    monkeypatch.chdir(tmp_path)
    tinypatches.make(tmp_path / "patches", (1, 1, 1), size=16)
    for split, count in (("train", 16000), ("validation", 4000)):
        for kind in ("images", "labels"):
            first = tmp_path / f"patches/{split}/{kind}/p0.tif"
            for number in range(1, count):
                os.link(first, first.with_name(f"p{number}.tif"))
    status, out, err = forked(("main_v2", "--dataset_root", "patches", "--save_dir", "run", "--epochs", 1, "--batch_size", 100, *tinypatches.FLAGS))  # its alarm rings after four minutes
    assert status == 0 and "train 16000, validation 4000" in out, err


def test_a_batch_finds_its_pairs_among_twenty_thousand_files(tmp_path):
    image, label, pixels, _ = scene_and_label(tmp_path / "in")
    (tmp_path / "data").mkdir()
    for number in range(10000):
        os.link(image, tmp_path / f"data/other_{number}.tif")
        os.link(label, tmp_path / f"data/other_{number}.csv")
    for number in range(3):
        os.link(image, tmp_path / f"data/image_{number}.tif")
        os.link(label, tmp_path / f"data/label_{number}.tif")
    begun = time.monotonic()
    status, out, err = start(("Patch_extraction_v2", "batch", "--data_dir", "data", "--output", "out", "--patch_size", 16), tmp_path)
    assert (status, err) == (0, "") and "3 pairs" in out and time.monotonic() - begun < 60
    assert len(list((tmp_path / "out").glob("*/images/*.tif"))) == 18 and np.array_equal(opened(image), pixels[0])
