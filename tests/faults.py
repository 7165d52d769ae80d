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
