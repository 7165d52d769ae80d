"""Patches become batches: checked once at the start, then read, normalised and augmented as the loop asks."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from eoseg import patchset, raster
from eoseg.augment import augment
from eoseg.coding import IGNORE, Coding, names_of, parse_map
from eoseg.errors import DataError, SetupError, listing
from eoseg.normalize import BandStatistics, Normalizer
from eoseg.tiles import tile_size


class Bands(NamedTuple):
    """What the network takes: bands of a patch (from 0) and of the scene the patches were cut from (from 1), and what counts as data there."""

    of_patch: list
    names: list
    of_scene: list
    scene_count: int
    require_all_bands: bool = False
    input_nodata: Optional[float] = None  # of the scene, where its own tag was not believed

    def to_dict(self):
        return self._asdict()


class Survey(NamedTuple):
    """What the files of a run hold."""

    count: int  # bands in a patch
    dtype: str
    sizes: dict  # (rows, columns) -> number of patches
    class_pixels: dict  # image path -> (C,) int64


def survey(pairs, bands, config, progress):
    """Open every pair once, in parallel; report every problem at once.

    Args:
        pairs: list of (image, label). bands: the Bands in use, of patches like the first. progress: wraps an iterable to show progress.
    Raises:
        SetupError: files that cannot be used; the first few are named, the rest counted.
    """
    coding = coding_of(config)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        seen = list(progress(pool.map(lambda pair: look(pair, bands, coding, config), pairs), total=len(pairs), desc="checking", unit="patch"))
    problems = [found for found in seen if isinstance(found, str)]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise SetupError(" | ".join(problems[:3]) + more)
    shapes = {}
    for (image, _), (bands, dtype, size, _) in zip(pairs, seen):
        shapes.setdefault((bands, dtype), []).append(image)
    if len(shapes) > 1:
        kinds = [f"{bands} x {dtype} ({len(images)}, e.g. {images[0].name})" for (bands, dtype), images in shapes.items()]
        raise SetupError(f"--dataset_root {config.dataset_root}: patches of different bands or types: {listing(kinds)}; extract them alike.")
    sizes = {}
    for _, _, size, _ in seen:
        sizes[size] = sizes.get(size, 0) + 1
    check_sizes(sizes, config)
    (count, dtype), = shapes
    return Survey(count, dtype, sizes, {image: counts for (image, _), (_, _, _, counts) in zip(pairs, seen)})


def look(pair, bands, coding, config):
    """Bands, type, size and class counts of one pair; a text when it cannot be used."""
    image, label = pair
    try:
        pixels, _, valid = raster.read_patch(image)
        if max(bands.of_patch) < len(pixels) and (len(bands.of_patch) < len(pixels) or bands.require_all_bands):
            _, _, valid = raster.read_patch(image, bands.of_patch, bands.require_all_bands)
        if not valid.any():
            return f"{image}: holds no valid pixel; remove it and its label."
        codes, tag = raster.read_label(label)
        if codes.shape != valid.shape:
            return f"{label}: is {codes.shape[0]} x {codes.shape[1]} pixels, its image {valid.shape[0]} x {valid.shape[1]}; extract them again."
        target = np.where(valid, coding.decode(codes, tag, label), IGNORE)
        counts = np.bincount(target.ravel(), minlength=256)[: config.class_count]
        return len(pixels), str(pixels.dtype), valid.shape, counts
    except DataError as error:
        return str(error)


def coding_of(config):
    """How label codes of this run become classes.

    Raises:
        SetupError: --label_map leads to classes that are not there.
    """
    mapping = parse_map(config.label_map)
    beyond = sorted({number for number in (mapping or {}).values() if config.class_count <= number != IGNORE})
    if beyond:
        remedy = "binary mode has 0 and 1" if config.mode == "binary" else f"give --classes {beyond[-1] + 1}, or mend the map"
        raise SetupError(f"--label_map: leads to class {listing(beyond)}, but there are {config.class_count} classes, from 0; {remedy}.")
    return Coding(mapping, config.label_nodata, config.class_count)


def check_sizes(sizes, config):
    """One size, or a --patch_size to bring them to."""
    if config.patch_size is None and len(sizes) > 1:
        kinds = [f"{rows} x {cols} ({count})" for (rows, cols), count in sorted(sizes.items())]
        raise SetupError(f"--patch_size: the patches differ in size: {listing(kinds)}; give --patch_size N to cut or pad them to N pixels.")


def choose_bands(first, config, metadata):
    """The bands the network takes, traced back to the scene the patches were cut from.

    Args:
        first: path of a patch, which speaks for all. metadata: of the patches, {} when there is none.
    Raises:
        SetupError: --bands or --in_channels do not fit the patches.
    """
    about, settings = metadata.get("bands") or {}, metadata.get("settings") or {}
    names, count = about.get("names"), len(raster.read_patch(first)[0])
    every = list(range(1, count + 1))
    if not names or len(names) != count:
        with raster.open_raster(first) as src:
            names = raster.band_names(src)
        about = {}
    numbers = raster.choose_bands(names, config.bands, first) if config.bands else every
    if config.in_channels not in (None, len(numbers)):
        raise SetupError(f"--in_channels {config.in_channels}: the patches give {len(numbers)} bands; leave it out, or choose with --bands.")
    source = about.get("source_bands", every)
    return Bands([n - 1 for n in numbers], [names[n - 1] for n in numbers], [source[n - 1] for n in numbers], about.get("source_count", count),
                 bool(settings.get("require_all_bands")), settings.get("input_nodata"))


def fit_normalizer(pairs, bands, kind, progress):
    """Statistics of the bands over the valid pixels of `pairs`, the training patches, and the normaliser made from them."""
    statistics = BandStatistics(len(bands.of_patch))
    for image, _ in progress(pairs, desc="statistics", unit="patch"):
        pixels, missing, valid = raster.read_patch(image, bands.of_patch, bands.require_all_bands)
        statistics.add(pixels, ~missing & valid)
    result = statistics.result()
    empty = [name for name, band in zip(bands.names, result) if not band["valid_pixels"]]
    if empty:
        raise SetupError(f"--bands: {listing(empty)} hold no data in any training patch; leave them out with --bands.")
    return Normalizer.fitted(kind, result), result


class Patches(Dataset):
    """Patches as (image (B, H, W) float32, target (H, W) int64, index).

    Asked for (epoch, index): the same pair always gives the same sample, whichever worker makes it.

    Args:
        largest: side of the largest patch; None when all are of one size. Evaluation sees every patch whole, mirrored to it.
        seed: of the cuts and the augmentation; None in evaluation.
        augmented: whether to augment.
    """

    def __init__(self, pairs, bands, normalizer, config, seed=None, augmented=True, largest=None):
        self.pairs, self.bands, self.normalizer, self.seed, self.augmented = pairs, bands, normalizer, seed, augmented
        self.coding, self.size, self.network, self.largest = coding_of(config), config.patch_size, config.model_name, largest

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, key):
        epoch, index = key
        image, label = self.pairs[index]
        pixels, missing, valid = raster.read_patch(image, self.bands.of_patch, self.bands.require_all_bands)
        codes, tag = raster.read_label(label)
        target = np.where(valid, self.coding.decode(codes, tag, label), IGNORE).astype(np.int64)
        pixels = self.normalizer(pixels, missing | ~valid)
        key = None if self.seed is None else [self.seed, epoch, index]
        if self.size and key:
            pixels, target = cut_to(pixels, target, self.size, key)
        if self.augmented and key:
            pixels, target = augment(pixels, target, key)
        side = tile_size(self.network, max(*target.shape, 0 if key else self.largest or 0))
        pixels, target = pad_to(pixels, target, side)
        return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(np.ascontiguousarray(target)), index


def cut_to(pixels, target, size, key):
    """Cut a larger patch to `size` pixels, anywhere, by `key`; pad a smaller one."""
    spare = [max(length - size, 0) for length in target.shape]
    row, col = np.random.default_rng([*key, 1]).integers(0, np.array(spare) + 1)
    where = slice(row, row + size), slice(col, col + size)
    return pad_to(pixels[:, where[0], where[1]], target[where], size)


def pad_to(pixels, target, side):
    """Pad a patch to `side` pixels each way: the image mirrored, the target unlabelled."""
    rows, cols = side - target.shape[0], side - target.shape[1]
    if not rows and not cols:
        return pixels, target
    return (np.pad(pixels, ((0, 0), (0, rows), (0, cols)), mode="symmetric"),
            np.pad(target, ((0, rows), (0, cols)), constant_values=IGNORE))


class Order:
    """Batches of (epoch, index): shuffled by (seed, epoch) in training, in order otherwise.

    A last batch of one gets a second patch in training, because batch normalisation needs two values.
    """

    def __init__(self, count, batch_size, seed=None):
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 0

    def __len__(self):
        return -(-self.count // self.batch_size)

    def __iter__(self):
        order = np.arange(self.count)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for start in range(0, self.count, self.batch_size):
            batch = order[start : start + self.batch_size].tolist()
            if len(batch) == 1 and self.seed is not None and self.batch_size > 1:
                batch.append(int(order[0]))
            yield [(self.epoch, index) for index in batch]


def make_loader(patches, batch_size, seed, workers, device):
    """A loader whose batches follow `Order`; set `loader.batch_sampler.epoch` before each epoch."""
    order = Order(len(patches), batch_size, seed)
    own = torch.Generator()  # the loader draws a seed whenever it starts its workers: from torch's own generator, that would shift the dropout
    return DataLoader(patches, batch_sampler=order, num_workers=workers, pin_memory=device.type == "cuda", generator=own,
                      persistent_workers=workers > 0, worker_init_fn=quiet_worker)


def batches(loader):
    """What the loader gives; an error in a worker comes as the line it was, without that process's traceback around it."""
    try:
        yield from loader
    except SetupError as error:
        raise type(error)(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from None


def quiet_worker(number):
    """One thread a worker, and Ctrl-C is the main process's to hear."""
    import signal

    import cv2

    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def worker_count(config, patches):
    """--workers, or: none for a handful of patches or a single core, else one less than the cores, at most 8."""
    if config.workers is not None:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if len(patches) < 64 or cores == 1 else min(8, cores - 1)


def read_splits(config):
    """Pairs of train, validation and test under the dataset root, and its metadata.

    Raises:
        SetupError: train or validation is empty.
    """
    root = patchset.find_root(config.dataset_root, config.patch_subdir)
    splits = {split: patchset.find_pairs(root, split) for split in ("train", "validation", "test")}
    for split in ("train", "validation"):
        if not splits[split]:
            raise SetupError(f"{root / split}: holds no patches; training needs some (--val_strategy kfold divides the training patches itself).")
    return splits, patchset.load_metadata(root, required=False)


def class_names(config, metadata):
    """One name per class: given, from --label_map, from the patches' metadata, or made up.

    Raises:
        SetupError: the patches name another number of classes than --classes.
    """
    known = config.class_names or names_of(parse_map(config.label_map)) or (not config.label_map and metadata.get("class_names"))
    if not known:
        return [f"class_{i}" for i in range(config.class_count)]
    if len(known) != config.class_count:
        remedy = "choose --mode multiclass, or map them to 0 and 1 with --label_map" if config.mode == "binary" else f"give --classes {len(known)}, or --class_names"
        raise SetupError(f"--classes {config.class_count}: the patches name {len(known)} ({listing(known, 8)}); {remedy}.")
    return list(known)


def check_labels(pixels, names):
    """Raises SetupError when training or validation has no labelled pixel; a class that lacks in training is said."""
    for split in ("train", "validation"):
        if not pixels[split].sum():
            raise SetupError(f"{split}: not one pixel of its patches is labelled; check --label_map and the label files.")
    absent = [name for name, count in zip(names, pixels["train"]) if not count]
    if absent:
        print(f"note: no training pixel of {listing(absent)}; the network cannot learn it")
