"""Pictures of scores: who is taken for whom, how far confidence can be trusted, patches beside their prediction, runs side by side. Figures only, as in `plots`."""

import math
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation

from eoseg import plots
from eoseg.coding import IGNORE

VALIDATION, TEST = (0, 68 / 255, 136 / 255), (187 / 255, 85 / 255, 102 / 255)  # of Paul Tol's "high-contrast"
HEADING = 24  # pixels above a row of a panel
COSTS = {"parameters": ("parameters (M)", 1e6), "gflops": ("GFLOPs a patch", 1), "epoch_seconds": ("epoch (s)", 1), "peak_memory_mb": ("peak memory (MB)", 1)}


class Shown(NamedTuple):
    """A patch beside what a network made of it.

    Shapes:
        picture (H, W, 3) float 0 to 1; truth (H, W) uint8, 255 unlabelled; classes (H, W) uint8; confidence (H, W) float32
        0 to 1, NaN where there is none.
    """

    picture: np.ndarray
    truth: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray
    caption: str


def draw_confusion(counts, names, path, title):
    """How the pixels of each class were called: every row is shares of a true class, from 0 to 1.

    Args:
        counts: (C, C) int; rows the truth, columns what was called. A row of zeros (no such pixel) is grey.
    """
    counts = np.asarray(counts)
    classes, truth = len(names), counts.sum(1)
    many, every = classes > 8, math.ceil(classes / 52)  # beyond, names would run into one another
    side = float(np.clip((0.5 if many else 0.75) * classes, 4, 13))
    shares = np.ma.masked_array(counts / np.maximum(truth, 1)[:, None], np.broadcast_to(truth[:, None] == 0, counts.shape))
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    grid = axes.imshow(shares, cmap=matplotlib.colormaps["Blues"].with_extremes(bad="0.85"), vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(grid, ax=axes, label="share of the true class", fraction=0.046, pad=0.02)
    if classes <= 26:
        write_shares(axes, shares, counts, many)
    labels = [plots.shortened(name, 28) for name in names]
    turn = {"rotation": 90} if many else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(0, classes, every), labels[::every], **turn)
    axes.set_yticks(range(0, classes, every), [label if there else f"{label} (none)" for label, there in zip(labels, truth)][::every])
    axes.tick_params(labelsize=9 if classes <= 26 else 7)
    axes.set(xlabel="called", ylabel="truth" if truth.all() else "truth (grey: no pixel of this class)", title=title)
    return plots.save(figure, path)


def write_shares(axes, shares, counts, many):
    """The percentage in each cell that has one, and unless there are `many` the pixels beneath it."""
    for row, column in np.argwhere(~np.ma.getmaskarray(shares)):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if many else f"{share:.1%}\n{short(counts[row, column])}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7 if many else 9, color="white" if share > 0.55 else "black")


def short(count):
    """A count in at most three digits: 950, 12k, 1.23M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


def draw_reliability(bins, ece, path, title):
    """Reliability diagram: how often pixels were right, against how sure the network was of them; on the diagonal the two agree.

    Args:
        bins: list of dict low, high (of the confidence), pixels, confidence and accuracy (means, 0 to 1; read only where there are pixels).
        ece: expected calibration error, 0 (honest) to 1.
    Source:
        Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599.
    """
    seen = [part for part in bins if part["pixels"]]
    low, high, pixels, confidence, accuracy = (np.array([part[key] for part in seen]) for key in ("low", "high", "pixels", "confidence", "accuracy"))
    figure = Figure(figsize=(5, 6.2))
    curve, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.bar(low, accuracy, high - low, align="edge", color=VALIDATION, alpha=0.35, lw=0)
    curve.bar(low, confidence - accuracy, high - low, accuracy, align="edge", color=TEST, alpha=0.45, lw=0, label="gap")
    curve.plot(confidence, accuracy, "o-", color=VALIDATION, ms=4, label="accuracy")
    curve.plot([0, 1], [0, 1], "--", color="0.4", label="as often right as sure")
    histogram.bar(low, pixels / pixels.sum(), high - low, align="edge", color=VALIDATION, edgecolor="white", lw=0.5)
    curve.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"{title}, ECE {ece:.3f}")
    curve.legend(loc="upper left", frameon=False)
    histogram.set(xlabel="confidence", ylabel="share of pixels")
    for axes in (curve, histogram):
        axes.grid(alpha=0.3)
    return plots.save(figure, path)


def draw_panel(shown, names, path, title):
    """A row for each of `shown`: image, label, prediction and confidence.

    The prediction is pale where it is right, or nobody knows; wrong pixels keep their colour, in a black outline. The pictures
    are laid into one sheet beforehand: matplotlib takes long over many, and this is drawn after every epoch.

    Args:
        shown: list of Shown; sizes may differ.
    """
    palette, side = plots.colours(names), int(np.clip(1600 / len(shown), 150, 256))
    rows = [pictures(one, palette, side) for one in shown]
    tops = np.cumsum([HEADING, *(row[0].shape[0] + HEADING for row in rows)])
    columns = np.arange(4) * (side + 8)
    sheet = np.full((tops[-1] - HEADING, columns[-1] + side, 3), 255, np.uint8)
    figure = Figure(figsize=np.array(sheet.shape[1::-1]) / 120)
    axes = figure.add_axes((0, 0, 1, 1))
    for one, row, top in zip(shown, rows, tops):
        for picture, left in zip(row, columns):
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        axes.text(0, top - 4, plots.shortened(one.caption, side // 2), fontsize=8, va="bottom")
    axes.imshow(sheet, interpolation="nearest")
    for left, text in zip(columns, ("image", "label", "prediction\n(pale: right)", "confidence")):
        axes.text(left + side / 2, 0, text, ha="center", va="bottom", fontsize=9)
    axes.set_title(title, pad=28)
    axes.set_axis_off()
    figure.colorbar(ScalarMappable(cmap="viridis"), cax=axes.inset_axes((sheet.shape[1] + 12, HEADING, 14, side), transform=axes.transData))
    entries = legend_of(shown, names, palette)
    across = int(sheet.shape[1] / (70 + 9 * max(len(name) for name, _ in entries)))
    plots.legend(axes, *zip(*entries), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=max(1, across))
    return plots.save(figure, path)


def pictures(one, palette, side):
    """Image, label, prediction and confidence as (h, w, 3) uint8, the longer side `side`."""
    image, truth, classes, confidence = (fitted(part, side) for part in one[:4])
    wrong = (truth != classes) & (truth != IGNORE)
    prediction = plots.painted(classes, palette)
    prediction[~wrong] = prediction[~wrong] // 2 + 127
    prediction[binary_dilation(wrong) & ~wrong] = 0  # the outline runs over right pixels, whose class the label shows
    certainty = matplotlib.colormaps["viridis"].with_extremes(bad="white")(np.ma.masked_invalid(confidence), bytes=True)[..., :3]
    return [framed(part) for part in ((255 * image).astype(np.uint8), plots.painted(truth, palette), prediction, certainty)]


def fitted(array, side):
    """Every so manieth row and column of (H, W, ...), or each several times, so that the longer side is `side`."""
    step = max(array.shape[:2]) / side
    rows, columns = ((np.arange(max(1, round(length / step))) * step).astype(int) for length in array.shape[:2])
    return array[rows][:, columns]


def framed(picture):
    """With a thin grey frame: a picture may be white."""
    picture[[0, -1]] = picture[:, [0, -1]] = 160
    return picture


def legend_of(shown, names, palette):
    """(name, colour) of each class that is seen in a label or a prediction, and of unlabelled pixels where there are some."""
    seen = set().union(*(np.unique(part).tolist() for one in shown for part in (one.truth, one.classes)))
    return [*((names[c], palette[c]) for c in sorted(seen - {IGNORE})), *([("unlabelled", (255, 255, 255))] if IGNORE in seen else [])]


def draw_comparison(rows, path, title):
    """Runs beneath one another: mean IoU with its 95 % interval, of validation and test, and what each run costs.

    Args:
        rows: as `comparing.read_runs` gives them, the best first; what a run does not know leaves a gap.
    """
    known = lambda key: np.array([np.nan if row.get(key) is None else row[key] for row in rows], float)
    costs = {key: part for key, part in COSTS.items() if np.isfinite(known(key)).any()}
    figure = Figure(figsize=(7 + 1.7 * len(costs), 1.4 + 0.34 * len(rows)))
    score, *others = figure.subplots(1, 1 + len(costs), sharey=True, squeeze=False, width_ratios=[4, *(1 for _ in costs)])[0]
    places = np.arange(len(rows))
    for split, colour, shift in (("validation", VALIDATION, -0.14), ("test", TEST, 0.14)):
        values = known(f"{split}_mean_iou")
        if np.isfinite(values).any():
            score.hlines(places + shift, known(f"{split}_mean_iou_ci_low"), known(f"{split}_mean_iou_ci_high"), color=colour, lw=1.5)
            score.plot(values, places + shift, "o", color=colour, ms=5, label=split)
    score.set_yticks(places, [plots.shortened(row["run"], 44) for row in rows])
    score.set(ylim=(len(rows) - 0.5, -0.5), xlabel="mean IoU, 95 % interval")
    for axes, (key, (label, unit)) in zip(others, costs.items()):
        axes.barh(places, known(key) / unit, 0.6, color="0.6")
        axes.set_xlabel(label, fontsize=9)
        axes.xaxis.get_major_locator().set_params(nbins=3)
    for axes in (score, *others):
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
    score.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9, borderaxespad=0)
    score.set_title(title, loc="left", fontsize=11)
    return plots.save(figure, path)
