"""What the fuzzer has found once, and a few mutants more. `make fuzz` tries hundreds."""

import os
import struct
import subprocess
import sys
import tracemalloc

import faults
import fuzzkinds
import mutants
import numpy as np
import pytest
import tinypatches
from conftest import ROOT, write_raster
from tinynet import Point

from eoseg import patchset, raster
from eoseg.errors import DataError


def altered(tag, value):
    """Gives what sets the value of a tag in a little-endian classic TIFF."""
    def spoil(content):
        found, (first,) = bytearray(content), struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, first)
        place = next(at for at in range(first + 2, first + 2 + 12 * count, 12) if struct.unpack_from("<H", content, at)[0] == tag)
        if content[place + 2] == 3:  # two bytes, which may be too few
            found[place + 2] = 4
        struct.pack_into("<I", found, place + 8, value)
        return bytes(found)

    return spoil


def swapped(before, after, count=1):
    """Gives what replaces some bytes by others."""
    def spoil(content):
        assert before in content
        return content.replace(before, after, count)

    return spoil


def endless(content):
    """Rows without end, of which a few bytes are there, and they are cut short."""
    return altered(257, 8232)(content)[:2160]


FOUND = [  # kind, name of the seed, what is done to its file, exit status, what the last line says
    ("scene", "palette", endless, 2, ["cannot be read"]),  # the second reading of a block took what GDAL's threads had left of the first
    ("scene", "overviews", lambda content: content[:3022], 2, ["scene.tif"]),  # GDAL meets the broken directory late
    ("scene", "striped", altered(33550, 0), 2, ["scene.tif"]),
    ("vrt", "vrt", swapped(b"<SourceBand>1", b"<SourceBand>\xe9"), 2, ["scene.vrt"]),  # GDAL's message is no text
    ("journal", "map .map.tif.journal.part", swapped(b'"row"', b'"r\xffw"'), 0, []),
    ("journal", "map .map.tif.journal.part", swapped(b'"row": 8', b'"row": 31'), 0, []),  # rows that were never written
    ("journal", "map .map.tif.journal.part", lambda content: content + b"[" * 5000 + b"\n", 0, []),
    ("journal", "patches journal.jsonl", swapped(b'"labelled_pixels": 2', b'"labelled_pixels": 9'), 0, []),
    ("journal", "patches journal.jsonl", swapped(b'"row": ', b'"row": true, "r": '), 0, []),
    ("journal", "patches journal.jsonl", swapped(b"patch_0", b"patch_\xff"), 0, []),
]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """kind and name -> Seed."""
    root, here = tmp_path_factory.mktemp("seeds"), os.getcwd()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fuzzkinds, "point", lambda: None)  # it would stay for all other tests
        patched.setattr(fuzzkinds, "SCENES", {name: fuzzkinds.SCENES[name] for kind, name, *_ in FOUND if kind == "scene"})
        patched.setattr("os.fsync", lambda handle: None)
        patched.setattr("eoseg.models.build_model", lambda name, bands, outputs, *rest: Point(bands, outputs))
        made = [seed for make in (fuzzkinds.scenes, fuzzkinds.beside, fuzzkinds.unfinished) for seed in make(fuzzkinds.made(root / make.__name__), np.random.default_rng(0))]
    os.chdir(here)
    return {(seed.kind, seed.name): seed for seed in made}


@pytest.mark.parametrize("kind, name, spoil, status, words", FOUND)
def test_what_the_fuzzer_has_found_stays_mended(tmp_path, monkeypatch, fate, seeds, point_models, kind, name, spoil, status, words):
    seed = seeds[kind, name]
    monkeypatch.chdir(fuzzkinds.copied(seed.folder, tmp_path / "case"))
    times = os.stat(seed.target)
    with open(seed.target, "wb") as f:
        f.write(spoil(seed.content))
    os.utime(seed.target, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = fate(*seed.words, may_change=fuzzkinds.MAY_CHANGE)
    if status:
        faults.assert_refused(found, *words, status=status, left=fuzzkinds.MAY_CHANGE)
    else:
        faults.assert_worked(found)
        seed.check(seed, status)


def test_a_table_of_patches_that_is_no_text_is_named(tmp_path, fate, narrow):
    tinypatches.make(tmp_path / "data")
    (tmp_path / "data/patches.csv").write_bytes(b"patch,place\np\xff.tif,here\n")
    found = fate("main_v2", *tinypatches.FLAGS, "--dataset_root", tmp_path / "data", "--save_dir", tmp_path / "run", "--val_strategy", "kfold", "--n_splits", 2, may_change=r"/\.cache/")
    faults.assert_refused(found, "patches.csv", "table", left=r"/\.cache/")


def test_a_patch_that_claims_more_than_its_bytes_can_hold_takes_no_memory(tmp_path):
    path = write_raster(tmp_path / "p.tif", np.zeros((3, 40, 48), "uint16"), interleave="band", compress="deflate")
    path.write_bytes(altered(256, 2**22)(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"p\.tif: "):
        raster.stored(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**26


def test_a_patch_whose_directories_lead_round_in_a_circle_is_read_once(tmp_path):
    path = write_raster(tmp_path / "p.tif", np.ones((3, 40, 48), "uint16"))
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    path.write_bytes(content)
    found = subprocess.run([sys.executable, "-c", f"from eoseg import raster; print(raster.stored({str(path)!r}).pixels.sum())"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout == f"{3 * 40 * 48}\n" or found.returncode and "DataError" in found.stderr


def test_remembered_facts_that_are_nested_without_end_are_forgotten(tmp_path):
    (tmp_path / "facts-k.json").write_text("[" * 10**5)
    assert patchset.Memory(tmp_path, [], "k").recall() == {}


def test_mutants_are_the_same_every_time_and_differ_from_what_they_were_made_of():
    content, others = bytes(range(256)) * 20, [b"another" * 99]
    one, other = ([mutants.spoilt(content, others, np.random.default_rng(i)) for i in range(50)] for _ in range(2))
    assert one == other and len({found for found, _ in one} - {content}) > 45


@pytest.mark.slow
def test_a_few_mutants_of_every_kind_are_right_or_refused(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tests/fuzz.py", "--mutants", "40", "--seed", "8", "--keep", tmp_path / "kept"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert kinds == ["kind", *fuzzkinds.SHARE, "all"] and not (tmp_path / "kept").exists()
