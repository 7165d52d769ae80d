"""Packs of decoded patches: what comes out is what the files hold, and a changed file is never missed."""

import os
import pickle
import shutil

import numpy as np
import pytest
from tinypatches import change, config, make

from eoseg import packing, source
from eoseg.errors import SetupError

QUIET = lambda items, **settings: items


@pytest.fixture
def root(tmp_path):
    """Patches of two sizes, some with holes, one in a single band."""
    root = make(tmp_path / "data", (4, 2, 1), nodata=0)
    make(tmp_path / "more", (2, 0, 0), size=40, seed=5, nodata=0)
    for kind in ("images", "labels"):
        for i in range(2):
            shutil.move(tmp_path / f"more/train/{kind}/p{i}.tif", root / f"train/{kind}/q{i}.tif")
    change(root / "train/images/p1.tif", lambda image: np.where(np.arange(32) > 27, 0, image).astype("uint16"))

    def one_band(image):
        image[1, :9] = 0
        return image

    change(root / "validation/images/p0.tif", one_band)
    return root


def opened(root, mode, **changes):
    splits, found = source.open_splits(config(root, root.parent / "out", cache=mode, patch_size=32, **changes), QUIET)
    return [pair for part in splits.values() for pair in part], found


@pytest.mark.parametrize("mode", ["auto", "disk", "ram"])
@pytest.mark.parametrize("changes", [{}, {"bands": ["3", "1"]}, {"label_map": ["0=2", "1=ignore", "2=0"]}])
def test_a_cache_gives_what_the_files_give(root, mode, changes):
    pairs, plain = opened(root, "none", **changes)
    _, kept = opened(root, mode, **changes)
    assert kept.quick and not plain.quick
    fetch = pickle.loads(pickle.dumps(kept.fetch))  # as a worker gets it
    for pair in reversed(pairs):
        wanted, found = plain.fetch(pair), fetch(pair)
        assert found.pixels.dtype == wanted.pixels.dtype and (found.pixels == wanted.pixels).all() and (found.target == wanted.target).all()
        assert (found.holes is None) == (wanted.holes is None) and (wanted.holes is None or (found.holes == wanted.holes).all())
    assert sum(fetch(pair).holes is not None for pair in pairs) == (2 if "bands" not in changes else 1)


def packs(root):
    return sorted((root / ".cache").glob("*.pack"))


def test_none_and_ram_write_no_pack_and_none_writes_nothing(root):
    opened(root, "none")
    assert not (root / ".cache").exists()
    opened(root, "ram")
    assert not packs(root)


def test_the_second_run_reads_no_patch(root, monkeypatch):
    opened(root, "disk")
    before = packs(root)[0].stat()
    monkeypatch.setattr("eoseg.packing.Reading.__call__", lambda *_: pytest.fail("read"))
    pairs, found = opened(root, "disk")
    assert packs(root)[0].stat().st_mtime_ns == before.st_mtime_ns and found.fetch(pairs[0]).pixels.any()


def test_a_changed_file_makes_a_new_pack_and_the_old_one_goes(root):
    opened(root, "disk")
    old = packs(root)
    change(root / "train/images/p0.tif", lambda image: image + 1)
    pairs, found = opened(root, "disk")
    assert len(packs(root)) == 1 and packs(root) != old
    assert (found.fetch(pairs[0]).pixels == opened(root, "none")[1].fetch(pairs[0]).pixels).all()


def test_the_same_patches_read_otherwise_have_a_pack_of_their_own(root):
    opened(root, "disk")
    opened(root, "disk", label_map=["0=2", "1=ignore", "2=0"])
    opened(root, "disk")
    assert len(packs(root)) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: b"", lambda content: b"short", lambda content: content[:-40] + b"x" + content[-39:], lambda content: b"no pack" * 99])
def test_a_damaged_pack_is_made_anew(root, damage):
    pairs, _ = opened(root, "disk")
    pack, = packs(root)
    whole = pack.read_bytes()
    pack.write_bytes(damage(whole))
    _, found = opened(root, "disk")
    assert pack.read_bytes() == whole and found.fetch(pairs[-1]).target.size


def test_what_a_killed_run_left_of_a_pack_is_swept(root):
    (root / ".cache").mkdir()
    left = root / ".cache/.patches-0-1.pack.part"
    left.write_bytes(b"half")
    opened(root, "disk")
    assert not left.exists() and len(packs(root)) == 1


def test_damaged_pixels_of_a_pack_are_noticed(root):
    pairs, found = opened(root, "disk")
    pack, = packs(root)
    content = bytearray(pack.read_bytes())
    content[100] ^= 1
    pack.write_bytes(bytes(content))
    _, found = opened(root, "disk")
    with pytest.raises(SetupError, match=r"\.pack: is damaged; delete it"):
        [found.fetch(pair) for pair in pairs]


def test_a_moved_data_set_keeps_its_pack(root):
    opened(root, "disk")
    root.rename(root.parent / "moved")
    pairs, found = opened(root.parent / "moved", "disk")
    assert len(packs(root.parent / "moved")) == 1 and found.fetch(pairs[0]).pixels.any()


def test_without_room_auto_does_without_and_says_so(root, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 1))
    _, found = opened(root, "auto")
    assert not found.quick and "has 0 MB left" in found.said and not packs(root)


def test_a_folder_that_cannot_be_written_gives_way_to_the_runs(root, monkeypatch):
    real = packing.Path.mkdir

    def mkdir(self, *args, **named):
        if self == root / ".cache":
            raise PermissionError(13, "no", str(self))
        return real(self, *args, **named)

    monkeypatch.setattr(packing.Path, "mkdir", mkdir)
    (root.parent / "out").mkdir()
    pairs, found = opened(root, "disk")
    assert list((root.parent / "out/.cache").glob("*.pack")) and found.fetch(pairs[0]).pixels.any()
    shutil.rmtree(root.parent / "out")
    assert not opened(root, "auto")[1].quick
    with pytest.raises(SetupError, match="--cache disk: neither"):
        opened(root, "disk")


def test_a_full_disk_ends_disk_but_not_auto(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eoseg.packing.write_pack", full)
    assert "No space left" in opened(root, "auto")[1].said
    with pytest.raises(SetupError, match="--cache disk.*No space left"):
        opened(root, "disk")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the peak there")
def test_memory_does_not_grow_with_the_pack(tmp_path):
    import subprocess
    import sys

    code = """
import sys
import numpy as np
from pathlib import Path
from eoseg import packing
pixels = np.zeros((4, 512, 512), np.uint16)
pairs = [(Path(sys.argv[1]) / f"{i}.tif", None) for i in range(int(sys.argv[2]))]
path = Path(sys.argv[1]) / "x.pack"
packing.write_pack(path, lambda pair: packing.Patch(pixels, None, pixels[0].astype(np.uint8)), pairs, lambda items, **settings: items)
fetch = packing.Mapped(path)
for pair in pairs:
    fetch(pair)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # getrusage counts the parent's memory
"""
    few, many = (int(subprocess.run([sys.executable, "-c", code, str(tmp_path), str(count)], cwd=os.getcwd(), capture_output=True, text=True, check=True,
                                    env={**os.environ, "PYTHONPATH": "."}).stdout) for count in (20, 120))
    assert many < few + 20_000  # kB; the pack of 120 has 276,000


def test_statistics_are_remembered_until_a_training_patch_changes(root, monkeypatch):
    def fitted():
        _, found = opened(root, "disk")
        splits, _ = source.open_splits(config(root, root.parent / "out", patch_size=32), QUIET)
        return source.fit_normalizer(splits["train"], found, "percentile", QUIET)

    first = fitted()
    with monkeypatch.context() as patched:
        patched.setattr("eoseg.source.count_bands", lambda *_: pytest.fail("counted"))
        assert fitted() == first
    next((root / ".cache").glob("statistics*")).write_text("[{}]")
    assert fitted() == first
    change(root / "train/images/p0.tif", lambda image: image + 100)
    assert fitted()[1][0]["max"] >= first[1][0]["max"] and fitted() != first
