"""K folds: what their scores say together, and what their networks say together of test patches."""

import dataclasses as dc
import textwrap
from pathlib import Path

import numpy as np

from eoseg import advice, files, network, patchscores, plots, scoreplots, scoring
from eoseg.areas import Ground, area_table
from eoseg.config import PredictionConfig
from eoseg.intervals import bootstrap, student
from eoseg.judging import assess
from eoseg.runfolder import card_of, path_of
from eoseg.tracking import score_table

SUMMED = ("mean_iou", "mean_f1", "accuracy", "kappa", "boundary_iou", "ece")


def conclude(config, single, division, results, test, source, stop):
    """Sum up finished folds, test them together, and write it all, unless an earlier run did so.

    Args:
        single: TrainingConfig of each fold. division: partition.Division. results: validation scores of each fold. test: pairs. source: the
        source.Source of all patches.
    Returns:
        what <model>_kfold_metrics.json holds.
    """
    done = path_of(config, "kfold_metrics.json")
    if done.exists() and all(path_of(one, "metrics.json").stat().st_mtime_ns < done.stat().st_mtime_ns for one in single):
        print(f"{done}: all folds are finished and were tested together; nothing to do")
        return files.read_json(done)
    config = dc.replace(config, in_channels=len(source.bands.names))  # as the checkpoints say
    table, whole = summarise(results), out_of_fold(single, results, source.names)
    for key, part in table.items():
        print(f"  {key:<20} {part['mean']:.3f}  95 % interval over folds {max(part['low'], -1 if key == 'kappa' else 0):.3f} to {min(part['high'], 1):.3f}")
    print(f"out of fold, every patch judged by the network that never saw it:\n{score_table(whole)}")
    scores = tested(config, single, test, source, stop) if test else None
    if not test:
        print("test      none: no patches in test/ (or --subdirectories names it)")
    text = advice.of_folds(table, whole, scores, division)
    print("\n" + textwrap.fill(text, 110) + "\n")
    files.write_text(path_of(config, "kfold_summary.txt"), textwrap.fill(text, 110) + "\n")
    return write(config, single, results, table, whole, scores, division)


def summarise(results):
    """Intervals over folds of the mean scores and of each class's IoU.

    Args:
        results: validation scores of each fold, as `scoring.scores` gives them.
    """
    table = {key: student([scores.get(key) for scores in results]) for key in SUMMED}
    for name in results[0]["per_class"]:
        table[f"iou_{name}"] = student([scores["per_class"][name]["iou"] for scores in results])
    return table


def out_of_fold(single, results, names):
    """Scores of all folds' validation patches from one summed matrix, with intervals over patches."""
    margins = np.concatenate([patchscores.read(path_of(one, "validation_patches.csv"), names) for one in single])
    return scoring.together(results, names) | {"patches": int((margins[:, 1].sum(1) > 0).sum()), "intervals": bootstrap(margins, names)}


def tested(config, single, pairs, source, stop):
    """Scores of the mean probability of the folds' networks on `pairs`."""
    together = network.load_all([path_of(one, "final.pth") for one in single], PredictionConfig(device=config.device, use_amp=config.use_amp), say=lambda line: None)
    between = lambda: stop.leave_if_asked("stopped while the folds were tested together; all is saved, --resume tests them again")
    ground = Ground(pairs, source, source.names)
    tally = assess(together, pairs, source, config.batch_size, between=between, watch=ground)
    scores = tally.scores(source.names, intervals=True) | {"areas": ground.table(tally.confusion.matrix)}
    print(f"on test, the {len(single)} folds together:\n{score_table(scores)}\n{area_table(scores['areas'])}")
    return scores


def write(config, single, results, table, whole, test, division):
    """<model>_kfold_metrics.json, <model>_kfold.csv (a line per fold, the mean and the interval, all folds as one), <model>_kfold.png and its confusion matrix."""
    count, title = len(results), f"{config.model_name}: {len(results)} folds by {division.by}"
    rows = [{"fold": i, **{key: part["folds"][i - 1] for key, part in table.items()}} for i in range(1, count + 1)]
    rows += [{"fold": name, **{key: part[name] for key, part in table.items()}} for name in ("mean", "std", "low", "high")]
    rows.append({"fold": "out_of_fold", **{key: whole[key] for key in SUMMED}, **{f"iou_{name}": part["iou"] for name, part in whole["per_class"].items()}})
    files.write_csv(path_of(config, "kfold.csv"), rows)
    plots.draw_folds(table, path_of(config, "kfold.png"), f"{title}, mean and 95 % interval")
    scoreplots.draw_confusion(whole["confusion_matrix"], list(whole["per_class"]), path_of(config, "kfold_confusion_matrix.png"), f"{title}, out of fold")
    metrics = {"validation": table, "out_of_fold": whole, "folds": results, "test": test, "division": {"by": division.by, "left_out": division.left_out,
               "patches": [[len(part) for part in fold] for fold in division.folds]}, "config": dict(vars(config))}
    files.write_json(card_of(config), files.read_json(card_of(single[0])) | {"options": metrics["config"], "folds": count})
    files.write_json(path_of(config, "kfold_metrics.json"), metrics)  # the last: by it `conclude` knows that all is done
    print(f"wrote     {path_of(config, 'kfold_metrics.json')}; map with all folds: --model {Path(config.save_dir)}/fold*/{config.model_name}_final.pth")
    return files.read_json(path_of(config, "kfold_metrics.json"))
