"""What the tests of extraction share: grids told in pixels of a scene, and a look at what was cut."""

import csv
import json
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from conftest import coded, write_raster
from rasterio.transform import from_origin
from shapely import Polygon

PLACE = from_origin(500000, 4800000, 10, 10)  # where conftest.write_raster puts a raster
UTM30, UTM31 = "EPSG:32630", "EPSG:32631"


def square(row, col, height=16, width=None, place=PLACE):
    """A rectangle given in pixels (they may be fractions) of a raster that lies at `place`."""
    width = height if width is None else width
    return Polygon([place * corner for corner in ((col, row), (col + width, row), (col + width, row + height), (col, row + height))])


def write_vector(path, shapes, crs=UTM30, to=None, layer=None, **columns):
    """Write shapes with their attributes; `to` reprojects them first."""
    frame = geopandas.GeoDataFrame(columns or {"row": range(len(shapes))}, geometry=list(shapes), crs=crs)
    (frame.to_crs(to) if to else frame).to_file(path, **({"layer": layer} if layer else {}))
    return path


def scene_and_label(folder, height=32, width=48, bands=3, dtype="uint16", **scene_options):
    """scene.tif whose pixels tell their place and label.tif of the classes 0 to 4 in stripes; returns their pixels too."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    pixels = coded(height, width, bands, dtype)
    label = (np.indices((height, width)).sum(0) // 3 % 5).astype("uint8")
    names = [f"b{n}" for n in range(1, bands + 1)]
    image_path = write_raster(Path(folder) / "scene.tif", pixels, names=names, **scene_options)
    places = {key: scene_options[key] for key in ("crs", "transform") if key in scene_options}
    return image_path, write_raster(Path(folder) / "label.tif", label, **places), pixels, label


def table_of(folder):
    """patches.csv, a dict per line."""
    with open(Path(folder) / "patches.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def rows_of(folder):
    """patches.csv of one scene, by id of the cell."""
    return {row["id"]: row for row in table_of(folder)}


def metadata_of(folder):
    return json.loads((Path(folder) / "patch_metadata.json").read_text(encoding="utf-8"))


def opened(folder, row, kind="images"):
    """Pixels and profile of the image (or label) patch of a row of patches.csv."""
    with rasterio.open(Path(folder) / row["split"] / kind / row["patch"]) as src:
        return src.read(), {**src.profile, "names": src.descriptions}


def assert_exact(folder, pixels, label=None, place=PLACE, crs=UTM30, nodata=None, names=None):
    """Every patch is its window of the scene, bit for bit, on the right place; returns the rows of patches.csv."""
    rows = rows_of(folder)
    assert rows
    files = {path.name for path in Path(folder).glob("*/images/*.tif")}
    assert files == {row["patch"] for row in rows.values()} == {path.name for path in Path(folder).glob("*/labels/*.tif")}
    for row in rows.values():
        top, left, height, width = (int(row[key]) for key in ("row", "col", "height", "width"))
        for kind, whole in (("images", pixels), ("labels", None if label is None else label[None])):
            got, profile = opened(folder, row, kind)
            assert profile["crs"] == rasterio.crs.CRS.from_user_input(crs) if crs else profile["crs"] is None
            assert np.allclose(profile["transform"][:6], (place * place.translation(left, top))[:6], rtol=0, atol=1e-6)
            if whole is not None:
                wanted = whole[:, top : top + height, left : left + width]
                assert got.dtype == wanted.dtype and got.tobytes() == np.ascontiguousarray(wanted).tobytes()
            if kind == "images":
                assert profile["nodata"] == nodata or nodata != nodata and profile["nodata"] != profile["nodata"]
                assert names is None or profile["names"] == tuple(names)
            else:
                assert profile["nodata"] == 255 and got.dtype == np.uint8
    return rows


def whole_label(folder, height, width, place=PLACE):
    """The label patches put back in their places: (H, W) int, -1 where none lies."""
    canvas = np.full((height, width), -1)
    for row in rows_of(folder).values():
        codes, _ = opened(folder, row, "labels")
        top, left = int(row["row"]), int(row["col"])
        part = codes[0, max(-top, 0) : height - top, max(-left, 0) : width - left]
        canvas[max(top, 0) : top + codes.shape[1], max(left, 0) : left + codes.shape[2]] = part
    return canvas


def drawn(folder, height, width):
    """The classes of a whole scene (H, W), 255 also where no patch was worth keeping."""
    found = whole_label(folder, height, width)
    return np.where(found < 0, 255, found)


def feature(shape, **properties):
    """A GeoJSON feature."""
    return {"type": "Feature", "properties": properties, "geometry": shape if shape is None else shapely.geometry.mapping(shape)}


def write_geojson(path, *features, crs=None):
    """Write features with a CRS as older files state it: a member `crs`, UTM30 unless given."""
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:" + UTM30.replace(":", "::")}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs or named, "features": features}), encoding="utf-8")
    return path


def bytes_of(folder):
    """Every file of a folder: relative path -> content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def error_of(status, said):
    """The one line of an error a user can mend."""
    assert status == 2, said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    return last
