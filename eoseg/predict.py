"""A scene of any size becomes a map: rows are read ahead, tiles predicted and blended, finished rows written behind and forgotten.

Memory depends on the tile, the classes and the scene's width, never on its height; a scene too wide for it is cut into strips.
"""

import hashlib
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from eoseg import budget, files, memory, plots, raster
from eoseg.blending import Blending, arrived
from eoseg.deciding import decide
from eoseg.errors import SetupError, listing
from eoseg.fitting import open_scene
from eoseg.labels import open_area
from eoseg.mapfile import SETTINGS, MapFile, check_settings, in_the_making, parts_of, strips_begun
from eoseg.network import network_size
from eoseg.parallel import Behind, ahead
from eoseg.quickening import quicken
from eoseg.reading import RowReader
from eoseg.tiles import Window
from eoseg.tiling import Axis, strips_of


def predict(network, path, output, options, say=print, bar=lambda items, **settings: items):
    """Map one scene.

    Args:
        network: network.Network; it is made quicker in place. path: the scene. output: where the map goes; its folder is made.
        options: PredictionConfig. say: takes a line of report. bar: wraps an iterable to show progress.
    Returns:
        the summary, as `MapFile.summary`; None when a map to resume was finished already, and with dry_run.
    Raises:
        SetupError: the scene does not fit the network, the memory or the disk; or the output is there already.
    """
    output = Path(output)
    if network.binary and options.background_value:
        network = network._replace(class_names=network.class_names[::-1])  # a number keeps its meaning: names and colours swap with it
    if options.dry_run:
        return plan(network, path, output, options, say)
    with files.lock(output.parent, f".{output.name}.lock"):
        refuse_existing(output, path, options)
        job = Job(network, path, output, options, say)
        with job.scene:
            if options.resume and is_finished(output, job.settings) and not (options.save_patches and not beside(output, "_patches").exists()):
                return job.draw() if not beside(output, "_quicklook.png").exists() else None
            canvas = job.open_map(job.costs(strips_begun(output) if options.resume else None))
            fill(canvas, job, bar)
        canvas.finish()
        summary = canvas.summary()
        job.draw()
    return summary


def plan(network, path, output, options, say):
    """Say what a map will cost, and what will keep it from being made; nothing is written."""
    job = Job(network, path, output, options, say)
    with job.scene:
        for line in budget.report(output, job.scene, job.rows, job.cols, job.area, job.options, job.costs()):
            say(line)
        refuse_existing(output, path, options)
        budget.check_disk(output, job.scene.height * job.scene.width, job.options)
        say("dry run   nothing was written")


class Job:
    """One scene to be mapped by one network: all that is settled before the first row is read."""

    def __init__(self, network, path, output, options, say):
        check_options(network, options)
        self.network, self.path, self.output, self.say = network, path, output, say
        self.scene, self.options = open_scene(network, path, options, say)
        self.area = open_area(self.scene, self.options, say)
        quicken(network, options.compile, say)
        fit = lambda length: network_size(network, length)
        self.rows, self.cols = Axis(self.scene.height, options, fit), Axis(self.scene.width, options, fit)
        self.settings = settings_of(network, path, self.scene, self.options)
        say(f"scene     {path}: {self.scene.height} x {self.scene.width} pixels, {len(self.rows.starts) * len(self.cols.starts):,} tiles of {self.rows.size} x {self.cols.size}")

    def costs(self, strips=None):
        """budget.Costs; with `strips` of a run that is gone on with."""
        costs = budget.costs_of(self.network, self.scene, self.rows, self.cols, self.options, strips)
        if costs.memory > costs.limit:
            self.say(f"note: --max_memory {memory.shown(costs.limit)}: the map was begun in {strips} strip{'s' * (strips > 1)}, which take about {memory.shown(costs.memory)}")
        elif costs.strips > 1 and not self.options.dry_run:
            self.say(f"memory    {costs.strips} strips of columns, one after the other: about {memory.shown(costs.memory)} of {memory.shown(costs.limit)}")
        return costs

    def open_map(self, costs):
        """The map in the making."""
        scene, options, output, names = self.scene, self.options, self.output, self.network.class_names
        look = {"height": scene.height, "width": scene.width, "crs": scene.crs, "transform": scene.transform}
        confidence = beside(output, "_confidence.tif") if options.save_confidence else None
        held = sum(getattr(part.stat(), "st_blocks", 0) * 512 for part in parts_of(output) if part.exists())
        budget.check_disk(output, scene.height * scene.width, options, held)
        if options.save_patches and not options.resume:
            for old in beside(output, "_patches").glob("patch_*.tif"):  # of other tiles, perhaps
                old.unlink()
        canvas = MapFile(output, look, names, plots.colours(names), options.output_nodata, confidence, self.settings, costs.strips, options.resume)
        if canvas.strip or canvas.row:
            self.say(f"resumed   after row {canvas.row}" + (f" of strip {canvas.strip + 1} of {canvas.strips}" if canvas.strips > 1 else ""))
        return canvas

    def draw(self):
        """The picture of scene and map, when it is asked for."""
        if self.options.quicklook:
            names = self.network.input["names"] if self.network.input else self.scene.names
            plots.draw_quicklook(self.scene, names, self.output, self.network.class_names, beside(self.output, "_quicklook.png"))


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


def settings_of(network, path, scene, options):
    """What decides a map's pixels; a run that is resumed must share it."""
    source, area = Path(path), Path(options.aoi) if options.aoi else None
    cooled = [one.temperature for one in network.members]
    return {
        "model": " ".join(hashlib.sha256(Path(one.path).read_bytes()).hexdigest() for one in network.members),
        **({"temperature": cooled} if set(cooled) != {1.0} else {}),
        "scene": [source.name, source.stat().st_size] if source.exists() else [str(path)],
        "scene_time": source.stat().st_mtime if source.exists() else None,
        "bands": scene.bands,
        "aoi": [area.name, area.stat().st_size, options.vector_crs] if area and area.exists() else options.aoi,
        **{key: getattr(options, key) for key in ("patch_size", "overlap", "blend", "threshold", "background_value", "input_nodata", "require_all_bands",
                                                  "resample_to_training", "output_nodata", "save_confidence", "use_amp", "normalization_percentile", "normalize_per_channel")},
    }


def is_finished(output, settings):
    """Is there a whole map of these settings at `output`, and none in the making?

    Raises:
        SetupError: there is a whole map, of other settings.
    """
    if not output.exists() or in_the_making(output):
        return False
    check_settings(output, {key: value for key, value in settings.items() if key != "scene_time"}, json.loads(raster.tags(output).get(SETTINGS, "{}")))
    return True


def check_options(network, options):
    """Raises SetupError for options that contradict the network."""
    if not network.binary and (options.threshold not in (None, 0.5) or options.background_value):
        raise SetupError(f"--threshold, --background_value: {network.path} has {len(network.class_names)} classes; they are for binary networks, leave them out.")
    if options.output_nodata < len(network.class_names):
        name, free = network.class_names[options.output_nodata], max(255, len(network.class_names))
        raise SetupError(f"--output_nodata {options.output_nodata}: is a class ({name}); give {free}.")


def jobs_of(canvas, rows, strips):
    """What is left to do: [(strip, index of a block row)], from the first block row that reaches beyond what is finished."""
    found = []
    for number in range(canvas.strip, canvas.strips):
        done = canvas.row if number == canvas.strip else 0
        found += [(strips[number], index) for index, start in enumerate(rows.starts) if start + rows.size > done]
    return found


def spans_of(jobs, rows):
    """The Window that each job has to read: its block row, but for what the one before it has read."""
    read = {}
    for strip, index in jobs:
        first, after = read.get(strip, rows.starts[index]), rows.starts[index] + rows.size
        read[strip] = after
        yield Window(first, strip.begin, after - first, strip.end - strip.begin)


def fill(canvas, job, bar):
    """Predict what is left to do, and show how far it has come."""
    strips = strips_of(job.cols, canvas.strips)
    jobs = jobs_of(canvas, job.rows, strips)
    for _ in bar(tile_by_tile(canvas, job, strips, jobs), desc="predicting", total=sum(len(strip.tiles) for strip, _ in jobs), unit="tile"):
        pass


@torch.inference_mode()
def tile_by_tile(canvas, job, strips, jobs):
    """Predict block row after block row. A reader stays ahead, a writer comes behind; the first error in either ends the run at once.

    Yields:
        once for each tile, run or left out.
    """
    reader, written = RowReader(job.scene, job.rows.size, job.area), (canvas.strip, canvas.row)
    blending, batch = None, budget.batch_of(job.network, job.options)
    with Behind(most=2) as behind, closing(ahead(reader.read(spans_of(jobs, job.rows)))) as coming:
        def watch():
            reader.check()
            behind.check()

        for strip, index in jobs:
            if blending is None or blending.strip is not strip:
                batch, blending = blending.batch if blending else batch, None  # its memory first
                blending = Blending(job.network, job.rows, job.cols, strip, job.options, batch, job.say)
            blending.take(next(coming))
            for j, probability in blending.add(index, watch):
                if probability is not None and job.options.save_patches:
                    save_tile(probability, blending, index, j, job)
                yield
            first, after = job.rows.starts[index], job.rows.finished(index)
            if (strips.index(strip), after) > written:
                behind(put, canvas, strip, first, blending.finished(after - first), job)
        behind.wait()


def put(canvas, strip, row, finished, job):
    """Wait for finished rows to arrive from the device, and write them."""
    finished = arrived(finished)
    if not finished.finite:
        raise SetupError(f"{job.network.path}: the network gives values that are not finite at row {row}; check the checkpoint, or leave --use_amp out.")
    canvas.write(strip.left, row, finished)


def save_tile(probability, blending, index, j, job):
    """One tile's own classes, before blending."""
    row, col, options = job.rows.starts[index], job.cols.starts[j], job.options
    classes, _ = decide(probability, options.threshold)
    classes = (classes ^ 1 if options.background_value else classes).cpu().numpy()
    known = blending.valid[:, col - blending.strip.begin :][:, : job.cols.size]
    tile = np.where(known, classes, options.output_nodata).astype(np.uint8 if options.output_nodata <= 255 else np.uint16)
    path, window = beside(job.output, "_patches") / f"patch_{row}_{col}.tif", Window(row, col, *tile.shape)
    files.write_bytes(path, raster.patch_bytes(tile[None], job.scene.placed(window), job.scene.crs, options.output_nodata, ["class"]))
