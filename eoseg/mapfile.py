"""A map while it grows: finished rows are put into raw files, and become GeoTIFFs when all are there.

Each band of finished rows is followed by a line in a journal, so that a killed run can go on after the last one.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from eoseg import files, raster
from eoseg.errors import SetupError, listing
from eoseg.georef import pixel_areas

BINS = 1024  # of the confidence histogram
ONE = 2**24  # steps of a blended probability: 2^-12, times weights of 2^-6 along rows and columns
LEVELS = 250  # of a probability in 8 bits; 255 is nodata
SETTINGS = "PREDICTION_SETTINGS"  # tag of a finished map: what decided its pixels


class Layer(NamedTuple):
    """One raster of a map."""

    kind: str  # classes, confidence, probabilities, uncertainty
    path: Optional[Path]  # where it goes; None: it is needed only while the map is made
    dtype: str
    bands: tuple  # their descriptions
    nodata: object
    overview: str = "AVERAGE"
    scale: float = 1.0  # by which a pixel is multiplied to get what it stands for
    colours: tuple = ()
    names: tuple = ()

    @property
    def pixel_bytes(self):
        return np.dtype(self.dtype).itemsize * len(self.bands)


def beside(output, ending):
    """`map_confidence.tif` beside `map.tif`."""
    return output.with_name(output.stem + ending)


def layers_of(output, classes, names, palette, options, members=1):
    """The layers that `options` (PredictionConfig) ask for; the classes last, so that no map stands there without the others.

    Args:
        classes: their names. names, palette: of every number of the map, from 0. members: answers that are averaged; more than one can disagree.
    """
    found, nodata = [], options.output_nodata
    if options.save_confidence or options.polygons is not None:
        found.append(Layer("confidence", beside(output, "_confidence.tif") if options.save_confidence else None, "float32", ("confidence",), "nan"))
    if options.save_probabilities:
        small = options.probability_dtype == "uint8"
        found.append(Layer("probabilities", beside(output, "_probabilities.tif"), options.probability_dtype, tuple(classes), 255 if small else "nan", scale=1 / LEVELS if small else 1.0))
    if options.save_uncertainty:
        found.append(Layer("uncertainty", beside(output, "_uncertainty.tif"), "float32", ("entropy", "disagreement")[: 1 + (members > 1)], "nan"))
    dtype = "uint8" if nodata <= 255 and len(names) <= 255 else "uint16"
    return [*found, Layer("classes", output, dtype, ("class",), nodata, "MODE", colours=tuple(palette), names=tuple(names))]


def raw_of(target, layer):
    """The file that a layer of the map at `target` grows in."""
    return files.part_of(target, f"{layer if isinstance(layer, str) else layer.kind}.part")


def journal_of(target):
    """The file that tells how far the map at `target` has come."""
    return files.part_of(target, "journal.part")


def parts_of(target):
    """The raw files that a map at `target` may have, of whatever layers."""
    return [raw_of(target, kind) for kind in ("classes", "confidence", "probabilities", "uncertainty")]


def begun(target):
    """What a run noted when it began the map at `target`, a dict of settings and strips; None where none has, or nothing that can be gone on with."""
    try:
        first, line_break, _ = journal_of(target).read_bytes().partition(b"\n")
        head = json.loads(first) if line_break else None
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(head, dict) and isinstance(head.get("settings"), dict) and is_count(head.get("strips")) and head["strips"]
    return head if whole else None


def in_the_making(target):
    """Has a run begun a map at `target` that is not finished?"""
    return begun(target) is not None


def strips_begun(target):
    """In how many strips a run that was cut off has begun the map at `target`; None where none has."""
    return (begun(target) or {}).get("strips")


def drop_other(target, settings):
    """Forget what a run has begun at `target` with other settings than `settings_begun` gives."""
    head = begun(target)
    try:
        check_settings(target, settings, head["settings"] if head else settings)
    except SetupError:
        for path in (*parts_of(target), journal_of(target)):
            path.unlink(missing_ok=True)


def is_count(value):
    return type(value) is int and value >= 0


def check_settings(target, settings, before):
    """Refuse to go on with a map begun with other settings; `before` are those, a dict."""
    differ = sorted(key for key in settings.keys() | before.keys() if json.dumps(settings.get(key)) != json.dumps(before.get(key)))  # as text: NaN is NaN
    if differ:
        raise SetupError(f"--resume: the map {target} was made with other {listing(differ)}; use the same, or --overwrite to start again.")


def settings_begun(settings, layers):
    """The settings that a map in the making keeps: those of the finished map, and whether a layer is made only for the polygons."""
    return {**settings, "polygons": any(layer.path is None for layer in layers)}


class MapFile:
    """The layers of a map, strip after strip of columns, each row by row from the top.

    Args:
        target: path of the map. look: dict of height, width, crs, transform. classes: their names.
        layers: as `layers_of` gives them. settings: what decides the pixels; a resumed run must have the same.
        strips: in how many the scene is cut; for a run that goes on, as `strips_begun` tells.
        resume: go on after the rows an earlier run has finished.
    Attributes:
        strip, row: what comes next. strips: their number.
    """

    def __init__(self, target, look, classes, layers, settings, strips=1, resume=False):
        self.target, self.look, self.classes, self.layers, self.settings, self.strips = target, look, classes, layers, settings, strips
        self.journal = journal_of(target)
        self.areas = pixel_areas(look["transform"], look["crs"], look["height"], look["width"])
        self.strip, self.row, self.pixels, self.area = 0, 0, np.zeros(len(classes), np.int64), np.zeros(len(classes))
        self.histogram, self.sum = np.zeros(BINS, np.int64), 0
        head = begun(target) if resume else None
        if head:
            check_settings(target, settings_begun(settings, layers), head["settings"])
        if head and head["strips"] == strips and self._holds_rows():
            self._go_on()
        else:
            self._begin()

    def _size(self, layer):
        return self.look["height"] * self.look["width"] * layer.pixel_bytes

    def _begin(self):
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.discard()
        for layer in self.layers:
            with open(raw_of(self.target, layer), "wb") as f:
                f.truncate(self._size(layer))
        self.journal.write_text(json.dumps({"settings": settings_begun(self.settings, self.layers), "strips": self.strips}) + "\n", encoding="utf-8", newline="\n")

    def _holds_rows(self):
        """Are the raw files there that the journal tells of?"""
        return all(path.is_file() and not path.is_symlink() and path.stat().st_size == self._size(layer) for layer, path in ((layer, raw_of(self.target, layer)) for layer in self.layers))

    def _go_on(self):
        """Take up what the journal tells, as far as it can be believed: a line may be torn, and what follows it with it."""
        first, *lines = self.journal.read_bytes().split(b"\n")
        good = len(first) + 1
        for line in lines[:-1]:
            try:
                state = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not self._could_be(state):
                break
            good += len(line) + 1
            self.strip, self.row, self.sum = state["strip"], state["row"], state["sum"]
            self.pixels, self.area, self.histogram = (np.array(state[key]) for key in ("pixels", "area", "histogram"))
        os.truncate(self.journal, good)

    def _could_be(self, state):
        """Can a line of the journal follow those before it?"""
        if not isinstance(state, dict) or not all(is_count(state.get(key)) for key in ("strip", "row", "sum")):
            return False
        pixels, area, histogram = (state.get(key) if isinstance(state.get(key), list) else [] for key in ("pixels", "area", "histogram"))
        if (len(pixels), len(area), len(histogram)) != (len(self.classes), len(self.classes), BINS) or not all(map(is_count, [*pixels, *histogram])):
            return False
        further = (self.strip, self.row) < (state["strip"], state["row"]) <= (self.strips, 0) and state["row"] < self.look["height"]
        counted = sum(pixels) == sum(histogram) <= self.look["height"] * self.look["width"] and state["sum"] <= sum(pixels) * ONE
        return further and counted and all(type(part) in (int, float) and 0 <= part < float("inf") for part in area)

    def write(self, left, row, finished):
        """Put finished rows in place, from image row `row` and column `left` on.

        Args:
            finished: blending.Finished.
        """
        for layer in self.layers:
            self._put(layer, finished.layers[layer.kind], row, left)
        height = len(finished.counts)
        self.pixels += finished.counts.sum(0)
        if self.areas is not None:
            self.area += self.areas[row : row + height] @ finished.counts
        self.sum += finished.total
        self.histogram += finished.histogram
        self.row = row + height
        if self.row == self.look["height"]:
            self.strip, self.row = self.strip + 1, 0
        state = {"strip": self.strip, "row": self.row, "sum": self.sum, "pixels": self.pixels.tolist(), "area": self.area.tolist(), "histogram": self.histogram.tolist()}
        with open(self.journal, "a", encoding="utf-8", newline="\n") as f:
            f.write(json.dumps(state) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def _put(self, layer, values, row, left):
        """Write a window (bands, h, w) into a layer's raw file, and wait until it is on the disk."""
        height, width = self.look["height"], self.look["width"]
        values = np.ascontiguousarray(values, layer.dtype).reshape(len(layer.bands), *values.shape[-2:])
        with open(raw_of(self.target, layer), "r+b") as f:
            for number, band in enumerate(values):
                for place, line in enumerate([band] if band.shape[1] == width else band):
                    f.seek(((number * height + row + place) * width + left) * values.itemsize)
                    f.write(line.data)
            f.flush()
            os.fsync(f.fileno())

    def rows(self, kind):
        """A layer's pixels so far, (bands, H, W), as the disk holds them; None where the map has no such layer."""
        for layer in self.layers:
            if layer.kind == kind:
                return np.memmap(raw_of(self.target, layer), layer.dtype, "r", shape=(len(layer.bands), self.look["height"], self.look["width"]))
        return None

    def finish(self):
        """Make the GeoTIFFs."""
        kept = {key: value for key, value in self.settings.items() if key != "scene_time"}  # the same map again has the same bytes
        for layer in self.layers:
            if layer.path:
                raster.raw_to_cog(raw_of(self.target, layer), layer.path, {**self.look, **layer._asdict(), "tags": {SETTINGS: json.dumps(kept)}})

    def discard(self):
        """Remove what was needed while the map was made."""
        for path in (*parts_of(self.target), self.journal):
            path.unlink(missing_ok=True)

    def summary(self):
        """What the map holds.

        Returns:
            dict valid_pixels, total_pixels, classes (name -> pixels, share, hectares or None), confidence (mean, p5, p50; nan for an empty map).
        """
        total = int(self.pixels.sum())
        upto = np.cumsum(self.histogram) / max(total, 1)
        rank = lambda share: float((np.searchsorted(upto, share) + 0.5) / BINS) if total else float("nan")
        return {
            "valid_pixels": total,
            "total_pixels": self.look["height"] * self.look["width"],
            "classes": {
                name: {"pixels": int(n), "share": float(n / max(total, 1)), "hectares": float(a / 1e4) if self.areas is not None else None}
                for name, n, a in zip(self.classes, self.pixels, self.area)
            },
            "confidence": {"mean": self.sum / ONE / total if total else float("nan"), "p5": rank(0.05), "p50": rank(0.5)},
        }
