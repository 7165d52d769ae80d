"""Where the tiles of a scene lie, how they blend, and how a wide scene is cut into strips of columns."""

from bisect import bisect_right
from typing import NamedTuple

from eoseg.tiles import blend_weights, starts


class Axis:
    """The tiles along one side of a scene.

    Args:
        length: of the side, in pixels. options: PredictionConfig. fit: gives the length that a tile of so many pixels is padded to.
    """

    def __init__(self, length, options, fit):
        self.length, self.size = length, min(options.patch_size, length)  # a tile larger than the scene shrinks
        overlap = min(options.overlap, self.size - 1)
        self.starts = starts(length, self.size, overlap)
        self.weights = blend_weights(length, self.size, overlap, options.blend)
        self.padded = fit(self.size)

    def finished(self, index):
        """Where the pixels end that no tile after `index` touches."""
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.length


class Strip(NamedTuple):
    """Columns [left, right) of a scene, which are mapped on their own, and the tiles that reach into them."""

    left: int
    right: int
    tiles: range  # indices of the tiles along the rows
    begin: int  # columns [begin, end) are what those tiles see
    end: int


def strips_of(axis, count):
    """A scene's columns in `count` strips, as even as tiles allow. Tiles across a border are predicted for both sides.

    Args:
        axis: Axis of the columns. count: at most the number of tiles.
    """
    tiles = len(axis.starts)
    edges = [round(i * tiles / count) for i in range(count + 1)]
    found = []
    for first, after in zip(edges, edges[1:]):
        left, right = axis.starts[first] if first else 0, axis.finished(after - 1)
        earliest = bisect_right(axis.starts, left - axis.size)
        found.append(Strip(left, right, range(earliest, after), axis.starts[earliest], axis.starts[after - 1] + axis.size))
    return found


def widest(strips):
    """The most columns that the tiles of a strip see."""
    return max(strip.end - strip.begin for strip in strips)


def narrow_enough(axis, most):
    """As few strips as see at most `most` columns each; None when not even the narrowest do."""
    if widest(strips_of(axis, len(axis.starts))) > most:
        return None
    counts = range(-(-axis.length // most), len(axis.starts) + 1)
    return next(found for found in (strips_of(axis, count) for count in counts) if widest(found) <= most)
