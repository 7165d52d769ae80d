"""A scene of 40 x 48 pixels whose values are its classes, and a network that calls them so: a wrong pixel of a map shows."""

from pathlib import Path

import pytest
import torch
from conftest import coded, write_raster
from tinynet import Point, opened, save

NAMES = ["water", "crop", "tree", "town"]


def nearest(classes, bands=1):
    """A network that calls each pixel by the value of its first band: -(x - c)^2 is largest for the nearest c, and linear in x but for x^2."""
    net, number = Point(bands, classes), torch.arange(float(classes))
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.weight[:, 0, 0, 0] = 2 * number
        net.conv.bias.copy_(-(number**2))
    return net


@pytest.fixture(name="here")
def folder_of_a_scene(tmp_path, monkeypatch, point_models):
    """A folder, which the run is in, with a scene of the values 0 to 3 and networks that call them by their numbers."""
    monkeypatch.chdir(tmp_path)
    write_raster("s.tif", coded(40, 48, 1) % 4)
    save("m.pth", nearest(4), bands=1, names=NAMES)
    save("b.pth", Point(1, 1), bands=1, outputs=1, mode="binary", names=["no", "yes"])
    return Path(".")


@pytest.fixture(name="predict")
def prediction(fate, here):
    """Run the script on s.tif with m.pth, unless told, by tiles of 16: a Fate."""
    def call(*words, may_change=None, **others):
        usual = {"model": "m.pth", "input": "s.tif", "output": "map.tif", "patch_size": 16, "overlap": 4} | others
        told = [part for key, value in usual.items() for part in (f"--{key}", *(value if isinstance(value, list) else [value]))]
        return fate("Predict_large_image_v2", *told, *words, may_change=may_change)

    return call


def right(path="map.tif", where=slice(None)):
    """Is the map of s.tif what it must be?"""
    return (opened(path)[where] == (coded(40, 48, 1)[0] % 4)[where]).all()
