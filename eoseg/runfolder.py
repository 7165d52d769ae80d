"""The folder of a run: what its files are called, and whose they are."""

from pathlib import Path

from eoseg import files
from eoseg.errors import SetupError, listing

ENDINGS = {"best_loss", "best_iou", "final", "last", "previous", "training_plot", "training_log", "per_class_iou", "metrics", "trace", "kfold", "kfold_metrics",
           "confusion_matrix", "validation_panel", "reliability", "validation_patches", "test_patches", "summary", "run", "kfold_confusion_matrix", "kfold_summary"}
SUFFIXES = {".pth", ".png", ".csv", ".json", ".txt"}


def earlier_run(config):
    """Files of an earlier run of the same network in --save_dir, and of its folds."""
    folder, model = Path(config.save_dir), config.model_name
    places = [folder, *folder.glob("fold[0-9]*")]
    named = [path for place in places for path in place.glob(f"{model}_*") if path.suffix in SUFFIXES and path.stem[len(model) + 1 :] in ENDINGS]
    return sorted({*named, *(path for place in places for path in place.glob("run.json") if owner(path) == model)})


def check_folder(config):
    """An earlier run of the same network is never touched without being told.

    Raises:
        SetupError: it is there, and neither --resume nor --overwrite was given.
    """
    there = earlier_run(config)
    for flag in ("init_weights", "encoder_weights") if config.overwrite else ():
        file = getattr(config, flag)
        if file and Path(file).exists() and any(path.exists() and path.samefile(file) for path in there):
            raise SetupError(f"--{flag} {file}: lies among the files that --overwrite removes; copy it elsewhere, or give another --save_dir.")
    if there and not (config.resume or config.overwrite):
        raise SetupError(f"--save_dir {config.save_dir}: holds a run of {config.model_name} ({listing([p.name for p in there], 3)}); give --resume to go on with it, "
                         "--overwrite to replace it, or another --save_dir.")


def clear(config):
    """Remove the leftovers of a killed run; with --overwrite the earlier run, now that the new one is known to start."""
    folder = Path(config.save_dir)
    for part in [*folder.glob(f".{config.model_name}_*.part"), folder / ".run.json.part"]:
        files.remove(part)
    for path in earlier_run(config) if config.overwrite else []:
        files.remove(path)


def path_of(config, ending):
    return Path(config.save_dir) / f"{config.model_name}_{ending}"


def card_of(config):
    """run.json; `<model>_run.json` where another network's lies in the folder."""
    path = Path(config.save_dir) / "run.json"
    return path if owner(path) in (None, config.model_name) else path_of(config, "run.json")


def owner(path):
    """Which network's run a run.json tells of; None when it tells nothing."""
    try:
        return files.read_json(path).get("model")
    except (SetupError, OSError, AttributeError):
        return None
