"""Work that goes on beside the main thread: a reader that stays ahead, and workers whose results keep their order."""

import ctypes
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue


def ahead(items):
    """Pass `items` on, the next one being made in a thread of its own meanwhile.

    An error of the maker is raised where its item would come. Two items exist at a time: the one in use, and the next.
    """
    done, slots, stop = SimpleQueue(), threading.Semaphore(0), threading.Event()

    def make():
        iterator = iter(items)
        while not stop.is_set():
            try:
                done.put((True, next(iterator)))
            except StopIteration:
                return done.put((False, None))
            except BaseException as error:
                return done.put((False, error))
            slots.acquire()

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            good, item = done.get()
            if not good:
                if item is not None:
                    raise item
                return
            slots.release()
            yield item
            del item
    finally:
        stop.set()
        slots.release()
        thread.join()


def in_order(function, items, threads, waiting):
    """Call `function` on each of `items` in threads; the results come in the order of the items.

    The first error is raised where its result would come; calls that have not begun by then never do. At most
    `waiting` items are in work or wait.
    """
    with ThreadPoolExecutor(threads) as pool:
        calls = deque()
        try:
            for item in items:
                calls.append(pool.submit(function, item))
                if len(calls) >= waiting:
                    yield calls.popleft().result()
            while calls:
                yield calls.popleft().result()
        finally:
            for call in calls:
                call.cancel()


class Behind:
    """Does jobs in a thread of its own, one after the other, while the caller goes on; leaving the context waits for all of them.

    The first error is raised by the next `check` or `wait`; jobs after it are not done, as they may rest on the one that failed.

    Args:
        most: jobs that may be in work or wait; a further one waits for the first of them. None: any number.
    """

    def __init__(self, most=None):
        self.pool, self.jobs, self.failed, self.most = ThreadPoolExecutor(1), deque(), False, most

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.pool.shutdown()

    def __call__(self, function, *args, **named):
        while self.most and len(self.jobs) >= self.most:
            self.jobs.popleft().result()
        self.jobs.append(self.pool.submit(self._do, function, args, named))

    def _do(self, function, args, named):
        if self.failed:
            return
        self.failed = True
        function(*args, **named)
        self.failed = False

    def check(self):
        """Raise the error of a job that is over."""
        while self.jobs and self.jobs[0].done():
            self.jobs.popleft().result()

    def wait(self):
        while self.jobs:
            self.jobs.popleft().result()


def give_back_memory():
    """Return what was freed to the system; glibc keeps it otherwise, and the next step's memory comes on top."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim:
            trim(0)
