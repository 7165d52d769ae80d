"""--evaluate: trained networks on any folder of patches, without training. Scores, pictures, and the patches they do worst on."""

import dataclasses as dc
import os
from pathlib import Path

import torch

from eoseg import checkpoint, files, network, patchscores, patchset, scoreplots
from eoseg import source as sources
from eoseg import survey as looking
from eoseg.areas import Ground, area_table
from eoseg.bands import speaks
from eoseg.calibrating import calibrate
from eoseg.config import PredictionConfig, TrainingConfig
from eoseg.data import worker_count
from eoseg.device import autocast
from eoseg.errors import SetupError, listing
from eoseg.flags import flag_of
from eoseg.judging import assess, patches_of
from eoseg.panel import Panel
from eoseg.stopping import Stopping
from eoseg.tracking import bar, calibration_line, score_table

WORST = 12  # patches that are drawn
OF_THE_PATCHES = ("dataset_root", "patch_subdir", "label_map", "label_nodata", "cache", "workers", "batch_size", "device", "use_amp", "save_dir", "overwrite", "calibrate",
                  "threshold", "temperature", "evaluate", "split", "debug")  # what may be told beside a checkpoint

OF_THE_NETWORK = ("model_name", "encoder_name", "in_channels", "num_classes")  # what older checkpoints may not say


def evaluate(paths, split, given):
    """Judge the network of one checkpoint, or the mean of several, on the patches of `split`; write what is found to a folder.

    Args:
        paths: of checkpoints. split: a folder under the dataset root that holds images/ and labels/. given: dict of the options that were typed.
    Returns:
        the scores.
    Raises:
        SetupError: options that contradict the checkpoint or have no say here, patches that do not fit it, or results that are there already.
    """
    with Stopping() as stop:
        between = lambda: stop.leave_if_asked("stopped; no results were written")
        every = [one for path in paths for one in (network.folds_of(path) or [checkpoint.find(path)[0]])]
        saved = checkpoint.load(every[0])["config"]
        check_given(given, saved, every[0])
        config = config_of(given, saved, every[0])
        untold = {key: given[key] for key in OF_THE_NETWORK if key in given and saved.get(key) is None}
        options = PredictionConfig(device=config.device, use_amp=config.use_amp, **untold, **{key: given[key] for key in ("threshold", "temperature") if key in given})
        folder = folder_of(paths, every, split, given.get("save_dir"))
        check_folder(folder, config.overwrite)
        trained = network.load_all(every, options, *[unsaid] * config.calibrate)
        if "threshold" in given and not trained.binary:
            raise SetupError(f"--threshold: {every[0]} has {len(trained.class_names)} classes; it is for binary networks, leave it out.")
        pairs, source = open_split(trained, split, config)
        if config.calibrate:
            recalibrate(every, config, options, stop)
            trained = network.load_all(every, options)
        return judged(trained, split, pairs, source, config, folder, between)


def unsaid(line):
    """For what is said a second time, or would mislead."""


def folder_of(paths, every, split, save_dir):
    """Where the results go: `<checkpoint>_<split>` beside the first checkpoint or in `save_dir`; `<model>_kfold_<split>` in a folder of folds.

    Args:
        paths: as they were typed. every: the checkpoints that they stand for.
    Raises:
        SetupError: `split` is no plain name.
    """
    if split in ("", ".", "..") or Path(split).name != split:
        raise SetupError(f"--split {split}: is not the name of a folder; give that of one in the dataset root, and other data with --dataset_root.")
    first, folds = every[0], len(paths) == 1 and network.folds_of(paths[0])
    name = f"{first.stem.removesuffix('_final')}_kfold" if folds else first.stem + (f"_and_{len(every) - 1}_more" if len(every) > 1 else "")
    return Path(save_dir or (paths[0] if folds else first.parent)) / f"{name}_{split}"


def check_folder(folder, overwrite):
    """Raises SetupError when results lie in `folder` and may not be replaced, or none can be put there: said now, not after hours."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise SetupError(f"--save_dir {folder.parent}: {place} is no folder that can be written to; name another.")
    if place == folder and any(folder.iterdir()) and not overwrite:
        raise SetupError(f"--evaluate: {folder} holds results already; give --overwrite to replace them, or another --save_dir.")


def check_given(given, saved, path):
    """Refuse what contradicts the checkpoint, and what has no say in an evaluation."""
    if "calibrate" in given and {"temperature", "threshold"} & given.keys():
        raise SetupError("--calibrate: finds temperature and threshold itself; leave --temperature and --threshold out.")
    flags = {field.name: flag_of(field) for field in dc.fields(TrainingConfig)}
    for key in given.keys() - set(OF_THE_PATCHES) - {key for key in OF_THE_NETWORK if saved.get(key) is None}:
        if key not in saved or key == "resume":
            raise SetupError(f"{flags.get(key, '--' + key)}: has no say in --evaluate; leave it out.")
        theirs = 2 if key == "num_classes" and saved.get("mode") == "binary" else saved[key]
        if given[key] not in (saved[key], theirs):
            raise SetupError(f"{flags.get(key, '--' + key)} {given[key]}: {path} was trained with {saved[key]}; leave the flag out, or name another checkpoint.")


def config_of(given, saved, path):
    """A TrainingConfig that describes the patches: what was typed, then what the checkpoint was trained with.

    Patches are seen whole, whatever their size, and packed nowhere: the place of a pack is that of training.
    """
    mine = {key: given[key] for key in OF_THE_PATCHES if key in given and key in TrainingConfig.__dataclass_fields__}
    kept = {key: saved[key] for key in ("dataset_root", "patch_subdir", "label_map", "label_nodata", "bands", "batch_size", "use_amp") if saved.get(key) is not None}
    told = kept | mine
    if "dataset_root" not in told:
        raise SetupError(f"--dataset_root: {path} does not say on what it was trained; name the folder of the patches.")
    return TrainingConfig(**{"model_name": "unet", "cache": "none", "overwrite": False, "patch_size": 1} | told)


def open_split(trained, split, config, flag="--split"):
    """The pairs of a split, and their source.Source, held against what the network knows; `flag` asked for them."""
    config.mode, config.num_classes = ("binary", 1) if trained.binary else ("multiclass", len(trained.class_names))
    config.class_names = trained.class_names
    root = patchset.find_root(config.dataset_root, config.patch_subdir, split, flag)
    metadata = patchset.load_metadata(root, required=False)
    looking.check_metadata(metadata, root / "patch_metadata.json")
    if not config.label_map:
        check_classes(metadata.get("class_names") or [], trained.class_names, root)
    wanted, there = trained.input["names"] if trained.input else [], (metadata.get("bands") or {}).get("names") or []
    if wanted and all(speaks(name) and there.count(name) == 1 for name in wanted):
        config.bands = wanted
    splits, problems = patchset.match_splits(root, [split])
    if not splits[split]:
        looking.refuse(problems, config)
        raise SetupError(f"{flag}: {root / split} holds no patches; put some there, or name another --dataset_root.")
    source = sources.open_source(config, root, splits[split], problems, bar)
    mine = source.bands.names
    if len(mine) != trained.in_channels:
        raise SetupError(f"--dataset_root {root}: its patches have {len(mine)} bands ({listing(mine, 13)}), the network takes {trained.in_channels} "
                         f"({listing(network.bands_of(trained), 13)}); extract them with the same bands.")
    if trained.input and mine != trained.input["names"]:
        print(f"warning: {root}: bands {listing(mine, 13)} are taken by place for {listing(trained.input['names'], 13)}; if they are other bands, the scores are wrong")
    if not sum(counts.sum() for counts in source.survey.class_pixels.values()):
        raise SetupError(f"{flag}: not one pixel of the patches in {root / split} is labelled; check --label_map and the label files.")
    return splits[split], source


def check_classes(named, known, root):
    """Raises SetupError when a class of the patches has another number in the network; says so when it merely has another name.

    Args:
        named: of the patches, by number; [] where nothing tells. known: of the network.
    """
    if len(named) > len(known) or any(name in known and known[i] != name for i, name in enumerate(named)):
        remedy = " ".join(f"{i}={known.index(name) if name in known else 'ignore'}" for i, name in enumerate(named))
        raise SetupError(f"--dataset_root {root}: its classes are {listing(named, 20)}, those of the network {listing(known, 20)}; give --label_map {remedy}.")
    if named and named != known[: len(named)]:
        print(f"warning: {root}: classes {listing(named, 20)} are taken by number for {listing(known, 20)}; if they are other classes, the scores are wrong")


def recalibrate(paths, config, options, stop):
    """Fit the temperature and threshold of every checkpoint on validation patches; when all are found, store them."""
    between, found = lambda: stop.leave_if_asked("stopped; the checkpoints are as they were"), {}
    for path in paths:
        one = network.load(path, options, unsaid)
        pairs, source = open_split(one, "validation", config, "--calibrate")
        check_unseen(checkpoint.load(path), path, learned(one, pairs, source))
        found[path] = calibrate(*forward_of(one, pairs, source, config), len(pairs), len(one.class_names), "validation", between)
    for path, calibration in found.items():
        checkpoint.save(path, **{key: value for key, value in checkpoint.load(path).items() if key != "format"} | {"calibration": calibration})
        print(f"{calibration_line(calibration)}, stored in {path}")


def learned(trained, pairs, source):
    """Those of the patches that a member of `trained` was trained on."""
    known = set().union(*(one.trained_on for one in trained.members))
    return known & set(files.prints(files.lines_of(pairs, source.survey.class_pixels)))


def check_unseen(saved, path, seen):
    """Raises SetupError for a network that was trained on validation patches (`seen` are those), or cannot keep a calibration."""
    if not saved["normalization"]:
        raise SetupError(f"--calibrate: {path} is of the older system and holds no statistics to be kept with; train it anew.")
    if seen:
        raise SetupError(f"--calibrate: {path} was trained on patches of validation/ too, by which it would look surer than it may be; cross-validate with --calibrate.")


def forward_of(one, pairs, source, config):
    """What gives a network's logits, and the batches it takes."""
    def forward(image):
        with autocast(one.device, one.amp_dtype):
            return one.net(image.to(memory_format=torch.channels_last))

    def batches():
        for pixels, holes, target, indices in patches_of(one, pairs, source, config.batch_size, 0).raw():
            yield one.normalised(pixels, holes, pixels.shape[2:]), target, indices

    return forward, batches()


# ---------------------------------------------------------------- judging


def judged(trained, split, pairs, source, config, folder, between):
    """Judge, write, and say what was found. Returns the scores."""
    names = trained.class_names
    ground = Ground(pairs, source, names)
    print(f"patches   {split} {len(pairs)}; {source.root / split}")
    known = len(learned(trained, pairs, source))
    if known:
        print(f"warning: --split {split}: {known} of its {len(pairs)} patches were trained on; the scores are too good to be believed")
    tally = assess(trained, pairs, source, config.batch_size, worker_count(config, pairs, packed=True), between, ground)
    scores = tally.scores(names, intervals=True) | {"areas": ground.table(tally.confusion.matrix)}
    bad = patchscores.worst(tally.margins.cpu(), WORST)
    panel = Panel([pairs[i] for i in bad], range(len(bad)), source)
    if bad:
        assess(trained, [pairs[i] for i in bad], source, config.batch_size, 0, between, panel)
    text = f"{listing([one.path for one in trained.members], 5)} on {split}, {len(pairs)} patches\n{score_table(scores)}\n{area_table(scores['areas'])}\n"
    print(text, end="")
    files.write_json(folder / "metrics.json", {"checkpoints": [one.path for one in trained.members], "split": split, "dataset_root": str(source.root), "patches": len(pairs),
                     "temperature": [one.temperature for one in trained.members], "threshold": trained.threshold if trained.binary else None, "scores": scores})
    files.write_csv(folder / "classes.csv", class_rows(scores))
    patchscores.write(folder / "patches.csv", pairs, tally.margins.cpu(), names)
    files.write_text(folder / "summary.txt", text)
    title = f"{Path(trained.path).stem}{f' and {len(trained.others)} more' if trained.others else ''} on {split}"
    scoreplots.draw_confusion(scores["confusion_matrix"], names, folder / "confusion_matrix.png", title)
    scoreplots.draw_reliability(scores["reliability"], scores["ece"], folder / "reliability.png", title)
    files.remove(folder / "worst_patches.png")
    if bad:
        right = patchscores.accuracy(tally.margins.cpu())
        scoreplots.draw_panel(panel.shown({place: f"{right[i]:.0%} right" for place, i in enumerate(bad)}), names, folder / "worst_patches.png", f"{title}: the worst patches")
    print(f"wrote     {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if not path.name.startswith('.')))}")
    return scores


def class_rows(scores):
    """A row per class with all its scores and limits, and one for all together."""
    limits = lambda key: dict(zip((f"{key.partition('_')[0]}_low", f"{key.partition('_')[0]}_high"), scores["intervals"][key]))
    rows = []
    for name, part in scores["per_class"].items():
        row = {"class": name, **part, **{key: value for score in ("iou", "f1", "precision", "recall") for key, value in limits(f"{score}_{name}").items()}}
        rows.append(row | {f"area_{key}": value for key, value in scores["areas"]["per_class"][name].items()})
    low, high = scores["intervals"]["mean_iou"]
    whole = {"iou": scores["mean_iou"], "f1": scores["mean_f1"], "precision": scores["mean_precision"], "recall": scores["mean_recall"], "iou_low": low, "iou_high": high,
             **{key: scores[key] for key in ("accuracy", "kappa", "boundary_iou")}, "support": sum(row["support"] for row in rows)}
    return [*rows, {"class": "all (means; accuracy and kappa of all pixels)", **whole}]
