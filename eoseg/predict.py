"""A scene of any size becomes a map: rows are read ahead, tiles predicted and blended, finished rows written behind and forgotten.

Memory depends on the tile, the classes and the scene's width, never on its height; a scene too wide for it is cut into strips.
"""

from pathlib import Path

import numpy as np
import torch

from eoseg import budget, files, patchfile
from eoseg.blending import Blending, arrived
from eoseg.deciding import decide
from eoseg.errors import SetupError
from eoseg.mapfile import beside
from eoseg.mapjob import Job
from eoseg.parallel import Behind
from eoseg.quickening import quicken
from eoseg.tiles import Window


def predict(network, path, output, options, say=print, bar=lambda items, **settings: items):
    """Map one scene.

    Args:
        network: network.Network; it is made quicker in place. path: the scene. output: where the map goes; its folder is made.
        options: PredictionConfig. say: takes a line of report. bar: wraps an iterable to show progress.
    Returns:
        the summary, as `MapFile.summary`; None when a map to resume was finished already (what is asked for beside it is made), and with dry_run.
    Raises:
        SetupError: the scene does not fit the network, the memory or the disk; or the output is there already.
    """
    job = Job(network, path, Path(output), options, say)
    quicken(network, options.compile, say)
    if options.dry_run:
        return job.plan()
    with job:
        if job.begin():
            fill(job, bar)
        return job.finish()


def fill(job, bar):
    """Predict what is left to do, and show how far it has come."""
    for _ in bar(tile_by_tile(job), desc="predicting", total=sum(len(strip.tiles) for _, strip, _ in job.jobs), unit="tile"):
        pass


@torch.inference_mode()
def tile_by_tile(job):
    """Predict block row after block row. A reader stays ahead, a writer comes behind; the first error in either ends the run at once.

    Yields:
        once for each tile, run or left out.
    """
    canvas, blending, batch = job.canvas, None, budget.batch_of(job.network, job.options)
    written = canvas.strip, canvas.row
    with Behind(most=2) as behind:
        def watch():
            job.reader.check()
            behind.check()

        for number, strip, index in job.jobs:
            if blending is None or blending.strip is not strip:
                batch, blending = blending.batch if blending else batch, None  # its memory first
                blending = Blending(job.network, job.rows, job.cols, strip, job.options, batch, job.layers, job.say)
            blending.take(next(job.coming))
            for j, probability in blending.add(index, watch):
                if probability is not None and job.options.save_patches:
                    save_tile(probability, blending, index, j, job)
                yield
            first, after = job.rows.starts[index], job.rows.finished(index)
            if (number, after) > written:
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
    classes, _ = decide(probability[: len(probability) - blending.disagreement], options.threshold)
    classes = (classes ^ 1 if options.background_value else classes).cpu().numpy()
    classes = np.array(job.network.codes)[classes] if options.original_codes else classes
    known = blending.valid[:, col - blending.strip.begin :][:, : job.cols.size]
    tile = np.where(known, classes, options.output_nodata).astype(job.layers[-1].dtype)
    path, window = beside(job.output, "_patches") / f"patch_{row}_{col}.tif", Window(row, col, *tile.shape)
    files.write_bytes(path, patchfile.patch_bytes(tile[None], job.scene.placed(window), job.scene.crs, options.output_nodata, ["class"]))
