"""The state of a run, and what of it is kept so that it can go on where it was cut off: twice, as one may be damaged."""

import csv
import dataclasses as dc
import time
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from torch import nn

from eoseg import checkpoint, files
from eoseg.config import TrainingConfig
from eoseg.drawing import Artist
from eoseg.errors import SetupError, listing
from eoseg.metrics import Confusion
from eoseg.optim import Average
from eoseg.panel import Panel
from eoseg.parallel import Behind
from eoseg.profiling import Profile
from eoseg.runfolder import path_of
from eoseg.schedule import Schedule
from eoseg.stopping import Stopping

FREE = {"epochs", "patience", "save_dir", "dataset_root", "patch_subdir", "device", "workers", "cache", "init_weights", "encoder_weights", "resume", "overwrite", "log_per_class", "save_csv",
        "compile", "profile"}  # options that a resumed run may be given anew
OF_PATCHES = ("input", "class_names", "label_map", "patches", "normalization")  # what must be the same of them
OF_ADAM, OF_SGD = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}  # what an optimiser keeps for a weight
OF_A_RUN = {"validation", "test", "config", "history"}  # metrics.json of a finished one has these


@dc.dataclass
class Run:
    """All that lasts from one step to the next."""

    config: TrainingConfig
    names: list
    about: dict  # what every checkpoint says of its network: bands, normalisation, classes
    device: torch.device
    amp_dtype: Any
    net: nn.Module
    average: Optional[Average]  # of the weights, with --ema
    stages: list  # of the encoder, lists of parameters
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    total: torch.Tensor  # of this epoch: loss times labelled pixels, and labelled pixels
    seen: Confusion  # of this epoch: what the network called the training pixels while it learned
    stop: Stopping
    behind: Behind  # writes checkpoints
    artist: Artist  # draws
    panel: Panel  # of validation patches that are shown after each epoch
    card: dict  # what run.json says of it from the start
    profile: Optional[Profile] = None  # of the first epoch, with --profile
    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the one after
    part: int = 1  # patches that go through the network at once, in training
    judged_part: int = 1  # and in validation
    let_go: bool = False  # the encoder, with --unfreeze_on_plateau
    stalled: int = 0  # epochs since best_loss
    best_iou: float = float("-inf")
    best_loss: float = float("inf")
    best_score: float = float("-inf")
    waited: int = 0  # epochs since best_score
    finished: bool = False
    saved: float = 0.0  # when, by time.monotonic
    per_class: dict = dc.field(default_factory=dict)  # IoU of each class after the last epoch
    history: list = dc.field(default_factory=list)

    LASTING: ClassVar = ("epoch", "step", "part", "judged_part", "let_go", "stalled", "best_iou", "best_loss", "best_score", "waited", "finished", "per_class", "history")

    @property
    def judged(self):
        """The network that is validated and kept."""
        return self.average.net if self.average else self.net


def begin(config):
    """With --resume the state to go on from and its path, options compared; (None, None) for a run that starts."""
    saved, path = newest(config) if config.resume else (None, None)
    if saved:
        check_options(config, saved, path)
    return saved, path


def check_kind(config):
    """Raises SetupError when a run is to be resumed as folds, or folds as a run."""
    folder = Path(config.save_dir)
    there = "kfold" if any(folder.glob(f"fold[0-9]*/{config.model_name}_last.pth")) else "split" if path_of(config, "last.pth").exists() else config.val_strategy
    if config.resume and there != config.val_strategy:
        refuse([f"val_strategy ({there} -> {config.val_strategy})"], folder)


def newest(config):
    """The newest state of the run in --save_dir that can be read, and its path; (None, None) when it has none, which is said.

    Raises:
        SetupError: there are some, but none can be read; or a finished run lost them.
    """
    last, previous = (path_of(config, ending) for ending in ("last.pth", "previous.pth"))
    for path in (last, previous):
        try:
            if path.exists():
                saved = checkpoint.load(path)
                if not is_state(saved):
                    raise SetupError(f"{path}: holds no state that this version can go on from; an earlier one may have written it.")
                if path == previous:
                    print(f"note: --resume: {last} is {'damaged' if last.exists() else 'not there'}; going on from {previous}, one save older")
                return saved, path
        except SetupError as error:
            print(f"note: {error}")
    if last.exists() or previous.exists():
        raise SetupError(f"--resume: neither {last} nor {previous} can be gone on from; train in another --save_dir, or start anew with --overwrite.")
    others = [path.name.removesuffix("_last.pth") for path in sorted(last.parent.glob("*_last.pth"))]
    if others:
        refuse([f"model_name ({', '.join(others)} -> {config.model_name})"], last.parent)
    if path_of(config, "final.pth").exists():
        raise SetupError(f"--resume: {last} is not there, but a finished run is; give --overwrite to train it anew, or another --save_dir.")
    print(f"note: --resume: {last} is not there; the run starts from the beginning")
    return None, None


def is_state(saved):
    """Does a checkpoint hold what a run goes on from?"""
    run, config, kind = (part if isinstance(part, dict) else {} for part in map(saved.get, ("run", "config", "normalization")))
    return run.keys() >= {*Run.LASTING, "seen", "total", "live", "optimizer", "scaler", "schedule"} and saved.keys() >= {*OF_PATCHES} and "in_channels" in config and "kind" in kind and isinstance(run["live"], (dict, type(None)))


def check_options(config, saved, path):
    """Raises SetupError, listing all that differs, when the run was begun with other options."""
    count = len(config.bands) if config.bands else config.in_channels or saved["config"]["in_channels"]
    mine = vars(config) | {"in_channels": count}
    refuse([f"{key} ({saved['config'][key]} -> {value})" for key, value in mine.items()
            if key not in FREE and key in saved["config"] and saved["config"][key] != value], path)


def check_patches(about, saved, path):
    """Raises SetupError when the patches, or what was made of them, are not those the run was begun with."""
    refuse([key for key in OF_PATCHES if saved[key] != checkpoint.plain(about[key])], path)


def refuse(differ, path):
    if differ:
        raise SetupError(f"--resume: {path} was trained otherwise: {listing(differ, 12)}; give the same options and patches, or another --save_dir.")


def parts(run):
    """What every checkpoint of a run holds."""
    return {
        "model_state_dict": run.judged.state_dict(),
        "config": dc.asdict(dc.replace(run.config, in_channels=len(run.about["input"]["names"]))),
        "performance_metrics": {"epoch": run.epoch, "best_val_loss": run.best_loss, "best_val_iou": run.best_iou, "per_class_iou": run.per_class},
        **run.about,
    }


def copied(value):
    """The same with every tensor copied to the CPU, so that it can be written while the run goes on."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, (list, tuple)) else value


def save(run, kept=None):
    """Write everything a resumed run needs to <model>_last.pth, behind; the one before becomes <model>_previous.pth.

    Args:
        kept: what `copied` made of `parts`, where it is there already.
    """
    state = {"live": run.net.state_dict() if run.average else None, "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
             "schedule": run.schedule.state_dict(), "total": run.total, "seen": run.seen.counts, **{name: getattr(run, name) for name in run.LASTING}}
    run.behind(checkpoint.save, path_of(run.config, "last.pth"), keep=path_of(run.config, "previous.pth"), **kept or copied(parts(run)), run=copied(state))
    run.saved = time.monotonic()


def remember(run, scores, val_loss):
    """Write the checkpoints this epoch deserves, then the log, then the state to resume from; in this order, while the run goes on."""
    config = run.config
    better_loss, better_iou = val_loss < run.best_loss, scores["mean_iou"] > run.best_iou
    run.best_loss, run.best_iou = min(run.best_loss, val_loss), max(run.best_iou, scores["mean_iou"])
    kept = copied(parts(run))
    for better, ending in ((better_loss, "best_loss.pth"), (better_iou, "best_iou.pth")):
        if better:
            run.behind(checkpoint.save, path_of(config, ending), **kept)
    if config.save_csv:
        run.behind(files.write_csv, path_of(config, "training_log.csv"), list(run.history))
    save(run, kept)


def is_whole(config, epochs):
    """Are the files there that a run of so many epochs ends with?"""
    try:
        return (files.read_json(path_of(config, "metrics.json")).keys() >= OF_A_RUN and bool(checkpoint.load(path_of(config, "final.pth")))
                and rows_in(path_of(config, "validation_patches.csv")) > 0 and (not config.save_csv or rows_in(path_of(config, "training_log.csv")) == epochs))
    except (SetupError, OSError, AttributeError):
        return False


def rows_in(path):
    """How many rows a CSV file has below its head; none where it cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8") as f:
            return sum(1 for _ in csv.reader(f)) - 1
    except (OSError, ValueError, csv.Error):
        return 0


def check_state(run, state, path):
    """Before a state is taken: torch believes what it is given, and reads beyond the end of arrays that are too small.

    Raises:
        SetupError: it is not of this run.
    """
    try:
        lacking = [what for what, good in (("counters", counters_fit(run, state)), ("log", log_fits(state)), ("optimizer", optimizer_fits(run.optimizer, state["optimizer"])),
                                           ("schedule", numbers_fit(run.schedule, state["schedule"])), ("scaler", not state["scaler"] or numbers_fit(run.scaler, state["scaler"]))) if not good]
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError):
        lacking = ["state"]
    if lacking:
        raise SetupError(f"{path}: its {listing(lacking)} cannot be of this run; train in another --save_dir, or start anew with --overwrite.")


def counters_fit(run, state):
    """Are the numbers of a state of their type, and within their bounds?"""
    kinds = {field.name: (int, float) if field.type is float else field.type for field in dc.fields(Run)}
    steps = run.schedule.steps // run.config.epochs
    return (all(isinstance(state[name], kinds[name]) for name in Run.LASTING) and not any(state[name] != state[name] for name in ("best_iou", "best_loss", "best_score"))
            and min(state["epoch"], state["stalled"], state["waited"]) >= 0 and 0 <= state["step"] <= steps and min(state["part"], state["judged_part"]) >= 1
            and state["total"].shape == run.total.shape and state["seen"].shape == run.seen.counts.shape)


def log_fits(state):
    """Has the log a row for every epoch?"""
    rows = state["history"]
    return len(rows) == state["epoch"] and all(row["epoch"] == number and finite(row["epoch_time"]) for number, row in enumerate(rows, 1))


def numbers_fit(part, state):
    """Has the state of a part of the run, its schedule say, a number for each that the part itself has?"""
    return all(finite(state[name]) for name in part.state_dict())


def finite(value):
    return isinstance(value, (int, float)) and value - value == 0 or value == float("-inf")  # the best score of none


def optimizer_fits(optimizer, state):
    """Is the state of an optimiser of the same weights and settings, and finite?"""
    groups, wanted = optimizer.param_groups, OF_SGD if isinstance(optimizer, torch.optim.SGD) else OF_ADAM
    alike = len(groups) == len(state["param_groups"]) and all(
        len(own["params"]) == len(other["params"]) and finite(other["lr"]) and all(checkpoint.plain(own[key]) == other[key] for key in own.keys() & other.keys() - {"params", "lr"})
        for own, other in zip(groups, state["param_groups"]))
    weights = dict(enumerate(weight for group in groups for weight in group["params"]))
    return alike and all(
        kept.keys() >= wanted and all(value.numel() == 1 and name == "step" or value.shape == weights[number].shape for name, value in kept.items())
        and all(map(checkpoint.finite, kept.values())) for number, kept in state["state"].items())


def restore(run, saved, path):
    """Put a saved state into a run that was prepared with the same options."""
    state, best = saved["run"], path_of(run.config, "best_iou.pth")
    try:
        lost = state["history"] and not checkpoint.load(best)
    except SetupError:
        lost = True
    if lost:
        raise SetupError(f"{best}: the best network of the run is missing or damaged; start anew with --overwrite.")
    check_state(run, state, path)
    if run.average:
        checkpoint.load_weights(run.average.net, saved["model_state_dict"], path)
    checkpoint.load_weights(run.net, state["live"] or saved["model_state_dict"], path)
    run.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:  # empty when the run was begun where no gradient scaling is needed
        run.scaler.load_state_dict(state["scaler"])
    run.schedule.load_state_dict(state["schedule"])
    run.total.copy_(state["total"])
    run.seen.counts.copy_(state["seen"])
    for name in run.LASTING:
        setattr(run, name, state[name])
    if path != path_of(run.config, "last.pth"):
        path_of(run.config, "last.pth").unlink(missing_ok=True)  # damaged; it must not take the place of the one that is not
    saved.clear()  # whoever still holds it holds no weights
