"""A checkpoint becomes a network: its own and the older system's, with the right bands and normalisation."""

import numpy as np
import pytest
import torch
from conftest import coded, write_raster
from tinynet import Point, Spy, by_hand, mapped, save

from eoseg import models, network
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError
from eoseg.normalize import Normalizer
from eoseg.unet import UNetDropout

STATS = Normalizer("percentile", (10.0, 20.0, 30.0), (0.01, 0.02, 0.03), (1.0, 2.0, 3.0), 0.0, 1.0)


def load(path, **options):
    said = []
    return network.load(path, PredictionConfig(**options), said.append), "\n".join(said)


# ---------------------------------------------------------------- checkpoints


def test_everything_comes_from_the_checkpoint(tmp_path, point_models):
    net = Point(3, 4)
    found, said = load(save(tmp_path / "m.pth", net, names=["a", "b", "c", "d"], normalizer=STATS, pixel_size=[10.0, 10.0, "metre"]))
    assert found.normalizer == STATS and found.class_names == ["a", "b", "c", "d"] and found.in_channels == 3 and not found.binary
    assert torch.equal(found.net.conv.weight, net.conv.weight) and not found.net.training and found.pixel_size == [10.0, 10.0, "metre"]
    assert "unet-dropout" in said and "cpu" in said and "float32" in said


def test_the_checkpoints_normalisation_is_applied(tmp_path, point_models, monkeypatch):
    found, _ = load(save(tmp_path / "m.pth", Point(3, 4), normalizer=STATS))
    spy = Spy(found.net)
    pixels = np.array([15, 60, 2000], "uint16")[:, None, None].repeat(40, 1).repeat(40, 2)
    mapped(found._replace(net=spy), write_raster(tmp_path / "s.tif", pixels), tmp_path / "m.tif")
    assert spy.seen[0][0, :, 7, 7].tolist() == pytest.approx([(15 - 10) * 0.01, (60 - 20) * 0.02, 1.0])


def older(kind, net, **config):
    """The state of `net` as older systems stored it."""
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    about = {"model_name": "unet", "encoder_name": "resnet18", "mode": "multiclass", "in_channels": 3, "num_classes": 4} | config
    if kind == "V2":
        return {"model_state_dict": net.state_dict(), "config": about, "performance_metrics": {"best_val_iou": np.float64(0.5)}}
    if kind == "V2 parallel":
        return {"model_state_dict": state, "config": about}
    if kind == "V1":
        return {"model_state_dict": net.state_dict(), "metadata": {"model": "unet", "encoder": "resnet18", "n_classes": 4, "n_channels": 3}}
    return state if kind == "bare parallel" else net.state_dict()


@pytest.mark.parametrize("kind, flags", [
    ("V2", {}), ("V2 parallel", {}), ("V1", {}),
    ("bare", {"model_name": "unet", "encoder_name": "resnet18", "in_channels": 3, "num_classes": 4}),
    ("bare parallel", {"model_name": "unet", "encoder_name": "resnet18", "in_channels": 3, "num_classes": 4}),
])
def test_checkpoints_of_the_older_system_load(tmp_path, kind, flags):
    torch.manual_seed(0)
    net = models.build_model("unet", 3, 4, "resnet18").eval()
    torch.save(older(kind, net), tmp_path / "old.pth")
    found, said = load(tmp_path / "old.pth", **flags)
    tile = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(found.probabilities(tile), net(tile).softmax(1), atol=2**-12)
    assert found.class_names == ["class_0", "class_1", "class_2", "class_3"]
    assert found.normalizer == Normalizer.of_each_patch(3) and "99th percentile" in said


def test_an_older_binary_network_has_one_logit_whatever_it_calls_its_classes(tmp_path, point_models):
    for number, names in enumerate((["building"], "auto", None, ["other", "building"])):
        torch.save(older("V2", Point(3, 1), mode="binary", num_classes=2, class_names=names), tmp_path / "old.pth")
        found, _ = load(tmp_path / "old.pth", num_classes=1 + number % 2)
        assert found.binary and found.class_names == (names if number == 3 else ["class_0", "class_1"])
        mapped(found, write_raster(tmp_path / "s.tif", coded(40, 40)), tmp_path / f"{number}.tif")


@pytest.mark.parametrize("flags, per_tile", [
    ({}, lambda tile: np.percentile(tile, 99)),
    ({"normalization_percentile": 90.0}, lambda tile: np.percentile(tile, 90)),
    ({"normalize_per_channel": True}, lambda tile: np.percentile(tile, 99, axis=(1, 2), keepdims=True)),
])
def test_without_statistics_each_tile_is_divided_by_its_own_percentile(tmp_path, point_models, flags, per_tile):
    torch.save(older("V2", Point(3, 4), model_name="unet-dropout"), tmp_path / "old.pth")
    found, said = load(tmp_path / "old.pth", **flags)
    spy = Spy(found.net)
    pixels = coded(64, 96, 3)
    mapped(found._replace(net=spy), write_raster(tmp_path / "s.tif", pixels), tmp_path / "m.tif", overlap=0)
    assert len(spy.seen) == 2 and f"{flags.get('normalization_percentile', 99):g}th" in said
    for tile, col in zip(spy.seen, (0, 32)):
        raw = pixels[:, :, col : col + 64].astype(float)
        np.testing.assert_allclose(tile[0].numpy(), np.clip(raw / per_tile(raw), 0, 1), rtol=1e-5)


def test_an_older_tile_without_any_signal_does_not_divide_by_zero(tmp_path, point_models):
    torch.save(older("V2", Point(3, 4), model_name="unet-dropout"), tmp_path / "old.pth")
    found, _ = load(tmp_path / "old.pth")
    mapped(found, write_raster(tmp_path / "s.tif", np.zeros((3, 40, 40), "uint8")), tmp_path / "m.tif")


@pytest.mark.parametrize("flags, says", [
    ({"num_classes": 5}, r"--num_classes 5: .*old.pth says 4"),
    ({"in_channels": 4}, r"--in_channels 4: .*old.pth says 3"),
    ({"model_name": "fpn"}, r"--model_name fpn: .*old.pth says unet-dropout"),
    ({"encoder_name": "resnet50"}, r"--encoder_name resnet50: .*old.pth says resnet18"),
])
def test_flags_that_contradict_the_checkpoint_are_refused_naming_both(tmp_path, point_models, flags, says):
    torch.save(older("V2", Point(3, 4), model_name="unet-dropout"), tmp_path / "old.pth")
    with pytest.raises(SetupError, match=says):
        load(tmp_path / "old.pth", **flags)


def test_flags_that_repeat_the_checkpoint_are_welcome(tmp_path, point_models):
    torch.save(older("V2", Point(3, 4), model_name="unet-dropout"), tmp_path / "old.pth")
    load(tmp_path / "old.pth", num_classes=4, in_channels=3, model_name="unet-dropout", encoder_name="resnet18")


def test_what_a_bare_state_dict_lacks_is_asked_for_by_flag(tmp_path, point_models):
    torch.save(older("bare", Point(3, 4)), tmp_path / "old.pth")
    with pytest.raises(SetupError, match="^--model_name, --in_channels, --num_classes: .*old.pth does not say"):
        load(tmp_path / "old.pth")
    with pytest.raises(SetupError, match="^--num_classes: "):
        load(tmp_path / "old.pth", model_name="unet-dropout", in_channels=3)
    with pytest.raises(SetupError, match="other shapes of conv.bias, conv.weight.*--num_classes"):
        load(tmp_path / "old.pth", model_name="unet-dropout", in_channels=3, num_classes=7)


@pytest.mark.parametrize("flags", [{"normalization_percentile": 99.0}, {"normalize_per_channel": True}])
def test_a_checkpoint_with_statistics_refuses_another_normalisation(tmp_path, point_models, flags):
    with pytest.raises(SetupError, match="^--normalization_percentile, --normalize_per_channel: .*m.pth holds the statistics"):
        load(save(tmp_path / "m.pth", Point(3, 4)), **flags)


def test_weights_that_are_not_finite_are_refused(tmp_path, point_models):
    net = Point(3, 4)
    net.conv.bias.data[1] = float("nan")
    torch.save(older("V2", net), tmp_path / "old.pth")
    with pytest.raises(SetupError, match="old.pth: holds weights that are not finite"):
        load(tmp_path / "old.pth")


def test_model_may_be_a_folder_with_one_final_network(tmp_path, point_models):
    save(tmp_path / "unet_final.pth", Point(3, 4, seed=1))
    save(tmp_path / "unet_best_iou.pth", Point(3, 4, seed=2))
    for path, name in [(tmp_path, "unet_final.pth"), (tmp_path / "model_final.pth", "unet_final.pth"), (tmp_path / "model_best_iou.pth", "unet_best_iou.pth")]:
        found, said = load(path)
        assert found.path == str(tmp_path / name) and f"using {tmp_path / name}" in said
    save(tmp_path / "fpn_final.pth", Point(3, 4))
    for path in (tmp_path, tmp_path / "model_final.pth"):
        with pytest.raises(SetupError, match="could be fpn_final.pth, unet_final.pth; name one"):
            load(path)
    with pytest.raises(SetupError, match="no such checkpoint"):
        load(tmp_path / "model_best_loss.pth")


def test_probabilities_are_multiples_of_2_to_the_minus_12_and_dropout_is_off(tmp_path):
    net = by_hand(tmp_path, UNetDropout(2, 3, 0.9, width=4).eval(), 2, 3)
    tile = torch.rand(2, 2, 32, 32)
    found = net.probabilities(tile)
    assert torch.equal(found, net.probabilities(tile)) and torch.equal((found * 4096).round(), found * 4096)
    assert (found.sum(1) - 1).abs().max() < 3 / 4096


def test_cuda_is_not_replaced_in_silence(tmp_path, point_models):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(SetupError, match="^--device cuda: this machine offers 0 CUDA devices"):
        load(save(tmp_path / "m.pth", Point(3, 4)), device="cuda")
