"""Pictures that are redrawn while a run goes on, by a process of its own, so that training does not wait for them."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

SERVE = "import sys; sys.path.insert(0, sys.argv[1]); from eoseg.drawing import serve; serve(int(sys.argv[2]))"


class Artist:
    """Draws beside the run. When jobs come faster than they are drawn, only the newest waits. As a context it ends its process.

    A picture that cannot be drawn is said, once; the run goes on.
    """

    def __init__(self):
        self.lock, self.newest, self.busy, self.child, self.told = threading.Lock(), None, False, None, False

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        with self.lock:
            self.newest, child, self.child = None, self.child, None
        if child:
            child.kill()  # what it was drawing lies under a temporary name
            child.wait()
            child.stdin, child.stdout = None, None

    def __call__(self, jobs):
        """Have `jobs` drawn, in place of those that wait: a list of (function of plots or scoreplots, arguments...), named as text."""
        with self.lock:
            self.newest = jobs
            if self.busy:
                return
            self.busy = True
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while True:
            with self.lock:
                jobs, self.newest = self.newest, None
                if jobs is None:
                    self.busy = False
                    return
                if self.child is None or self.child.poll() is not None:  # none yet, or the system has ended it
                    self.child = begin()
                child = self.child
            failed = ask(child, jobs)
            if failed and not self.told:
                self.told = True
                print(f"note: pictures: {failed}; they are drawn again at the end", flush=True)


def begin():
    """A process that draws what it is sent; None where the system gives none."""
    words = [sys.executable, "-c", SERVE, str(Path(__file__).parents[1]), str(os.getpid())]
    with contextlib.suppress(OSError):
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def ask(child, jobs):
    """Have a process draw; returns why it could not, or an empty text."""
    try:
        pickle.dump(jobs, child.stdin)
        child.stdin.flush()
        return pickle.load(child.stdout)
    except (OSError, EOFError, ValueError, AttributeError, TypeError, pickle.UnpicklingError):  # it was ended, by us or by a signal to all
        return ""


def serve(parent):
    """Draw what comes in, until no more does, or the run is gone: pictures of a dead one are nobody's. Signals are for the run to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(19)  # a core that training wants is training's
    with contextlib.suppress(AttributeError, OSError):  # Linux knows a still humbler class
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    draw([])  # what takes longest the first time is to load matplotlib
    while True:
        try:
            jobs = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):
            return
        try:
            for job in jobs:
                if os.name == "posix" and os.getppid() != parent:
                    return
                draw([job])
            failed = ""
        except Exception as error:  # said by the run, which goes on
            failed = " ".join(str(error).split())[:200]
        pickle.dump(failed, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def draw(jobs):
    """Draw here and now."""
    from eoseg import plots, scoreplots

    for name, *arguments in jobs:
        getattr(scoreplots if hasattr(scoreplots, name) else plots, name)(*arguments)
