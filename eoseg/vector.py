"""Grids and label polygons: the only room that opens vector files."""

import difflib
import io
import re
import unicodedata
import warnings
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import geopandas
import numpy as np
import pyproj
import shapely
from pyproj.exceptions import CRSError, ProjError

from eoseg import files, gdalenv, gdallog  # noqa: F401 (gdalenv acts by being imported)
from eoseg.errors import DataError, SetupError, listing
from eoseg.tiles import Window, snap

warnings.filterwarnings("ignore", message="'crs' was not provided")  # geopandas, of layers that have none
SUFFIXES = {".shp", ".gpkg", ".geojson", ".geojsonl", ".json", ".fgb", ".gml", ".kml", ".kmz", ".parquet", ".geoparquet", ".feather", ".zip", ".gdb", ".sqlite", ".csv"}
FARTHEST = 1e13  # no map holds larger coordinates, in whatever unit
LONGEST = 128  # bytes of an id: with the name of its scene it must fit a file name
WIDE = 5  # degrees: what is wider was drawn in its own CRS, and its sides are curves in the image's
FINE = 0.05  # degrees, between the points that such a side is given: 30 cm off the curve


def is_vector(path):
    """Does the name say vector? (`FILE|layername=NAME` included)"""
    return Path(str(path).split("|layername=")[0]).suffix.lower() in SUFFIXES


def read_layer(path, crs=None):
    """Read a layer, in its own CRS: `FILE`, or `FILE|layername=NAME` as QGIS writes it.

    Args:
        crs: the CRS to believe in place of the file's.
    Raises:
        DataError: missing, unreadable or cut short, coordinates that are no numbers, or cannot be degrees in a geographic CRS.
        SetupError: several layers, or no such CRS.
    """
    file, _, layer = str(path).partition("|layername=")
    if not Path(file).exists():
        raise DataError(f"{file}: no such file; check the path.")
    if not (Path(file).is_file() or Path(file).is_dir()):  # a pipe would never end; a .gdb is a folder
        raise DataError(f"{file}: is not a file; name one vector file.")
    stat = Path(file).stat()
    frame = read_once(file, layer, stat.st_mtime_ns, stat.st_size).copy()
    if crs == "image":
        frame = frame.set_crs(None, allow_override=True)  # `onto` takes it as the image's
    elif crs:
        try:
            frame = frame.set_crs(crs, allow_override=True)
        except Exception:
            raise SetupError(f"--vector_crs {crs}: no such CRS; write e.g. EPSG:32630.") from None
    check_degrees(frame, path)
    return frame


@lru_cache(4)  # a grid and an area for a hundred scenes, and the labels that are looked at before they are cut
def read_once(file, layer, *stamp):
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            frame = read_any(file, layer)
    except SetupError:
        raise
    except Exception as error:  # pyogrio, pyarrow and fiona each have their own
        words = re.split(r"; |\.$", " ".join(str(error).split()))[0]
        raise DataError(f"{file}: cannot be read as a vector file ({words[:300]}); check it with ogrinfo, or copy it again.") from None
    for warning in caught:
        if "pyogrio" in warning.filename:  # of what GDAL said; others speak of shapes that are looked at below
            gdallog.say(str(warning.message), file)
    check_numbers(frame, file)
    return frame


def read_any(file, layer):
    suffix = Path(file).suffix.lower()
    if suffix == ".shp":
        check_whole(Path(file))
    if suffix in (".parquet", ".geoparquet", ".feather"):
        return geopandas.read_feather(file) if suffix == ".feather" else geopandas.read_parquet(file)
    import pyogrio

    pyogrio.set_gdal_config_options({"GDAL_HTTP_PROXY": "127.0.0.1:0"})  # nothing listens there: a file must not make us ask a server for its CRS
    layers = geopandas.list_layers(file)
    spatial = layers[layers["geometry_type"].notna()]["name"].tolist()
    if not spatial:
        raise DataError(f"{file}: holds no layer with geometries; choose another file.")
    if len(spatial) > 1 and not layer:
        raise SetupError(f"{file}: holds the layers {listing(spatial)}; choose one as '{file}|layername={spatial[0]}'.")
    frame = geopandas.read_file(file, layer=layer or spatial[0])
    if layer and layer not in spatial:
        raise SetupError(f"{file}: layer {layer} holds no geometries; choose one of {listing(spatial)}.")
    check_lines(file, len(frame))
    return frame


def check_whole(file):
    """Raises DataError where a .shp is shorter than it says: GDAL would leave out the shapes that lack."""
    with open(file, "rb") as f:
        head = f.read(28)
    claimed, there = 2 * int.from_bytes(head[24:28], "big"), file.stat().st_size
    if there < claimed:
        raise DataError(f"{file}: is {there} bytes long where its header says {claimed}; it is truncated, copy or download it again.")


def check_lines(file, count):
    """Raises DataError where a file of a GeoJSON feature in each line gave fewer features: GDAL passes over lines that it cannot read."""
    if not Path(file).is_file():
        return
    with open(file, "rb") as f:
        lines = filter(None, (line.strip(b" \t\r\n\x1e") for line in f))
        first = next(lines, b"")
        more = sum(1 for _ in lines) if first[:1] + first[-1:] == b"{}" else 0  # a document in several lines closes its bracket in the last
    there = 1 + more
    if more and count < there:
        raise DataError(f"{file}: {there - count} of its {there} lines are no GeoJSON features; it is truncated or damaged, copy it again.")


def check_numbers(frame, path):
    """Raises DataError for shapes with a coordinate that is no number or beyond any map: what is drawn of them is noise."""
    xy, row = shapely.get_coordinates(frame.geometry.to_numpy(), return_index=True)
    wrong = np.unique(row[~(np.abs(xy) <= FARTHEST).all(1)])
    if len(wrong):
        raise DataError(f"{path}: {len(wrong)} of {len(frame)} shapes have a coordinate that is no number, or larger than {FARTHEST:.0e} "
                        f"(row {listing(wrong + 1)}); mend or remove them.")


def check_degrees(frame, path):
    """GeoJSON without a CRS reads as degrees; metres in it would silently lie outside every image."""
    if frame.crs is None or not frame.crs.is_geographic or np.isnan(frame.total_bounds).all():  # nan: no shape at all
        return
    west, south, east, north = frame.total_bounds
    if not (-400 <= west and east <= 400 and -90.5 <= south and north <= 90.5):
        raise DataError(f"{path}: reads as {frame.crs.to_string()} (degrees), but its coordinates run from {west:.0f} {south:.0f} to "
                         f"{east:.0f} {north:.0f}; name the true CRS: --vector_crs EPSG:..., or --vector_crs image for the image's own.")


def onto(frame, crs, path, say=print, around=None):
    """The frame in the image's CRS; where one of the two has none, they are taken to have the same, which is said.

    Args:
        around: west, south, east and north of the image in its CRS: of shapes as wide as countries, what lies near it is enough.
    Raises:
        DataError: no way leads from one CRS to the other.
    """
    if crs is None:
        if frame.crs is not None:
            say(f"note: {path}: the image has no CRS; these coordinates are taken as the image's")
        return frame
    crs = crs.to_wkt()
    if frame.crs is None:
        say(f"note: {path}: has no CRS; taken as the image's")
        return frame.set_crs(crs)
    if frame.crs == crs:
        return frame
    try:
        return (frame if around is None else bent(frame, crs, path, around)).to_crs(crs)
    except ProjError:
        raise DataError(f"{path}: nothing leads from its CRS, {frame.crs.name}, to the image's; name its true one with --vector_crs.") from None


def bent(frame, crs, path, around):
    """The frame; shapes as wide as countries are cut down to the image's surroundings, and their sides have points enough to bend: in another CRS
    sides are drawn straight between points, and points half around the Earth land anywhere."""
    shapes = frame.geometry.to_numpy().copy()
    unit = 1 if frame.crs.is_geographic else 100_000  # metres, about a degree
    west, south, east, north = shapely.bounds(shapes).T
    wide = np.maximum(east - west, north - south) > WIDE * unit
    if not wide.any():
        return frame
    left, bottom, right, top = pyproj.Transformer.from_crs(crs, frame.crs, always_xy=True).transform_bounds(*around)
    if left > right:
        raise DataError(f"{path}: holds shapes wider than {WIDE} degrees, and the image lies across the 180th meridian; cut them down to its surroundings.")
    margin = max(right - left, top - bottom, FINE * unit)
    near = shapely.box(left - margin, bottom - margin, right + margin, top + margin)
    parts = shapely.intersection(shapely.make_valid(shapes[wide]), near)
    shapes[wide] = shapely.segmentize(shapely.buffer(parts, 0), FINE * unit)  # polygons alone, without what merely touches
    return frame.set_geometry(shapes, crs=frame.crs)


def column(frame, name, flag, where, kind="column"):
    """The attributes that a flag asks for by the name of their column.

    Raises:
        SetupError: what the frame was read from, `where`, has none of that name.
    """
    known = list(frame.columns.drop(frame.geometry.name))
    if name in known:
        return frame[name]
    near = difflib.get_close_matches(name.lower(), [str(one).lower() for one in known], n=1)
    nearest = "".join(f" Did you mean {one}?" for one in known if str(one).lower() in near)
    raise SetupError(f"{flag} {name}: {where} has no such {kind}; it has {listing(known, 12) or 'none'}." + nearest)


class Cell(NamedTuple):
    """A grid cell as a window of the image.

    shift: how far its centre was moved to whole pixels (rows, columns), in pixels. size: its own sides (rows,
    columns), in pixels. rotation: in degrees, of a cell that does not lie along the image's axes.
    """

    id: str
    window: Window
    shift: tuple = (0.0, 0.0)
    size: tuple = ()
    rotation: float = 0.0
    split: str = ""


def cells(frame, ids, transform, patch_size, resample=False):
    """Turn polygons in the image's CRS into windows.

    Args:
        ids: one name per polygon. transform: the image's geotransform.
        resample: windows keep the cell's own size, in whole pixels, in place of `patch_size`.
    Returns:
        list of Cell; ids of polygons without a geometry, or beyond what the image's CRS can express.
    Raises:
        DataError: a geometry that is no single polygon.
    """
    shapes = frame.geometry.to_numpy()
    usable = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    empty = [name for name, use in zip(ids, usable) if not use]
    shapes, names = shapes[usable], [name for name, use in zip(ids, usable) if use]
    wrong = [n for n, s in zip(names, shapes) if s.area == 0 or s.geom_type not in ("Polygon", "MultiPolygon") or shapely.get_num_geometries(s) > 1]
    if wrong:
        raise DataError(f"--grid: cells {listing(wrong)} are no single polygons (points, lines or several parts); give one polygon per cell.")
    with np.errstate(all="ignore"):  # some may be infinite: beyond what the CRS can express
        frames = envelopes(shapes, ~transform)
    whole = shapely.get_type_id(frames) == shapely.GeometryType.POLYGON  # a cell at the pole may have become a line
    found = [cell_of(name, around, patch_size, resample) for name, around, use in zip(names, frames, whole) if use]
    return found, empty + [name for name, use in zip(names, whole) if not use]


def envelopes(shapes, t):
    """The smallest rectangle around each shape in pixels (column, row), to which `t` leads; None where it is infinite."""
    pixels = shapely.transform(shapes, lambda xy: xy @ np.array([[t.a, t.d], [t.b, t.e]]) + (t.c, t.f))
    return shapely.oriented_envelope(np.where(np.isfinite(shapely.bounds(pixels)).all(1), pixels, None))


def cell_of(name, around, patch_size, resample):
    """The window of one polygon, of which `around` is the smallest rectangle, in pixel coordinates (column, row)."""
    corners = shapely.get_coordinates(around)[:4]
    col, row = corners.mean(0)
    sides = np.diff(corners[:3], axis=0)
    along = 0 if abs(sides[0][0]) >= abs(sides[0][1]) else 1  # the side that runs along the image's rows
    lengths = np.round(np.hypot(*sides.T), 6)
    width, height = lengths[along], lengths[1 - along]
    angle = np.degrees(np.arctan2(sides[along][1], sides[along][0]))
    angle = (angle + 90) % 180 - 90
    turned = abs(np.sin(np.radians(angle))) * max(width, height) / 2 > 0.5  # a corner leaves its pixel
    rows, cols = (max(1, round(height)), max(1, round(width))) if resample else (patch_size, patch_size)
    window = Window(snap(row, rows), snap(col, cols), rows, cols)
    shift = (round(window.row + rows / 2 - row, 6), round(window.col + cols / 2 - col, 6))
    return Cell(str(name), window, shift, (float(height), float(width)), round(float(angle), 3) if turned else 0.0)


def wrong_sizes(found, patch_size, other_crs):
    """Cells whose sides are not `patch_size` pixels: half a pixel may be lost to rounding, 2 % to another projection."""
    slack = max(0.5, 0.02 * patch_size if other_crs else 0)
    return [cell for cell in found if max(abs(side - patch_size) for side in cell.size) > slack]


def cell_ids(frame, wanted, say=print):
    """A name for every cell, fit for a file name.

    Args:
        wanted: name of a column; AUTO takes the first of id, fid, patch_id that is there and unique, else the row number.
    Returns:
        the names; those that occur more than once.
    Raises:
        SetupError: the column is not there, or holds what no file name should: other characters, or too many.
    """
    if wanted == "AUTO":
        lower = {name.lower(): name for name in frame.columns}
        for name in ("id", "fid", "patch_id"):
            names = [plain(value) for value in frame[lower[name]]] if name in lower else [""]
            if not any(map(unfit, names)):
                if not repeated(names):
                    return names, []
                say(f"note: the grid's column {lower[name]} holds {listing(repeated(names))} more than once; it cannot name the cells")
        return [str(row) for row in range(len(frame))], []
    names = [plain(value) for value in column(frame, wanted, "--id_column", "the grid")]
    if any(map(unfit, names)):
        some = [repr(text if len(text) < 40 else text[:40] + "...") for text in names if unfit(text)]
        raise SetupError(f"--id_column {wanted}: {listing(some)} cannot be part of a file name; use up to {LONGEST} letters, digits, - _ and .")
    return names, repeated(names)


def repeated(names):
    """Names that occur more than once, in order; on some disks a1 and A1 are one, and so are the spellings of a letter in Unicode."""
    as_one = [unicodedata.normalize("NFC", name).lower() for name in names]
    times = Counter(as_one)
    return sorted({name for name, one in zip(names, as_one) if times[one] > 1})


def unfit(name):
    """Could this id not be part of a file name?"""
    return not name or len(name.encode()) > LONGEST or not all(c.isalnum() or c in "-_." for c in name)


def plain(value):
    """An attribute as text: 7, not 7.0; empty where there is none."""
    if isinstance(value, (list, tuple, dict, np.ndarray)):  # JSON and Parquet have them
        return str(value)
    if geopandas.pd.isna(value):
        return ""
    return str(int(value)) if isinstance(value, (float, np.floating)) and float(value).is_integer() else str(value).strip()


def frame_of(table, shapes, crs):
    """A GeoDataFrame of a dict of columns and as many shapes."""
    return geopandas.GeoDataFrame(table, geometry=list(shapes), crs=crs)


def check_name(path, flag=""):
    """Raises SetupError for a name that GDAL's vector formats would shorten: the layer would lie elsewhere."""
    if {*"\t\r\n"} & {*str(path)} or ";" in path.name:
        raise SetupError(f"{flag}{str(path)!r}: has a tab, a line break or a semicolon in its name, which no vector format takes; choose another name.")


def write_layer(frame, path, **settings):
    """Write a GeoDataFrame under its suffix's format, whole or not at all; the same frame gives the same bytes.

    It is made in memory: over a full disk GDAL leaves away the end of a GeoJSON, or the index of a GeoPackage, and says nothing.

    Args:
        settings: of the format, as `pyogrio.write_dataframe` takes them; GeoParquet has none.
    """
    import pyogrio

    check_name(path)
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
    content = io.BytesIO()
    if path.suffix.lower() == ".parquet":
        frame.to_parquet(content)
    else:
        settings.update(layer=re.sub(r"^\W+", "", path.stem) or "layer", engine="pyogrio", driver=pyogrio.detect_write_driver(f"x{path.suffix}"))
        try:
            try:
                frame.to_file(content, **settings)
            except CRSError:  # some custom systems cannot be said in the WKT of GeoPackages
                content = io.BytesIO()
                frame.set_crs(None, allow_override=True).to_file(content, **settings)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError) as error:
            raise SetupError(f"{path}: could not be written ({str(error).splitlines()[0]}); is the memory full?") from None
    files.write_bytes(path, content.getbuffer())
