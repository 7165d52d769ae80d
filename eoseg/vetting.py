"""What is refused before a pixel of an image file is read: files that are not what they say, and headers that cannot be true."""

import re
from pathlib import Path

import numpy as np
import rasterio.dtypes
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from eoseg.errors import DataError
from eoseg.validity import mask_kind
from eoseg.vrt import sources_of

BIGGEST_BLOCK = 2**30  # bytes; one block must fit in memory, and no sane writer makes larger ones
SANE_BLOCK = 2**26  # bytes; writers that leave blocks out make smaller ones
LISTED = 6  # bytes that each block takes in the list of blocks, at least
MOST_SHRUNK = 10**5  # bytes of pixels to one byte of file: zstd makes some 20,000 of a constant image, nothing makes more
MOST_SOURCES, DEEPEST = 10**5, 10  # files that a VRT reads by way of other VRTs, each as often as it is named; VRTs one within the other
RAW = {"ENVI", "EHdr", "GenBin", "ISCE", "ROI_PAC"}  # drivers of rows of plain numbers, of which GDAL reads those beyond the end of the file as 0
ZIPPED = b"\x1f\x8b"
BESIDE = ":::BASE:::"  # in the name of a file of overviews: where the image lies


def check_file(path, above=(), known=None):
    """What can be told before GDAL sees the file and those beside it. Paths like /vsicurl/... and URLs are passed on as typed.

    Args:
        above: the VRTs that led to this file. known: dict path -> how many files it reads, of those looked at already.
    Returns:
        how many files it leads to, each counted as often as it is named.
    """
    if re.match(r"/vsi|[a-z0-9+]+://", str(path)):
        return 1
    file, known = Path(path), {} if known is None else known
    head = head_of(file, path)
    for beside in map(Path, (f"{path}.msk", f"{path}.ovr")):  # GDAL takes them for whatever they hold
        if beside.is_file() and beside.stat().st_size:
            refuse_disguise(beside, head_of(beside, beside))
    if b"<VRTDataset" in head and file.suffix.lower() == ".vrt":
        return check_sources(file, path, above, known)
    refuse_disguise(path, head)
    if file.suffix.lower() in (".tif", ".tiff") and head[:2] not in (b"II", b"MM"):
        raise DataError(f"{path}: is no TIFF, whatever its name says; copy or download it again, or give it its true suffix.")
    return 1


def head_of(file, path):
    """The first bytes of a file, more than those by which GDAL knows it."""
    if not file.exists():
        raise DataError(f"{path}: no such file; check the path.")
    if not file.is_file():
        raise DataError(f"{path}: is not a file; name one raster.")
    try:
        with open(file, "rb") as f:
            head = f.read(4096)
    except OSError as error:  # some name no file
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk it lies on.") from None
    if not head:
        raise DataError(f"{path}: is empty (0 bytes); copy or download it again.")
    return head


def refuse_disguise(path, head):
    """A VRT called like an image: nobody would expect it to read other files."""
    if b"<VRTDataset" in head:
        raise DataError(f"{path}: is a VRT under another suffix; rename it to .vrt if you trust it.")


def check_sources(file, path, above, known):
    """What a VRT reads, all the way down; how many files that are, each counted as often as it is named."""
    here = file.resolve()
    if here in above:
        raise DataError(f"{path}: refers to itself; make it anew with gdalbuildvrt.")
    counts = []
    for source in sources_of(file):
        if source not in known:
            known[source] = check_file(source, (*above, here), known)
        counts.append(known[source])
    if len(above) >= DEEPEST or max(counts, default=0) > 1 and sum(counts) > MOST_SOURCES:
        raise DataError(f"{path}: leads through too many VRTs, one within the other; make one of the images themselves with gdalbuildvrt.")
    return sum(counts)


def check_header(src, path):
    """What the header tells, before a pixel is read."""
    for notes in map(Path, () if src.crs else (path, f"{path}.aux.xml")):
        if notes.suffix.lower() in (".vrt", ".xml") and notes.is_file() and re.search(rb"<SRS[^>]*>\s*[^<\s]", notes.read_bytes()):
            raise DataError(f"{notes}: names a CRS that nobody knows; set the right one with gdal_edit.py -a_srs.")
    try:
        parts, _, _ = src.subdatasets, src.colorinterp, src.mask_flag_enums  # for these GDAL reads on through the file
    except (RasterioError, CPLE_BaseError) as error:
        raise DataError(f"{path}: is damaged or truncated ({error}); copy or download it again.") from None
    if src.count == 0:
        raise DataError(f"{path}: holds no bands of its own (a container of {len(parts)} rasters); name one of them.")
    if any(np.dtype(t).kind == "c" for t in src.dtypes if t in rasterio.dtypes.dtype_rev) or "complex" in src.dtypes[0]:
        raise DataError(f"{path}: complex pixels; convert to amplitude or intensity first.")
    if src.driver == "GTiff" and len(parts) > 1:
        raise DataError(f"{path}: holds {len(parts)} images, not one image of several bands; take one out: gdal_translate {parts[0]} one.tif")
    if Path(f"{path}.msk").is_file() and mask_kind(src) != "mask":
        raise DataError(f"{path}.msk: cannot be used as the mask of {path} (damaged, of another size, or of single bands); make it anew, or remove it if no pixel is to be masked.")
    check_place(src, path)
    if not src.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", BESIDE).startswith(BESIDE):
        raise DataError(f"{path}: has its overviews elsewhere; remove the OVERVIEW_FILE from {Path(path).name}.aux.xml, or make the file anew with gdal_translate.")
    rows, cols = src.block_shapes[0]
    block = rows * cols * np.dtype(src.dtypes[0]).itemsize
    if Path(path).is_file():
        check_size(src, Path(path), block)
    if src.driver == "GTiff" and block > BIGGEST_BLOCK:
        raise DataError(f"{path}: one block of {cols} x {rows} pixels would take {block / 2**30:.1f} GiB; "
                        f"rewrite it in tiles: gdal_translate -co TILED=YES {path} tiled.tif")


def check_place(src, path):
    """A geotransform must lead to places; points alone do not tell where each pixel lies."""
    if src.transform == Affine.identity():
        if src.gcps[0]:
            raise DataError(f"{path}: is placed by ground control points only; warp it first: gdalwarp {path} warped.tif")
        if src.rpcs:
            raise DataError(f"{path}: is placed by a camera model (RPC) only; orthorectify it first: gdalwarp -rpc {path} warped.tif")
    elif not (np.isfinite(src.transform).all() and 0 < abs(src.transform.determinant) < np.inf):
        raise DataError(f"{path}: its geotransform leads nowhere ({', '.join(f'{number:g}' for number in src.transform.to_gdal())}); "
                        "set it with gdal_edit.py -a_ullr, or remove it with -unsetgt.")


def check_size(src, path, block):
    """A file must be large enough for the pixels it claims; `block` as `is_sparse` takes it."""
    size = sum(Path(file).stat().st_size for file in ([path] if src.driver == "GTiff" else {str(path), *src.files}) if Path(file).is_file())  # a VRT's: with its sources
    whole = sum(np.dtype(dtype).itemsize for dtype in src.dtypes) * src.height * src.width
    if whole > MOST_SHRUNK * size and not (src.driver == "GTiff" and is_sparse(src, size, block)):
        raise DataError(f"{path}: claims {src.height} x {src.width} pixels in {size} bytes; it is damaged, copy or download it again.")
    if src.driver in RAW and "NBITS" not in src.tags(1, ns="IMAGE_STRUCTURE") and path.stat().st_size < whole and head_of(path, path)[:2] != ZIPPED:
        raise DataError(f"{path}: has {path.stat().st_size} bytes, its header claims {whole}; it is truncated, copy or download it again.")


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
