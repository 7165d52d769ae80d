"""The text of a VRT: one that lets GDAL read plain rows of numbers as a raster, and what a given one would read."""

import html
import re
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from eoseg.errors import DataError

TYPES = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}


def vrt_of(raw, look):
    """Describe the file `raw`, height x width pixels row after row, band after band; `look` as in `raster.raw_to_cog`. Goes beside `raw`."""
    size = np.dtype(look["dtype"]).itemsize
    order = "LSB" if np.little_endian else "MSB"
    crs = f"<SRS>{escape(look['crs'].to_wkt(version='WKT2_2019'))}</SRS>" if look["crs"] else ""
    place = "" if look["transform"].is_identity else f"<GeoTransform>{', '.join(map(repr, look['transform'].to_gdal()))}</GeoTransform>"
    colours = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in look.get("colours", []))
    names = "".join(f"<Category>{escape(name)}</Category>" for name in look.get("names", []))
    told = look.get("tags", {}) | {f"CLASS_{i}": name for i, name in enumerate(look.get("names", [])) if name}
    tags = "".join(f'<MDI key="{key}">{escape(text)}</MDI>' for key, text in told.items())
    plane = size * look["width"] * look["height"]
    bands = "".join(
        f'<VRTRasterBand dataType="{TYPES[look["dtype"]]}" band="{number + 1}" subClass="VRTRawRasterBand">'
        f"<Description>{escape(text)}</Description><NoDataValue>{look['nodata']}</NoDataValue>"
        + (f"<Scale>{look['scale']!r}</Scale>" if look.get("scale", 1) != 1 else "")
        + (f"<ColorInterp>Palette</ColorInterp><ColorTable>{colours}</ColorTable><CategoryNames>{names}</CategoryNames>" if colours else "")
        + f'<SourceFilename relativeToVRT="1">{escape(Path(raw).name)}</SourceFilename><ByteOrder>{order}</ByteOrder>'
        f"<ImageOffset>{number * plane}</ImageOffset><PixelOffset>{size}</PixelOffset><LineOffset>{size * look['width']}</LineOffset></VRTRasterBand>"
        for number, text in enumerate(look["bands"])
    )
    return (f'<VRTDataset rasterXSize="{look["width"]}" rasterYSize="{look["height"]}">{crs}{place}'
            f"{f'<Metadata>{tags}</Metadata>' if tags else ''}{bands}</VRTDataset>\n")


def sources_of(file):
    """The files a VRT reads, none outside its own folder: one from a stranger could read any other.

    Raises:
        DataError: a source elsewhere, or one named in a way that another reader could take for another file.
    """
    home, text = file.resolve().parent, file.read_text(encoding="utf-8", errors="replace")
    sources = re.findall(r"<Source(?:Filename|Dataset)\b([^<>]*)>([^<>]*)</Source", text)
    if 2 * len(sources) != len(re.findall(r"(?i)source(?:filename|dataset)\b", text)):
        raise DataError(f"{file}: names its sources in an unusual way; make it anew with gdalbuildvrt.")
    found = []
    for attributes, name in sources:
        source = Path(html.unescape(name))
        if not source.is_absolute() and not re.search(r"""relativeToVRT=["']1""", attributes):
            raise DataError(f"{file}: has the source {name}, which is not relative to the VRT; make it anew with gdalbuildvrt.")
        found.append((home / source).resolve())
        if not found[-1].is_relative_to(home):
            raise DataError(f"{file}: points outside its own folder, at {name}; copy the sources beside it.")
    return found
