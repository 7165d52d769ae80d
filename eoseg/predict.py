"""A scene of any height becomes a map: rows are read ahead, tiles predicted and blended, finished rows written and forgotten.

Memory depends on the tile, the classes and the scene's width, never on its height.
"""

import dataclasses as dc
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from eoseg import files, plots, raster
from eoseg.deciding import decide
from eoseg.errors import SetupError, listing
from eoseg.georef import pixel_size
from eoseg.mapfile import SETTINGS, MapFile, check_settings, in_the_making
from eoseg.network import averaged, network_size, scene_bands
from eoseg.tiles import Window, blend_weights, starts


def predict(network, path, output, options, say=print, bar=lambda items, **settings: items):
    """Map one scene.

    Args:
        network: network.Network. path: the scene. output: where the map goes; its folder is made. options: PredictionConfig.
        say: takes a line of report. bar: wraps an iterable to show progress.
    Returns:
        the summary, as `MapFile.summary`; None when a map to resume was finished already.
    Raises:
        SetupError: the scene does not fit the network, or the output is there already.
    """
    output = Path(output)
    if network.binary and options.background_value:
        network = network._replace(class_names=network.class_names[::-1])  # a number keeps its meaning: names and colours swap with it
    with files.lock(output.parent, f".{output.name}.lock"):
        refuse_existing(output, path, options)
        check_options(network, options)
        bands = scene_bands(network, path, say)
        options = as_trained(network, options, path, say)
        with raster.Scene(path, bands, options.input_nodata, options.require_all_bands) as scene:
            compare_pixel_size(network, path, say)
            settings = settings_of(network, path, options)
            if options.resume and is_finished(output, settings) and not (options.save_patches and not beside(output, "_patches").exists()):
                return draw(scene, network, output, options) if not beside(output, "_quicklook.png").exists() else None
            plan = Plan(scene.height, scene.width, network, options)
            say(f"scene     {path}: {scene.height} x {scene.width} pixels, {len(plan.rows) * len(plan.cols)} tiles of {plan.height} x {plan.width}")
            canvas = open_map(network, scene, output, settings, options)
            if canvas.row:
                say(f"resumed   after row {canvas.row}")
            fill(canvas, network, scene, plan, options, output, bar)
        canvas.finish()
        summary = canvas.summary()
        draw(scene, network, output, options)
    return summary


def draw(scene, network, output, options):
    """The picture of scene and map, when it is asked for."""
    if options.quicklook:
        names = network.input["names"] if network.input else scene.names
        plots.draw_quicklook(scene, names, output, network.class_names, beside(output, "_quicklook.png"))


def as_trained(network, options, path, say):
    """The options with what the training patches took for data, where the flags and the scene do not say, and the threshold in use."""
    about = network.input or {}
    nodata = options.input_nodata
    if nodata is None and about.get("input_nodata") is not None and raster.header(path).nodata is None:
        nodata = about["input_nodata"]
        say(f"note: {path}: {nodata:g} is taken as nodata, as in training (--input_nodata)")
    return dc.replace(options, input_nodata=nodata, require_all_bands=options.require_all_bands or bool(about.get("require_all_bands")),
                      threshold=network.threshold if options.threshold is None else options.threshold)


def beside(output, ending):
    """`map_confidence.tif` beside `map.tif`."""
    return output.with_name(output.stem + ending)


def refuse_existing(output, path, options):
    """Inputs are never overwritten, existing maps and what lies beside them only when told."""
    beside_it = {"_confidence.tif": options.save_confidence, "_patches": options.save_patches, "_quicklook.png": options.quicklook}
    there = [file for file in (output, *(beside(output, ending) for ending, wanted in beside_it.items() if wanted)) if file.exists()]
    for file in there:
        if Path(path).exists() and file.samefile(path):
            raise SetupError(f"--output {output}: {file} is the input itself; name another file.")
    if there and not (options.overwrite or options.resume):
        raise SetupError(f"--output {output}: {listing(file.name for file in there)} there already; "
                         "give --overwrite to replace it, --resume to go on with a map that was cut off, or another name.")


def settings_of(network, path, options):
    """What decides a map's pixels; a run that is resumed must share it."""
    source = Path(path)
    cooled = [one.temperature for one in network.members]
    return {
        "model": " ".join(hashlib.sha256(Path(one.path).read_bytes()).hexdigest() for one in network.members),
        **({"temperature": cooled} if set(cooled) != {1.0} else {}),
        "scene": [source.name, source.stat().st_size] if source.exists() else [str(path)],
        "scene_time": source.stat().st_mtime if source.exists() else None,
        **{key: getattr(options, key) for key in ("patch_size", "overlap", "threshold", "background_value", "input_nodata", "require_all_bands",
                                                  "output_nodata", "save_confidence", "use_amp", "normalization_percentile", "normalize_per_channel")},
    }


def is_finished(output, settings):
    """Is there a whole map of these settings at `output`, and none in the making?

    Raises:
        SetupError: there is a whole map, of other settings.
    """
    if not output.exists() or in_the_making(output):
        return False
    check_settings(output, {key: value for key, value in settings.items() if key != "scene_time"}, raster.tags(output).get(SETTINGS, "{}"))
    return True


def check_options(network, options):
    """Raises SetupError for options that contradict the network."""
    if not network.binary and (options.threshold not in (None, 0.5) or options.background_value):
        raise SetupError(f"--threshold, --background_value: {network.path} has {len(network.class_names)} classes; they are for binary networks, leave them out.")
    if options.output_nodata < len(network.class_names):
        name, free = network.class_names[options.output_nodata], max(255, len(network.class_names))
        raise SetupError(f"--output_nodata {options.output_nodata}: is a class ({name}); give {free}.")


def compare_pixel_size(network, path, say):
    """A network knows the world at one scale: another pixel size is said."""
    trained, here = network.pixel_size, pixel_size(raster.header(path))
    if trained and here and trained[2] == here[2] and abs(here[0] / trained[0] - 1) > 0.05:
        say(f"warning: {path}: pixels of {here[0]:g} {here[2]}; the network was trained on {trained[0]:g} {trained[2]}: expect a poorer map, or resample the scene")


class Plan:
    """Where the tiles lie and how they blend. A tile larger than the scene shrinks to what the network can take."""

    def __init__(self, height, width, network, options):
        fit = lambda length: options.patch_size if length >= options.patch_size else min(options.patch_size, network_size(network, length))
        self.height, self.width = fit(height), fit(width)
        self.rows = starts(height, self.height, min(options.overlap, self.height - 1))
        self.cols = starts(width, self.width, min(options.overlap, self.width - 1))
        self.row_weights = blend_weights(height, self.height, min(options.overlap, self.height - 1))
        self.col_weights = blend_weights(width, self.width, min(options.overlap, self.width - 1))
        self.input = network_size(network, self.height), network_size(network, self.width)

    def finished(self, index, height):
        """How many rows at the top of block `index` no later tile touches."""
        return (self.rows[index + 1] if index + 1 < len(self.rows) else height) - self.rows[index]


def open_map(network, scene, output, settings, options):
    """The map in the making."""
    look = {"height": scene.height, "width": scene.width, "crs": scene.crs, "transform": scene.transform}
    confidence = beside(output, "_confidence.tif") if options.save_confidence else None
    if options.save_patches and not options.resume:
        for old in beside(output, "_patches").glob("patch_*.tif"):  # of other tiles, perhaps
            old.unlink()
    return MapFile(output, look, network.class_names, plots.colours(network.class_names), options.output_nodata, confidence, settings, options.resume)


class RowReader:
    """Reads block rows from top to bottom; the rows that neighbours share are decoded once."""

    def __init__(self, scene, height):
        self.scene, self.height, self.start, self.rows = scene, height, 0, None

    def read(self, start):
        """pixels, missing and valid of the rows from `start`, as `Scene.read`; the last ones may be fewer."""
        end = min(start + self.height, self.scene.height)
        old, begin = [], start
        if self.rows is not None and self.start <= start < self.start + self.rows[2].shape[0]:
            old, begin = [part[..., start - self.start :, :] for part in self.rows], self.start + self.rows[2].shape[0]
        new = self.scene.read(Window(begin, 0, end - begin, self.scene.width)) if begin < end else []
        both = [np.concatenate(pair, axis=-2) for pair in zip(old, new)] if old and new else list(old or new)
        self.start, self.rows = start, both
        return both


def fill(canvas, network, scene, plan, options, output, bar):
    """Predict block row after block row; a reader thread stays one ahead. The first error in either ends the run."""
    reader = RowReader(scene, plan.height)
    count = 1 if network.binary else len(network.class_names)
    sums = torch.zeros(count, plan.height, max(scene.width, plan.width), device=network.device)
    todo = [i for i, start in enumerate(plan.rows) if start + plan.height > canvas.row] if canvas.row < scene.height else []
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(reader.read, plan.rows[todo[0]]) if todo else None
        for place, index in enumerate(bar(todo, desc="predicting", unit="row")):
            pixels, missing, valid = ahead.result()
            ahead = pool.submit(reader.read, plan.rows[todo[place + 1]]) if place + 1 < len(todo) else None
            add_row(sums, network, plan, index, pixels, missing, valid, options, output, scene)
            done = plan.finished(index, scene.height)
            classes, confidence = classified(sums[:, :done, : scene.width], options)
            canvas.append(plan.rows[index], classes, confidence, valid[:done])
            sums[:, : plan.height - done] = sums[:, done:].clone()
            sums[:, plan.height - done :] = 0


def add_row(sums, network, plan, index, pixels, missing, valid, options, output, scene):
    """Predict the tiles of one block row and add their weighted probabilities to `sums` (C, tile height, scene width)."""
    batch = options.batch_size or (1 if network.device.type == "cpu" else 8)
    row_weight = torch.from_numpy(plan.row_weights[index]).to(network.device)[:, None]
    cols = [j for j, col in enumerate(plan.cols) if valid[:, col : col + plan.width].any()]  # tiles without a valid pixel never run
    for first in range(0, len(cols), batch):
        some = cols[first : first + batch]
        tiles = lambda one: torch.from_numpy(np.stack([tile(one, plan, plan.cols[j], pixels, missing, valid) for j in some]))
        found = averaged([one.probabilities(tiles(one)) for one in network.members])[:, :, : plan.height, : plan.width]
        if not torch.isfinite(found).all():
            raise SetupError(f"{network.path}: the network gives values that are not finite at row {plan.rows[index]}; check the checkpoint, or leave --use_amp out.")
        for j, probability in zip(some, found):
            weight = row_weight * torch.from_numpy(plan.col_weights[j]).to(network.device)
            sums[:, :, plan.cols[j] : plan.cols[j] + plan.width].addcmul_(probability, weight)
            if options.save_patches:
                save_tile(probability, network, plan, index, j, valid, options, output, scene)


def tile(network, plan, col, pixels, missing, valid):
    """One normalised tile (B, H, W) float32: mirrored where it leaves the scene."""
    part = slice(col, col + plan.width)
    tile = network.normalizer(pixels[..., part], missing[..., part] | ~valid[:, part])
    rows, cols = plan.input[0] - tile.shape[1], plan.input[1] - tile.shape[2]
    return np.pad(tile, ((0, 0), (0, rows), (0, cols)), mode="symmetric") if rows or cols else tile


def classified(probability, options):
    """Classes (h, W) and the probability of each (h, W), as arrays, from probabilities (C, h, W)."""
    classes, confidence = (part.cpu().numpy() for part in decide(probability, options.threshold))
    return classes ^ 1 if options.background_value else classes, confidence


def save_tile(probability, network, plan, index, j, valid, options, output, scene):
    """One tile's own classes, before blending."""
    row, col = plan.rows[index], plan.cols[j]
    window = Window(row, col, plan.height, plan.width).clipped(scene.height, scene.width)
    classes, _ = classified(probability[:, : window.height, : window.width], options)
    known = valid[: window.height, col : col + window.width]
    tile = np.where(known, classes, options.output_nodata).astype(np.uint8 if options.output_nodata <= 255 else np.uint16)
    path = beside(output, "_patches") / f"patch_{row}_{col}.tif"
    files.write_bytes(path, raster.patch_bytes(tile[None], scene.placed(window), scene.crs, options.output_nodata, ["class"]))
