"""The rows of a scene, read ahead of what is computed: each block is decoded once, and no pixel is read that nobody asked for."""

from typing import NamedTuple

import numpy as np

from eoseg.tiles import Window, next_multiple


class Rows(NamedTuple):
    """Some rows of a scene."""

    row: int  # the first
    pixels: np.ndarray  # (B, h, W)
    holes: np.ndarray  # (B, h, W) bool: where a band holds no data; None where all do
    valid: np.ndarray  # (h, W) bool: what is to be mapped


class RowReader:
    """Reads rows of a scene from top to bottom, strip after strip of columns.

    Args:
        scene: an open raster.Scene. tallest: rows that a band may ask for: those of a tile.
        area: a labels.Drawn, outside of which nothing is mapped; None: all of the scene.
    """

    def __init__(self, scene, tallest, area=None):
        self.scene, self.tallest, self.area = scene, tallest, area
        self.block = scene.block_height if scene.block_height <= tallest else 1  # whole rows of blocks, unless those are taller than what is wanted
        self.kept = None  # Rows that were decoded with others and not asked for yet
        self.failed = None

    def read(self, spans):
        """Yield the Rows of each span, a Window. Those of the same columns follow each other without a gap, to the scene's last row."""
        try:
            for span in spans:
                yield self._rows(span)
        except BaseException as error:
            self.failed = error  # for those who look before its turn comes
            raise

    def check(self):
        """Raise the error that has ended the reading."""
        if isinstance(self.failed, Exception):
            raise self.failed

    def _rows(self, span):
        after = span.row + span.height
        begin = span.row if self.kept is None else self.kept.row + len(self.kept.valid)
        parts = [self.kept] if self.kept is not None else []
        if begin < after:
            end = min(next_multiple(after, self.block), self.scene.height)
            parts.append(self._decode(Window(begin, span.col, end - begin, span.width)))
        whole, last = joined(parts, span.height), parts[-1]
        done = after - last.row
        self.kept = part_of(last, done) if done < len(last.valid) else None
        return whole

    def _decode(self, window):
        """A window in the scene's own type; it is not read where no band that holds some of it meets the area."""
        reach = Window(window.row - self.tallest, window.col, window.height + 2 * self.tallest, window.width)  # of those bands: a tile in the area sees what lies around it
        if self.area and not len(self.area.hits(reach)):
            return Rows(window.row, np.zeros((len(self.scene.bands), *window[2:]), self.scene.dtype), None, np.zeros(window[2:], bool))
        pixels, missing, valid = self.scene.read(window)
        whole = valid.all() and not missing.any()
        return Rows(window.row, pixels, None if whole else missing | ~valid, valid & (self.area.read(window) > 0) if self.area else valid)


def part_of(rows, begin):
    """Rows from the `begin`-th on, copied, so that what they were part of can be forgotten."""
    return Rows(rows.row + begin, rows.pixels[:, begin:].copy(), None if rows.holes is None else rows.holes[:, begin:].copy(), rows.valid[begin:].copy())


def joined(parts, height):
    """The first `height` of the rows of `parts`, which follow each other, as one."""
    first = parts[0]
    if len(parts) == 1 and len(first.valid) == height:
        return first
    pixels = np.empty((len(first.pixels), height, first.pixels.shape[2]), first.pixels.dtype)
    holes = np.zeros(pixels.shape, bool) if any(part.holes is not None for part in parts) else None
    valid = np.empty(pixels.shape[1:], bool)
    for part in parts:
        at = part.row - first.row
        here, much = slice(at, min(at + len(part.valid), height)), height - at
        pixels[:, here] = part.pixels[:, :much]
        valid[here] = part.valid[:much]
        if part.holes is not None:
            holes[:, here] = part.holes[:, :much]
    return Rows(first.row, pixels, holes, valid)
