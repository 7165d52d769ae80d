"""The optimiser and its parameter groups."""

import torch


def make_optimizer(net, encoder, config):
    """One AdamW, its groups made before the first step: encoder and rest, with and without weight decay."""
    inside = {id(parameter) for parameter in encoder.parameters()}
    groups = {}
    for parameter in net.parameters():
        groups.setdefault((id(parameter) in inside, parameter.ndim > 1), []).append(parameter)
    settings = [{"params": part, "weight_decay": config.weight_decay if decays else 0.0, "lr": config.learning_rate, "base_lr": config.learning_rate}
                for (_, decays), part in groups.items()]
    return torch.optim.AdamW(settings, fused=True)
