"""Band statistics of the training pixels, and the one normaliser made from them."""

import dataclasses as dc

import numpy as np

CUT = 12  # bits of a float32 that histogram keys of wide types lack: sign, exponent, 11 bits of mantissa are left
LEAST = float(np.finfo(np.float32).tiny)  # of a band's range, and of its scale: what is smaller leaves float32
WAITING = 2**17  # histogram entries a band collects before they are added up


class BandStatistics:
    """Count, extremes, mean, deviation and percentiles of each band over any number of patches.

    Integers up to 16 bits are counted value by value, so that their percentiles are exact; wider types are
    rounded to 12 significant bits, 1/4096 of the value at most. Memory does not grow with the number of patches.
    Those of several patches can be made apart (`of`, `to_bytes`) and put together later (`from_bytes`, `merge`).
    """

    def __init__(self, bands):
        self.count = np.zeros(bands, np.int64)
        self.mean, self.square = np.zeros(bands), np.zeros(bands)  # squares of differences from the mean: no cancellation
        self.low, self.high = np.full(bands, np.inf), np.full(bands, -np.inf)
        self.small = None  # are the keys whole numbers of up to 16 bits, which stand for themselves?
        self.histograms = [[] for _ in range(bands)]  # (keys, how often) of each patch, added up now and then

    @classmethod
    def of(cls, pixels, good):
        """The statistics of one patch: `pixels` (B, H, W) of any real type where `good` (B, H, W) is True."""
        found = cls(len(pixels))
        found.small = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2
        whole = good.all()
        for band, (values, mask) in enumerate(zip(pixels, good)):
            values = values.ravel() if whole else values[mask]
            if len(values):
                found._count(band, values)
        return found

    def add(self, pixels, good):
        """Count one more patch."""
        self.merge(self.of(pixels, good))

    def merge(self, other):
        """Take over what another one has counted. Chan et al. 1983: means and squares of two groups make those of both."""
        self.small = other.small if self.small is None else self.small
        total = np.maximum(self.count + other.count, 1)
        apart = other.mean - self.mean
        self.square += other.square + apart**2 * (self.count * (other.count / total))
        self.mean += apart * (other.count / total)
        self.count += other.count
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        for band, part in enumerate(other.histograms):
            self.histograms[band] += part
            if sum(len(keys) for keys, _ in self.histograms[band]) > WAITING:
                self._histogram(band)

    def _count(self, band, values):
        """Count a band's good pixels. What the histogram of small integers tells exactly is left to `_settle`."""
        self.count[band] = len(values)
        if self.small:
            keys, times = counted(values if values.dtype.kind == "u" else values.astype(np.int32))
        else:
            keys, times = counted(sort_key(values))
            self.low[band], self.high[band] = values.min(), values.max()
            self.mean[band] = values.mean(dtype=float)
            self.square[band] = values.var(dtype=float) * len(values)
        self.histograms[band] = [(keys.astype(np.int32), times)]

    def _histogram(self, band):
        """Keys in order and how often each occurs; what waits is added up."""
        parts = self.histograms[band]
        if len(parts) > 1:
            self.histograms[band] = parts = [counted(*map(np.concatenate, zip(*parts)))]
        return parts[0]

    def _settle(self):
        """Extremes, mean and squares of small integers, from their histograms."""
        for band in np.flatnonzero(self.count) if self.small else ():
            keys, times = self._histogram(band)
            self.low[band], self.high[band] = keys[0], keys[-1]
            self.mean[band] = mean = (keys * times).sum() / self.count[band]
            self.square[band] = ((keys - mean) ** 2 * times).sum()

    def percentile(self, band, percent):
        """Linear between the two nearest ranks, as numpy's default; nan for a band without a good pixel."""
        if not self.count[band]:
            return float("nan")
        keys, times = self._histogram(band)
        upto = np.cumsum(times)
        rank = percent / 100 * (upto[-1] - 1)
        ends = np.searchsorted(upto, [np.floor(rank), np.ceil(rank)], side="right")
        low, high = keys[ends] if self.small else np.clip([sort_value(key) for key in keys[ends]], self.low[band], self.high[band]).astype(float)
        return float(low + (high - low) * (rank % 1))

    def result(self):
        """A list with one dict of plain numbers per band."""
        nan = float("nan")
        self._settle()
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

    def to_bytes(self):
        """Everything counted, for `from_bytes` on the same machine; counts of one patch, up to 2^32."""
        found = [self._histogram(band) if count else (np.empty(0, np.int32),) * 2 for band, count in enumerate(self.count)]
        head = np.array([len(self.count), bool(self.small), *(len(keys) for keys, _ in found)], np.int64)
        numbers = np.stack([self.mean, self.square, self.low, self.high])
        return b"".join(part.tobytes() for part in (head, self.count, numbers, *(keys.astype(np.int32) for keys, _ in found), *(times.astype(np.uint32) for _, times in found)))

    @classmethod
    def from_bytes(cls, content):
        """What `to_bytes` wrote."""
        place = 0

        def take(count, dtype):
            nonlocal place
            part = np.frombuffer(content, dtype, count, place)
            place += part.nbytes
            return part

        bands, small = take(2, np.int64)
        found, lengths = cls(int(bands)), take(bands, np.int64)
        found.small, found.count = bool(small), take(bands, np.int64)
        found.mean, found.square, found.low, found.high = take(4 * bands, float).reshape(4, -1)
        keys = [take(length, np.int32) for length in lengths]
        found.histograms = [[(part, take(len(part), np.uint32))] if len(part) else [] for part in keys]
        return found


def counted(numbers, times=None):
    """The different whole numbers in order, and how often each occurs (each weighs its `times`)."""
    least, most = numbers.min(), numbers.max()
    if times is None and int(most) - int(least) > 2 * len(numbers):  # sorting is quicker than so long a table
        return np.unique(numbers, return_counts=True)
    total = np.bincount(numbers - least, times)  # sums of float64 weights are exact up to 2^53
    keys = np.flatnonzero(total)
    return keys + int(least), total[keys].astype(np.int64)


def sort_key(values):
    """Integers of 21 bits that sort as the float32 values do, rounded to their leading bits; 0 and -0 have the same."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 counts as infinite, and is clipped to the extremes
        bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
    size = bits & 0x7FFFFFFF
    ordered = 0x80000000 + np.where(bits < 0, -size, size)
    return ((ordered + (1 << CUT - 1)) >> CUT).astype(np.int32)


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
        scale = np.maximum(1 / np.where(high - low > LEAST, high - low, 1), LEAST)
        clip = (0.0, 1.0) if kind == "percentile" else (-np.inf, np.inf)
        return cls(kind, tuple(low.tolist()), tuple(scale.tolist()), tuple(column("p50").tolist()), *clip)

    @classmethod
    def of_each_patch(cls, bands, percent=99.0, per_band=False):
        """The older system's: every patch by its own percentile."""
        return cls("patch_percentile", (0.0,) * bands, (1.0,) * bands, (0.0,) * bands, 0.0, 1.0, percent, per_band)

    @classmethod
    def from_dict(cls, saved):
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})

    def usual(self):
        """Between which values, in raw units, nearly all training pixels of each band lay: two (B,) arrays; (None, None) where the kind does not tell."""
        offset, step = np.array(self.offset), 1 / np.array(self.scale)
        return {"percentile": (offset, offset + step), "zscore": (offset - 3 * step, offset + 3 * step)}.get(self.kind, (None, None))

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
