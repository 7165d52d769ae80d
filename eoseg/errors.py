"""What a user can mend, and how a script leaves when something is wrong."""

import contextlib
import errno
import logging
import os
import signal
import sys
import traceback
import warnings

MEND, OURS = 2, 1  # exit statuses: the user must change something; some inputs failed, or a mistake of ours
WAY = {errno.EEXIST, errno.ENOTDIR}  # something that is no folder lies where one is needed
READERS = {"rasterio", "pyogrio", "pyproj", "shapely", "tifffile"}  # libraries that open the user's files
FAILING = {getattr(errno, name) for name in ("EIO", "EROFS", "ESTALE", "ENXIO", "ENODEV", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO") if hasattr(errno, name)}  # a disk, or the way to it
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}


class SetupError(Exception):
    """Something the user asked for or supplied cannot work; shown as one line, without a traceback.

    The text reads `FILE OR FLAG: what is wrong; what to do`.
    Our own mistakes stay ordinary exceptions and keep their traceback.
    """


class DataError(SetupError):
    """One file is damaged or does not fit; a job over many files may name it and go on with the others."""


class ReadError(DataError):
    """Some pixels of a file cannot be read; others may be."""


class PartialFailure(Exception):
    """The job is done for all but some inputs, which the text names; exit status 1."""


class Terminated(BaseException):
    """SIGTERM came. A BaseException, so that no `except Exception` on the way keeps the program alive."""


class Stopped(BaseException):
    """A signal came, and the job has saved what it takes to go on.

    Args:
        text: what was saved and how to go on. status: the exit status that the signal stands for.
    """

    def __init__(self, text, status):
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def at_once():
    """While modules are loaded, signals end the program there and then: an exception amid an import may be swallowed, or leave half a module."""
    def leave_now(number, frame):
        status = {"SIGINT": 130, "SIGTERM": 143}.get(signal.Signals(number).name, 0)
        os.write(2 if status else 1, f"{'error: ' if status else ''}{signal.Signals(number).name}: stopped before anything was begun\n".encode())
        os._exit(status)

    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        with contextlib.suppress(AttributeError, ValueError):  # Windows has no SIGUSR1; another thread than the first hears none
            before[getattr(signal, name)] = signal.signal(getattr(signal, name), leave_now)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(main):
    """Call `main` as a script does, and leave with the exit status the error stands for.

    2: a SetupError or an unusable file; 1: a PartialFailure; 130 and 143: interrupted and terminated; 0 also when SIGUSR1 made
    a job save and stop. With --debug the
    traceback of a SetupError stands above its line.
    """
    def terminate(number, frame):
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    open_streams()
    if "--debug" not in sys.argv:
        warnings.showwarning = note
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it would tell stderr where it keeps its lists of fonts
    try:
        os.getcwd()  # in a folder that is gone torch's libraries end the process in words of their own
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `script | head`: the reader has gone, and the flush at exit would complain again
        hush(sys.stdout)
        sys.exit(OURS)
    except Exception as error:
        text = describe(error)
        if text is None:
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        leave(text, OURS if isinstance(error, PartialFailure) else MEND)
    except Stopped as stop:
        if stop.status == 0:  # a scheduler's warning, heeded: no error
            print(stop, flush=True)
            sys.exit(0)
        leave(str(stop), stop.status)
    except KeyboardInterrupt:
        leave("interrupted; nothing half-written was left under a final name", 130)
    except Terminated:
        leave("terminated; nothing half-written was left under a final name", 143)


def note(message, *about):
    """A warning of a library, in a line of ours."""
    print(f"note: {' '.join(str(message).split())}", file=sys.stderr)


def open_streams():
    """Give what is printed somewhere to go, though the shell has closed it (`>&-`), and let no name be unprintable."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # its number would go to the next file that is opened, and C libraries would print into that
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def hush(stream):
    """Let what is printed from now on be lost: the flush at exit would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def describe(error):
    """One line for an error a user can mend; None for any other."""
    if isinstance(error, (SetupError, PartialFailure)):
        _, from_worker, last = str(error).rpartition("\neoseg.errors.")  # a loader's worker sends its whole traceback along
        return last.partition(": ")[2] if from_worker else str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):  # torch's are RuntimeErrors
        return f"memory: not enough for this step ({error}); use a smaller --batch_size or --patch_size."
    if isinstance(error, UnicodeEncodeError):
        return f"...{error.object[max(0, error.start - 60) : error.end + 20]!a}: a name that is not UTF-8; rename the file or folder."
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from"):  # pathlib's, before Python 3.13
        return f"{str(error)[18:].strip(chr(39))}: a link that leads to itself; remove it, or name another path."
    library = type(error).__module__.partition(".")[0]
    if library in READERS:  # in a way that nobody foresaw: a line says more to a user than a traceback
        return f"{library}: {error}; one of the files given is damaged or odd, look at them with gdalinfo and ogrinfo (--debug shows which step failed)."
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno in FULL:
        return f"{error.filename or 'output folder'}: the disk is full; free some space and run again."
    name = error.filename2 or error.filename  # of a replacement that fails, the final name
    if error.errno in FAILING:  # a write to an open file names none
        return f"{name or 'output folder'}: {error.strerror}; check the disk and the connection to it, and run again."
    if name is None:
        return "working folder: is not there any more; change into one that is, and run again." if isinstance(error, FileNotFoundError) else None
    if error.errno in WAY:
        return f"{name}: a folder is needed, and something else is there; name another path."
    return f"{name}: {error.strerror}; check the path and its permissions."


def leave(text, status):
    """Print `text` as the last line of stderr and exit."""
    try:
        sys.stdout.flush()
    except OSError:  # stdout leads to a full disk or a closed pipe
        hush(sys.stdout)
    try:
        print("error: " + " ".join(text.split()), file=sys.stderr, flush=True)
    except OSError:
        hush(sys.stderr)
    sys.exit(status)


def listing(items, most=5):
    """Join the first few of `items`, and count the rest: `a, b, c and 7 more`."""
    items = [str(item) for item in items]
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
