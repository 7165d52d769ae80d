"""The rule that every fault is held to, whatever the script.

Either the run works, and what it made is right; or one line `error: FILE OR FLAG: what; remedy` ends stderr, the exit
status is not 0, nothing stands under a final name, and no file that was there before has changed.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

OURS = re.compile(r"(error|warning|note|failed  ): ?.*|failed +.*|.*: \d+ of \d+.*|.*: [^:;]+; .*|and \d+ more")  # lines on stderr that we wrote


class Fate(NamedTuple):
    """How a run left."""

    status: int
    out: str
    err: str
    made: tuple  # files that are new or have changed, as paths under tmp_path

    @property
    def line(self):
        """The last line of stderr."""
        return self.err.splitlines()[-1] if self.err else ""


def files_under(folder):
    """What lies in a folder: path -> what its content is known by. Links are not followed."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def judged(status, out, err, before, after, may_change=None):
    """A Fate, after what holds for every run.

    Args:
        before, after: `files_under` the test's folder. may_change: pattern of files that were there and may change or go, as the job was told to.
    """
    touched = [path for path in before if after.get(path) != before[path] and not re.search(may_change or "$^", str(path))]
    assert not touched, f"changed or removed: {touched}"
    assert "Traceback" not in err, err
    strange = [line for line in err.splitlines() if line.strip() and not OURS.fullmatch(line)]
    assert not strange, f"on stderr, and not ours: {strange}"
    line = err.splitlines()[-1] if err else ""
    assert line.startswith("error: ") == (status != 0), (status, err)
    return Fate(status, out, err, tuple(path for path in after if after[path] != before.get(path)))


def assert_refused(fate, *words, status=2, left=None):
    """The run ended with one line that names the cause (`words` are parts of it) and a remedy, and left nothing.

    Args:
        left: pattern of files that may be there now: what a run leaves to go on from.
    """
    assert fate.status == status, (fate.status, fate.out, fate.err)
    assert re.fullmatch(r"error: [^:].*?: .+", fate.line) and re.search(r"[;,(] ?\w", fate.line), fate.line
    for word in words:
        assert str(word) in fate.line, fate.line
    beyond = [path for path in fate.made if not re.search(left or "$^", str(path))]
    assert not beyond, f"left behind: {beyond}"


def assert_worked(fate, *words):
    """The run ended well; `words` are parts of what it said, on stdout or stderr."""
    assert fate.status == 0, fate.err
    for word in words:
        assert str(word) in fate.out + fate.err, fate.out + fate.err


def spoil(kind, good, path):
    """Put something at `path` that is not the file it should be, made of the good one where there is something to be taken from it; returns the path.

    Args:
        kind: missing, empty, truncated (a half), a piece (20 bytes), text, folder, loop and dangling (links), pipe, zeros without end, nothing for ever (devices).
    """
    path = Path(path)
    if kind in ("empty", "truncated", "a piece", "text"):
        whole = Path(good).read_bytes() if kind in ("truncated", "a piece") else b""
        path.write_bytes({"text": b"<!DOCTYPE html> 404\n" * 50, "empty": b""}.get(kind, whole[: len(whole) // 2 if kind == "truncated" else 20]))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.symlink_to({"loop": path.name, "dangling": "nowhere", "zeros without end": "/dev/zero", "nothing for ever": "/dev/null"}[kind])
    return path


def brightest(folder, bands):
    """A checkpoint that calls each pixel by its brightest band, from 0, or `bands` where none is above 100; needs the fixture `point_models`."""
    import torch
    from tinynet import Point, save

    net = Point(bands, bands + 1)
    with torch.no_grad():
        net.conv.weight.copy_(torch.eye(bands + 1, bands)[..., None, None])
        net.conv.bias.copy_(torch.tensor([0.0] * bands + [100.0]))
    return save(Path(folder) / "brightest.pth", net, bands, bands + 1)


def assert_mapped(path, pixels, valid=True):
    """The map at `path` is what `brightest` says of pixels (B, H, W), and 255 where they are not valid."""
    import numpy as np
    import rasterio

    wanted = np.concatenate([pixels.astype(float), np.full((1, *pixels.shape[1:]), 100.0)]).argmax(0)
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(1), np.where(valid, wanted, 255))
