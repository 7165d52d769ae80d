"""Real scenes through all three scripts, briefly trained: the map lies on the scene and its numbers are the scene's classes."""

import json
import os

import numpy as np
import pytest
import rasterio
from test_end_to_end import shell

pytestmark = pytest.mark.slow
TRAIN = ("--dataset_root", "patches", "--save_dir", "runs", "--epochs", 2, "--batch_size", 4)


def check_map(path, scene, classes, nodata=255):
    """The map shares the scene's grid, holds classes and nodata alone, and its confidence lies between chance and 1."""
    with rasterio.open(path) as found, rasterio.open(scene) as src, rasterio.open(path.with_name(path.stem + "_confidence.tif")) as sure:
        assert (found.crs, found.transform, found.shape) == (src.crs, src.transform, src.shape) == (sure.crs, sure.transform, sure.shape)
        assert (found.count, found.nodata, found.dtypes[0]) == (1, nodata, "uint8")
        mapped, confidence, valid = found.read(1), sure.read(1), src.dataset_mask() > 0
    assert ((mapped != nodata) == valid).all() and set(np.unique(mapped[valid])) <= set(range(classes))
    assert (np.isfinite(confidence) == valid).all() and confidence[valid].min() >= 1 / classes - 1e-3 and confidence[valid].max() <= 1


def test_kampala_buildings(shared, tmp_path):
    case = shared / "kampala_buildings"
    shell(tmp_path, "Patch_extraction_v2", "single", "--image", case / "image.tif", "--label", case / "buildings_epsg4326.geojson", "--label_burn", 1,
          "--patch_size", 256, "--train_ratio", 0.5, "--val_ratio", 0.15, "--test_ratio", 0.35, "--output", "patches")
    shell(tmp_path, "main_v2", "--mode", "binary", "--model", "fpn", "--encoder_name", "mobilenet_v2", "--no_pretrained", *TRAIN, "--epochs", 1)
    said = shell(tmp_path, "Predict_large_image_v2", "--model", "runs", "--input", case / "image.tif", "--output", "map.tif", "--save_confidence", "--quicklook",
                 "--overlap", 64)
    check_map(tmp_path / "map.tif", case / "image.tif", 2)
    hectares = sum(float(line.split()[-1]) for line in said.splitlines() if "%" in line)
    assert hectares == pytest.approx(2048 * 3072 * 0.0746455**2 / 1e4, rel=0.01)  # at the equator Mercator is true
    assert (tmp_path / "map_quicklook.png").stat().st_size > 100_000


@pytest.mark.parametrize("labels", [["label.tif"], ["lulc_polygons.gpkg", "--label_field", "LULC_ID"]], ids=["raster", "polygons"])
def test_slovenian_land_use_of_codes_that_are_no_row_of_numbers(shared, tmp_path, labels):
    case = shared / "s2_slovenia_lulc"
    shell(tmp_path, "Patch_extraction_v2", "single", "--image", case / "image_4.tif", "--label", case / labels[0], *labels[1:],
          "--label_map", "0=ignore", "1=0", "2=1", "3=2", "4=3", "8=4", "--patch_size", 32, "--bands", "B02", "B03", "B04", "B08", "--output", "patches")
    shell(tmp_path, "main_v2", "--model", "unet-dropout", "--classes", 5, *TRAIN)
    for number in (4, 2):
        scene = case / f"image_{number}.tif"
        said = shell(tmp_path, "Predict_large_image_v2", "--model", "runs/unet-dropout_final.pth", "--input", scene, "--output", f"map_{number}.tif", "--save_confidence")
        check_map(tmp_path / f"map_{number}.tif", scene, 5)
        hectares = sum(float(line.split()[-1]) for line in said.splitlines() if "%" in line)
        assert hectares == pytest.approx(101 * 100 * 9.99479 * 9.99745 / 1e4, rel=1e-3)
    kept = json.loads((tmp_path / "patches/patch_metadata.json").read_text())["bands"]
    assert kept["names"] == ["B02", "B03", "B04", "B08"] and kept["source_bands"] == [2, 3, 4, 8]


def test_terramesh_chips_of_four_zones_and_codes_of_a_world_map(shared, tmp_path):
    case = shared / "terramesh_s2_lulc"
    chips = sorted(path.name for path in (case / "S2L2A").glob("*.tif"))
    (tmp_path / "data").mkdir()
    for number, name in enumerate(chips, 1):
        os.symlink(case / "S2L2A" / name, tmp_path / f"data/image_{number}.tif")
        os.symlink(case / "LULC" / name, tmp_path / f"data/label_{number}.tif")
    shell(tmp_path, "Patch_extraction_v2", "batch", "--data_dir", "data", "--patch_size", 56, "--output", "patches",
          "--label_map", *(f"{code}={number}" for number, code in enumerate((1, 2, 3, 4, 5, 6, 9))), "0=ignore", "7=ignore", "8=ignore")
    shell(tmp_path, "main_v2", "--model", "fpn", "--encoder_name", "resnet18", "--no_pretrained", "--classes", 7, *TRAIN)
    for name in chips:
        shell(tmp_path, "Predict_large_image_v2", "--model", "runs", "--input", case / "S2L2A" / name, "--output", f"maps/{name}", "--save_confidence",
              "--patch_size", 128, "--overlap", 32)
        check_map(tmp_path / "maps" / name, case / "S2L2A" / name, 7)
