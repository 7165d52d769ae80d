"""The artist: draws beside the run, the newest job first, survives what cannot be drawn, and ends when the run does."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from eoseg import drawing
from eoseg.drawing import Artist

BINS = [{"low": 0.0, "high": 0.5, "pixels": 3, "confidence": 0.4, "accuracy": 0.5}, {"low": 0.5, "high": 1.0, "pixels": 9, "confidence": 0.8, "accuracy": 0.9}]


@pytest.fixture
def artist(without_artist, monkeypatch):
    """A real one."""
    monkeypatch.setattr(Artist, "__call__", without_artist)
    with Artist() as one:
        yield one


def job(path):
    return ("draw_reliability", BINS, 0.1, path, "title")


def wait(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


class Slow:
    """In place of the drawing process: tells what it was asked for, and draws when it is let."""

    def __init__(self, monkeypatch, answers=()):
        self.asked, self.let, self.answers, self.pid = [], threading.Semaphore(0), list(answers), 0
        monkeypatch.setattr(drawing, "begin", lambda: self)
        monkeypatch.setattr(drawing, "ask", self.ask)

    def ask(self, child, jobs):
        self.asked.append(jobs)
        assert self.let.acquire(timeout=10)
        return self.answers.pop(0) if self.answers else ""

    def poll(self):
        return None

    def kill(self):
        pass

    wait = kill


def test_of_the_jobs_that_wait_only_the_newest_is_drawn(artist, monkeypatch):
    slow = Slow(monkeypatch)
    artist(["first"])
    wait(lambda: slow.asked == [["first"]])
    for name in ("second", "third", "fourth"):
        artist([name])
    slow.let.release(2)
    wait(lambda: not artist.busy)
    assert slow.asked == [["first"], ["fourth"]]
    slow.let.release()
    artist(["fifth"])
    wait(lambda: not artist.busy)
    assert slow.asked[-1] == ["fifth"]


def test_a_failure_is_said_once_and_drawing_goes_on(artist, monkeypatch, capsys):
    slow = Slow(monkeypatch, ["no such font", "no such font", ""])
    for name in ("first", "second", "third"):
        slow.let.release()
        artist([name])
        wait(lambda: not artist.busy)
    assert slow.asked == [["first"], ["second"], ["third"]] and capsys.readouterr().out == "note: pictures: no such font; they are drawn again at the end\n"


def test_jobs_that_wait_when_the_run_ends_are_dropped(artist, monkeypatch):
    slow = Slow(monkeypatch)
    artist(["first"])
    wait(lambda: slow.asked)
    artist(["second"])
    artist.__exit__()
    slow.let.release(2)
    wait(lambda: not artist.busy)
    assert slow.asked == [["first"]]


def test_a_system_without_another_process_leaves_the_run_alone(artist, monkeypatch, capsys):
    def none_left(*words, **settings):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    artist([job("nowhere.png")])
    wait(lambda: not artist.busy)
    assert not capsys.readouterr().out


def test_pictures_are_drawn_by_another_process_whatever_became_of_the_one_before(artist, tmp_path, capsys):
    begun = time.monotonic()
    artist([job(tmp_path / "one.png"), ("draw_reliability", "no bins", 0.1, tmp_path / "never.png", "title"), job(tmp_path / "after.png")])
    assert time.monotonic() - begun < 0.1  # the run does not wait
    wait(lambda: not artist.busy)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG") and [path.name for path in tmp_path.iterdir()] == ["one.png"]
    assert "note: pictures: " in capsys.readouterr().out
    child = artist.child
    artist([job(tmp_path / "two.png")])
    wait((tmp_path / "two.png").exists)
    assert artist.child is child
    os.kill(child.pid, signal.SIGINT)  # Ctrl-C reaches it too: the run hears it and decides
    artist([job(tmp_path / "three.png")])
    wait((tmp_path / "three.png").exists)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    wait(lambda: not artist.busy)
    artist([job(tmp_path / "four.png")])
    wait((tmp_path / "four.png").exists)
    again = artist.child.pid
    artist.__exit__()
    assert again != child.pid and not alive(again) and artist.child is None


def test_a_process_ends_at_once_while_it_draws(artist, tmp_path):
    artist([job(tmp_path / f"{i}.png") for i in range(500)])
    wait((tmp_path / "0.png").exists)
    pid, begun = artist.child.pid, time.monotonic()
    artist.__exit__()
    wait(lambda: not artist.busy)
    assert time.monotonic() - begun < 2 and not alive(pid) and not (tmp_path / "499.png").exists()
    for path in tmp_path.glob("[0-9]*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.mark.skipif(not hasattr(os, "getppid") or not os.path.isdir("/proc/self"), reason="asks the system for processes")
@pytest.mark.parametrize("begun", [False, True])
def test_the_artist_of_a_killed_run_ends_too(tmp_path, begun):
    """Killed before anything is drawn, and amid a long list of pictures."""
    program = """if True:
        import sys, time
        from eoseg import drawing
        from test_drawing import job
        artist = drawing.Artist()
        if sys.argv[1] == "True":
            artist([job(f"{i}.png") for i in range(500)])
        else:
            artist.child = drawing.begin()
        while artist.child is None:
            time.sleep(0.01)
        print(artist.child.pid, flush=True)
        time.sleep(60)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with subprocess.Popen([sys.executable, "-c", program, str(begun)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as run:
        pid = int(run.stdout.readline())
        if begun:
            wait((tmp_path / "0.png").exists)
        assert alive(pid)
        run.kill()
    wait(lambda: not alive(pid), 10)
    assert not (tmp_path / "499.png").exists()
