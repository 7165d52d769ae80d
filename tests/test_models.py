"""The networks, their encoders, and where encoder weights come from."""

import inspect
import os
import re
import subprocess
import sys
import urllib.error

import pytest
import torch
from conftest import ROOT
from torch import nn

import model_training_v2 as training
from eoseg import encoders, models, tiles
from eoseg.config import NETWORKS, TrainingConfig
from eoseg.errors import SetupError

HEAVY = ("unet++", "manet", "deeplabv3_resnet50")
SMALL = "tu-mobilenetv3_small_050"


def options(model="unet", **changes):
    return TrainingConfig(model, "nowhere", **changes)


def loaded(state, path, model="linknet", encoder=SMALL, bands=3):
    """The encoder's weights after `state`, saved to `path`, was loaded through --encoder_weights; and what was said."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    net = models.build_model(model, bands, 3, encoder)
    said = encoders.load_encoder(net, options(model, encoder_name=encoder, encoder_weights=str(path)), bands)
    return models.encoder_of(net).state_dict(), said


@pytest.fixture(scope="module")
def published():
    """Weights as timm publishes them for the smallest MobileNetV3: its own names, with the classifier."""
    import timm

    torch.manual_seed(3)
    return timm.create_model("mobilenetv3_small_050").state_dict()


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("bands, outputs", [(5, 1), pytest.param(2, 7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in NETWORKS])
def test_every_network_takes_any_bands_and_keeps_the_size(name, bands, outputs):
    net = models.build_model(name, bands, outputs, "resnet18", dropout_rate=0.9)
    side = tiles.tile_size(name, 40)
    assert side % 32 == 0 and side >= 64
    dropouts = [module.eval() for module in net.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    assert {module.p for module in dropouts} == {0.9}
    x = torch.rand(2, bands, side, side)
    with torch.no_grad():
        sure = net(x)
        assert sure.shape == (2, outputs, side, side) and torch.equal(sure, net(x))
        for module in dropouts:
            module.train()
        assert not torch.equal(net(x), sure), "dropout changes nothing"


def test_the_lists_hold_what_the_contract_promises():
    wanted = "unet-dropout unet unet++ manet linknet fpn pspnet pan deeplabv3 deeplabv3+ deeplabv3_resnet50 deeplabv3_mobilenet_v3_large"
    assert set(wanted.split()) <= set(training.get_available_models())
    assert set("ce dice focal focal_dice tversky combo dice_ce focal_tversky lovasz jaccard".split()) == set(training.get_available_losses())


def test_the_older_signatures_still_serve():
    given = lambda function: {name: p.default for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD}
    full = given(training.train_and_save_model_v2_full)
    assert list(full)[:3] == ["model_name", "dataset_root", "mode"]
    assert {**full, "device": 0} | {"mode": "multiclass", "num_classes": 5, "batch_size": 8, "epochs": 100, "save_dir": "./trained_models",
                                    "encoder_name": "resnet34", "pretrained": True} == {**full, "device": 0}
    assert list(given(training.cross_validate_model_v2))[:4] == ["model_name", "dataset_root", "device", "n_splits"]
    assert given(training.cross_validate_model_v2)["n_splits"] == 5
    assert given(training.build_model_for_prediction) == {"name": inspect.Parameter.empty, "in_channels": 3, "classes": 5, "encoder_name": "resnet34",
                                                          "pretrained": False, "dropout_rate": 0.3}
    net = training.build_model_for_prediction("fpn", in_channels=4, classes=1, encoder_name=SMALL)
    assert not net.training and net(torch.zeros(1, 4, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in models.SMP])
def test_weights_keep_the_names_smp_gives_them(name):
    import segmentation_models_pytorch as smp

    theirs = smp.create_model(models.SMP[name], encoder_name="mobilenet_v2", encoder_weights=None, in_channels=4, classes=3).state_dict()
    ours = models.build_model(name, 4, 3, "mobilenet_v2")
    assert list(ours.state_dict()) == list(theirs)
    ours.load_state_dict(theirs, strict=True)


@pytest.mark.parametrize("model, encoder, words", [
    ("unet++", "mit_b0", ["unet++", "resnet34"]),
    ("deeplabv3", "densenet121", ["deeplabv3", "dilated", "resnet34"]),
    ("fpn", "tu-vit_tiny_patch16_224", ["fpn", "resnet34"]),
    ("unet", "resnet43", ["no such encoder", "resnet34", "resnet50"]),
    ("unet", "convnext_tiny", ["no such encoder", "tu-convnext_tiny"]),
    ("unet", "tu-nonsense", ["no such encoder"]),
])
def test_an_encoder_that_cannot_serve_is_said_before_data_is_read(script, model, encoder, words):
    status, _, said = script("main_v2", "--model", model, "--encoder_name", encoder, "--dataset_root", "nowhere", "--no_pretrained")
    assert status == 2 and said.startswith(f"error: --encoder_name {encoder}: ") and said.count("\n") == 1
    assert "nowhere" not in said and all(word in said for word in words)


@pytest.mark.parametrize("old, new", [("mobilenet_v3", "tu-mobilenetv3_large_100"), pytest.param("densenet264", "tu-densenet264d", marks=pytest.mark.slow)])
def test_older_encoder_names_are_translated(old, new):
    assert list(models.build_model("fpn", 3, 2, old).state_dict()) == list(models.build_model("fpn", 3, 2, new).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", models.SMP)
def test_the_encoders_recommended_for_every_network_serve_it(name):
    for encoder in ("resnet34", "resnet50", "efficientnet-b0", "mobilenet_v2"):
        models.check_model(options(name, encoder_name=encoder))


@pytest.mark.slow
def test_an_encoder_of_one_size_asks_for_that_patch_size():
    with pytest.raises(SetupError, match="^--encoder_name tu-swin_tiny_patch4_window7_224: .*--patch_size 224"):
        models.check_model(options("unet", encoder_name="tu-swin_tiny_patch4_window7_224"))
    models.check_model(options("unet", encoder_name="tu-swin_tiny_patch4_window7_224", patch_size=200))  # padded to 224


@pytest.mark.parametrize("model", ["deeplabv3", "deeplabv3+", "pan", "deeplabv3_mobilenet_v3_large"])
def test_a_batch_of_one_is_said_where_normalisation_needs_two(model):
    with pytest.raises(SetupError, match=f"^--batch_size 1: {re.escape(model)} .*give --batch_size 2"):
        models.check_model(options(model, encoder_name="resnet18", batch_size=1))


# ---------------------------------------------------------------- encoder weights


@pytest.mark.parametrize("prefix", ["", "model.", "encoder.", "module.", "module.encoder.", "encoder.model.", "backbone."])
@pytest.mark.parametrize("bands", [3, 5])
def test_a_local_file_is_loaded_whatever_stands_before_its_names(tmp_path, published, prefix, bands):
    state = {prefix + name: value for name, value in published.items()} | {"decoder.somewhere": torch.zeros(2)}
    own, said = loaded({"state_dict": state, "epoch": 7}, tmp_path / "w.pth", bands=bands)
    assert "w.pth" in said and SMALL in said
    for name, value in own.items():
        if name != "model.conv_stem.weight":
            assert torch.equal(value, published[name.removeprefix("model.")]), name
    first, theirs = own["model.conv_stem.weight"], published["conv_stem.weight"]
    for band in range(bands):  # the three in turn; the sum over bands keeps its size
        torch.testing.assert_close(first[:, band], theirs[:, band % 3] * 3 / bands)


def test_safetensors_and_files_of_before_torch_1_6_are_loaded(tmp_path, published):
    own, _ = loaded(published, tmp_path / "w.safetensors")
    assert torch.equal(own["model.blocks.1.0.conv_pw.weight"], published["blocks.1.0.conv_pw.weight"])
    torch.save(published, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert list(encoders.file_state(tmp_path / "old.pth")) == list(published)


def test_weights_without_batch_counters_are_loaded(tmp_path, published):
    older = {name: value for name, value in published.items() if not name.endswith("num_batches_tracked")}
    own, _ = loaded(older, tmp_path / "w.pth")
    assert torch.equal(own["model.bn1.running_var"], published["bn1.running_var"])


@pytest.mark.parametrize("source, model, encoder", [
    ("timm:convnext_atto", "fpn", "tu-convnext_atto"),  # timm's feature networks rename stages.0 to stages_0
    ("torchvision:densenet121", "unet", "densenet121"),  # smp's encoder has a load_state_dict of its own
    ("torchvision:mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "resnet34"),  # features.0 becomes 0
    pytest.param("torchvision:resnet50", "deeplabv3_resnet50", "resnet34", marks=pytest.mark.slow),
    pytest.param("timm:swin_tiny_patch4_window7_224", "fpn", "tu-swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
])
def test_files_as_published_fit_their_encoders(tmp_path, source, model, encoder):
    import timm
    import torchvision

    kind, name = source.split(":")
    state = (timm.create_model(name) if kind == "timm" else torchvision.models.get_model(name)).state_dict()
    own, _ = loaded(state, tmp_path / "w.pth", model, encoder)
    theirs = {float(value.double().sum()) for value in state.values()}
    assert all(float(value.double().sum()) in theirs for value in own.values())


@pytest.mark.parametrize("theirs, encoder", [("resnet34", "resnet18"), ("resnet18", "resnet34"), pytest.param("resnet50", "resnet34", marks=pytest.mark.slow), ("mobilenet_v2", "resnet18")])
def test_the_file_of_another_encoder_is_refused(tmp_path, theirs, encoder):
    import torchvision

    state = torchvision.models.get_model(theirs).state_dict()  # every weight of resnet18 has a namesake of its size in resnet34
    with pytest.raises(SetupError, match=r"^--encoder_weights .*w\.pth: .*name a file of the same encoder"):
        loaded(state, tmp_path / "w.pth", "unet", encoder)


@pytest.mark.parametrize("name, content", [("w.pth", b""), ("w.pth", b"<html>Sign in</html>"), ("w.safetensors", b""), ("w.safetensors", b"<html>" * 50)])
def test_a_file_that_holds_no_weights_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SetupError, match=f"{name}: is no"):
        encoders.file_state(tmp_path / name)


def test_encoder_weights_that_are_not_finite_are_refused(tmp_path, published):
    with pytest.raises(SetupError, match="bn1.weight.*not finite"):
        loaded(published | {"bn1.weight": published["bn1.weight"] * float("nan")}, tmp_path / "w.pth")


@pytest.mark.parametrize("model", ["unet", "deeplabv3_mobilenet_v3_large"])
def test_without_a_network_the_two_ways_out_are_named(tmp_path, monkeypatch, model):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")  # so that it is taken back afterwards
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    config = options(model, encoder_name="resnet18")
    with pytest.raises(SetupError, match="^--pretrained: .*--no_pretrained.*--encoder_weights FILE"):
        encoders.load_encoder(models.build_model(model, 3, 2, "resnet18"), config, 3)


@pytest.mark.slow
def test_without_a_network_the_error_comes_soon(tmp_path):
    from tinypatches import make

    words = ["--model", "unet", "--encoder_name", "resnet18", "--dataset_root", make(tmp_path / "data", (2, 1, 0)), "--save_dir", tmp_path / "out"]
    home = {"HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, ROOT / "main_v2.py", *words], env=os.environ | home, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: --pretrained: ") and not (tmp_path / "out").exists()


def test_imagenet_weights_reach_an_encoder_with_bands_of_its_own(monkeypatch):
    import segmentation_models_pytorch as smp

    torch.manual_seed(5)
    theirs = smp.encoders.get_encoder("densenet121", weights=None)
    monkeypatch.setattr(smp.encoders, "get_encoder", lambda *_, **__: theirs)
    monkeypatch.setattr(encoders, "offline_if_unreachable", lambda: None)
    net = models.build_model("unet", 4, 2, "densenet121")
    assert "imagenet" in encoders.load_encoder(net, options(encoder_name="densenet121"), 4)
    assert torch.equal(net.encoder.state_dict()["features.norm5.weight"], theirs.state_dict()["features.norm5.weight"])
    torch.testing.assert_close(net.encoder.features.conv0.weight[:, 3], theirs.features.conv0.weight[:, 0] * 3 / 4)


def test_a_network_without_published_weights_says_so():
    net = models.build_model("unet-dropout", 3, 2)
    assert encoders.load_encoder(net, options("unet-dropout"), 3) is None
    with pytest.raises(SetupError, match="^--encoder_weights imagenet: unet-dropout"):
        encoders.load_encoder(net, options("unet-dropout", encoder_weights="imagenet"), 3)


def test_auto_normalization_follows_the_weights_the_network_starts_from(tmp_path):
    from eoseg import checkpoint

    before = tmp_path / "before.pth"
    kind = {"kind": "zscore", "offset": [0.0], "scale": [1.0], "fill": [0.0]}
    checkpoint.save(before, model_state_dict={"w": torch.zeros(1)}, config={}, performance_metrics={}, normalization=kind, class_names=["a", "b"], input=None)
    assert encoders.usual_normalization(options(init_weights=str(before))) == "zscore"
    assert encoders.usual_normalization(options(pretrained=True)) == "zscore"
    assert encoders.usual_normalization(options(pretrained=False)) == "percentile"
