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
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eoseg.errors import SetupError, describe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LONGEST = 190  # bytes of a name, of the 255 that most file systems take, that leave room for what is put around it
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
    part = fresh(part_of(path))
    try:
        with naming(path):
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


@contextlib.contextmanager
def naming(path):
    """Have an OSError that names no file name `path`: a write or a sync that fails knows only a number."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def part_of(path, kind="part"):
    """The temporary name of `path`; never matches *.tif or *.pth, and is the same in every run, so none piles up.

    A name that would leave no room for what GDAL and SQLite append, or in which GDAL sees a folder, gives way to its checksum.
    """
    odd = len(os.fsencode(path.name)) > LONGEST or "\\" in path.name
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest() if odd else path.name}.{kind}")


def fresh(part):
    """A temporary path that nothing stands at: a killed run's file goes, and a link that somebody put there, lest it be written through.

    Raises:
        SetupError: a folder has that name, which is none of ours.
    """
    if part.is_dir() and not part.is_symlink():
        raise SetupError(f"{part}: is a folder, and a file of this name is needed while the output is made; remove it or move it away.")
    part.unlink(missing_ok=True)
    return part


def put(part, path):
    """Move a file that is complete and checked to its final name."""
    sync(part)
    os.replace(part, path)
    sync_folder(Path(path).parent)


def sync(path):
    """Wait until the file's content is on the disk; a full disk shows here at the latest."""
    with open(path, "rb+") as f, naming(path):
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
            with naming(folder):
                os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
                raise
        finally:
            os.close(handle)


def write_bytes(path, content):
    """Write a whole file under its final name."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path, text):
    """Write a whole UTF-8 file; lines end in a plain newline on every system. Names of files that are not UTF-8 are spelled out."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


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
    blank = lambda value: "" if isinstance(value, float) and value != value else value
    write_text(path, "".join(map(line_of, [columns, *([blank(row.get(key, "")) for key in columns] for row in rows)])))


def line_of(values):
    """A line of CSV; made with the long line break, so that a carriage return within a value is quoted as a newline is."""
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def read_json(path):
    """Read a JSON file.

    Raises:
        SetupError: it cannot be read as JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path}: is not readable as JSON ({error}); restore it or make it again.") from None


def read_text(path):
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        SetupError: it is no plain file: a pipe would never end. UnicodeDecodeError: it is not UTF-8.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise SetupError(f"{path}: is not a file; name a text file.")
    return path.read_text(encoding="utf-8-sig")


def sealed(value):
    """A line of a journal, bytes: plain values, with a checksum before them."""
    text = json.dumps(value).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def unsealed(content):
    """What the lines of a journal say, up to the first that is torn or has changed: a list, and the bytes they take."""
    found, read = [], 0
    for line in content.splitlines(True):
        check, _, text = line.partition(b" ")
        if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text[:-1]):
            break
        found.append(json.loads(text))
        read += len(line)
    return found, read


@contextlib.contextmanager
def lock(folder, name=".lock", wait=False):
    """Hold `folder` for this run alone. The kernel drops the lock with the process, however it ends.

    Args:
        wait: until another run that holds it is done.
    Raises:
        SetupError: another run holds it, or its name is none that GDAL could take.
    """
    folder = Path(folder)
    try:
        str(folder / name).encode()
    except UnicodeEncodeError as error:
        raise SetupError(describe(error)) from None
    path, made = folder / name, [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = held(path, wait)
        try:
            yield
        finally:
            if fcntl:
                path.unlink(missing_ok=True)
            os.close(handle)
    finally:
        with contextlib.suppress(OSError):  # nothing came of the run: leave no empty folder behind
            for one in made:
                one.rmdir()


def held(path, wait):
    """Open the file of a lock and lock it; the handle."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in HELD:  # some network file systems have no locks at all
                print(f"note: {path.parent}: cannot be locked ({error.strerror}); see to it that no other run writes here", file=sys.stderr)
                return handle
            os.close(handle)
            if not wait:
                raise SetupError(f"{path.parent}: another run is writing here; wait for it, or choose another folder.") from None
            if wait is True:
                print(f"note: {path.parent}: another run is writing here; waiting for it", file=sys.stderr)
            wait = "said"
            time.sleep(0.2)
            continue
        if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
        os.close(handle)  # the run before us removed the file between our open and our lock


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
