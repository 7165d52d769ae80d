"""Fixtures that run each script on something tiny, so that a test need only name what is wrong."""

import resource
import shutil
import signal
from pathlib import Path

import pytest
import tinypatches
from conftest import coded, write_raster
from cutouts import scene_and_label, square, write_vector
from tinynet import Point, opened, save


@pytest.fixture
def patience():
    """No run may wait for ever, or take all memory: after a minute, in which a busy machine does any of them, or with 4 GiB more than there were, it is a failure."""
    def over(number, frame):
        raise TimeoutError("it hangs")

    before, limit = signal.signal(signal.SIGALRM, over), resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(60)
    resource.setrlimit(resource.RLIMIT_AS, (held + 4 * 2**30, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limit)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def words_of(flags):
    return [word for flag, value in flags.items() for word in (flag, *(value if isinstance(value, list) else [value]))]


@pytest.fixture
def cut(fate, tmp_path):
    """Cut a scene of 32 x 48 pixels into six patches under out/: cut(flag=value ...) -> Fate. `cut.pixels`, `cut.classes` are what it holds."""
    image, label, pixels, classes = scene_and_label(tmp_path / "in")
    grid = write_vector(tmp_path / "in/grid.gpkg", [square(row, col) for row in (0, 16) for col in (0, 16, 32)])

    def run(*more, may_change=None, **flags):
        told = {"--image": image, "--label": label, "--grid": grid, "--output": tmp_path / "out", "--patch_size": 16}
        return fate("Patch_extraction_v2", "single", *words_of(told | {f"--{name}": value for name, value in flags.items()}), *more, may_change=may_change)

    run.pixels, run.classes = pixels, classes
    return run


@pytest.fixture
def predict(fate, tmp_path, point_models):
    """Map a scene of 32 x 48 pixels to map.tif: predict(flag=value ...) -> Fate."""
    scene = write_raster(tmp_path / "scene.tif", coded(32, 48))
    model = save(tmp_path / "net.pth", Point(3, 4))

    def run(*more, may_change=None, **flags):
        told = {"--model": model, "--input": scene, "--output": tmp_path / "map.tif", "--patch_size": 32, "--overlap": 8}
        return fate("Predict_large_image_v2", *words_of(told | {f"--{name}": value for name, value in flags.items()}), *more, may_change=may_change)

    return run


@pytest.fixture
def right(predict, tmp_path):
    """What the map of the scene must hold, (H, W)."""
    assert predict(output=tmp_path / "right.tif").status == 0
    return opened(tmp_path / "right.tif")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tinypatches.make(tmp_path_factory.mktemp("patches"), (4, 2, 1), size=16)


@pytest.fixture
def train(fate, tmp_path, root, narrow, monkeypatch):
    """Train for an epoch on a copy of `root` at patches/, into run/: train(flag=value ...) -> Fate. Nothing is drawn, which takes longest."""
    monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)
    shutil.copytree(root, tmp_path / "patches")

    def run(*more, may_change=None, **flags):
        told = {"--dataset_root": tmp_path / "patches", "--save_dir": tmp_path / "run", "--epochs": 1, "--batch_size": 2, "--cache": "none"}
        return fate("main_v2", *tinypatches.FLAGS, *words_of(told | {f"--{name}": value for name, value in flags.items()}), *more, may_change=may_change)

    return run
