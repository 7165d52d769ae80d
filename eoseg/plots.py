"""Pictures: what all share (colours, stretch, legend), curves of a run, maps beside their scene. Figures only, never pyplot's state."""

import io
import itertools
import math
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from eoseg import files, raster
from eoseg.bands import find_rgb
from eoseg.georef import ground_width

matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a class or a file is one

# Paul Tol's "muted" scheme, safe for colour-blind eyes; classes beyond it repeat, darker, and at last are drawn by lot
PALETTE = [(51, 34, 136), (17, 119, 51), (221, 204, 119), (204, 102, 119), (136, 204, 238), (170, 68, 153), (68, 170, 153), (153, 153, 51), (136, 34, 85)]
USUAL = {  # what map readers expect for common names, of a lightness that tells them apart for colour-blind eyes too (CIEDE2000 above 11)
    (51, 120, 200): "water river lake sea ocean flood flooded",
    (20, 110, 50): "tree trees forest wood woodland",
    (240, 210, 20): "crop crops cropland cultivated field fields agriculture farmland",
    (200, 80, 90): "developed built built-up building buildings urban town impervious artificial",
    (180, 235, 160): "grass grassland rangeland pasture meadow vegetation",
    (190, 160, 135): "bare barren soil sand rock",
    (160, 130, 15): "shrub shrubland scrub",
    (25, 170, 180): "wetland swamp marsh mangrove",
    (230, 240, 250): "snow ice",
    (75, 75, 75): "road roads railway",
    (190, 190, 190): "background other none",
}


def colours(names, taken=()):
    """One (r, g, b) per class, 0 to 255: the usual one for a usual name, else the next of the palette; none twice, and none of `taken`.

    Of the palette those go first that are far from all usual ones in use: its green is nearly that of trees.
    """
    by_word = {word: colour for colour, words in USUAL.items() for word in words.split()}
    usual = [by_word.get(name.lower()) for name in names]
    darker = [tuple(int(part * 0.8**turn) for part in colour) for turn in range(5) for colour in PALETTE]
    spare = itertools.chain(darker, (tuple(np.random.default_rng(i).integers(30, 230, 3).tolist()) for i in itertools.count()))
    chosen, used = [], set(taken)
    for wanted in usual:
        if wanted is None or wanted in used:
            kept = np.array([*used.union(filter(None, usual)), (999,) * 3])  # the last, so that there is one
            wanted = next((c for c in darker if np.abs(kept - c).sum(1).min() >= 100), None) or next(c for c in spare if c not in used)
        chosen.append(wanted)
        used.add(wanted)
    return chosen


def save(figure, path):
    """Write a figure as a PNG, whole or not at all."""
    memory = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name may be in any script; what the font lacks is drawn as a box
        figure.savefig(memory, format="png", dpi=120, bbox_inches="tight")
    files.write_bytes(path, memory.getvalue())
    return path


def spread(pixels, valid):
    """The darkest and the brightest value to show of each band (B, ...): 2 and 98 % of what is finite and `valid` (...), or 0 and 1."""
    seen = [band[valid & np.isfinite(band)] for band in pixels]
    return [np.percentile(values, [2, 98]).tolist() if values.size else [0.0, 1.0] for values in seen]


def stretched(pixels, valid, span=None):
    """Bands (B, H, W) as a picture (H, W, 3) from 0 to 1: three bands red to blue, or the first as grey; white where not `valid`.

    Files of blue, green, red (most satellites' order) are turned round by the caller.

    Args:
        span: what `spread` returned for a whole series; the picture's own when None.
    """
    chosen = np.where(valid, pixels[:3] if len(pixels) >= 3 else pixels[:1], 0).astype(float)  # the value of no data may be anything
    low, high = np.array(span or spread(chosen, valid)).T[:, :, None, None]
    picture = np.nan_to_num(np.clip((chosen - low) / np.maximum(high - low, 1e-12), 0, 1))  # one band of three may be NaN
    picture = np.broadcast_to(picture, (3, *valid.shape)).transpose(1, 2, 0).copy()
    picture[~valid] = 1
    return picture


def rgb_order(names):
    """Band indices to show as red, green, blue, from band names; the first three where they say nothing."""
    found = find_rgb(names)
    if found:
        return found
    return list(range(min(3, len(names)))) if len(names) >= 3 else [0]


def painted(classes, palette):
    """Classes (H, W) as a picture (H, W, 3); what has no colour in the palette (unlabelled, nodata) is white."""
    table = np.array([*palette, (255, 255, 255)], np.uint8)
    return table[np.minimum(classes, len(palette))]


def thinned(array, longest):
    """Every so manieth row and column (the last two axes), at most `longest` of them."""
    step = math.ceil(max(array.shape[-2:]) / longest)
    return array[..., ::step, ::step]


def shortened(name, most):
    """A name that fits over a picture; its end, which tells patches apart, stays."""
    return name if len(name) <= most else f"{name[: most // 3]}...{name[most // 3 + 3 - most :]}"


def legend(axes, names, palette, **settings):
    axes.legend(handles=[Patch(facecolor=np.array(c) / 255, edgecolor="0.6", lw=0.5, label=n) for n, c in zip(names, palette)], frameon=False, **settings)


def draw_curves(history, path, title, best_epoch=None):
    """Loss, scores and learning rate over the epochs; `best_epoch` is marked."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(14, 4))
    loss, score, rate = figure.subplots(1, 3)
    for key in ("train_loss", "val_loss"):
        loss.plot(epochs, [row[key] for row in history], marker=".", label=key)
    for key, look in (("val_iou", "-"), ("val_f1", "-"), ("val_accuracy", "-"), ("train_iou", ":")):
        score.plot(epochs, [row[key] for row in history], look, marker=".", label=key)
    rate.semilogy(epochs, [row["learning_rate"] for row in history], marker=".", label="learning_rate")
    score.set_ylim(0, 1)
    for axes in (loss, score, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if best_epoch:
            axes.axvline(best_epoch, color="0.5", ls="--", lw=1, label="best")
        axes.legend()
    figure.suptitle(title)
    return save(figure, path)


def draw_class_iou(history, names, path, title):
    """Validation IoU of each class over the epochs."""
    figure = Figure(figsize=(9, 5))
    axes = figure.subplots()
    for name, colour in zip(names, colours(names)):
        axes.plot([row["epoch"] for row in history], [row.get(f"iou_{name}", np.nan) for row in history], marker=".", color=np.array(colour) / 255, label=name)
    axes.set(xlabel="epoch", ylabel="validation IoU", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, path)


def draw_folds(table, path, title):
    """Mean and 95 % interval of every score over the folds, with the folds as dots.

    Args:
        table: dict score name -> {"folds": [...], "mean": m, "low": l, "high": h}.
    """
    figure = Figure(figsize=(max(6, 1.2 * len(table)), 4.5))
    axes = figure.subplots()
    for place, part in enumerate(table.values()):
        if np.isfinite(part["mean"]):
            axes.errorbar(place, part["mean"], [[part["mean"] - part["low"]], [part["high"] - part["mean"]]], fmt="s", color="black", capsize=4)
        axes.plot([place + 0.12] * len(part["folds"]), part["folds"], "o", alpha=0.5, color="tab:blue")
    axes.set_xticks(range(len(table)), list(table), rotation=30, ha="right")
    axes.set(ylim=(0, 1), title=title)
    axes.grid(alpha=0.3)
    return save(figure, path)


def draw_quicklook(scene, names, map_path, class_names, palette, path):
    """Scene and map side by side with a legend and a scale, at most 1,200 pixels high or wide.

    Args:
        scene: raster.Scene, open or closed. names: of its bands, as the network was trained on them.
        class_names, palette: of each number of the map, from 0; those without a name have none.
    """
    order = rgb_order(names)
    pixels, step = raster.thumbnail(scene.path, bands=[scene.bands[i] for i in order], nodata=[scene.nodata[i] for i in order])
    classes, _ = raster.thumbnail(map_path)
    figure = Figure(figsize=(15, 7))
    left, right = figure.subplots(1, 2)
    left.imshow(stretched(pixels.filled(0), ~np.ma.getmaskarray(pixels).all(0)))
    left.set_title("scene")
    right.imshow(painted(classes[0].astype(int).filled(len(palette)), palette))
    right.set_title("map")
    legend(right, *zip(*((name, colour) for name, colour in zip(class_names, palette) if name)), loc="upper left", bbox_to_anchor=(1, 1), fontsize=12)
    metres = ground_width(raster.header(scene.path))
    if metres:
        add_scale(left, metres * step, pixels.shape[1:])
    for axes in (left, right):
        axes.set_axis_off()
    return save(figure, path)


def add_scale(axes, metres, shape):
    """A bar of a round length, about a fifth of the picture's width."""
    wanted = shape[1] * metres / 5
    length = max(step for power in range(-2, 7) for step in (10.0**power, 2 * 10.0**power, 5 * 10.0**power) if step <= max(wanted, 0.01))
    x, y = shape[1] * 0.05, shape[0] * 0.95
    axes.plot([x, x + length / metres], [y, y], color="black", lw=7, solid_capstyle="butt")
    axes.plot([x, x + length / metres], [y, y], color="white", lw=4, solid_capstyle="butt")
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axes.text(x, y - shape[0] * 0.02, text, color="black", fontsize=12, bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 2})
