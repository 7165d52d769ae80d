"""The first look at the patches: everything that is wrong with them is found at once, their classes are counted, and the facts remembered."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from affine import Affine

from eoseg import raster
from eoseg.bands import band_names
from eoseg.bands import choose_bands as numbers_of
from eoseg.coding import IGNORE, Coding, names_of, parse_map
from eoseg.config import check_names
from eoseg.errors import DataError, SetupError, describe, listing
from eoseg.parallel import in_order
from eoseg.patchset import Memory

FORMAT = 2  # of the remembered facts; to be raised when `look` judges otherwise
SHOWN = 50  # problems that are listed one by one
THREADS = min(8, 2 * raster.THREADS)  # more than cores: some wait for the disk
SCALE, TIES, MATRIX, KEYS = 33550, 33922, 34264, 34735  # GeoTIFF tags
CRS_TAGS = (KEYS, 34736, 34737)  # the keys, and the numbers and texts they point to
RASTER_TYPE, POINT = 1025, 2  # a key, and its value where coordinates mean the middle of a pixel


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


class Facts(NamedTuple):
    """What one pair holds, as plain values; of pairs that something is wrong with, what the image holds."""

    bands: int
    dtype: str
    rows: int
    cols: int
    class_pixels: Optional[list]  # None where something is wrong


class Survey(NamedTuple):
    """What the files of a run hold."""

    count: int  # bands in a patch
    dtype: str
    sizes: dict  # (rows, columns) -> number of patches
    class_pixels: dict  # image path -> (C,) int64
    stamps: dict  # image path -> sizes and times of change of image and label; {} where nothing is remembered


def survey(pairs, bands, config, progress, problems=(), memory=None):
    """Open every pair that is new or changed, in parallel; report every problem at once.

    Args:
        pairs: list of (image, label). bands: the Bands in use. progress: wraps an iterable to show progress.
        problems: lines about what was found wrong before, reported with the rest.
        memory: folder in which facts are remembered between runs; None: nowhere.
    Raises:
        SetupError: patches that cannot be used.
    """
    coding, classes = coding_of(config), config.class_count
    book = Memory(memory, pairs, key_of(bands, coding))
    facts, problems = {image: Facts(*found) for image, found in book.recall().items()}, list(problems)
    new = [pair for pair in pairs if pair[0] not in facts]
    looks = in_order(lambda pair: look(pair, bands, coding, classes), new, THREADS, 4 * THREADS)
    for (found, wrong), (image, _) in zip(progress(looks, total=len(new), desc="checking", unit="patch"), new):
        problems += wrong
        if found:
            facts[image] = found
    odd = odd_ones(facts)
    book.keep({image: found for image, found in facts.items() if found.class_pixels and image not in odd})
    sizes = Counter((facts[image].rows, facts[image].cols) for image, _ in pairs if image in facts)
    refuse([*problems, *odd.values(), *mixed_sizes(sizes, config)], config)
    first = facts[pairs[0][0]]
    return Survey(first.bands, first.dtype, dict(sizes), {image: np.array(facts[image].class_pixels, np.int64) for image, _ in pairs}, book.stamps)


def refuse(problems, config):
    """Raise SetupError when there are problems: a single one as it is; several are listed on stderr, and the error counts them."""
    if len(problems) > 1:
        for line in problems[:SHOWN]:
            print(" ".join(line.split()), file=sys.stderr)
        if problems[SHOWN:]:
            print(f"and {len(problems) - SHOWN} more", file=sys.stderr)
        first = problems[0].partition("; ")[0]
        raise SetupError(f"--dataset_root {config.dataset_root}: {len(problems)} problems with its patches, listed above "
                         f"(first: {first}); mend or remove these files.")
    if problems:
        raise SetupError(problems[0])


# ---------------------------------------------------------------- one pair


def look(pair, bands, coding, classes):
    """Facts about a pair (None when its image cannot be read), and a line for each thing that is wrong with it."""
    (image, label), wrong = pair, []

    def tried(path, function, *args):
        try:
            return function(*args)
        except (DataError, OSError) as error:
            if isinstance(error, OSError) and error.errno and not error.filename:
                error.filename = str(path)
            wrong.append(describe(error) or f"{path}: cannot be read ({error}); check the disk it lies on.")

    shown, drawn = tried(image, raster.stored, image), tried(label, raster.stored, label, True)
    if shown:
        valid = valid_of(shown, bands)
        if not valid.any():
            wrong.append(f"{image}: holds no valid pixel, only nodata, NaN or Inf; remove it and its label.")
    if drawn:
        target = tried(label, coding.decode, drawn.pixels[0], drawn.nodata, label)
    if shown and drawn:
        wrong += misfit(pair, shown, drawn)
    counts = None if wrong else np.bincount(target[valid], minlength=IGNORE + 1)[:classes].tolist()
    return shown and Facts(len(shown.pixels), str(shown.pixels.dtype), *valid.shape, counts), wrong


def valid_of(shown, bands):
    """Which pixels of an image count, (H, W) bool, by the bands in use; by all where it lacks them."""
    used = {band for band in bands.of_patch if band < len(shown.pixels)}
    return shown.judged(None if len(used) in (0, len(shown.pixels)) else sorted(used), bands.require_all_bands)[2]


def misfit(pair, shown, drawn):
    """A line, in a list, when a label's size, CRS or place is not its image's; [] when they fit, or nothing is known of them."""
    (height, width), (rows, cols), label = shown.pixels.shape[1:], drawn.pixels.shape[1:], pair[1]
    if (height, width) != (rows, cols):
        return [f"{label}: is {rows} x {cols} pixels, its image {height} x {width}; extract them again."]
    places = places_of(pair, shown.place, drawn.place)
    if not places:
        return []
    (crs, one), (other, two) = places
    if crs != other:
        return [f"{label}: its CRS is {name_of(other)}, its image's {name_of(crs)}; extract them again, or set the right one with gdal_edit.py -a_srs."]
    shift = max(abs(a - b) for corner in [(0, 0), (width, 0), (0, height), (width, height)] for a, b in zip(~one * (two * corner), corner))
    if shift > 0.01:
        return [f"{label}: lies {shift:.3g} pixels away from its image; extract them again, or set the right place with gdal_edit.py -a_ullr."]
    return []


def places_of(pair, one, two):
    """CRS and geotransform of image and label, from their tags; [] when one of them has none or they are the same.

    CRS that the same tags describe are the same, and returned as None: making one of tags takes longer than reading a patch.

    Args:
        one, two: `raster.Stored.place` of both.
    """
    if one is not None and two is not None:
        if one == two or not (names_a_crs(one) and names_a_crs(two)):
            return []
        found = [transform_of(one), transform_of(two)]
        if None not in found and all(one.get(tag) == two.get(tag) for tag in CRS_TAGS):
            return [(None, transform) for transform in found]
    try:
        headers = [raster.header(path) for path in pair]
    except DataError:  # placed by control points, say
        return []
    known = all(header.crs and not header.transform.is_identity and not header.transform.is_degenerate for header in headers)
    return [(header.crs, header.transform) for header in headers] if known else []


def keys_of(place):
    """The GeoKeys that hold a plain number, or say where one is: key -> value."""
    entries = place.get(KEYS, ())
    return {entries[i]: entries[i + 3] for i in range(4, len(entries) - 3, 4)}


def names_a_crs(place):
    return bool(keys_of(place).keys() - {RASTER_TYPE})


def transform_of(place):
    """The geotransform that GeoTIFF tags state, as GDAL understands them; None where GDAL had better be asked."""
    scale, ties, matrix = (place.get(tag, ()) for tag in (SCALE, TIES, MATRIX))
    if len(scale) >= 2 and len(ties) == 6 and not matrix:
        down = -abs(scale[1])
        found = Affine(scale[0], 0, ties[3] - ties[0] * scale[0], 0, down, ties[4] - ties[1] * down)
    elif len(matrix) == 16 and not scale and not ties:
        found = Affine(matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    else:
        return None
    if keys_of(place).get(RASTER_TYPE) == POINT:
        found *= Affine.translation(-0.5, -0.5)
    return None if found.is_identity or found.is_degenerate else found


def name_of(crs):
    """EPSG:N, or the name in its WKT."""
    number = crs.to_epsg()
    return f"EPSG:{number}" if number else (crs.to_wkt().split('"') + ["another"])[1]


# ---------------------------------------------------------------- all together


def odd_ones(facts):
    """image -> a line, for patches whose bands or type are not those of most training patches (of most patches, where these are at odds)."""
    kinds = {image: (found.bands, found.dtype) for image, found in facts.items()}
    every = Counter(kinds.values())
    if len(every) < 2:
        return {}
    training = Counter(kind for image, kind in kinds.items() if Path(image).parent.parent.name == "train")
    usual = max(every, key=lambda kind: (training[kind], every[kind]))
    return {image: f"{image}: has {bands} bands of {dtype}, most training patches {usual[0]} of {usual[1]}; extract it like them, or remove it and its label."
            for image, (bands, dtype) in kinds.items() if (bands, dtype) != usual}


def mixed_sizes(sizes, config):
    """A line, in a list, when the patches differ in size and no --patch_size says what to bring them to."""
    if config.patch_size is not None or len(sizes) < 2:
        return []
    kinds = [f"{rows} x {cols} ({count})" for (rows, cols), count in sorted(sizes.items())]
    return [f"--patch_size: the patches differ in size: {listing(kinds)}; give --patch_size N to cut or pad them to N pixels."]


def key_of(bands, coding):
    """A short text for all that facts hang on besides the files themselves."""
    mapping = coding.mapping and sorted(coding.mapping.items())
    told = [FORMAT, bands.of_patch, bands.require_all_bands, mapping, coding.by_tag, coding.nodata, coding.classes]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


# ---------------------------------------------------------------- bands and classes


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


def choose_bands(images, config, metadata):
    """The bands the network takes, traced back to the scene the patches were cut from.

    Args:
        images: paths of patches; a few of them speak for all. metadata: of the patches, {} when there is none.
    Raises:
        SetupError: --bands or --in_channels do not fit the patches.
    """
    check_metadata(metadata, Path(images[0]).parents[2] / "patch_metadata.json")
    about, settings = metadata.get("bands") or {}, metadata.get("settings") or {}
    first, count = typical(images, config)
    names, every = about.get("names"), list(range(1, count + 1))
    if not names or len(names) != count:
        with raster.open_raster(first) as src:
            names = band_names(src)
        about = {}
    numbers = numbers_of(names, config.bands, first) if config.bands else every
    if config.in_channels not in (None, len(numbers)):
        raise SetupError(f"--in_channels {config.in_channels}: the patches give {len(numbers)} bands; leave it out, or choose with --bands.")
    source = about.get("source_bands") or every
    return Bands([n - 1 for n in numbers], [names[n - 1] for n in numbers], [source[n - 1] for n in numbers], about.get("source_count") or max(count, *source),
                 bool(settings.get("require_all_bands")), settings.get("input_nodata"))


def check_metadata(metadata, path):
    """Raises SetupError when what a file says of the patches is not what an extraction writes: checkpoints would carry it on."""
    about, settings = metadata.get("bands") or {}, metadata.get("settings") or {}
    names, bands, count, nodata, mapping = about.get("names"), about.get("source_bands"), about.get("source_count"), settings.get("input_nodata"), metadata.get("label_map")
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool)
    listed = lambda value, fits: isinstance(value, list) and all(map(fits, value))
    named, numbered = not names or listed(names, lambda name: isinstance(name, str)), bands is None or bands and listed(bands, lambda band: whole(band) and band > 0)
    told = {"bands: names": named,
            "bands: source_bands": numbered and (not names or not named or bands is None or len(bands) == len(names)),
            "bands: source_count": count is None or whole(count) and count >= (max(bands) if bands and numbered else 1),
            "settings: input_nodata": nodata is None or isinstance(nodata, (int, float)) and abs(nodata) < np.inf,
            "settings: require_all_bands": settings.get("require_all_bands") in (None, True, False),
            "class_names": not metadata.get("class_names") or listed(metadata["class_names"], lambda name: isinstance(name, str)),
            "label_map": not mapping or isinstance(mapping, dict) and listed(list(mapping.values()), lambda number: whole(number) and 0 <= number <= IGNORE)}
    wrong = [what for what, good in told.items() if not good]
    if wrong:
        raise SetupError(f"{path}: {listing(wrong)}: not what Patch_extraction_v2.py writes there; restore the file, or remove it.")


def typical(images, config, most=5):
    """A patch with as many bands as most of a few taken from all over, and that number: one damaged or odd file must not speak for all."""
    counts, wrong = {}, []
    for image in images[:: -(-len(images) // most)]:
        try:
            counts[image] = len(raster.stored(image).pixels)
        except (DataError, OSError) as error:
            wrong.append(describe(error))
    if not counts:
        refuse(wrong, config)
    count = Counter(counts.values()).most_common(1)[0][0]
    return next(image for image in counts if counts[image] == count), count


def class_names(config, metadata):
    """One name per class: given, from --label_map, from the patches' metadata, or made up.

    Raises:
        SetupError: the patches name another number of classes than --classes.
    """
    known = config.class_names or names_of(parse_map(config.label_map)) or (not config.label_map and metadata.get("class_names"))
    if not known:
        return [f"class_{i}" for i in range(config.class_count)]
    check_names(known, "--label_map" if config.label_map else "patch_metadata.json", "give --class_names.")
    if len(known) != config.class_count:
        remedy = "choose --mode multiclass, or map them to 0 and 1 with --label_map" if config.mode == "binary" else f"give --classes {len(known)}, or --class_names"
        raise SetupError(f"--classes {config.class_count}: the patches name {len(known)} ({listing(known, 8)}); {remedy}.")
    return list(known)


def check_labels(pixels, names, root=""):
    """Raises SetupError when training or validation has no labelled pixel; a class that lacks in training is said."""
    for split in ("train", "validation"):
        if not pixels[split].sum():
            raise SetupError(f"{Path(root) / split}: not one pixel of its patches is labelled; check --label_map and the label files.")
    absent = [name for name, count in zip(names, pixels["train"]) if not count]
    if absent:
        print(f"note: no training pixel of {listing(absent)}; the network cannot learn it")


def check_folds(folds, class_pixels):
    """Raises SetupError, before the first fold begins, when one of them has no labelled pixel to learn from or to be judged by."""
    for number, fold in enumerate(folds, 1):
        for pairs, what in zip(fold, ("train", "validate")):
            if not any(class_pixels[image].any() for image, _ in pairs):
                raise SetupError(f"--n_splits {len(folds)}: not one pixel of the patches that {what} in fold {number} is labelled; give fewer folds, or check --label_map and the label files.")


def check_weights(weights, pixels):
    """Raises SetupError when no class that occurs in training has a weight, so that nothing would be learned.

    Args:
        weights: of the classes, as given; None: they are counted. pixels: (C,) labelled pixels in training.
    """
    if weights and not np.dot(np.array(weights) > 0, pixels):
        raise SetupError(f"--custom_class_weights {' '.join(f'{weight:g}' for weight in weights)}: every class that occurs in training has the weight 0; give one of them more.")
