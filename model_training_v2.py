"""Training: one run, or k folds of it.

The run, top to bottom: read and check the patches; fit normalisation and class weights on the training ones; train with
validation after every epoch; keep the best network by validation IoU; score that one on the test patches and save it as
final. Everything a resumed run needs lies in <model>_last.pth.
"""

import dataclasses as dc
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import losses
from eoseg import checkpoint, data, encoders, files, folds, models, patchset, plots, raster
from eoseg.coding import parse_map
from eoseg.config import LOSSES, NETWORKS, TrainingConfig
from eoseg.device import amp_settings, autocast, choose_device
from eoseg.errors import SetupError, listing
from eoseg.georef import pixel_size
from eoseg.metrics import Confusion
from eoseg.optim import make_optimizer
from eoseg.runfolder import check_folder, clear, path_of
from eoseg.schedule import Schedule
from eoseg.tracking import bar, epoch_line, score_table

RESUMABLE = {"epochs", "patience", "save_dir", "dataset_root", "device", "workers", "resume", "overwrite", "log_per_class", "save_csv"}


def get_available_models():
    """Names of the networks, for --model."""
    return list(NETWORKS)


def get_available_losses():
    """Names of the losses, for --loss_type."""
    return list(LOSSES)


def build_model_for_prediction(name, in_channels=3, classes=5, encoder_name="resnet34", pretrained=False, dropout_rate=0.3):
    """A network with fresh weights, in eval mode; classes == 1 is binary (one logit).

    Args:
        pretrained: start the encoder from ImageNet weights.
    """
    net = models.build_model(name, in_channels, classes, encoder_name, dropout_rate)
    if pretrained:
        mode = "binary" if classes == 1 else "multiclass"
        encoders.load_encoder(net, TrainingConfig(name, ".", mode=mode, num_classes=max(classes, 2), encoder_name=encoder_name), in_channels)
    return net.eval()


def train_and_save_model_v2_full(model_name, dataset_root, mode="multiclass", num_classes=5, device="auto", batch_size=8, epochs=100,
                                 save_dir="./trained_models", encoder_name="resnet34", pretrained=True, **options):
    """Train one network; `options` are further fields of TrainingConfig.

    Returns:
        the metrics that <model>_metrics.json holds.
    """
    return train(TrainingConfig(model_name, str(dataset_root), mode=mode, num_classes=num_classes, device=str(device), batch_size=batch_size, epochs=epochs,
                                save_dir=str(save_dir), encoder_name=encoder_name, pretrained=pretrained, **options))


def cross_validate_model_v2(model_name, dataset_root, device="auto", n_splits=5, **options):
    """Train one network per fold; `options` are further fields of TrainingConfig.

    Returns:
        the scores that <model>_kfold_metrics.json holds.
    """
    return cross_validate(TrainingConfig(model_name, str(dataset_root), device=str(device), n_splits=n_splits, **{**options, "val_strategy": "kfold"}))


def train(config):
    """One run over train/ and validation/, tested on test/. Returns the metrics."""
    models.check_model(config)
    splits, metadata = data.read_splits(config)
    with files.lock(config.save_dir):
        check_folder(config)
        return fit(config, splits, metadata)


def cross_validate(config):
    """One run per fold under save_dir/fold<i>; the folds together are scored on test/ once. Returns the scores."""
    models.check_model(config)
    choose_device(config.device)
    root = patchset.find_root(config.dataset_root, config.patch_subdir)
    metadata = patchset.load_metadata(root, required=False)
    for name in config.subdirectories:
        if name not in ("train", "validation", "test") and not (root / name / "images").is_dir():
            raise SetupError(f"--subdirectories {name}: {root} holds no {name}/images; name folders that are there.")
    pairs = [pair for split in dict.fromkeys(config.subdirectories) for pair in patchset.find_pairs(root, split)]
    test = patchset.find_pairs(root, "test") if "test" not in config.subdirectories else []
    results, folder = [], Path(config.save_dir)
    parts = folds.divide(pairs, config.n_splits, config.seed, patchset.read_places(root))
    with files.lock(folder):
        check_folder(config)
        data.survey([*pairs, *test], data.choose_bands(pairs[0][0], config, metadata), config, bar)  # a bad test patch is said now, not when all folds are trained
        if config.overwrite:
            clear(config)
        single = [dc.replace(config, save_dir=str(folder / f"fold{i}")) for i in range(1, len(parts) + 1)]
        for i, (one, (held_in, held_out)) in enumerate(zip(single, parts), 1):
            print(f"fold {i} of {len(parts)}: {len(held_in)} patches train, {len(held_out)} validate")
            results.append(fit(one, {"train": held_in, "validation": held_out, "test": []}, metadata)["validation"])
        table = folds.summarise(results)
        for key, part in table.items():
            print(f"  {key:<20} {part['mean']:.3f}  95 % interval {part['low']:.3f} to {part['high']:.3f}")
        scores = test_ensemble(single, test) if test else None
        if not test:
            print("test      none: no patches in test/ (or --subdirectories names it)")
        return folds.write(folder, config.model_name, results, table, scores, dc.asdict(config))


# ---------------------------------------------------------------- one run


@dc.dataclass
class Run:
    """All that lasts from one step to the next."""

    config: TrainingConfig
    names: list
    about: dict  # what every checkpoint says of its network: bands, normalisation, classes
    device: torch.device
    amp_dtype: Any
    net: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    epoch: int = 0  # epochs done
    best_iou: float = float("-inf")
    best_loss: float = float("inf")
    best_score: float = float("-inf")
    waited: int = 0  # epochs since best_score
    finished: bool = False
    per_class: dict = dc.field(default_factory=dict)  # IoU of each class after the last epoch
    history: list = dc.field(default_factory=list)


LASTING = ("epoch", "best_iou", "best_loss", "best_score", "waited", "finished", "per_class", "history")


def fit(config, splits, metadata):
    """Train on splits["train"], choose by splits["validation"], score on splits["test"]; write everything to save_dir.

    Args:
        splits: dict of lists of (image, label). metadata: of the patches, {} when there is none.
    Returns:
        the metrics.
    """
    run, loaders = prepare(config, splits, metadata)
    clear(config)
    if config.resume and resume(run):
        print(f"{path_of(config, 'last.pth')}: the run is finished after {run.epoch} epochs; nothing to do")
        return files.read_json(path_of(config, "metrics.json"))
    try:
        while run.epoch < config.epochs and run.waited < config.patience:
            one_epoch(run, *loaders[:2])
    except torch.OutOfMemoryError:
        raise SetupError(f"--batch_size {config.batch_size}: does not fit the memory of {run.device} with --model {config.model_name}; halve it, "
                         "or give a smaller --patch_size, or --use_amp.") from None
    if run.epoch < config.epochs:
        print(f"stopped   {run.waited} epochs without a better {config.monitor}")
    return finish(run, loaders[1], loaders[2])


def prepare(config, splits, metadata):
    """Check the patches and build all that the loop needs.

    Returns:
        the Run, and the loaders of train, validation and test (None without test patches).
    """
    device = choose_device(config.device)
    amp_dtype, precision = amp_settings(config.use_amp, device)
    every = [pair for part in splits.values() for pair in part]
    bands = data.choose_bands(every[0][0], config, metadata)
    survey = data.survey(every, bands, config, bar)
    largest = max(max(size) for size in survey.sizes)
    if config.batch_size == 1:  # how small the deepest features get hangs on the patches
        models.check_model(dc.replace(config, patch_size=config.patch_size or largest))
    names = data.class_names(config, metadata)
    pixels = {split: sum(survey.class_pixels[image] for image, _ in part) for split, part in splits.items() if part}
    data.check_labels(pixels, names)
    kind = config.normalization if config.normalization != "auto" else encoders.usual_normalization(config)
    normalizer, statistics = data.fit_normalizer(splits["train"], bands, kind, bar)
    about = {"normalization": normalizer.to_dict(), "statistics": statistics, "class_names": names, "input": bands.to_dict(),
             "label_map": parse_map(config.label_map) or metadata.get("label_map"), "patch_size": largest,
             "pixel_size": pixel_size(raster.header(every[0][0])), "patches": files.digest([*splits["train"], *splits["validation"]], survey.class_pixels)}
    torch.manual_seed(config.seed)
    net = models.build_model(config.model_name, len(bands.names), config.num_classes, config.encoder_name, config.dropout_rate)
    begun = config.resume and path_of(config, "last.pth").exists()  # a fold that a killed run never reached begins as any other
    started = [] if begun else [encoders.load_encoder(net, config, len(bands.names)), config.init_weights and encoders.load_init_weights(net, config.init_weights)]
    net = net.to(device, memory_format=torch.channels_last)
    weight = losses.chosen_weights(config, pixels["train"])
    run = Run(config, names, about, device, amp_dtype, net, losses.make_loss(config, weight).to(device), make_optimizer(net, models.encoder_of(net), config),
              torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16), None)
    loaders = make_loaders(run, splits, bands, normalizer, largest)
    steps = len(loaders[0])
    run.schedule = Schedule(config.scheduler_type, config.learning_rate, config.epochs * steps, config.warmup_epochs * steps,
                            config.warmup_lr, config.patience // 3)
    report(run, splits, survey, bands, kind, precision, weight, [line for line in started if line])
    return run, loaders


def make_loaders(run, splits, bands, normalizer, largest):
    """Loaders of train (shuffled, augmented), validation and test (None when empty)."""
    config = run.config
    workers = data.worker_count(config, splits["train"])
    make = lambda pairs, seed: data.make_loader(data.Patches(pairs, bands, normalizer, config, seed, config.data_augmentation, largest),
                                                config.batch_size, seed, workers, run.device)
    return make(splits["train"], config.seed), make(splits["validation"], None), make(splits["test"], None) if splits["test"] else None


def report(run, splits, survey, bands, kind, precision, weight, started):
    """What the run is, before it starts."""
    config = run.config
    count = sum(p.numel() for p in run.net.parameters()) / 1e6
    encoder = f" with {config.encoder_name}" if config.model_name in models.SMP else ""
    print(f"network   {config.model_name}{encoder}, {count:.1f} M parameters, on {run.device}, {precision}")
    for line in started:
        print(line)
    sizes = ", ".join(f"{rows} x {cols}" for rows, cols in survey.sizes)
    print(f"patches   {', '.join(f'{split} {len(part)}' for split, part in splits.items())}; {sizes} pixels, {survey.dtype}")
    print(f"bands     {listing(bands.names, 13)}; normalised by {kind}, fitted on the training patches")
    print(f"classes   {listing(run.names, 20)}" + (f"; weights {' '.join(f'{w:.2f}' for w in weight.tolist())}" if weight is not None else ""))


# ---------------------------------------------------------------- an epoch


def one_epoch(run, train_loader, validation_loader):
    """Train, validate, remember, log."""
    config, started = run.config, time.perf_counter()
    torch.manual_seed(config.seed * 1_000_003 + run.epoch)  # dropout hangs on (seed, epoch), so that a resumed run draws the same
    train_loader.batch_sampler.epoch = run.epoch
    train_loss = train_epoch(run, train_loader)
    rate = max(group["lr"] for group in run.optimizer.param_groups)
    val_loss, scores = evaluate(run, validation_loader)
    if val_loss != val_loss or val_loss == float("inf"):
        raise diverged(run, "the validation loss")
    run.epoch += 1
    row = {"epoch": run.epoch, "train_loss": train_loss, "val_loss": val_loss, "val_iou": scores["mean_iou"], "val_f1": scores["mean_f1"],
           "val_accuracy": scores["accuracy"], "learning_rate": rate, "epoch_time": time.perf_counter() - started}
    run.per_class = {name: part["iou"] for name, part in scores["per_class"].items()}
    if config.log_per_class:
        row |= {f"iou_{name}": iou for name, iou in run.per_class.items()}
    run.history.append(row)
    score = scores["mean_iou"] if config.monitor == "iou" else -val_loss
    run.schedule.epoch_end(score)
    run.waited = 0 if score > run.best_score else run.waited + 1
    run.best_score = max(run.best_score, score)
    remember(run, scores, val_loss)
    print(epoch_line(row, config.epochs, best=run.waited == 0), flush=True)


def train_epoch(run, loader):
    """All batches once. Returns the loss, averaged over labelled pixels."""
    frozen = run.config.freeze_encoder and run.epoch < run.config.freeze_epochs
    models.freeze_encoder(run.net, frozen)
    models.train_mode(run.net, frozen)
    total, before = torch.zeros(2, device=run.device), None
    for image, target, index in bar(data.batches(loader), desc=f"epoch {run.epoch + 1}", total=len(loader), unit="batch"):
        run.schedule.apply(run.optimizer)
        loss, labelled = train_step(run, image, target)
        total += torch.stack([loss * labelled, labelled])
        check_finite(run, before, loader)  # of the step before: waiting for this one would idle the GPU
        before = loss, index
    check_finite(run, before, loader)
    return (total[0] / total[1].clamp(min=1)).item()


def train_step(run, image, target):
    """Forward, backward, one step of the optimiser.

    Args:
        image: (N, B, H, W) float32. target: (N, H, W) int64. On any device.
    Returns:
        the loss and the number of labelled pixels, 0-dim tensors on the device: reading them waits for the GPU, so the
        caller decides when.
    """
    image = image.to(run.device, non_blocking=True, memory_format=torch.channels_last)
    target = target.to(run.device, non_blocking=True)
    with autocast(run.device, run.amp_dtype):
        logits = run.net(image)
    loss = run.loss(logits, target)
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)  # passes over the step by itself when a gradient is inf or nan
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return loss.detach(), (target != losses.IGNORE).sum()


def check_finite(run, step, loader):
    """Raises SetupError, naming the batch's files, when a loss was not finite and no gradient scaler can mend it."""
    if step is None or torch.isfinite(step[0]) or (run.scaler.is_enabled() and run.scaler.get_scale() > 1):
        return
    raise diverged(run, f"the loss of the batch {listing([loader.dataset.pairs[i][0].name for i in step[1].tolist()], 8)}")


def diverged(run, what):
    return SetupError(f"--learning_rate {run.config.learning_rate:g}: {what} is not finite in epoch {run.epoch + 1}; the run has diverged, "
                      "lower the rate (a tenth, say)." + (" The checkpoints of the epochs before are whole." if run.epoch else ""))


@torch.inference_mode()
def evaluate(run, loader):
    """Loss, averaged over labelled pixels, and scores of the network as it is."""
    run.net.eval()
    confusion, total = Confusion(len(run.names), run.device), torch.zeros(2, device=run.device)
    for image, target, _ in data.batches(loader):
        target = target.to(run.device, non_blocking=True)
        with autocast(run.device, run.amp_dtype):
            logits = run.net(image.to(run.device, non_blocking=True, memory_format=torch.channels_last))
        labelled = (target != losses.IGNORE).sum()
        total += torch.stack([run.loss(logits, target) * labelled, labelled])
        confusion.add(losses.two_logits(logits).max(1).indices, target)
    return (total[0] / total[1].clamp(min=1)).item(), confusion.scores(run.names)


# ---------------------------------------------------------------- what is kept


def checkpoint_parts(run):
    """What every checkpoint of a run holds."""
    return {
        "model_state_dict": run.net.state_dict(),
        "config": dc.asdict(dc.replace(run.config, in_channels=len(run.about["input"]["names"]))),
        "performance_metrics": {"epoch": run.epoch, "best_val_loss": run.best_loss, "best_val_iou": run.best_iou, "per_class_iou": run.per_class},
        **run.about,
    }


def remember(run, scores, val_loss):
    """Write the checkpoints this epoch deserves, then the log, then the state to resume from."""
    config = run.config
    better_loss, better_iou = val_loss < run.best_loss, scores["mean_iou"] > run.best_iou
    run.best_loss, run.best_iou = min(run.best_loss, val_loss), max(run.best_iou, scores["mean_iou"])
    for better, ending in ((better_loss, "best_loss.pth"), (better_iou, "best_iou.pth")):
        if better:
            checkpoint.save(path_of(config, ending), **checkpoint_parts(run))
    if config.save_csv:
        files.write_csv(path_of(config, "training_log.csv"), run.history)
    save_last(run)


def save_last(run):
    """Everything a resumed run needs."""
    checkpoint.save(path_of(run.config, "last.pth"), **checkpoint_parts(run), run={
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(), "schedule": run.schedule.state_dict(),
        **{name: getattr(run, name) for name in LASTING}})


def resume(run):
    """Go on where <model>_last.pth left off. Returns whether the run is finished already.

    Raises:
        SetupError: options or patches differ from those of the run; the differences are listed.
    """
    path = path_of(run.config, "last.pth")
    if not path.exists():
        print(f"note: --resume: {path} is not there; the run starts from the beginning")
        return False
    saved = checkpoint.load(path, run.device)
    mine = checkpoint_parts(run)
    differ = [f"{key} ({saved['config'].get(key)} -> {value})" for key, value in mine["config"].items() if key not in RESUMABLE and saved["config"].get(key) != value]
    differ += [key for key in ("input", "class_names", "patches", "normalization") if saved[key] != checkpoint.plain(mine[key])]
    if differ:
        raise SetupError(f"--resume: {path} was trained otherwise: {listing(differ, 8)}; give the same options and patches, or another --save_dir.")
    checkpoint.load_weights(run.net, saved["model_state_dict"], path)
    state = saved["run"]
    run.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:  # empty when the run was begun where no gradient scaling is needed
        run.scaler.load_state_dict(state["scaler"])
    run.schedule.load_state_dict(state["schedule"])
    for name in LASTING:
        setattr(run, name, state[name])
    if run.finished and (run.epoch >= run.config.epochs or run.waited >= run.config.patience):
        return True
    run.finished = False
    print(f"resumed   after epoch {run.epoch}, best validation IoU {run.best_iou:.4f}")
    return False


def finish(run, validation_loader, test_loader):
    """The best network by validation IoU is tested, saved as final and reported. Returns the metrics."""
    config = run.config
    last = {name: value.clone() for name, value in run.net.state_dict().items()}
    best = checkpoint.load(path_of(config, "best_iou.pth"), run.device)
    checkpoint.load_weights(run.net, best["model_state_dict"], path_of(config, "best_iou.pth"))
    _, validation = evaluate(run, validation_loader)
    _, test = evaluate(run, test_loader) if test_loader else (None, None)
    checkpoint.save(path_of(config, "final.pth"), **{key: value for key, value in best.items() if key != "format"}, validation=validation, test=test)
    title = f"{config.model_name}, best validation IoU {run.best_iou:.3f}"
    plots.draw_curves(run.history, path_of(config, "training_plot.png"), title)
    if config.log_per_class:
        plots.draw_class_iou(run.history, run.names, path_of(config, "per_class_iou.png"), title)
    history = {key: [row.get(key) for row in run.history] for key in run.history[-1]}
    metrics = {"test": test, "validation": validation, "config": best["config"], "history": history, "test_metrics": test, "training_history": history}
    files.write_json(path_of(config, "metrics.json"), metrics)
    run.net.load_state_dict(last)  # what more epochs, should they be asked for, go on from
    run.finished = True
    save_last(run)
    print(f"best      epoch {best['performance_metrics']['epoch']}; on validation:\n{score_table(validation)}")
    print(f"on test:\n{score_table(test)}" if test else "test      none: no labelled patches in test/")
    print(f"wrote     {path_of(config, 'final.pth')}")
    return files.read_json(path_of(config, "metrics.json"))


@torch.inference_mode()
def test_ensemble(configs, pairs):
    """Score the mean probability of the folds' networks on `pairs`; each fold normalises by its own statistics."""
    device = choose_device(configs[0].device)
    nets, loaders = [], []
    for config in configs:
        saved = checkpoint.load(path_of(config, "final.pth"), device)
        net = models.build_model(config.model_name, saved["config"]["in_channels"], config.num_classes, config.encoder_name, config.dropout_rate)
        checkpoint.load_weights(net, saved["model_state_dict"], path_of(config, "final.pth"))
        nets.append(net.to(device, memory_format=torch.channels_last).eval())
        patches = data.Patches(pairs, data.Bands(**saved["input"]), data.Normalizer.from_dict(saved["normalization"]), config, largest=saved["patch_size"])
        loaders.append(data.make_loader(patches, config.batch_size, None, 0, device))
    confusion = Confusion(len(saved["class_names"]), device)
    for batches in zip(*loaders):
        mean = sum(losses.two_logits(net(image.to(device))).float().softmax(1) for net, (image, _, _) in zip(nets, batches))
        confusion.add(mean.max(1).indices, batches[0][1].to(device))
    scores = confusion.scores(saved["class_names"])
    print(f"on test, the {len(nets)} folds together:\n{score_table(scores)}")
    return scores
