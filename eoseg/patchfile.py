"""Patches as the bytes of GeoTIFFs, at the speed of the compressor.

GDAL makes one file of each kind; its tags are kept, and every further patch gets them around its own blocks. Those are
deflated by ISA-L, at level 1 and the same size 2.4 times as fast as by GDAL's own library. (The bytes may differ between processors
of other instruction sets; the pixels never do.)
"""

import struct

import numpy as np

from eoseg import raster

try:
    from isal import isal_zlib
except ImportError:  # no wheel for this machine: GDAL writes every patch itself
    isal_zlib = None

OFFSETS, LENGTHS, SCALE, TIEPOINT, MATRIX = 273, 279, 33550, 33922, 34264  # TIFF 6.0; OGC GeoTIFF 1.1
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of the types of TIFF 6.0
LARGEST = 2**31  # bytes of pixels beyond which GDAL decides about BigTIFF


class PatchWriter:
    """Turns patches of one scene into bytes.

    Args: as of `raster.patch_bytes`.
    """

    def __init__(self, crs, nodata, names, compress):
        self.crs, self.nodata, self.names, self.compress = crs, nodata, names, compress
        self.skeletons = {}

    def __call__(self, pixels, transform, mask=None):
        """The bytes of a GeoTIFF that holds `pixels` (B, H, W); `mask` as of `raster.patch_bytes`."""
        if not isal_zlib or self.compress != "deflate" or mask is not None or pixels.nbytes > LARGEST:
            return self._by_gdal(pixels, transform, mask)
        upright = transform.b == transform.d == 0 and transform.e < 0
        kind = pixels.shape, pixels.dtype.str, upright, transform.is_identity
        if kind not in self.skeletons:
            self.skeletons[kind] = tags_of(self._by_gdal(np.zeros_like(pixels), transform))
        tags = self.skeletons[kind]
        return self._by_gdal(pixels, transform) if tags is None else assembled(tags, [deflated(band) for band in pixels], transform)

    def _by_gdal(self, pixels, transform, mask=None):
        return raster.patch_bytes(pixels, transform, self.crs, self.nodata, self.names, self.compress, mask)


def deflated(band):
    """A band (H, W) compressed: types of up to 32 bits as differences along the rows (TIFF's predictor 2)."""
    if band.itemsize > 4:
        return isal_zlib.compress(np.ascontiguousarray(band), 1)
    whole = np.ascontiguousarray(band).view(f"u{band.itemsize}")
    steps = whole.copy()
    np.subtract(whole[:, 1:], whole[:, :-1], out=steps[:, 1:])
    return isal_zlib.compress(steps, 1)


def tags_of(content):
    """The tags of a classic little-endian TIFF of one image, dict code -> (type, count, bytes); None of another file."""
    if content[:4] != b"II*\0":
        return None
    (place,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, place)
    tags = {}
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        code, kind, number = struct.unpack_from("<HHI", content, entry)
        size = SIZES[kind] * number
        start = entry + 8 if size <= 4 else struct.unpack_from("<I", content, entry + 8)[0]
        tags[code] = kind, number, content[start : start + size]
    further = struct.unpack_from("<I", content, place + 2 + 12 * count)[0]
    return None if further else tags


def assembled(tags, blocks, transform):
    """A TIFF of `blocks`, one compressed strip per band, with `tags` and the place that `transform` says."""
    t = transform
    longs = lambda values: (4, len(blocks), struct.pack(f"<{len(blocks)}I", *values))
    doubles = lambda *values: (12, len(values), struct.pack(f"<{len(values)}d", *values))
    tags = {**tags, LENGTHS: longs(map(len, blocks)), OFFSETS: longs([0] * len(blocks))}
    if TIEPOINT in tags:
        tags |= {SCALE: doubles(t.a, -t.e, 0), TIEPOINT: doubles(0, 0, 0, t.c, t.f, 0)}
    elif MATRIX in tags:
        tags[MATRIX] = doubles(t.a, t.b, 0, t.c, t.d, t.e, 0, t.f, 0, 0, 0, 0, 0, 0, 0, 1)
    tail = 8 + 2 + 12 * len(tags) + 4  # where values that do not fit their entry begin
    begin = tail + sum(even(len(value)) for _, _, value in tags.values() if len(value) > 4)
    starts = np.cumsum([begin, *(even(len(block)) for block in blocks)])[:-1]
    tags[OFFSETS] = longs(starts.tolist())
    entries, values = [], []
    for code, (kind, count, value) in sorted(tags.items()):
        place = value if len(value) <= 4 else struct.pack("<I", tail)
        entries.append(struct.pack("<HHI4s", code, kind, count, place))
        if len(value) > 4:
            values.append(padded(value))
            tail += len(values[-1])
    return b"".join([b"II*\0", struct.pack("<IH", 8, len(tags)), *entries, b"\0\0\0\0", *values, *map(padded, blocks)])


def even(length):
    """TIFF's values begin at even places."""
    return length + length % 2


def padded(value):
    return value + b"\0" if len(value) % 2 else value
