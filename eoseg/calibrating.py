"""Making a network as sure as it is right: a temperature, and for binary networks a threshold, fitted on validation patches."""

from contextlib import closing

import numpy as np
import torch

from eoseg.coding import IGNORE
from eoseg.deciding import decide, probabilities
from eoseg.scoring import STEPS, bins_of, calibration_error

MOST = 2_000_000  # pixels that are drawn, evenly over patches
NUMBERS = 2**26  # logits that are held, at most: 256 MB
COLDEST, HOTTEST = 0.05, 20.0  # temperatures that are tried


@torch.inference_mode()
def calibrate(forward, batches, patches, classes, split, between=lambda: None):
    """Fit temperature and threshold to what a network says of labelled pixels.

    Args:
        forward: from an image (N, B, H, W) to logits (N, C, H, W); C of 1 is binary. batches: yields image, target (N, H, W) and indices.
        patches: how many there will be. classes: their number, two in binary mode. split: the name of the patches. between: called after every batch.
    Returns:
        dict of plain values: temperature, threshold (binary only), split, pixels, and of before and after, as a list of two:
        nll (mean negative log likelihood), ece, and in binary mode iou (of class 1).
    Source:
        Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599 (temperature scaling).
    """
    quota = max(1, min(MOST, NUMBERS // classes) // patches)
    logits, truth, lot = [], [], torch.Generator().manual_seed(0)
    with closing(batches):
        for image, target, *_ in batches:
            for one, labels in zip(forward(image).float(), target):
                known = (labels != IGNORE).flatten().nonzero()[:, 0]
                some = known if len(known) <= quota else known[torch.randperm(len(known), generator=lot)[:quota].to(known.device)]  # every n-th would be whole columns
                logits.append(one.flatten(1)[:, some].T.cpu())
                truth.append(labels.flatten()[some].cpu())
            between()
    logits, truth = torch.cat(logits), torch.cat(truth)
    both = 1.0, fit_temperature(logits, truth)
    found = {"temperature": both[1], "split": split, "pixels": len(truth), "nll": [loss_at(logits, truth, temperature) for temperature in both]}
    found["ece"] = [calibration_error(bins_of(certain(probabilities_of(logits, temperature), truth))) for temperature in both]
    if logits.shape[1] == 1:
        found["threshold"], found["iou"] = best_threshold(probabilities_of(logits, both[1]).flatten().numpy(), truth.numpy())
    return found


def probabilities_of(logits, temperature):
    """Probabilities of (n, C) logits as prediction has them, (n, C, 1, 1); C of 1 is binary."""
    return probabilities(logits[..., None, None], logits.shape[1] == 1, temperature)


def loss_at(logits, truth, temperature):
    """Mean negative log likelihood of (n, C) logits, or of (n, 1) binary ones, divided by `temperature`."""
    total = 0.0
    for one, labels in zip(logits.split(2**18), truth.split(2**18)):
        scaled = one.double() / temperature
        both = scaled if scaled.shape[1] > 1 else torch.cat([torch.zeros_like(scaled), scaled], 1)
        total += torch.nn.functional.cross_entropy(both, labels, reduction="sum").item()
    return total / len(truth)


def fit_temperature(logits, truth):
    """The temperature of least loss, between COLDEST and HOTTEST; 1 where none is better."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda power: loss_at(logits, truth, float(np.exp(power))), bounds=np.log([COLDEST, HOTTEST]), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x)) if found.fun < loss_at(logits, truth, 1.0) else 1.0


def certain(probability, truth):
    """(STEPS + 1, 2) pixels by confidence, wrong and right, as `scoring.bins_of` takes them; from (n, C, 1, 1) and (n,)."""
    called, confidence = (part.flatten() for part in decide(probability))
    steps = (confidence * STEPS).round().long() * 2 + (called == truth)
    return torch.bincount(steps, minlength=2 * (STEPS + 1)).view(-1, 2).numpy()


def best_threshold(probability, truth):
    """The threshold with the best IoU of class 1 (and F1: they rise together), and [IoU at 0.5, IoU at the threshold].

    Of several equally good ones, a multiple of 1 / STEPS each, the one nearest to 0.5; that itself when no pixel is of class 1.

    Args:
        probability: (n,) of class 1. truth: (n,) 0 or 1.
    """
    steps = np.rint(np.asarray(probability, float) * STEPS).astype(int)
    called = np.bincount(steps, minlength=STEPS + 1)[::-1].cumsum()[::-1]  # with this threshold, from 0 / STEPS on
    hit = np.bincount(steps[truth == 1], minlength=STEPS + 1)[::-1].cumsum()[::-1]
    iou = hit / np.maximum(called + (truth == 1).sum() - hit, 1)
    best = np.flatnonzero(iou == iou.max())
    chosen = best[np.argmin(abs(best - STEPS // 2))]
    return float(chosen / STEPS), [float(iou[STEPS // 2]), float(iou[chosen])]
