"""K folds: who validates when, and what their scores say together."""

from pathlib import Path

import numpy as np

from eoseg import files, plots
from eoseg.errors import SetupError


def divide(pairs, count, seed, places=None):
    """Shuffled folds with nearly equal numbers of places.

    Args:
        places: dict patch name -> place; patches of one place (several dates of it) share a fold. A patch that is not
            in it is a place of its own.
    Returns:
        list of (training pairs, validation pairs), one per fold; each pair validates exactly once.
    """
    from sklearn.model_selection import KFold

    groups = {}
    for image, label in pairs:
        groups.setdefault((places or {}).get(Path(image).name, image), []).append((image, label))
    together = list(groups.values())
    if len(together) < count:
        raise SetupError(f"--n_splits {count}: the {len(pairs)} patches show {len(together)} places; give at most as many folds as places.")
    pick = lambda indices: [pair for i in indices for pair in together[i]]
    return [(pick(train), pick(held)) for train, held in KFold(count, shuffle=True, random_state=seed).split(together)]


def interval(values, level=0.95):
    """Mean and Student's t interval of a few values; values that are nan (a class absent from a fold) do not count.

    Returns:
        dict folds, mean, std, low, high; the interval is nan with fewer than two values.
    """
    from scipy import stats

    values = [float("nan") if value is None else float(value) for value in values]  # scores read back from JSON
    known = np.array([value for value in values if value == value])
    mean = float(known.mean()) if len(known) else float("nan")
    std = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(known) - 1) * std / np.sqrt(len(known))) if len(known) > 1 else float("nan")
    return {"folds": values, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def summarise(results):
    """Intervals over folds of the mean scores and of each class's IoU.

    Args:
        results: validation scores of each fold, as `Confusion.scores` gives them.
    """
    table = {key: interval([scores[key] for scores in results]) for key in ("mean_iou", "mean_f1", "accuracy")}
    for name in results[0]["per_class"]:
        table[f"iou_{name}"] = interval([scores["per_class"][name]["iou"] for scores in results])
    return table


def write(folder, model, results, table, test, config):
    """<model>_kfold_metrics.json, <model>_kfold.csv (a line per fold, then the mean and the interval) and <model>_kfold.png."""
    rows = [{"fold": i, **{key: part["folds"][i - 1] for key, part in table.items()}} for i in range(1, len(results) + 1)]
    rows += [{"fold": name, **{key: part[name] for key, part in table.items()}} for name in ("mean", "std", "low", "high")]
    files.write_csv(folder / f"{model}_kfold.csv", rows)
    plots.draw_folds(table, folder / f"{model}_kfold.png", f"{model}: {len(results)} folds, mean and 95 % interval")
    metrics = {"validation": table, "folds": results, "test": test, "config": config}
    files.write_json(folder / f"{model}_kfold_metrics.json", metrics)
    return metrics
