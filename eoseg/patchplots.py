"""Pictures of a patch folder: one patch, a sheet of many, a map of where they lie. Figures only, as in `plots`."""

import math
from pathlib import Path

import numpy as np
import shapely
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from eoseg import patchset, plots, raster, vector
from eoseg.bands import band_names, choose_bands
from eoseg.coding import IGNORE
from eoseg.errors import SetupError, listing
from eoseg.splits import SPLITS

SPLIT_COLOURS = dict(zip(SPLITS, [(0, 68, 136), (221, 170, 51), (187, 85, 102)]))  # Paul Tol's "high-contrast": safe for colour-blind eyes, and in grey
REACH = 50  # patches: wider gaps may part two places of a map
DOT = 1 / 20  # of a map's width: smaller places get maps of their own
PANELS = 12


def draw_sample(folder, split, index, rgb=None, images="images"):
    """One patch beside its label, as `sample_<split>_<index>.png` in the patch folder; returns the path.

    Args:
        rgb: three bands to show as red, green and blue, or one as grey: numbers from 1, or names. None: what the names suggest.
        images: the folder of images beside `labels`.
    """
    pairs = pairs_of(folder, split, images)
    if index >= len(pairs):
        raise SetupError(f"--sample_index {index}: {split} in {folder} holds {len(pairs)} patches; give 0 to {len(pairs) - 1}.")
    image, label = pairs[index]
    pixels, classes = read_pair(image, label, rgb)
    names, palette, shown = classes_of(folder, [classes])
    figure = Figure(figsize=(10, 5))
    left, right = figure.subplots(1, 2)
    left.imshow(plots.stretched(pixels, np.isfinite(pixels).any(0)))
    left.set_title(image.name)
    right.imshow(plots.painted(classes, palette), interpolation="nearest")
    right.set_title("label (white: unlabelled)")
    plots.legend(right, [names[c] for c in shown], [palette[c] for c in shown], loc="upper left", bbox_to_anchor=(1, 1))
    for axes in (left, right):
        axes.set_axis_off()
    return plots.save(figure, Path(folder) / f"sample_{split}_{index}.png")


def draw_contact_sheet(folder, split, count=16, rgb=None, images="images"):
    """Up to `count` patches beside their labels, spread over the split, as `contact_<split>.png`; returns the path.

    One stretch for all, so that bright patches look brighter than dark ones; white where an image holds no data and
    where a label is unlabelled. `rgb` and `images` as in `draw_sample`.
    """
    pairs = pairs_of(folder, split, images)
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)]
    across = round(math.sqrt(len(chosen)))
    inches = max(14, min(2.4 * across, 48)) / across  # of a pair; thousands shrink, so that matplotlib can still draw them
    rgb = bands_to_show(chosen[0][0], rgb)
    read = [read_pair(image, label, rgb, longest=int(np.clip(75 * inches, 32, 256))) for image, label in chosen]
    span = plots.spread(np.concatenate([pixels.reshape(len(rgb), -1) for pixels, _ in read], axis=1), True)
    names, palette, shown = classes_of(folder, [classes for _, classes in read])
    right, down, title = 2.14, 1.05 + 0.45 / inches, 0.45 / inches  # one picture is 1 x 1
    width, height = across * right - 0.08, math.ceil(len(chosen) / across) * down - 0.02
    figure = Figure(figsize=(inches / right * width, inches / right * height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.02, width - 0.02), ylim=(height - title, -title), aspect="equal")
    axes.set_axis_off()
    for place, ((image, _), (pixels, classes)) in enumerate(zip(chosen, read)):
        x, y = place % across * right, place // across * down
        put(axes, plots.stretched(pixels, np.isfinite(pixels).any(0), span), x, y)
        put(axes, plots.painted(classes, palette), x + 1.03, y, interpolation="nearest")
        axes.text(x, y - 0.02, plots.shortened(image.stem, int(15 * max(inches, 2.4))), fontsize=min(2.6 * inches, 8), va="bottom")
    axes.set_title(f"{split}: {len(chosen)} of {len(pairs)} patches, each with its label")
    entries = [*((names[c], palette[c]) for c in shown), ("unlabelled, no data", (255, 255, 255))]
    columns = max(1, int(inches * across / (0.6 + 0.1 * max(len(name) for name, _ in entries))))
    plots.legend(axes, *zip(*entries), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(columns, len(entries)))
    return plots.save(figure, Path(folder) / f"contact_{split}.png")


def pairs_of(folder, split, images):
    """`patchset.find_pairs`, at least one."""
    pairs = patchset.find_pairs(folder, split, images)
    if not pairs:
        raise SetupError(f"--output {folder}: holds no patches of {split}{'' if images == 'images' else f' in {images}'}; choose another --split, or another folder.")
    return pairs


def bands_to_show(image, rgb):
    """Numbers, from 1, of one band or three of a patch."""
    with raster.open_raster(image) as src:
        names = band_names(src)
    wanted = [i + 1 for i in plots.rgb_order(names)] if rgb is None else rgb
    if len(wanted) not in (1, 3):
        raise SetupError(f"--rgb {' '.join(map(str, wanted))}: give three bands, or one; {image} has {len(names)}: {listing(names, 20)}.")
    return choose_bands(names, wanted, image, "--rgb")


def read_pair(image, label, rgb=None, longest=2**20):
    """A patch to look at, at most `longest` pixels high and wide.

    Returns:
        the bands to show (1 or 3, h, w) float32, NaN where they hold no data; classes (h, w) uint8.
    """
    pixels, missing, valid = (plots.thinned(part, longest) for part in raster.read_patch(image, [band - 1 for band in bands_to_show(image, rgb)]))
    codes = plots.thinned(raster.read_label(label)[0], longest)
    return np.where(missing | ~valid, np.nan, pixels).astype(np.float32), np.where((codes >= 0) & (codes < IGNORE), codes, IGNORE).astype(np.uint8)


def classes_of(folder, labels):
    """Names and colours of the classes 0 to the last, and the numbers of those worth a legend: named by the metadata, or seen in `labels`."""
    known = patchset.load_metadata(folder, required=False).get("class_names") or []
    seen = set().union(*(np.unique(classes).tolist() for classes in labels)) - {IGNORE}
    names = [*known, *(f"class {c}" for c in range(len(known), max(seen, default=-1) + 1))]
    return names, plots.colours(names), [c for c in range(len(names)) if c < len(known) or c in seen]


def put(axes, picture, x, y, **settings):
    """A picture in the middle of the unit square at (x, y), with a thin frame: it may be white."""
    height, width = np.array(picture.shape[:2]) / max(picture.shape[:2])
    left, top = x + (1 - width) / 2, y + (1 - height) / 2
    axes.imshow(picture, extent=(left, left + width, top + height, top), **settings)
    axes.add_patch(Rectangle((left, top), width, height, fill=False, color="0.6", lw=0.6))  # one pixel


def draw_split_map(folder):
    """Where the patches lie and which split each is in, as `splits.png` in the patch folder; returns the path.

    Places that would be dots on one map get a panel each.

    Raises:
        SetupError: no patches.gpkg, or another program's.
    """
    path = Path(folder) / "patches.gpkg"
    if not path.exists():
        raise SetupError(f"{path}: no such file, and older extractions wrote none; extract the patches again.")
    frame = vector.read_layer(path)
    if not {"split", "scene"} <= set(frame.columns) or (frame.geometry.isna() | frame.geometry.is_empty).any() or frame.empty:
        raise SetupError(f"{path}: is no list of patches with their scene and split; extract the patches again.")
    places = places_of(frame)
    every = [np.arange(len(frame))] if len(places) > PANELS and frame.crs else []  # a first panel where all are dots
    panels = [*every, *places][:PANELS]
    across = math.ceil(math.sqrt(len(panels)))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(3.6 * across, 3.4 * down) if len(panels) > 1 else (8, 6), layout="compressed")
    for place, members in enumerate(panels, 1):
        draw_place(figure.add_subplot(down, across, place), frame.iloc[members], many=len(panels) > 1)
    counts = frame["split"].value_counts()
    plots.legend(figure, [f"{split} ({counts.get(split, 0):,})" for split in SPLITS], SPLIT_COLOURS.values(), loc="outside lower center", ncols=3)
    where = f"; places: {len(places):,}{', here those with the most patches' if len(places) > PANELS else ''}" if len(places) > 1 else ""
    figure.suptitle(f"patches: {len(frame):,}; scenes: {frame['scene'].nunique():,}{where}")
    return plots.save(figure, Path(folder) / "splits.png")


def places_of(frame):
    """Rows of the patches of each panel, the fullest first. Without a CRS two scenes' coordinates have nothing in common: one each."""
    of = far_apart(frame.bounds.to_numpy()) if frame.crs else np.unique(frame["scene"].astype(str), return_inverse=True)[1]
    return sorted((np.flatnonzero(of == number) for number in range(of.max() + 1)), key=len, reverse=True)


def far_apart(bounds):
    """Number the places of boxes (N, 4: west, south, east, north): all 0 where a single map shows them well."""
    size = np.median(np.maximum(*(bounds[:, 2:] - bounds[:, :2]).T))
    tiles, tile_of = np.unique(np.floor(bounds[:, :2] / (REACH * size)), axis=0, return_inverse=True)
    near = cKDTree(tiles).query_pairs(1.5, p=np.inf, output_type="ndarray")  # neighbours, also across a corner
    _, place_of = connected_components(coo_array((np.ones(len(near)), near.T), shape=(len(tiles), len(tiles))), directed=False)
    of = place_of[tile_of.ravel()]
    longest = lambda boxes: max(boxes[:, 2:].max(0) - boxes[:, :2].min(0))
    widths = [longest(bounds[of == number]) for number in range(of.max() + 1)]
    alone = len(widths) > PANELS and len(of) < 3 * len(widths)  # patches scattered over a country: a dot says it all
    return of if np.median(widths) < DOT * longest(bounds) and not alone else np.zeros_like(of)


def draw_place(axes, frame, many):
    """The patches of one place; those that would hardly be seen as dots."""
    west, south, east, north = frame.total_bounds
    longest = max(east - west, north - south)
    sides = np.maximum(frame.bounds["maxx"] - frame.bounds["minx"], frame.bounds["maxy"] - frame.bounds["miny"])
    small, sparse = np.median(sides) < 0.02 * longest, (sides**2).sum() < 0.1 * longest**2
    for (split, colour), dot in zip(SPLIT_COLOURS.items(), (30, 12, 4) if many else (8, 8, 8)):  # many: a whole scene may be one dot
        shapes = shapely.convex_hull(frame.geometry[frame["split"] == split].to_numpy())
        if small and sparse:
            axes.scatter(*shapely.get_coordinates(shapely.centroid(shapes)).T, s=dot, marker="s", lw=0, color=np.array(colour) / 255)
        else:
            corners = [shapely.get_coordinates(shape) for shape in shapes]
            axes.add_collection(PolyCollection(corners, facecolor=np.array(colour) / 255, edgecolor="face" if small else "white", lw=0.4))
    narrow = math.cos(math.radians((south + north) / 2)) if frame.crs and frame.crs.is_geographic else 1  # a degree of longitude against one of latitude
    axes.set(xlim=(west - 0.04 * longest, east + 0.04 * longest), ylim=(south - 0.04 * longest, north + 0.04 * longest), aspect=1 / max(narrow, 0.01))
    if frame.crs is None and north < 1e5:  # pixels of an image: rows count downwards
        axes.invert_yaxis()
    axes.set_xlabel("no CRS" if frame.crs is None else next((axis.unit_name for axis in frame.crs.axis_info), ""), fontsize=8)
    for axis, length, turn in ((axes.xaxis, east - west, 0), (axes.yaxis, north - south, 90)):
        axis.set_major_locator(MaxNLocator(max(1, round((3 if many else 6) * length / longest))))
        axis.set_tick_params(labelsize=8, labelrotation=turn)
    axes.ticklabel_format(useOffset=False, style="plain")
    if many:
        scenes = frame["scene"].unique()
        axes.set_title(f"{plots.shortened(str(scenes[0]), 30) if len(scenes) == 1 else f'{len(scenes):,} scenes'}: {len(frame):,}", fontsize=9)
