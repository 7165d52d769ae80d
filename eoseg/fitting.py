"""Does a scene fit a network? Its bands, what counts as data, the size of its pixels; and the scene, opened so that it does."""

import dataclasses as dc
import math

import numpy as np

from eoseg import raster
from eoseg.bands import band_names, choose_bands, speaks
from eoseg.errors import DataError, ReadError, SetupError, listing
from eoseg.georef import METRES_PER_DEGREE, latitude, off_earth, pixel_size
from eoseg.tiles import Window
from eoseg.validity import called_alpha, called_colours

SAMPLE, SUSPECT = 64, 0.05  # pixels: side of the windows that are looked at; share of pixels that are 0 in every band
ALIKE, OTHER = 0.001, 0.05  # by how much pixel sizes may differ: to count as the same, and before it is said


def open_scene(network, path, options, say=print):
    """The scene at `path` as `network` wants it, and the options with what training took for data and with the threshold in use.

    Returns:
        raster.Scene, PredictionConfig.
    Raises:
        SetupError: the scene does not fit; both sides are named.
    """
    bands = scene_bands(network, path, options.bands, say)
    options = as_trained(network, options, path, say)
    grid = grid_of(network, path, options.resample_to_training, say)
    scene = raster.Scene(path, bands, options.input_nodata, options.require_all_bands, like=grid, threads=raster.THREADS)
    compare_values(network, scene, say)
    return scene, options


def as_trained(network, options, path, say):
    """The options with what the training patches took for data, where the flags and the scene do not say, and the threshold in use."""
    about = network.input or {}
    nodata = options.input_nodata
    if nodata is None and about.get("input_nodata") is not None and raster.header(path).nodata is None:
        nodata = about["input_nodata"]
        say(f"note: {path}: {nodata:g} is taken as nodata, as in training (--input_nodata)")
    return dc.replace(options, input_nodata=nodata, require_all_bands=options.require_all_bands or bool(about.get("require_all_bands")),
                      threshold=network.threshold if options.threshold is None else options.threshold)


def compare_values(network, scene, say):
    """Warn of a scene whose values, in a few windows, are far from those of the training, or hold what looks like nodata that nobody has named."""
    places = {(int(row), int(col)) for row in np.linspace(0, max(scene.height - SAMPLE, 0), 3) for col in np.linspace(0, max(scene.width - SAMPLE, 0), 3)}
    try:
        read = [scene.read(Window(row, col, min(SAMPLE, scene.height), min(SAMPLE, scene.width))) for row, col in sorted(places)]
    except ReadError:
        return  # mapping it will say so
    pixels, valid = np.concatenate([part[0].reshape(len(scene.bands), -1) for part in read], 1), np.concatenate([part[2].ravel() for part in read])
    pixels = pixels[:, valid]
    if not pixels.size:
        return
    empty = (pixels == 0).all(0).mean()
    if empty > SUSPECT and len(pixels) > 1 and scene.fill is None and not scene.masked:
        say(f"warning: {scene.path}: about {empty:.0%} of its pixels are 0 in every band, and it names no nodata; if they show nothing, give --input_nodata 0")
    low, high = network.normalizer.usual()
    if low is None:
        return
    middle, spread = np.median(pixels.astype(np.float64), 1), high - low  # between two of 3e38 there is no 32-bit middle
    far = np.flatnonzero((middle < low - spread) | (middle > high + spread))
    if 2 * len(far) > len(middle):
        band = far[0]
        say(f"warning: {scene.path}: values far from those of the training: band {scene.names[band]} has {middle[band]:.6g} in the middle, most training pixels lay between {low[band]:.6g} and "
            f"{high[band]:.6g}; is it scaled otherwise, or of another sensor?")


def grid_of(network, path, resample, say=print):
    """The grid on which a scene is mapped: None for its own.

    A network knows the world at one scale. Pixels of another size are said; with `resample` the scene is brought to the size of
    the training pixels, from its own corner.

    Raises:
        SetupError: `resample`, and the size of the pixels is unknown on either side.
    """
    place = raster.header(path)
    trained, here = network.pixel_size, pixel_size(place)
    if off_earth(place.transform, place.crs, place.height, place.width):
        say(f"warning: {path}: its CRS is in degrees and its corner lies at {place.transform.c:.6g} {place.transform.f:.6g}, which is nowhere on Earth; set its true CRS with gdal_edit.py -a_srs")
    if not trained or not here:
        if resample:
            raise SetupError(f"--resample_to_training: {path if trained else network.path} does not tell how large its pixels are on the ground; leave the flag out.")
        return None
    scale = [trained[i] / here[i] * metres_of(trained[2], place)[i] / metres_of(here[2], place)[i] for i in (0, 1)]  # of columns, rows
    apart = max(abs(math.log(part)) for part in scale)
    sizes = f"{path}: pixels of {told(here)}; the network was trained on {told(trained)}"
    if not resample:
        if apart > OTHER:
            say(f"warning: {sizes}: expect a poorer map, or give --resample_to_training")
        return None
    if apart <= ALIKE:
        return None
    height, width = (math.ceil(round(length / part, 3)) for length, part in ((place.height, scale[1]), (place.width, scale[0])))
    grid = raster.Header(height, width, place.crs, place.transform * place.transform.scale(*scale), path=f"--resample_to_training of {path}")
    say(f"resampled {sizes}; the map has {grid.height} x {grid.width} pixels of that size")
    return grid


def metres_of(unit, place):
    """About how long a unit of pixel size is on the ground, along rows and along columns, where the raster.Header `place` lies."""
    if unit == "degree":
        return METRES_PER_DEGREE * math.cos(math.radians(latitude(place))), METRES_PER_DEGREE
    return ({"kilometre": 1000.0, "foot": 0.3048, "US survey foot": 1200 / 3937}.get(unit, 1.0),) * 2


def told(size):
    """A pixel size in words."""
    width, height, unit = size
    sides = f"{width:g}" if abs(width / height - 1) < ALIKE else f"{width:g} x {height:g}"
    return f"{sides} {unit}" + (f" (about {height * METRES_PER_DEGREE:.3g} m)" if unit == "degree" else "")


def scene_bands(network, path, asked=None, say=print):
    """Which bands of the scene at `path` the network takes, as numbers from 1.

    Those that are `asked` for; else by name where the scene names all of them, else by place. An alpha band the network does
    not count is a mask.

    Args:
        asked: numbers or names, in the network's order.
    Raises:
        SetupError: the scene's bands do not fit; both are named.
    """
    with raster.open_raster(path) as src:
        names, colour = band_names(src), [number for number in src.indexes if not called_alpha(src, number)]
        if called_colours(src):
            say(f"warning: {path}: its numbers stand for the colours of a table, they measure nothing; if the network was trained on colours, give these: gdal_translate -expand rgb")
    wanted = network.input["names"] if network.input else [f"band_{i + 1}" for i in range(network.in_channels)]
    if asked:
        found = choose_bands(names, asked, path)
        if len(found) != len(wanted):
            raise SetupError(f"--bands: names {len(found)} bands ({listing([names[number - 1] for number in found], 13)}); the network takes {len(wanted)} ({listing(wanted, 13)}), "
                             "name one for each, in this order.")
        warn_of_others([names[number - 1] for number in found], wanted, path, say)
        return found
    if not network.input:
        if network.in_channels not in (len(names), len(colour)):
            raise DataError(f"{path}: has {len(names)} bands; the network takes {network.in_channels}. Give it a scene of these bands, in training order, or choose them with --bands.")
        return list(range(1, len(names) + 1)) if network.in_channels == len(names) else colour
    if not all(names.count(name) == 1 for name in wanted) or not all(map(speaks, wanted)):
        return bands_by_place(network.input, names, colour, path, say)
    found = [names.index(name) + 1 for name in wanted]
    if found != network.input["of_scene"] and len(names) == network.input["scene_count"]:
        say(f"note: {path}: bands {listing(wanted, 13)} taken by name, from {listing(found, 13)}")
    return found


def bands_by_place(trained, names, colour, path, say):
    """The bands of a scene that does not name those the network was trained on; `colour` are its bands but for alpha."""
    wanted, expected = trained["names"], trained["scene_count"]
    everything = list(range(1, len(names) + 1))
    whole = next((bands for bands in (everything, colour) if len(bands) == expected), None)
    same = next((bands for bands in (everything, colour) if len(bands) == len(wanted)), None)
    if whole:
        found = [whole[place - 1] for place in trained["of_scene"]]
    elif same:
        found = same
        say(f"note: {path}: its {len(same)} bands are taken as {listing(wanted, 13)}, in this order")
    else:
        raise DataError(f"{path}: has {len(names)} bands ({listing(names, 13)}); the network was trained on {listing(wanted, 13)} of scenes with "
                        f"{expected} bands; give a scene with the same bands, or choose them with --bands.")
    warn_of_others([names[number - 1] for number in found], wanted, path, say)
    return found


def warn_of_others(names, wanted, path, say):
    """Say where bands that are told by name on both sides go by different names."""
    if any(map(speaks, names)) and any(map(speaks, wanted)) and names != wanted:
        say(f"warning: {path}: bands {listing(names, 13)} are taken by place for {listing(wanted, 13)}; if they are other bands, the map is wrong")
