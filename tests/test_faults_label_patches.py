"""Label patches of other programs given straight to training: understood as they are meant, or refused in one line that names the file."""

import csv

import numpy as np
import pytest
import rasterio
from conftest import write_raster
from cutouts import PLACE
from faults import assert_refused, assert_worked
from rasterio.transform import Affine
from tinypatches import FLAGS, change, make

pytestmark = pytest.mark.usefixtures("without_fsync")
BIG = 2**53  # whole numbers beyond it are rounded as floats


@pytest.fixture
def train(fate, tmp_path, narrow, monkeypatch):
    """Train one epoch on three patches, whose label p0 of train was changed, and perhaps a code of it hidden by a mask; the Fate."""
    monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)  # takes longer than all the rest

    def call(function, *words, hidden=None, **options):
        root = make(tmp_path / "data", (2, 1, 0))
        path = root / "train/labels/p0.tif"
        with rasterio.open(path) as src:
            pixels = function(src.read())
        path.unlink()
        write_raster(path, pixels, **options)
        if hidden is not None:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dst:
                dst.write_mask(pixels[0] != hidden)
        return fate("main_v2", "--dataset_root", root, "--save_dir", tmp_path / "run", "--epochs", 1, "--batch_size", 1, "--cache", "none", "--patience", 1, *FLAGS, *words)

    return call


@pytest.mark.parametrize("function, options, words, parts", [
    (lambda label: label.astype("int16") - 1, {}, [], ["p0.tif", "values -1"]),
    (lambda label: label * 0.5, {}, [], ["p0.tif", "values 0.5"]),
    (lambda label: label + 1, {}, [], ["p0.tif", "values 3", "--classes 4"]),
    (lambda label: label + 252, {}, [], ["p0.tif", "values 252"]),
    (lambda label: label.astype("int64") + BIG, {}, ["--label_map", f"{BIG}=0", f"{BIG + 1}=1", f"{BIG + 2}=2", "0=0", "1=1", "2=2"], None),
    (lambda label: label.astype("int64") + BIG, {}, ["--label_map", f"{BIG}=0", f"{BIG + 2}=2", "0=0", "1=1", "2=2"], ["p0.tif", "values 9007199254740993"]),
    (lambda label: label, {"nodata": 0}, [], ["p0.tif", "nodata tag 0", "--label_nodata none"]),
    (lambda label: np.repeat(label, 3, 0), {}, [], ["p0.tif", "3 bands"]),
    (lambda label: label[:, :16], {}, [], ["p0.tif", "16 x 32"]),
    (lambda label: label, {"crs": "EPSG:32631"}, [], ["p0.tif", "EPSG:32631"]),
    (lambda label: label, {"transform": PLACE * Affine.translation(0.5, 0)}, [], ["p0.tif", "0.5 pixels away"]),
    (lambda label: label, {"transform": PLACE * Affine.scale(0.5)}, [], ["p0.tif", "pixels away"]),
    (lambda label: label.astype("complex64"), {}, [], ["p0.tif", "complex"]),
], ids=["minus one", "halves", "one too many", "far too high", "64 bits", "64 bits, one unmapped", "tag is a class", "three bands", "smaller", "other zone", "half a pixel away", "finer", "complex"])
def test_training_refuses_labels_that_are_not_its_classes_or_not_its_images(train, function, options, words, parts):
    fate = train(function, *words, **options)
    assert_worked(fate) if parts is None else assert_refused(fate, *parts)


@pytest.fixture(scope="module")
def seen():
    """The losses of runs that differ in how they say what is unlabelled."""
    return set()


@pytest.mark.parametrize("function, options, words", [
    (lambda label: np.where(label == 1, 255, label).astype("uint8"), {}, []),
    (lambda label: np.where(label == 1, np.nan, label).astype("float32"), {}, []),
    (lambda label: np.where(label == 1, np.int16(-9999), label), {"nodata": -9999}, []),
    (lambda label: np.where(label == 1, 77, label).astype("uint8"), {}, ["--label_nodata", 77]),
    (lambda label: np.where(label == 1, 77, label).astype("uint8"), {}, ["--label_map", "0=0", "1=1", "2=2", "77=ignore"]),
    (lambda label: label, {"hidden": 1}, []),
], ids=["255", "nan", "tag", "--label_nodata", "--label_map", "mask"])
def test_unlabelled_pixels_of_every_spelling_teach_the_same(train, tmp_path, seen, function, options, words):
    assert_worked(train(function, *words, **options))
    with open(tmp_path / "run/unet-dropout_training_log.csv", newline="") as f:
        (row,) = csv.DictReader(f)
    seen.add((row["train_loss"], row["val_loss"]))
    assert len(seen) == 1


def test_training_on_labels_without_a_labelled_pixel_is_refused(fate, tmp_path, narrow):
    root = make(tmp_path / "data", (2, 1, 0))
    for path in root.glob("train/labels/*"):
        change(path, lambda label: label * 0 + 255)
    assert_refused(fate("main_v2", "--dataset_root", root, "--save_dir", tmp_path / "run", "--cache", "none", *FLAGS), "train", "not one pixel", "--label_map")


def test_a_class_of_which_no_pixel_trains_is_named(train):
    fate = train(lambda label: label, "--label_map", "0=0", "1=0", "2=0")
    assert_worked(fate, "no training pixel of class_1, class_2")


@pytest.mark.parametrize("content, part", [
    (b"\xff\xfe\0patch,place\n", "not readable"), (b"patch,place\n" + b"x" * 200000 + b",1\n", "not readable"), (b"patch,place\np0.tif", "lacks columns"), (b"patch\np0.tif,1\n", "lacks columns"),
], ids=["bytes", "endless field", "cut short", "too many fields"])
def test_a_damaged_table_of_patches_is_named(fate, tmp_path, narrow, content, part):
    root = make(tmp_path / "data", (4, 1, 0))
    (root / "patches.csv").write_bytes(content)
    words = ["--dataset_root", root, "--save_dir", tmp_path / "run", "--cache", "none", "--val_strategy", "kfold", "--n_splits", 2, *FLAGS]
    assert_refused(fate("main_v2", *words), "patches.csv", part)
