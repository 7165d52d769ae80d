"""How far a figure can be trusted: intervals over patches, over folds, and of areas."""

import numpy as np

from eoseg.scoring import OF_ALL, from_margins

RESAMPLES = 1000
AT_ONCE = 2 * 10**6  # numbers held in memory together, of the draws and of their sums


def bootstrap(margins, names, seed=0, level=0.95):
    """Percentile intervals of scores, by drawing patches anew with replacement.

    Patches that resemble their neighbours make the interval too narrow: it says how far other patches of the same kind would
    differ, not other regions. Draws without a class that the whole has do not count in the means.

    Args:
        margins: (P, 3, C) pixels right, true and called of each class in each patch. names: of the classes.
    Returns:
        dict score -> [low, high]: OF_ALL, and `iou_NAME f1_NAME precision_NAME recall_NAME` of each class; NaN where fewer than
        two patches hold something labelled.
    Source:
        Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    margins = np.asarray(margins)
    sums = np.concatenate(list(drawn_anew(margins[margins[:, 1].sum(1) > 0], seed)))
    found = from_margins(*sums.swapaxes(0, 1))
    lacking = ((sums[:, 1] == 0) & (margins[:, 1].sum(0) > 0)).any(1)  # a mean over fewer classes is another figure
    columns = {key: np.where(lacking & key.startswith("mean"), np.nan, found[key]) for key in OF_ALL}
    columns |= {f"{key}_{name}": found[key][:, i] for i, name in enumerate(names) for key in ("iou", "f1", "precision", "recall")}
    return {key: spread_of(values, level) for key, values in columns.items()}


def drawn_anew(counts, seed):
    """Sums over as many patches as there are, drawn with replacement: RESAMPLES of them, in blocks (n, ...).

    Args:
        counts: (P, ...) of each patch. With fewer than two patches, one sum that is NaN.
    """
    count, shape, rng = len(counts), counts.shape[1:], np.random.default_rng(seed)
    if count < 2:
        yield np.full((1, *shape), np.nan)
        return
    flat = counts.reshape(count, -1).astype(float)
    step = max(1, AT_ONCE // max(flat.shape))
    for first in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - first)
        drawn = rng.integers(count, size=(draws, count)) + np.arange(draws)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count)
        yield (times.astype(float) @ flat).reshape(draws, *shape)


def spread_of(values, level):
    """The quantiles between which `level` of the values lie, NaN not counted."""
    known = values[~np.isnan(values)]
    return np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist() if len(known) else [float("nan")] * 2


def student(values, level=0.95):
    """Mean and Student's t interval of a few scores; those that are NaN or None (a class absent from a fold) do not count.

    Returns:
        dict folds, mean, std, low, high; the interval is NaN with fewer than two values, and may reach beyond 0 and 1 with few that differ much.
    """
    from scipy import stats

    values = [float("nan") if value is None else float(value) for value in values]  # scores read back from JSON
    known = np.array(values)[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else float("nan")
    std = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(known) - 1) * std / np.sqrt(len(known))) if len(known) > 1 else float("nan")
    return {"folds": values, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def areas(matrix, mapped, level=0.95):
    """Area of each class, freed from the bias of the map, with its standard error: the stratified estimator.

    Args:
        matrix: (C, C) sampled units, rows the truth, columns the map's class. mapped: (C,) area of each class on the map, in any unit.
    Returns:
        area, error (standard) and the limits low and high of the interval, each (C,), in the unit of `mapped`. NaN when a class that is mapped
        was not sampled; the error also when it was sampled but once.
    Source:
        Olofsson et al. 2014, "Good practices for estimating area and assessing accuracy of land change", Remote Sensing of
        Environment 148, equations 9 to 11. It takes sampled units for independent: neighbouring pixels are not, and the
        interval is then too narrow.
    """
    from scipy import stats

    shares, sampled, weights = shares_of(np.asarray(matrix), mapped)
    area = (weights * shares).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt((weights**2 * shares * (1 - shares) / (sampled - 1)).sum(0))
    half = stats.norm.ppf((1 + level) / 2) * error
    return area, error, np.maximum(area - half, 0), area + half


def shares_of(matrices, mapped):
    """Of each class that is mapped (M of them): the shares of the true classes (..., M, C) and the units sampled (..., M, 1); and its mapped area (M, 1).

    Args:
        matrices: (..., C, C), rows the truth. mapped: (C,).
    """
    mapped = np.asarray(mapped, float)
    counts = np.swapaxes(matrices, -1, -2)[..., mapped > 0, :].astype(float)  # rows the map's class, as in the paper
    sampled = counts.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts / sampled, sampled, mapped[mapped > 0, None]


def areas_by_patch(matrices, mapped, seed=0, level=0.95):
    """Limits of the same areas when whole patches are drawn anew: neighbouring pixels tell the same, patches less so.

    Args:
        matrices: (P, C, C) counts of each patch, as `areas` takes their sum. mapped: (C,).
    Returns:
        (C,) low and (C,) high; NaN where fewer than two patches hold something labelled.
    """
    matrices = np.asarray(matrices)
    found = [(weights * shares).sum(-2) for block in drawn_anew(matrices[matrices.any((1, 2))], seed) for shares, _, weights in [shares_of(block, mapped)]]
    drawn = np.concatenate(found)
    return np.array([spread_of(values, level) for values in drawn.T]).T
