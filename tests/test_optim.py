"""Parameter groups, optimisers and the moving average of the weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from eoseg.optim import Average, make_optimizer


def options(**changes):
    return SimpleNamespace(**{"optimizer": "adamw", "learning_rate": 1e-3, "encoder_scale": 1.0, "layer_decay": 1.0, "weight_decay": None} | changes)


@pytest.fixture
def net():
    """Three stages of an encoder, and a decoder."""
    torch.manual_seed(0)
    return nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "three": nn.Linear(4, 4), "decoder": nn.Linear(4, 2)})


def stages_of(net):
    return [list(net[name].parameters()) for name in ("one", "two", "three")]


def rates(net, optimizer):
    """Learning rate and weight decay of every parameter, by name."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = {names[id(parameter)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups) == len(names)  # each parameter once
    return found


def test_biases_have_no_weight_decay_and_all_have_one_rate(net):
    found = rates(net, make_optimizer(net, stages_of(net), options()))
    assert {name: decay for name, (_, decay) in found.items()} == {name: 0.0 if name.endswith("bias") else 0.01 for name in found}
    assert {rate for rate, _ in found.values()} == {1e-3}


def test_the_encoder_has_its_share_and_stages_decay_towards_the_input(net):
    found = rates(net, make_optimizer(net, stages_of(net), options(encoder_scale=0.1, layer_decay=0.5)))
    assert [found[f"{name}.weight"][0] for name in ("decoder", "three", "two", "one")] == pytest.approx([1e-3, 0.5e-4, 0.25e-4, 0.125e-4])
    assert found["one.bias"][0] == found["one.weight"][0]


def test_groups_start_at_their_own_rate_which_schedules_scale(net):
    for group in make_optimizer(net, stages_of(net), options(encoder_scale=0.1)).param_groups:
        assert group["lr"] == group["base_lr"]


@pytest.mark.parametrize("name, kind, decay", [("adamw", torch.optim.AdamW, 1e-2), ("adam", torch.optim.Adam, 0.0), ("sgd", torch.optim.SGD, 1e-4)])
def test_every_optimiser_has_its_usual_weight_decay_or_the_one_given(net, name, kind, decay):
    usual, given = (make_optimizer(net, stages_of(net), options(optimizer=name, weight_decay=value)) for value in (None, 0.3))
    assert type(usual) is kind and rates(net, usual)["one.weight"][1] == decay and rates(net, given)["one.weight"][1] == 0.3


def test_one_step_of_sgd_with_nesterov_momentum_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    optimizer = make_optimizer(net, [], options(optimizer="sgd", learning_rate=0.1, weight_decay=0.0))
    net.weight.grad = torch.full((1, 1), 2.0)
    optimizer.step()
    assert net.weight.item() == pytest.approx(1 - 0.1 * (2 + 0.9 * 2))


# ---------------------------------------------------------------- the average


def test_the_average_follows_by_the_decay_and_forgets_its_start_quickly():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    average, wanted = Average(net, 0.5), 0.0
    for step in range(1, 20):
        nn.init.constant_(net.weight, float(step))
        average.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * step
        assert average.net.weight.item() == pytest.approx(wanted)


def test_the_average_takes_running_means_and_counts_along():
    net = nn.BatchNorm2d(2)
    average = Average(net, 0.9)
    net.running_mean.fill_(10)
    net.num_batches_tracked.fill_(7)
    average.update(net, 1)
    assert average.net.running_mean.tolist() == pytest.approx([10 * (1 - 2 / 11)] * 2) and average.net.num_batches_tracked == 7


def test_the_average_shares_nothing_with_the_network_and_keeps_its_memory_format():
    net = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    average = Average(net, 0.9)
    nn.init.zeros_(net.weight)
    assert average.net.weight.abs().sum() > 0 and not average.net.weight.requires_grad
    assert average.net.weight.is_contiguous(memory_format=torch.channels_last)
