#!/usr/bin/env python
"""What the training loop adds to the bare step, how fast patches are fed, and whether memory grows with the validation set.

    python benchmarks/train.py                        # 12 batches of 8 x 10 x 224 x 224, smp's Unet with resnet18
    python benchmarks/train.py --batches 4 --repeat 1 # a quick look

Bare: forward, cross entropy, backward, fused AdamW in a plain loop, float32, channels-last, over batches that lie on the
device, then the forward of two validation patches. Ours: `one_epoch` as main_v2.py runs it, with augmentation, the default
loss, dropout, checks, validation metrics, progress and log, patches from the pack on disk; what the checkpoints hold it up
is told apart. Both in one process, in turn; the median of the ratios of --repeat rounds. On a GPU bare is the
mixed-precision step, and so is ours. Fed: patches fetched, normalised and augmented, nothing learned, by all cores. Exit
status 0 also when a target is missed.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

CLASSES = 5


def main():
    args = parse()
    if args.validate:
        return print(json.dumps(validated(Path(args.folder), args)))
    with tempfile.TemporaryDirectory(prefix="train_") as temporary:
        work = Path(args.folder or temporary) / f"{args.size}_{args.bands}_{args.batches * args.batch_size}"
        make_patches(work / "patches", args.batches * args.batch_size, args)
        report(work, args)
        if not Path("/proc/self/status").exists():
            return print("peak memory: this system does not tell it")
        few, many = memory(work, 64, args), memory(work, 256, args)
        print(f"peak memory validating 64 patches {few:.0f} MB, 256 patches {many:.0f} MB: {(many - few) / 192:+.2f} MB a patch")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=12, help="an epoch (default: 12)")
    parser.add_argument("--batch_size", type=int, default=8, help="(default: 8)")
    parser.add_argument("--bands", type=int, default=10, help="(default: 10)")
    parser.add_argument("--size", type=int, default=224, help="of a patch (default: 224)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--device", default="auto", help="(default: auto)")
    parser.add_argument("--folder", help="where patches are kept (default: a temporary one)")
    parser.add_argument("--validate", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_patches(root, count, args):
    """`count` training patches and two validation patches of random uint16, in blocks so that they compress as real ones do."""
    from affine import Affine

    from eoseg import patchfile

    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("validation", 2)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            if (root / split / "labels" / f"p{i}.tif").exists():
                continue
            place = Affine(10, 0, i * 10.0 * args.size, 0, -10, 0)
            label = rng.integers(CLASSES, size=(args.size // 16 + 1,) * 2).repeat(16, 0).repeat(16, 1)[: args.size, : args.size]
            image = (500 * label + rng.integers(0, 300, (args.bands, args.size, args.size))).astype(np.uint16)
            (root / split / "images" / f"p{i}.tif").write_bytes(patchfile.patch_bytes(image, place, "EPSG:32630"))
            (root / split / "labels" / f"p{i}.tif").write_bytes(patchfile.patch_bytes(label[None].astype(np.uint8), place, "EPSG:32630"))


def prepared(work, args, amp=False, augmentation="basic"):
    """A run as main_v2.py prepares it, and its loaders."""
    import model_training_v2 as training
    from eoseg.config import TrainingConfig
    from eoseg.source import open_splits
    from eoseg.stopping import Stopping

    config = TrainingConfig("unet", str(work / "patches"), encoder_name="resnet18", pretrained=False, num_classes=CLASSES, batch_size=args.batch_size, use_amp=amp,
                            device=args.device, save_dir=str(work / "out"), epochs=100, augmentation=augmentation, overwrite=True)
    with contextlib.redirect_stdout(io.StringIO()):
        splits, source = open_splits(config, lambda items, **settings: items)
        return training.prepare(config, splits, source, Stopping())


def bare_epoch(args, batches, held_out, device, amp):
    """A function that trains a fresh network over `batches` once and sends `held_out` through it, with nothing around it."""
    import segmentation_models_pytorch as smp
    import torch
    import torch.nn.functional as F

    net = smp.Unet("resnet18", encoder_weights=None, in_channels=args.bands, classes=CLASSES).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4, fused=True)

    def epoch():
        for image, target in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                logits = net(image)
            F.cross_entropy(logits.float(), target).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        net.eval()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            for image, target in held_out:
                F.cross_entropy(net(image).float(), target)
        net.train()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return epoch


def timed(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def report(work, args):
    import torch

    import model_training_v2 as training

    run, loaders = prepared(work, args)
    device = run.device
    gpu = device.type == "cuda"
    batches, held_out = ([(image.clone(memory_format=torch.channels_last), target % 255) for image, target, _ in loader.epoch()] for loader in loaders[:2])
    bare, half = (bare_epoch(args, batches, held_out, device, amp) for amp in (gpu, True))
    ours = {"float32": (run, loaders), "--use_amp": prepared(work, args, amp=True)}
    if gpu:
        del ours["float32"]
    training.remember = lambda *_: None  # told apart below
    print(f"{args.batches} batches of {args.batch_size} x {args.bands} x {args.size} x {args.size} on {torch.cuda.get_device_name() if gpu else f'{torch.get_num_threads()} threads'}, torch {torch.__version__}")
    bare()
    half()
    rounds, halves = {name: [] for name in ours}, []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for one in ours.values():
            training.one_epoch(one[0], *one[1][:2])
        for _ in range(args.repeat):
            base = timed(bare)
            halves.append(timed(half) / base)
            for name, (run, loaders) in ours.items():
                rounds[name].append((timed(lambda: training.one_epoch(run, *loaders[:2])), base))
    print(f"bare step{' (bfloat16)' if gpu else ''}: {1000 * statistics.median(base for _, base in next(iter(rounds.values()))) / args.batches:.1f} ms")
    print(f"bare step with bfloat16 autocast: {statistics.median(halves):.3f} x")
    for name, found in rounds.items():
        target = 1.05 if gpu else 1.03 if name == "float32" else 0.55 if torch.cpu._is_avx512_bf16_supported() else None
        print(f"epoch, {name}: {statistics.median(one / base for one, base in found):.3f} x the bare one" + (f" (at most {target})" if target else ""))
    print(f"keeping best, log and state of an epoch: {saving(run, work):.0f} ms held up, written behind")
    for words in ("none", "basic", "strong"):
        _, loaders = prepared(work, args, augmentation=words)
        seconds = min(timed(lambda: consume(loaders[0], device)) for _ in range(args.repeat))
        print(f"fed with augmentation {words}: {args.batches * args.batch_size / seconds:.0f} patches/s")


def saving(run, work):
    """Milliseconds that the loop waits for its checkpoints after an epoch."""
    import importlib

    import model_training_v2 as training

    importlib.reload(training)
    scores = {"mean_iou": 2.0}
    seconds = timed(lambda: training.remember(run, scores, -1.0))
    run.behind.wait()
    return 1000 * seconds


def consume(loader, device):
    import torch

    for _ in loader.epoch():
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory(work, count, args):
    """Peak memory in MB of a process that validates `count` patches."""
    root = work / f"validate{count}"
    shutil.rmtree(root, ignore_errors=True)
    for split, number in (("train", args.batch_size), ("validation", count)):
        for kind in ("images", "labels"):
            (root / "patches" / split / kind).mkdir(parents=True)
            for i in range(number):
                os.link(work / "patches" / "train" / kind / f"p{i % (args.batches * args.batch_size)}.tif", root / "patches" / split / kind / f"p{i}.tif")
    words = [sys.executable, __file__, "--validate", "--folder", str(root), "--device", args.device, "--bands", str(args.bands), "--batch_size", str(args.batch_size)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def validated(root, args):
    import model_training_v2 as training

    run, loaders = prepared(root, args)
    training.evaluate(run, loaders[1])
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024  # getrusage would count what the parent weighed


if __name__ == "__main__":
    main()
