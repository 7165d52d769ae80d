"""Labels of a scene, raster or polygons, read window by window as classes."""

import numpy as np
import shapely
from rasterio.enums import Compression
from rasterio.errors import RasterioError
from rasterio.features import rasterize

from eoseg import raster, validity, vector
from eoseg.coding import IGNORE, WHOLE, class_number, key_of
from eoseg.errors import DataError, ReadError, SetupError, listing

EXACT = 2**53  # larger whole numbers are rounded by whoever computes with floats


class RasterLabels:
    """A label raster on the scene's grid, or on any other, aligned by nearest neighbour.

    Args:
        scene: the open `raster.Scene` it belongs to. coding: a `coding.Coding`.
    """

    def __init__(self, path, scene, coding, say=print):
        self.path, self.scene, self.coding = path, scene, coding
        self.src = raster.open_raster(path)
        self._check()
        self.tag = self.src.nodata
        self.masked = validity.mask_kind(self.src) == "mask"
        self.view = self.src if raster.same_grid(self.src, scene) else self._aligned(scene, say)

    def _check(self):
        """Raises DataError where pixels cannot be codes: a picture of the classes, or what a lossy compression made of them."""
        if self.src.count != 1:
            raise DataError(f"{self.path}: has {self.src.count} bands; a label is one band of class codes: gdal_translate -b N takes one out, but the colours of a picture are no codes.")
        if self.src.driver == "JPEG" or self.src.compression == Compression.jpeg:
            raise DataError(f"{self.path}: is compressed as JPEG, which changes codes into their neighbours; write it anew from its source as TIFF or PNG.")

    def _aligned(self, scene, say):
        if not self.src.crs or not scene.crs:
            placed = not (self.src.transform.is_identity or scene.transform.is_identity)
            if placed or self.src.crs != scene.crs or (self.src.height, self.src.width) != (scene.height, scene.width):
                raise DataError(f"{self.path}: lies on another grid than {scene.path} and one of them has no CRS; set it with gdal_edit.py -a_srs, and its place with -a_ullr where that lacks too.")
            return self.src
        say(f"note: {self.path}: lies on another grid than the image; aligned by nearest neighbour")
        view = raster.aligned(self.src, scene)
        self.bounds = raster.bounds_in(self.src, scene.crs)
        check_overlap(self.path, self.bounds, scene)
        return view

    def read(self, window):
        """Classes of a window inside the image: (H, W) uint8, 255 where unlabelled or beyond the label raster."""
        try:
            where = raster.grid_window(window)
            codes = self.view.read(1, window=where)
            if self.view is not self.src:
                there = self.view.read(2, window=where) > 0
            else:
                there = self.src.read_masks(1, window=where) > 0 if self.masked else True
        except RasterioError as error:
            raise ReadError(f"{self.path}: cannot be read ({raster.deepest(error)}); it is truncated or damaged, copy it again.") from None
        if self.view is not self.src and codes.dtype.kind in "iu" and codes.dtype.itemsize == 8 and (codes.astype(float) > EXACT).any():
            raise DataError(f"{self.path}: lies on another grid and holds codes above {EXACT}, which GDAL rounds as it aligns them; write smaller codes.")
        if there is True:
            return self.coding.decode(codes, self.tag, self.path)
        classes = np.full(codes.shape, IGNORE, np.uint8)  # whatever stands where no label is
        classes[there] = self.coding.decode(codes[there], self.tag, self.path)
        return classes

    def meets(self, window):
        """Could a pixel of the window be labelled, as far as the header tells?"""
        if self.view is self.src:
            return True
        (left, *_, right), (bottom, *_, top) = (sorted(side) for side in zip(*(self.scene.transform * corner for corner in corners_of(window))))
        west, south, east, north = in_order(self.bounds)
        return left < east and right > west and bottom < north and top > south

    def memory(self):
        """What a resumed run must know of the windows read so far."""
        return self.coding.memory(self.path)

    def recall(self, memory):
        self.coding.recall(self.path, memory)

    def close(self):
        if self.view is not self.src:
            self.view.close()
        self.src.close()


def corners_of(window):
    """The corners of a window as (column, row)."""
    bottom, right = window.row + window.height, window.col + window.width
    return (window.col, window.row), (right, window.row), (right, bottom), (window.col, bottom)


class Drawn:
    """Polygons in the scene's CRS, drawn onto its grid: a pixel belongs to a polygon when its centre does, and the later polygon stands."""

    def __init__(self, shapes, values, outside, scene):
        self.values, self.outside, self.scene = values, outside, scene
        self.shapes = nearby(shapely.make_valid(np.asarray(shapes), method="structure", keep_collapsed=False), scene)  # polygons only: a line would be drawn too
        self.tree = shapely.STRtree(self.shapes)

    def hits(self, window):
        """Indices of the polygons that meet a window, in their order."""
        corners = [self.scene.transform * corner for corner in corners_of(window)]
        around = shapely.Polygon(corners)
        hits = np.sort(self.tree.query(around, predicate="intersects"))
        return hits[shapely.relate_pattern(around, self.shapes[hits], "T********")]  # more than a common border

    def read(self, window):
        """Values of a window: (H, W) uint8."""
        hits, shape = self.hits(window), (window.height, window.width)
        if not len(hits):
            return np.full(shape, self.outside, np.uint8)
        return rasterize(zip(self.shapes[hits], self.values[hits].tolist()), shape, fill=self.outside, transform=self.scene.placed(window), dtype="uint8")


def nearby(shapes, scene):
    """The shapes; those that reach beyond a thousand scenes are cut down to what lies around this one: GDAL counts their pixels in 32 bits."""
    west, south, east, north = in_order(scene.src.bounds)
    side = max(east - west, north - south)
    bounds = shapely.bounds(shapes) - (west, south, west, south)
    far = np.abs(bounds).max(1, initial=0) > 1000 * side
    around = shapely.box(west - side, south - side, east + side, north + side)
    return np.where(far, shapely.buffer(shapely.intersection(np.where(far, shapes, None), around), 0), shapes)


def read_polygons(path, scene, options, say, near=True):
    """The polygons of a file in the scene's CRS, a GeoDataFrame; those without a shape left out.

    Args:
        near: they must lie near the scene.
    Raises:
        DataError: other shapes than polygons, none at all, or none near the scene.
    """
    frame = vector.read_layer(path, options.vector_crs)
    lack = frame.geometry.isna() | frame.geometry.is_empty
    if lack.any() and not lack.all():
        say(f"note: {path}: {lack.sum()} of {len(frame)} polygons have no shape; left out")
    frame = frame[~lack]
    other = sorted(set(frame.geom_type) - {"Polygon", "MultiPolygon"})
    if frame.empty or other:
        raise DataError(f"{path}: holds {listing(other) or 'no polygon'} where polygons are needed; draw or buffer some, or choose another file.")
    frame = vector.onto(frame, scene.crs, path, say, in_order(scene.src.bounds))
    frame = frame[np.isfinite(frame.bounds.to_numpy()).all(1)]  # others are empty now, or so far away that the scene's CRS cannot express them
    if near:
        check_overlap(path, frame.total_bounds, scene)
    return frame


class PolygonLabels:
    """Polygons drawn onto the scene's grid; where they overlap, the later one in the file stands.

    Args:
        options: ExtractionConfig (label_field, label_burn, label_outside, vector_crs). coding: a `coding.Coding`.
    """

    def __init__(self, path, scene, coding, options, say=print):
        self.path = path
        frame = read_polygons(path, scene, options, say)
        if options.label_field is None and options.label_burn is None:
            raise SetupError(f"--label {path}: polygons need --label_field NAME (class from an attribute: "
                             f"{listing(frame.columns.drop(frame.geometry.name), 8)}) or --label_burn V (a plain mask).")
        if options.label_burn is not None and coding.mapping is not None:
            raise SetupError("--label_burn and --label_map: one is the class of every polygon, the other maps an attribute's values; give one.")
        classes = np.full(len(frame), options.label_burn) if options.label_field is None else self._classes(frame, coding, options.label_field, say)
        self.drawn = Drawn(frame.geometry, classes, outside_of(options), scene)

    def _classes(self, frame, coding, field, say):
        """The class of every polygon, by an attribute."""
        names = [vector.plain(value) for value in vector.column(frame, field, "--label_field", self.path, "attribute")]
        if "" in names:
            say(f"note: {self.path}: {names.count('')} of {len(names)} polygons hold nothing in {field}; they are unlabelled")
        mapping = coding.mapping
        if mapping is None:
            texts = sorted({name for name in names if name and not WHOLE.fullmatch(name)})
            if texts:
                example = " ".join(f"'{name}={i}'" if " " in name else f"{name}={i}" for i, name in enumerate(texts[:50]))
                raise SetupError(f"--label_field {field}: holds names, not numbers; say which class each is, e.g. --label_map {example}")
            mapping = {str(number): number for number in range(IGNORE + 1)}
        unknown = sorted({name for name in names if name and key_of(name) not in mapping})
        if unknown and coding.mapping is None:
            raise DataError(f"{self.path}: {field} holds {listing(unknown, 8)}, which are no classes (0 to 254, 255 is unlabelled); map every value with --label_map.")
        if unknown:
            raise DataError(f"{self.path}: {field} holds {listing(unknown, 8)}, which --label_map does not name; add them, e.g. {unknown[0]}=ignore.")
        return np.array([mapping[key_of(name)] if name else IGNORE for name in names])

    def read(self, window):
        """Classes of a window: (H, W) uint8, 255 where unlabelled."""
        return self.drawn.read(window)

    def meets(self, window):
        """Is there anything but unlabelled pixels in the window, as far as outlines tell?"""
        return self.drawn.outside != IGNORE or len(self.drawn.hits(window)) > 0

    def memory(self):
        """Nothing to remember: classes were decided when the file was read."""

    def recall(self, memory):
        """Nothing to take up."""

    def close(self):
        """Nothing stays open."""


class Within:
    """Labels inside an area of interest; what lies beyond it is unlabelled."""

    def __init__(self, labels, area):
        self.labels, self.area = labels, area
        self.meets, self.memory, self.recall, self.close = labels.meets, labels.memory, labels.recall, labels.close

    def read(self, window):
        """Classes of a window: (H, W) uint8, 255 where unlabelled or outside the area."""
        return np.where(self.area.read(window) > 0, self.labels.read(window), IGNORE).astype(np.uint8)


def open_area(scene, options, say=print):
    """The area of interest, Drawn as 1 on 0; None without --aoi."""
    if options.aoi is None:
        return None
    shapes = read_polygons(options.aoi, scene, options, say, near=False).geometry
    return Drawn(shapes, np.ones(len(shapes), int), 0, scene)


def in_order(bounds):
    """West, south, east and north of bounds that a south-up raster turns round."""
    (west, east), (south, north) = (sorted(bounds[side::2]) for side in (0, 1))
    return west, south, east, north


def check_overlap(path, bounds, scene):
    """Raises DataError when labels with these bounds, in the scene's CRS, lie beside it altogether: they would all read as unlabelled, or as 0."""
    left, bottom, right, top = in_order(scene.src.bounds)
    west, south, east, north = in_order(bounds)
    if not (max(west, left) < min(east, right) and max(south, bottom) < min(north, top)):  # nan where nothing is left of the labels
        where = f"from {west:.6g} {south:.6g} to {east:.6g} {north:.6g} in the image's CRS" if np.isfinite([west, south, east, north]).all() else "far away"
        raise DataError(f"{path}: lies beside {scene.path}: {where}, the image from "
                        f"{left:.6g} {bottom:.6g} to {right:.6g} {top:.6g}; check that both show the same place.")


def outside_of(options):
    """The class where no polygon lies: unlabelled with --label_field (sparse labels), 0 with --label_burn (a mask)."""
    word = options.label_outside
    if word is None:
        return IGNORE if options.label_field is not None else 0
    number = class_number(word.lower())
    if number is None:
        raise SetupError(f"--label_outside {word}: is neither a class from 0 to 254 nor ignore; give one of them.")
    return number


def open_labels(path, scene, coding, options, say=print, area=None):
    """The labels of `scene`, from polygons or a raster, whichever `path` is; only inside `area` (what `open_area` returned)."""
    labels = open_whole(path, scene, coding, options, say)
    return labels if area is None else Within(labels, area)


def open_whole(path, scene, coding, options, say):
    if vector.is_vector(path):
        if options.label_nodata is not None:
            raise SetupError(f"--label_nodata: {path} holds polygons, which have no nodata; --label_outside is for what lies between them.")
        return PolygonLabels(path, scene, coding, options, say)
    if (options.label_field, options.label_burn, options.label_outside) != (None, None, None):
        raise SetupError(f"--label_field, --label_burn, --label_outside: {path} is a raster; they are for polygon files.")
    return RasterLabels(path, scene, coding, say)
