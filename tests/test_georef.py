"""Pixels in real units: areas that hold on the ground, whatever the CRS."""

import numpy as np
import pyproj
import pytest
from affine import Affine
from rasterio.crs import CRS

from eoseg.georef import ground_width, off_earth, pixel_areas, pixel_size
from eoseg.raster import Header


def on_the_ground(crs, transform, row, col):
    """Area of one pixel by its corners on the ellipsoid, m2."""
    corners = [transform * (col + x, row + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(*zip(*corners))
    return abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*lonlat)[0])


def areas(code, transform, height=300, width=200):
    return pixel_areas(transform, CRS.from_user_input(code), height, width)


@pytest.mark.parametrize("code, transform, square_metres", [
    ("EPSG:32630", Affine(10, 0, 500000, 0, -10, 4800000), 100),
    ("EPSG:32630", Affine(10, 0, 500000, 0, 10, 4800000), 100),
    ("EPSG:32630", Affine(10, 3, 500000, 2, -10, 4800000), 106),
    ("EPSG:32630+5773", Affine(20, 0, 500000, 0, -10, 4800000), 200),
    ("EPSG:2263", Affine(2, 0, 980000, 0, -2, 200000), 4 * (1200 / 3937) ** 2),  # New York, US survey feet
    ("EPSG:5070", Affine(30, 0, 0, 0, -30, 2000000), 900),
])
def test_true_projections_are_counted_in_the_plane(code, transform, square_metres):
    assert areas(code, transform) == pytest.approx([square_metres] * 300, rel=1e-9)


@pytest.mark.parametrize("code, transform", [
    ("EPSG:4326", Affine(0.01, 0, 5, 0, -0.01, 60)),
    ("EPSG:4326", Affine(0.2, 0, -20, 0, -0.2, 30)),
    ("EPSG:4326", Affine(0.01, 0, 179, 0, -0.01, -60)),  # over the date line
    ("EPSG:3857", Affine(10, 0, 1e6, 0, -10, 5621521)),  # 45 degrees north
    ("EPSG:3857", Affine(1000, 0, 1e6, 0, -50000, 7.5e6)),  # from 56 north to 56 south
    ("EPSG:32630", Affine(10, 0, 3500000, 0, -10, 4800000)),  # far outside its zone
    ("EPSG:3413", Affine(20000, 0, -5e6, 0, -20000, 3e6)),  # the Arctic, true at 70 north alone
])
def test_other_systems_are_counted_on_the_ellipsoid(code, transform):
    found = areas(code, transform)
    for row in (0, 77, 150, 299):
        assert found[row] == pytest.approx(on_the_ground(code, transform, row, 100), rel=2e-4)


def test_a_mercator_pixel_at_45_degrees_is_half_of_what_the_plane_says():
    assert areas("EPSG:3857", Affine(10, 0, 1e6, 0, -10, 5621521 + 1500))[150] == pytest.approx(50, rel=0.01)


def test_a_degree_at_60_north_is_half_as_wide_as_at_the_equator():
    found = areas("EPSG:4326", Affine(1, 0, 0, 0, -1, 60.5), 61)
    assert found[60] == pytest.approx(111320 * 110574, rel=1e-3) and found[0] / found[60] == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("crs, transform", [
    (None, Affine(10, 0, 5, 0, -10, 5)),
    (CRS.from_epsg(32630), Affine.identity()),
    (CRS.from_wkt('LOCAL_CS["plan",UNIT["metre",1]]'), Affine(10, 0, 5, 0, -10, 5)),
])
def test_without_a_place_on_earth_there_is_no_area(crs, transform):
    assert pixel_areas(transform, crs, 10, 10) is None
    assert ground_width(Header(10, 10, crs, transform)) is None


@pytest.mark.parametrize("height, width", [(1, 1), (1, 500), (5000, 1)])
def test_every_row_has_an_area_whatever_the_shape(height, width):
    found = areas("EPSG:4326", Affine(0.001, 0, 5, 0, -0.001, 50), height, width)
    assert found.shape == (height,) and (found > 0).all() and (np.diff(found) >= 0).all()


@pytest.mark.parametrize("code, transform, metres", [
    ("EPSG:32630", Affine(20, 0, 500000, 0, -10, 4800000), 20),
    ("EPSG:3857", Affine(10, 0, 1e6, 0, -20, 5621521 + 3000), 10 * np.sqrt(0.5)),
    ("EPSG:4326", Affine(0.01, 0, 5, 0, -0.01, 1.5), 1113.2),
])
def test_ground_width_is_across_not_down(code, transform, metres):
    assert ground_width(Header(300, 200, CRS.from_user_input(code), transform)) == pytest.approx(metres, rel=0.01)


def test_pixel_size_is_width_height_and_unit():
    turned = Affine(10, 0, 5, 0, -20, 5) * Affine.rotation(30)
    assert pixel_size(Header(9, 9, CRS.from_epsg(32630), Affine(10, 0, 5, 0, -20, 5))) == [10, 20, "metre"]
    assert pixel_size(Header(9, 9, CRS.from_epsg(4326), Affine(0.1, 0, 5, 0, -0.1, 5))) == [0.1, 0.1, "degree"]
    assert pixel_size(Header(9, 9, CRS.from_epsg(2263), Affine(2, 0, 5, 0, -2, 5)))[2] == "US survey foot"
    assert pixel_size(Header(9, 9, CRS.from_epsg(32630), turned))[:2] == pytest.approx([np.hypot(turned.a, turned.d), np.hypot(turned.b, turned.e)])
    assert pixel_size(Header(9, 9, None, turned)) is None and pixel_size(Header(9, 9, CRS.from_epsg(32630), Affine.identity())) is None


@pytest.mark.parametrize("code, transform, off", [
    ("EPSG:4326", Affine(10, 0, 500000, 0, -10, 4800000), True),  # metres
    ("EPSG:4326", Affine(1, 0, -180, 0, -1, 110), True),
    ("EPSG:4326", Affine(0.25, 0, -0.125, 0, -0.25, 90.125), False),  # a weather model: the middle of its first row is the pole
    ("EPSG:4326", Affine(0.01, 0, 359, 0, -0.01, 10), False),  # over the date line, counted eastwards
    ("EPSG:32630", Affine(10, 0, 500000, 0, -10, 4800000), False),
])
def test_coordinates_that_are_no_degrees_have_no_area_and_no_size(code, transform, off):
    crs = CRS.from_user_input(code)
    assert off_earth(transform, crs, 90, 90) == off
    assert (areas(code, transform, 90, 90) is None) == off and (pixel_size(Header(90, 90, crs, transform)) is None) == off


def test_coordinates_from_the_middle_of_the_earth_have_no_area():
    assert areas("EPSG:4978", Affine(10, 0, 500000, 0, -10, 4800000)) is None
