"""What a user can mend, and how a script leaves when something is wrong."""

import contextlib
import errno
import os
import signal
import sys
import traceback

MEND, OURS = 2, 1  # exit statuses: the user must change something; some inputs failed, or a mistake of ours
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
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `script | head`: the reader has gone, and the flush at exit would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OURS)
    except (SetupError, PartialFailure, OSError, MemoryError, RuntimeError) as error:
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


def describe(error):
    """One line for an error a user can mend; None for any other."""
    if isinstance(error, (SetupError, PartialFailure)):
        _, from_worker, last = str(error).rpartition("\neoseg.errors.")  # a loader's worker sends its whole traceback along
        return last.partition(": ")[2] if from_worker else str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):  # torch's are RuntimeErrors
        return f"memory: not enough for this step ({error}); use a smaller --batch_size or --patch_size."
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        return f"{error.filename or 'output folder'}: the disk is full; free some space and run again."
    name = error.filename2 or error.filename  # of a replacement that fails, the final name
    return f"{name}: {error.strerror}; check the path and its permissions." if name else None


def leave(text, status):
    """Print `text` as the last line of stderr and exit."""
    try:
        sys.stdout.flush()
    except OSError:  # stdout leads to a full disk or a closed pipe: what it holds is lost, and must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print("error: " + " ".join(text.split()), file=sys.stderr)
    sys.exit(status)


def listing(items, most=5):
    """Join the first few of `items`, and count the rest: `a, b, c and 7 more`."""
    items = [str(item) for item in items]
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
