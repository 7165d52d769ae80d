"""A scene becomes a map: whatever the tiling, every pixel keeps its place, its nodata and its class."""

import math
import shutil

import numpy as np
import pytest
import rasterio
import torch
from conftest import coded, write_raster
from tinynet import Point, Spy, by_hand, mapped, opened, remainder

from eoseg import files
from eoseg.errors import DataError, SetupError
from eoseg.normalize import Normalizer

# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("height, width", [(70, 45), (32, 32), (33, 32), (5, 150), (1, 1), (1, 90), (61, 3)])
@pytest.mark.parametrize("overlap, batch", [(0, None), (1, 3), (8, 2), (31, 64)])
def test_a_position_wise_network_maps_a_scene_alike_tiled_or_whole(tmp_path, height, width, overlap, batch):
    pixels = np.random.default_rng(height).integers(1, 10000, (3, height, width)).astype("uint16")
    scene = write_raster(tmp_path / "scene.tif", pixels)
    stats = Normalizer("percentile", (1.0,) * 3, (1e-4,) * 3, (5000.0,) * 3, 0.0, 1.0)
    network = by_hand(tmp_path, Point(3, 5), 3, 5, normalizer=stats)
    mapped(network, scene, tmp_path / "whole.tif", patch_size=160, overlap=0, save_confidence=True)
    mapped(network, scene, tmp_path / "tiled.tif", patch_size=32, overlap=overlap, batch_size=batch, save_confidence=True)
    by_numpy = network.probabilities(torch.from_numpy(stats(pixels, np.zeros_like(pixels, bool)))[None])[0].max(0)
    assert (opened(tmp_path / "tiled.tif") == by_numpy.indices.numpy()).all()
    assert (opened(tmp_path / "whole.tif") == by_numpy.indices.numpy()).all()
    assert (opened(tmp_path / "tiled_confidence.tif") == by_numpy.values.numpy()).all()
    assert (opened(tmp_path / "whole_confidence.tif") == by_numpy.values.numpy()).all()


@pytest.mark.parametrize("height, width", [(99, 100), (64, 64), (65, 63), (17, 100), (1, 77), (1, 1)])
@pytest.mark.parametrize("patch, overlap", [(64, 16), (40, 13), (1, 0), (512, 128)])
def test_every_pixel_keeps_its_place(tmp_path, height, width, patch, overlap):
    if patch == 1 and height * width > 100:
        height = 1
    pixels = coded(height, width, 1)
    mapped(by_hand(tmp_path, Spy(remainder(7)), classes=7), write_raster(tmp_path / "s.tif", pixels), tmp_path / "m.tif", patch_size=patch, overlap=overlap)
    assert (opened(tmp_path / "m.tif") == pixels[0] % 7).all()


def test_blending_returns_a_constant_probability_bit_for_bit(tmp_path):
    logits = torch.tensor([0.3, -0.2, 0.9])
    net = Spy(lambda x: logits[None, :, None, None].expand(len(x), 3, *x.shape[-2:]))
    mapped(by_hand(tmp_path, net, classes=3), write_raster(tmp_path / "s.tif", coded(97, 83, 1)), tmp_path / "m.tif",
        patch_size=32, overlap=11, save_confidence=True)
    wanted = np.float32(round(float(logits.softmax(0)[2]) * 4096) / 4096)
    assert (opened(tmp_path / "m_confidence.tif") == wanted).all()


def test_tiles_are_blended_and_not_pasted(tmp_path):
    calls = []
    rising = lambda x: calls.append(0) or torch.full((1, 1, *x.shape[-2:]), math.log(len(calls) / (4 - len(calls))))  # 1/4, 2/4, 3/4
    mapped(by_hand(tmp_path, Spy(rising), binary=True), write_raster(tmp_path / "s.tif", coded(32, 64, 1)), tmp_path / "m.tif",
        patch_size=32, overlap=16, batch_size=1, save_confidence=True, threshold=0)
    sure = opened(tmp_path / "m_confidence.tif")
    assert len(calls) == 3 and (sure[:, 0] == 0.25).all() and (sure[:, -1] == 0.75).all()
    assert (np.diff(sure, axis=1) >= 0).all() and abs(sure[:, 24] - 0.375).max() < 0.02 and abs(np.diff(sure, axis=1)).max() < 0.05


def test_a_scene_of_2048_pixels_takes_25_tiles_of_512_at_128_overlap(tmp_path):
    net = Spy(lambda x: x.new_zeros(len(x), 2, *x.shape[-2:]))
    scene = write_raster(tmp_path / "s.tif", np.ones((1, 2048, 2048), "uint8"))
    mapped(by_hand(tmp_path, net), scene, tmp_path / "m.tif", patch_size=512, overlap=128)
    assert sum(map(len, net.seen)) == 25


@pytest.mark.parametrize("row, col, tiles", [(0, 0, 1), (50, 20, 2), (50, 50, 4), (199, 199, 1)])
def test_only_tiles_with_a_valid_pixel_are_run(tmp_path, row, col, tiles):
    pixels = np.zeros((1, 200, 200), "uint8")
    pixels[0, row, col] = 9
    net = Spy(lambda x: x.new_zeros(len(x), 2, *x.shape[-2:]))
    summary = mapped(by_hand(tmp_path, net), write_raster(tmp_path / "s.tif", pixels, nodata=0), tmp_path / "m.tif")
    assert sum(map(len, net.seen)) == tiles and summary["valid_pixels"] == 1
    assert np.argwhere(opened(tmp_path / "m.tif") != 255).tolist() == [[row, col]]


# ---------------------------------------------------------------- nodata and normalisation


def masked_scene(folder, kind):
    """A 40 x 40 scene of three bands and what should be valid: not a corner; band 1 alone is missing in one pixel."""
    pixels, valid = coded(40, 40, 3, "float32" if kind == "nan" else "uint16"), np.ones((40, 40), bool)
    valid[:6, :9] = False
    if kind == "alpha":
        return write_raster(folder / "s.tif", np.concatenate([pixels, np.where(valid, 255, 0)[None]]).astype("uint16"), photometric="rgb", alpha="yes"), valid
    if kind == "mask":
        path = write_raster(folder / "s.tif", pixels)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dst:
            dst.write_mask(valid)
        return path, valid
    missing = {"nan": np.nan, "tag": 0, "flag": 0}[kind]
    pixels[:, ~valid] = missing
    pixels[0, 20, 20] = missing  # one band only: GDAL's rule calls the pixel valid, but NaN never is
    valid[20, 20] = kind != "nan"
    return write_raster(folder / "s.tif", pixels, nodata=0 if kind == "tag" else None), valid


@pytest.mark.parametrize("kind", ["tag", "nan", "mask", "alpha", "flag"])
def test_the_map_is_nodata_where_the_scene_is_not_valid(tmp_path, kind):
    scene, valid = masked_scene(tmp_path, kind)
    network = by_hand(tmp_path, Spy(remainder(3)), 3, 3)
    summary = mapped(network, scene, tmp_path / "m.tif", patch_size=32, overlap=8, input_nodata=0 if kind == "flag" else None, save_confidence=True)
    assert ((opened(tmp_path / "m.tif") != 255) == valid).all() and summary["valid_pixels"] == valid.sum()
    assert (np.isfinite(opened(tmp_path / "m_confidence.tif")) == valid).all()


def test_require_all_bands_drops_pixels_with_one_missing_band(tmp_path):
    scene, valid = masked_scene(tmp_path, "tag")
    valid[20, 20] = False
    mapped(by_hand(tmp_path, Spy(remainder(3)), 3, 3), scene, tmp_path / "m.tif", require_all_bands=True)
    assert ((opened(tmp_path / "m.tif") != 255) == valid).all()


@pytest.mark.parametrize("told, strict", [(0, False), (0, True)])
def test_what_the_training_took_for_data_holds_for_the_map_too(tmp_path, told, strict):
    scene, valid = masked_scene(tmp_path, "flag")  # no tag in the file
    valid[20, 20] &= not strict
    taken = {"of_patch": [0, 1, 2], "names": ["band_1", "band_2", "band_3"], "of_scene": [1, 2, 3], "scene_count": 3, "input_nodata": told, "require_all_bands": strict}
    mapped(by_hand(tmp_path, Spy(remainder(3)), 3, 3, input=taken), scene, tmp_path / "m.tif")
    assert ((opened(tmp_path / "m.tif") != 255) == valid).all()


@pytest.mark.parametrize("options", [{"threshold": 0.4}, {"background_value": 1}])
def test_binary_options_are_refused_for_a_network_of_classes(tmp_path, options):
    with pytest.raises(SetupError, match="--threshold, --background_value: .* has 3 classes"):
        mapped(by_hand(tmp_path, Spy(remainder(3)), 3, 3), write_raster(tmp_path / "s.tif", coded(8, 8)), tmp_path / "m.tif", **options)
    assert not (tmp_path / "m.tif").exists()


@pytest.mark.parametrize("kind", ["tag", "mask", "alpha"])
def test_the_network_sees_the_training_median_where_there_is_no_data(tmp_path, kind):
    scene, valid = masked_scene(tmp_path, kind)
    net, stats = Spy(remainder(3)), Normalizer("zscore", (100.0, 200.0, 0.0), (0.5, 0.25, 1.0), (7.0, 9.0, 1.0))
    mapped(by_hand(tmp_path, net, 3, 3, normalizer=stats), scene, tmp_path / "m.tif")
    seen = net.seen[0][0, :, :40, :40].numpy()
    assert (seen[0][~valid] == (7 - 100) * 0.5).all() and (seen[1][~valid] == (9 - 200) * 0.25).all()
    assert seen[0, 20, 20] == ((7 if kind == "tag" else 10000 + 2020) - 100) * 0.5 and seen[1, 20, 20] == (20000 + 2020 - 200) * 0.25
    assert seen[0, 10, 11] == (10000 + 1011 - 100) * 0.5


def test_what_stands_in_nodata_pixels_changes_no_neighbour(tmp_path):
    blur = torch.nn.Conv2d(1, 3, 3, padding=1)
    maps = []
    for number, value in enumerate((0, 40000, 65535)):
        pixels = coded(50, 50, 1)
        pixels[0, 10:30, 10:30] = value
        scene = write_raster(tmp_path / f"{number}.tif", pixels, nodata=value)
        mapped(by_hand(tmp_path, blur, classes=3, normalizer=Normalizer("none", (0.0,), (1e-4,), (12000.0,))), scene, tmp_path / f"m{number}.tif", save_confidence=True)
        maps.append(opened(tmp_path / f"m{number}_confidence.tif"))
    assert np.array_equal(maps[0], maps[1], equal_nan=True) and np.array_equal(maps[0], maps[2], equal_nan=True)
    assert len(np.unique(maps[0][:10])) > 1


def test_a_tile_beyond_the_scene_is_mirrored_not_blackened(tmp_path):
    net = Spy(remainder(3))
    mapped(by_hand(tmp_path, net, classes=3), write_raster(tmp_path / "s.tif", coded(20, 30, 1)), tmp_path / "m.tif")
    seen = net.seen[0][0, 0]
    assert seen.shape == (32, 32)
    assert (seen[20:] == seen[8:20].flip(0)).all() and (seen[:, 30:] == seen[:, 28:30].flip(1)).all()


def test_a_network_that_gives_nan_is_refused_in_one_line(tmp_path):
    network = by_hand(tmp_path, Spy(lambda x: x.new_full((len(x), 2, *x.shape[-2:]), math.nan)))
    with pytest.raises(SetupError, match="net.pth: .*not finite"):
        mapped(network, write_raster(tmp_path / "s.tif", coded(8, 8, 1)), tmp_path / "m.tif")
    assert not (tmp_path / "m.tif").exists()


# ---------------------------------------------------------------- binary


@pytest.mark.parametrize("threshold, wanted", [(0.5, [0, 1, 1]), (0.3, [1, 1, 1]), (0.9, [0, 0, 0]), (0, [1, 1, 1])])
def test_threshold_and_confidence_of_a_binary_map(tmp_path, threshold, wanted):
    chance = np.array([0.375, 0.5, 0.75])
    pixels = np.log(chance / (1 - chance)).astype("float32")[None, None].repeat(5, 1)
    network = by_hand(tmp_path, Spy(lambda x: x), binary=True)
    mapped(network, write_raster(tmp_path / "s.tif", pixels), tmp_path / "m.tif", threshold=threshold, save_confidence=True)
    assert opened(tmp_path / "m.tif")[0].tolist() == wanted
    assert opened(tmp_path / "m_confidence.tif")[0].tolist() == [p if one else 1 - p for p, one in zip(chance, wanted)]


def test_background_value_1_swaps_the_numbers_and_their_names_with_them(tmp_path):
    pixels = np.full((1, 10, 10), -9, "float32")
    pixels[0, :3] = 9
    network = by_hand(tmp_path, Spy(lambda x: x), binary=True, class_names=["other", "house"])
    scene = write_raster(tmp_path / "s.tif", pixels)
    plain = mapped(network, scene, tmp_path / "plain.tif")
    swapped = mapped(network, scene, tmp_path / "swapped.tif", background_value=1, save_confidence=True)
    assert (opened(tmp_path / "swapped.tif") == 1 - opened(tmp_path / "plain.tif")).all()
    assert plain["classes"]["house"]["pixels"] == swapped["classes"]["house"]["pixels"] == 30
    with rasterio.open(tmp_path / "swapped.tif") as src:
        assert src.tags()["CLASS_0"] == "house" and src.tags()["CLASS_1"] == "other"
    assert opened(tmp_path / "swapped_confidence.tif").min() > 0.99


# ---------------------------------------------------------------- what lies beside the map


def test_patches_are_each_tile_by_itself_in_its_place(tmp_path):
    pixels = coded(70, 100, 1)
    pixels[0, :5, :5] = 0
    mapped(by_hand(tmp_path, Spy(remainder(5)), classes=5), write_raster(tmp_path / "s.tif", pixels, nodata=0), tmp_path / "map.tif", save_patches=True)
    found = sorted(path.name for path in (tmp_path / "map_patches").iterdir())
    assert found == ["patch_0_0.tif", "patch_0_36.tif", "patch_6_0.tif", "patch_6_36.tif"]
    with rasterio.open(tmp_path / "map_patches/patch_6_36.tif") as src:
        assert (src.read(1) == pixels[0, 6:, 36:] % 5).all() and src.nodata == 255 and src.crs.to_epsg() == 32630
        assert src.transform * (0, 0) == (500000 + 36 * 10, 4800000 - 6 * 10)
    assert (opened(tmp_path / "map_patches/patch_0_0.tif")[:5, :5] == 255).all()


def test_overwriting_leaves_no_patch_of_the_older_tiles(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(70, 70, 1))
    network = by_hand(tmp_path, Spy(remainder(5)), classes=5)
    mapped(network, scene, tmp_path / "m.tif", save_patches=True)
    mapped(network, scene, tmp_path / "m.tif", save_patches=True, patch_size=96, overwrite=True)
    assert [path.name for path in (tmp_path / "m_patches").iterdir()] == ["patch_0_0.tif"]


@pytest.mark.parametrize("kind", ["plain", "nan", "no place", "nodata all over"])
def test_quicklook_is_a_picture_of_every_kind_of_scene(tmp_path, kind, recwarn):
    pixels = coded(60, 90, 1, "float32") if kind == "nan" else coded(60, 90, 4)
    if kind in ("nan", "nodata all over"):
        pixels[:, : 60 if kind == "nodata all over" else 20] = np.nan if kind == "nan" else 0
    where = {"crs": None, "transform": rasterio.Affine.identity()} if kind == "no place" else {}
    mapped(by_hand(tmp_path, Spy(remainder(3)), len(pixels), 3), write_raster(tmp_path / "s.tif", pixels, nodata=0, **where), tmp_path / "m.tif", quicklook=True)
    from matplotlib.image import imread

    picture = imread(tmp_path / "m_quicklook.png")
    assert min(picture.shape[:2]) > 200 and np.isfinite(picture).all()
    assert not [str(w.message) for w in recwarn if "cast" in str(w.message)]


# ---------------------------------------------------------------- refusals


def test_nothing_existing_is_overwritten_unless_told(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(20, 20, 1))
    network = by_hand(tmp_path, Spy(remainder(3)), classes=3)
    for name, wanted in [("m.tif", {}), ("m_confidence.tif", {"save_confidence": True}), ("m_quicklook.png", {"quicklook": True}), ("m_patches", {"save_patches": True})]:
        (tmp_path / name).mkdir() if name == "m_patches" else (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(SetupError, match=f"--output .*{name}.*--overwrite.*--resume"):
            mapped(network, scene, tmp_path / "m.tif", **wanted)
        (tmp_path / name).rmdir() if name == "m_patches" else (tmp_path / name).unlink()
    (tmp_path / "m.tif").write_bytes(b"mine")
    mapped(network, scene, tmp_path / "m.tif", overwrite=True)
    assert opened(tmp_path / "m.tif").shape == (20, 20)


@pytest.mark.parametrize("name, options", [("m.tif", {}), ("m_confidence.tif", {"save_confidence": True})])
def test_the_scene_itself_is_never_overwritten(tmp_path, name, options):
    scene = write_raster(tmp_path / name, coded(20, 20, 1))
    before = scene.read_bytes()
    link = tmp_path / "link.tif"
    link.symlink_to(scene)
    for path in (scene, link):
        with pytest.raises(SetupError, match="is the input itself"):
            mapped(by_hand(tmp_path, Spy(remainder(3)), classes=3), path, tmp_path / "m.tif", overwrite=True, **options)
    assert scene.read_bytes() == before


def test_a_second_run_on_the_same_map_is_refused_and_another_map_is_not(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(20, 20, 1))
    network = by_hand(tmp_path, Spy(remainder(3)), classes=3)
    with files.lock(tmp_path, ".m.tif.lock"):
        with pytest.raises(SetupError, match="another run is writing"):
            mapped(network, scene, tmp_path / "m.tif")
        mapped(network, scene, tmp_path / "other.tif")
    mapped(network, scene, tmp_path / "m.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.json", "m.qml", "m.tif", "m.tif.aux.xml", "net.pth", "other.json", "other.qml", "other.tif", "other.tif.aux.xml", "s.tif"]


def test_an_output_nodata_that_is_a_class_is_refused(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(20, 20, 1))
    with pytest.raises(SetupError, match=r"--output_nodata 2: is a class \(class_2\); give 255"):
        mapped(by_hand(tmp_path, Spy(remainder(3)), classes=3), scene, tmp_path / "m.tif", output_nodata=2)
    with pytest.raises(SetupError, match="--output_nodata 255: is a class .*give 256"):
        mapped(by_hand(tmp_path, Spy(remainder(256)), classes=256), scene, tmp_path / "m.tif")


@pytest.mark.parametrize("classes, nodata, dtype", [(3, 3, "uint8"), (255, 255, "uint8"), (3, 256, "uint16"), (300, 65535, "uint16")])
def test_the_maps_type_fits_classes_and_nodata(tmp_path, classes, nodata, dtype):
    pixels = coded(40, 50, 1)
    pixels[0, 0] = 0
    mapped(by_hand(tmp_path, Spy(remainder(classes)), classes=classes), write_raster(tmp_path / "s.tif", pixels, nodata=0), tmp_path / "m.tif",
        output_nodata=nodata, quicklook=True)
    with rasterio.open(tmp_path / "m.tif") as src:
        assert (src.dtypes[0], src.nodata) == (dtype, nodata)
        assert (src.read(1) == np.where(pixels[0] == 0, nodata, pixels[0] % classes)).all()
        assert src.read(1, masked=True).mask.sum() == 50


def test_a_truncated_scene_is_one_error_and_no_map(tmp_path):
    whole = write_raster(tmp_path / "whole.tif", np.random.default_rng(0).integers(0, 9999, (1, 300, 300)).astype("uint16"))
    broken = tmp_path / "broken.tif"
    broken.write_bytes(whole.read_bytes()[: 300 * 300])  # the first half of the rows
    with pytest.raises(DataError, match=r"broken.tif: rows \d+ to \d+ cannot be read .*truncated or damaged"):
        mapped(by_hand(tmp_path, Spy(remainder(3)), classes=3), broken, tmp_path / "m.tif")
    assert not list(tmp_path.glob("m*"))
    shutil.copy(whole, broken)  # mended: the next run sweeps what the failed one left
    mapped(by_hand(tmp_path, Spy(remainder(3)), classes=3), broken, tmp_path / "m.tif")
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
