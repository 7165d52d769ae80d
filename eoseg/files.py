"""Files appear whole or not at all: this is the only room that puts a finished file under its final name."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eoseg.errors import SetupError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}  # a lock that another process has


@contextlib.contextmanager
def replacing(path, check=None, keep=None):
    """Give a temporary name beside `path`; when the block ends well, the file under it takes `path`'s place.

    Args:
        check: called with the temporary path before the replacement; raises when the file is not good.
        keep: name under which the file that stood at `path` lives on. Between the two renames only this one is there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        sync(part)
        if check:
            check(part)
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(part, path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def part_of(path, kind="part"):
    """The temporary name of `path`; never matches *.tif or *.pth, and is the same in every run, so none piles up."""
    return path.with_name(f".{path.name}.{kind}")


def put(part, path):
    """Move a file that is complete and checked to its final name."""
    sync(part)
    os.replace(part, path)
    sync_folder(Path(path).parent)


def sync(path):
    """Wait until the file's content is on the disk; a full disk shows here at the latest."""
    with open(path, "rb+") as f:
        os.fsync(f.fileno())


class Syncing:
    """Begins to `sync` files in the background, several at a time; `wait` waits for all. The first error is raised by the next call."""

    def __init__(self):
        self.pool, self.calls = ThreadPoolExecutor(16), deque()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.pool.shutdown(cancel_futures=True)

    def __call__(self, path):
        self.calls.append(self.pool.submit(sync, path))
        if len(self.calls) > 256:
            self.calls.popleft().result()

    def wait(self):
        while self.calls:
            self.calls.popleft().result()


def sync_folder(folder):
    """Make renames in `folder` last through a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path, content):
    """Write a whole file under its final name."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path, text):
    """Write a whole UTF-8 file; lines end in a plain newline on every system."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path, value):
    """Write `value` as indented JSON; NaN becomes null, which other readers understand."""
    write_text(path, json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(value):
    if isinstance(value, dict):
        return {str(key): without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value


def write_csv(path, rows):
    """Write a list of dicts as CSV. Columns in order of first appearance; a row without one stays blank there."""
    columns = dict.fromkeys(key for row in rows for key in row)  # a set that keeps its order
    text = io.StringIO()
    out = csv.DictWriter(text, columns, lineterminator="\n")
    out.writeheader()
    out.writerows({key: "" if isinstance(v, float) and v != v else v for key, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def read_json(path):
    """Read a JSON file.

    Raises:
        SetupError: it cannot be read as JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{path}: is not readable as JSON ({error}); restore it or make it again.") from None


@contextlib.contextmanager
def lock(folder, name=".lock", wait=False):
    """Hold `folder` for this run alone. The kernel drops the lock with the process, however it ends.

    Args:
        wait: until another run that holds it is done.
    Raises:
        SetupError: another run holds it.
    """
    path = Path(folder) / name
    ours = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in HELD:  # some network file systems have no locks at all
                print(f"note: {folder}: cannot be locked ({error.strerror}); see to it that no other run writes here", file=sys.stderr)
                break
            os.close(handle)
            if wait:
                if wait is True:
                    print(f"note: {folder}: another run is writing here; waiting for it", file=sys.stderr)
                wait = "said"
                time.sleep(0.2)
                continue
            raise SetupError(f"{folder}: another run is writing here; wait for it, or choose another folder.") from None
        if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
            break
        os.close(handle)  # the run before us removed the file between our open and our lock
    try:
        yield
    finally:
        if fcntl:
            path.unlink(missing_ok=True)
        os.close(handle)
        if ours and not any(path.parent.iterdir()):
            path.parent.rmdir()  # nothing came of the run: leave no empty folder behind


def remove(path):
    """Remove a file or a folder with all it holds; nothing when there is none."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(lines):
    """A short text that changes with what `lines_of` says of patches, in any order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def prints(lines):
    """A whole number below 2^63 for each line of `lines_of`, by which a patch is known again."""
    return [int.from_bytes(hashlib.sha256(line.encode()).digest()[:8], "big") >> 1 for line in lines]


def lines_of(pairs, counts):
    """What tells one patch from another: name, sizes of both files, classes.

    Args:
        pairs: (image, label) paths. counts: image path -> pixels of each class.
    """
    return [f"{image.name} {image.stat().st_size} {label.stat().st_size} {list(map(int, counts[image]))}" for image, label in pairs]
