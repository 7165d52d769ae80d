"""What the user of Predict_large_image_v2.py types, reads and finds."""

import re

import numpy as np
import pytest
import rasterio
from conftest import coded, write_raster
from tinynet import Point, opened, save

from eoseg.normalize import Normalizer


def test_the_printed_table_is_what_the_map_holds(tmp_path, script, point_models):
    pixels = np.random.default_rng(0).integers(1, 60000, (3, 130, 70)).astype("uint16")
    pixels[:, :9] = 0
    scene = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    stats = Normalizer("percentile", (1.0,) * 3, (1e-4,) * 3, (5000.0,) * 3, 0.0, 6.0)
    model = save(tmp_path / "m.pth", Point(3, 4), names=["water", "crop", "tree", "town"], normalizer=stats)
    status, said, error = script("Predict_large_image_v2", "--model", model, "--input", scene, "--output", tmp_path / "deep/er/map.tif",
                                 "--patch_size", 64, "--overlap", 16, "--save_confidence")
    assert (status, error) == (0, "")
    found, sure = opened(tmp_path / "deep/er/map.tif"), opened(tmp_path / "deep/er/map_confidence.tif")
    for number, name in enumerate(["water", "crop", "tree", "town"]):
        count = (found == number).sum()
        pixels_said, share, hectares = re.search(rf"^  {name} +([\d,]+) +([\d.]+)% +([\d,.]+)$", said, re.M).groups()
        assert int(pixels_said.replace(",", "")) == count and float(hectares.replace(",", "")) == pytest.approx(count * 0.01, abs=0.006)
        assert float(share) == pytest.approx(100 * count / (121 * 70), abs=0.06)
    assert re.search(r"nodata +630$", said, re.M)
    mean, median, low = map(float, re.search(r"mean ([\d.]+), median ([\d.]+); one pixel in twenty below ([\d.]+)", said).groups())
    sure = sure[np.isfinite(sure)]
    assert mean == pytest.approx(sure.mean(), abs=6e-4) and median == pytest.approx(np.median(sure), abs=2e-3) and low == pytest.approx(np.percentile(sure, 5), abs=2e-3)
    assert f"wrote     {tmp_path / 'deep/er/map.tif'}" in said and "map_confidence.tif" in said


def test_a_scene_without_a_valid_pixel_gives_a_map_of_nodata_and_a_warning(tmp_path, script, point_models):
    scene = write_raster(tmp_path / "s.tif", np.zeros((3, 100, 90), "uint16"), nodata=0)
    status, said, error = script("Predict_large_image_v2", "--model", save(tmp_path / "m.pth", Point(3, 4)), "--input", scene, "--output", tmp_path / "map.tif",
                                 "--save_confidence", "--quicklook")
    assert (status, error) == (0, "") and "warning: " in said and "nan" not in said
    assert (opened(tmp_path / "map.tif") == 255).all() and np.isnan(opened(tmp_path / "map_confidence.tif")).all()


@pytest.mark.parametrize("words, says", [
    (["--output", "map.png"], "--output map.png: maps are GeoTIFFs"),
    (["--output", "new_folder"], "--output new_folder: "),
    (["--overlap", "512"], "--overlap 512: must be smaller than --patch_size 512"),
    (["--threshold", "1.5"], "--threshold"),
    (["--device", "cuda:7"], "--device cuda:7: this machine offers"),
    (["--device", "tpux"], "--device tpux: no such kind"),
    (["--background_value", "2"], "--background_value: "),
    (["--output_nodata", "70000"], "--output_nodata 70000: "),
    (["--overwrite", "--resume"], "--resume and --overwrite: "),
    (["--patch_siz", "64"], "--patch_siz: no such option; did you mean --patch_size?"),
    (["--input", "nowhere.tif"], "--output map.tif: several scenes need a folder"),
    (["--model", "nowhere.pth"], "nowhere.pth: no such checkpoint"),
    (["--normalization_percentile", "98"], "--normalization_percentile, --normalize_per_channel: "),
])
def test_what_a_user_can_mend_is_one_line(tmp_path, script, point_models, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    write_raster("s.tif", coded(40, 40))
    save(tmp_path / "m.pth", Point(3, 4))
    status, _, error = script("Predict_large_image_v2", "--model", "m.pth", "--input", "s.tif", "--output", "map.tif", *words)
    assert status == 2 and error.splitlines()[-1].startswith("error: " + says) and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pth", "s.tif"]


def test_output_may_be_a_folder_there_or_named_by_a_slash(tmp_path, script, point_models):
    scene = write_raster(tmp_path / "north.west.tif", coded(40, 40))
    model = save(tmp_path / "m.pth", Point(3, 4))
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", f"{tmp_path}/new/er/"):
        status, said, error = script("Predict_large_image_v2", "--model", model, "--input", scene, "--output", folder)
        assert (status, error) == (0, "") and "north.west.tif" in said
    assert (tmp_path / "there/north.west.tif").exists() and (tmp_path / "new/er/north.west.tif").exists()
    assert script("Predict_large_image_v2", "--model", model, "--input", scene, "--output", tmp_path)[0] == 2  # the scene's own folder


@pytest.mark.parametrize("code, size, corner, pixel_hectares", [
    (32630, 10, (5e5, 48e5), 0.01),
    (2263, 1000, (980000, 200000), 1e6 * (1200 / 3937) ** 2 / 1e4),  # US survey feet
    (3857, 1000, (1e6, 5626521), 50),  # 45 degrees north: half of what the plane says
    (4326, 0.1, (5, 60.5), 11141.2 * 5579.8 / 1e4),  # a tenth of a degree at 60 north: 11.14 km down, 5.58 km across
    (None, 1, (0, 0), None),
])
def test_hectares_are_those_on_the_ground(tmp_path, script, point_models, code, size, corner, pixel_hectares):
    where = rasterio.transform.from_origin(*corner, size, size)
    scene = write_raster(tmp_path / "s.tif", coded(10, 10), crs=code and f"EPSG:{code}", transform=where)
    _, said, _ = script("Predict_large_image_v2", "--model", save(tmp_path / "m.pth", Point(3, 4)), "--input", scene, "--output", tmp_path / "map.tif")
    found = re.findall(r"^  class_\d +[\d,]+ +[\d.]+% +(\S+)$", said, re.M)
    if code is None:
        assert found == ["unknown"] * 4
    else:
        assert sum(float(text.replace(",", "")) for text in found) == pytest.approx(100 * pixel_hectares, rel=2e-3)
