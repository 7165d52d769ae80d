"""Sizes as people write and read them, and how much memory there is to take."""

from argparse import ArgumentTypeError

import pytest

import Predict_large_image_v2
from eoseg import flags, memory
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError

GB = 2**30


@pytest.mark.parametrize("text, count", [
    ("8GB", 8 * GB), ("8 GiB", 8 * GB), ("500 MB", 500 * 2**20), (" 1.5g", 3 * GB // 2), ("2t", 2048 * GB), ("1000000", 10**6), ("2000k", 2000 * 1024),
])
def test_a_size_is_taken_as_people_write_it(text, count):
    assert memory.size(text) == count
    assert PredictionConfig(max_memory=text).max_memory == PredictionConfig(max_memory=count).max_memory == count
    words = ["--model", "m", "--input", "i", "--output", "o", "--max_memory", text]
    assert flags.take(PredictionConfig, Predict_large_image_v2.parse(words)).max_memory == count


@pytest.mark.parametrize("text", ["8", "0GB", "lots", "-8GB", "8 GB more", "999999", "GB", "1e9", ""])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ArgumentTypeError, match="8GB"):
        memory.size(text)
    with pytest.raises(SetupError, match="^--max_memory: .* is no size; write e.g. 8GB or 500MB"):
        PredictionConfig(max_memory=text)


@pytest.mark.parametrize("count, text", [
    (0, "0 bytes"), (999, "999 bytes"), (1024, "1.0 kB"), (500 * 2**20, "500 MB"), (3 * GB // 2, "1.5 GB"), (GB, "1.0 GB"), (200 * GB, "200 GB"), (5000 * 1024 * GB, "5,000 TB"),
])
def test_sizes_are_shown_as_people_read_them(count, text):
    assert memory.shown(count) == text


def test_the_kernels_kilobytes_become_bytes_and_the_unknown_is_none(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   2000 kB\nVmRSS:\t   1500 kB\n")
    assert memory.told("VmRSS", tmp_path / "status") == 1500 * 1024 and memory.told("VmHWM", tmp_path / "status") == 2000 * 1024
    assert memory.told("RSS", tmp_path / "status") is None and memory.told("VmRSS", tmp_path / "nowhere") is None


def group(folder, limit, used, pages=0):
    """A faked control group of a container, as an entry of LIMITS: `pages` bytes of files in it."""
    for name, text in (("max", limit), ("current", used), ("stat", f"anon 77\nactive_file {pages - pages // 4}\ninactive_file {pages // 4}\nslab 99")):
        (folder / name).write_text(f"{text}\n")
    (folder / "stat").rename(folder / "memory.stat")
    return str(folder), "max", "current", ""


@pytest.mark.parametrize("limit, used, pages, left", [
    ("max", 3 * GB, 0, 20 * GB),  # no limit: what the machine has
    (64 * GB, 3 * GB, 0, 20 * GB),
    (4 * GB, 3 * GB, 0, GB),
    (4 * GB, 4 * GB, 3 * GB, 3 * GB),  # full of a scene that was read: those pages give way
    (4 * GB, 5 * GB, 0, 0),
])
def test_a_containers_limit_counts_where_it_is_below_the_machines(tmp_path, monkeypatch, limit, used, pages, left):
    monkeypatch.setattr(memory, "told", lambda key, file=None: 20 * GB)
    monkeypatch.setattr(memory, "LIMITS", (group(tmp_path, limit, used, pages), ("/no/such", "group", "of", "memory")))
    assert memory.available() == left


def test_the_older_kind_of_group_counts_the_pages_of_those_beneath_it(tmp_path, monkeypatch):
    folder, *names, _ = group(tmp_path, 4 * GB, 3 * GB)
    (tmp_path / "memory.stat").write_text(f"active_file 5\ninactive_file 5\ntotal_active_file {GB}\ntotal_inactive_file {GB}\n")
    monkeypatch.setattr(memory, "LIMITS", ((folder, *names, "total_"),))
    monkeypatch.setattr(memory, "told", lambda key, file=None: 20 * GB)
    assert memory.available() == 3 * GB


def test_a_system_that_tells_nothing_is_taken_for_4_gigabytes(monkeypatch):
    monkeypatch.setattr(memory, "told", lambda key, file=None: None)
    monkeypatch.setattr(memory, "LIMITS", ())
    monkeypatch.setattr("os.sysconf_names", {})
    assert memory.available() == 4 * GB
    monkeypatch.setattr("os.sysconf_names", {"SC_PHYS_PAGES": 85})
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 10**6, "SC_PAGE_SIZE": 4096}.get)
    assert memory.available() == 10**6 * 4096 // 2  # half of what the machine has
