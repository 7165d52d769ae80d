"""A finished map as polygons: whole patches with their numbers, whatever becomes of the outlines."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from cutouts import PLACE
from rasterio import features
from rasterio.crs import CRS
from rasterio.transform import Affine

from eoseg import georef, memory, polygons, vector
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError

NODATA = 255
UTM30, DEGREES = CRS.from_epsg(32630), CRS.from_epsg(4326)
MAP = np.array([[0, 0, 0, 2, 2],
                [0, 1, 0, 2, 255],
                [0, 0, 0, 255, 2],
                [1, 1, 2, 2, 2]], np.uint8)
NAMES = ["water", "wood", "town"]


def noise(side=60, classes=4, seed=0):
    """A restless map: most patches are a few pixels, some wind through all of it; a twentieth is nodata."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (side // 4, side // 4)).repeat(4, 0).repeat(4, 1)
    found = np.where(rng.random((side, side)) < 0.25, rng.integers(0, classes, (side, side)), coarse).astype(np.uint8)
    found[rng.random(found.shape) < 0.05] = NODATA
    return found


def look_of(classes, crs=UTM30, transform=PLACE):
    return {"height": classes.shape[0], "width": classes.shape[1], "crs": crs, "transform": transform, "nodata": NODATA}


def written(folder, classes, confidence=None, suffix=".gpkg", crs=UTM30, transform=PLACE, say=print, names=NAMES, numbers=range(3), **options):
    """What stands in the file that `write` makes: a GeoDataFrame."""
    target = folder / f"areas{suffix}"
    count = polygons.write(target, classes, confidence, look_of(classes, crs, transform), names, numbers, PredictionConfig(**{"polygons": ".gpkg"} | options), say)
    assert [file.name for file in folder.iterdir()] == [target.name]  # nothing half made, nothing of SQLite's
    frame = geopandas.read_file(target)
    assert len(frame) == count
    return frame


def drawn(frame, classes, transform=PLACE):
    """The polygons drawn onto the map's grid again."""
    return features.rasterize(zip(frame.geometry, frame["class"]), classes.shape, fill=NODATA, transform=transform, dtype="uint8")


def test_each_patch_has_its_class_name_area_pixels_and_mean_confidence(tmp_path, monkeypatch):
    monkeypatch.setattr(polygons, "BAND", 10)  # two rows at once
    confidence = np.where(MAP == NODATA, np.nan, np.arange(20).reshape(4, 5) / 20).astype(np.float32)
    frame = written(tmp_path, MAP, confidence)
    assert list(frame.columns) == ["class", "name", "hectares", "pixels", "confidence", "geometry"]
    rows = sorted(zip(frame["class"], frame["name"], frame["pixels"], frame["hectares"], frame["confidence"].round(4)))
    assert rows == [(0, "water", 8, 0.08, 0.3), (1, "wood", 1, 0.01, 6 / 20), (1, "wood", 2, 0.02, 15.5 / 20),
                    (2, "town", 3, 0.03, round((3 + 4 + 8) / 60, 4)), (2, "town", 4, 0.04, round((14 + 17 + 18 + 19) / 80, 4))]
    assert "confidence" not in written(tmp_path, MAP)


def test_patches_that_meet_at_a_corner_alone_are_two_and_a_hole_stays_a_hole(tmp_path):
    frame = written(tmp_path, np.array([[1, 0], [0, 1]], np.uint8))
    assert frame["pixels"].tolist() == [1] * 4
    water = written(tmp_path, MAP).query("name == 'water'").geometry.item()
    assert water.equals(shapely.box(500000, 4799970, 500030, 4800000) - shapely.box(500010, 4799980, 500020, 4799990))


def test_the_numbers_of_the_map_lead_to_the_names(tmp_path):
    frame = written(tmp_path, np.array([[11, 300], [11, 255]], np.uint16), names=["wood", "town"], numbers=[11, 300])
    assert dict(zip(frame["class"], frame["name"])) == {11: "wood", 300: "town"}


PLACES = {"north-up": PLACE, "south-up": Affine(10, 0, 500000, 0, 10, 4799000), "rotated": Affine.translation(500000, 4800000) @ Affine.rotation(30) @ Affine.scale(10, -20)}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_polygons_drawn_again_give_the_map_whichever_way_it_lies(tmp_path, place):
    classes = noise()
    frame = written(tmp_path, classes, transform=place, names=list("abcd"), numbers=range(4))
    assert (drawn(frame, classes, place) == classes).all() and frame.is_valid.all()
    assert np.allclose(frame.area / 1e4, frame["hectares"]) and set(frame.geom_type) == {"Polygon"}


@pytest.mark.parametrize("crs, place", [("EPSG:32630", PLACE), ("EPSG:4326", Affine(0.01, 0, -3, 0, -0.01, 60)), ("EPSG:3857", Affine(100, 0, 0, 0, -100, 8000000))])
def test_areas_add_up_to_those_of_the_map(tmp_path, crs, place):
    classes = noise()
    found = written(tmp_path, classes, crs=CRS.from_string(crs), transform=place, simplify=1).groupby("class")["hectares"].sum()
    areas = georef.pixel_areas(place, CRS.from_string(crs), *classes.shape)
    assert np.allclose(found, [areas @ (classes == number).sum(1) / 1e4 for number in range(4)], rtol=1e-9)


def test_small_patches_go_to_their_largest_neighbour_and_nodata_stays(tmp_path):
    classes = np.array([[0, 0, 0, 1, 1],
                        [0, 2, 3, 1, 1],
                        [0, 0, 0, 1, 255],
                        [3, 3, 255, 255, 2]], np.uint8)
    frame = written(tmp_path, classes, names=list("abcd"), numbers=range(4), sieve=2)
    assert (drawn(frame, classes) == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 255], [3, 3, 255, 255, 2]]).all()
    assert sorted(frame["pixels"]) == [1, 2, 5, 9]  # the single pixel amid nodata has nowhere to go


def test_no_small_patch_with_a_neighbour_outlives_the_sieve(tmp_path):
    classes = noise()
    frame = written(tmp_path, classes, sieve=12)
    left = frame[frame["pixels"] < 12]
    assert (drawn(frame, classes) == NODATA).sum() == (classes == NODATA).sum() > 0
    assert len(frame) < 100 and all(frame.drop(row).intersection(left.geometry[row]).length.sum() == 0 for row in left.index)


def test_polygons_below_the_smallest_area_are_left_out_and_counted(tmp_path):
    said = []
    frame = written(tmp_path, MAP, min_area=0.03, say=said.append)
    assert sorted(frame["pixels"]) == [3, 4, 8]
    assert said == ["note: --min_area 0.03: 2 of 5 polygons left out, 0.03 hectares in all"]


def test_simpler_outlines_leave_neither_gaps_nor_overlaps(tmp_path):
    classes = noise(80).clip(0, 3)  # no nodata: the polygons are all of the scene
    exact, plain = (written(tmp_path, classes, simplify=pixels) for pixels in (0, 1))
    assert plain.count_coordinates().sum() < 0.9 * exact.count_coordinates().sum()
    assert shapely.coverage_is_valid(plain.geometry.to_numpy()) and plain.is_valid.all()
    whole = plain.union_all()
    assert not whole.interiors and np.isclose(whole.area, plain.area.sum()) and 0 <= exact.area.sum() - whole.area <= 200  # at most the tips of the four corners
    assert plain[["class", "pixels", "hectares"]].equals(exact[["class", "pixels", "hectares"]])
    assert max(shapely.distance(shapely.points(shapely.get_coordinates(old)), new.boundary).max() for old, new in zip(exact.geometry, plain.geometry)) <= 10.01  # metres: a pixel


def test_the_file_lies_where_it_was_named_or_beside_the_map(tmp_path):
    target = lambda word: polygons.target_of(PredictionConfig(polygons=word), tmp_path / "map.tif")
    assert target(".gpkg") == tmp_path / "map.gpkg"
    assert target("out/areas.GeoJSON").as_posix() == "out/areas.GeoJSON"
    with pytest.raises(SetupError, match=r"^--polygons areas.shp: .* \.gpkg, \.geojson or \.parquet"):
        target("areas.shp")


def test_geojson_is_in_degrees_whatever_the_map_is_in(tmp_path):
    written(tmp_path, MAP, suffix=".geojson")
    layer = json.loads((tmp_path / "areas.geojson").read_text())
    lon, lat = layer["features"][0]["geometry"]["coordinates"][0][0]
    assert "crs" not in layer and -3 <= lon < -2.99 and 43.35 < lat < 43.36  # of 500000 E, 4800000 N
    assert {shapely.geometry.shape(part["geometry"]).exterior.is_ccw for part in layer["features"]} == {True}


def test_parquet_keeps_the_map_s_crs_or_names_the_package_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(geopandas.GeoDataFrame, "to_parquet", lambda frame, part: part.write(f"{frame.crs.to_epsg()} {len(frame)}".encode()))
    polygons.write(tmp_path / "areas.parquet", MAP, None, look_of(MAP), NAMES, range(3), PredictionConfig())
    assert (tmp_path / "areas.parquet").read_text() == "32630 5"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match="^--polygons .parquet: .*pip install pyarrow"):
        polygons.target_of(PredictionConfig(polygons=".parquet"), tmp_path / "map.tif")


def test_a_map_without_data_gives_a_file_without_polygons(tmp_path):
    said = []
    frame = written(tmp_path, np.full((4, 5), NODATA, np.uint8), np.full((4, 5), np.nan, np.float32), say=said.append, simplify=1, sieve=3)
    assert len(frame) == 0 and list(frame.columns) == ["class", "name", "hectares", "pixels", "confidence", "geometry"] and frame.crs == UTM30
    assert len(said) == 1 and said[0].endswith("areas.gpkg: holds no polygon")


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_scene_without_a_place_keeps_its_coordinates_but_has_no_hectares(tmp_path):
    frame = written(tmp_path, MAP, crs=None, transform=Affine.identity())
    assert frame["hectares"].isna().all() and frame["pixels"].sum() == 18 and frame.total_bounds.tolist() == [0, 0, 5, 4]
    for name, area, words in (("a.geojson", 0.0, "--polygons a.geojson: .*longitude"), ("a.gpkg", 1.0, "--min_area 1: .*--sieve")):
        with pytest.raises(SetupError, match="^" + words):
            polygons.check(Path(name), look_of(MAP, None), PredictionConfig(polygons=".gpkg", min_area=area))


@pytest.mark.parametrize("room, what", [(100, "60 x 60 pixels .*; cut the scene"), (80_000, "runs .*; .*--aoi"), (400_000, "polygons .*; .*--sieve or --min_area, a smaller area")])
def test_too_little_memory_is_told_before_anything_is_written(tmp_path, monkeypatch, room, what):
    (tmp_path / "areas.gpkg").write_text("of yesterday")
    monkeypatch.setattr(memory, "available", lambda: 2 * room)
    with pytest.raises(SetupError, match=f"^--polygons: [0-9,]* ?{what}.*, or allow more with --max_memory"):
        written(tmp_path, noise())
    assert [file.read_text() for file in tmp_path.iterdir()] == ["of yesterday"]


def test_the_memory_that_is_given_counts_with_what_is_held(tmp_path):
    with pytest.raises(SetupError, match="are allowed"):
        polygons.check(tmp_path / "a.gpkg", look_of(MAP), PredictionConfig(max_memory=10**6))
    polygons.check(tmp_path / "a.gpkg", look_of(MAP), PredictionConfig(max_memory=2**40))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "areas.gpkg").write_text("of yesterday")

    def fails(frame, part, **settings):
        part.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(geopandas.GeoDataFrame, "to_file", fails)
    with pytest.raises(KeyboardInterrupt):
        vector.write_layer(vector.frame_of({"n": [1]}, [shapely.box(0, 0, 1, 1)], None), tmp_path / "areas.gpkg")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["of yesterday"]
