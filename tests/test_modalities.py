"""Several sensors or dates of one place: one grid, one label, one split, a folder of images each."""

import numpy as np
import pytest
import rasterio
from conftest import coded, write_raster
from cutouts import PLACE, UTM31, bytes_of, error_of, metadata_of, table_of
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

pytestmark = pytest.mark.usefixtures("without_fsync")
PATTERNS = ["--modality", r"s1=^s1_(\d+)\.tif$", r"s2=^s2_(\d+)\.tif$"]


@pytest.fixture
def batch(tmp_path, script):
    """Run `batch` over tmp_path/data with patches of 16 pixels into tmp_path/NAME; (exit status, stdout, stderr)."""
    return lambda *words, out="out": script("Patch_extraction_v2", "batch", "--data_dir", tmp_path / "data", "--output", tmp_path / out, "--patch_size", 16, *words)


def write_places(folder, numbers=(1, 2), **second):
    """s1_N.tif (1 float band), s2_N.tif (3 bands) and label_N.tif of 32 x 48 pixels."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        place = PLACE * Affine.translation(100 * number, 0)
        write_raster(folder / f"s1_{number}.tif", coded(32, 48, 1).astype("float32") / -7, transform=place, names=["VV"])
        write_raster(folder / f"s2_{number}.tif", coded(32, 48, 3) + np.uint16(number), **{"transform": place, "names": ["b", "g", "r"], **second})
        write_raster(folder / f"label_{number}.tif", np.full((32, 48), number, "uint8"), transform=place)


def image(folder, row, name):
    with rasterio.open(folder / row["split"] / f"images_{name}" / row["patch"]) as src:
        return src.read(), src.profile


def test_each_sensor_has_its_folder_and_all_share_names_places_and_labels(tmp_path, batch):
    write_places(tmp_path / "data")
    status, out, err = batch(*PATTERNS)
    assert status == 0, err
    assert "resampled" not in out
    folder = tmp_path / "out"
    rows = table_of(folder)
    assert len(rows) == 12 and not list(folder.glob("*/images"))
    for row in rows:
        number, here = int(row["patch"][3]), np.s_[:, int(row["row"]) : int(row["row"]) + 16, int(row["col"]) : int(row["col"]) + 16]
        (radar, one), (optical, other) = image(folder, row, "s1"), image(folder, row, "s2")
        assert (radar == (coded(32, 48, 1).astype("float32") / -7)[here]).all() and (optical == (coded(32, 48, 3) + np.uint16(number))[here]).all()
        assert one["transform"] == other["transform"] and one["crs"] == other["crs"]
        with rasterio.open(folder / row["split"] / "labels" / row["patch"]) as src:
            assert (src.read() == number).all()


def test_bands_and_statistics_are_kept_for_each_sensor(tmp_path, batch, script):
    write_places(tmp_path / "data")
    batch(*PATTERNS)
    metadata, folder = metadata_of(tmp_path / "out"), tmp_path / "out"
    assert list(metadata["modalities"]) == ["images_s1", "images_s2"] and metadata["bands"] == metadata["modalities"]["images_s1"]["bands"]
    for name, bands in (("s1", ["VV"]), ("s2", ["b", "g", "r"])):
        part = metadata["modalities"][f"images_{name}"]
        pixels = np.concatenate([image(folder, row, name)[0].reshape(len(bands), -1) for row in table_of(folder) if row["split"] == "train"], 1).astype(float)
        assert part["bands"]["names"] == bands == [band["band"] for band in part["statistics"]]
        assert [band["mean"] for band in part["statistics"]] == pytest.approx(pixels.mean(1), rel=1e-6)
    out = script("Patch_extraction_v2", "info", "--output", folder)[1]
    assert "images_s1: float32, 1 bands" in out and "images_s2: uint16, 3 bands" in out
    assert script("Patch_extraction_v2", "visualize", "--output", folder, "--modality", "s2", "--rgb", 3, "g", "b")[0] == 0
    assert "--modality s3" in error_of(*script("Patch_extraction_v2", "visualize", "--output", folder, "--modality", "s3")[::2])


@pytest.mark.parametrize("kind", ["nearest", "bilinear"])
@pytest.mark.parametrize("crs, place", [("EPSG:32630", PLACE * Affine.translation(-10, -10) * Affine.scale(2)), (UTM31, Affine(11, 0, 13500, 0, -11, 4818500)),
                                        ("EPSG:32630", PLACE * Affine.translation(100.5, 0.25))], ids=["coarser", "zone", "shifted"])
def test_a_sensor_on_another_grid_is_resampled_onto_the_first_ones(tmp_path, batch, crs, place, kind):
    data = tmp_path / "data"
    write_places(data, (1,))
    rng = np.random.default_rng(0)
    big = np.cumsum(rng.integers(0, 9, (2, 150, 400)), 2).astype("uint16") + 100
    write_raster(data / "s2_1.tif", big, nodata=0, crs=crs, transform=place)
    status, out, err = batch(*PATTERNS, "--interpolation", kind)
    assert status == 0, err
    assert "s2_1.tif: lies on another grid than" in out and f"resampled onto it ({kind})" in out
    wanted = np.zeros((2, 32, 48), "uint16")
    reproject(big, wanted, src_crs=crs, src_transform=place, dst_crs="EPSG:32630", dst_transform=PLACE * Affine.translation(100, 0), src_nodata=0, dst_nodata=0,
              resampling=Resampling[kind], tolerance=0)
    assert (wanted > 0).mean() > 0.3
    for row in table_of(tmp_path / "out"):
        here = np.s_[:, int(row["row"]) : int(row["row"]) + 16, int(row["col"]) : int(row["col"]) + 16]
        found, profile = image(tmp_path / "out", row, "s2")
        assert np.abs(found.astype(int) - wanted[here]).max() <= (0 if kind == "nearest" else 1)
        assert profile["transform"] == image(tmp_path / "out", row, "s1")[1]["transform"]


@pytest.mark.parametrize("words, joined", [([], np.logical_or), (["--require_all_bands"], np.logical_and)])
def test_a_pixel_counts_when_one_sensor_has_it_or_with_require_all_bands_every_one(tmp_path, batch, words, joined):
    write_places(tmp_path / "data", (1,))
    radar, optical = coded(32, 48, 1).astype("float32"), coded(32, 48, 3)
    radar[:, :, :20] = np.nan
    optical[:, :10, :30] = 0
    place = PLACE * Affine.translation(100, 0)
    write_raster(tmp_path / "data/s1_1.tif", radar, transform=place)
    write_raster(tmp_path / "data/s2_1.tif", optical, nodata=0, transform=place)
    assert batch(*PATTERNS, *words)[0] == 0
    valid = joined(np.isfinite(radar[0]), optical[0] > 0)
    for row in table_of(tmp_path / "out"):
        with rasterio.open(tmp_path / "out" / row["split"] / "labels" / row["patch"]) as src:
            here = valid[int(row["row"]) : int(row["row"]) + 16, int(row["col"]) : int(row["col"]) + 16]
            assert (src.read(1) == np.where(here, 1, 255)).all()


def test_a_place_that_lacks_a_sensor_is_named_and_the_others_are_cut(tmp_path, batch):
    write_places(tmp_path / "data", (1, 2))
    (tmp_path / "data/s2_2.tif").unlink()
    status, _, err = batch(*PATTERNS)
    assert status == 1 and "failed   s1_2.tif: has no partner" in err and {row["scene"] for row in table_of(tmp_path / "out")} == {"s1_1.tif"}


def test_a_sensor_elsewhere_or_without_a_crs_fails_its_place(tmp_path, batch):
    write_places(tmp_path / "data", (1, 2))
    write_raster(tmp_path / "data/s2_2.tif", coded(32, 48, 3), transform=PLACE * Affine.translation(9000, 0))
    status, _, err = batch(*PATTERNS)
    assert status == 1 and "failed   2: s2_2.tif: lies beside s1_2.tif" in err
    write_raster(tmp_path / "data/s2_2.tif", coded(30, 40, 3), crs=None, transform=Affine.identity())
    status, _, err = batch(*PATTERNS, "--overwrite")
    assert status == 1 and "s2_2.tif: lies on another grid than s1_2.tif and one of them has no CRS" in err


@pytest.mark.parametrize("words, text", [
    (["s1"], "--modality s1: write NAME=PATTERN"), (["s/1=(a)"], "--modality s/1=(a)"), (["s1=^s1_(\\d+)", "s1=^s2_(\\d+)"], "--modality s1: is given twice"),
    (["s1=^s1_"], "--modality s1 ^s1_: has no group"), (["s1=^none_(\\d+)"], "0 names match --modality s1"),
])
def test_modalities_that_cannot_be_are_named(tmp_path, batch, words, text):
    write_places(tmp_path / "data", (1,))
    assert text in error_of(*batch("--modality", *words)[::2])


def test_modality_and_image_pattern_exclude_each_other(tmp_path, batch):
    write_places(tmp_path / "data", (1,))
    assert "--modality and --image_pattern" in error_of(*batch(*PATTERNS, "--image_pattern", "(.)")[::2])


def test_patterns_with_a_slash_pair_files_of_equal_names_in_their_folders(tmp_path, batch):
    write_places(tmp_path / "data", (1, 2))
    for number in (1, 2):
        for kind in ("s1", "s2", "label"):
            (tmp_path / "data" / kind).mkdir(exist_ok=True)
            (tmp_path / "data" / f"{kind}_{number}.tif").rename(tmp_path / "data" / kind / f"{number}.tif")
    status, _, err = batch("--modality", r"s1=s1/(\d+)\.tif$", r"s2=s2/(\d+)\.tif$", "--label_pattern", r"label/(\d+)\.tif$")
    assert status == 0, err
    assert len(table_of(tmp_path / "out")) == 12


def test_a_run_of_several_sensors_goes_on_to_the_same_bytes(tmp_path, batch, monkeypatch):
    from eoseg import cutting

    write_places(tmp_path / "data")
    batch(*PATTERNS, out="unbroken")
    real, calls = cutting.write, []

    def stop(*args):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cutting, "write", stop)
        assert batch(*PATTERNS)[0] == 130
    assert batch(*PATTERNS, "--resume")[0] == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "unbroken")


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("dtype, nodata", [("int16", -9999), ("float32", -9999), ("uint16", 0)])
def test_nodata_in_one_band_never_bleeds_when_a_sensor_is_resampled(tmp_path, batch, kind, dtype, nodata):
    write_places(tmp_path / "data", (1,))
    pixels = np.full((2, 16, 24), 1000, dtype)
    pixels[0, 4:8, 4:12] = nodata
    write_raster(tmp_path / "data/s2_1.tif", pixels, nodata=nodata, transform=PLACE * Affine.translation(100, 0) * Affine.scale(2))
    status, _, err = batch(*PATTERNS, "--interpolation", kind)
    assert status == 0, err
    seen = np.zeros(2, int)
    for row in table_of(tmp_path / "out"):
        found = image(tmp_path / "out", row, "s2")[0].astype(float)
        assert set(np.unique(found[0].round())) <= {nodata, 1000} and (found[1] == 1000).all()
        seen += [(found[0] == nodata).sum(), (found[0] == 1000).sum()]
    assert 64 <= seen[0] <= 4 * 32 + 60 and seen[1] > 1000
    assert metadata_of(tmp_path / "out")["modalities"]["images_s2"]["statistics"][0]["min"] == pytest.approx(1000)


def test_a_sensor_whose_fourth_band_only_gdal_calls_alpha_is_refused_on_another_grid(tmp_path, batch):
    write_places(tmp_path / "data", (1,))
    write_raster(tmp_path / "data/s2_1.tif", np.random.default_rng(0).integers(1, 255, (4, 16, 24), "uint8"), transform=PLACE * Affine.translation(100, 0) * Affine.scale(2), photometric="rgb", alpha="yes")
    assert "s2_1.tif: lies on another grid than" in (said := error_of(*batch(*PATTERNS)[::2])) and "gdalwarp" in said
