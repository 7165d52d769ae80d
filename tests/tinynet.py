"""Networks small enough to know by hand, as predict and as the scripts take them."""

import rasterio
import torch
from torch import nn

from eoseg import checkpoint, predict
from eoseg.config import PredictionConfig
from eoseg.network import Network
from eoseg.normalize import Normalizer


class Point(nn.Module):
    """A 1x1 convolution: what it says of a pixel hangs on that pixel alone."""

    def __init__(self, bands, outputs, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(bands, outputs, 1)

    def forward(self, x):
        return self.conv(x)


class Function(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Spy(Function):
    """Remembers the tiles it passes on to its function."""

    def __init__(self, function):
        super().__init__(function)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return super().forward(x)


def remainder(classes):
    """Logits that call every pixel by its first band modulo `classes`: a shift by one pixel of a coded raster shows."""
    return lambda x: 20.0 * nn.functional.one_hot(x[:, 0].round().long() % classes, classes).movedim(-1, 1).float()


def identity(bands, fill=0.0):
    return Normalizer("none", (0.0,) * bands, (1.0,) * bands, (fill,) * bands)


def by_hand(folder, net, bands=1, classes=2, binary=False, **changes):
    """A Network around `net`, with raw pixels as its input unless `changes` says otherwise."""
    file = folder / "net.pth"
    file.write_bytes(b"weights")
    settings = {"path": str(file), "net": net, "name": "unet-dropout", "device": torch.device("cpu"), "amp_dtype": None, "normalizer": identity(bands),
                "class_names": [f"class_{i}" for i in range(classes)], "in_channels": bands, "binary": binary, "input": None, "pixel_size": None}
    return Network(**settings | changes)


def save(path, net, bands=3, outputs=4, names=None, mode="multiclass", normalizer=None, band_names=None, **parts):
    """Write a checkpoint of this project; `models.build_model` must be told to make such a net (fixture `point_models`)."""
    band_names = band_names or [f"band_{i}" for i in range(1, bands + 1)]
    config = {"model_name": "unet-dropout", "encoder_name": "resnet34", "mode": mode, "in_channels": bands, "num_classes": outputs}
    known = {"normalization": (normalizer or identity(bands)).to_dict(), "class_names": names, "performance_metrics": {},
             "input": {"of_patch": list(range(bands)), "names": band_names, "of_scene": list(range(1, bands + 1)), "scene_count": bands}}
    checkpoint.save(path, model_state_dict=net.state_dict(), config=config, **known | parts)
    return path


def mapped(network, scene, output, **options):
    """Predict `scene` by tiles of 64 with 16 shared, unless told; returns the summary."""
    return predict.predict(network, scene, output, PredictionConfig(**{"patch_size": 64, "overlap": 16} | options), say=lambda line: None)


def opened(path, band=1):
    with rasterio.open(path) as src:
        return src.read(band)
