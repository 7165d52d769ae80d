"""run.json: what a run was, so that it can be told apart and done again."""

import contextlib
import copy
import functools
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from eoseg import files, memory
from eoseg.runfolder import card_of
from eoseg.tiles import tile_size

PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "numpy", "rasterio", "scipy", "scikit-learn", "opencv-python", "tifffile", "matplotlib")


def describe(net, config, splits, source, told, kind, device, precision):
    """What run.json says of a run from its start, as plain values.

    Args:
        splits: dict split -> pairs. source: the source.Source they are of. told: split -> files.lines_of. kind: of normalisation. precision: in words.
    """
    size = tile_size(config.model_name, config.patch_size or source.largest)
    shape = [1, len(source.bands.names), size, size]
    layers, flops = layers_of(net, shape)
    prints = {split: files.digest(lines) for split, lines in told.items()}
    return {
        "model": config.model_name, "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "seed": config.seed, "git": commit(), "versions": versions(),
        "device": device_name(device), "precision": precision, "threads": torch.get_num_threads(),
        "data": {"root": config.dataset_root, "fingerprint": prints["validation"], "fingerprints": prints, "patches": {split: len(part) for split, part in splits.items()},
                 "bands": source.bands.names, "classes": source.names, "normalization": kind},
        "network": {"name": config.model_name, "encoder": config.encoder_shown.removeprefix(" with ") or None, "parameters": sum(p.numel() for p in net.parameters()),
                    "input": shape, "gflops": None if flops is None else flops / 1e9, "layers": layers},
        "options": dict(vars(config)), "finished": False,
    }


def keep(run, **more):
    """Write run.json as it is after an epoch: epochs, time and memory so far, and `more`."""
    seconds = [row["epoch_time"] for row in run.history]
    files.write_json(card_of(run.config), run.card | {"epochs": run.epoch, "epoch_seconds": float(np.median(seconds)), "seconds": sum(seconds),
                                                      "peak_memory_mb": peak_memory(run.device), **more})


@functools.cache
def versions():
    """Of Python and of what the run builds on."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def commit():
    """The commit of this program, and whether its files differ from it; None where it is no git checkout."""
    ask = lambda *words: subprocess.run(["git", "-C", str(Path(__file__).parents[1]), *words], capture_output=True, text=True, check=True, timeout=10).stdout
    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "changed": bool(ask("status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device):
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def layers_of(net, shape):
    """Layers of a network, a list of dicts name, kind, output (shape) and parameters (its own), and the floating-point operations of a forward pass.

    Found on tensors without content, so that nothing is computed. The operations are None, and outputs too, where that does not work.

    Args:
        shape: of the input, (1, B, H, W).
    """
    from torch.utils.flop_counter import FlopCounterMode

    rows = [{"name": name, "kind": type(layer).__name__, "output": None, "parameters": count}
            for name, layer in net.named_modules() for count in [sum(p.numel() for p in layer.parameters(recurse=False))] if count or not list(layer.children())]
    by_name = {row["name"]: row for row in rows}
    try:
        shadow = copy.deepcopy(net).to("meta").eval()
        for name, layer in shadow.named_modules():
            if name in by_name:
                layer.register_forward_hook(lambda layer, given, output, row=by_name[name]: row.update(output=list(output.shape)) if torch.is_tensor(output) else None)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            shadow(torch.empty(shape, device="meta"))
        return rows, counter.get_total_flops()
    except Exception:  # a layer that reads its input's content
        return rows, None


def forget_peak(device):
    """Have the peak of memory counted from now on, where the system can."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    memory.forget_peak()


def peak_memory(device):
    """MB that the run has held at most: of the GPU, or of the process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = memory.told("VmHWM")
    return peak / 1e6 if peak else None
