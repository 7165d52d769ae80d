"""A network made quicker gives the answers it gave before, or is left as it was."""

import pytest
import torch
from tinynet import by_hand
from torch import nn
from torch.nn import functional as F

from eoseg import models
from eoseg.quickening import fold, narrow, quicken


class Net(nn.Module):
    """Layers by name, and a function that says how they are put together."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers, self.how = nn.ModuleDict(layers), forward

    def forward(self, x):
        return self.how(x, **self.layers)


class Conv2dSame(nn.Conv2d):
    """A convolution whose output does not follow its weights in proportion."""

    def forward(self, x):
        return 2 * super().forward(x) + super().forward(x) ** 2


class Fixed(nn.Module):
    """Takes tiles of 48 pixels alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        assert x.shape[-1] == 46, "this network takes 48 pixels"
        return x


def conv(inputs=3, outputs=4, kind=nn.Conv2d, **settings):
    return kind(inputs, outputs, 3, **{"padding": 1, "bias": False} | settings)


def norm(count=4):
    return nn.BatchNorm2d(count)


def sequence(x, **layers):
    for layer in layers.values():
        x = layer(x)
    return x


def nosy(x, conv, norm):
    return norm(conv(x)) * norm.weight.sum()


def functional(x, conv, norm):
    return F.batch_norm(conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)


NETS = {  # how many normalisations can be folded, and the net
    "conv, norm, relu": (1, lambda: Net(sequence, a=conv(), b=norm(), c=nn.ReLU())),
    "a bias": (1, lambda: Net(sequence, a=conv(bias=True), b=norm())),
    "groups": (1, lambda: Net(sequence, a=conv(4, 8, groups=4, stride=2), b=norm(8))),
    "transposed": (1, lambda: Net(sequence, a=conv(outputs=5, kind=nn.ConvTranspose2d, stride=2), b=norm(5))),
    "transposed with groups": (0, lambda: Net(sequence, a=conv(4, 8, kind=nn.ConvTranspose2d, groups=2), b=norm(8))),
    "transposed, each channel alone": (0, lambda: Net(sequence, a=conv(4, 4, kind=nn.ConvTranspose2d, groups=4), b=norm())),
    "one after the other": (2, lambda: Net(sequence, a=conv(), b=norm(), c=nn.ReLU(), d=conv(4, 6), e=norm(6))),
    "nested": (2, lambda: nn.Sequential(nn.Sequential(nn.Sequential(conv(), norm()), nn.ReLU(inplace=True)), nn.Sequential(conv(4), nn.Sequential(norm())))),
    "norm before conv": (0, lambda: Net(sequence, a=norm(3), b=nn.ReLU(), c=conv())),
    "relu between": (0, lambda: Net(sequence, a=conv(), b=nn.ReLU(), c=norm())),
    "the output is used twice, that of another once": (1, lambda: Net(lambda x, a, b, c, d: (y := a(x)) + b(y) + d(c(x)), a=conv(), b=norm(), c=conv(), d=norm())),
    "a shortcut": (1, lambda: Net(lambda x, a, b: x + b(a(x)), a=conv(3, 3), b=norm(3))),
    "a norm used twice, another once": (1, lambda: Net(lambda x, a, b, c, d: d(a(x)) + c(b(x)) + c(x), a=conv(3, 3), b=conv(3, 3), c=norm(3), d=norm(3))),
    "a conv used twice, another once": (1, lambda: Net(lambda x, a, b, c, d, e: b(a(x)) + c(a(x + 1)) + e(d(x)), a=conv(), b=norm(), c=norm(), d=conv(), e=norm())),
    "a norm whose numbers are used elsewhere": (0, lambda: Net(nosy, conv=conv(), norm=norm())),
    "a norm called as a function": (0, lambda: Net(functional, conv=conv(), norm=norm())),
    "a norm without numbers of its own": (0, lambda: Net(sequence, a=conv(), b=nn.BatchNorm2d(4, affine=False))),
    "a norm of each batch": (0, lambda: Net(sequence, a=conv(), b=nn.BatchNorm2d(4, track_running_stats=False))),
    "no norm": (0, lambda: Net(sequence, a=conv())),
}


def ready(make, seed=0):
    """A net in eval mode whose normalisations have learned something."""
    torch.manual_seed(seed)
    net = make().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for part, low, high in ((layer.running_mean, -1, 1), (layer.running_var, 0.3, 3), (layer.weight, 0.5, 2), (layer.bias, -1, 1)):
                if part is not None:
                    nn.init.uniform_(part, low, high)
    return net


def answers(net, bands=3, size=32):
    with torch.no_grad():
        return net(torch.randn(2, bands, size, size, generator=torch.Generator().manual_seed(1)))


def hooks_of(net):
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in net.modules())


# ---------------------------------------------------------------- folding


@pytest.mark.parametrize("kind", NETS)
def test_normalisations_right_behind_a_convolution_are_folded_and_no_others(kind):
    count, make = NETS[kind]
    net, bands = ready(make), 4 if "groups" in kind or "alone" in kind else 3
    before, there = answers(net, bands), sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    assert fold(net, bands, 32, torch.device("cpu")) == count
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()) == there - count
    assert abs(answers(net, bands) - before).max() <= 1e-5 * abs(before).max()
    assert hooks_of(net) == 0 and fold(net, bands, 32, torch.device("cpu")) == 0


def test_all_30_normalisations_of_a_unet_with_resnet18_are_folded():
    net = ready(lambda: models.build_model("unet", 3, 4, "resnet18"))
    before = answers(net, size=64)
    assert fold(net, 3, 64, torch.device("cpu")) == 30
    assert abs(answers(net, size=64) - before).max() <= 1e-5 * abs(before).max()


def test_an_activation_within_a_normalisation_stays():
    from timm.layers import BatchNormAct2d

    net = ready(lambda: Net(sequence, a=conv(), b=BatchNormAct2d(4)))
    before = answers(net)
    assert fold(net, 3, 32, torch.device("cpu")) == 1
    assert before.min() == answers(net).min() == 0 and abs(answers(net) - before).max() <= 1e-5 * before.max()


def test_folding_that_would_change_the_answer_is_undone_wholly():
    net = ready(lambda: Net(sequence, a=conv(), b=norm(), c=conv(4, kind=Conv2dSame), d=norm()))
    before, layers, weights = answers(net), list(net.modules()), list(net.state_dict(keep_vars=True).items())
    assert fold(net, 3, 32, torch.device("cpu")) == 0
    after = list(net.state_dict(keep_vars=True).items())
    assert [name for name, _ in weights] == [name for name, _ in after] and all(one is two for (_, one), (_, two) in zip(weights, after))
    assert list(net.modules()) == layers and torch.equal(answers(net), before)


def test_a_network_for_tiles_of_another_size_is_left_alone():
    net = ready(Fixed)
    assert fold(net, 3, 32, torch.device("cpu")) == 0 and hooks_of(net) == 0
    assert fold(net, 3, 48, torch.device("cpu")) == 1


# ---------------------------------------------------------------- the type of the weights


def small():
    return ready(lambda: Net(sequence, a=conv(bias=True), b=norm(), c=nn.ReLU(), d=conv(4, 4, kind=nn.ConvTranspose2d), e=norm(), f=conv(4, 3)))


def network(folder, net, amp_dtype=None):
    return by_hand(folder, net, 3, 3, amp_dtype=amp_dtype)


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_making_a_network_quicker_twice_changes_nothing_more(tmp_path, amp_dtype):
    one = network(tmp_path, small(), amp_dtype)
    quicken(one, False)
    layers, weights = list(one.net.modules()), {name: part.clone() for name, part in one.net.state_dict().items()}
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    quicken(one, False)
    assert list(one.net.modules()) == layers and all(torch.equal(part, weights[name]) and part.dtype == weights[name].dtype for name, part in one.net.state_dict().items())


def test_bfloat16_weights_give_nearly_the_probabilities_of_float32(tmp_path):
    tiles = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    exact = network(tmp_path, small()).probabilities(tiles)
    one = network(tmp_path, small(), torch.bfloat16)
    quicken(one, False)
    assert {part.dtype for part in one.net.state_dict().values()} == {torch.bfloat16}
    found = one.probabilities(tiles)
    assert found.dtype == torch.float32 and 0 < abs(found - exact).max() < 0.02


def test_every_member_of_an_ensemble_is_made_quicker(tmp_path):
    one, other = network(tmp_path, small()), network(tmp_path, small())
    quicken(one._replace(others=(other,)), False)
    assert not any(isinstance(layer, nn.BatchNorm2d) for part in (one, other) for layer in part.net.modules())


def test_a_network_that_leaves_autocast_keeps_its_weights_to_the_last_bit(tmp_path):
    def outside(x, a, b):
        with torch.autocast("cpu", enabled=False):
            return b(a(x).float())

    one = network(tmp_path, ready(lambda: Net(outside, a=conv(bias=True), b=conv(4, 3))), torch.bfloat16)
    weights = {name: part.clone() for name, part in one.net.state_dict().items()}
    narrow(one)
    assert all(part.dtype == torch.float32 and torch.equal(part, weights[name]) for name, part in one.net.state_dict().items())
