"""What is cut: every patch is its window of the scene, bit for bit, wherever the grid and the labels come from."""

import re

import cv2
import numpy as np
import pytest
import rasterio
import tifffile
from conftest import coded, write_raster
from cutouts import PLACE, UTM30, UTM31, assert_exact, error_of, metadata_of, opened, rows_of, scene_and_label, square, whole_label, write_vector
from rasterio.transform import Affine, from_origin
from shapely import MultiPolygon, Point, affinity

from eoseg import raster

pytestmark = pytest.mark.usefixtures("without_fsync")
CELLS = [(0, 0), (0, 16), (0, 32), (16, 0), (16, 16), (16, 32)]
IDS = [f"c{row}_{col}" for row, col in CELLS]


@pytest.fixture
def cut(tmp_path, script):
    """Run `single`; returns the output folder. What it printed is in `cut.said`; a failure fails the test."""

    def run(image, label, *words, size=16, status=0):
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        got, out, err = script("Patch_extraction_v2", "single", "--image", image, "--label", label, "--output", folder, "--patch_size", size, *words)
        run.said = out
        if status == 2:
            assert not folder.exists() or not any(folder.iterdir()), "a refused run leaves nothing behind"
            return error_of(got, err)
        assert got == status, err
        assert "Traceback" not in err
        return folder

    return run


def grid(path, cells=CELLS, down=0.0, right=0.0, place=PLACE, crs=UTM30, to=None, **columns):
    return write_vector(path, [square(row + down, col + right, place=place) for row, col in cells], crs, to, **{"id": [f"c{r}_{c}" for r, c in cells], **columns})


# ---------------------------------------------------------------- places


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "geojson"])
@pytest.mark.parametrize("crs", [UTM30, UTM31, "EPSG:4326"])
@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_grid_of_any_format_and_crs_cuts_exact_windows(tmp_path, cut, suffix, crs):
    image, label, pixels, codes = scene_and_label(tmp_path)
    cells = grid(tmp_path / f"grid.{suffix}", to=crs)
    words = ["--vector_crs", crs] if suffix == "geojson" and crs != "EPSG:4326" else []  # GeoJSON written in metres says its CRS; harmless
    folder = cut(image, label, "--grid", cells, *words)
    rows = assert_exact(folder, pixels, codes, names=["b1", "b2", "b3"])
    assert {key: (int(row["row"]), int(row["col"])) for key, row in rows.items()} == dict(zip(IDS, CELLS))
    assert all(abs(float(row[key])) < 0.01 for row in rows.values() for key in ("shift_rows", "shift_cols", "rotation"))
    assert [row["patch"] for row in rows.values()] == [f"patch_c{r}_{c}.tif" for r, c in CELLS]


@pytest.mark.parametrize("down, right, moved", [(1e-9, -1e-9, (0, 0)), (0.4, 0.3, (-0.4, -0.3)), (-0.4, -0.2, (0.4, 0.2))])
def test_a_grid_beside_the_pixels_is_snapped_and_the_shift_reported(tmp_path, cut, down, right, moved):
    image, label, pixels, codes = scene_and_label(tmp_path)
    folder = cut(image, label, "--grid", grid(tmp_path / "g.gpkg", down=down, right=right))
    rows = assert_exact(folder, pixels, codes)
    assert {(int(row["height"]), int(row["width"])) for row in rows.values()} == {(16, 16)}
    for row in rows.values():
        assert (float(row["shift_rows"]), float(row["shift_cols"])) == pytest.approx(moved, abs=1e-6)
    largest = max(map(abs, moved))
    assert bool(re.search(rf"snapped +6 +moved to whole pixels, by {largest:.3f} px at most", cut.said)) == (largest > 0)


def test_rows_and_columns_are_told_apart_and_x_y_is_the_corner(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path)
    row = assert_exact(cut(image, label, "--grid", grid(tmp_path / "g.gpkg", [(3, 20)])), pixels, codes)["c3_20"]
    assert (int(row["row"]), int(row["col"]), float(row["x"]), float(row["y"])) == (3, 20, 500200, 4799970)
    assert row["scene"] == "scene.tif" and row["rotation"] == "0.0" and row["nodata_share"] == "0.0" and row["labelled_pixels"] == "256"


def test_without_a_grid_a_regular_one_is_laid_over_the_scene(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path, 40, 50)
    folder = cut(image, label)
    rows = rows_of(folder)
    assert [(int(row["row"]), int(row["col"])) for row in rows.values()] == [(r, c) for r in (0, 16, 32) for c in (0, 16, 32, 48)]
    assert (whole_label(folder, 40, 50) == codes).all()
    skipped = cut(image, label, "--edge", "skip")
    assert_exact(skipped, pixels, codes)
    assert len(rows_of(skipped)) == 6 and metadata_of(skipped)["skipped"]["partly outside the image"]["count"] == 6


@pytest.mark.parametrize("dtype, bands", [("uint8", 1), ("uint8", 3), ("uint8", 5), ("int16", 2), ("uint16", 13), ("float32", 13), ("float64", 3)])
@pytest.mark.parametrize("words", [[], ["--no_compression"]], ids=["deflate", "plain"])
def test_every_type_and_band_count_is_copied_bit_for_bit(tmp_path, cut, dtype, bands, words):
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 200, (bands, 32, 48)).astype(dtype)
    if pixels.dtype.kind == "f":
        pixels += rng.random(pixels.shape).astype(dtype)
    image = write_raster(tmp_path / "scene.tif", pixels, nodata=0, names=[f"B{n:02}" for n in range(bands)])
    label = write_raster(tmp_path / "label.tif", np.ones((32, 48), "uint8"))
    folder = cut(image, label, *words)
    rows = assert_exact(folder, pixels, nodata=0, names=[f"B{n:02}" for n in range(bands)])
    path = folder / rows["3"]["split"] / "images" / "patch_3.tif"
    assert tifffile.imread(path).reshape(bands, 16, 16).tobytes() == raster.read_patch(path)[0].tobytes() == pixels[:, 16:, :16].tobytes()
    with rasterio.open(path) as src:
        assert (src.compression is None) == bool(words)


@pytest.mark.parametrize("place", [Affine.translation(500000, 4800000) * Affine.rotation(30) * Affine.scale(10, -10), Affine(10, 0, 500000, 0, 10, 4799680),
                                   from_origin(500000, 4800000, 23.6, 29.5), Affine(-10, 0, 500480, 0, -10, 4800000)], ids=["turned", "south up", "oblong", "mirrored"])
def test_scenes_that_lie_otherwise_are_cut_along_their_own_pixels(tmp_path, cut, place):
    image, label, pixels, codes = scene_and_label(tmp_path, transform=place)
    assert_exact(cut(image, label, "--grid", grid(tmp_path / "g.gpkg", place=place)), pixels, codes, place)


def test_a_scene_in_degrees_is_cut_by_a_grid_in_metres(tmp_path, cut):
    place = from_origin(-3, 43, 0.0001, 0.0001)
    image, label, pixels, codes = scene_and_label(tmp_path, crs="EPSG:4326", transform=place)
    assert_exact(cut(image, label, "--grid", grid(tmp_path / "g.gpkg", place=place, crs="EPSG:4326", to=UTM30)), pixels, codes, place, "EPSG:4326")


def test_a_turned_cell_is_cut_upright_and_its_rotation_reported(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path)
    cells = write_vector(tmp_path / "g.gpkg", [affinity.rotate(square(8, 16), 10)])
    row = assert_exact(cut(image, label, "--grid", cells), pixels, codes)["0"]
    assert (row["row"], row["col"]) == ("8", "16") and float(row["rotation"]) == pytest.approx(-10, abs=0.01)
    assert re.search(r"rotated +1 +cut upright around the centroid: 0", cut.said)


def test_bands_are_taken_in_the_order_asked_for(tmp_path, cut):
    image, label, pixels, _ = scene_and_label(tmp_path, bands=4)
    assert_exact(cut(image, label, "--bands", "b3", "1"), pixels[[2, 0]], names=["b3", "b1"])
    folder = cut(image, label, "--image_channels", 2)
    assert_exact(folder, pixels[:2], names=["b1", "b2"])
    assert metadata_of(folder)["bands"] == {"names": ["b1", "b2"], "source_bands": [1, 2], "source_count": 4, "dtype": "uint16"}
    assert "--image_channels 5" in cut(image, label, "--image_channels", 5, status=2)
    assert "has no band 9" in cut(image, label, "--bands", 9, status=2)


# ---------------------------------------------------------------- cells that cannot be cut


def test_cells_outside_and_without_a_shape_are_counted_and_named(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path)
    shapes = [square(0, 0), None, square(500, 500), square(8, 40), square(-8, 16), square(0, -16)]
    cells = write_vector(tmp_path / "g.gpkg", shapes, id=["in", "none", "far", "right", "top", "beside"])
    skipped = cut(image, label, "--grid", cells, "--edge", "skip")
    assert metadata_of(skipped)["skipped"] == {"no geometry": {"count": 1, "cells": ["none"]}, "outside the image": {"count": 2, "cells": ["far", "beside"]},
                                               "partly outside the image": {"count": 2, "cells": ["right", "top"]}}
    assert list(assert_exact(skipped, pixels, codes)) == ["in"]
    padded = cut(image, label, "--grid", cells)
    rows = rows_of(padded)
    assert sorted(rows) == ["in", "right", "top"]
    got, profile = opened(padded, rows["right"])
    assert (got[:, :, :8] == pixels[:, 8:24, 40:]).all() and not got[:, :, 8:].any()
    assert profile["transform"] * (0, 0) == (500400, 4799920) and rows["right"]["nodata_share"] == "0.5"
    _, _, valid = raster.read_patch(padded / rows["right"]["split"] / "images" / "patch_right.tif")
    assert valid[:, :8].all() and not valid[:, 8:].any()  # no nodata value: the patch carries a mask
    label_got, _ = opened(padded, rows["top"], "labels")
    assert (label_got[0, :8] == 255).all() and (label_got[0, 8:] == codes[:8, 16:32]).all() and rows["top"]["row"] == "-8"


def test_padding_is_the_nodata_value_where_there_is_one(tmp_path, cut):
    image, label, _, _ = scene_and_label(tmp_path, nodata=9)
    folder = cut(image, label, "--grid", grid(tmp_path / "g.gpkg", [(0, 40)]))
    got, profile = opened(folder, rows_of(folder)["c0_40"])
    assert (got[:, :, 8:] == 9).all() and profile["nodata"] == 9


@pytest.mark.parametrize("shape", [Point(500100, 4799900), MultiPolygon([square(0, 0), square(16, 16)])], ids=["point", "parts"])
def test_points_and_cells_of_several_parts_are_errors(tmp_path, cut, shape):
    image, label, _, _ = scene_and_label(tmp_path)
    cells = write_vector(tmp_path / "g.geojson", [square(0, 0), shape], to="EPSG:4326")
    assert "cells 1 are no single polygons" in cut(image, label, "--grid", cells, status=2)


def test_cells_of_another_size_are_refused_with_their_sizes(tmp_path, cut):
    image, label, _, _ = scene_and_label(tmp_path)
    cells = write_vector(tmp_path / "g.gpkg", [square(0, 0), square(0, 16, 10, 20), square(16, 0, 12)])
    error = cut(image, label, "--grid", cells, status=2)
    assert "--patch_size 16: 2 of 3 cells" in error and "1: 20.0 x 10.0, 2: 12.0 x 12.0" in error and "--resample" in error


@pytest.mark.parametrize("place, crs", [((0, 0), "EPSG:4326"), ((500000, 9000000), UTM31)])
def test_a_grid_elsewhere_names_both_crs(tmp_path, cut, place, crs):
    image, label, _, _ = scene_and_label(tmp_path)
    cells = write_vector(tmp_path / "g.gpkg", [square(0, 0, 1, place=from_origin(*place, 1, 1))], crs)
    error = cut(image, label, "--grid", cells, status=2)
    assert "no cell overlaps" in error and crs in error and UTM30 in error and "--vector_crs" in error


def test_a_grid_without_a_crs_is_taken_as_the_images_with_a_word(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path)
    with pytest.warns(UserWarning, match="crs"):
        cells = grid(tmp_path / "g.shp", crs=None)
    assert_exact(cut(image, label, "--grid", cells), pixels, codes)
    assert "g.shp: has no CRS" in cut.said
    bare_image, bare_label, _, _ = scene_and_label(tmp_path / "bare", crs=None)
    assert_exact(cut(bare_image, bare_label, "--grid", grid(tmp_path / "g.gpkg")), pixels, codes, crs=None)
    assert "the image has no CRS" in cut.said


def test_undeclared_metres_are_refused_until_the_crs_is_named(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path)
    cells = grid(tmp_path / "g.geojson", crs=None)
    assert "reads as EPSG:4326" in cut(image, label, "--grid", cells, status=2)
    for crs in (UTM30, "image"):
        assert_exact(cut(image, label, "--grid", cells, "--vector_crs", crs), pixels, codes)


def test_a_plain_picture_takes_no_grid(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path, crs=None, transform=Affine.identity())
    assert_exact(cut(image, label), pixels, codes, Affine.identity(), crs=None)
    assert "no geotransform" in cut(image, label, "--grid", grid(tmp_path / "g.gpkg"), status=2)


# ---------------------------------------------------------------- resampling


@pytest.mark.parametrize("kind, flag", [("nearest", None), ("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC), ("lanczos", cv2.INTER_LANCZOS4)])
def test_resample_scales_pixels_and_transform_and_keeps_labels_nearest(tmp_path, cut, kind, flag):
    image, label, pixels, codes = scene_and_label(tmp_path)
    folder = cut(image, label, "--grid", write_vector(tmp_path / "g.gpkg", [square(4, 8, 24, 32)]), "--resample", "--interpolation", kind)
    row = rows_of(folder)["0"]
    got, profile = opened(folder, row)
    assert (row["height"], row["width"]) == ("24", "32") and profile["transform"] == from_origin(500080, 4799960, 20, 15)
    part = pixels[:, 4:28, 8:40]
    near = np.ix_((np.arange(16) * 1.5 + 0.75).astype(int), np.arange(16) * 2 + 1)
    wanted = np.stack([cv2.resize(band.astype(float), (16, 16), interpolation=flag) for band in part]) if flag else np.stack([band[near] for band in part])
    assert (got == np.rint(wanted).clip(0, 65535)).all()
    label_got, label_profile = opened(folder, row, "labels")
    assert (label_got[0] == codes[4:28, 8:40][near]).all() and label_profile["transform"] == profile["transform"]


def test_resampling_never_lets_nodata_bleed_into_its_neighbours(tmp_path, cut):
    pixels = np.full((2, 32, 32), 1000, "uint16")
    pixels[:, :, 20:], pixels[0, 5, 5] = 0, 0
    image = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    label = write_raster(tmp_path / "label.tif", np.ones((32, 32), "uint8"))
    folder = cut(image, label, "--grid", write_vector(tmp_path / "g.gpkg", [square(0, 0, 32)]), "--resample", "--interpolation", "bicubic")
    got, _ = opened(folder, rows_of(folder)["0"])
    assert set(np.unique(got)) == {0, 1000} and (got[:, :, 10:] == 0).all() and (got[1, :, :10] == 1000).all()


# ---------------------------------------------------------------- pixels that do not count


def holed(tmp_path, dtype="float32", nodata=-1):
    """A scene with every kind of hole in its first row; which columns are invalid by the usual and by the strict rule."""
    pixels = coded(16, 32, 2).astype(dtype)
    pixels[:, 0, 0], pixels[0, 0, 1], pixels[0, 0, 2], pixels[1, 0, 3], pixels[:, 0, 4] = -1, -1, np.nan, np.inf, -7
    return write_raster(tmp_path / "scene.tif", pixels, nodata=nodata), pixels


@pytest.mark.parametrize("words, invalid", [([], {0, 2, 3}), (["--require_all_bands"], {0, 1, 2, 3}), (["--input_nodata", "-7"], {2, 3, 4})])
def test_pixels_invalid_in_the_image_are_unlabelled(tmp_path, cut, words, invalid):
    image, pixels = holed(tmp_path)
    folder = cut(image, write_raster(tmp_path / "label.tif", np.full((16, 32), 3, "uint8")), *words)
    label = whole_label(folder, 16, 32)
    assert set(np.flatnonzero(label[0] == 255)) == invalid and (label == 3).sum() == 16 * 32 - len(invalid)
    assert_exact(folder, pixels, nodata=-7 if "-7" in words else -1)
    assert "2 pixels of the patches hold NaN or Inf; taken as nodata" in cut.said
    rows = rows_of(folder)
    assert rows["0"]["not_finite_pixels"] == "2" and float(rows["0"]["nodata_share"]) == pytest.approx(len(invalid) / 256, abs=1e-6)
    assert rows["1"]["not_finite_pixels"] == "0" and rows["0"]["class_3"] == str(256 - len(invalid))


def test_nan_as_the_declared_nodata_is_no_news(tmp_path, cut):
    pixels = coded(16, 32, 2).astype("float32")
    pixels[:, 0, :3] = np.nan
    folder = cut(write_raster(tmp_path / "scene.tif", pixels, nodata=np.nan), write_raster(tmp_path / "label.tif", np.ones((16, 32), "uint8")))
    assert (whole_label(folder, 16, 32) == 255).sum() == 3 and "NaN" not in cut.said
    assert_exact(folder, pixels, nodata=np.nan)


def test_an_internal_mask_goes_with_the_patches(tmp_path, cut):
    image, label, pixels, codes = scene_and_label(tmp_path)
    mask = np.arange(32 * 48).reshape(32, 48) % 7 > 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(image, "r+") as dst:
        dst.write_mask(mask)
    folder = cut(image, label)
    assert (whole_label(folder, 32, 48) == np.where(mask, codes, 255)).all()
    row = assert_exact(folder, pixels)["4"]
    assert (raster.read_patch(folder / row["split"] / "images" / row["patch"])[2] == mask[16:, 16:32]).all()


def test_near_infrared_that_gdal_takes_for_alpha_stays_a_band(tmp_path, cut):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 32, 48)).astype("uint8")
    folder = cut(write_raster(tmp_path / "scene.tif", pixels), write_raster(tmp_path / "label.tif", np.ones((32, 48), "uint8")))
    assert_exact(folder, pixels)


@pytest.mark.parametrize("bands", [1, 4])
def test_an_alpha_band_masks_in_files_of_any_number_of_bands(tmp_path, cut, bands):
    pixels = np.random.default_rng(0).integers(1, 255, (bands + 1, 32, 48)).astype("uint8")
    pixels[-1] = 255
    pixels[-1, 3:9] = 0
    scene = tmp_path / "scene.tif"
    with rasterio.open(write_raster(scene, pixels), "r+") as dst:
        dst.colorinterp = [*[rasterio.enums.ColorInterp.undefined] * bands, rasterio.enums.ColorInterp.alpha]
    folder = cut(scene, write_raster(tmp_path / "label.tif", np.ones((32, 48), "uint8")))
    assert ((whole_label(folder, 32, 48) == 255) == (pixels[-1] == 0)).all()
    assert_exact(folder, pixels[:-1])


def test_an_alpha_band_becomes_the_mask_of_the_patches(tmp_path, cut):
    pixels = np.random.default_rng(0).integers(1, 255, (4, 32, 48)).astype("uint8")
    pixels[3] = 255
    pixels[3, 3:9] = 0
    image = write_raster(tmp_path / "scene.tif", pixels)
    label = write_raster(tmp_path / "label.tif", np.ones((32, 48), "uint8"))
    folder = cut(image, label)
    assert ((whole_label(folder, 32, 48) == 255) == (pixels[3] == 0)).all() and "alpha band is used as the mask" in cut.said
    row = assert_exact(folder, pixels[:3])["0"]
    assert (raster.read_patch(folder / row["split"] / "images" / row["patch"])[2] == (pixels[3, :16, :16] > 0)).all()
    folder = cut(image, label, "--bands", 1, 2, 3, 4)  # near infrared that GDAL takes for alpha
    assert_exact(folder, pixels)
    assert (whole_label(folder, 32, 48) == 1).all()


def test_an_image_without_one_valid_pixel_is_an_error_that_names_it(tmp_path, cut):
    label = write_raster(tmp_path / "label.tif", np.ones((32, 48), "uint8"))
    image = write_raster(tmp_path / "scene.tif", np.full((2, 32, 48), np.nan, "float32"))
    assert "scene.tif: holds no valid pixel" in cut(image, label, status=2)


def test_bands_with_different_nodata_values_are_refused(tmp_path, cut):
    image, label, _, _ = scene_and_label(tmp_path)
    band = '<VRTRasterBand dataType="UInt16" band="{n}"><NoDataValue>{value}</NoDataValue><SimpleSource><SourceFilename relativeToVRT="1">scene.tif</SourceFilename>' \
           "<SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"
    (tmp_path / "s.vrt").write_text('<VRTDataset rasterXSize="48" rasterYSize="32"><SRS>EPSG:32630</SRS><GeoTransform>500000,10,0,4800000,0,-10</GeoTransform>'
                                    + band.format(n=1, value=0) + band.format(n=2, value=9) + "</VRTDataset>")
    assert "different nodata values (0, 9)" in cut(tmp_path / "s.vrt", label, status=2)


# ---------------------------------------------------------------- words of the command line, and the picture


def test_negative_codes_are_mapped_and_negative_nodata_taken_wherever_they_stand(tmp_path, cut):
    image, label, _, codes = scene_and_label(tmp_path)
    write_raster(label, codes.astype("int16") - 1)  # -1 to 3
    wanted = np.where(codes == 0, 255, codes % 3)
    for words in (["--label_map", "-1=ignore", "0=1", "1=2", "2=0", "3=1"], ["--label_map", "0=1", "1=2", "-1=ignore", "2=0", "3=1"],
                  ["--label_nodata", "-1", "--label_map", "0=1", "1=2", "2=0", "3=1"]):
        assert (whole_label(cut(image, label, *words), 32, 48) == wanted).all()


def test_grids_and_labels_may_be_layers_of_one_file(tmp_path, cut):
    image, _, pixels, _ = scene_and_label(tmp_path)
    path = tmp_path / "all.gpkg"
    for layer, shapes in (("cells", [square(0, 0), square(16, 32)]), ("fields", [square(2, 3, 5)])):
        write_vector(path, shapes, layer=layer)
    folder = cut(image, f"{path}|layername=fields", "--grid", f"{path}|layername=cells", "--label_burn", 1)
    assert list(assert_exact(folder, pixels)) == ["0", "1"] and (whole_label(folder, 32, 48)[2:7, 3:8] == 1).all()
    assert "holds the layers cells, fields" in cut(image, path, "--label_burn", 1, status=2)


def test_a_sample_shows_the_classes_in_the_colours_of_their_names(tmp_path, cut, script):
    image, _, _, _ = scene_and_label(tmp_path)
    label = write_vector(tmp_path / "p.gpkg", [square(0, 0, 8, 16), square(8, 0, 4, 16)], kind=["water", "forest"])
    folder = cut(image, label, "--label_field", "kind", "--label_map", "water=0", "forest=2")
    assert script("Patch_extraction_v2", "visualize", "--output", folder)[0] == 0
    picture = cv2.imread(str(folder / "sample_train_0.png"))[:, :, ::-1]
    left, right = picture[:, : picture.shape[1] * 2 // 5], picture[:, picture.shape[1] * 2 // 5 : picture.shape[1] * 4 // 5]
    water, forest = ((right == colour).all(2).sum() for colour in ((51, 120, 200), (20, 110, 50)))
    assert water > 10000 and abs(water / forest - 2) < 0.1 and not (left == (51, 120, 200)).all(2).any()
