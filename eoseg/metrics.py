"""Counting, on the device: one confusion matrix, boundaries and confidence, from which every score derives."""

import numpy as np
import torch

from eoseg import scoring
from eoseg.coding import IGNORE

BOUNDARY = 0.02  # of a patch's diagonal: how near to another class a pixel is one of the boundary, as Cheng et al. 2021 have it


class Confusion:
    """How often each true class (row) was called each class (column), counted over any number of batches.

    Counts are int64, so an epoch, a fold or a whole country adds up exactly, in any order. The last row holds the
    ignored pixels, so that counting needs no mask and no wait for the device.
    """

    def __init__(self, classes, device="cpu"):
        self.counts = torch.zeros(classes + 1, classes, dtype=torch.int64, device=device)

    def add(self, predicted, target):
        """Count int64 label maps of equal shape; a target of C or more is ignored."""
        self.counts += count_pairs(predicted, target, self.counts.shape[1])

    @property
    def matrix(self):
        """(C, C) int64, rows the truth."""
        return self.counts[:-1].cpu().numpy()

    def scores(self, names):
        """Every score as plain values: `scoring.scores`."""
        return scoring.scores(self.matrix, names)


def count_pairs(predicted, target, classes):
    """(C + 1, C) int64: how often each true class was called each class; the last row is what is ignored."""
    return histogram(target.clamp(max=classes) * classes + predicted, (classes + 1) * classes).view(classes + 1, classes)


def histogram(values, bins):
    """(bins,) int64: how often each whole number from 0 occurs in `values`; without a wait for a GPU, as bincount would be."""
    flat = values.flatten()
    if flat.is_cuda:
        return torch.zeros(bins, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    return torch.bincount(flat, minlength=bins)


def count_where(mask, values, count):
    """(count,) int64: how often each value from 0 occurs where `mask` is True; no wait for the device, as picking those out would be."""
    return histogram(torch.where(mask, values, count), count + 1)[:count]


class Tally:
    """All that is counted when a network is judged on a set of patches.

    Args:
        classes: their number. device: where it is counted. size: of the largest patch, in pixels. patches: how many there are, to count each by itself; 0 counts them together.
    """

    def __init__(self, classes, device, size, patches=0):
        self.confusion = Confusion(classes, device)
        self.boundary = torch.zeros(3, classes, dtype=torch.int64, device=device)
        self.sure = torch.zeros(scoring.STEPS + 1, 2, dtype=torch.int64, device=device)
        self.margins = torch.zeros(patches, 3, classes, dtype=torch.int32, device=device)  # pixels right, true and called of each class in each patch
        self.reach = reach_of(size)

    def add(self, classes, confidence, target, indices):
        """Count a batch.

        Args:
            classes: (N, H, W) int64, what was called. confidence: (N, H, W) float, 0 to 1. target: (N, H, W) int64. indices: of the patches, N.
        """
        count = self.boundary.shape[1]
        if len(self.margins):
            each = torch.stack([count_pairs(one, truth, count) for one, truth in zip(classes, target)])
            self.margins[indices] = torch.stack([each.diagonal(dim1=1, dim2=2), each[:, :-1].sum(2), each[:, :-1].sum(1)], 1).int()
            self.confusion.counts += each.sum(0)
        else:
            self.confusion.add(classes, target)
        labelled, right = target < count, classes == target
        steps = (confidence * scoring.STEPS).round().long() * 2 + right
        self.sure += count_where(labelled, steps, self.sure.numel()).view_as(self.sure)
        true, called = edges(target, labelled, self.reach), edges(classes, labelled, self.reach)
        self.boundary += torch.stack([count_where(mask, labels, count) for mask, labels in ((true & called & right, target), (true, target), (called, classes))])

    def scores(self, names, intervals=False):
        """`scoring.scores`; with `intervals` their limits too, and the number of patches with something labelled."""
        found = scoring.scores(self.confusion.matrix, names, self.boundary.cpu().numpy(), scoring.bins_of(self.sure.cpu().numpy()))
        if intervals:
            from eoseg.intervals import bootstrap

            margins = self.margins.cpu().numpy()
            found |= {"patches": int((margins[:, 1].sum(1) > 0).sum()), "intervals": bootstrap(margins, names)}
        return found


def reach_of(size):
    """How many pixels from another class the boundary reaches in patches of `size` pixels: 2 % of the diagonal, at least 1."""
    return max(1, round(BOUNDARY * size * np.sqrt(2)))


def edges(labels, known, reach):
    """Which known pixels have a known pixel of another label within `reach` rows and columns, (N, H, W) bool.

    The frame of a patch is no boundary, nor is where the labelled part ends: what lies beyond may be the same class.

    Args:
        labels: (N, H, W) int64 below 255. known: (N, H, W) bool.
    Source:
        Cheng et al. 2021, "Boundary IoU", arXiv:2103.16562; there the frame of an image counts as a boundary.
    """
    small = labels.clamp(max=IGNORE - 1).to(torch.uint8)
    highest, lowest = (farthest(torch.where(known, part, 0), reach) for part in (small + 1, 255 - small))
    return known & (highest + lowest != 0)  # 256 where both come from one label, which is 0 in a byte


def farthest(values, reach):
    """The largest value within `reach` rows and columns of each pixel of (N, H, W) uint8; what lies outside counts as 0."""
    for dim in (1, 2):
        pad = (reach, reach) if dim == 2 else (0, 0, reach, reach)
        part, width, wanted = torch.nn.functional.pad(values, pad), 1, 2 * reach + 1
        while width < wanted:  # windows of 1, 2, 4 ... pixels, the last pair overlapping
            step = min(width, wanted - width)
            length = part.shape[dim] - step
            part = torch.maximum(part.narrow(dim, 0, length), part.narrow(dim, step, length))
            width += step
        values = part
    return values
