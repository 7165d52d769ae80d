"""Signals that end a run where it can be resumed."""

import signal

from eoseg.errors import Stopped, Terminated

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 0}  # USR1: what a cluster sends before its time limit


class Stopping:
    """Hears SIGINT, SIGTERM and SIGUSR1 while it is entered, so that a loop can finish its step, save and end.

    Until `patient` is set, and when one of them came before, SIGINT and SIGTERM end the program at once.
    """

    def __init__(self):
        self.asked, self.patient, self.before = None, False, {}

    def __enter__(self):
        for name in STATUS:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            try:
                self.before[number] = signal.signal(number, self.hear) if number else None
            except ValueError:  # not the main thread: a notebook's, which gets no signals
                break
        return self

    def __exit__(self, *failure):
        for number, handler in self.before.items():
            if number:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set from Python

    def hear(self, number, frame):
        name = signal.Signals(number).name
        if name == "SIGUSR1":
            self.asked = self.asked or name
        elif self.patient and self.asked in (None, "SIGUSR1"):
            self.asked = name
        else:
            raise KeyboardInterrupt if name == "SIGINT" else Terminated

    def leave_if_asked(self, text):
        """Raises Stopped with `text` and the status of the signal that was heard; nothing when none was."""
        if self.asked:
            raise Stopped(f"{self.asked}: {text}", STATUS[self.asked])
