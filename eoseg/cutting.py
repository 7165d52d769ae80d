"""One cell of a grid becomes one patch: an image and a label on the same pixels."""

from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from eoseg import raster, validity
from eoseg.coding import IGNORE

CUBIC = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}


def cut(pair, scene, labels, cell, options, folder):
    """Cut one cell; write its image and label under `folder`.

    Args:
        pair: pairing.Pair. scene: open raster.Scene. labels: what `labels.open_labels` returned. cell: vector.Cell.
        options: ExtractionConfig.
    Returns:
        its row (a dict, as in patches.csv), or the reason it is left out.
    """
    part, size = cell.window.clipped(scene.height, scene.width), options.patch_size
    pixels, missing, valid = scene.read(part)
    if not valid.any():
        return "no valid pixel"
    broken = not_finite(pixels, nodata_of(scene))
    fill = np.array(nodata_of(scene) or 0).astype(pixels.dtype)
    arrays = padded(cell.window, part, [(pixels, fill), (missing, True), (valid, False), (labels.read(part), IGNORE)])
    scale = cell.window.height / size, cell.window.width / size
    pixels, valid, target = resampled(*arrays, size, options.interpolation, fill) if scale != (1.0, 1.0) else (arrays[0], *arrays[2:])
    target = np.where(valid, target, IGNORE).astype(np.uint8)
    reason = too_little(target, valid, options)
    if reason:
        return reason
    write(pair, scene, cell, options, folder, pixels, target, valid, scale)
    return row_of(pair, scene, cell, target, valid, broken)


def nodata_of(scene):
    """The one value that a patch's nodata tag can hold; None when the scene has none."""
    return next((value for value in scene.nodata if value is not None), None)


def not_finite(pixels, nodata):
    """How many pixels hold NaN or Inf in a band, where that is not the nodata value."""
    broken, known = ~np.isfinite(pixels), validity.equals_nodata(pixels, nodata)
    return int((broken if known is None else broken & ~known).any(0).sum())


def too_little(target, valid, options):
    """Why a patch is not worth keeping; None when it is."""
    labelled = (target != IGNORE).sum()
    if options.max_nodata is not None and 1 - valid.mean() > options.max_nodata:
        return "more nodata than --max_nodata"
    if not labelled and not options.keep_unlabelled:
        return "no labelled pixel"
    if options.min_labelled is not None and labelled < options.min_labelled * target.size:
        return "fewer labels than --min_labelled"
    return None


def padded(window, part, arrays):
    """Put what was read of `part` (..., H, W) into arrays of the whole window, each with its own value beyond the image."""
    top, left = part.row - window.row, part.col - window.col
    widths = ((top, window.height - part.height - top), (left, window.width - part.width - left))
    return [np.pad(array, ((0, 0),) * (array.ndim - 2) + widths, constant_values=value) for array, value in arrays]


def resampled(pixels, missing, valid, target, size, interpolation, fill):
    """Scale a cell to `size` pixels: the image as asked, labels and validity by the nearest pixel centre.

    Returns:
        pixels, valid, target.
    """
    rows, cols = (np.minimum(((np.arange(size) + 0.5) * n / size).astype(int), n - 1) for n in target.shape)
    near = np.ix_(rows, cols)
    if interpolation == "nearest":
        return pixels[:, rows][:, :, cols], valid[near], target[near]
    scaled = np.empty((len(pixels), size, size), pixels.dtype)
    for band, (values, holes) in enumerate(zip(pixels, missing | ~valid)):
        near_hole = distance_transform_edt(holes, return_distances=False, return_indices=True)  # no nodata value may bleed into its neighbours
        smooth = np.where(holes.all(), 0, values[tuple(near_hole)]).astype(np.float64)
        smooth = cv2.resize(smooth, (size, size), interpolation=CUBIC[interpolation])
        if pixels.dtype.kind in "iu":
            info = np.iinfo(pixels.dtype)
            smooth = np.clip(np.rint(smooth), info.min, info.max)
        scaled[band] = np.where(holes[near], fill, smooth.astype(pixels.dtype))
    return scaled, valid[near], target[near]


def write(pair, scene, cell, options, folder, pixels, target, valid, scale):
    """Write image and label, on the same grid. Where no pixel value says what is invalid, the image gets a mask."""
    name, place, nodata = pair.patch_name(cell), scene.placed(cell.window, scale), nodata_of(scene)
    mask = valid if not valid.all() and (nodata is None or scene.masked) else None
    compress = not options.no_compression
    image = raster.patch_bytes(pixels, place, scene.crs, nodata, scene.names, compress, mask)
    label = raster.patch_bytes(target[None], place, scene.crs, IGNORE, ["class"], compress)
    (folder / "images" / name).write_bytes(image)
    (folder / "labels" / name).write_bytes(label)


def row_of(pair, scene, cell, target, valid, broken):
    """A patch's line in patches.csv: numbers, no clock and no path."""
    x, y = scene.transform * (cell.window.col, cell.window.row)
    counts = np.bincount(target.ravel(), minlength=256)[:IGNORE]
    return {
        "patch": pair.patch_name(cell), "split": cell.split, "scene": Path(pair.image).name, "id": cell.id,
        "row": cell.window.row, "col": cell.window.col, "height": cell.window.height, "width": cell.window.width,
        "x": x, "y": y, "shift_rows": cell.shift[0], "shift_cols": cell.shift[1], "rotation": cell.rotation,
        "nodata_share": round(float(1 - valid.mean()), 6), "not_finite_pixels": broken, "labelled_pixels": int(counts.sum()),
        "classes": {str(c): int(counts[c]) for c in np.flatnonzero(counts)},
    }
