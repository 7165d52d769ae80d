"""Band statistics of the training pixels, and the one normaliser made from them."""

import dataclasses as dc

import numpy as np

CUT = 12  # bits of a float32 that histogram keys of wide types lack: sign, exponent, 11 bits of mantissa are left


class BandStatistics:
    """Count, extremes, mean, deviation and percentiles of each band over any number of patches, in any order.

    Integers up to 16 bits are counted value by value, so that their percentiles are exact; wider types are
    rounded to 12 significant bits, 1/4096 of the value at most. Memory does not grow with the number of patches.
    """

    def __init__(self, bands):
        self.count = np.zeros(bands, np.int64)
        self.mean, self.square = np.zeros(bands), np.zeros(bands)  # squares of differences from the mean: no cancellation
        self.low, self.high = np.full(bands, np.inf), np.full(bands, -np.inf)
        self.histograms = [{} for _ in range(bands)]  # are they whole numbers of 16 bits? -> (keys in order, how often)

    def add(self, pixels, good):
        """Count `pixels` (B, H, W) of any real type where `good` (B, H, W) is True."""
        for band, (values, mask) in enumerate(zip(pixels, good)):
            values = values[mask]
            if len(values):
                self._merge(band, len(values), values.mean(dtype=float), values.var(dtype=float))
                self.low[band] = min(self.low[band], values.min())
                self.high[band] = max(self.high[band], values.max())
                self._count(band, values)

    def _merge(self, band, count, mean, variance):
        """Chan et al. 1983: means and squares of two groups make those of both."""
        total, apart = self.count[band] + count, mean - self.mean[band]
        self.square[band] += variance * count + apart**2 * self.count[band] * count / total
        self.mean[band] += apart * count / total
        self.count[band] = total

    def _count(self, band, values):
        small = values.dtype.kind in "iu" and values.dtype.itemsize <= 2
        if small:
            least = int(values.min())
            times = np.bincount(values.astype(np.int32) - least)
            keys = np.flatnonzero(times)
            keys, times = keys + least, times[keys]
        else:
            keys, times = np.unique(sort_key(values), return_counts=True)
        before, sums = self.histograms[band].get(small, (keys[:0], times[:0]))
        merged, place = np.unique(np.concatenate([before, keys]), return_inverse=True)
        self.histograms[band] = {small: (merged, np.bincount(place, np.concatenate([sums, times])).astype(np.int64))}

    def percentile(self, band, percent):
        """Linear between the two nearest ranks, as numpy's default; nan for a band without a good pixel."""
        if not self.count[band]:
            return float("nan")
        ((small, (keys, times)),) = self.histograms[band].items()
        upto = np.cumsum(times)
        rank = percent / 100 * (upto[-1] - 1)
        ends = np.searchsorted(upto, [np.floor(rank), np.ceil(rank)], side="right")
        low, high = np.clip([keys[i] if small else sort_value(keys[i]) for i in ends], self.low[band], self.high[band]).astype(float)
        return float(low + (high - low) * (rank % 1))

    def result(self):
        """A list with one dict of plain numbers per band."""
        nan = float("nan")
        return [
            {
                "valid_pixels": int(count),
                "min": float(self.low[band]) if count else nan,
                "max": float(self.high[band]) if count else nan,
                "mean": float(self.mean[band]) if count else nan,
                "std": float(np.sqrt(self.square[band] / count)) if count else nan,
                **{f"p{percent}": self.percentile(band, percent) for percent in (1, 50, 99)},
            }
            for band, count in enumerate(self.count)
        ]


def sort_key(values):
    """Integers that sort as the float32 values do, rounded to their leading bits; 0 and -0 have the same."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 counts as infinite, and is clipped to the extremes
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.int64)
    ordered = np.where(bits >> 31, 0x100000000 - bits, bits + 0x80000000)
    return (ordered + (1 << CUT - 1)) >> CUT


def sort_value(key):
    """The float that `sort_key` rounded to."""
    ordered = int(key) << CUT
    bits = ordered - 0x80000000 if ordered >> 31 else 0x100000000 - ordered
    return np.uint32(bits).view(np.float32)


@dc.dataclass(frozen=True)
class Normalizer:
    """From raw pixels to network input: (x - offset) * scale per band, clipped to [low, high].

    `fill` is each band's training median, in raw units: what stands where a band holds no data.
    Kind `patch_percentile` divides each patch by its own `percent` percentile instead (over all bands, or each
    band by its own with `per_band`) and clips to [0, 1]: only for networks of the older system, which had no statistics.
    """

    kind: str
    offset: tuple
    scale: tuple
    fill: tuple
    low: float = -np.inf
    high: float = np.inf
    percent: float = 99.0
    per_band: bool = False

    @classmethod
    def fitted(cls, kind, statistics):
        """Make the normaliser of `kind` from what `BandStatistics.result` returned."""
        column = lambda key: np.nan_to_num(np.array([band[key] for band in statistics], float))
        low, high = np.zeros(len(statistics)), np.ones(len(statistics))
        if kind == "percentile":
            flat = column("p99") <= column("p1")  # a band that is nearly constant: all of its range
            low, high = np.where(flat, column("min"), column("p1")), np.where(flat, column("max"), column("p99"))
        elif kind == "zscore":
            low, high = column("mean"), column("mean") + column("std")
        scale = 1 / np.where(high > low, high - low, 1)
        clip = (0.0, 1.0) if kind == "percentile" else (-np.inf, np.inf)
        return cls(kind, tuple(low.tolist()), tuple(scale.tolist()), tuple(column("p50").tolist()), *clip)

    @classmethod
    def of_each_patch(cls, bands, percent=99.0, per_band=False):
        """The older system's: every patch by its own percentile."""
        return cls("patch_percentile", (0.0,) * bands, (1.0,) * bands, (0.0,) * bands, 0.0, 1.0, percent, per_band)

    @classmethod
    def from_dict(cls, saved):
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})

    def to_dict(self):
        """Plain numbers, text and lists, for a checkpoint."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in dc.asdict(self).items()}

    def __call__(self, pixels, missing):
        """Normalise `pixels` (B, H, W) of any real type; where `missing` (B, H, W) is True, put the band's median.

        Returns:
            (B, H, W) float32.
        """
        shape = (-1, 1, 1)
        raw = np.where(missing, np.array(self.fill, np.float32).reshape(shape), pixels.astype(np.float32))
        if self.kind == "patch_percentile":
            top = np.percentile(raw, self.percent, axis=(1, 2) if self.per_band else None, keepdims=True)
            return np.clip(raw / np.where(top > 0, top, 1), 0, 1).astype(np.float32)
        raw -= np.array(self.offset, np.float32).reshape(shape)
        raw *= np.array(self.scale, np.float32).reshape(shape)
        return np.clip(raw, self.low, self.high, out=raw)
