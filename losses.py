"""Every loss a network can be trained with. Needs torch alone.

Shapes, for all of them: logits (N, C, H, W) of any float type, C at least 2; target (N, H, W) int64 with classes 0 to
C-1 or `ignore`. They return a float32 scalar, which is 0 with zero gradient when no pixel is labelled. Inside they work
in float32, because half precision overflows at 65,504 summed pixels. A network of one logit z per pixel is seen as the
two logits (0, z): `two_logits`.
"""

import torch
import torch.nn.functional as F
from torch import nn

IGNORE = 255


def two_logits(logits):
    """(N, 1, H, W) to (N, 2, H, W): softmax over (0, z) is the sigmoid of z. More channels pass unchanged."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def check_sizes(logits, target):
    """Raises ValueError when logits (N, C, H, W) and target (N, H, W) do not belong together."""
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit (N, C, H, W) and (N, H, W)")


def pixel_terms(logits, target, weight, ignore):
    """What the pixel-wise losses share.

    Returns:
        minus the log of the probability of the true class, unweighted, (N, H, W); and each pixel's weight, (N, H, W):
        that of its class, 0 where ignored.
    """
    check_sizes(logits, target)
    known = target != ignore
    clean = target.where(known, 0)
    entropy = F.cross_entropy(logits.float(), clean, reduction="none")
    return entropy, known.float() if weight is None else weight.float()[clean] * known


def weighted_mean(values, weights):
    """sum(values * weights) / sum(weights); 0 when all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-12)


class CrossEntropyLoss(nn.Module):
    """Minus the log of the true class's probability, averaged over labelled pixels with their class's weight.

    As torch's own, but 0 instead of nan when no pixel is labelled. From 0 (perfect) upwards, without a bound.

    Args:
        weight: (C,) class weights, 0 or more; None for 1 each.
    """

    def __init__(self, weight=None, ignore=IGNORE):
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore = ignore

    def forward(self, logits, target):
        return weighted_mean(*pixel_terms(logits, target, self.weight, self.ignore))


class FocalLoss(nn.Module):
    """Cross entropy times (1 - p_t)^gamma: pixels already right count less. gamma 0 is cross entropy.

    p_t is the true class's probability, from the unweighted cross entropy: class weights scale the term, they do not
    bend the probability.

    Args:
        gamma: 0 or more. alpha: with two classes the factor of class 1, and 1 - alpha that of class 0; with more, one
            factor on the whole term.
        weight: (C,) class weights, 0 or more; the mean over pixels is weighted by them.
    Raises:
        ValueError: gamma below 0 or alpha outside [0, 1].
    Source:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002 (equation 5).
    """

    def __init__(self, gamma=2.0, alpha=0.25, weight=None, ignore=IGNORE):
        super().__init__()
        if gamma < 0 or not 0 <= alpha <= 1:
            raise ValueError(f"gamma must be 0 or more and alpha from 0 to 1, got {gamma} and {alpha}")
        self.register_buffer("weight", weight)
        self.gamma, self.alpha, self.ignore = gamma, alpha, ignore

    def forward(self, logits, target):
        entropy, weights = pixel_terms(logits, target, self.weight, self.ignore)
        missing = -torch.expm1(-entropy)  # 1 - p_t, exact when p_t is nearly 1
        alpha = torch.where(target == 1, self.alpha, 1 - self.alpha) if logits.shape[1] == 2 else self.alpha
        # where the class is certain, pow's own gradient is infinite for gamma below 1
        return weighted_mean(alpha * missing.clamp(min=1e-12) ** self.gamma * entropy, weights)


class TverskyLoss(nn.Module):
    """One minus the Tversky index, averaged over the classes that occur in the batch.

    From 0 (perfect) to 1. alpha = beta = 0.5 is the Dice loss; beta > alpha punishes misses more than false alarms.
    Counted over the whole batch, not patch by patch. A class that does not occur in the batch is left out: false alarms
    of it cost only through the class they were taken from.

    Args:
        alpha: cost of a false positive, 0 or more.
        beta: cost of a false negative (a miss), 0 or more.
        weight: (C,) class weights, 0 or more; the mean over classes is weighted by them.
    Raises:
        ValueError: a negative cost, or both 0.
    Source:
        Salehi et al. 2017, "Tversky loss function for image segmentation", arXiv:1706.05721. Dice: Milletari et al.
        2016, "V-Net", arXiv:1606.04797, with plain sums in place of squares.
    """

    def __init__(self, alpha=0.3, beta=0.7, weight=None, ignore=IGNORE):
        super().__init__()
        if min(alpha, beta) < 0 or alpha == beta == 0:
            raise ValueError(f"alpha and beta must be 0 or more and not both 0, got {alpha} and {beta}")
        self.register_buffer("weight", weight)
        self.alpha, self.beta, self.ignore = alpha, beta, ignore

    def forward(self, logits, target):
        check_sizes(logits, target)
        known = (target != self.ignore)[:, None]
        truth = F.one_hot(target.where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1) * known
        prob = logits.float().softmax(1) * known
        over = (0, 2, 3)
        hit, called, there = (prob * truth).sum(over), prob.sum(over), truth.sum(over)
        index = hit / (hit + self.alpha * (called - hit) + self.beta * (there - hit)).clamp(min=1e-7)
        seen = (there > 0).float()
        return weighted_mean(1 - index, seen if self.weight is None else seen * self.weight)


class WeightedSum(nn.Module):
    """A sum of losses, each with its share."""

    def __init__(self, *parts):
        super().__init__()
        self.shares = [share for share, _ in parts]
        self.parts = nn.ModuleList(part for _, part in parts)

    def forward(self, logits, target):
        return sum(share * part(logits, target) for share, part in zip(self.shares, self.parts))


class TwoLogits(nn.Module):
    """Lets a loss of classes take a network's single logit."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, logits, target):
        return self.loss(two_logits(logits), target)


def make_loss(options, weight=None):
    """The loss `options.loss_type` names, from its focal_*, tversky_* and dice_weight; one logit or many.

    Args:
        weight: (C,) float tensor of class weights, or None.
    """
    cross = CrossEntropyLoss(weight)
    focal = FocalLoss(options.focal_gamma, options.focal_alpha, weight)
    dice = TverskyLoss(0.5, 0.5, weight)
    w = options.dice_weight
    recipes = {
        "ce": [(1.0, cross)],
        "dice": [(1.0, dice)],
        "focal": [(1.0, focal)],
        "tversky": [(1.0, TverskyLoss(options.tversky_alpha, options.tversky_beta, weight))],
        "dice_ce": [(1 - w, cross), (w, dice)],
        "focal_dice": [(1 - w, focal), (w, dice)],
        "combo": [((1 - w) / 2, cross), ((1 - w) / 2, focal), (w, dice)],
    }
    return TwoLogits(WeightedSum(*recipes[options.loss_type]))


def class_weights(counts, method="inverse_sqrt", cap=10.0):
    """Weights that let rare classes count more: mean 1 over the classes that occur, at most `cap`, 0 for one that never does.

    What a capped class may not have goes to the others, in proportion.

    Args:
        counts: labelled training pixels per class.
        method: inverse_freq (1/n), inverse_sqrt (1/sqrt(n)), or effective_samples ((1 - b) / (1 - b^n), b = 0.9999:
            Cui et al. 2019, arXiv:1901.05555).
    Returns:
        (C,) float32 tensor.
    """
    n = torch.as_tensor(counts, dtype=torch.float64)
    seen = n > 0
    beta = 0.9999
    raw = {
        "inverse_freq": lambda: 1 / n,
        "inverse_sqrt": lambda: n**-0.5,
        "effective_samples": lambda: (1 - beta) / (1 - beta**n),
    }[method]()
    if not seen.any():
        return torch.ones(len(n))
    capped = torch.zeros_like(seen)
    while True:  # at most a round per class
        rest = seen & ~capped
        share = (seen.sum() - cap * capped.sum()) / raw[rest].sum()
        weights = torch.where(rest, raw * share, cap * capped)
        if not (weights > cap).any():
            return weights.float()
        capped |= weights > cap


def chosen_weights(options, counts):
    """Class weights as `options` asks: given, counted from labelled training pixels per class, or None. (C,) float32."""
    if options.custom_class_weights:
        return torch.tensor(options.custom_class_weights, dtype=torch.float32)
    return class_weights(counts, options.class_weight_method) if options.use_class_weights else None
