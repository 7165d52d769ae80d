"""What a map will cost: tiles, memory, disk, time. Known before anything is written."""

import shutil
import time
from typing import NamedTuple

import numpy as np
import torch

from eoseg import memory
from eoseg.blending import TILES_ON_GPU
from eoseg.committee import answer
from eoseg.errors import SetupError
from eoseg.raster import CACHE
from eoseg.tiles import Window
from eoseg.tiling import narrow_enough, strips_of, widest

SPARE = 0.5  # of the free memory: what a run takes unless it is told; strips cost little
READY = 0.25  # of the limit: rows that need less are not worth a try of the network
PACKED = {"classes": 0.5, "probabilities": 0.9}  # bytes of a finished layer, with overviews, to a byte of it in the making
USUAL = 1.1  # of all others: floats


def batch_of(network, options):
    """Tiles at once: one on a CPU, where more are no quicker and take more memory."""
    return options.batch_size or (1 if network.device.type == "cpu" else TILES_ON_GPU)


class Column(NamedTuple):
    """Bytes that a column of a strip takes: in the program's memory, and on the device."""

    host: int
    device: int


def column_bytes(network, scene, axis, layers):
    """What a column of a strip takes while rows pass through.

    Args:
        scene: raster.Scene. axis: tiling.Axis of the rows. layers: mapfile.Layer's that are made.
    """
    height, bands = axis.size, len(scene.bands)
    ahead = height + (scene.block_height if scene.block_height <= height else 0)
    read = ahead * bands * (3 * scene.dtype.itemsize + 3)  # decoded, joined, and kept for the next; and which of it is data
    inputs = height * 4 * sum(one.in_channels for one in {one.normalizer: one for one in network.members}.values())
    sums = height * 4 * (2 + len(network.class_names))
    finished = height * (44 + 3 * sum(layer.pixel_bytes for layer in layers))  # classes as int64, confidence, bins, flags; what is being written
    working = max(inputs // max(len(network.members), 1), sums)  # the copy made where rows move up, and the parts of a band that are looked at
    if network.device.type == "cpu":
        return Column(read + inputs + sums + finished + working, 0)
    return Column(read + height * 12, inputs + sums + finished + working + height * bands * scene.dtype.itemsize)


class Tried(NamedTuple):
    """What a batch of tiles took."""

    seconds: float  # each tile
    bytes: int  # above what was held before


def tried(network, padded, batch, tta):
    """Send noise through all members, in all views, twice: the first time is longer than any later one. In smaller batches where memory does not suffice.

    Args:
        padded: rows and columns of a tile.
    """
    try:
        return tried_once(network, padded, batch, tta)
    except torch.OutOfMemoryError:
        if batch == 1:
            raise
    return tried(network, padded, batch // 2, tta)  # here, where the error no longer holds on to what the networks had computed


def tried_once(network, padded, batch, tta):
    tiles = torch.randn(batch, network.in_channels, *padded)
    gpu, before = network.device.type == "cuda", memory.told("VmRSS") or 0
    if gpu:
        torch.cuda.reset_peak_memory_stats(network.device)
        before = torch.cuda.memory_allocated(network.device)
    memory.forget_peak()
    for _ in range(2):
        begun = time.perf_counter()
        answer(network, lambda one: tiles, tta)
        if gpu:
            torch.cuda.synchronize(network.device)
        seconds = (time.perf_counter() - begun) / batch
    peak = torch.cuda.max_memory_allocated(network.device) if gpu else memory.told("VmHWM") or 0
    return Tried(seconds, max(0, peak - before))


class Means(NamedTuple):
    """What a run may take: looked up before it takes anything, and the same for all its scenes."""

    held: int  # bytes of memory that the program holds already
    limit: int  # that it may hold
    free: int  # on a GPU
    tried: Tried = None  # on a whole tile; None: not tried yet


def means_of(network, options):
    held = memory.told("VmRSS") or 2**29
    free = torch.cuda.mem_get_info(network.device)[0] if network.device.type == "cuda" else 0
    return Means(held, options.max_memory or int(held + SPARE * memory.available()), free)


class Costs(NamedTuple):
    """A plan of the strips, and what it rests on."""

    strips: int
    memory: int  # bytes the program will hold at most
    limit: int
    tried: Tried  # None: there was no need


def costs_of(network, scene, rows, cols, options, layers, strips=None, means=None):
    """Cut the scene into as few strips as the memory allows.

    Args:
        rows, cols: tiling.Axis. layers: mapfile.Layer's that are made. strips: how many a run that goes on has; None: as many as it takes.
        means: Means; None: they are looked up.
    Raises:
        SetupError: not even the narrowest fits.
    """
    column, batch = column_bytes(network, scene, rows, layers), batch_of(network, options)
    held, limit, free, trial = means or means_of(network, options)
    gpu = network.device.type == "cuda"
    ample = column.host * cols.length < READY * (limit - held) and column.device * cols.length <= READY * free
    if not trial and (options.dry_run or options.max_memory or not ample):
        trial = tried(network, (rows.padded, cols.padded), batch, options.tta)
    base = held + CACHE + (trial.bytes if trial and not gpu else 0)
    most = (limit - base) // column.host
    if gpu:
        most = min(most, int(SPARE * free - (trial.bytes if trial else 0)) // column.device)
    found = strips_of(cols, strips) if strips else strips_of(cols, 1) if not trial else narrow_enough(cols, most)
    if found is None:
        narrowest = widest(strips_of(cols, len(cols.starts)))  # a tile, and those it overlaps
        need = base + column.host * narrowest
        raise SetupError(f"--max_memory {memory.shown(limit)}: the narrowest strip, {narrowest} columns for tiles of {rows.size} x {cols.size} pixels, takes about {memory.shown(need)}; "
                         "give more, or a smaller --patch_size." + (f" The memory of {network.device} may be what is short." if gpu and need <= limit else ""))
    return Costs(len(found), base + column.host * widest(found), limit, trial)


def disk_bytes(pixels, layers):
    """Bytes that the map takes on disk: in the making, and about how many more when it is finished."""
    kept = sum(layer.pixel_bytes * PACKED.get(layer.kind, USUAL) for layer in layers if layer.path)
    return pixels * sum(layer.pixel_bytes for layer in layers), int(pixels * kept)


def free_disk(output):
    """Bytes that are free where `output` is to lie, and the folder that is there already."""
    there = next(folder for folder in output.resolve().parents if folder.exists())
    return shutil.disk_usage(there).free, there


def check_disk(output, pixels, layers, held=0):
    """Refuse a map that the disk cannot hold.

    Args:
        held: bytes that lie there from a run which is gone on with.
    """
    free, there = free_disk(output)
    making, done = disk_bytes(pixels, layers)
    if making + done // 4 > free + held:
        raise SetupError(f"--output {output}: the map takes about {memory.shown(making + done)} while it is made, {memory.shown(free + held)} are free in {there}; free some space, or choose another disk.")


def tiles_within(area, rows, cols, strips):
    """How many tiles meet the area of interest, as far as outlines tell (all without one), and how many runs strips add to that."""
    met = [len(rows.starts) if area is None else sum(len(area.hits(Window(row, col, rows.size, cols.size))) > 0 for row in rows.starts) for col in cols.starts]
    runs = np.bincount(np.concatenate([strip.tiles for strip in strips]))  # of each column of tiles
    return sum(met), int(np.dot(met, runs - 1))


def report(output, scene, rows, cols, area, options, layers, costs):
    """What --dry_run prints: a list of lines."""
    strips = strips_of(cols, costs.strips)
    count, again = tiles_within(area, rows, cols, strips)
    making, done = disk_bytes(scene.height * scene.width, layers)
    hours = costs.tried.seconds * (count + again) / 3600
    return [
        f"tiles     {count:,}{' that meet --aoi' if area else ''} ({len(rows.starts)} x {len(cols.starts)} of {rows.size} x {cols.size} pixels, {options.blend} blending)"
        + (f", {again:,} runs more where strips meet" if again else "") + "; those without a valid pixel are not run",
        f"memory    about {memory.shown(costs.memory)} of {memory.shown(costs.limit)}; {costs.strips} strip{'s' * (costs.strips > 1)} of at most {widest(strips):,} columns",
        f"disk      {memory.shown(making)} while the map is made, then about {memory.shown(done)}; {memory.shown(free_disk(output)[0])} free",
        f"time      about {spelled(hours)} for the network, {costs.tried.seconds:.3g} s a tile as tried just now; reading and writing go on meanwhile",
    ]


def spelled(hours):
    """A length of time in words."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
