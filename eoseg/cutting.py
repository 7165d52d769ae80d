"""Cells of a grid become patches: an image and a label on the same pixels."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eoseg import patchfile, raster, validity
from eoseg.coding import IGNORE
from eoseg.errors import ReadError
from eoseg.normalize import BandStatistics
from eoseg.parallel import ahead, give_back_memory, in_order
from eoseg.tiles import Window
from eoseg.vector import Cell

WAITING = 2**25  # bytes of pixels that may wait for a free core


class Source(NamedTuple):
    """One image of a place; several sensors or dates of it share the grid of the first. Patches go into `folder`."""

    scene: raster.Scene
    folder: str


class Job(NamedTuple):
    """A cell with what was read for it: per source (pixels, mask), the classes, and what the labels remember; or the error that came instead."""

    cell: Cell
    part: Window
    raws: list
    codes: np.ndarray
    memory: object
    error: object = None


class Outcome(NamedTuple):
    """What became of a cell: a row of patches.csv (a dict), the reason it is left out (a text), or a ReadError; a row comes with statistics."""

    cell: Cell
    entry: object
    statistics: list
    memory: object


class Bench(NamedTuple):
    """What all cells of a scene are cut with."""

    pair: object
    sources: list
    options: object
    folder: Path


def cut_cells(pair, sources, labels, cells, options, folder):
    """Cut cells into patches under `folder`: one thread reads, all cores encode and write.

    Args:
        pair: pairing.Pair. sources: list of Source. labels: what `labels.open_labels` returned.
        cells: list of vector.Cell that touch the image, in reading order. options: ExtractionConfig.
    Yields:
        Outcome of each cell, in the order of `cells`.
    """
    most = max((cell.window.height * cell.window.width for cell in cells), default=1) * sum(source.scene.pixel_bytes for source in sources)
    bench = Bench(pair, sources, options, folder)
    with contextlib.closing(read_jobs(sources, labels, cells)) as jobs:
        yield from in_order(lambda job: cut(bench, job), jobs, raster.THREADS, 1 + min(2 * raster.THREADS, WAITING // most))


# ---------------------------------------------------------------- reading


def read_jobs(sources, labels, cells):
    """A Job per cell, from strips that a thread reads ahead."""
    lead = sources[0].scene
    parts = [cell.window.clipped(lead.height, lead.width) for cell in cells]
    with contextlib.closing(ahead(read_strips(sources, labels, parts))) as strips:
        for strip, members, raws, marks in strips:
            for index, (codes, memory) in zip(members, marks):
                own = [raw if isinstance(raw, ReadError) else cut_out(raw, strip, parts[index]) for raw in raws]
                error = next((part for part in (*own, codes) if isinstance(part, ReadError)), None)
                yield Job(cells[index], parts[index], own, codes, memory, error)


def read_strips(sources, labels, parts):
    """Strips of several windows: (strip, indices of its windows, what each source holds there, classes of each window)."""
    everything = sum(source.scene.pixel_bytes for source in sources)
    for count, (strip, members) in enumerate(sources[0].scene.strips(parts, everything)):
        if count % 8 == 0:
            give_back_memory()  # the threads' arrays would pile up otherwise: 20 MB and more
        raws = [attempt(source.scene.raw, strip) for source in sources]
        marks = [(attempt(labels.read, parts[index]), labels.memory()) for index in members]
        if len(members) == 1 or not any(isinstance(raw, ReadError) for raw in raws):
            yield strip, members, raws, marks
            continue
        for index, mark in zip(members, marks):  # some of the strip may be whole
            yield parts[index], [index], [attempt(source.scene.raw, parts[index]) for source in sources], [mark]


def attempt(read, window):
    """What `read` returns, or its ReadError."""
    try:
        return read(window)
    except ReadError as error:
        return error


def cut_out(raw, strip, part):
    """The pixels and mask of a window out of those of the strip around it; a copy, so that the strip can go."""
    rows, cols = slice(part.row - strip.row, part.row - strip.row + part.height), slice(part.col - strip.col, part.col - strip.col + part.width)
    pixels, mask = raw
    return pixels[:, rows, cols].copy(), mask if mask is True else mask[rows, cols].copy()


# ---------------------------------------------------------------- one cell


def cut(bench, job):
    """Make one cell's patch and write it. Returns its Outcome."""
    pair, sources, options = bench.pair, bench.sources, bench.options
    if job.error:
        return Outcome(job.cell, job.error, [], job.memory)
    pieces = [judged(source.scene, *raw) for source, raw in zip(sources, job.raws)]
    size, window = options.patch_size, job.cell.window
    if not any(piece.valid.any() for piece in pieces):
        return Outcome(job.cell, "no valid pixel", [], job.memory)
    broken = sum(not_finite(piece.pixels, source.scene.fill) for source, piece in zip(sources, pieces))
    pieces = [padded(piece, window, job.part) for piece in pieces]
    target = around(job.codes, window, job.part, IGNORE)
    scale = window.height / size, window.width / size
    if scale != (1.0, 1.0):
        pieces, target = [resampled(piece, size, options.interpolation) for piece in pieces], nearest(target, size)
    join = np.logical_and if options.require_all_bands else np.logical_or
    valid = join.reduce([piece.valid for piece in pieces])
    target = np.where(valid, target, IGNORE).astype(np.uint8)
    reason = too_little(target, valid, options)
    if reason:
        return Outcome(job.cell, reason, [], job.memory)
    write(bench, job.cell, pieces, target, scale)
    statistics = [BandStatistics.of(piece.pixels, ~piece.missing & piece.valid).to_bytes() for piece in pieces]
    return Outcome(job.cell, row_of(pair, sources[0].scene, job.cell, target, valid, broken), statistics, job.memory)


class Piece(NamedTuple):
    """Pixels (B, H, W) in the file's own type, missing (B, H, W) and valid (H, W), the value of pixels that are not there,
    and whether it is the file's nodata."""

    pixels: np.ndarray
    missing: np.ndarray
    valid: np.ndarray
    fill: np.ndarray
    marked: bool


def judged(scene, pixels, mask):
    """A Piece of a scene from what `Scene.raw` read."""
    return Piece(pixels, *scene.judged(pixels, mask), np.array(scene.fill or 0).astype(pixels.dtype), scene.fill is not None)


def not_finite(pixels, nodata):
    """How many pixels hold NaN or Inf in a band, where that is not the nodata value."""
    if pixels.dtype.kind != "f":
        return 0
    broken, known = ~np.isfinite(pixels), validity.equals_nodata(pixels, nodata)
    return int((broken if known is None else broken & ~known).any(0).sum())


def too_little(target, valid, options):
    """Why a patch is not worth keeping; None when it is."""
    labelled = (target != IGNORE).sum()
    if options.max_nodata is not None and (~valid).sum() > options.max_nodata * valid.size + 1e-6:
        return "more nodata than --max_nodata"
    if not labelled and not options.keep_unlabelled:
        return "no labelled pixel"
    if options.min_labelled is not None and labelled < options.min_labelled * target.size - 1e-6:
        return "fewer labels than --min_labelled"
    return None


def padded(piece, window, part):
    """A Piece that was read of `part`, in its window: nothing is valid beyond the image."""
    if window == part:
        return piece
    return Piece(*(around(array, window, part, value) for array, value in zip(piece, (piece.fill, True, False))), *piece[3:])


def around(array, window, part, value):
    """Put what was read of `part` (..., H, W) into an array of the whole window, `value` beyond the image."""
    top, left = part.row - window.row, part.col - window.col
    widths = ((top, window.height - part.height - top), (left, window.width - part.width - left))
    return np.pad(array, ((0, 0),) * (array.ndim - 2) + widths, constant_values=value)


def nearest(array, size):
    """Scale (..., H, W) to `size` pixels a side, by the nearest pixel centre."""
    rows, cols = (np.minimum(((np.arange(size) + 0.5) * n / size).astype(int), n - 1) for n in array.shape[-2:])
    return array[..., rows, :][..., cols]


def resampled(piece, size, interpolation):
    """Scale a Piece to `size` pixels a side: the image as asked, validity by the nearest pixel centre."""
    missing, valid = nearest(piece.missing, size), nearest(piece.valid, size)
    if interpolation == "nearest":
        return Piece(nearest(piece.pixels, size), missing, valid, *piece[3:])
    import cv2  # these two weigh 50 MB, which only --resample needs
    from scipy.ndimage import distance_transform_edt

    way = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}[interpolation]
    dtype = piece.pixels.dtype
    scaled = np.empty((len(piece.pixels), size, size), dtype)
    for band, (values, holes) in enumerate(zip(piece.pixels, piece.missing | ~piece.valid)):
        near_hole = distance_transform_edt(holes, return_distances=False, return_indices=True)  # no nodata value may bleed into its neighbours
        smooth = np.where(holes.all(), 0, values[tuple(near_hole)]).astype(np.float64)
        smooth = cv2.resize(smooth, (size, size), interpolation=way)
        if dtype.kind in "iu":
            smooth = np.clip(np.rint(smooth), np.iinfo(dtype).min, np.iinfo(dtype).max)
            if piece.marked:  # a valid pixel must not become nodata
                smooth[smooth == piece.fill] += 1 if piece.fill < np.iinfo(dtype).max else -1
        scaled[band] = np.where(nearest(holes, size), piece.fill, smooth.astype(dtype))
    return Piece(scaled, missing, valid, *piece[3:])


def write(bench, cell, pieces, target, scale):
    """Write images and label, on the same grid. Where no pixel value says what is invalid, an image gets a mask."""
    name, place = bench.pair.patch_name(cell), bench.sources[0].scene.placed(cell.window, scale)
    for source, piece in zip(bench.sources, pieces):
        scene, nodata = source.scene, source.scene.fill
        mask = piece.valid if not piece.valid.all() and (nodata is None or scene.masked) else None
        image = patchfile.patch_bytes(piece.pixels, place, scene.crs, nodata, scene.names, bench.options.compress, mask)
        (bench.folder / source.folder / name).write_bytes(image)
    label = patchfile.patch_bytes(target[None], place, bench.sources[0].scene.crs, IGNORE, ["class"], bench.options.compress)
    (bench.folder / "labels" / name).write_bytes(label)


def row_of(pair, scene, cell, target, valid, broken):
    """A patch's line in patches.csv: numbers, no clock and no path."""
    x, y = scene.transform * (cell.window.col, cell.window.row)
    counts = np.bincount(target.ravel(), minlength=256)[:IGNORE]
    return {
        "patch": pair.patch_name(cell), "split": cell.split, "scene": Path(pair.image).name, "id": cell.id,
        "row": cell.window.row, "col": cell.window.col, "height": cell.window.height, "width": cell.window.width,
        "x": x, "y": y, "shift_rows": cell.shift[0], "shift_cols": cell.shift[1], "rotation": cell.rotation,
        "nodata_share": round(float(1 - valid.mean()), 6), "not_finite_pixels": broken, "labelled_pixels": int(counts.sum()),
        "classes": {str(c): int(counts[c]) for c in np.flatnonzero(counts)},
    }
