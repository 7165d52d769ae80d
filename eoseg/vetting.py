"""What is refused before a pixel of an image file is read: files that are not what they say, and headers that cannot be true."""

import re
from pathlib import Path

import numpy as np
import rasterio.dtypes
from affine import Affine

from eoseg.errors import DataError
from eoseg.vrt import sources_of

BIGGEST_BLOCK = 2**30  # bytes; one block must fit in memory, and no sane writer makes larger ones
SANE_BLOCK = 2**26  # bytes; writers that leave blocks out make smaller ones
LISTED = 6  # bytes that each block takes in the list of blocks, at least
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
    if Path(path).is_file() and whole > MOST_SHRUNK * Path(path).stat().st_size and not is_sparse(src, Path(path).stat().st_size, block):
        raise DataError(f"{path}: claims {src.height} x {src.width} pixels in {Path(path).stat().st_size} bytes; it is damaged, copy or download it again.")
    if block > BIGGEST_BLOCK:
        raise DataError(f"{path}: one block of {cols} x {rows} pixels would take {block / 2**30:.1f} GiB; "
                        f"rewrite it in tiles: gdal_translate -co TILED=YES {path} tiled.tif")


def is_sparse(src, size, block):
    """Is a file so small because blocks were left out on purpose, which read as nodata or 0? Its list of all blocks is there then, though they are not.

    Args:
        src: an open GeoTIFF. size: of the file. block: bytes of a block.
    """
    (rows, cols), bands = src.block_shapes[0], src.count if src.interleaving and src.interleaving.name == "band" else 1
    down, across = -(-src.height // rows), -(-src.width // cols)
    if block > SANE_BLOCK or size < LISTED * down * across * bands:
        return False
    places = {(x, y) for y in np.linspace(0, down - 1, 32).astype(int).tolist() for x in np.linspace(0, across - 1, 32).astype(int).tolist()}
    stored = sum(src.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=1) is not None for x, y in places)
    return stored / len(places) * src.height * src.width * bands * block / (rows * cols) <= MOST_SHRUNK * size
