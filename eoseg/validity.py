"""Which pixels count: nodata values, masks, alpha bands, NaN and Inf. Decided here alone."""

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError


def held(nodata, dtype):
    """The value `nodata` as a pixel of `dtype` holds it; None when none can (-9999 in uint8, as many files are tagged)."""
    if nodata is None:
        return None
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            value = float(np.dtype(dtype).type(nodata))  # a tag of -3.4e38 is a rounded float32
        return value if np.isfinite(value) or not np.isfinite(nodata) else None
    info = np.iinfo(dtype)
    return int(nodata) if float(nodata).is_integer() and info.min <= nodata <= info.max else None


def equals_nodata(pixels, nodata):
    """Where `pixels` (any shape) hold the value `nodata`: a bool array, or None when none can."""
    value = held(nodata, pixels.dtype)
    if value is None:
        return None
    return np.isnan(pixels) if value != value else pixels == pixels.dtype.type(value)


def finite(pixels):
    """Where pixels of a float type are numbers that a network can take: no NaN, no Inf, none beyond what 32 bits hold."""
    return np.isfinite(pixels) if pixels.itemsize <= 4 else np.abs(pixels) <= np.finfo(np.float32).max


def missing_and_valid(pixels, nodata, require_all_bands=False):
    """The one rule for which pixels count.

    A band is missing where it holds its nodata, NaN or Inf (`finite`). A pixel is valid when at least one band holds data
    (GDAL's rule for a dataset mask; with `require_all_bands`, when every band does) and none is NaN or Inf.

    Args:
        pixels: (B, H, W). nodata: one value or None per band.
    Returns:
        missing (B, H, W) bool, valid (H, W) bool.
    """
    if len(set(nodata)) == 1:
        found = equals_nodata(pixels, nodata[0])
        missing = np.zeros(pixels.shape, bool) if found is None else found
    else:
        missing = np.stack([np.zeros(band.shape, bool) if found is None else found for band, found in zip(pixels, map(equals_nodata, pixels, nodata))])
    if missing.any():
        valid = ~(missing.any(0) if require_all_bands else missing.all(0))
    else:  # the usual case, and much the quicker
        valid = np.ones(pixels.shape[1:], bool)
    if pixels.dtype.kind == "f":
        broken = ~finite(pixels)
        missing |= broken
        valid &= ~broken.any(0)
    return missing, valid


def mask_kind(src):
    """What marks pixels of all bands as invalid, nodata values aside: `mask`, `alpha`, or None."""
    flags = src.mask_flag_enums[0]
    return None if MaskFlags.per_dataset not in flags else "alpha" if MaskFlags.alpha in flags else "mask"


def called_alpha(src, number):
    """Does the file, or GDAL, call this band alpha?"""
    return src.colorinterp[number - 1] == ColorInterp.alpha


def called_colours(src):
    """Are the numbers of a file places in a table of colours?"""
    return ColorInterp.palette in src.colorinterp


def is_alpha(src, number):
    """Is a band a mask? GDAL calls the fourth of four 8-bit bands alpha, which as often is near infrared: the name or the values tell.

    A band called otherwise is none, nor is one whose three commonest values make up less than nine tenths of nine small windows.
    """
    if not called_alpha(src, number):
        return False
    name = (src.descriptions[number - 1] or "alpha").lower()
    if not any(word in name for word in ("alpha", "mask")):
        return False
    places = [(row, col) for row in np.linspace(0, max(src.height - 64, 0), 3).astype(int) for col in np.linspace(0, max(src.width - 64, 0), 3).astype(int)]
    try:
        parts = [src.read(number, window=((row, min(row + 64, src.height)), (col, min(col + 64, src.width)))) for row, col in places]
    except RasterioError:
        return True  # a damaged file: reading it will say so
    _, times = np.unique(np.concatenate([part.ravel() for part in parts]), return_counts=True)
    return bool(np.sort(times)[-3:].sum() >= 0.9 * times.sum())
