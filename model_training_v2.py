"""Training: one run, or k folds of it.

The run, top to bottom: look the patches over; fit normalisation and class weights on the training ones; train with
validation after every epoch; keep the best network by validation IoU; score that one on the test patches and save it as
final. Everything a resumed run needs lies in <model>_last.pth, and once more, one save older, in <model>_previous.pth.
"""

import dataclasses as dc
import time
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

import losses
from eoseg import data, encoders, files, folds, models, partition, patchset, raster, runcard, runstate, stages, survey
from eoseg.coding import parse_map
from eoseg.config import LOSSES, NETWORKS, TrainingConfig
from eoseg.device import amp_settings, autocast, choose_device, seed_step, translate
from eoseg.drawing import Artist
from eoseg.ending import finish, pictures
from eoseg.georef import pixel_size
from eoseg.guarding import check_finite, diverged, fitting, heed
from eoseg.judging import evaluate, parted
from eoseg.metrics import Confusion, count_pairs
from eoseg.optim import Average, make_optimizer
from eoseg.panel import Panel, choose
from eoseg.parallel import Behind
from eoseg.profiling import Profile
from eoseg.runfolder import check_folder, clear, path_of
from eoseg.runstate import Run, is_whole, remember
from eoseg.schedule import Schedule
from eoseg.source import fit_normalizer, open_folds, open_splits
from eoseg.stopping import Stopping
from eoseg.tracking import bar, describe, epoch_line, epoch_row


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
    with Stopping() as stop, files.lock(config.save_dir):
        models.check_model(config)
        choose_device(config.device)
        check_folder(config)
        runstate.check_kind(config)
        begun = runstate.begin(config)
        if not begun[0]:
            encoders.check_weights(config)
        splits, source = open_splits(config, bar)
        return fit(config, splits, source, stop, begun)


def cross_validate(config):
    """One run per fold under save_dir/fold<i>; the folds together are scored on test/ once. Returns the scores."""
    folder, results = Path(config.save_dir), []
    with Stopping() as stop, files.lock(folder):
        models.check_model(config)
        choose_device(config.device)
        check_folder(config)
        runstate.check_kind(config)
        if not config.resume:
            encoders.check_weights(config)
        pairs, test, source = open_folds(config, bar)
        division = partition.divide(pairs, config.n_splits, config.seed, config.fold_by, patchset.read_rows(source.root), source.survey.class_pixels)
        print(division.said)
        survey.check_folds(division.folds, source.survey.class_pixels)
        single = [dc.replace(config, save_dir=str(folder / f"fold{i}")) for i in range(1, len(division.folds) + 1)]
        for i, (one, (held_in, held_out)) in enumerate(zip(single, division.folds), 1):
            print(f"fold {i} of {len(single)}: {len(held_in)} patches train, {len(held_out)} validate")
            owner = config if i == 1 else one  # with --overwrite all goes when the first fold is known to start
            results.append(fit(one, {"train": held_in, "validation": held_out, "test": []}, source, stop, runstate.begin(one), owner)["validation"])
        return folds.conclude(config, single, division, results, test, source, stop)


# ---------------------------------------------------------------- one run


def fit(config, splits, source, stop, begun=(None, None), owner=None):
    """Train on splits["train"], choose by splits["validation"], score on splits["test"]; write everything to save_dir.

    Args:
        splits: dict of lists of (image, label). source: the source.Source they are of. begun: as `runstate.begin` returned it.
        owner: options of the run whose leftovers are cleared, when they are not `config`.
    Returns:
        the metrics.
    """
    saved, path = begun
    run, loaders = prepare(config, splits, source, stop, saved)
    with run.behind:
        with run.artist:
            trained = go_on(run, loaders, saved, path, owner or config)
        return finish(run, splits, loaders[1:], source) if trained else files.read_json(path_of(config, "metrics.json"))


def go_on(run, loaders, saved, path, owner):
    """From the state `saved` at `path`, or the start (None), to the last epoch. Returns False when there was nothing left to do."""
    config = run.config
    if saved:
        runstate.check_patches(run.about, saved, path)
        runstate.restore(run, saved, path)
        if run.finished and (run.epoch >= config.epochs or run.waited >= config.patience) and is_whole(config, run.epoch):
            print(f"{path}: the run is finished after {run.epoch} epochs; nothing to do")
            return False
        run.finished = False
        print(f"resumed   after epoch {run.epoch}" + (f" and {run.step} steps" if run.step else "") + f", best validation IoU {run.best_iou:.4f}")
    clear(owner)
    run.artist([])  # so that it is ready when the first epoch is over
    run.stop.patient, run.saved = True, time.monotonic()
    while run.epoch < config.epochs and run.waited < config.patience:
        one_epoch(run, *loaders[:2])
    if run.epoch < config.epochs:
        print(f"stopped   {run.waited} epochs without a better {config.monitor}")
    return True


def prepare(config, splits, source, stop, saved=None):
    """Build all that the loop needs.

    Args:
        saved: the state of a run that goes on: it has its weights, and its kind of normalisation.
    Returns:
        the Run, and the loaders of train, validation and test (None without test patches).
    """
    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory belongs to the current one
    runcard.forget_peak(device)
    amp_dtype, precision = amp_settings(config.use_amp, device, config.amp_dtype)
    if config.batch_size == 1:  # how small the deepest features get hangs on the patches
        models.check_model(dc.replace(config, patch_size=config.patch_size or source.largest))
    pixels = {split: sum(source.survey.class_pixels[image] for image, _ in part) for split, part in splits.items() if part}
    survey.check_labels(pixels, source.names, source.root)
    survey.check_weights(config.custom_class_weights, pixels["train"])
    kind = saved["normalization"]["kind"] if saved else config.normalization if config.normalization != "auto" else encoders.usual_normalization(config)
    normalizer, statistics = fit_normalizer(splits["train"], source, kind, bar)
    bands, told = source.bands, {split: files.lines_of(splits[split], source.survey.class_pixels) for split in ("train", "validation")}
    about = {"normalization": normalizer.to_dict(), "statistics": statistics, "class_names": source.names, "input": bands.to_dict(),
             "label_map": parse_map(config.label_map) or source.metadata.get("label_map"), "patch_size": source.largest,
             "pixel_size": pixel_size(raster.header(splits["train"][0][0])), "patches": files.digest(told["train"] + told["validation"]),
             "trained_on": torch.tensor(files.prints(told["train"]))}
    torch.manual_seed(config.seed)
    net = models.build_model(config.model_name, len(bands.names), config.num_classes, config.encoder_name, config.dropout_rate)
    said = [encoders.load_encoder(net, config, len(bands.names)), config.init_weights and encoders.load_init_weights(net, config.init_weights)] if not saved else []
    parts = stages.encoder_stages(net, config, len(bands.names))
    net = net.to(device, memory_format=torch.channels_last)
    weight = losses.chosen_weights(config, pixels["train"])
    loaders, shown = data.make_loaders(config, splits, source, normalizer, device)
    steps = -(-len(loaders[0]) // config.accumulate)
    schedule = Schedule(config.scheduler_type, config.learning_rate, config.epochs * steps, config.warmup_epochs * steps, config.warmup_lr, config.patience // 3)
    total = torch.zeros(2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    run = Run(config, source.names, about, device, amp_dtype, net, Average(net, config.ema) if config.ema else None, parts,
              losses.make_loss(config, weight).to(device), make_optimizer(net, parts, config),
              torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16), schedule, total, Confusion(len(source.names), device), stop, Behind(), Artist(),
              Panel(splits["validation"], choose(splits["validation"], source.survey.class_pixels), source), runcard.describe(net, config, splits, source, told, kind, device, precision),
              Profile(config.profile, path_of(config, "trace.json"), device) if config.profile else None,
              part=config.batch_size, judged_part=config.batch_size)
    said += [*stages.said(config), config.compile and translate(net, device), source.said, shown]
    describe(run, splits, source, kind, precision, weight, [line for line in said if line])
    return run, loaders


# ---------------------------------------------------------------- an epoch


def one_epoch(run, train_loader, validation_loader):
    """Train, validate, remember, log."""
    config, started = run.config, time.perf_counter()
    train_loss = train_epoch(run, train_loader)
    rate = max(group["lr"] for group in run.optimizer.param_groups)
    val_loss, tally = evaluate(run, validation_loader, between=lambda: heed(run), watch=run.panel)
    if val_loss != val_loss or val_loss == float("inf"):
        raise diverged(run, "the validation loss")
    scores, learned = tally.scores(run.names), run.seen.scores(run.names)
    run.epoch, run.step = run.epoch + 1, 0
    run.total.zero_()
    run.seen.counts.zero_()
    row = epoch_row(run.epoch, train_loss, val_loss, rate, time.perf_counter() - started, learned, scores, config.log_per_class)
    run.per_class = {name: part["iou"] for name, part in scores["per_class"].items()}
    run.history.append(row)
    score = scores["mean_iou"] if config.monitor == "iou" else -val_loss
    run.schedule.epoch_end(score)
    run.waited = 0 if score > run.best_score else run.waited + 1
    run.stalled = 0 if val_loss < run.best_loss else run.stalled + 1
    run.best_score = max(run.best_score, score)
    run.behind.wait()  # for what the epoch before is kept in
    print(epoch_line(row, config.epochs, best=run.waited == 0, two=run.per_class if len(run.names) == 2 else None), flush=True)
    if config.unfreeze_on_plateau and not run.let_go and (run.stalled >= config.unfreeze_on_plateau or run.waited >= config.patience):
        run.let_go, run.waited = True, 0
        print(f"encoder   let go, at {config.encoder_scale:g} of the learning rate: {run.stalled} epochs without a lower validation loss")
    remember(run, scores, val_loss)
    run.behind(runcard.keep, run)
    run.artist(pictures(run, scores, f"{config.model_name}, epoch {run.epoch}"))
    if run.profile:
        run.profile.tell(time.perf_counter() - started)
        run.profile = None


def train_epoch(run, loader):
    """All batches once, from the step on that the run has reached. Returns the loss, averaged over labelled pixels."""
    config, before = run.config, None
    stages.hold(run.net, run.stages, stages.thawed(config, len(run.stages), run.epoch, run.let_go))
    with closing(grouped(loader.epoch(run.epoch, skip=run.step * config.accumulate), config.accumulate)) as groups:
        watched = run.profile.watch(groups) if run.profile else groups
        for batches in bar(watched, f"epoch {run.epoch + 1}", -(-len(loader) // config.accumulate) - run.step, unit="step"):
            run.schedule.apply(run.optimizer)
            loss, seen = train_step(run, batches)
            labelled = seen[:-1].sum()
            run.step += 1
            run.seen.counts += seen
            run.total += torch.stack([loss * labelled, labelled]).nan_to_num(0, 0, 0) * torch.isfinite(loss)  # a step that the scaler passed over counts nowhere
            check_finite(run, before, loader)  # of the step before: waiting for this one would idle the GPU
            before = loss, [index for *_, indices in batches for index in indices]
            heed(run, before, loader)
    check_finite(run, before, loader)
    if run.scaler.is_enabled() and run.scaler.get_scale() < 1:
        raise diverged(run, "the gradient")
    return (run.total[0] / run.total[1].clamp(min=1)).item()


def grouped(batches, count):
    """Lists of `count` batches, the last one perhaps shorter."""
    with closing(batches):
        group = []
        for batch in batches:
            group.append(batch)
            if len(group) == count:
                yield group
                group = []
        if group:
            yield group


def train_step(run, batches):
    """Forward, backward, one step of the optimiser over `batches`, in smaller parts where the GPU's memory asks for it.

    The parts together give the gradient of the whole in the pixel-wise losses; Dice and its kin, which are no sums over
    pixels, and batch normalisation see each part by itself.

    Args:
        batches: list of (image (N, B, H, W) float32, target (N, H, W) int64, ...), on the device.
    Returns:
        the loss, 0-dim, and how pixels of each class were called, as metrics.count_pairs, on the device: reading them
        waits for the GPU, so the caller decides when.
    """
    config = run.config

    def compute():
        seed_step(config.seed, run.epoch, run.step)  # dropout hangs on these alone, so that a resumed run draws the same
        return backward(run, [part for image, target, *_ in batches for part in parted(image, target, run.part)])

    loss, seen = fitting(run, "part", compute)
    if config.clip:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.net.parameters(), config.clip)
    run.scaler.step(run.optimizer)  # passes over the step by itself when a gradient is inf or nan
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average:
        run.average.update(run.net, run.schedule.step)
    return loss, seen


def backward(run, parts):
    """Forward and backward of each part; its gradients add up. Returns the loss of all, and how their pixels were called."""
    total, seen = 0, 0
    shares = run.loss.factors([target for _, target in parts]) if len(parts) > 1 else [None]
    for (image, target), share in zip(parts, shares):
        with autocast(run.device, run.amp_dtype):
            logits = run.net(image)
        loss = run.loss(logits, target, share)
        run.scaler.scale(loss).backward()
        total = total + loss.detach()
        called = losses.two_logits(logits.detach()).max(1).indices
        seen = seen + count_pairs(called, target, len(run.names))
    return total, seen
