"""The whole way by the commands of the README: a scene and labels go in, a map that is right comes out."""

import json
import subprocess
import sys

import geopandas
import numpy as np
import pytest
import rasterio
from conftest import ROOT, write_raster
from shapely.geometry import box

GREY = np.array([[800, 300, 1500], [2500, 900, 600], [1400, 2600, 2900], [400, 1700, 300]])  # each class in three bands


def land(folder, side=256, classes=3, seed=0, nodata=0):
    """scene.tif of noisy classes in blocks of 16 pixels, label.tif, grid.gpkg of 64 pixel cells in degrees; returns the truth."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, classes, (side // 16, side // 16)), np.ones((16, 16), int))
    pixels = np.moveaxis(GREY[truth] + rng.integers(-150, 150, (side, side, 3)), 2, 0).astype("uint16")
    pixels[:, :20, :30] = nodata
    write_raster(folder / "scene.tif", pixels, nodata=nodata, names=["blue", "green", "red"])
    write_raster(folder / "label.tif", truth.astype("uint8"))
    cells = [box(500000 + x, 4800000 - y - 640, 500000 + x + 640, 4800000 - y) for y in range(0, side * 10, 640) for x in range(0, side * 10, 640)]
    geopandas.GeoDataFrame({"id": range(len(cells))}, geometry=cells, crs="EPSG:32630").to_crs(4326).to_file(folder / "grid.gpkg")
    return truth, (pixels != nodata).any(0)


def shell(folder, script, *words):
    """Run a script as the user does, from another folder than the project's."""
    done = subprocess.run([sys.executable, str(ROOT / f"{script}.py"), *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(path, truth, valid, share=0.95):
    with rasterio.open(path) as src:
        found = src.read(1)
        assert src.crs.to_epsg() == 32630 and src.transform.c == 500000 and src.shape == truth.shape
    assert ((found == 255) == ~valid).all()
    assert (found == truth)[valid].mean() > share


CUT = ("--image", "scene.tif", "--label", "label.tif", "--grid", "grid.gpkg", "--patch_size", 64, "--output", "patches", "--train_ratio", 0.75,
       "--val_ratio", 0.25, "--test_ratio", 0)


@pytest.fixture
def one_thread():
    """Tiles this small are slower on several threads, far slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_extract_train_and_predict_find_separable_classes(tmp_path, script, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    truth, valid = land(tmp_path)
    for name, words in [
        ("Patch_extraction_v2", ["single", "--image", "scene.tif", "--label", "label.tif", "--patch_size", 32, "--output", "patches"]),
        ("main_v2", ["--model", "unet-dropout", "--dataset_root", "patches", "--classes", 3, "--class_names", "sea", "sand", "wood", "--epochs", 3,
                     "--batch_size", 4, "--learning_rate", 0.003, "--dropout_rate", 0, "--workers", 0, "--save_dir", "runs"]),
        ("Predict_large_image_v2", ["--model", "runs", "--input", "scene.tif", "--output", "map.tif", "--patch_size", 128, "--overlap", 32,
                                    "--save_confidence", "--quicklook"]),
    ]:
        status, said, error = script(name, *words)
        assert status == 0, said + error
    check(tmp_path / "map.tif", truth, valid)
    with rasterio.open("map.tif") as src:
        assert [src.tags()[f"CLASS_{i}"] for i in range(3)] == ["sea", "sand", "wood"]
    for name, count in zip(["sea", "sand", "wood"], np.bincount(truth[valid])):
        line = next(line for line in said.splitlines() if line.strip().startswith(name))
        assert abs(int(line.split()[1].replace(",", "")) / count - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("mode, network", [
    ("multiclass", ["--model", "unet-dropout", "--dropout_rate", 0]),
    ("binary", ["--model", "unet", "--encoder_name", "resnet18", "--no_pretrained"]),
])
def test_the_three_commands_of_the_readme_make_a_right_map(tmp_path, mode, network):
    truth, valid = land(tmp_path, 320, classes=2 if mode == "binary" else 4)
    shell(tmp_path, "Patch_extraction_v2", "single", *CUT)
    shell(tmp_path, "main_v2", "--mode", mode, *network, "--dataset_root", "patches", "--classes", 4, "--learning_rate", 0.003,
          "--epochs", 6, "--batch_size", 2, "--save_dir", "runs")
    final = f"runs/{network[1]}_final.pth"
    shell(tmp_path, "Predict_large_image_v2", "--model", final, "--input", "scene.tif", "--output", "map.tif", "--save_confidence")
    check(tmp_path / "map.tif", truth, valid)
    if mode == "binary":
        shell(tmp_path, "Predict_large_image_v2", "--model", final, "--input", "scene.tif", "--output", "swapped.tif", "--background_value", 1)
        check(tmp_path / "swapped.tif", 1 - truth, valid)
    scores = json.loads((tmp_path / f"runs/{network[1]}_metrics.json").read_text())
    assert scores["validation"]["mean_iou"] > 0.8


@pytest.mark.slow
def test_a_network_of_some_bands_maps_the_whole_scene_it_was_cut_from_and_one_with_bands_moved(tmp_path):
    truth, valid = land(tmp_path)
    shell(tmp_path, "Patch_extraction_v2", "single", *CUT, "--bands", "red", "blue")
    shell(tmp_path, "main_v2", "--model", "unet-dropout", "--dataset_root", "patches", "--classes", 3, "--epochs", 5, "--batch_size", 3,
          "--learning_rate", 0.003, "--dropout_rate", 0, "--save_dir", "runs")
    with rasterio.open(tmp_path / "scene.tif") as src:
        pixels = src.read()
    write_raster(tmp_path / "moved.tif", pixels[[2, 1, 0]], nodata=0, names=["red", "green", "blue"])
    write_raster(tmp_path / "unnamed.tif", pixels, nodata=0)
    for name in ("scene", "moved", "unnamed"):
        said = shell(tmp_path, "Predict_large_image_v2", "--model", "runs", "--input", f"{name}.tif", "--output", f"map_{name}.tif")
        check(tmp_path / f"map_{name}.tif", truth, valid)
        assert ("taken by name" in said) == (name == "moved")
    assert (tmp_path / "map_moved.tif").stat().st_size > 500


@pytest.mark.parametrize("words", [
    ["main_v2", "--help"], ["Predict_large_image_v2", "--help"], ["Patch_extraction_v2", "--help"], ["Patch_extraction_v2", "single", "--help"],
    ["main_v2", "--model", "unet", "--dataset_root", "d", "--epoch", "3"], ["Predict_large_image_v2", "--model", "m", "--inptu", "s"], ["Patch_extraction_v2", "batsch"],
    ["Predict_large_image_v2", "--model", "m.pth", "--input", "s.tif", "--output", "m.tif", "--overlap", "512"],
])
def test_help_and_typos_answer_without_heavy_imports(words):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r}); sys.argv = {[words[0] + '.py', *words[1:]]!r}
import {words[0]} as script
from eoseg import errors
try:
    errors.run(script.main)
except SystemExit as stop:
    print("left", stop.code or 0, sorted({{"torch", "rasterio", "geopandas", "matplotlib", "cv2"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    helped = "--help" in words
    assert done.stdout.splitlines()[-1] == f"left {0 if helped else 2} []"
    assert "Traceback" not in done.stderr and ("usage:" in done.stdout if helped else done.stderr.splitlines()[-1].startswith("error: "))
