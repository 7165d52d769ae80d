"""The encoder's stages, and when they learn."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from eoseg import models, stages


def options(**changes):
    usual = {"model_name": "unet", "patch_size": None, "layer_decay": 1.0, "freeze_encoder": False, "freeze_epochs": 2, "gradual_unfreeze": False,
             "unfreeze_on_plateau": None, "epochs": 10}
    given = SimpleNamespace(**usual | changes)
    given.begins_frozen = given.freeze_encoder or given.gradual_unfreeze or given.unfreeze_on_plateau is not None
    return given


def names(net, parts):
    """Names of the encoder's parameters, stage by stage."""
    known = {id(parameter): name for name, parameter in models.encoder_of(net).named_parameters()}
    return [[known[id(parameter)] for parameter in stage] for stage in parts]


def staged(name, encoder="resnet18", bands=4):
    net = models.build_model(name, bands, 3, encoder)
    return net, stages.encoder_stages(net, options(model_name=name, gradual_unfreeze=True), bands)


def test_a_resnets_stages_are_its_stem_and_its_four_layers():
    net, parts = staged("unet")
    found = names(net, parts)
    assert found[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert [{name.split(".")[0] for name in stage} for stage in found[1:]] == [{"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]


@pytest.mark.parametrize("name, encoder, count", [
    ("unet", "mobilenet_v2", 5), ("unet", "efficientnet-b0", 5), ("unet", "densenet121", 5), ("unet", "vgg11", 5), ("fpn", "mit_b0", 4), ("unet", "tu-convnext_atto", 4),
    ("deeplabv3", "resnet18", 5), ("unet-dropout", "", 5), ("deeplabv3_mobilenet_v3_large", "", 5), ("deeplabv3_resnet50", "", 5),
])
def test_every_parameter_of_any_encoder_has_one_stage(name, encoder, count):
    net, parts = staged(name, encoder)
    assert len(parts) == count
    assert sorted(sum(names(net, parts), [])) == sorted(dict(models.encoder_of(net).named_parameters()))


def test_stages_are_not_looked_for_when_nothing_hangs_on_them(monkeypatch):
    monkeypatch.setattr(stages, "stages_by_features", lambda *_: pytest.fail("looked"))
    net = models.build_model("unet", 3, 2, "resnet18")
    part, = stages.encoder_stages(net, options(freeze_encoder=True), 3)
    assert len(part) == len(list(net.encoder.parameters()))


def test_looking_for_stages_leaves_the_network_and_the_random_state_as_they_were():
    net = models.build_model("unet", 3, 2, "resnet18")
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    stages.encoder_stages(net, options(layer_decay=0.7), 3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()) and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters()) and net.encoder.training


@pytest.mark.parametrize("changes, wanted", [
    ({}, [5, 5, 5]),
    ({"freeze_encoder": True}, [0, 0, 5, 5, 5]),
    ({"freeze_encoder": True, "freeze_epochs": 0}, [5]),
    ({"gradual_unfreeze": True}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]),
    ({"gradual_unfreeze": True, "freeze_encoder": True, "freeze_epochs": 1}, [0, 1, 2, 3, 4, 5, 5]),
    ({"gradual_unfreeze": True, "freeze_epochs": 0}, [5]),
    ({"unfreeze_on_plateau": 3, "freeze_encoder": True}, [0] * 12),
])
def test_how_many_stages_learn_in_each_epoch(changes, wanted):
    assert [stages.thawed(options(**changes), 5, epoch, False) for epoch in range(len(wanted))] == wanted


def test_a_plateau_lets_the_whole_encoder_go():
    assert stages.thawed(options(unfreeze_on_plateau=3), 5, 1, True) == 5


@pytest.mark.parametrize("learning", range(6))
def test_what_is_held_keeps_its_weights_and_its_running_means(learning):
    net, parts = staged("unet")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    stages.hold(net, parts, learning)
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    net(torch.randn(2, 4, 64, 64)).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in net.encoder.state_dict().items() if not torch.equal(value, before[name])}
    layers = ["layer4", "layer3", "layer2", "layer1", "conv1"][:learning]
    assert {name.split(".")[0].replace("bn1", "conv1") if name.startswith("bn1") else name.split(".")[0] for name in moved} == set(layers)
    if learning:
        assert any("running_mean" in name for name in moved)
    assert net.decoder.training


def test_letting_go_brings_training_mode_back_to_all():
    net, parts = staged("unet")
    stages.hold(net, parts, 0)
    assert not any(module.training for module in net.encoder.modules() if isinstance(module, nn.BatchNorm2d))
    stages.hold(net, parts, 5)
    assert all(module.training for module in net.modules()) and all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("changes, words", [
    ({}, ""), ({"freeze_encoder": True}, "frozen for 2 epochs"), ({"freeze_encoder": True, "freeze_epochs": 12}, "it never learns"),
    ({"gradual_unfreeze": True}, "one stage more learns every 2 epochs"), ({"unfreeze_on_plateau": 3}, "has not fallen for 3 epochs"),
])
def test_it_is_said_when_the_encoder_learns(changes, words):
    assert (words in " ".join(stages.said(options(**changes)))) and bool(stages.said(options(**changes))) == bool(words)
