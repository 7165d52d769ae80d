"""Which patches train, which validate and which test."""

import numpy as np

from eoseg.errors import SetupError, listing
from eoseg.tiles import largest_remainder

SPLITS = ("train", "validation", "test")
SPELLINGS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
             "test": "test", "testing": "test"}
NOTHING = dict.fromkeys(("", "none", "nan", "<na>"), "nothing")
DRAWS = 500
AT_ONCE = 10**6  # units drawn together, over all draws: some 30 MB
ENOUGH = 20  # units a scene needs to be divided by itself: the usual 5 % of them is one


def by_column(values, column):
    """Read a grid's own train / validation / test.

    Raises:
        SetupError: another word, or nothing, stands there.
    """
    found = [SPELLINGS.get(str(value).strip().lower()) for value in values]
    strange = sorted({NOTHING.get(str(value).strip().lower(), str(value)) for value, name in zip(values, found) if name is None})
    if strange:
        raise SetupError(f"--split_column {column}: holds {listing(strange)}; write train, validation or test in every cell.")
    return found


def by_draw(scenes, sizes, counts, ratios, seed):
    """Divide units (places, blocks, whole scenes) so that patches and classes come near to `ratios` in every split.

    Scene after scene: the units of one with 20 or more by themselves, those of smaller ones together with all the
    small ones before them. So no unit's split depends on a scene that comes later.

    Args:
        scenes: (U,) int, the scene each unit belongs to, in order. sizes: (U,) patches in each unit.
        counts: (U, C) labelled pixels of each class in each unit. Units of a scene come in an order of their own that
        does not depend on other scenes.
    Returns:
        (U,) int, index into SPLITS.
    """
    scenes, sizes, counts = np.asarray(scenes), np.asarray(sizes, float), np.asarray(counts, float)
    found = np.zeros(len(scenes), int)
    before = np.zeros(3), np.zeros((3, counts.shape[1]))
    for scene in np.unique(scenes):
        here = np.flatnonzero(scenes == scene)
        alone = len(here) >= ENOUGH
        base = (np.zeros(3), np.zeros_like(before[1])) if alone else before
        found[here] = best_draw(sizes[here], counts[here], ratios, base, np.random.default_rng([seed, len(here)]))
        if not alone:
            before = tuple(start + sums(found[None, here], part)[0] for start, part in zip(before, (sizes[here], counts[here])))
    return found


def best_draw(sizes, counts, ratios, before, rng):
    """Of several hundred random divisions, the one nearest to `ratios` in patches and in every class.

    Args:
        ratios: (S,) of the splits, or of folds. before: patches (S,) and class pixels (S, C) that the splits hold already.
    Returns:
        (U,) int, index into `ratios`.
    """
    wanted = np.maximum(np.asarray(ratios) * (before[0].sum() + sizes.sum()) - before[0], 0)
    wanted *= sizes.sum() / wanted.sum()
    best, least = None, np.inf
    for draws in np.diff(np.arange(0, DRAWS + AT_ONCE, max(1, AT_ONCE // len(sizes))).clip(max=DRAWS)).tolist():
        order = rng.random((draws, len(sizes))).argsort(1)
        if before[0].any():  # a few units after others: which split gets the odd one is left to the draw and its score
            middle, ends = np.cumsum(sizes[order], 1) - sizes[order] * rng.random((draws, 1)), np.cumsum(wanted)
        else:
            middle, ends = np.cumsum(sizes[order], 1) - sizes[order] / 2, np.cumsum(largest_remainder(int(sizes.sum()), wanted))
        drawn = np.empty(order.shape, np.int16)
        np.put_along_axis(drawn, order, np.searchsorted(ends[:-1], middle, side="right").astype(np.int16), 1)
        scores = imbalance(drawn, sizes, counts, ratios, before) if draws else [np.inf]
        if min(scores) < least:
            best, least = drawn[np.argmin(scores)], min(scores)
    return best


def imbalance(drawn, sizes, counts, ratios, before):
    """How far each division (D, U) is from `ratios`: the worst deviation of a split's share of the patches, plus that of
    its share of any class, plus that of any class's share of it. A split that stays empty although half a unit or more is its share costs 1 more."""
    ratios = np.asarray(ratios, float)[:, None]
    patches, pixels = (start + sums(drawn, values, len(ratios)) for start, values in zip(before, (sizes, counts)))
    total = patches.sum(1, keepdims=True)
    worst = abs(patches / total - ratios.T).max(1) + ((patches == 0) & (ratios.T * total >= sizes.mean() / 2)).sum(1)
    pixels = pixels[:, :, pixels.sum((0, 1)) > 0]
    if pixels.size:
        whole = pixels.sum(1, keepdims=True)
        of_class = abs(pixels / whole - ratios)
        of_split = abs(pixels / np.maximum(pixels.sum(2, keepdims=True), 1) - whole / whole.sum(2, keepdims=True)) * (ratios > 0)
        worst = worst + of_class.max((1, 2)) + of_split.max((1, 2))
    return worst


def sums(drawn, values, parts=3):
    """Sums of `values` (U,) or (U, C) over the units of each of S `parts`, for each division (D, U): (D, S) or (D, S, C)."""
    return np.stack([(drawn == part).astype(float) @ values for part in range(parts)], 1)
