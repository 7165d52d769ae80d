"""A process that runs a script again and again, and each time fails another of the calls by which it changes files.

    LD_PRELOAD=failing_writes.so python failing_writes.py CASE FOLDER MORE

All is imported once; each run is a fork of this process. An undisturbed run tells which calls there are, and what stands
under each final name in between. Then a run suffers a failure at one call, is judged, and is done again undisturbed; so
for the first call of each kind (what is called, on which file), in both modes of failing_writes.c, and for MORE others.
"""

import contextlib
import csv
import ctypes
import faulthandler
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import cutouts
import faults
import rasterio
import scipy.stats  # noqa: F401
import tinynet
import tinypatches
import torch

import main_v2
import model_training_v2
import Patch_extraction_v2
import Predict_large_image_v2
from eoseg import comparing, drawing, errors, evaluating, extract, files, mapping, models, patchplots, plots, runcard, scoreplots, unet  # noqa: F401, so that no fork has to import them

MODES = {"full": 1, "once": 2}  # as failing_writes.c counts them
LIMIT = 120  # seconds a run may take; on an idle machine it takes one
VARYING = {"epoch_time", "epoch_seconds", "seconds", "epochs", "peak_memory_mb", "command", "resume", "overwrite", "status"}  # what two runs to the same end may tell otherwise
HIDDEN = "hidden"
LIBTIFF = re.compile(r"(?m)^_tiff\w+Proc: .*\n")  # what GDAL's own libtiff prints past every handler when a write fails


class Case(NamedTuple):
    """A script and its words. It runs in a folder that holds `in`, which `make` has filled, and writes to `out` there."""

    main: object
    words: str
    make: object
    again: str = ""  # words with which a run that failed is gone on with
    statuses: tuple = (2,)
    calls: str = ""  # pattern of those that are to fail


# ---------------------------------------------------------------- runs


class Ending(NamedTuple):
    """How a run left: its exit status (None: it had to be killed), what it said, and the calls it made."""

    status: int
    out: str
    err: str
    calls: list


def forked(function, folder):
    """Call `function` in a fork, its stdout, stderr and calls in files of `folder`; an Ending."""
    names = [folder / name for name in ("stdout", "stderr", "calls")]
    child = os.fork()
    if not child:
        handles = [os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC) for name in names]
        os.dup2(handles[0], 1)
        os.dup2(handles[1], 2)
        function(handles[2])
    deadline, done = time.monotonic() + LIMIT, 0
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    out, err, calls = (name.read_text(errors="replace") for name in names)
    return Ending(os.waitstatus_to_exitcode(status) if done else None, out, err, calls.splitlines())


def run(case, words, folder, number=0, mode="full", watch=None):
    """One run of a case in a fork, whose call `number` (from 1) fails; an Ending."""
    def child(told):
        faulthandler.dump_traceback_later(LIMIT - 5)
        os.chdir(folder / "run")
        sys.argv = [f"{case.main.__module__}.py", *words.split()]
        if watch:
            keep_versions(watch)
        ctypes.CDLL(None).fail_at(os.getcwd().encode(), ctypes.c_long(number), MODES[mode], told)
        status = 0
        try:
            errors.run(case.main)
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            status = 1
            sys.excepthook(*sys.exc_info())
        for thread in threading.enumerate():  # as the interpreter does before it leaves
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        os._exit(status)

    return forked(child, folder)


def keep_versions(file):
    """Have every rename add to `file` what stands under the final names then."""
    def and_note(real, source, target, **more):
        real(source, target, **more)
        with open(file, "a") as f:
            f.writelines(f"{name}\t{what}\n" for name, what in state(".").items() if what != HIDDEN)

    for name in ("replace", "rename"):
        setattr(os, name, partial(and_note, getattr(os, name)))


# ---------------------------------------------------------------- what files say


def state(folder):
    """What lies in a folder, relative path -> content; of what has no final name, as a dot before it or a folder tells, just that it is there."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {name: HIDDEN if name[0] == "." or "/." in name else content(path) for path in files for name in [str(path.relative_to(folder))]}


def content(path):
    """What a file says, as a short text; without what no two runs share."""
    if path.suffix == ".pth":
        value = torch.load(path, weights_only=True)
    elif path.suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as f:
            value = list(csv.DictReader(f))
    elif path.suffix == ".tif":
        value = pixels(path)
    else:
        value = path.read_bytes()
    found = hashlib.sha256()
    digest(value, found)
    return found.hexdigest()


def pixels(path):
    """What a raster shows at every scale, and all that it tells of itself."""
    found = []
    with rasterio.open(path) as src:
        levels = [{}, *({"overview_level": level} for level in range(len(src.overviews(1))))]
    for level in levels:
        with rasterio.open(path, **level) as src:
            found += [src.read().tobytes(), str(src.profile), src.tags(), src.descriptions, *(src.colormap(1).values() if src.colorinterp[0].name == "palette" else ())]
    return found


def digest(value, found):
    """Feed plain values and tensors to a hash."""
    if isinstance(value, dict):
        value = [part for key in value if key not in VARYING for part in (key, value[key])]
    if isinstance(value, (list, tuple)):
        found.update(b"[%d" % len(value))
        for part in value:
            digest(part, found)
    else:
        found.update(value if isinstance(value, bytes) else value.contiguous().numpy().tobytes() if torch.is_tensor(value) else repr(value).encode())


# ---------------------------------------------------------------- the judgement


class Whole(NamedTuple):
    """What an undisturbed run makes."""

    calls: list  # texts "call path"
    begun: dict  # relative path -> content, before
    made: dict  # and after
    versions: dict  # relative path -> contents that stood there in between


def undisturbed(case, folder):
    """Make the inputs, and run the case without a failure."""
    (folder / "run" / "in").mkdir(parents=True)
    case.make(folder / "run" / "in")
    shutil.copytree(folder / "run", folder / "begun")
    (folder / "versions").touch()
    ending = run(case, case.words, folder, watch=folder / "versions")
    assert ending.status == 0 and "Traceback" not in ending.err, ending
    versions = defaultdict(set)
    for line in (folder / "versions").read_text().splitlines():
        name, what = line.split("\t")
        versions[name].add(what)
    return Whole(ending.calls, state(folder / "begun"), state(folder / "run"), versions)


def judge(case, whole, number, mode, folder):
    """Run a case whose call `number` fails, and run it again; what is wrong with that, None when nothing is."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / "begun", folder / "run")
    ending = run(case, case.words, folder, number, mode)
    ending = ending._replace(err=LIBTIFF.sub("", ending.err))
    try:
        assert ending.status is not None, f"still ran after {LIMIT} s:\n{ending.err}"
        left = state(folder / "run")
        faults.judged(*ending[:3], whole.begun, left)
        if ending.status == 0:
            assert_same(left, whole.made)
        else:
            check_refusal(case, whole, ending, left)
            check_again(case, whole, folder)
    except Exception as error:
        where = ending.calls[number - 1] if number <= len(ending.calls) else "none any more"
        return f"({where}) exit status {ending.status}, {type(error).__name__}: {error}" + (f"\n{ending.err}" if ending.err not in str(error) else "")
    return None


def check_refusal(case, whole, ending, left):
    """A run that failed says over what and what to do, and left under final names only what has been there in an undisturbed run."""
    assert ending.status in case.statuses, f"exit status {ending.status}"
    last = ending.err.splitlines()[-1]
    assert re.fullmatch(r"error: \S.*: .+[;,] .+|error: .+ failed: .+", last), f"no remedy: {last}"
    strange = [name for name, what in left.items() if what not in (HIDDEN, whole.begun.get(name)) and what not in whole.versions[name] and not name.endswith("index.csv")]
    assert not strange, f"there, and not as they ever were: {strange}"


def check_again(case, whole, folder):
    """Done again, the run makes what the undisturbed one did, and leaves nothing beside."""
    ending = run(case, f"{case.words} {case.again}", folder)
    assert ending.status == 0, f"done again: {ending}"
    left = state(folder / "run")
    faults.judged(*ending[:3], whole.begun, left)
    assert_same(left, whole.made)


def assert_same(found, wanted):
    """The same files, saying the same; but for the cache of patches, which a run does without where it cannot be written."""
    other = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name) and "/.cache/" not in name)
    assert not other, f"other than undisturbed: {[(name, 'missing' if name not in found else 'new' if name not in wanted else 'differs') for name in other]}"


def chosen(case, calls, more):
    """What is to fail, pairs of a call's number (from 1) and a mode."""
    first = {}
    for number, call in enumerate(calls, 1):
        if re.search(case.calls, call):
            first.setdefault(re.sub(r"\d+|\bone\b|\btwo\b", "#", call), number)
    others = sorted(set(range(1, len(calls) + 1)) - set(first.values()))
    more = min(more, len(others))
    return [(number, mode) for number in first.values() for mode in MODES] + [(others[i * len(others) // more], list(MODES)[i % 2]) for i in range(more)]


# ---------------------------------------------------------------- cases


def make_scene(folder):
    cutouts.scene_and_label(folder)


def make_models(folder, scenes=("scene",)):
    for name in scenes:
        cutouts.scene_and_label(folder, 100, 520)  # two rows of tiles; more than one block of a map, so that it has overviews
        os.rename(folder / "scene.tif", folder / f"{name}.tif")
    (folder / "label.tif").unlink()
    tinynet.save(folder / "net.pth", tinynet.Point(3, 4))


def make_patches(folder, counts=(4, 2, 2)):
    tinypatches.make(folder / "patches", counts, size=16)


def make_judged(folder):
    make_patches(folder)
    tinynet.save(folder / "net.pth", tinynet.Point(3, 3), outputs=3)


def careless():
    """A script as it must not be: whether a write fails or not is no matter to it."""
    os.mkdir("out")
    for name in ("one.txt", "two.txt"):
        with contextlib.suppress(OSError), open(f"out/{name}", "w") as f:
            f.write("all is well")


PREDICTION = "--model in/net.pth --patch_size 64 --overlap 16 --device cpu --save_confidence --quicklook"
TRAINING = "--model unet-dropout --dataset_root in/patches --classes 3 --workers 0 --device cpu --epochs 2 --batch_size 2 --save_dir out"
CASES = {
    "careless": Case(careless, "", lambda folder: None),
    "extract": Case(Patch_extraction_v2.main, "single --image in/scene.tif --label in/label.tif --patch_size 16 --output out", make_scene, "--resume"),
    "grid": Case(Patch_extraction_v2.main, "grid --image in/scene.tif --patch_size 16 --output out/grid.fgb", make_scene, "--overwrite"),
    "train": Case(main_v2.main, TRAINING, make_patches, "--resume"),
    "kfold": Case(main_v2.main, f"{TRAINING} --epochs 1 --val_strategy kfold --n_splits 2", make_patches, "--resume", calls=r" out(?!/\.?fold)"),
    "evaluate": Case(main_v2.main, "--evaluate in/net.pth --dataset_root in/patches --split test --workers 0 --device cpu --save_dir out", make_judged, "--overwrite"),
    "predict": Case(Predict_large_image_v2.main, f"{PREDICTION} --input in/scene.tif --output out/map.tif --save_probabilities --save_uncertainty --save_patches --polygons .gpkg", make_models, "--resume"),
    "predict_many": Case(Predict_large_image_v2.main, f"{PREDICTION} --input in/one.tif in/two.tif --output out --polygons .geojson", partial(make_models, scenes=("one", "two")), "", (1, 2)),
}


def prepare(name):
    """Small networks; and nothing of what takes long and writes no file: drawing, a look at the layers, a question to git."""
    drawing.Artist.__call__ = lambda self, jobs: None
    plots.save = lambda figure, path: (files.write_bytes(path, b"a picture" * 999), path)[1]
    runcard.layers_of, runcard.commit = (lambda net, shape: ([], None)), lambda: None
    runcard.versions()
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first one takes seconds
    if name in ("predict", "predict_many", "evaluate"):
        models.build_model = lambda name, bands, outputs, *rest: tinynet.Point(bands, outputs)
    else:
        models.UNetDropout = partial(unet.UNetDropout, width=2)


def main(name, folder, more, lanes=2):
    """Let a case suffer; returns the exit status."""
    case, folder = CASES[name], Path(folder)
    prepare(name)
    whole = undisturbed(case, folder)
    failures, busy = chosen(case, whole.calls, int(more)), []
    for lane in range(lanes):
        shutil.copytree(folder / "begun", folder / f"lane{lane}" / "begun")
        child = os.fork()
        if not child:
            os._exit(suffer(case, whole, failures[lane::lanes], folder / f"lane{lane}"))
        busy.append(child)
    wrong = sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in busy)
    print(f"{name}: {len(failures)} failures among {len(whole.calls)} calls, {wrong} with an outcome that is wrong")
    return 1 if wrong else 0


def suffer(case, whole, failures, folder):
    """One lane: these calls fail in turn. Returns how often the outcome was wrong (at most 99)."""
    wrong = 0
    for number, mode in failures:
        found = judge(case, whole, number, mode, folder)
        if found:
            wrong += 1
            print(f"call {number} of {len(whole.calls)} fails, {mode}: {found}\n", flush=True)
    return min(wrong, 99)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
