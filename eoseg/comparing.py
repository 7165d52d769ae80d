"""Finished runs side by side: one table on the screen, all scores as a CSV, one picture."""

import dataclasses as dc
import glob
import itertools
import math
import os
import statistics
from pathlib import Path

from eoseg import files, plots, scoreplots
from eoseg.config import TrainingConfig
from eoseg.errors import SetupError, listing

DEFAULTS = {f.name: f.default if f.default_factory is dc.MISSING else f.default_factory() for f in dc.fields(TrainingConfig)}
FOREIGN = (KeyError, TypeError, AttributeError, ValueError, OverflowError)  # what reading another program's values may raise
HOUSEKEEPING = {"save_dir", "resume", "overwrite"}  # differ from run to run and tell nothing
PICTURE, TABLE = "comparison.png", "comparison.csv"


# ---------------------------------------------------------------- which files


def find_metrics(word):
    """The metrics files that a word means: of a run folder, a file, or a glob of these.

    Returns:
        paths of metrics files, and of what runs that are not finished left.
    Raises:
        SetupError: there is nothing of a run.
    """
    places = [Path(word)] if Path(word).exists() else sorted(map(Path, glob.glob(word, recursive=True)))
    if not places:
        raise SetupError(f"--compare {word}: no such folder or file; name a run's folder, or its <model>_metrics.json.")
    if len(places) > 1 and not Path(word).name.startswith("fold"):
        places = [place for place in places if not is_fold(place)]
    found = [path for place in places for path in metrics_in(place)]
    unfinished = [path for place in places for path in begun_in(place)]
    if not found and not unfinished:
        deeper = any(metrics_in(inner) for place in places if place.is_dir() for inner in place.iterdir())
        remedy = f", but folders in it do; give '{Path(word) / '*'}'." if deeper else "; name a folder in which training left <model>_metrics.json."
        raise SetupError(f"--compare {word}: holds no run{remedy}")
    return found, unfinished


def metrics_in(place):
    """The metrics files of a run folder; those of its folds are not among them. A file named so is its own."""
    if place.is_dir():
        return sorted(place.glob("*_metrics.json"))
    return [place] if place.name.endswith("_metrics.json") else []


def begun_in(place):
    """What a run folder holds of runs without metrics: their word about themselves, or the first of their folds."""
    if not place.is_dir():
        return []
    told = sorted(place.glob("*run.json"))  # run.json, or <model>_run.json
    return [path for path in told or place.glob("fold1") if not any(place.glob(path.name.removesuffix("run.json").removesuffix("fold1") + "*metrics.json"))]


def is_fold(place):
    """One fold of the run in the folder above, or a file in such."""
    folder = place if place.is_dir() else place.parent
    return folder.name.startswith("fold") and any(folder.parent.glob("*_kfold_metrics.json"))


# ---------------------------------------------------------------- one run


def read_run(path):
    """One run as a flat row, as far as it knows: scores of `validation_` and `test_` with their intervals, options, costs.

    Raises:
        SetupError: the file is damaged, or another program's.
    """
    metrics = files.read_json(path)
    folds = path.name.endswith("_kfold_metrics.json")
    model = path.name.removesuffix("_metrics.json").removesuffix("_kfold")
    try:
        validation = out_of_fold(metrics) if folds else metrics["validation"]
        if not (validation["mean_iou"] is None or 0 <= number(validation["mean_iou"]) <= 1):
            raise ValueError(f"mean_iou is {validation['mean_iou']!r:.60}")
        row = {"model": model, "validation_mean_iou": number(validation["mean_iou"]), **scores_of("validation", validation), **scores_of("test", metrics.get("test") or {})}
        row |= {name: shown(value) if isinstance(value, list) else value for name, value in metrics["config"].items() if name in DEFAULTS}
        if len(validation.get("per_class", ())) == 2:
            row["class_1"] = list(validation["per_class"])[1]
        return row | costs_of(path.parent, model, folds, metrics.get("history", {}))
    except FOREIGN as error:
        raise SetupError(f"{path}: is not what training writes ({type(error).__name__}: {error}); restore it, or leave it out.") from None


def out_of_fold(metrics):
    """Scores of a k-fold run: over all pixels, each judged by the fold that had not seen it; of older runs, the mean over the folds."""
    if metrics.get("out_of_fold"):
        return metrics["out_of_fold"]
    table = metrics["validation"]
    names = [key.removeprefix("iou_") for key in table if key.startswith("iou_")]
    return {
        **{key: part["mean"] for key, part in table.items() if not key.startswith("iou_")},
        "per_class": {name: {"iou": table[f"iou_{name}"]["mean"]} for name in names},
        "intervals": {key: [part["low"], part["high"]] for key, part in table.items()},
    }


def scores_of(split, scores):
    """Scores and 95 % intervals as columns: test_mean_iou, test_mean_iou_ci_low, test_mean_iou_ci_high ..., test_iou_<class> ..."""
    values = {key: value for key, value in scores.items() if value is None or isinstance(value, (int, float))}
    values |= {f"{key}_{name}": value for name, part in scores.get("per_class", {}).items() for key, value in part.items() if key != "support"}
    columns = {}
    for key, value in values.items():
        columns[f"{split}_{key}"] = number(value)
        if scores.get("intervals", {}).get(key):
            columns |= {f"{split}_{key}_{end}": number(limit) for end, limit in zip(("ci_low", "ci_high"), scores["intervals"][key])}
    return columns


def number(value):
    """A number, NaN for JSON's null."""
    return math.nan if value is None else float(value)


def costs_of(folder, model, folds, history):
    """What a run says of itself beside its scores; a k-fold run, as its first fold says it. Nothing known, nothing there."""
    places = [folder, *([folder / "fold1"] if folds else [])]
    columns = {}
    for path in [path for place in places for path in (place / f"{model}_run.json", place / "run.json") if path.exists()]:
        columns = columns or card_of(path, model)
    if columns.get("epoch_seconds") is None and history.get("epoch_time"):
        columns["epoch_seconds"] = statistics.median(history["epoch_time"])
    return {key: value for key, value in columns.items() if value is not None}


def card_of(path, model):
    """What a run.json says of the run of `model`: {} where it is another's.

    Raises:
        SetupError: it is damaged, or another program's.
    """
    run = files.read_json(path)
    try:
        if run.get("model", model) != model:
            return {}
        columns = {key: run.get(key) for key in ("epoch_seconds", "peak_memory_mb", "best_epoch")}
        columns |= {key: run.get("network", {}).get(key) for key in ("parameters", "gflops")}
        for key, value in columns.items():
            if value is not None and (isinstance(value, str) or not math.isfinite(value)):
                raise ValueError(f"{key} is {value!r:.60}")
        validated = run.get("data", {}).get("fingerprint")
        return columns | {"validated_on": None if validated is None else str(validated)}
    except FOREIGN as error:
        raise SetupError(f"{path}: is not what training writes ({type(error).__name__}: {error}); restore it, or remove it.") from None


# ---------------------------------------------------------------- all runs


def read_runs(words, say=print):
    """The runs that `words` mean, the best validation mean IoU first.

    A run that is not finished is told and left out. Its options are in a row only where they differ between the runs.

    Returns:
        list of dict run (its name), folder, model, options, and what `read_run` knows.
    Raises:
        SetupError: a word means no run, a file is damaged, or no run is finished.
    """
    beside = [word for word in words if not metrics_in(Path(word)) and (Path(word).is_file() or (Path(word) / "metrics.json").exists())]
    words = [word for word in words if word not in beside] or words  # the shell's folder/* names all that lies there: other files, the results of --evaluate
    found, unfinished = (list({path.resolve(): path for path in itertools.chain(*paths)}.values()) for paths in zip(*map(find_metrics, words)))
    for path in unfinished:
        say(f"note: {path}: the run is not finished; left out")
    if not found:
        raise SetupError(f"--compare {' '.join(words)}: no run is finished; --resume goes on with one.")
    rows = [{"run": name, "folder": str(path.parent)} | read_run(path) for name, path in zip(names_of(found), found)]
    same = HOUSEKEEPING | {name for name, usual in DEFAULTS.items() if len({shown(row.get(name, usual)) for row in rows}) == 1}
    rows = [{key: value for key, value in row.items() if key not in same} for row in rows]
    return sorted(rows, key=lambda row: -row["validation_mean_iou"] if row["validation_mean_iou"] >= 0 else 1)


def names_of(paths):
    """Names that tell runs apart: folders from where they part, with the network where a folder holds several runs."""
    folders = [path.resolve().parent.parts for path in paths]
    shared = min(len(os.path.commonprefix(folders)), min(map(len, folders)) - 1)
    names = ["/".join(parts[shared:]) for parts in folders]
    return [f"{name} {path.name.removesuffix('_metrics.json')}" if names.count(name) > 1 else name for name, path in zip(names, paths)]


def shown(value):
    """An option's value in short, as it is typed."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is None or isinstance(value, bool) else str(value)


def compare(words, folder, overwrite, say=print):
    """Put runs beside one another: a table on the screen, comparison.csv and comparison.png in `folder`.

    Returns:
        the rows, as `read_runs` gives them.
    Raises:
        SetupError: as of `read_runs`; or a comparison is there and `overwrite` is False.
    """
    folder = Path(folder)
    check_folder(folder, overwrite)
    rows = read_runs(words, say)
    for line in [*table(rows), *warnings(rows)]:
        say(line)
    files.write_csv(folder / TABLE, rows)
    scoreplots.draw_comparison(rows, folder / PICTURE, f"{len(rows)} runs" if len(rows) > 1 else rows[0]["run"])
    say(f"wrote     {folder / TABLE}, {folder / PICTURE}")
    return rows


def check_folder(folder, overwrite):
    """Raises SetupError when a comparison lies in `folder` and may not be replaced."""
    for path in (Path(folder) / TABLE, Path(folder) / PICTURE):
        if path.exists() and not overwrite:
            raise SetupError(f"{path}: is there already; give --overwrite to replace it, or another --save_dir.")


def table(rows):
    """The lines of a table, one a run; a column of which nothing is known is left out."""
    class_1 = {row.get("class_1") for row in rows}
    class_1 = class_1.pop() if len(class_1) == 1 else "class 1"
    columns = {"run": [plots.shortened(row["run"], 40) for row in rows], "options": [options_of(row) for row in rows]}
    for split, head in (("validation", "val"), ("test", "test")):
        columns[f"{head} mean IoU"] = [with_interval(row, f"{split}_mean_iou") for row in rows]
        columns[f"{head} {class_1}"] = [with_interval(row, f"{split}_iou_{row['class_1']}") if "class_1" in row else "" for row in rows]
    columns["params (M)"] = [f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "" for row in rows]
    for head, key, look in (("GFLOPs", "gflops", ".2f"), ("epoch (s)", "epoch_seconds", ".1f"), ("peak (MB)", "peak_memory_mb", ",.0f")):
        columns[head] = [f"{row[key]:{look}}" if key in row else "" for row in rows]
    columns = {head: [head, *cells] for head, cells in columns.items() if any(cells)}
    widths = {head: max(map(len, cells)) for head, cells in columns.items()}
    pad = lambda head, cell: cell.ljust(widths[head]) if head in ("run", "options") else cell.rjust(widths[head])
    return ["  ".join(pad(head, cells[i]) for head, cells in columns.items()).rstrip() for i in range(len(rows) + 1)]


def options_of(row):
    """The first few options in which a run differs from the others: `learning_rate=0.1, loss_type=dice`."""
    return listing([f"{name}={plots.shortened(shown(row[name]), 20)}" for name in DEFAULTS if name in row], 4)


def with_interval(row, key):
    """`0.734 [0.701, 0.768]`, as far as it is known."""
    value, low, high = (row.get(key + end, math.nan) for end in ("", "_ci_low", "_ci_high"))
    return "" if math.isnan(value) else f"{value:.3f}" + ("" if math.isnan(low + high) else f" [{low:.3f}, {high:.3f}]")


def warnings(rows):
    """What a reader of the table must know: the runs saw different patches, or the best two may be equals."""
    lines, groups = [], {}
    for row in rows:
        groups.setdefault(row.get("validated_on"), []).append(row["run"])
    groups.pop(None, None)  # of older runs
    if len(groups) > 1:
        lines.append("note: validated on different patches, so their figures do not compare: " + " | ".join(listing(group, 3) for group in groups.values()))
    if len(rows) > 1:
        first, second = rows[:2]
        if first.get("validation_mean_iou_ci_low", math.inf) <= second.get("validation_mean_iou_ci_high", -math.inf):
            lines.append(f"note: the intervals of the best two, {first['run']} and {second['run']}, overlap: their difference may be chance")
    return lines
