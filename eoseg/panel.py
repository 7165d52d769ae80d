"""Patches that are shown with what a network makes of them: after each epoch the same ones, after an evaluation the worst."""

import numpy as np

from eoseg import plots
from eoseg.scoreplots import Shown

MOST = 6  # patches of a panel
LONGEST = 512  # pixels that are shown of a patch's side, thinned


def choose(pairs, class_pixels, most=MOST):
    """Indices of up to `most` patches in which every class is to be seen: for the rarest class first, the one that shows most of it; then others, spread evenly.

    Args:
        class_pixels: image -> (C,) labelled pixels.
    """
    counts = np.array([class_pixels[image] for image, _ in pairs])
    chosen = []
    for rare in np.argsort(counts.sum(0), kind="stable"):
        left = np.delete(np.arange(len(pairs)), chosen)
        if len(chosen) < most and len(left) and counts[left, rare].any():
            chosen.append(int(left[counts[left, rare].argmax()]))
    left = np.delete(np.arange(len(pairs)), chosen)
    return sorted(chosen + [int(left[i]) for i in np.linspace(0, len(left) - 1, min(most - len(chosen), len(left))).round().astype(int)])


class Panel:
    """Watches what a network says of a few patches.

    Args:
        pairs: (image, label) of all patches. indices: which of them are shown, in this order. source: the source.Source they are of.
    """

    def __init__(self, pairs, indices, source):
        order, self.known, self.found = plots.rgb_order(source.bands.names), {}, {}
        for index in indices:
            pixels, holes, target = source.fetch(pairs[index])
            valid = np.ones(target.shape, bool) if holes is None else ~holes.all(0)
            picture = plots.stretched(plots.thinned(pixels[order], LONGEST), plots.thinned(valid, LONGEST))
            self.known[index] = (picture.astype(np.float32), plots.thinned(target, LONGEST).copy(), target.shape, pairs[index][0].stem)  # no view, which would hold the whole

    def __call__(self, classes, confidence, indices):
        """Take what was said of a batch: (N, H, W) tensors, and the patches' indices."""
        for place, index in enumerate(indices):
            if index in self.known:
                rows, cols = self.known[index][2]
                self.found[index] = tuple(plots.thinned(part[place, :rows, :cols], LONGEST).cpu().numpy().copy() for part in (classes, confidence))

    def shown(self, notes=None):
        """A list of scoreplots.Shown, as last seen.

        Args:
            notes: index -> text to stand behind the patch's name.
        """
        every = []
        for index, (picture, truth, _, name) in self.known.items():
            classes, confidence = self.found[index]
            every.append(Shown(picture, truth, classes.astype(np.uint8), confidence.astype(np.float32), name + (f"  {notes[index]}" if notes else "")))
        return every


