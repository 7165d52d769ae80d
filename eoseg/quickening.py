"""A trained network made quicker without another answer: batch normalisation folded into convolutions, weights in the type they are used in."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from eoseg.device import autocast, translate
from eoseg.models import PICKY
from eoseg.tiles import tile_size

CONVOLUTIONS = {"Conv2d", "ConvTranspose2d", "Conv2dSame", "Conv2dStaticSamePadding"}  # those that use their weights as they are; timm's and smp's among them
NORMALISATIONS = {"BatchNorm2d", "BatchNormAct2d"}  # torch's, and timm's with an activation behind it
TOLERANCE = 1e-3  # of the largest logit: by how much folding may change one


def quicken(network, compile_it, say=print):
    """Make all members of a network.Network quicker, in place; calling it again changes nothing.

    Args:
        compile_it: have torch.compile translate them too.
    """
    for one in network.members:
        fold(one.net, one.in_channels, tile_size(one.name, 32), one.device)
        if one.amp_dtype is not None:
            narrow(one)
        one.net.to(memory_format=torch.channels_last)
        if compile_it and one.net._compiled_call_impl is None:
            say(translate(one.net, one.device))


def narrow(network):
    """Keep the weights of plain convolutions in the type autocast would turn them to for each batch; nothing changes where that does not work."""
    plain = [layer for layer in network.net.modules() if type(layer) in (nn.Conv2d, nn.ConvTranspose2d) and layer.weight.dtype == torch.float32]
    kept = [(part, part.data) for layer in plain for part in layer.parameters()]
    if not kept:
        return
    for part, data in kept:
        part.data = data.to(network.amp_dtype)
    try:
        with torch.inference_mode(), autocast(network.device, network.amp_dtype):
            network.net(sample(network.in_channels, tile_size(network.name, 32), network.device))
    except PICKY:  # a layer that leaves autocast wants float32
        for part, data in kept:
            part.data = data


def sample(bands, size, device):
    """Noise (1, bands, size, size), the same each time."""
    return torch.randn(1, bands, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def fold(net, bands, size, device):
    """Fold batch normalisations into the convolutions before them, in place; all or nothing: where the logits would change, none is.

    Args:
        net: in eval mode, float32. bands: it takes. size: of a square it can take.
    Returns:
        how many were folded.
    """
    if not any(type(layer).__name__ in NORMALISATIONS for layer in net.modules()):
        return 0
    tile = sample(bands, size, device)
    try:
        pairs, before = pairs_of(net, tile)
    except PICKY:  # a network for tiles of one size
        return 0
    undo = [(conv, conv.weight, conv.bias) for conv, _ in pairs]
    with torch.no_grad():
        for conv, norm in pairs:
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
                                                          transpose=isinstance(conv, nn.ConvTranspose2d))
        replace(net, {norm: rest_of(norm) for _, norm in pairs})
        if answers_alike(net, tile, before):
            return len(pairs)
        for conv, weight, bias in undo:
            conv.weight, conv.bias = weight, bias
        replace(net, {rest_of(norm): norm for _, norm in pairs})
    return 0


def answers_alike(net, tile, before):
    """Does `net` give the logits `before` of `tile`, but for rounding?"""
    try:
        return bool(abs(net(tile) - before).max() <= TOLERANCE * abs(before).max())
    except (*PICKY, AttributeError):  # it looks for what a folded layer had
        return False


def rest_of(norm):
    """What a batch normalisation does besides normalising: an activation, in timm's; remembered, so that it can be found again."""
    if not hasattr(norm, "rest"):
        norm.__dict__["rest"] = nn.Sequential(norm.drop, norm.act) if type(norm).__name__ == "BatchNormAct2d" else nn.Identity()
    return norm.__dict__["rest"]


def replace(net, others):
    """Put modules in place of others, wherever they stand in `net`: dict old -> new."""
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):
            if child in others:
                setattr(parent, name, others[child])


def pairs_of(net, tile):
    """The convolutions whose output goes to a batch normalisation and nowhere else, [(convolution, normalisation)], and the logits of `tile`.

    What goes where is read off the graph that autograd keeps, so that any architecture will do.
    """
    made, taken, calls, hooks = {}, [], {}, []

    def conv_ran(layer, inputs, output):
        calls[layer] = calls.get(layer, 0) + 1
        made[output.grad_fn] = layer

    def norm_ran(layer, inputs):
        calls[layer] = calls.get(layer, 0) + 1
        taken.append((inputs[0].grad_fn, layer))

    for layer in net.modules():
        kind = type(layer).__name__
        if kind in CONVOLUTIONS and not (isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1):  # torch cannot fold into those
            hooks.append(layer.register_forward_hook(conv_ran))
        elif kind in NORMALISATIONS and layer.running_mean is not None and layer.affine:
            hooks.append(layer.register_forward_pre_hook(norm_ran))
    try:
        with torch.enable_grad():
            logits = net(tile.clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    uses = uses_of(logits.grad_fn)
    found = [(made[node], norm) for node, norm in taken if node in made and uses.get(node) == 1]
    return [(conv, norm) for conv, norm in found if calls[conv] == calls[norm] == 1], logits.detach()


def uses_of(last):
    """How often each node of an autograd graph is the input of another, by node; `last` is used once."""
    uses, todo = {last: 1}, [last]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                if node not in uses:
                    todo.append(node)
                uses[node] = uses.get(node, 0) + 1
    return uses
