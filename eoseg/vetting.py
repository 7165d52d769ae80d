"""What is refused before a pixel of an image file is read: files that are not what they say, and headers that cannot be true."""

import re
from pathlib import Path

import numpy as np
import rasterio.dtypes
from affine import Affine

from eoseg.errors import DataError
from eoseg.vrt import sources_of

BIGGEST_BLOCK = 2**30  # bytes; one block must fit in memory, and no sane writer makes larger ones
MOST_SHRUNK = 10**5  # bytes of pixels to one byte of file: zstd makes some 20,000 of a constant image, nothing makes more


def check_file(path, above=()):
    """What can be told before GDAL sees the file. Paths like /vsicurl/... and URLs are passed on as typed.

    Args:
        above: the VRTs that led to this file.
    """
    if re.match(r"/vsi|[a-z0-9+]+://", str(path)):
        return
    file = Path(path)
    if not file.exists():
        raise DataError(f"{path}: no such file; check the path.")
    if not file.is_file():
        raise DataError(f"{path}: is not a file; name one raster.")
    with open(file, "rb") as f:
        head = f.read(4096)  # GDAL looks at fewer
    if not head:
        raise DataError(f"{path}: is empty (0 bytes); copy or download it again.")
    if b"<VRTDataset" in head:
        if file.suffix.lower() != ".vrt":
            raise DataError(f"{path}: is a VRT under another suffix; rename it to .vrt if you trust it.")
        if file.resolve() in above:
            raise DataError(f"{path}: refers to itself; make it anew with gdalbuildvrt.")
        for source in sources_of(file):
            check_file(source, (*above, file.resolve()))
    elif file.suffix.lower() in (".tif", ".tiff") and head[:2] not in (b"II", b"MM"):
        raise DataError(f"{path}: is no TIFF, whatever its name says; copy or download it again, or give it its true suffix.")


def check_header(src, path):
    """What the header tells, before a pixel is read."""
    if src.count == 0:
        raise DataError(f"{path}: holds no bands of its own (a container of {len(src.subdatasets)} rasters); name one of them.")
    if any(np.dtype(t).kind == "c" for t in src.dtypes if t in rasterio.dtypes.dtype_rev) or "complex" in src.dtypes[0]:
        raise DataError(f"{path}: complex pixels; convert to amplitude or intensity first.")
    if src.transform == Affine.identity() and src.gcps[0]:
        raise DataError(f"{path}: is placed by ground control points only; warp it first: gdalwarp {path} warped.tif")
    if src.driver != "GTiff":
        return
    rows, cols = src.block_shapes[0]
    each = np.dtype(src.dtypes[0]).itemsize
    block, whole = rows * cols * each, src.height * src.width * src.count * each
    if Path(path).is_file() and whole > MOST_SHRUNK * Path(path).stat().st_size:
        raise DataError(f"{path}: claims {src.height} x {src.width} pixels in {Path(path).stat().st_size} bytes; it is damaged, copy or download it again.")
    if block > BIGGEST_BLOCK:
        raise DataError(f"{path}: one block of {cols} x {rows} pixels would take {block / 2**30:.1f} GiB; "
                        f"rewrite it in tiles: gdal_translate -co TILED=YES {path} tiled.tif")
