"""Pixels in real units: metres, hectares."""

import functools

import numpy as np
import pyproj

METRES_PER_DEGREE = 111_320  # along a meridian, about


def pixel_areas(transform, crs, height, width):
    """Area of a pixel in each row, (height,) float64, in square metres; None where the place on Earth is unknown.

    Planar where the CRS is projected and true to area within 1 % (UTM, Albers); geodesic elsewhere (degrees, Mercator).
    """
    if not crs or transform.is_identity or not (crs.is_projected or crs.is_geographic) or off_earth(transform, crs, height, width):
        return None
    lonlat = to_lonlat(crs.to_wkt())
    if lonlat is None:
        return None
    plane = None
    if crs.is_projected:
        plane = abs(transform.determinant) * crs.linear_units_factor[1] ** 2
    rows = np.unique(np.linspace(0, height - 1, min(height, 257)).round().astype(int))
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    geod = pyproj.Geod(ellps="WGS84")

    def area(row):
        place = [transform * (width // 2 + dx, row + dy) for dx, dy in corners.tolist()]
        return abs(geod.polygon_area_perimeter(*lonlat.transform(*zip(*place)))[0])

    found = np.array([area(int(row)) for row in rows])
    found[~np.isfinite(found)] = plane or 0  # beyond what the projection covers
    if plane and (abs(found / plane - 1) < 0.01).all():
        return np.full(height, plane)
    return np.interp(np.arange(height), rows, found)


def off_earth(transform, crs, height, width):
    """Is the CRS in degrees, and a corner more than a pixel beyond what these can be? Metres are, that go by the wrong CRS."""
    if not crs or not crs.is_geographic:
        return False
    x, y = np.abs([transform * corner for corner in ((0, 0), (width, 0), (0, height), (width, height))]).max(0)
    return bool(x > 540 or y > 90 + abs(transform.d) + abs(transform.e))


@functools.cache
def to_lonlat(wkt):
    """The way from a CRS to longitude and latitude; None from a local one: a plan of a building, a camera."""
    try:
        return pyproj.Transformer.from_crs(wkt, 4326, always_xy=True)
    except pyproj.exceptions.ProjError:
        return None


def ground_width(place):
    """About how wide a pixel at the middle of a `raster.Header` is on the ground, in metres; None where that is unknown."""
    areas = pixel_areas(place.transform, place.crs, place.height, place.width)
    if areas is None:
        return None
    t = place.transform
    return float(np.sqrt(areas[place.height // 2] * np.hypot(t.a, t.d) / np.hypot(t.b, t.e)))


def pixel_size(place):
    """Width and height of the pixels of a `raster.Header` and their unit, as a list; None when it has no place on Earth."""
    t, crs = place.transform, place.crs
    if t.is_identity or not crs or not (crs.is_projected or crs.is_geographic) or off_earth(t, crs, place.height, place.width):
        return None
    return [float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e)), crs.linear_units if crs.is_projected else "degree"]


def latitude(place):
    """Of the middle of a `raster.Header`, in degrees; 0 where that is unknown."""
    lonlat = to_lonlat(place.crs.to_wkt())
    found = lonlat.transform(*(place.transform * (place.width / 2, place.height / 2)))[1] if lonlat else 0.0
    return found if np.isfinite(found) else 0.0
