"""What a run says while it works: bars and lines."""

import sys
import time

from tqdm import tqdm

from eoseg.errors import listing
from eoseg.scoring import OF_ALL


def bar(items, desc="", total=None, unit="it"):
    """A progress bar on stderr; where that is no terminal, one line a minute."""
    return tqdm(items, desc, total, leave=False, unit=unit) if sys.stderr.isatty() else lines(items, desc, total, unit)


def lines(items, desc, total, unit="it", pause=60):
    """Pass `items` on, and say after each `pause` seconds how many are done, how fast, and how long the rest will take."""
    total, begun = len(items) if total is None else total, time.monotonic()
    said = begun
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - said >= pause:
            said, rate = now, done / (now - begun)
            left = tqdm.format_interval(round((total - done) / rate)) if rate else "?"
            print(f"{desc}: {done} of {total}, {rate:.3g} {unit}/s, {left} left", file=sys.stderr, flush=True)
        yield item


def epoch_row(epoch, train_loss, val_loss, rate, seconds, learned, scores, per_class):
    """A row of the log: the columns that every log has had come first.

    Args:
        rate: of learning. learned: scores of the training patches as the network saw them, changed by augmentation and dropout.
        scores: of validation. per_class: the scores of each class too.
    """
    row = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss, "val_iou": scores["mean_iou"], "val_f1": scores["mean_f1"],
           "val_accuracy": scores["accuracy"], "learning_rate": rate, "epoch_time": seconds}
    if per_class:
        row |= {f"iou_{name}": part["iou"] for name, part in scores["per_class"].items()}
    for split, found in (("train", learned), ("val", scores)):
        row |= {f"{split}_{key.removeprefix('mean_')}": found[key] for key in OF_ALL}
    row |= {"val_boundary_iou": scores["boundary_iou"], "val_ece": scores["ece"]}
    for prefix, found in (("train_", learned), ("", scores)) if per_class else ():
        row |= {f"{prefix}{key}_{name}": value for name, part in found["per_class"].items() for key, value in part.items() if key != "support"}
    return row


def epoch_line(row, epochs, best, two=None):
    """One line an epoch: what the CSV holds of it, in short.

    Args:
        two: IoU of each of two classes, by name: the mean of both says little of the one that is looked for.
    """
    of_one = f" ({list(two)[1]} {list(two.values())[1]:.4f})" if two else ""
    return (f"epoch {row['epoch']:>3}/{epochs}  train_loss {row['train_loss']:.4f}  val_loss {row['val_loss']:.4f}  "
            f"val_iou {row['val_iou']:.4f}{of_one}  val_f1 {row['val_f1']:.4f}  accuracy {row['val_accuracy']:.4f}  "
            f"lr {row['learning_rate']:.2e}  {row['epoch_time']:.1f} s" + ("  *" if best else ""))


def score_table(scores):
    """A class per line: IoU, F1, precision, recall, pixels; the mean over the classes present; and what is known beyond, with intervals."""
    lines = [f"  {'class':<16}{'IoU':>8}{'F1':>8}{'precision':>11}{'recall':>8}{'pixels':>12}"]
    for name, part in scores["per_class"].items():
        lines.append(f"  {name:<16}{part['iou']:>8.3f}{part['f1']:>8.3f}{part['precision']:>11.3f}{part['recall']:>8.3f}{part['support']:>12,}")
    lines.append(f"  {'mean':<16}{scores['mean_iou']:>8.3f}{scores['mean_f1']:>8.3f}{scores['mean_precision']:>11.3f}{scores['mean_recall']:>8.3f}")
    more = [("accuracy", "accuracy"), ("kappa", "kappa"), ("boundary IoU", "boundary_iou"), ("calibration error", "ece")]
    lines.append("  " + ", ".join(f"{word} {scores[key]:.3f}" for word, key in more if key in scores))
    if scores.get("intervals"):
        told = ", ".join(f"{word} {low:.3f} to {high:.3f}" for word, key in (("mean IoU", "mean_iou"), ("accuracy", "accuracy")) for low, high in [scores["intervals"][key]])
        lines.append(f"  95 % intervals over {scores['patches']} patches: {told}" if scores["patches"] > 1 else "  one labelled patch: no intervals")
    if scores["absent"]:
        lines.append(f"  not in the truth, left out of the mean: {', '.join(scores['absent'])}")
    return "\n".join(lines)


def calibration_line(found):
    """What --calibrate found, on one line."""
    text = f"calibrated temperature {found['temperature']:.3f}: calibration error {found['ece'][0]:.3f} -> {found['ece'][1]:.3f}"
    if "threshold" in found:
        text += f"; threshold {found['threshold']:.3f}: IoU {found['iou'][0]:.3f} -> {found['iou'][1]:.3f}"
    return f"{text} ({found['pixels']:,} pixels of {found['split']})"


def describe(run, splits, source, kind, precision, weight, said):
    """Print what a run is, before it starts: network, what was said on the way, patches, bands, classes."""
    config, survey = run.config, source.survey
    count = sum(parameter.numel() for parameter in run.net.parameters()) / 1e6
    print(f"network   {config.model_name}{config.encoder_shown}, {count:.1f} M parameters, on {run.device}, {precision}")
    for line in said:
        print(line)
    sizes = ", ".join(f"{rows} x {cols}" for rows, cols in survey.sizes)
    changed = f", cut or padded to {config.patch_size}" if config.patch_size and set(survey.sizes) != {(config.patch_size,) * 2} else ""
    print(f"patches   {', '.join(f'{split} {len(part)}' for split, part in splits.items())}; {sizes} pixels{changed}, {survey.dtype}")
    print(f"bands     {listing(source.bands.names, 13)}; normalised by {kind}, fitted on the training patches")
    print(f"classes   {listing(run.names, 20)}" + (f"; weights {' '.join(f'{w:.2f}' for w in weight.tolist())}" if weight is not None else ""))
