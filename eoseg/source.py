"""The patches of a run: found, looked over, and ready to be fetched."""

import hashlib
import json
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from eoseg import files, packing, patchset
from eoseg import survey as looking
from eoseg.bands import find_rgb
from eoseg.errors import SetupError, listing
from eoseg.normalize import BandStatistics, Normalizer

SPLITS = ("train", "validation", "test")
VERSION = 2  # of remembered statistics


class Source(NamedTuple):
    """Patches that were looked over, and how to fetch them."""

    root: Path  # of the data set
    metadata: dict  # of the patches, {} when there is none
    bands: Any  # survey.Bands
    survey: Any  # survey.Survey
    names: list  # of the classes
    fetch: Callable  # from a pair to a packing.Patch
    folder: Optional[Path]  # where facts about the patches are remembered
    said: Optional[str]  # how patches are kept

    @property
    def largest(self):
        """Side of the largest patch in pixels."""
        return max(max(size) for size in self.survey.sizes)

    @property
    def rgb(self):
        """Where red, green and blue are among the bands in use; None when nothing says so."""
        return find_rgb(self.bands.names)

    @property
    def quick(self):
        """Is a patch fetched without reading its files?"""
        return not isinstance(self.fetch, packing.Reading)


def open_splits(config, progress):
    """Pairs of train, validation and test under the dataset root, a dict, and their Source.

    Raises:
        SetupError: train or validation is empty, or patches cannot be used: all that is wrong with them.
    """
    root = patchset.find_root(config.dataset_root, config.patch_subdir)
    splits, problems = patchset.match_splits(root, SPLITS)
    for split in ("train", "validation"):
        if not splits[split]:
            looking.refuse(problems, config)
            raise SetupError(f"{root / split}: holds no patches; training needs some (--val_strategy kfold divides the training patches itself).")
    return splits, open_source(config, root, [pair for part in splits.values() for pair in part], problems, progress)


def open_folds(config, progress):
    """Pairs that the folds divide, pairs they are tested on together, and the Source of both.

    Raises:
        SetupError: a folder that is not there, or patches that cannot be used.
    """
    root = patchset.find_root(config.dataset_root, config.patch_subdir)
    for name in config.subdirectories:
        if name not in SPLITS and not (root / name / "images").is_dir():
            raise SetupError(f"--subdirectories {name}: {root} holds no {name}/images; name folders that are there.")
    splits, problems = patchset.match_splits(root, dict.fromkeys([*config.subdirectories, "test"]))
    test = splits.pop("test") if "test" not in config.subdirectories else []
    pairs = [pair for part in splits.values() for pair in part]
    if not pairs:
        looking.refuse(problems, config)
        raise SetupError(f"--subdirectories {' '.join(config.subdirectories)}: {root} holds no patches there; name folders that hold some.")
    return pairs, test, open_source(config, root, [*pairs, *test], problems, progress)


def open_source(config, root, pairs, problems, progress):
    """Look the patches over, and pack them where --cache says so."""
    metadata = patchset.load_metadata(root, required=False)
    bands = looking.choose_bands([image for image, _ in pairs], config, metadata)
    names = looking.class_names(config, metadata)
    folder = None if config.cache == "none" else packing.cache_folder(root, config.save_dir)
    coding = looking.coding_of(config)
    with held(folder):
        survey = looking.survey(pairs, bands, config, progress, problems, folder)
        size = sum(count * rows * cols for (rows, cols), count in survey.sizes.items()) * (len(bands.names) * np.dtype(survey.dtype).itemsize + 1)
        key = (looking.key_of(bands, coding), content_of(pairs, survey.stamps, folder)) if folder else None
        fetch, said = packing.open_patches(config.cache, packing.Reading(bands, coding), pairs, size, folder, key, progress)
    return Source(root, metadata, bands, survey, names, fetch, folder, said)


def held(folder):
    """The lock of the folder of facts: of runs that begin together, one looks the patches over, and the others have it from there."""
    return files.lock(folder, wait=True) if folder else nullcontext()


def content_of(pairs, stamps, folder):
    """A text that is another when a file of `pairs` is another, by name as seen from `folder`, size or time of change."""
    return json.dumps(sorted([patchset.name_within(image, folder), *stamps[image]] for image, _ in pairs))


def fit_normalizer(pairs, source, kind, progress):
    """Statistics of the bands over the valid pixels of `pairs`, the training patches, and the normaliser made from them.

    Raises:
        SetupError: a band without data.
    """
    path = None
    if source.folder:
        told = json.dumps([VERSION, source.bands.of_patch, source.bands.require_all_bands]) + content_of(pairs, source.survey.stamps, source.folder)
        path = source.folder / f"statistics-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    with held(source.folder):
        result = remembered(path)
        if result is None:
            result = count_bands(pairs, source, progress)
            if path:
                with suppress(OSError):
                    files.write_json(path, result)
    empty = [name for name, band in zip(source.bands.names, result) if not band["valid_pixels"]]
    if empty:
        raise SetupError(f"--bands: {listing(empty)} hold no data in any training patch; leave them out with --bands.")
    return Normalizer.fitted(kind, result), result


def count_bands(pairs, source, progress):
    """Statistics of each band, a list of dicts."""
    def of(pair):
        pixels, holes, _ = source.fetch(pair)
        return BandStatistics.of(pixels, np.ones(pixels.shape, bool) if holes is None else ~holes)

    total = BandStatistics(len(source.bands.of_patch))
    with closing(packing.in_threads(of, pairs)) as parts:
        for part in progress(parts, desc="statistics", total=len(pairs), unit="patch"):
            total.merge(part)
    return total.result()


def remembered(path):
    """Statistics that an earlier run wrote; None when there are none, or no good ones."""
    with suppress(OSError, ValueError, SetupError, TypeError, AttributeError, KeyError):
        found = files.read_json(path)
        if all(band["valid_pixels"] and band.keys() >= {"mean", "std", "p1", "p50", "p99", "min", "max"} and None not in band.values() for band in found):
            return found
    return None
