"""Patches stored in odd ways, by other programs perhaps: learnt as they are meant, or refused."""

import numpy as np
import pytest
import rasterio
import tinypatches
from conftest import write_raster
from faults import assert_refused, assert_worked
from test_faults_rasters import BYTES, FLOATS, GREY, HEIGHT, SHOWN, WIDTH, edited

from eoseg import raster
from eoseg.tiles import Window


def rewritten(kind, change=lambda pixels: pixels, mask=None, **options):
    """Writes all images, or labels, of a folder of patches anew. mask: inside or beside."""
    def make(root):
        for path in root.glob(f"*/{kind}/*.tif"):
            with rasterio.open(path) as src:
                pixels = src.read()
            path.unlink()
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mask == "inside"), rasterio.open(write_raster(path, change(pixels), **options), "r+") as dst:
                if mask:
                    dst.write_mask(np.indices(dst.shape).sum(0) > 20)

    return make


def of_bits(path):
    return write_raster(path, GREY % 2, nbits=1)


def of_half_floats(path):
    return write_raster(path, FLOATS, nbits=16)


def with_mask(path):
    return edited(BYTES, lambda dst: dst.write_mask(SHOWN), inside=False)(path)[0]


def with_nodata(path):
    path.with_name("p.tif.aux.xml").write_text("<PAMDataset><PAMRasterBand band='1'><NoDataValue>5</NoDataValue></PAMRasterBand></PAMDataset>")
    return write_raster(path, GREY)


@pytest.mark.parametrize("make", [of_bits, of_half_floats, with_mask, with_nodata])
def test_patches_stored_in_odd_ways_are_read_as_scenes_are(tmp_path, make):
    path = make(tmp_path / "p.tif")
    pixels, _, valid = raster.read_patch(path)
    with raster.Scene(path) as scene:
        there, _, counts = scene.read(Window(0, 0, HEIGHT, WIDTH))
    assert pixels.dtype == there.dtype and (pixels == there).all() and (valid == counts).all()


def learnt(fate, root, make, folder):
    """The fate of a run over patches that `make` has changed, and its weights."""
    make(tinypatches.make(root, (3, 2, 0), classes=2))
    one = fate("main_v2", "--dataset_root", root, "--save_dir", folder, *tinypatches.FLAGS[:2], "--classes", 2, "--workers", 0, "--epochs", 1, "--batch_size", 3, "--device", "cpu", "--cache", "none")
    return one, one.status == 0 and tinypatches.saved(folder)["model_state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("odd, usual", [
    (rewritten("labels", nbits=1), rewritten("labels")),
    (rewritten("images", lambda pixels: pixels.astype("float32"), nbits=16), rewritten("images", lambda pixels: pixels.astype("float32"))),
    (rewritten("images", mask="beside"), rewritten("images", mask="inside")),
], ids=["labels of 1 bit", "float16", "a mask beside"])
def test_patches_stored_in_odd_ways_are_learnt_as_usual(fate, tmp_path, narrow, odd, usual):
    (one, weights), (other, same) = learnt(fate, tmp_path / "odd", odd, tmp_path / "a"), learnt(fate, tmp_path / "usual", usual, tmp_path / "b")
    assert_worked(one)
    assert_worked(other)
    assert tinypatches.same_weights(weights, same)


@pytest.mark.parametrize("make, words", [
    (rewritten("images", lambda pixels: pixels * np.nan), "holds no valid pixel"),
    (rewritten("images", lambda pixels: pixels + 1e300), "holds no valid pixel"),
    (rewritten("images", lambda pixels: pixels.astype("complex64")), "complex pixels"),
], ids=["NaN", "beyond 32 bits", "complex"])
def test_patches_that_teach_nothing_are_refused(fate, tmp_path, narrow, make, words):
    one, _ = learnt(fate, tmp_path / "data", make, tmp_path / "out")
    assert_refused(one, "5 problems with its patches", words)
