"""What a run says while it works: bars and lines."""

import sys
import time

from tqdm import tqdm

from eoseg.errors import listing


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


def epoch_line(row, epochs, best):
    """One line an epoch: what the CSV holds of it, in short."""
    return (f"epoch {row['epoch']:>3}/{epochs}  train_loss {row['train_loss']:.4f}  val_loss {row['val_loss']:.4f}  "
            f"val_iou {row['val_iou']:.4f}  val_f1 {row['val_f1']:.4f}  accuracy {row['val_accuracy']:.4f}  "
            f"lr {row['learning_rate']:.2e}  {row['epoch_time']:.1f} s" + ("  *" if best else ""))


def score_table(scores):
    """A class per line: IoU, F1, precision, recall, pixels; and the mean over the classes present."""
    lines = [f"  {'class':<16}{'IoU':>8}{'F1':>8}{'precision':>11}{'recall':>8}{'pixels':>12}"]
    for name, part in scores["per_class"].items():
        lines.append(f"  {name:<16}{part['iou']:>8.3f}{part['f1']:>8.3f}{part['precision']:>11.3f}{part['recall']:>8.3f}{part['support']:>12,}")
    lines.append(f"  {'mean':<16}{scores['mean_iou']:>8.3f}{scores['mean_f1']:>8.3f}   accuracy {scores['accuracy']:.3f}")
    if scores["absent"]:
        lines.append(f"  not in the truth, left out of the mean: {', '.join(scores['absent'])}")
    return "\n".join(lines)


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
