"""From logits to probabilities to classes: the same in training, evaluation and prediction."""

import torch

from eoseg.scoring import STEPS  # probabilities are multiples of 2^-12: with weights of 2^-6 per axis, float32 sums are exact


def probabilities(logits, binary, temperature=1.0):
    """Probabilities (N, C, H, W) float32, multiples of 1 / STEPS, of logits of any float type; in binary mode C is 1: the probability of class 1.

    Args:
        temperature: by which logits are divided, above 0; more than 1 makes the network less sure.
    """
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    found = logits.sigmoid() if binary else logits.softmax(1)
    return rounded(found)


def rounded(found):
    """`found`, in place, to multiples of 1 / STEPS."""
    return found.mul_(STEPS).round_().div_(STEPS)


def decide(probability, threshold=0.5):
    """Classes int64 and the probability of each, both (..., H, W), from (..., C, H, W); C of 1 is binary: class 1 from `threshold` on."""
    if probability.shape[-3] > 1:
        best = probability.max(-3)
        return best.indices, best.values
    one = probability.select(-3, 0)
    is_one = one >= threshold
    return is_one.long(), torch.where(is_one, one, 1 - one)
