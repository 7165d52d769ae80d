"""The optimiser and its parameter groups."""

import copy

import torch

USUAL_DECAY = {"adamw": 1e-2, "adam": 0.0, "sgd": 1e-4}


def make_optimizer(net, stages, config):
    """One optimiser, its groups made before the first step and never again: by learning rate, with and without weight decay.

    The decoder has the full rate; the encoder's stages that times `config.encoder_scale`, and less by `config.layer_decay`
    from each to the next one towards the input (Bao et al. 2021, BEiT, arXiv:2106.08254, have it by block). Biases and
    normalisation layers have no weight decay.

    Args:
        stages: lists of the encoder's parameters, from the input to the deepest.
    """
    scales = {id(parameter): config.encoder_scale * config.layer_decay ** (len(stages) - i)
              for i, stage in enumerate(stages) for parameter in stage}
    groups = {}
    for parameter in net.parameters():
        groups.setdefault((scales.get(id(parameter)), parameter.ndim > 1), []).append(parameter)
    decay = USUAL_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay
    settings = []
    for (scale, decays), part in groups.items():
        rate = config.learning_rate * (1.0 if scale is None else scale)
        settings.append({"params": part, "weight_decay": decay if decays else 0.0, "lr": rate, "base_lr": rate})
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=0.9, nesterov=True, fused=True)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer](settings, fused=True)


class Average:
    """A moving average of a network's weights: `net`, a second network, which is validated and kept.

    The decay rises with the steps, min(decay, (1 + n) / (10 + n)), so that the first weights are soon forgotten.
    Running means of batch normalisation are averaged likewise, whole numbers are copied.

    Source:
        Polyak & Juditsky 1992; Tarvainen & Valpola 2017, "Mean teachers", arXiv:1703.01780.
    """

    def __init__(self, net, decay):
        self.net, self.decay = copy.deepcopy(net).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, net, step):
        """Take in `net` after its optimiser's step `step`, from 1."""
        pairs = list(zip(self.net.state_dict().values(), net.state_dict().values()))
        mine, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        torch._foreach_lerp_(mine, theirs, 1 - min(self.decay, (1 + step) / (10 + step)))
        for old, new in pairs:
            if not old.is_floating_point():
                old.copy_(new)
