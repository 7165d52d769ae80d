"""K folds by place: patches that touch validate together, and where they cannot, none trains beside one that validates."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, Optional

import numpy as np
import shapely

from eoseg import raster
from eoseg.errors import SetupError
from eoseg.parallel import in_order
from eoseg.places import Ground, joined
from eoseg.splits import best_draw

GIVE = 1.25  # of a fold's share: as many touching patches stay whole
SMALLEST = 25  # patches in a block: a smaller one has more neighbours around it than it holds
SCENE = re.compile(r"(img.+?)_patch_")  # as Patch_extraction_v2.py names the patches of several scenes


class Division(NamedTuple):
    """Who validates when."""

    by: str  # block, scene or random
    folds: list  # of (training pairs, validation pairs), one per fold; every pair validates once
    left_out: list  # per fold, how many patches neither train nor validate, because they touch one that validates
    said: str  # one line on all this


class Touch(NamedTuple):
    """Which of N patches share ground, and which touch."""

    ground: Optional[Ground]  # None where nobody knows where they lie
    site: np.ndarray  # (N,) the first patch with the very same outline
    place: np.ndarray  # (N,) the first patch of those that share ground, over any number of steps
    near: np.ndarray  # (P, 2) sites that touch or overlap, both ways round


def divide(pairs, count, seed, by=None, rows=(), class_pixels=None):
    """Divide patches into folds of nearly equal size and classes; patches of one place (several dates of it) share a fold.

    Args:
        pairs: list of (image, label). by: "block": patches that touch share a fold as well; what is too large for that is cut into blocks;
        "scene": whole scenes; "random": places alone, no file is opened; None: block where every patch is georeferenced, else random.
        rows: dicts as in patches.csv, for `place` and `scene`; may lack patches. class_pixels: image -> (C,) labelled pixels; None: classes do not count.
    Raises:
        SetupError: fewer units than folds, patches whose place or scene is unknown, or a fold without training patches.
    """
    images = [image for image, _ in pairs]
    ground, stray = (None, None) if by == "random" else locate(images)
    if by == "block" and stray:
        raise SetupError(f"--fold_by block: {stray} is not georeferenced, so that nobody knows which patches touch it; give --fold_by scene or random.")
    chosen = by or ("random" if stray else "block")
    touch = look(ground, known(images, rows, "place"))
    units = {"block": lambda: blocks(touch, count), "scene": lambda: scenes(images, rows, touch.place), "random": lambda: touch.place}[chosen]()
    there = len(np.unique(units))
    if there < count and not by and chosen == "block":  # the same corner in every file, say, or a single place: no block can help
        found = divide(pairs, count, seed, "random", rows, class_pixels)
        return found._replace(said=f"{found.said}\nwarning: --fold_by: by their coordinates the {len(pairs)} patches show {there} place{'s' * (there > 1)}, too few for {count} folds, which are "
                              "drawn at random: if the coordinates are right, the scores are too good")
    if there < count:
        what = "groups of scenes that share no ground; give at most as many folds, or --fold_by block." if chosen == "scene" else "places; give at most as many folds as places."
        raise SetupError(f"--n_splits {count}: the {len(pairs)} patches show {there} {what}")
    pixels = np.array([class_pixels[image] for image in images], float) if class_pixels else np.zeros((len(pairs), 0))
    fold = drawn(units, count, seed, pixels)
    beside = [touches(touch, fold == k) for k in range(count)]
    check(fold, beside, pixels, count)
    pick = lambda here: [pair for pair, belongs in zip(pairs, here) if belongs]
    folds = [(pick((fold != k) & ~beside[k]), pick(fold == k)) for k in range(count)]
    left_out = [int(here.sum()) for here in beside]
    return Division(chosen, folds, left_out, line(chosen, [len(held) for _, held in folds], left_out, stray))


def known(images, rows, column):
    """What a column of patches.csv says of each image, by name; None where it says nothing."""
    found = {row["patch"]: row[column] for row in rows if row.get("patch") and row.get(column)}
    return [found.get(Path(image).name) for image in images]


def alike(keys):
    """Pairs (i, j) that join what has the same key to the first of it, (N, 2) int; None is like nothing."""
    first = {}
    return np.array([(i if key is None else first.setdefault(key, i), i) for i, key in enumerate(keys)], int).reshape(-1, 2)


# ---------------------------------------------------------------- where patches lie


def locate(images):
    """The Ground of patches by their headers and None; or None and the first patch that is not georeferenced."""
    plans, rows, unknown = {}, [], dict.fromkeys(("shift_rows", "shift_cols", "rotation"), math.nan)  # no header tells how its window was snapped
    for image, place in zip(images, in_order(raster.header, images, raster.THREADS, 4 * raster.THREADS)):
        t, crs = place.transform, place.crs
        if not crs or t.is_identity or t.is_degenerate or not (crs.is_projected or crs.is_geographic):
            return None, image
        grid = crs.to_wkt(), t.a, t.b, t.d, t.e
        plan = plans.setdefault(grid, SimpleNamespace(crs_text=grid[0], transform=t))  # patches of one grid are windows of a single scene to Ground
        col, row = ~plan.transform * (t.c, t.f)
        rows.append({"pair": grid, "row": row, "col": col, "height": place.height, "width": place.width, **unknown})
    return Ground(rows, plans), None


def look(ground, named):
    """The Touch of patches.

    Args:
        named: the place of each by patches.csv, or None.
    """
    if ground is None:
        return Touch(None, np.arange(len(named)), joined(len(named), alike(named)), np.zeros((0, 2), int))
    _, first, same = np.unique(ground.site, axis=0, return_index=True, return_inverse=True)
    outlines = np.full(len(named), None, object)
    outlines[first] = ground.outlines(ground.slack)[first]  # dates of one place: no need to compare each with each
    place = joined(len(named), np.concatenate([ground.overlaps(), alike(named)]))
    return Touch(ground, first[same.ravel()], place, ground.meeting(outlines, outlines))


def touches(touch, held):
    """Which patches are not `held` and touch one that is: (N,) bool."""
    one, other = touch.near.T
    beside = np.zeros(len(held), bool)
    beside[other[held[one]]] = True
    return beside[touch.site] & ~held


# ---------------------------------------------------------------- what is not divided


def scenes(images, rows, place):
    """Whole scenes, those that share a place together: (N,) int, equal where patches are to share a fold."""
    names = [scene or (SCENE.match(Path(image).name) or [None])[0] for image, scene in zip(images, known(images, rows, "scene"))]
    if None in names:
        raise SetupError(f"--fold_by scene: nothing says which scene {images[names.index(None)]} was cut from; add the columns patch and scene to patches.csv, "
                         "call patches img<scene>_patch_<id>.tif, or give --fold_by block or random.")
    return joined(len(names), np.concatenate([alike(names), alike(place.tolist())]))


def blocks(touch, count):
    """Patches that touch, over any number of steps; cut where they are too many for one fold: (N,) int as of `scenes`."""
    whole = joined(len(touch.place), np.concatenate([touch.near, alike(touch.place.tolist())]))
    share, bounds = len(whole) / count, shapely.bounds(touch.ground.shown()[0])
    for give in (GIVE, 1):  # with 1 there are enough for all folds, if there are enough places
        units = whole.copy()
        for first, size in zip(*(part.tolist() for part in np.unique(whole, return_counts=True))):
            if size > give * share:
                here = np.flatnonzero(whole == first)
                units[here] = here[cut(touch.place[here], touch.site[here], bounds[here], size / share)]
        if len(np.unique(units)) >= count:
            break
    return units


def cut(place, site, bounds, folds):
    """Cut patches that hang together into compact blocks.

    Args:
        bounds: (N, 4) west, south, east, north. folds: as many as they would fill.
    Returns:
        (N,) int, for each patch the first one of its block.
    """
    parts = math.ceil(2 * folds) if len(np.unique(site)) >= SMALLEST * math.ceil(2 * folds) else math.ceil(folds)
    large = np.bincount(place)[place] > len(place) / parts  # a chain of overlaps: only the same outline stays together
    _, atom, sizes = np.unique(np.column_stack([large, np.where(large, site, place)]), axis=0, return_inverse=True, return_counts=True)
    middles = (bounds[:, :2] + bounds[:, 2:]) / 2 / np.median(bounds[:, 2:] - bounds[:, :2], 0)  # in patches, of which a compact block has few around it
    points = np.stack([np.bincount(atom.ravel(), axis) for axis in middles.T], 1) / sizes[:, None]
    block = bisect(points.round(3), sizes, min(parts, len(sizes)))[atom.ravel()]
    return np.unique(block, return_index=True)[1][block]


def bisect(points, sizes, parts):
    """Divide points into parts of nearly equal size by cuts across the longer side, again and again: (N,) int, 0 to `parts` - 1."""
    found, half = np.zeros(len(points), int), parts // 2
    if parts > 1:
        longer = np.ptp(points, 0).argmax()
        order = np.lexsort((points[:, 1 - longer], points[:, longer]))
        filled = np.cumsum(sizes[order])
        at = np.clip(abs(filled - filled[-1] * half / parts).argmin() + 1, half, len(points) - (parts - half))
        one, other = order[:at], order[at:]
        found[one], found[other] = bisect(points[one], sizes[one], half), half + bisect(points[other], sizes[other], parts - half)
    return found


# ---------------------------------------------------------------- folds


def drawn(units, count, seed, pixels):
    """The fold of each patch, (N,) int: units are drawn so that folds are alike in size and classes, and none is empty."""
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    counts = np.zeros((len(sizes), pixels.shape[1]))
    np.add.at(counts, unit, pixels)
    none = np.zeros(count), np.zeros((count, pixels.shape[1]))
    fold = best_draw(sizes, counts, np.full(count, 1 / count), none, np.random.default_rng(seed))
    for empty in sorted({*range(count)} - {*fold.tolist()}):  # beside a unit that is larger than several folds should be
        spare = np.bincount(fold, minlength=count)[fold] > 1
        fold[np.where(spare, sizes, np.inf).argmin()] = empty
    return fold[unit]


def check(fold, beside, pixels, count):
    """Raises SetupError where leaving out what touches leaves a fold nothing to learn from."""
    for k in range(count):
        train = (fold != k) & ~beside[k]
        lacks = "no patch" if not train.any() else "no labelled patch" if pixels.size and not pixels[train].any() else None
        if beside[k].any() and lacks:
            raise SetupError(f"--n_splits {count}: in fold {k + 1} {lacks} is left to train that touches none of the {(fold == k).sum()} that validate; "
                             "give another number of folds, or --fold_by random.")


def line(by, sizes, left_out, stray):
    """How patches were divided, in one line for the user."""
    how = {"block": "by block, patches that touch together", "scene": "by scene", "random": "at random, patches of one place (patches.csv) in one fold"}[by]
    why = f" ({stray} is not georeferenced: nobody knows which patches touch)" if stray else ""
    out = f"; {span(left_out)} more touch these and do not train in that fold" if any(left_out) else ""
    return f"folds     {how}{why}; {span(sizes)} patches validate in each{out}"


def span(numbers):
    """The least and the greatest number: `3 to 5`."""
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))
