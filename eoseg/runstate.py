"""The state of a run, and what of it is kept so that it can go on where it was cut off: twice, as one may be damaged."""

import dataclasses as dc
import time
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
                if not saved.get("run", {}).keys() >= {*Run.LASTING, "seen"}:
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


def is_whole(config):
    """Are the files there that a finished run ends with?"""
    try:
        return bool(files.read_json(path_of(config, "metrics.json"))) and bool(checkpoint.load(path_of(config, "final.pth"))) and path_of(config, "validation_patches.csv").exists()
    except (SetupError, OSError):
        return False


def restore(run, saved, path):
    """Put a saved state into a run that was prepared with the same options."""
    state, best = saved["run"], path_of(run.config, "best_iou.pth")
    try:
        lost = state["history"] and not checkpoint.load(best)
    except SetupError:
        lost = True
    if lost:
        raise SetupError(f"{best}: the best network of the run is missing or damaged; start anew with --overwrite.")
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
        files.remove(path_of(run.config, "last.pth"))  # damaged; it must not take the place of the one that is not
    saved.clear()  # whoever still holds it holds no weights
