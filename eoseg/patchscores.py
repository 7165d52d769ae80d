"""A table of patches: how well each was called, and the counts that say so."""

import csv
import io

import numpy as np

from eoseg import files
from eoseg.errors import SetupError
from eoseg.scoring import from_margins

COUNTS = ("hit", "true", "called")


def write(path, pairs, margins, names):
    """Write a row per patch: its name, labelled pixels, accuracy, mean IoU and IoU of each class, then pixels hit, true and called of each class.

    Args:
        margins: (P, 3, C), as metrics.Tally counts them.
    """
    margins = np.asarray(margins)
    found = from_margins(*margins.swapaxes(0, 1))
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["patch", "labelled", "accuracy", "mean_iou", *(f"iou_{name}" for name in names), *(f"{kind}_{name}" for kind in COUNTS for name in names)])
    for i, (image, _) in enumerate(pairs):
        shares = [float(found["accuracy"][i]), float(found["mean_iou"][i]), *found["iou"][i].tolist()]
        out.writerow([image.name, int(margins[i, 1].sum()), *("" if share != share else share for share in shares), *margins[i].ravel().tolist()])
    files.write_text(path, text.getvalue())


def read(path, names):
    """The counts (P, 3, C) that `write` wrote.

    Raises:
        SetupError: the file is not there, or another's.
    """
    try:
        with open(path, newline="", encoding="utf-8") as f:
            return np.array([[[int(row[f"{kind}_{name}"]) for name in names] for kind in COUNTS] for row in csv.DictReader(f)], np.int64).reshape(-1, 3, len(names))
    except (OSError, KeyError, ValueError, TypeError, csv.Error):
        raise SetupError(f"{path}: is missing or damaged; train this fold anew, or all with --overwrite.") from None


def accuracy(margins):
    """Share of each patch's labelled pixels that were called right; NaN without one."""
    return from_margins(*np.asarray(margins).swapaxes(0, 1))["accuracy"]


def worst(margins, most):
    """Indices of up to `most` patches of the lowest accuracy, the worst first; those without a label, or without a mistake, are none."""
    share = np.nan_to_num(accuracy(margins), nan=1.0)
    return [i for i in np.argsort(share, kind="stable")[:most].tolist() if share[i] < 1]
