"""Patch folders whose classes any network can learn, because a pixel's value tells its class; and the quickest network."""

from pathlib import Path

import numpy as np
import rasterio
from conftest import write_raster

from eoseg.config import TrainingConfig

NET = {"model_name": "linknet", "encoder_name": "tu-mobilenetv3_small_050", "pretrained": False}  # 0.4 M parameters
FLAGS = ["--model", "linknet", "--encoder_name", "tu-mobilenetv3_small_050", "--no_pretrained", "--classes", 3, "--workers", 0]


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
    """A TrainingConfig of the quickest network: three classes, two epochs, batches of two."""
    usual = {"num_classes": 3, "epochs": 2, "batch_size": 2, "workers": 0, "device": "cpu"}
    return TrainingConfig(dataset_root=str(root), save_dir=str(save_dir), **NET | usual | changes)
