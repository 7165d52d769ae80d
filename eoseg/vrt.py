"""The text of a VRT: one that lets GDAL read plain rows of numbers as a raster, and what a given one would read."""

import html
import re
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from eoseg.errors import DataError

TYPES = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}
SIZES = {"int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8}  # bytes of GDAL's types; Byte is what it takes for granted
UNUSUAL = re.compile(r"(?i)PixelFunctionLanguage|DEMPath|[XY]_DATASET|dataset_filename|OVERVIEW_FILE|<OOI|<Group|<Array")  # programs, and further ways to name a file


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
    """The files a VRT reads, each as often as it is named; none outside its own folder: one from a stranger could read any other.

    Raises:
        DataError: a source elsewhere, or one named in a way that another reader could take for another file; a program in it;
            a file of plain numbers that is too short.
    """
    home, text = file.resolve().parent, file.read_text(encoding="utf-8", errors="replace")
    sources = re.findall(r"<Source(?:Filename|Dataset)\b([^<>]*)>([^<>]*)</Source", text)
    if 2 * len(sources) != len(re.findall(r"(?i)source(?:filename|dataset)\b", text)):
        raise DataError(f"{file}: names its sources in an unusual way; make it anew with gdalbuildvrt.")
    unusual = UNUSUAL.search(html.unescape(text))
    if unusual:
        raise DataError(f"{file}: holds {unusual[0].strip('<')}, by which a stranger's file could read others or run a program; write its pixels out with gdal_translate.")
    found = {source: place_of(*source, file, home) for source in set(sources)}
    check_raw(file, text, home)
    return [found[source] for source in sources]


def place_of(attributes, name, file, home):
    """The path of a source: its text and its tag's attributes, as the VRT `file` in the folder `home` has them."""
    source = Path(html.unescape(name))
    if not source.is_absolute() and not re.search(r"""relativeToVRT=["']1""", attributes):
        raise DataError(f"{file}: has the source {name}, which is not relative to the VRT; make it anew with gdalbuildvrt.")
    place = (home / source).resolve()
    if not place.is_relative_to(home):
        raise DataError(f"{file}: points outside its own folder, at {name}; copy the sources beside it.")
    return place


def check_raw(file, text, home):
    """Raises DataError for a band of plain numbers whose file ends too early: GDAL reads 0 beyond its end."""
    number = lambda key, where, otherwise: int((re.search(rf"(?i){key}\s*[>=]\s*[\"']?\s*(-?\d+)", where) or (0, otherwise))[1])
    height, width = (number(f"raster{axis}Size", text, 0) for axis in "YX")
    for band in re.finditer(r"(?is)<VRTRasterBand\b([^>]*VRTRaw[^>]*)>(.*?)</VRTRasterBand", text):
        attributes, body = band.groups()
        size = SIZES.get((re.search(r"""(?i)dataType\s*=\s*["'](\w+)""", attributes) or ("", ""))[1].lower(), 1)
        across = number("PixelOffset", body, size)
        down = number("LineOffset", body, across * width)
        end = number("ImageOffset", body, 0) + max(0, (height - 1) * down) + max(0, (width - 1) * across) + size
        for source in re.findall(r"<SourceFilename\b([^<>]*)>([^<>]*)</Source", body):
            place = place_of(*source, file, home)
            if place.is_file() and place.stat().st_size < end:
                raise DataError(f"{place}: has {place.stat().st_size} bytes, {file} claims {end}; it is truncated, copy or download it again.")
