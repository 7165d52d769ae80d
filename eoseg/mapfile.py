"""A map while it grows: finished rows are appended to raw files, and become GeoTIFFs when all are there.

Each band of finished rows is followed by a line in a journal, so that a killed run can go on after the last one.
"""

import json
import os

import numpy as np

from eoseg import files, raster
from eoseg.errors import SetupError, listing
from eoseg.georef import pixel_areas

BINS = 1024  # of the confidence histogram
SETTINGS = "PREDICTION_SETTINGS"  # tag of a finished map: what decided its pixels


def journal_of(target):
    """The file that tells how far the map at `target` has come."""
    return files.part_of(target, "journal.part")


def in_the_making(target):
    """Has a run begun a map at `target` that is not finished? A journal torn in its first line has nothing to go on with."""
    journal = journal_of(target)
    return journal.exists() and b"\n" in journal.read_bytes()


def check_settings(target, settings, before):
    """Refuse to go on with a map begun with other settings; `before` is the JSON of those."""
    before = json.loads(before)
    differ = sorted(key for key in settings if json.dumps(settings[key]) != json.dumps(before.get(key)))  # as text: NaN is NaN
    if differ:
        raise SetupError(f"--resume: the map {target} was made with other {listing(differ)}; use the same, or --overwrite to start again.")


class MapFile:
    """Classes, and perhaps confidence, of a scene, row by row from the top.

    Args:
        target: path of the map. look: dict of height, width, crs, transform.
        classes: their names. palette: their colours. nodata: the map's value where nothing is known.
        confidence: path of the confidence map, or None.
        settings: what decides the pixels; a resumed run must have the same.
        resume: go on after the rows an earlier run has finished.
    """

    def __init__(self, target, look, classes, palette, nodata, confidence, settings, resume=False):
        self.target, self.confidence, self.classes = target, confidence, classes
        dtype = "uint8" if nodata <= 255 and len(classes) <= 255 else "uint16"
        kept = {key: value for key, value in settings.items() if key != "scene_time"}  # the same map again has the same bytes
        self.look = {**look, "tags": {SETTINGS: json.dumps(kept)}, "dtype": dtype, "nodata": nodata, "description": "class", "colours": palette, "names": classes}
        self.raw = files.part_of(target, "rows.part")
        self.raw_confidence = files.part_of(target, "confidence.part") if confidence else None
        self.journal = journal_of(target)
        self.areas = pixel_areas(look["transform"], look["crs"], look["height"], look["width"])
        self.row, self.pixels, self.area = 0, np.zeros(len(classes), np.int64), np.zeros(len(classes))
        self.histogram, self.sum = np.zeros(BINS, np.int64), 0.0
        if resume and in_the_making(target):
            self._go_on(settings)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.discard()
            self.journal.write_text(json.dumps(settings) + "\n", encoding="utf-8")

    def _parts(self):
        """Raw files and the bytes of a row in each."""
        width = self.look["width"]
        parts = [(self.raw, width * np.dtype(self.look["dtype"]).itemsize)]
        return parts + ([(self.raw_confidence, width * 4)] if self.raw_confidence else [])

    def _go_on(self, settings):
        first, *lines = self.journal.read_text(encoding="utf-8").split("\n")
        check_settings(self.target, settings, first)
        for line in reversed(lines):  # the last whole line; a torn one does not count
            try:
                state = json.loads(line)
            except ValueError:
                continue
            if all(path.exists() and path.stat().st_size >= state["row"] * size for path, size in self._parts()):
                self.row, self.sum = state["row"], state["sum"]
                self.pixels, self.area, self.histogram = (np.array(state[key]) for key in ("pixels", "area", "histogram"))
                break
        for path, size in self._parts():
            with open(path, "ab") as f:
                f.truncate(self.row * size)

    def append(self, row, classes, confidence, valid):
        """Add finished rows, beginning at image row `row`; rows that are there already are passed over.

        Args:
            classes (h, W) integers, confidence (h, W) float32, valid (h, W) bool.
        """
        seen = max(self.row - row, 0)
        classes, confidence, valid = classes[seen:], confidence[seen:], valid[seen:]
        if not len(classes):
            return
        out = np.where(valid, classes, self.look["nodata"]).astype(self.look["dtype"])
        rows = [out, np.where(valid, confidence, np.nan).astype(np.float32)]
        for (path, _), values in zip(self._parts(), rows):
            with open(path, "ab") as f:
                f.write(values.tobytes())
                f.flush()
                os.fsync(f.fileno())
        self._count(classes, confidence, valid)
        self.row += len(classes)
        state = {"row": self.row, "sum": self.sum, "pixels": self.pixels.tolist(), "area": self.area.tolist(), "histogram": self.histogram.tolist()}
        with open(self.journal, "a", encoding="utf-8") as f:
            f.write(json.dumps(state) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def _count(self, classes, confidence, valid):
        count = len(self.classes)
        for line, (names, good) in enumerate(zip(classes, valid), self.row):
            found = np.bincount(names[good], minlength=count)
            self.pixels += found
            if self.areas is not None:
                self.area += found * self.areas[line]
        sure = confidence[valid]
        self.sum += float(sure.sum(dtype=np.float64))
        self.histogram += np.bincount(np.minimum((sure * BINS).astype(int), BINS - 1), minlength=BINS)

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
            if path:
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
            "confidence": {"mean": self.sum / total if total else float("nan"), "p5": rank(0.05), "p50": rank(0.5)},
        }
