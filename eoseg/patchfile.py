"""A patch as the bytes of a file."""

import rasterio
from rasterio.io import MemoryFile


def patch_bytes(pixels, transform, crs, nodata=None, names=None, compress="deflate", mask=None):
    """A patch (B, H, W) as the bytes of one GeoTIFF, band by band, each band one block.

    Made in memory and written by Python, which reports a full disk; GDAL does not always.

    Args:
        compress: deflate (level 1; tifffile reads it without further packages), lzw, zstd or none; types of up to
            32 bits with horizontal differencing.
        mask: (H, W) bool, False where no pixel is; for images whose invalid pixels no nodata value marks.
    """
    count, height, width = pixels.shape
    options = {"deflate": {"zlevel": 1}, "zstd": {"zstd_level": 1}}.get(compress, {})
    if compress != "none":
        options |= {"compress": compress, "predictor": 2 if pixels.dtype.itemsize <= 4 else 1}
    options["alpha"] = "no"  # GDAL takes the last of four 8-bit bands for transparency; in patches it is a band
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, crs=crs,
                         transform=transform, nodata=nodata, interleave="band", blockysize=height, **options) as dst:
            dst.write(pixels)
            if mask is not None:
                dst.write_mask(mask)
            for number, name in enumerate(names or [], 1):
                dst.set_band_description(number, name)
        return memory.read()
