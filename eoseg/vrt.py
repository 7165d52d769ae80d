"""The text of a VRT: what lets GDAL read plain rows of numbers as a raster with CRS, nodata, colours and class names."""

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

TYPES = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}


def vrt_of(raw, look):
    """Describe the file `raw`, height x width pixels row after row; `look` as in `raster.raw_to_cog`. Goes beside `raw`."""
    size = np.dtype(look["dtype"]).itemsize
    order = "LSB" if np.little_endian else "MSB"
    crs = f"<SRS>{escape(look['crs'].to_wkt(version='WKT2_2019'))}</SRS>" if look["crs"] else ""
    place = "" if look["transform"].is_identity else f"<GeoTransform>{', '.join(map(repr, look['transform'].to_gdal()))}</GeoTransform>"
    colours = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in look.get("colours", []))
    names = "".join(f"<Category>{escape(name)}</Category>" for name in look.get("names", []))
    told = look.get("tags", {}) | {f"CLASS_{i}": name for i, name in enumerate(look.get("names", []))}
    tags = "".join(f'<MDI key="{key}">{escape(text)}</MDI>' for key, text in told.items())
    return (
        f'<VRTDataset rasterXSize="{look["width"]}" rasterYSize="{look["height"]}">{crs}{place}'
        f"{f'<Metadata>{tags}</Metadata>' if tags else ''}"
        f'<VRTRasterBand dataType="{TYPES[look["dtype"]]}" band="1" subClass="VRTRawRasterBand">'
        f"<Description>{escape(look['description'])}</Description><NoDataValue>{look['nodata']}</NoDataValue>"
        + (f"<ColorInterp>Palette</ColorInterp><ColorTable>{colours}</ColorTable><CategoryNames>{names}</CategoryNames>" if colours else "")
        + f'<SourceFilename relativeToVRT="1">{escape(Path(raw).name)}</SourceFilename><ByteOrder>{order}</ByteOrder>'
        f"<ImageOffset>0</ImageOffset><PixelOffset>{size}</PixelOffset><LineOffset>{size * look['width']}</LineOffset>"
        "</VRTRasterBand></VRTDataset>\n"
    )
