"""Arithmetic of windows, tiles and blending weights: no files, no torch."""

from typing import NamedTuple

import numpy as np

STEPS = 64  # blending weights are multiples of 1/64 per axis, so that float32 sums of products are exact
SMALLEST = {"pan": 128}  # its pyramid halves the deepest features three times more
BLENDS = ("cosine", "gaussian", "linear", "none")
STRIDE = 32  # of the deepest encoders; a tile is padded to a multiple of it


class Window(NamedTuple):
    """Top left corner and size, in pixels of the image; may overhang it on any side."""

    row: int
    col: int
    height: int
    width: int

    def clipped(self, height, width):
        """The part of the window inside an image of height x width; None when there is none."""
        top, left = max(self.row, 0), max(self.col, 0)
        bottom, right = min(self.row + self.height, height), min(self.col + self.width, width)
        return Window(top, left, bottom - top, right - left) if top < bottom and left < right else None


def next_multiple(length, stride):
    """The smallest multiple of `stride` that is at least `length`."""
    return -(-length // stride) * stride


def tile_size(name, size):
    """The size a square of `size` pixels must be padded to for the network `name`."""
    return max(next_multiple(size, STRIDE), SMALLEST.get(name, STRIDE))


def starts(length, size, overlap):
    """First pixels of the tiles that cover an axis of `length` pixels: none twice, the last moved back inside.

    An axis shorter than `size` has one tile, which the caller pads.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap must lie between 0 and size - 1 = {size - 1}, got {overlap}")
    last = max(length - size, 0)
    return [*range(0, last, size - overlap), last]


def blend_weights(length, size, overlap, blend="cosine"):
    """Weights of every tile of an axis, normalised so that they sum to exactly 1 over each pixel.

    Where one tile lies alone, as on the outer sides of the first and last, it weighs 1. All weights are multiples of
    1/64: cumulative sums are rounded, so that the parts still add up to 1.

    Args:
        blend: one of BLENDS: how the weight falls towards the neighbours.
    Returns:
        (number of tiles, size) float32.
    """
    first = starts(length, size, overlap)
    raw = profiles(first, size, overlap, blend)
    covered = first[-1] + size
    total, running, given = np.zeros(covered), np.zeros(covered), np.zeros(covered)
    for start, weight in zip(first, raw):
        total[start : start + size] += weight
    weights = np.empty((len(first), size), np.float32)
    for index, (start, weight) in enumerate(zip(first, raw)):
        here = slice(start, start + size)
        running[here] += weight / total[here]
        upto = np.rint(running[here] * STEPS)
        weights[index] = (upto - given[here]) / STEPS
        given[here] = upto
    return weights


def profiles(first, size, overlap, blend):
    """How much each tile of an axis counts before the sum is made 1: (number of tiles, size).

    A raised cosine or a line falls over the overlap; the Gaussian, of an eighth of the tile (Isensee et al. 2021), over
    the whole tile; without blending (none) each pixel is the nearest tile's alone.
    """
    raw, pixel = np.ones((len(first), size)), np.arange(size)
    if blend == "gaussian":
        return raw * np.exp(-0.5 * ((pixel + 0.5 - size / 2) / (size / 8)) ** 2)
    if blend == "none":
        borders = (np.array(first[:-1]) + first[1:] + size) / 2  # half way between the middles of two neighbours
        place = np.array(first)[:, None] + pixel + 0.5
        return ((place > np.append(-np.inf, borders)[:, None]) & (place <= np.append(borders, np.inf)[:, None])).astype(float)
    ramp = (np.arange(overlap) + 0.5) / max(overlap, 1)
    ramp = np.sin(np.pi / 2 * ramp) ** 2 if blend == "cosine" else ramp
    raw[1:, :overlap] *= ramp
    raw[:-1, size - overlap :] *= ramp[::-1]
    return raw


def snap(centre, size):
    """First pixel of a window of `size` pixels centred as near as whole pixels allow to `centre` (in pixels).

    Rounded to a millionth first: a grid that is 1e-9 pixel off gives the same windows as one that is not.
    """
    return int(np.floor(np.round(centre - size / 2, 6) + 0.5))


def regular_windows(height, width, size, stride=None):
    """Square windows of `size` every `stride` pixels (None: side by side) from the top left corner; the last ones may overhang."""
    stride = stride or size

    def firsts(length):
        return range(0, max(length - size, 0) + stride, stride)  # as many as it takes to reach the end, no more

    return [Window(row, col, size, size) for row in firsts(height) for col in firsts(width)]


def strips(windows, most):
    """Join windows of one row into strips, so that a reader decodes what they share once.

    Args:
        windows: in reading order, inside the image. most: pixels a strip may hold; at least one window goes into each.
    Returns:
        list of (strip, [indices of its windows]). A strip is at most twice as large as its windows together.
    """
    found, area = [], 0
    for index, window in enumerate(windows):
        size = window.height * window.width
        if found:
            strip, together = found[-1]
            wider, first = around(strip, window), windows[together[0]]
            same_row = first.row <= window.row < first.row + first.height / 2
            if same_row and wider.height * wider.width <= min(most, 2 * (area + size)):
                found[-1] = wider, [*together, index]
                area += size
                continue
        found.append((window, [index]))
        area = size
    return found


def around(one, other):
    """The smallest window that holds both."""
    top, left = min(one.row, other.row), min(one.col, other.col)
    bottom, right = max(one.row + one.height, other.row + other.height), max(one.col + one.width, other.col + other.width)
    return Window(top, left, bottom - top, right - left)


def same_grid(one, other, tolerance=0.01):
    """Do two rasters share CRS, size and geotransform, to a hundredth of a pixel at every corner?"""
    if (one.crs, one.height, one.width) != (other.crs, other.height, other.width):
        return False
    return all(
        max(abs(a - b) for a, b in zip(~one.transform * (other.transform * corner), corner)) <= tolerance
        for corner in [(0, 0), (one.width, 0), (0, one.height), (one.width, one.height)]
    )


def largest_remainder(count, ratios):
    """Whole numbers that add up to `count` and come nearest to its shares `ratios` (Hamilton's method).

    Ties go to the earlier share.
    """
    exact = np.asarray(ratios, float) / np.sum(ratios) * count
    whole = np.floor(exact).astype(int)
    order = np.argsort(-np.round(exact - whole, 9), kind="stable")  # 0.7 * 2 leaves 0.3999999999999999, a tie with 0.2 * 2
    whole[order[: count - whole.sum()]] += 1
    return whole.tolist()
