"""What the tests share: scenes that spell their own coordinates, and small patch folders."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: waking a second thread takes longer than the work, far longer on a busy machine

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def shared():
    """The folder of real cases; tests that use it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def without_artist():
    """Runs draw nothing before their end: a process of its own per run takes longer than most of them. Gives what tests of it put back."""
    from eoseg.drawing import Artist

    with pytest.MonkeyPatch.context() as patched:
        real = Artist.__call__
        patched.setattr(Artist, "__call__", lambda self, jobs: None)
        yield real


@pytest.fixture(scope="session", autouse=True)
def without_layers():
    """Runs do not look at their network's layers, which takes as long as a tiny one's training. Gives what tests of it put back."""
    from eoseg import runcard

    with pytest.MonkeyPatch.context() as patched:
        real = runcard.layers_of
        patched.setattr(runcard, "layers_of", lambda net, shape: ([], None))
        yield real


def write_raster(path, pixels, nodata=None, crs="EPSG:32630", transform=None, names=None, **options):
    """Write (B, H, W) or (H, W) as a GeoTIFF; 10 m pixels from (500000, 4800000) unless told."""
    import rasterio

    pixels = np.atleast_3d(pixels.T).T if pixels.ndim == 2 else pixels
    transform = rasterio.transform.from_origin(500000, 4800000, 10, 10) if transform is None else transform
    count, height, width = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", width=width, height=height, count=count, dtype=pixels.dtype, nodata=nodata,
                       crs=crs, transform=transform, **options) as dst:
        dst.write(pixels)
        for number, name in enumerate(names or [], 1):
            dst.set_band_description(number, name)
    return path


def coded(height, width, bands=3, dtype="uint16"):
    """Pixels that tell where they lie: band * 10000 + row * 100 + column, for up to 100 rows and columns; bands from 1."""
    row, col = np.indices((height, width))
    return np.stack([band * 10000 + row * 100 + col for band in range(1, bands + 1)]).astype(dtype)


def leave(monkeypatch, name, words):
    """Run a script's main as the shell would; its exit status."""
    import importlib

    from eoseg import errors

    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    module = importlib.import_module(name)
    try:
        errors.run(module.main)
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script in process: script("main_v2", "--model", ...) -> (exit status, stdout, stderr)."""
    def call(name, *words):
        status = leave(monkeypatch, name, words)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def fate(monkeypatch, capfd, tmp_path):
    """Run a script in process as an unlucky user would, and hold it to the rule of tests/faults.py: fate("main_v2", "--model", ...) -> faults.Fate."""
    import faults

    def call(name, *words, may_change=None):
        before = faults.files_under(tmp_path)
        capfd.readouterr()
        status = leave(monkeypatch, name, words)
        return faults.judged(status, *capfd.readouterr(), before, faults.files_under(tmp_path), may_change)

    return call


@pytest.fixture
def point_models(monkeypatch):
    """Checkpoints hold 1x1 convolutions (tests/tinynet.py)."""
    from tinynet import Point

    monkeypatch.setattr("eoseg.models.build_model", lambda name, bands, outputs, *rest: Point(bands, outputs))


@pytest.fixture(scope="module")
def narrow():
    """unet-dropout with an eighth of its channels: trains in a blink."""
    from functools import partial

    from eoseg import models, unet

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models, "UNetDropout", partial(unet.UNetDropout, width=4))
        yield


@pytest.fixture
def without_fsync(monkeypatch):
    """Do not wait for the disk: for tests that write many little files."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
