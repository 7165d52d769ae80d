"""Signals that end a run where it can be resumed."""

import os
import signal

import pytest

from eoseg.errors import Stopped, Terminated, run
from eoseg.stopping import Stopping

SIGNALS = [(signal.SIGINT, 130, KeyboardInterrupt), (signal.SIGTERM, 143, Terminated), (signal.SIGUSR1, 0, None)]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, status, _", SIGNALS)
def test_a_patient_loop_is_asked_and_leaves_with_the_signals_status(number, status, _):
    with Stopping() as stop:
        stop.patient = True
        assert stop.asked is None
        send(number)
        assert stop.asked == number.name
        with pytest.raises(Stopped, match=f"{number.name}: all is saved") as caught:
            stop.leave_if_asked("all is saved")
        assert caught.value.status == status


@pytest.mark.parametrize("number, status, error", SIGNALS)
@pytest.mark.parametrize("patient", [False, True])
def test_before_the_loop_and_the_second_time_a_signal_ends_the_program_at_once(number, status, error, patient):
    with Stopping() as stop:
        stop.patient = patient
        if patient:
            send(signal.SIGTERM if number == signal.SIGINT else number)
        if error:
            with pytest.raises(error):
                send(number)
        else:  # a warning can wait
            send(number)
            assert stop.asked == "SIGUSR1"


def test_a_clusters_warning_does_not_hide_that_it_was_told_to_end():
    with Stopping() as stop:
        stop.patient = True
        for number, wanted in ((signal.SIGUSR1, "SIGUSR1"), (signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGTERM")):
            send(number)
            assert stop.asked == wanted


def test_afterwards_signals_mean_what_they_meant_before():
    before = [signal.getsignal(number) for number, *_ in SIGNALS]
    with Stopping():
        assert [signal.getsignal(number) for number, *_ in SIGNALS] != before
    assert [signal.getsignal(number) for number, *_ in SIGNALS] == before


def test_in_another_thread_there_is_nothing_to_hear():
    import threading

    entered = []

    def work():
        with Stopping() as stop:
            entered.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [None]


@pytest.mark.parametrize("name, status, stream", [("SIGINT", 130, "err"), ("SIGTERM", 143, "err"), ("SIGUSR1", 0, "out")])
def test_a_script_leaves_with_the_status_and_one_line(monkeypatch, capsys, name, status, stream):
    def main():
        stop = Stopping()
        stop.asked = name
        stop.leave_if_asked("saved")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        run(main)
    signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr()
    assert left.value.code == status and getattr(said, stream).splitlines()[-1] == ("" if stream == "out" else "error: ") + f"{name}: saved"


@pytest.mark.parametrize("name, status, stream", [("SIGINT", 130, 2), ("SIGTERM", 143, 2), ("SIGUSR1", 0, 1)])
def test_while_modules_are_loaded_a_signal_ends_the_program_there_and_then(name, status, stream):
    import subprocess
    import sys

    code = f"import os, signal\nfrom eoseg.errors import at_once\nwith at_once():\n    try:\n        os.kill(os.getpid(), signal.{name})\n    except BaseException:\n        print('swallowed')\nprint('went on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    said = [done.stdout, done.stderr][stream - 1]
    assert done.returncode == status and said.splitlines()[-1] == ("error: " if status else "") + f"{name}: stopped before anything was begun" and "went on" not in done.stdout
