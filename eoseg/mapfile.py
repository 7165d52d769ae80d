"""A map while it grows: finished rows are put into raw files, and become GeoTIFFs when all are there.

Each band of finished rows is followed by a line in a journal, so that a killed run can go on after the last one.
"""

import json
import os

import numpy as np

from eoseg import files, raster
from eoseg.errors import SetupError, listing
from eoseg.georef import pixel_areas

BINS = 1024  # of the confidence histogram
ONE = 2**24  # steps of a blended probability: 2^-12, times weights of 2^-6 along rows and columns
SETTINGS = "PREDICTION_SETTINGS"  # tag of a finished map: what decided its pixels


def journal_of(target):
    """The file that tells how far the map at `target` has come."""
    return files.part_of(target, "journal.part")


def parts_of(target):
    """The files that a map at `target` grows in: classes, confidence."""
    return files.part_of(target, "rows.part"), files.part_of(target, "confidence.part")


def in_the_making(target):
    """Has a run begun a map at `target` that is not finished? A journal torn in its first line has nothing to go on with."""
    journal = journal_of(target)
    return journal.exists() and b"\n" in journal.read_bytes()


def strips_begun(target):
    """In how many strips a run that was cut off has begun the map at `target`; None where none has."""
    try:
        return json.loads(journal_of(target).read_text(encoding="utf-8").split("\n")[0])["strips"] if in_the_making(target) else None
    except (ValueError, KeyError, TypeError):
        return None


def check_settings(target, settings, before):
    """Refuse to go on with a map begun with other settings; `before` are those, a dict."""
    differ = sorted(key for key in settings.keys() | before.keys() if json.dumps(settings.get(key)) != json.dumps(before.get(key)))  # as text: NaN is NaN
    if differ:
        raise SetupError(f"--resume: the map {target} was made with other {listing(differ)}; use the same, or --overwrite to start again.")


class MapFile:
    """Classes, and perhaps confidence, of a scene, strip after strip of columns, each row by row from the top.

    Args:
        target: path of the map. look: dict of height, width, crs, transform.
        classes: their names. palette: their colours. nodata: the map's value where nothing is known.
        confidence: path of the confidence map, or None.
        settings: what decides the pixels; a resumed run must have the same.
        strips: in how many the scene is cut; a resumed run goes on with those it was begun with.
        resume: go on after the rows an earlier run has finished.
    Attributes:
        strip, row: what comes next. strips: their number.
    """

    def __init__(self, target, look, classes, palette, nodata, confidence, settings, strips=1, resume=False):
        self.target, self.confidence, self.classes, self.strips = target, confidence, classes, strips
        dtype = "uint8" if nodata <= 255 and len(classes) <= 255 else "uint16"
        kept = {key: value for key, value in settings.items() if key != "scene_time"}  # the same map again has the same bytes
        self.look = {**look, "tags": {SETTINGS: json.dumps(kept)}, "dtype": dtype, "nodata": nodata, "description": "class", "colours": palette, "names": classes}
        self.raw, self.raw_confidence = parts_of(target)
        self.journal = journal_of(target)
        self.areas = pixel_areas(look["transform"], look["crs"], look["height"], look["width"])
        self.strip, self.row, self.pixels, self.area = 0, 0, np.zeros(len(classes), np.int64), np.zeros(len(classes))
        self.histogram, self.sum = np.zeros(BINS, np.int64), 0
        if resume and in_the_making(target):
            self._go_on(settings)
        else:
            self._begin(settings)

    def _parts(self):
        """Raw files and the type of a pixel in each."""
        return [(self.raw, np.dtype(self.look["dtype"]))] + ([(self.raw_confidence, np.dtype(np.float32))] if self.confidence else [])

    def _begin(self, settings):
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.discard()
        for path, dtype in self._parts():
            with open(path, "wb") as f:
                f.truncate(self.look["height"] * self.look["width"] * dtype.itemsize)
        self.journal.write_text(json.dumps({"settings": settings, "strips": self.strips}) + "\n", encoding="utf-8")

    def _go_on(self, settings):
        first, *lines = self.journal.read_text(encoding="utf-8").split("\n")
        begun = json.loads(first)
        check_settings(self.target, settings, begun.get("settings", {}))
        pixels = self.look["height"] * self.look["width"]
        if not all(path.exists() and path.stat().st_size == pixels * dtype.itemsize for path, dtype in self._parts()):
            return self._begin(settings)  # what the journal tells of is not there
        self.strips = begun["strips"]
        good = len(first) + 1
        for line in lines[:-1]:  # what follows the last line break is torn
            try:
                state = json.loads(line)
            except ValueError:
                break
            good += len(line) + 1
            self.strip, self.row, self.sum = state["strip"], state["row"], state["sum"]
            self.pixels, self.area, self.histogram = (np.array(state[key]) for key in ("pixels", "area", "histogram"))
        os.truncate(self.journal, good)

    @property
    def complete(self):
        """Are all rows of all strips there?"""
        return self.strip == self.strips

    def write(self, left, row, finished):
        """Put finished rows in place, from image row `row` and column `left` on.

        Args:
            finished: blending.Finished.
        """
        height, width = finished.classes.shape
        for (path, dtype), values in zip(self._parts(), (finished.classes, finished.confidence)):
            self._put(path, values.astype(dtype, copy=False), row, left)
        self.pixels += finished.counts.sum(0)
        if self.areas is not None:
            self.area += self.areas[row : row + height] @ finished.counts
        self.sum += finished.total
        self.histogram += finished.histogram
        self.row = row + height
        if self.row == self.look["height"]:
            self.strip, self.row = self.strip + 1, 0
        state = {"strip": self.strip, "row": self.row, "sum": self.sum, "pixels": self.pixels.tolist(), "area": self.area.tolist(), "histogram": self.histogram.tolist()}
        with open(self.journal, "a", encoding="utf-8") as f:
            f.write(json.dumps(state) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def _put(self, path, values, row, left):
        """Write a window (h, w) into a raw file, and wait until it is on the disk."""
        width, size = self.look["width"], values.dtype.itemsize
        lines = [values] if values.shape[1] == width else values
        with open(path, "r+b") as f:
            for number, line in enumerate(lines):
                f.seek(((row + number) * width + left) * size)
                f.write(np.ascontiguousarray(line).data)
            f.flush()
            os.fsync(f.fileno())

    def finish(self):
        """Make the GeoTIFFs: the confidence first, so that no map stands there without."""
        if self.confidence:
            look = {**self.look, "dtype": "float32", "nodata": "nan", "description": "confidence", "colours": [], "names": []}
            raster.raw_to_cog(self.raw_confidence, self.confidence, look, overview="AVERAGE")
        raster.raw_to_cog(self.raw, self.target, self.look)
        self.discard()

    def discard(self):
        """Remove what is not finished."""
        for path in (self.raw, self.raw_confidence, self.journal):
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
