"""Patch folders whose classes any network can learn, because a pixel's value tells its class; and what runs on them leave."""

import csv
from pathlib import Path

import numpy as np
import rasterio
import torch
from conftest import write_raster

from eoseg.config import TrainingConfig
from eoseg.source import open_splits
from eoseg.stopping import Stopping

FLAGS = ["--model", "unet-dropout", "--classes", 3, "--workers", 0]
REAL = {"model_name": "linknet", "encoder_name": "tu-mobilenetv3_small_050", "pretrained": False}  # smp's quickest, 0.4 M parameters


def make(root, counts=(6, 3, 2), size=32, bands=3, classes=3, seed=0, nodata=None):
    """Write train, validation and test patches p0.tif ...: blocks of 8 pixels, value 100 + 200 * class + noise below 60."""
    rng = np.random.default_rng(seed)
    rows, cols = np.broadcast_to(size, 2)
    for split, count in zip(("train", "validation", "test"), counts):
        for kind in ("images", "labels") if count else ():
            (Path(root) / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            label = rng.integers(classes, size=(rows // 8 + 1, cols // 8 + 1)).repeat(8, 0).repeat(8, 1)[:rows, :cols].astype("uint8")
            image = (100 + 200 * label + rng.integers(0, 60, (bands, rows, cols))).astype("uint16")
            write_raster(Path(root) / split / "images" / f"p{i}.tif", image, nodata)
            write_raster(Path(root) / split / "labels" / f"p{i}.tif", label)
    return Path(root)


def change(path, function):
    """Write what `function` makes of a raster's pixels (B, H, W) over it."""
    with rasterio.open(path) as src:
        pixels, nodata = src.read(), src.nodata
    Path(path).unlink()
    write_raster(path, function(pixels), nodata)


def config(root, save_dir, **changes):
    """A TrainingConfig of unet-dropout (narrow, with that fixture): three classes, two epochs, batches of two."""
    usual = {"model_name": "unet-dropout", "num_classes": 3, "epochs": 2, "batch_size": 2, "workers": 0, "device": "cpu"}
    return TrainingConfig(dataset_root=str(root), save_dir=str(save_dir), **usual | changes)


def prepared(root, folder, **changes):
    """What `prepare` takes: options, pairs, their Source, and a Stopping."""
    settings = config(root, folder, **changes)
    return settings, *open_splits(settings, lambda items, **told: items), Stopping()


def speckled(root):
    """Six, four and three patches; a corner of every label is unlabelled, the other corner of every image holds no data."""
    make(root, (6, 4, 3), nodata=0)
    distance = np.add.outer(np.arange(32), np.arange(32))
    for path in root.glob("*/labels/*"):
        change(path, lambda label: np.where(distance < 9, 255, label).astype("uint8"))
    for path in root.glob("*/images/*"):
        change(path, lambda image: np.where(distance > 55, 0, image).astype("uint16"))
    return root


def saved(folder, ending="last.pth", model="unet-dropout"):
    """A run's checkpoint, opened as strangers' files are."""
    return torch.load(folder / f"{model}_{ending}", weights_only=True)


def same_weights(one, two):
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def telling(tally, **changed):
    """The same metrics.Tally, whose scores say something else."""
    real = tally.scores
    tally.scores = lambda names, intervals=False: real(names, intervals) | changed
    return tally


def rows(folder):
    """A run's log."""
    with open(folder / "unet-dropout_training_log.csv", newline="") as f:
        return list(csv.DictReader(f))


def timeless(table):
    """A log without what no two runs share."""
    return [{key: value for key, value in row.items() if key != "epoch_time"} for row in table]
