"""The seven real cases through extraction: what was written is opened and held against the source and its MANIFEST.md."""

import shutil

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from cutouts import assert_exact, error_of, metadata_of, opened, rows_of, table_of, whole_label

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture
def single(script, tmp_path):
    """Run `single`; the output folder, or the error line where `status` is 2."""

    def run(image, label, size, *words, status=0):
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        got, _, err = script("Patch_extraction_v2", "single", "--image", image, "--label", label, "--output", folder, "--patch_size", size, *words)
        if status == 2:
            return error_of(got, err)
        assert got == 0, err
        return folder

    return run


def source(path):
    with rasterio.open(path) as src:
        return src.read(), src.profile, src.descriptions


def centres_in(shapes, profile, shape):
    """Which pixel centres lie in any of the shapes, by shapely alone."""
    rows, cols = np.indices(shape) + 0.5
    x, y = profile["transform"] * (cols, rows)
    union = shapely.union_all(shapely.make_valid(np.asarray(shapes)))
    shapely.prepare(union)
    return shapely.contains_xy(union, x, y)


def covered(folder, shape):
    """Pixels of the scene that lie in a patch."""
    found = np.zeros(shape, bool)
    for row in table_of(folder):
        found[int(row["row"]) : int(row["row"]) + int(row["height"]), int(row["col"]) : int(row["col"]) + int(row["width"])] = True
    return found


def test_chesapeake_patches_without_any_place_keep_all_four_bands(shared, tmp_path, script):
    case, data = shared / "chesapeake_patches_1m", tmp_path / "data"
    data.mkdir()
    for number, image in enumerate(sorted(case.glob("*/images/*.tif"))):
        shutil.copy(image, data / f"image_{number}.tif")
        shutil.copy(image.parents[1] / "masks" / image.name, data / f"label_{number}.tif")
    status, _, err = script("Patch_extraction_v2", "batch", "--data_dir", data, "--output", tmp_path / "out", "--patch_size", 128, "--bands", "red", "green", "blue", 4,
                            "--label_map", "1=0", "2=1", "3=2", "4=3", "5=4", "6=5")
    assert status == 0, err
    rows = table_of(tmp_path / "out")
    assert len(rows) == 16 * 4 and metadata_of(tmp_path / "out")["patches"] == {"train": 48, "validation": 12, "test": 4}
    for row in rows:
        number = row["scene"][len("image_") : -len(".tif")]
        here = np.s_[:, int(row["row"]) : int(row["row"]) + 128, int(row["col"]) : int(row["col"]) + 128]
        got, profile = opened(tmp_path / "out", row)
        assert (got == source(data / f"image_{number}.tif")[0][here]).all() and profile["count"] == 4 and profile["crs"] is None
        assert (opened(tmp_path / "out", row, "labels")[0] == source(data / f"label_{number}.tif")[0][here] - 1).all()
    pixels = metadata_of(tmp_path / "out")["class_pixels"]
    assert {int(c) for split in pixels.values() for c in split} == {1, 2, 4, 5}  # tree, low vegetation, impervious, road


def test_chesapeake_tile_keeps_its_oblong_pixels_and_maps_both_labels(shared, single):
    case = shared / "chesapeake_tile"
    pixels, profile, _ = source(case / "landsat-leaf-on.tif")
    nlcd = source(case / "nlcd.tif")[0][0]
    codes = [11, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82]
    folder = single(case / "landsat-leaf-on.tif", case / "nlcd.tif", 65, "--label_map", *(f"{code}={n}" for n, code in enumerate(codes)))
    label = np.searchsorted(codes, nlcd).astype("uint8")
    label[~np.isfinite(pixels).all(0)] = 255
    assert len(assert_exact(folder, pixels, label, profile["transform"], profile["crs"], names=[f"band_{n}" for n in range(1, 10)])) == 16
    assert opened(folder, rows_of(folder)["5"])[1]["transform"].a == pytest.approx(23.592, abs=1e-3)
    assert "label values 21" in single(case / "landsat-leaf-on.tif", case / "nlcd.tif", 65, "--label_map", "11=0", status=2)
    naip, naip_profile, _ = source(case / "naip-new.tif")
    assert (naip[3] == 0).sum() == 48  # near infrared, which GDAL takes for alpha: no holes
    folder = single(case / "naip-new.tif", case / "lc.tif", 130, "--bands", 1, 2, 3, 4)
    assert_exact(folder, naip, source(case / "lc.tif")[0][0], naip_profile["transform"], naip_profile["crs"])


def test_kampala_buildings_in_degrees_fall_on_their_roofs(shared, single):
    case = shared / "kampala_buildings"
    pixels, profile, names = source(case / "image.tif")
    folder = single(case / "image.tif", case / "buildings_epsg4326.geojson", 512, "--label_burn", 1)
    assert len(assert_exact(folder, pixels, None, profile["transform"], profile["crs"], names=names)) == 24
    got, wanted = whole_label(folder, 2048, 3072), source(case / "label.tif")[0][0]
    assert abs((got == 1).mean() - 0.242) < 0.0005  # MANIFEST.md
    assert (got != wanted).sum() <= 0.0001 * wanted.size
    fields = single(case / "image.tif", case / "label.tif", 512)
    assert (whole_label(fields, 2048, 3072) == wanted).all()


def test_parana_leaves_the_wedge_and_everything_between_the_polygons_unlabelled(shared, single):
    case = shared / "l8_parana_scene"
    pixels, profile, names = source(case / "image.tif")
    frame = geopandas.read_file(case / "training_polygons_epsg32621.gpkg")
    kinds = ["water", "crop", "tree", "developed"]
    folder = single(case / "image.tif", case / "training_polygons_epsg32621.gpkg", 100, "--label_field", "name", "--label_map", *(f"{k}={n}" for n, k in enumerate(kinds)))
    wanted = np.full(pixels.shape[1:], 255)
    for n, kind in enumerate(kinds):
        wanted[centres_in(frame.geometry[frame["name"] == kind], profile, wanted.shape)] = n
    wanted[(pixels == 0).all(0)] = 255
    label = whole_label(folder, *wanted.shape)
    inside = covered(folder, wanted.shape)
    assert (label[inside] == wanted[inside]).all() and (wanted[~inside] == 255).all()
    assert_exact(folder, pixels, None, profile["transform"], profile["crs"], 0, names)
    assert metadata_of(folder)["class_names"] == kinds and metadata_of(folder)["skipped"]["no labelled pixel"]["count"] + len(table_of(folder)) <= 14 * 15
    everything = single(case / "image.tif", case / "training_polygons_epsg32621.gpkg", 500, "--label_burn", 1, "--keep_unlabelled")
    share = sum(float(row["nodata_share"]) * 250000 for row in table_of(everything)) / (250000 * len(table_of(everything)))
    assert share * len(table_of(everything)) * 250000 / (1500 * 1500) == pytest.approx((0.194 * 1400 + 100) / 1500, abs=0.002)  # the wedge and 100 rows of padding
    degrees = single(case / "image.tif", case / "training_polygons_epsg4326.geojson", 100, "--label_field", "lc")
    assert {int(c) for c in metadata_of(degrees)["class_pixels"]["train"]} <= {0, 1, 2, 3, 5}


def test_nebraska_metres_without_a_crs_are_refused_until_it_is_named(shared, single):
    case = shared / "nebraska_pivots_crs_trap"
    image, pivots = case / "image.tif", case / "pivots_crs_undeclared.geojson"
    pixels, profile, _ = source(image)
    error = single(image, pivots, 128, "--label_burn", 1, status=2)
    assert "pivots_crs_undeclared.geojson: reads as EPSG:4326" in error and "-663347" in error and "--vector_crs" in error
    assert "reads as EPSG:4326" in single(image, pivots, 128, "--label_burn", 1, "--grid", pivots, status=2)
    folder = single(image, pivots, 128, "--label_burn", 1, "--vector_crs", "image")
    frame = geopandas.read_file(pivots)
    wanted = np.where((pixels == -9999).all(0), 255, centres_in(frame.geometry, profile, pixels.shape[1:]))
    assert (whole_label(folder, 512, 512) == wanted).all() and (wanted == 1).sum() > 2000
    assert len(assert_exact(folder, pixels, wanted.astype("uint8"), profile["transform"], profile["crs"], -9999)) == 16
    rows = rows_of(single(image, pivots, 32, "--label_burn", 1, "--vector_crs", "image", "--grid", pivots, "--resample"))
    assert len(rows) == 19
    for pivot in frame.itertuples():
        west, south, east, north = pivot.geometry.bounds
        row = rows[str(pivot.id)]
        x, y = profile["transform"] * (int(row["col"]) + int(row["width"]) / 2, int(row["row"]) + int(row["height"]) / 2)
        assert west < x < east and south < y < north


def test_slovenia_keeps_thirteen_bands_and_sixty_eight_dates(shared, single):
    case = shared / "s2_slovenia_lulc"
    mapping = ["--label_map", "0=ignore", "1=0", "2=1", "3=2", "4=3", "8=4"]
    label = source(case / "label.tif")[0][0]
    wanted = np.select([label == 0, label == 8], [255, 4], label.astype(int) - 1).astype("uint8")
    for name in ("image_4.tif", "ndvi_68dates_int16.tif"):
        pixels, profile, names = source(case / name)
        folder = single(case / name, case / "label.tif", 50, *mapping, "--edge", "skip")
        assert len(assert_exact(folder, pixels, wanted, profile["transform"], profile["crs"], names=names)) == 4
    drawn = single(case / "image_4.tif", case / "lulc_polygons.gpkg", 50, "--label_field", "LULC_ID", "--edge", "skip")
    both = whole_label(drawn, 101, 100)[:100]
    assert (both[both != 255] == label[:100][both != 255]).mean() > 0.97 and (both != 255).mean() > 0.9


def test_terramesh_chips_keep_their_own_zones_in_one_batch(shared, tmp_path, script):
    case, data = shared / "terramesh_s2_lulc", tmp_path / "data"
    data.mkdir()
    chips = sorted(path.name for path in (case / "LULC").glob("*.tif"))
    for number, name in enumerate(chips):
        shutil.copy(case / "S2L2A" / name, data / f"image_{number}.tif")
        shutil.copy(case / "LULC" / name, data / f"label_{number}.tif")
        shutil.copy(case / "S1RTC" / name, data / f"radar_{number}.tif")
    for pattern, bands in (("image", 12), ("radar", 2)):
        folder = tmp_path / pattern
        status, _, err = script("Patch_extraction_v2", "batch", "--data_dir", data, "--output", folder, "--patch_size", 112, "--image_pattern", rf"^{pattern}_(\d+)\.tif$")
        assert status == 0, err
        rows, zones = table_of(folder), set()
        assert len(rows) == 16
        for row in rows:
            number = row["patch"][len("img")]
            pixels, profile, names = source(data / row["scene"])
            here = np.s_[:, int(row["row"]) : int(row["row"]) + 112, int(row["col"]) : int(row["col"]) + 112]
            got, kept = opened(folder, row)
            assert got.tobytes() == np.ascontiguousarray(pixels[here]).tobytes() and got.shape[0] == bands and kept["names"] == names
            assert kept["crs"] == profile["crs"] and kept["transform"] == profile["transform"] * profile["transform"].translation(int(row["col"]), int(row["row"]))
            assert (opened(folder, row, "labels")[0] == source(data / f"label_{number}.tif")[0][here]).all()
            zones.add(kept["crs"].to_epsg())
        assert zones == {32722, 32736, 32718, 32632}
    decibels = metadata_of(folder)["statistics"]
    assert [band["band"] for band in decibels] == ["VV", "VH"] and all(-40 < band["mean"] < 0 for band in decibels)


def test_terramesh_optical_and_radar_lie_beside_each_other(shared, tmp_path, script):
    case, folder = shared / "terramesh_s2_lulc", tmp_path / "out"
    status, out, err = script("Patch_extraction_v2", "batch", "--data_dir", case, "--output", folder, "--patch_size", 112, "--modality", r"s2=S2L2A/(.+)\.tif$", r"s1=S1RTC/(.+)\.tif$",
                              "--label_pattern", r"LULC/(.+)\.tif$", "--split_strategy", "scene")
    assert status == 0, err
    assert "resampled" not in out
    rows, splits = table_of(folder), {}
    assert len(rows) == 16 and metadata_of(folder)["patches"] == {"train": 12, "validation": 4, "test": 0}
    for row in rows:
        here = np.s_[:, int(row["row"]) : int(row["row"]) + 112, int(row["col"]) : int(row["col"]) + 112]
        for kind, source_folder in (("images_s2", "S2L2A"), ("images_s1", "S1RTC"), ("labels", "LULC")):
            assert (opened(folder, row, kind)[0] == source(case / source_folder / row["scene"])[0][here]).all()
        splits.setdefault(row["scene"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    frame = geopandas.read_file(folder / "patches.gpkg")  # four continents
    assert frame.crs == "EPSG:4326" and frame.total_bounds[2] - frame.total_bounds[0] > 80


def test_parana_blocks_with_a_buffer_leave_a_patch_between_the_splits(shared, single):
    case = shared / "l8_parana_scene"
    folder = single(case / "image.tif", case / "training_polygons_epsg4326.geojson", 50, "--label_field", "lc", "--keep_unlabelled", "--split_strategy", "block", "--block_size", "9km", "--buffer", "1")
    rows = table_of(folder)
    place = np.array([[int(row["row"]) // 50, int(row["col"]) // 50] for row in rows])
    split = np.array([row["split"] for row in rows])
    apart = np.abs(place[:, None] - place[None]).max(2)[split[:, None] != split[None]]
    assert apart.min() == 2 and {"train", "validation", "test"} == set(split)
    assert metadata_of(folder)["skipped"]["no valid pixel"]["count"] > 100  # of the wedge
