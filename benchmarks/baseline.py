#!/usr/bin/env python
"""What a per-pixel random forest makes of a patch folder: the figure a network has to beat.

    python benchmarks/baseline.py demo/patches

Each pixel is its band values and their means and standard deviations over 5 x 5 pixels. 100 trees (scikit-learn) are grown
on the labelled pixels of train/ (a random 200,000 of them where there are more) and scored on validation/ and test/ with
the same confusion matrix as a network.
"""

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from eoseg import patchset, raster, tracking
from eoseg.coding import IGNORE
from eoseg.metrics import Confusion


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", help="--output folder of Patch_extraction_v2.py")
    parser.add_argument("--seed", type=int, default=0, help="of the forest (default: 0)")
    args = parser.parse_args()
    started = time.perf_counter()
    values, classes = pixels(args.patches, "train")
    forest = grow(values, classes, args.seed)
    names = patchset.load_metadata(args.patches, required=False).get("class_names") or [f"class_{i}" for i in range(classes.max() + 1)]
    for split in ("validation", "test"):
        values, truth = pixels(args.patches, split)
        if len(truth):
            print(f"random forest on {split}:\n{tracking.score_table(scores(forest, values, truth, names))}")
    print(f"{time.perf_counter() - started:.0f} s")


def grow(values, classes, seed):
    """A forest of 100 trees on at most 200,000 of the pixels (N, F) with their classes (N,)."""
    from sklearn.ensemble import RandomForestClassifier

    some = np.random.default_rng(seed).permutation(len(classes))[:200_000]
    return RandomForestClassifier(100, n_jobs=-1, random_state=seed, class_weight="balanced").fit(values[some], classes[some])


def scores(forest, values, truth, names):
    """What `Confusion.scores` says of the forest on pixels (N, F) of the classes `truth` (N,)."""
    import torch

    confusion = Confusion(len(names))
    confusion.add(torch.from_numpy(forest.predict(values).astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
    return confusion.scores(names)


def pixels(folder, split):
    """Features (N, 3 B) float32 and classes (N,) uint8 of the labelled pixels of a split."""
    values, classes = [], []
    for image, label in patchset.find_pairs(folder, split):
        bands, missing, valid = raster.read_patch(image)
        codes, _ = raster.read_label(label)
        known = valid & (codes != IGNORE)
        values.append(features(np.where(missing, 0, bands).astype(np.float32))[known])
        classes.append(codes[known])
    return (np.concatenate(values), np.concatenate(classes)) if values else (np.zeros((0, 1)), np.zeros(0, np.uint8))


def features(bands):
    """(H, W, 3 B): each band, its local mean and its local standard deviation."""
    layers = []
    for band in bands:
        mean = cv2.blur(band, (5, 5))
        layers += [band, mean, np.sqrt(np.maximum(cv2.blur(band * band, (5, 5)) - mean * mean, 0))]
    return np.stack(layers, -1)


if __name__ == "__main__":
    main()
