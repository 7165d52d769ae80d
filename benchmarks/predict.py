#!/usr/bin/env python
"""How much longer prediction takes than the bare forward pass, beside other tools, and what memory each needs.

    python benchmarks/predict.py                              # scenes of 2048 and 4096 pixels square, 10 bands, tiles of 512 at 128
    python benchmarks/predict.py --sizes 2048 --repeat 1      # a quick look
    python benchmarks/predict.py --sizes 8192 --device cuda   # on a GPU; bare is the mixed-precision forward there

Bare: one read of the scene, the eager forward pass in float32 and NCHW (on a GPU: mixed precision, channels-last, in batches)
over as many tiles as we run, which lie in memory, and one write of the same kind of file, one after the other. Ours: `predict` as
Predict_large_image_v2.py calls it. Two networks: smp's Unet with resnet18, and a 1 x 1 convolution, beside which all else is
overhead. MONAI's sliding_window_inference, OmniCloudMask's predict_from_array and TerraTorch's tiled_inference
run when they are installed, between the same read and the same write. All in one process, in turn; the median of the
ratios of --repeat rounds. Peak memory is that of a process of its own for each, with what torch itself takes. Exit status 0 also
when a target is missed.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

CLASSES, TILE, OVERLAP = 5, 512, 128
TARGETS = {("unet", "ours"): {2048: 0.9, 4096: 0.9}, ("unet", "ours --use_amp"): {2048: 0.42, 4096: 0.42}, ("point", "ours"): {2048: 1.15, 4096: 1.0}}


def main():
    args = parse()
    if args.one:
        return print(json.dumps(peak_of(args)))
    with tempfile.TemporaryDirectory(prefix="predict_") as temporary:
        for size in args.sizes:
            folder = Path(args.folder or temporary)
            scene = make_scene(folder, size, args.bands)
            for kind in args.networks:
                report(kind, scene, size, args)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096], help="of the scenes (default: 2048 4096)")
    parser.add_argument("--networks", nargs="+", default=["unet", "point"], choices=("unet", "point"), help="(default: both)")
    parser.add_argument("--bands", type=int, default=10, help="(default: 10)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--folder", help="where scenes are kept (default: a temporary one)")
    parser.add_argument("--no_memory", action="store_true", help="leave the peaks of memory out")
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "METHOD", "SCENE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_scene(folder, size, bands):
    """A tiled, deflated uint16 GeoTIFF of blocks with noise, which compresses about as real scenes do."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    path = folder / f"scene_{size}_{bands}.tif"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 6000, (bands, size // 64 + 9, size // 64 + 1))
    with rasterio.open(path, "w", driver="GTiff", height=size, width=size, count=bands, dtype="uint16", crs="EPSG:32630", transform=from_origin(5e5, 48e5, 10, 10), tiled=True,
                       blockxsize=512, blockysize=512, compress="deflate", predictor=2, interleave="band") as dst:
        for row in range(0, size, 512):
            part = coarse[:, row // 64 : row // 64 + 8].repeat(64, 1).repeat(64, 2)[:, : size - row, :size]
            dst.write((part + rng.integers(0, 300, part.shape)).astype("uint16"), window=Window(0, row, size, part.shape[1]))
    return path


def build(bands):
        import torch

        return torch.nn.Conv2d(bands, CLASSES, 1)


def build(kind, bands):
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    return (smp.Unet("resnet18", encoder_weights=None, in_channels=bands, classes=CLASSES) if kind == "unet" else torch.nn.Conv2d(bands, CLASSES, 1)).eval()


def network_of(kind, bands, device, amp):
    """The network as a checkpoint of it would be loaded."""
    import torch

    from eoseg.device import amp_settings
    from eoseg.network import Network
    from eoseg.normalize import Normalizer

    scale = Normalizer("percentile", (100.0,) * bands, (1e-4,) * bands, (3000.0,) * bands, 0.0, 1.0)
    net = build(kind, bands).to(device, memory_format=torch.channels_last)
    return Network(str(ROOT / "LICENSE"), net, kind, torch.device(device), amp_settings(amp, torch.device(device))[0], scale, [f"class_{i}" for i in range(CLASSES)], bands, False, None, None)


def read(scene):
    """All of the scene as float32, scaled as the network wants it: what every tool needs."""
    import rasterio
    import torch

    with rasterio.open(scene) as src:
        pixels = src.read()
    return torch.from_numpy(pixels.astype(np.float32)).sub_(100).mul_(1e-4).clamp_(0, 1)


def write(classes, scene, target):
    """Classes (H, W) as a Cloud-Optimized GeoTIFF like ours."""
    import rasterio
    import rasterio.shutil
    from rasterio.io import MemoryFile

    with rasterio.open(scene) as src:
        place = {"crs": src.crs, "transform": src.transform}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", height=len(classes), width=len(classes[0]), count=1, dtype="uint8", nodata=255, **place) as dst:
            dst.write(classes, 1)
        with memory.open() as src:
            rasterio.shutil.copy(src, target, driver="COG", compress="DEFLATE", bigtiff="IF_SAFER", overview_resampling="MODE", predictor="YES", num_threads="2")


def methods(kind, bands, device):
    """Name -> function(scene, target) of everything that is compared."""
    import torch

    gpu = device != "cpu"
    net, tile = build(kind, bands).to(device), torch.rand(16 if gpu else 1, bands, TILE, TILE)
    if gpu:
        net, tile = net.to(memory_format=torch.channels_last), tile.to(device, memory_format=torch.channels_last)

    def bare(scene, target):
        import rasterio

        with rasterio.open(scene) as src:
            pixels = src.read()
        with torch.inference_mode(), torch.autocast("cuda", enabled=gpu):
            for _ in range(-(-tiles_of(pixels.shape[1]) // len(tile))):
                logits = net(tile)
        if gpu:
            torch.cuda.synchronize()
        classes = logits[0].argmax(0).to(torch.uint8).cpu().numpy()  # no map, but of the same kind
        write(np.tile(classes, [-(-side // TILE) for side in pixels.shape[1:]])[: pixels.shape[1], : pixels.shape[2]], scene, target)

    def ours(amp):
        def run(scene, target):
            from eoseg.config import PredictionConfig
            from eoseg.predict import predict

            predict(network_of(kind, bands, device, amp), scene, target, PredictionConfig(patch_size=TILE, overlap=OVERLAP, use_amp=amp, overwrite=True), say=lambda line: None)
        return run

    found = {"bare": bare, "ours --use_amp": ours(True)} if gpu else {"bare": bare, "ours": ours(False), "ours --use_amp": ours(True)}
    return found | peers(net, bands, device)


def tiles_of(length):
    from eoseg.tiles import starts

    return len(starts(length, TILE, OVERLAP)) ** 2


def peers(net, bands, device):
    """Other tools that are installed, between the same read and the same write."""
    import torch

    def wrapped(blend):
        def run(scene, target):
            with torch.inference_mode():
                write(blend(read(scene)).to(torch.uint8).cpu().numpy(), scene, target)
        return run

    def monai(pixels):
        from monai.inferers import sliding_window_inference

        return sliding_window_inference(pixels[None], (TILE, TILE), 1, net, overlap=OVERLAP / TILE, mode="gaussian", sw_device=device, device="cpu")[0].argmax(0)

    def omnicloudmask(pixels):
        from omnicloudmask import predict_from_array

        return torch.from_numpy(predict_from_array(pixels.numpy(), patch_size=TILE, patch_overlap=OVERLAP, inference_device=device, custom_models=[net], pred_classes=CLASSES)[0])

    def terratorch(pixels):
        from terratorch.tasks.tiled_inference import tiled_inference

        return tiled_inference(net, pixels[None], CLASSES, crop=TILE, stride=TILE - OVERLAP, delta=0, batch_size=1)[0].argmax(0)

    return {tool.__name__: wrapped(tool) for tool in (monai, omnicloudmask, terratorch) if importlib.util.find_spec(tool.__name__)}


def timed(function, *args):
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(*args)
    return time.perf_counter() - begun


def report(kind, scene, size, args):
    import torch

    found, seconds = methods(kind, args.bands, args.device), {}
    where = torch.cuda.get_device_name() if args.device != "cpu" else f"{torch.get_num_threads()} threads"
    print(f"\n{'smp Unet, resnet18' if kind == 'unet' else '1 x 1 convolution'}, {size} x {size} x {args.bands}, {tiles_of(size)} tiles, on {where}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=scene.parent) as folder:
        for turn in range(args.repeat + 1):  # the first warms up
            for name, function in list(found.items()):
                try:
                    seconds.setdefault(name, []).append(timed(function, scene, Path(folder) / "map.tif"))
                except Exception as error:  # a peer that cannot: each has its own reasons
                    if name.split()[0] in ("bare", "ours"):
                        raise
                    print(f"  {name:<16} cannot: {' '.join(str(error).split())[:120]}")
                    del found[name]
    for name in found:
        own, base = seconds[name][1:], seconds["bare"][1:]
        ratio, target = statistics.median(a / b for a, b in zip(own, base)), TARGETS.get((kind, name), {}).get(size) if args.device == "cpu" else None
        peak = "" if args.no_memory else f"   peak {peak_text(kind, name, scene, args)}"
        print(f"  {name:<16}{statistics.median(own):8.2f} s {ratio:7.3f} x bare {f'(at most {target})' if target else '':<15}{tiles_of(size) / statistics.median(own):8.1f} tiles/s{peak}", flush=True)


def peak_text(kind, name, scene, args):
    words = [sys.executable, __file__, "--one", kind, name, str(scene), "--bands", str(args.bands), "--device", args.device]
    done = subprocess.run(words, capture_output=True, text=True)
    return f"{json.loads(done.stdout.splitlines()[-1]):,.0f} MB" if done.returncode == 0 else "unknown"


def peak_of(args):
    """Peak memory of this process after one method, in MB."""
    from eoseg import memory

    kind, name, scene = args.one
    with tempfile.TemporaryDirectory(dir=Path(scene).parent) as folder, contextlib.redirect_stdout(io.StringIO()):
        methods(kind, args.bands, args.device)[name](Path(scene), Path(folder) / "map.tif")
    return (memory.told("VmHWM") or float("nan")) / 2**20


if __name__ == "__main__":
    main()
