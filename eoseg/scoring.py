"""Every score, from plain counts: a confusion matrix, boundaries, and how often the network was how sure."""

import numpy as np

BINS = 15  # of the reliability diagram, as in Guo et al. 2017
STEPS = 4096  # confidence is counted in steps of 1 / 4096, the unit in which probabilities are rounded
OF_CLASS = ("iou", "f1", "precision", "recall", "accuracy", "kappa")
OF_ALL = ("mean_iou", "accuracy", "mean_f1", "mean_precision", "mean_recall", "kappa")


def from_margins(hit, truth, called):
    """Scores from pixels right, true and called of each class; all that the diagonal and the margins of a confusion matrix tell.

    Args:
        hit, truth, called: (..., C) counts.
    Returns:
        dict of arrays: of each class (..., C) `iou f1 precision recall` and, of the class against all others, `class_accuracy
        class_kappa`; of all together (...) `accuracy kappa` and the means over the classes present in the truth. 0 to 1 (kappa
        from -1); NaN for a class that is not in the truth, however often it was called, and where nothing is labelled.
    Source:
        Cohen 1960, "A coefficient of agreement for nominal scales" (kappa).
    """
    hit, truth, called = (np.asarray(part, float) for part in (hit, truth, called))
    total = truth.sum(-1, keepdims=True)
    seen = truth > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "iou": hit / (truth + called - hit),
            "f1": 2 * hit / (truth + called),
            "precision": np.where(called > 0, hit / called, 0.0),
            "recall": hit / truth,
            "class_accuracy": 1 - (truth + called - 2 * hit) / total,
        }
        found["class_kappa"] = beyond_chance(found["class_accuracy"], (truth * called + (total - truth) * (total - called)) / total**2)
        found = {key: np.where(seen, values, np.nan) for key, values in found.items()}
        for key in ("iou", "f1", "precision", "recall"):
            found[f"mean_{key}"] = np.where(seen, found[key], 0).sum(-1) / seen.sum(-1)
        found["accuracy"] = hit.sum(-1) / total[..., 0]
        found["kappa"] = beyond_chance(found["accuracy"], (truth * called).sum(-1) / total[..., 0] ** 2)
    return found


def beyond_chance(agreed, by_chance):
    """Kappa: agreement beyond chance, as a share of what there could be; NaN where chance alone agrees everywhere."""
    return np.where(by_chance < 1, (agreed - by_chance) / np.where(by_chance < 1, 1 - by_chance, 1), np.nan)


def scores(matrix, names, boundary=None, reliability=None):
    """Every score as plain values.

    Args:
        matrix: (C, C) counts, rows the truth, columns what was called. names: of the classes.
        boundary: (3, C) boundary pixels of truth and prediction both, of the truth, of the prediction; None: not counted.
        reliability: as `bins_of` gives it; None: not counted.
    Returns:
        dict of OF_ALL, absent (names of the classes that are not in the truth), per_class (name -> OF_CLASS and support, the
        true pixels), confusion_matrix; with `boundary` also boundary_iou, mean and of each class; with `reliability` also
        ece and the bins.
    """
    matrix = np.asarray(matrix)
    truth = matrix.sum(1)
    found = from_margins(matrix.diagonal(), truth, matrix.sum(0))
    of_class = {key: found[f"class_{key}" if key in ("accuracy", "kappa") else key] for key in OF_CLASS}
    result = {key: float(found[key]) for key in OF_ALL}
    if boundary is not None:
        both, true, called = np.asarray(boundary, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            of_class["boundary_iou"] = np.where(true > 0, both / (true + called - both), np.nan)
        result["boundary_iou"] = mean_of(of_class["boundary_iou"])
    if reliability is not None:
        result |= {"ece": calibration_error(reliability), "reliability": reliability}
    return {
        **result,
        "absent": [name for name, count in zip(names, truth) if not count],
        "per_class": {name: {**{key: float(values[i]) for key, values in of_class.items()}, "support": int(truth[i])} for i, name in enumerate(names)},
        "confusion_matrix": matrix.tolist(),
        **({} if boundary is None else {"boundary": np.asarray(boundary).tolist()}),
    }


def mean_of(values):
    """Mean of those that are not NaN; NaN when all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def bins_of(sure):
    """Bins of the reliability diagram.

    Args:
        sure: (STEPS + 1, 2) pixels by confidence in steps of 1 / STEPS, wrong and right.
    Returns:
        list of dicts low, high (confidence, above and up to), pixels, confidence (their mean) and accuracy; NaN in an empty bin.
    """
    sure = np.asarray(sure, np.int64)
    steps = np.arange(STEPS + 1)
    of = np.maximum(-(-steps * BINS // STEPS) - 1, 0)
    pixels, right, mass = (np.bincount(of, weights, BINS) for weights in (sure.sum(1), sure[:, 1], sure.sum(1) * (steps / STEPS)))
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence, accuracy = mass / pixels, right / pixels
    return [{"low": i / BINS, "high": (i + 1) / BINS, "pixels": int(pixels[i]), "confidence": float(confidence[i]), "accuracy": float(accuracy[i])}
            for i in range(BINS)]


def calibration_error(bins):
    """Expected calibration error: how far confidence and accuracy lie apart, averaged over pixels; NaN without any.

    Source:
        Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599.
    """
    pixels = sum(part["pixels"] for part in bins)
    return sum(part["pixels"] * abs(part["confidence"] - part["accuracy"]) for part in bins if part["pixels"]) / pixels if pixels else float("nan")


def together(parts, names):
    """The scores of several sets of patches as of one, from their summed counts.

    Args:
        parts: list of what `scores` returned, also when read back from JSON (null for NaN).
    """
    boundary = sum(np.array(part["boundary"]) for part in parts) if all("boundary" in part for part in parts) else None
    reliability = [merged(bins) for bins in zip(*(part["reliability"] for part in parts))] if all("reliability" in part for part in parts) else None
    return scores(sum(np.array(part["confusion_matrix"]) for part in parts), names, boundary, reliability)


def merged(bins):
    """One bin of the same limits from several."""
    filled = [part for part in bins if part["pixels"]]
    pixels = sum(part["pixels"] for part in filled)
    mean = lambda key: sum(part["pixels"] * part[key] for part in filled) / pixels if pixels else float("nan")
    return {**bins[0], "pixels": pixels, "confidence": mean("confidence"), "accuracy": mean("accuracy")}
