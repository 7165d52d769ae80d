"""A finished map as polygons: every 4-connected patch of one class, whole wherever windows and strips of the prediction met."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from rasterio import features
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from eoseg import memory, vector
from eoseg.errors import SetupError
from eoseg.georef import pixel_areas
from eoseg.mapfile import beside

SUFFIXES = (".gpkg", ".geojson", ".parquet")
PIXEL, RUN = 12, 160  # bytes that numbering takes: a pixel, a run of pixels
DRAWN, SIMPLIFIED = (1000, 200), (3500, 450)  # bytes that outlines take: a patch, and each run of its pixels
BAND = 2**22  # pixels whose confidence is added up at once


def target_of(options, output):
    """Where the polygons of the map at `output` go: the file that was named, or one beside the map where only a suffix was.

    Raises:
        SetupError: no format that is known, or one that needs a package which is not there.
    """
    word = options.polygons
    target = beside(output, word) if word.lower() in SUFFIXES else Path(word)
    vector.check_name(target, "--polygons ")
    if target.suffix.lower() not in SUFFIXES or word.startswith("/vsi"):
        raise SetupError(f"--polygons {word}: is no format for polygons; end it in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    if target.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise SetupError(f"--polygons {word}: GeoParquet needs another package: pip install pyarrow; .gpkg needs none.")
    return target


def check(target, look, options):
    """Refuse what a look at the scene tells cannot be written; worth a call before the map is computed.

    Args:
        look: dict of height, width, crs, transform. options: PredictionConfig.
    Raises:
        SetupError: the place on Earth is unknown and needed, or the pixels are too many for the memory.
    """
    if pixel_areas(look["transform"], look["crs"], look["height"], look["width"]) is None:
        if target.suffix.lower() == ".geojson":
            raise SetupError(f"--polygons {target}: GeoJSON is in longitude and latitude, and nobody knows where the scene lies; choose .gpkg, or georeference the scene.")
        if options.min_area:
            raise SetupError(f"--min_area {options.min_area:g}: nobody knows how many hectares a pixel of the scene has; give --sieve N pixels, or georeference the scene.")
    afford(PIXEL * look["height"] * look["width"], f"{look['height']:,} x {look['width']:,} pixels", "cut the scene into parts", options)


def afford(need, what, remedy, options):
    """Refuse work that takes more than --max_memory in all, or more than half of what is free."""
    held = memory.told("VmRSS") or 2**29
    limit = options.max_memory or held + memory.available() // 2
    if held + need > limit:
        raise SetupError(f"--polygons: {what} take about {memory.shown(held + need)} of memory, and {memory.shown(limit)} are allowed; "
                         f"{remedy}, or allow more with --max_memory.")


def write(target, classes, confidence, look, names, numbers, options, say=print):
    """Write a map's patches with class, name, hectares, pixels and mean confidence.

    Areas and confidence are those of the pixels, whatever `options.simplify` does to the outlines. GeoJSON is in longitude and latitude, as
    RFC 7946 wants; other formats are in the map's CRS.

    Args:
        target: as `target_of` gave it. classes: (H, W) uint8 or uint16, may be a memmap. confidence: (H, W) float32, or None.
        look: dict of height, width, crs, transform, nodata. names: of the classes. numbers: what stands for each name in `classes`.
        options: PredictionConfig (sieve, min_area, simplify, max_memory).
    Returns:
        how many polygons were written.
    Raises:
        SetupError: as `check` does, or the patches are too many for the memory. What stood at `target` is untouched then.
    """
    check(target, look, options)
    runs = runs_of(np.array(classes), look["nodata"], options)
    numbered, patch = sieved(runs, options.sieve)
    table = measured(runs, numbered, patch, confidence, look)
    kept = large_enough(table, look["nodata"], options.min_area, say)
    count, (a_patch, a_run) = int(kept.sum()), SIMPLIFIED if options.simplify else DRAWN
    afford(a_patch * count + a_run * int(kept[patch].sum()), f"{count:,} polygons", "give a larger --sieve or --min_area, a smaller area with --aoi", options)
    if not count:
        say(f"note: {target}: holds no polygon")
    label = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[patch][runs.of_pixel]
    shapes = placed(outlines(label, count, options.simplify), look["transform"])
    called = dict(zip(numbers, names))
    table = {key: column[kept] for key, column in table.items()}
    table["name"][:] = [called.get(number, "") for number in table["class"].tolist()]
    frame = vector.frame_of(table, shapes, look["crs"].to_wkt() if look["crs"] else None)
    vector.write_layer(frame, target, geometry_type="Polygon", **({"RFC7946": "YES"} if target.suffix.lower() == ".geojson" else {}))
    return count


def large_enough(table, nodata, least, say):
    """Which patches become polygons, (P,) bool: what is no nodata, and has at least so many hectares."""
    known = table["class"] != nodata
    small = known & (table["hectares"] < least)  # never where the place, and so the area, is unknown
    if small.any():
        say(f"note: --min_area {least:g}: {small.sum():,} of {known.sum():,} polygons left out, {table['hectares'][small].sum():,.2f} hectares in all")
    return known & ~small


class Runs(NamedTuple):
    """Runs of like pixels along the rows of a map, (R,) each."""

    starts: np.ndarray  # first pixel, as a flat index
    lengths: np.ndarray  # pixels
    numbers: np.ndarray  # what the map holds there
    of_pixel: np.ndarray  # the run of every pixel, (H, W) int32
    touching: tuple  # two int32 arrays: pairs of runs, none of them nodata, that have a side in common


def runs_of(classes, nodata, options):
    """Cut a map (H, W) into runs; they are far fewer than pixels, and all that follows goes by them."""
    begins = np.ones(classes.shape, bool)
    np.not_equal(classes[:, 1:], classes[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    afford(RUN * len(starts), f"{len(starts):,} runs of like pixels", "map a smaller area with --aoi", options)
    of_pixel = np.cumsum(begins, dtype=np.int32).reshape(classes.shape)
    of_pixel -= 1
    touch = (begins[1:] | begins[:-1]) & (classes[1:] != nodata) & (classes[:-1] != nodata)  # one above the other, once for each pair
    side = begins & (classes != nodata)
    side[:, 1:] &= classes[:, :-1] != nodata
    right = of_pixel[:, 1:][side[:, 1:]]
    touching = np.append(of_pixel[:-1][touch], right - 1), np.append(of_pixel[1:][touch], right)
    return Runs(starts, np.diff(starts, append=classes.size), classes.ravel()[starts], of_pixel, touching)


def joined(numbers, touching):
    """The patch of every run, (R,) int32: runs of one number that touch, directly or through others."""
    one, other = (runs[numbers[touching[0]] == numbers[touching[1]]] for runs in touching)
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(len(numbers),) * 2)
    return connected_components(graph, directed=False)[1]


def sieved(runs, least):
    """Give patches of fewer than `least` pixels the number of their largest neighbour, until no more than those without a neighbour are left.

    GDAL's sieve goes over the map once, and leaves alone what is small among the small: nine tenths of a noisy map. nodata neither grows nor shrinks.

    Returns:
        the numbers of the runs; their patches.
    """
    numbers = runs.numbers
    while True:
        patch = joined(numbers, runs.touching)
        pixels = np.bincount(patch, runs.lengths)
        order = np.lexsort((-np.arange(len(pixels)), pixels))  # of two alike, the one that comes first in the map counts as larger
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        largest, (one, other) = rank.copy(), (patch[side] for side in runs.touching)
        np.maximum.at(largest, one, rank[other])
        np.maximum.at(largest, other, rank[one])
        goes = (pixels < least) & (largest > rank)  # a small one larger than all around it waits for them
        if not goes.any():
            return numbers, patch
        to = np.where(goes, order[largest], np.arange(len(order)))
        while (to[to] != to).any():
            to = to[to]
        number = np.empty(len(order), numbers.dtype)
        number[patch] = numbers
        numbers = number[to][patch]


def measured(runs, numbers, patch, confidence, look):
    """What is known of each patch.

    Returns:
        dict of columns (P,): class, name (empty yet), hectares (nan where the place on Earth is unknown), pixels and, with `confidence`, its mean.
    """
    areas = pixel_areas(look["transform"], look["crs"], look["height"], look["width"])
    pixels = np.bincount(patch, runs.lengths)
    number = np.empty(len(pixels), numbers.dtype)
    number[patch] = numbers
    hectares = np.full(len(pixels), np.nan) if areas is None else np.bincount(patch, runs.lengths * areas[runs.starts // look["width"]]) / 1e4
    table = {"class": number.astype(np.int32), "name": np.full(len(pixels), "", object), "hectares": hectares, "pixels": pixels.astype(np.int64)}
    if confidence is not None:
        table["confidence"] = np.round(np.bincount(patch, sums(confidence, runs.starts)) / pixels, 4)
    return table


def sums(values, starts):
    """Sum of `values` (H, W) over each run, (R,) float64; runs end with their row."""
    height, width = values.shape
    step, found = max(1, BAND // width), []
    for row in range(0, height, step):
        part = values[row : row + step].astype(np.float64).ravel()
        first, last = np.searchsorted(starts, (row * width, row * width + part.size))
        found.append(np.add.reduceat(part, starts[first:last] - row * width))
    return np.concatenate(found)


def outlines(label, count, simplify):
    """Outlines of the patches, in pixel coordinates (column, row).

    Args:
        label: (H, W) int32, patches from 1 to `count`, 0 elsewhere.
        simplify: how far, about, a corner may stand out that is left away, in pixels; neighbours keep a common outline.
    Returns:
        (count,) array of polygons.
    """
    found = np.empty(count, object)
    for outline, number in features.shapes(label, label > 0, connectivity=4):
        found[int(number) - 1] = shapely.geometry.shape(outline)
    if simplify:
        every_corner = shapely.transform(shapely.segmentize(found, 1), np.rint)  # also where a third patch meets a straight side: neighbours need the same points
        found = shapely.coverage_simplify(every_corner, np.sqrt(simplify / 2) * 1.000001)  # the root of a triangle's area: that far out, over a side of one pixel
    return found


def placed(shapes, transform):
    """Shapes in pixel coordinates on the ground; a point that two share stays one."""
    t = transform
    return shapely.transform(shapes, lambda xy: np.column_stack((t.a * xy[:, 0] + t.b * xy[:, 1] + t.c, t.d * xy[:, 0] + t.e * xy[:, 1] + t.f)))
