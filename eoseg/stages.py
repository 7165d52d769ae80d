"""The encoder's stages: which of them learn, and from when on. The optimiser has all their parameters all the time."""

import numpy as np
import torch
from torch import nn

from eoseg.models import encoder_of
from eoseg.tiles import tile_size

MOST = 5  # stages of an encoder that is a mere row of layers


def encoder_stages(net, config, in_channels):
    """The encoder's parameters as lists, stage after stage from the input to the deepest; one list when nothing hangs on stages.

    A parameter's stage is the first of the encoder's features that it has a part in, so that any architecture has stages.
    """
    encoder = encoder_of(net)
    if not config.gradual_unfreeze and config.layer_decay == 1:
        return [list(encoder.parameters())]
    if isinstance(encoder, (nn.ModuleList, nn.ModuleDict)):  # layers in a row
        layers = [list(layer.parameters()) for layer in encoder.children()]
        layers = [layer for layer in layers if layer]
        return [[parameter for i in part for parameter in layers[i]] for part in np.array_split(range(len(layers)), min(MOST, len(layers)))]
    return stages_by_features(encoder, in_channels, tile_size(config.model_name, config.patch_size or 64))


def stages_by_features(encoder, in_channels, size):
    """The parameters each feature that the encoder returns hangs on, and no feature before it."""
    left, stages, training = list(encoder.parameters()), [], encoder.training
    with torch.random.fork_rng(devices=[]):
        for feature in encoder.eval()(torch.zeros(1, in_channels, size, size)):
            if not feature.requires_grad or not left:  # the image itself is the first feature
                continue
            gradients = torch.autograd.grad(feature.sum(), left, retain_graph=True, allow_unused=True)
            stages.append([parameter for parameter, gradient in zip(left, gradients) if gradient is not None])
            left = [parameter for parameter, gradient in zip(left, gradients) if gradient is None]
    encoder.train(training)
    stages = [stage for stage in stages if stage]
    stages[-1] += left  # parts that no feature shows
    return stages


def thawed(config, count, epoch, plateau):
    """How many of `count` stages, the deepest first, learn in the epoch after `epoch` others.

    Args:
        plateau: has the validation loss stalled for --unfreeze_on_plateau epochs yet?
    """
    if config.unfreeze_on_plateau:
        return count if plateau else 0
    if config.gradual_unfreeze:
        return min(count, epoch // config.freeze_epochs) if config.freeze_epochs else count
    return 0 if config.freeze_encoder and epoch < config.freeze_epochs else count


def hold(net, stages, learning):
    """Training mode, but hold all but the `learning` deepest stages still.

    What is held is in eval mode: else its batch statistics would drift although no weight moves.
    """
    for i, stage in enumerate(stages):
        for parameter in stage:
            parameter.requires_grad_(i >= len(stages) - learning)
    net.train()
    for module in encoder_of(net).modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def said(config):
    """Lines on when the encoder learns; none when it always does."""
    if config.unfreeze_on_plateau:
        return [f"encoder   frozen until the validation loss has not fallen for {config.unfreeze_on_plateau} epochs"]
    if not config.begins_frozen or not config.freeze_epochs:
        return []
    if config.gradual_unfreeze:
        return [f"encoder   frozen; one stage more learns every {config.freeze_epochs} epochs, the deepest first"]
    beyond = "" if config.freeze_epochs < config.epochs else f", which is all of the run's {config.epochs}: it never learns"
    return [f"encoder   frozen for {config.freeze_epochs} epochs{beyond}"]
