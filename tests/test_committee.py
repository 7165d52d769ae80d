"""Several answers become one: members and views averaged, and how far they disagree."""

import math

import numpy as np
import pytest
import rasterio
import torch
from conftest import coded, write_raster
from tinynet import Point, Spy, by_hand, mapped, opened, remainder

from eoseg.committee import VIEWS, answer, answers_of, entropy, seen, seen_back
from eoseg.errors import SetupError
from eoseg.network import Network, codes_of
from eoseg.normalize import Normalizer

SCALE = Normalizer("percentile", (0.0,) * 3, (1e-4,) * 3, (5000.0,) * 3, 0.0, 1.0)


@pytest.mark.parametrize("tta, count", [("none", 1), ("flips", 4), ("d4", 8)])
def test_views_are_different_and_each_is_undone(tta, count):
    tile = torch.arange(12.0).view(1, 1, 3, 4)
    views = [seen(tile, *view) for view in VIEWS[tta]]
    assert len({tuple(view.flatten().tolist()) + tuple(view.shape) for view in views}) == count
    assert all(torch.equal(seen_back(view, *how), tile) for view, how in zip(views, VIEWS[tta]))
    if tta == "flips":
        assert {view.shape for view in views} == {tile.shape}


@pytest.mark.parametrize("tta", VIEWS)
@pytest.mark.parametrize("height, width", [(70, 45), (20, 90)])
def test_a_position_wise_network_says_the_same_from_every_view(tmp_path, tta, height, width):
    scene = write_raster(tmp_path / "s.tif", np.random.default_rng(1).integers(1, 10000, (3, height, width)).astype("uint16"))
    network = by_hand(tmp_path, Point(3, 5), 3, 5, normalizer=SCALE)
    mapped(network, scene, tmp_path / "one.tif", save_confidence=True)
    mapped(network, scene, tmp_path / "all.tif", save_confidence=True, tta=tta)
    assert abs(opened(tmp_path / "one_confidence.tif") - opened(tmp_path / "all_confidence.tif")).max() <= 2**-11
    assert (opened(tmp_path / "one.tif") != opened(tmp_path / "all.tif")).mean() < 0.002


def test_views_of_a_one_sided_network_are_averaged():
    logit = lambda x: torch.where(torch.arange(4) < 1, 2.0, -1.0).expand(len(x), 1, 4, 4)  # sure of the first column, whatever it sees
    network = Network("", Spy(logit), "unet", torch.device("cpu"), None, SCALE, ["a", "b"], 3, True, None, None)
    high, low = (round(4096 / (1 + math.exp(-z))) / 4096 for z in (2, -1))
    found = answer(network, lambda one: torch.zeros(1, 3, 4, 4), "flips")[0, 0]
    assert found[0].tolist() == pytest.approx([(high + low) / 2, low, low, (high + low) / 2], abs=2**-12)
    d4 = answer(network, lambda one: torch.zeros(1, 3, 4, 4), "d4")[0, 0]
    assert torch.equal(d4, d4.T) and torch.equal(d4, d4.flip(0)) and d4[0, 0] == pytest.approx((high + low) / 2, abs=2**-12)


def test_entropy_by_hand():
    assert entropy(torch.tensor([0.25, 0.25, 0.25, 0.25]), 0).item() == pytest.approx(1)
    assert entropy(torch.tensor([0.0, 1.0, 0.0]), 0).item() == 0
    assert entropy(torch.tensor([0.25]), 0).item() == pytest.approx(0.811278, abs=1e-6) == entropy(torch.tensor([0.75, 0.25]), 0).item()


def certain(number, classes=3, size=6.0):
    """A network that calls everything `number`, and how sure it is of it."""
    return Spy(lambda x: torch.nn.functional.one_hot(torch.tensor(number), classes).float().mul(size)[None, :, None, None].expand(len(x), classes, *x.shape[-2:]))


def test_uncertainty_of_one_network_is_the_entropy_of_its_answer(tmp_path):
    pixels = coded(70, 60, 1)
    pixels[0, :9] = 0
    scene = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    mapped(by_hand(tmp_path, certain(1, size=1.0), classes=3), scene, tmp_path / "m.tif", save_uncertainty=True)
    p = np.round(4096 * np.exp([0, 1, 0]) / np.exp([0, 1, 0]).sum()) / 4096
    with rasterio.open(tmp_path / "m_uncertainty.tif") as src:
        assert src.count == 1 and src.descriptions == ("entropy",) and np.isnan(src.read(1)[:9]).all()
        assert src.read(1)[9:] == pytest.approx(-(p * np.log(p)).sum() / math.log(3), abs=1e-5)


def test_members_that_are_sure_of_different_things_disagree(tmp_path):
    scene = write_raster(tmp_path / "s.tif", coded(70, 60, 1))
    sure, other, unsure = (by_hand(tmp_path, net, classes=3) for net in (certain(0, size=20.0), certain(1, size=20.0), certain(0, size=0.0)))
    found = {}
    for name, first, second in (("alike", sure, sure), ("apart", sure, other), ("unsure", unsure, unsure)):
        mapped(first._replace(others=(second,)), scene, tmp_path / f"{name}.tif", save_uncertainty=True)
        with rasterio.open(tmp_path / f"{name}_uncertainty.tif") as src:
            assert src.descriptions == ("entropy", "disagreement")
            found[name] = [float(np.unique(src.read(band)).item()) for band in (1, 2)]
    assert found["alike"] == [0, 0] and found["unsure"] == pytest.approx([1, 0], abs=2e-3)
    assert found["apart"] == pytest.approx([math.log(2) / math.log(3)] * 2, abs=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("swap", [0, 1])
def test_probabilities_have_a_band_per_class_of_the_map(tmp_path, dtype, swap):
    pixels = coded(50, 70, 1)
    pixels[0, 0, :7] = 0
    scene = write_raster(tmp_path / "s.tif", pixels, nodata=0)
    network = by_hand(tmp_path, Spy(lambda x: torch.full((len(x), 1, *x.shape[-2:]), math.log(3))), binary=True, class_names=["land", "water"])
    mapped(network, scene, tmp_path / "m.tif", save_probabilities=True, probability_dtype=dtype, background_value=swap)
    with rasterio.open(tmp_path / "m_probabilities.tif") as src:
        assert src.descriptions == (("water", "land") if swap else ("land", "water")) and src.dtypes[0] == dtype
        shown = src.read(masked=True) * np.array(src.scales)[:, None, None]
        assert shown.mask[:, 0, :7].all() and shown.mask.sum() == 14
        assert [float(band.min()) for band in shown] == [float(band.max()) for band in shown] == pytest.approx([0.75, 0.25] if swap else [0.25, 0.75], abs=2.1e-3)
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert (opened(tmp_path / "m.tif")[1:] == (0 if swap else 1)).all()


def test_all_layers_survive_strips_and_resuming(tmp_path, monkeypatch):
    from eoseg.budget import Costs

    scene = write_raster(tmp_path / "s.tif", coded(100, 200, 1))
    network, options = by_hand(tmp_path, Spy(lambda x: remainder(5)(x) * 0.1), classes=5), {"save_confidence": True, "save_probabilities": True, "save_uncertainty": True, "tta": "flips"}
    (tmp_path / "a").mkdir()
    mapped(network, scene, tmp_path / "a/m.tif", **options)
    calls = []
    broken = by_hand(tmp_path, Spy(lambda x: calls.append(0) or (1 / (40 - len(calls)) and remainder(5)(x) * 0.1)), classes=5)
    monkeypatch.setattr("eoseg.budget.costs_of", lambda *given: Costs(2, 0, 1, None))
    with pytest.raises(ZeroDivisionError):
        mapped(broken, scene, tmp_path / "m.tif", **options)
    mapped(network, scene, tmp_path / "m.tif", resume=True, **options)
    for name in ("m.tif", "m_confidence.tif", "m_probabilities.tif", "m_uncertainty.tif"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_original_codes_stand_in_the_map_with_names_and_colours(tmp_path):
    scene, codes = write_raster(tmp_path / "s.tif", coded(40, 30, 1)), (11, 82, 300)
    network = by_hand(tmp_path, Spy(remainder(3)), classes=3, class_names=["water", "tree", "crop"], codes=codes)
    summary = mapped(network, scene, tmp_path / "m.tif", original_codes=True, output_nodata=0)
    assert (opened(tmp_path / "m.tif") == np.array(codes)[coded(40, 30, 1)[0] % 3]).all() and summary["classes"]["tree"]["pixels"] == (coded(40, 30, 1) % 3 == 1).sum()
    with rasterio.open(tmp_path / "m.tif") as src:
        assert src.dtypes == ("uint16",) and {key: text for key, text in src.tags().items() if key.startswith("CLASS_")} == {"CLASS_11": "water", "CLASS_82": "tree", "CLASS_300": "crop"}
    with pytest.raises(SetupError, match="--output_nodata 82: is a class .tree.; give 255"):
        mapped(network, scene, tmp_path / "n.tif", original_codes=True, output_nodata=82)
    with pytest.raises(SetupError, match="--original_codes: .* does not know a code"):
        mapped(network._replace(codes=()), scene, tmp_path / "n.tif", original_codes=True)


def test_codes_do_not_reach_the_probabilities_but_every_tile(tmp_path):
    scene, codes = write_raster(tmp_path / "s.tif", coded(40, 30, 1)), (1, 2)
    network = by_hand(tmp_path, Spy(remainder(2)), classes=2, codes=codes)
    mapped(network, scene, tmp_path / "m.tif", original_codes=True, output_nodata=0, save_probabilities=True, save_patches=True)
    with rasterio.open(tmp_path / "m_probabilities.tif") as src:
        assert src.descriptions == ("class_0", "class_1") and ((src.read(2) > 125) == (coded(40, 30, 1)[0] % 2 == 1)).all()
    assert (opened(tmp_path / "m_patches/patch_0_0.tif") == 1 + coded(40, 30, 1)[0] % 2).all()
    with pytest.raises(SetupError, match="--original_codes: .* knows the code 70001"):
        mapped(network._replace(codes=(1, 70001)), scene, tmp_path / "n.tif", original_codes=True)


@pytest.mark.parametrize("label_map, codes", [
    ({"82": 1, "11": 0, "12": 0, "-1": 255}, (11, 82)), (None, (0, 1)), ({"water": 0, "land": 1}, ()), ({"5": 1}, ()), ({"-7": 0, "1": 1}, ()),
])
def test_a_class_is_called_by_the_lowest_of_its_codes(label_map, codes):
    assert codes_of(label_map, 2) == codes


def test_a_fold_and_a_view_each_count_as_an_answer(tmp_path):
    one = by_hand(tmp_path, Point(3, 2))
    assert [answers_of(one._replace(others=(one,) * more), tta) for more, tta in ((0, "none"), (4, "none"), (0, "d4"), (2, "flips"))] == [1, 5, 8, 12]
