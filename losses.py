"""Every loss a network can be trained with. Needs torch alone.

Shapes, for all of them: logits (N, C, H, W) of any float type, C at least 2; target (N, H, W), int64 or uint8, with
classes 0 to C-1 or IGNORE, which counts nowhere. They return a float32 scalar, which is 0 with zero gradient when no
pixel is labelled. Inside they work in float32, because half precision overflows at 65,504 summed pixels. They look at
the whole batch at once, not patch by patch. On a CPU the same input gives the same bits, run after run, for a given
number of threads. A network of one logit z per pixel is seen as the two logits (0, z): `two_logits`.

Each has three ways in: `loss(logits, target)`; `of(log_prob, entropy, target)`, for what `pixel_terms` returns, so that
the parts of a sum share it; and `mass(target)`, how much a micro-batch counts beside the others of its group
(`WeightedSum.factors`).
"""

import torch
import torch.nn.functional as F
from torch import nn

IGNORE = 255


def two_logits(logits):
    """(N, 1, H, W) to (N, 2, H, W): softmax over (0, z) is the sigmoid of z. More channels pass unchanged."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def pixel_terms(logits, target):
    """What every loss starts from.

    Returns:
        log_prob (N, C, H, W) float32, logarithms of the probabilities; entropy (N, H, W), minus that of the true class,
        unweighted, 0 where ignored; target as int64.
    Raises:
        ValueError: logits (N, C, H, W) and target (N, H, W) do not belong together.
        IndexError: a label that is neither a class nor IGNORE (on a GPU an assertion on the device).
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit (N, C, H, W) and (N, H, W)")
    log_prob, target = logits.log_softmax(1, dtype=torch.float32), target.long()
    return log_prob, F.nll_loss(log_prob, target, ignore_index=IGNORE, reduction="none"), target


def pixel_weights(target, weight):
    """Each pixel's weight, (N, H, W) float32: that of its class, 1 without class weights, 0 where ignored."""
    known = target != IGNORE
    return known.float() if weight is None else weight.float().take(target.where(known, 0).long()) * known


def one_hot(log_prob, target):
    """The truth as 0 and 1, float32 and shaped as `log_prob`; 0 in every class where ignored."""
    classes = torch.arange(log_prob.shape[1], dtype=torch.float32, device=target.device)[:, None, None]
    # written as float32 at once: F.one_hot's int64, or bools in a product, cost several times as much
    return torch.eq(target.float()[:, None], classes, out=torch.empty_like(log_prob))


def ratio(total, mass):
    """total / mass; 0 with zero gradient where the mass is 0."""
    return torch.where(mass > 0, total / torch.where(mass > 0, mass, 1), 0)


def mean_over_classes(values, there, weight):
    """Mean of (C,) values over the classes that occur, weighted by (C,) `weight` unless None. there: (C,) pixels of each."""
    weights = (there > 0).float() if weight is None else (there > 0) * weight.float()
    return ratio((values * weights).sum(), weights.sum())


def any_labelled(target):
    """1.0 for a target with a labelled pixel, else 0.0, as a 0-dim tensor."""
    return (target != IGNORE).any().float()


class CrossEntropyLoss(nn.Module):
    """Minus the log of the true class's probability, averaged over labelled pixels with their class's weight.

    As torch's own, label smoothing included, but 0 instead of nan when no pixel is labelled. From 0 (perfect) upwards,
    without a bound; with smoothing the least value lies above 0, and probabilities of exactly 0 or 1 are never best.

    When not: alone and unweighted, for a class of few pixels. Pixels count here, not objects or classes, so that such a
    class is given up first; weigh it, or add Dice. But weights shift the probabilities: not where a confidence map is to
    be taken at its word. Smoothing draws the highest probabilities towards 1 - smoothing + smoothing / C, which tames a
    network that is too sure of itself and misleads about one that is not; nor is it for a network that is to teach
    another (Mueller et al. 2019, arXiv:1906.02629).

    Args:
        weight: (C,) class weights, 0 or more; None for 1 each.
        smoothing: share of the truth that is spread evenly over all C classes, the true one too; 0 is none.
    Raises:
        ValueError: smoothing outside [0, 1).
    Source:
        Label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture", arXiv:1512.00567.
    """

    def __init__(self, weight=None, smoothing=0.0):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be 0 or more and below 1, got {smoothing}")
        self.register_buffer("weight", weight)
        self.smoothing = smoothing

    def forward(self, logits, target):
        return self.of(*pixel_terms(logits, target))

    def of(self, log_prob, entropy, target):
        weights = pixel_weights(target, self.weight)
        total = (entropy * weights).sum()
        if self.smoothing:  # in torch's form each class's share carries that class's weight, not the pixel's
            shares = log_prob if self.weight is None else log_prob * self.weight.float()[:, None, None]
            spread = (-shares.mean(1) * (target != IGNORE)).sum()
            total = (1 - self.smoothing) * total + self.smoothing * spread
        return ratio(total, weights.sum())

    def mass(self, target):
        return pixel_weights(target, self.weight).sum()


class FocalLoss(nn.Module):
    """Cross entropy times (1 - p_t)^gamma: pixels already right count less. gamma 0 is cross entropy.

    From 0 (perfect) upwards, without a bound. p_t is the true class's probability, from the unweighted cross entropy:
    class weights scale the term, they do not bend the probability.

    When not: where labels are wrong in places, for it dwells on just those pixels. Where a confidence map is to be taken
    at its word: its least value is not at the true probabilities (Charoenphakdee et al. 2021, arXiv:2011.09172). It was
    made for detectors, with a thousand easy backgrounds to one object.

    Args:
        gamma: 0 or more. alpha: with two classes the factor of class 1, and 1 - alpha that of class 0; with more, one
            factor on the whole term.
        weight: (C,) class weights, 0 or more; the mean over pixels is weighted by them.
    Raises:
        ValueError: gamma below 0 or alpha outside [0, 1].
    Source:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002 (equation 5); there divided by the
        number of objects, here by the labelled pixels' weights.
    """

    def __init__(self, gamma=2.0, alpha=0.25, weight=None):
        super().__init__()
        if gamma < 0 or not 0 <= alpha <= 1:
            raise ValueError(f"gamma must be 0 or more and alpha from 0 to 1, got {gamma} and {alpha}")
        self.register_buffer("weight", weight)
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits, target):
        return self.of(*pixel_terms(logits, target))

    def of(self, log_prob, entropy, target):
        weights = pixel_weights(target, self.weight)
        missing = -torch.expm1(-entropy)  # 1 - p_t, exact when p_t is nearly 1
        alpha = torch.where(target == 1, self.alpha, 1 - self.alpha) if log_prob.shape[1] == 2 else self.alpha
        # where the class is certain, pow's own gradient is infinite for gamma below 1
        values = alpha * missing.clamp(min=1e-12) ** self.gamma * entropy
        return ratio((values * weights).sum(), weights.sum())

    def mass(self, target):
        return pixel_weights(target, self.weight).sum()


class Overlap(torch.autograd.Function):
    """Per class, the probability that lies on its own pixels, and on labelled pixels of other classes: each (C,).

    Written out because autograd keeps and fills twice as many tensors of the logits' size for it.
    """

    @staticmethod
    def forward(ctx, log_prob, truth, known):
        prob = log_prob.exp().mul_(known[:, None])
        right = prob * truth
        ctx.save_for_backward(prob, truth)
        hit = right.sum((0, 2, 3))
        return hit, right.neg_().add_(prob).sum((0, 2, 3))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, hit, false_alarm):
        prob, truth = ctx.saved_tensors
        hit, false_alarm = hit[:, None, None], false_alarm[:, None, None]
        return (truth * (hit - false_alarm)).add_(false_alarm).mul_(prob), None, None


class TverskyLoss(nn.Module):
    """One minus the Tversky index, to the power 1/gamma, averaged over the classes that occur in the batch.

    From 0 (perfect) to 1. The index is hits / (hits + alpha * false alarms + beta * misses), in sums of probabilities:
    alpha = beta = 0.5 is the Dice loss, alpha = beta = 1 the soft Jaccard loss (one minus intersection over union);
    beta > alpha punishes misses more than false alarms. gamma above 1 is the focal Tversky loss. A class that does not
    occur in the batch is left out: false alarms of it cost only through the class they were taken from.

    When not: alone, with batches that hold a few pixels of a class, whose index jumps from batch to batch; or where
    probabilities matter, which come out near 0 or 1 whether right or not (Yeung et al. 2022, "Calibrating the Dice
    Loss", doi:10.1007/s10278-022-00735-3); or at the start, on a class not seen at all, where the slope is nearly 0.
    Adding cross entropy mends all three in part. Jaccard J and Dice D = 2J / (1 + J) order predictions of one class
    alike: trying both seldom teaches much. gamma above 1, in spite of its name, steepens the slope where the index is
    near 1: with 4/3 classes above 0.68 are pushed harder than with 1, those below less, and late epochs are less steady.

    Args:
        alpha: cost of a false positive, 0 or more.
        beta: cost of a false negative (a miss), 0 or more.
        weight: (C,) class weights, 0 or more; the mean over classes is weighted by them.
        gamma: 1 to 3; 4/3 is the focal Tversky paper's.
    Raises:
        ValueError: a negative cost, both costs 0, or gamma out of range.
    Source:
        Salehi et al. 2017, "Tversky loss function for image segmentation", arXiv:1706.05721. Dice: Milletari et al.
        2016, "V-Net", arXiv:1606.04797, with plain sums in place of squares. Jaccard: Rahman & Wang 2016, "Optimizing
        Intersection-Over-Union in Deep Neural Networks for Image Segmentation", ISVC. Focal: Abraham & Khan 2018, "A
        novel focal Tversky loss function", arXiv:1810.07842, whose alpha is the cost of a miss and beta the other, and
        which sums over the classes.
    """

    def __init__(self, alpha=0.3, beta=0.7, weight=None, gamma=1.0):
        super().__init__()
        if min(alpha, beta) < 0 or alpha == beta == 0:
            raise ValueError(f"alpha and beta must be 0 or more and not both 0, got {alpha} and {beta}")
        if not 1 <= gamma <= 3:
            raise ValueError(f"gamma must be from 1 to 3, got {gamma}")
        self.register_buffer("weight", weight)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def forward(self, logits, target):
        return self.of(*pixel_terms(logits, target))

    def of(self, log_prob, entropy, target):
        truth = one_hot(log_prob, target)
        hit, false_alarm = Overlap.apply(log_prob, truth, (target != IGNORE).float())
        there = truth.sum((0, 2, 3))
        index = hit / (hit + self.alpha * false_alarm + self.beta * (there - hit)).clamp(min=1e-7)
        lost = 1 - index
        if self.gamma != 1:
            lost = lost.clamp(min=1e-7) ** (1 / self.gamma)  # at 0 the slope is infinite
        return mean_over_classes(lost, there, self.weight)

    def mass(self, target):
        return any_labelled(target)


class LovaszLoss(nn.Module):
    """The Lovasz extension of one minus intersection over union, averaged over the classes that occur in the batch.

    From 0 (perfect) to 1. With probabilities of 0 and 1 it is exactly one minus the batch's intersection over union;
    between them it is linear for as long as the order of the pixels by error stays the same. Binary networks are two
    classes here too, not the paper's hinge.

    When not: from the start of a training: the authors advise cross entropy first and this to finish, or both together,
    and warn that it wants a learning rate of its own. With small batches and many classes: the union is the batch's, not the data set's. Where time is
    short: it sorts the batch's pixels once per class, which on a CPU costs several times what Dice does.

    Args:
        weight: (C,) class weights, 0 or more; the mean over classes is weighted by them.
    Source:
        Berman et al. 2018, "The Lovasz-Softmax loss", arXiv:1705.08790, for the classes present, over the whole batch.
    """

    def __init__(self, weight=None):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, logits, target):
        return self.of(*pixel_terms(logits, target))

    def of(self, log_prob, entropy, target):
        prob, truth = (x.transpose(0, 1).flatten(1) for x in (log_prob.exp(), one_hot(log_prob, target)))  # (C, pixels)
        errors = (truth - prob).abs()
        slopes = lovasz_slopes(errors.detach(), truth, (target != IGNORE).flatten())
        return mean_over_classes((errors * slopes).sum(1), truth.sum(1), self.weight)

    def mass(self, target):
        return any_labelled(target)


def lovasz_slopes(errors, truth, known):
    """How much each pixel's error costs: the rise of 1 - IoU when the pixel joins those of larger error as a mistake.

    Args:
        errors: (C, P) float32, 0 to 1. truth: (C, P), 1 or 0. known: (P,) bool; an ignored pixel's slope is 0.
    """
    # As integers the bits of floats of 0 and more keep their order, and integers sort ten times faster on a CPU. Ignored
    # pixels come last, where nothing is left to be lost.
    keys = torch.where(known, -errors.view(torch.int32), 1)
    order = torch.stack([row.sort(stable=True).indices for row in keys])
    mine = truth.gather(1, order)
    missed = mine.cumsum(1, dtype=torch.int32)  # int32: float32 stops counting at 16.8 million
    left = missed[:, -1:] - missed  # the intersection
    union = left + torch.arange(1, errors.shape[1] + 1, dtype=torch.int32, device=errors.device)
    # the differences of 1 - left / union in closed form: subtracting neighbours would leave float32 two digits
    rise = torch.where(mine > 0, 1 / union, left / union / (union - 1).clamp(min=1))
    return torch.empty_like(errors).scatter_(1, order, rise)


class WeightedSum(nn.Module):
    """A sum of losses, each with its share, for networks of one logit or many.

    Args:
        parts: pairs of a share and a loss.
    """

    def __init__(self, *parts):
        super().__init__()
        self.shares = [share for share, _ in parts]
        self.parts = nn.ModuleList(part for _, part in parts)

    def forward(self, logits, target, factors=None):
        """The loss of a batch; or, with `factors`, what a micro-batch adds to the loss of its group."""
        terms = pixel_terms(two_logits(logits), target)
        factors = [1.0] * len(self.parts) if factors is None else factors
        return sum(share * factor * part.of(*terms) for share, factor, part in zip(self.shares, factors, self.parts))

    def factors(self, targets):
        """What each micro-batch of one optimiser step counts, so that `loss(logits, target, factors)` may be summed.

        Cross entropy and focal loss are means over pixels: there the factor is the micro-batch's part of the group's
        pixel weights, and the sum and its gradient are those of one large batch (but for label smoothing in a
        micro-batch whose every pixel is of a class of weight 0: it is left out). Losses of regions are no sums over
        pixels: theirs is the mean over the micro-batches with a labelled pixel, each with its own regions, and not the
        loss of the large batch.

        Args:
            targets: the group's targets, each (N, H, W), on the device of the loss.
        Returns:
            for each target a list of 0-dim float32 tensors, one per part of the sum; nothing waits for the device. They
            add up to 1 over the group, to 0 when none has a labelled pixel. A group of one has 1: the loss as it is.
        """
        masses = torch.stack([torch.stack([part.mass(target) for part in self.parts]) for target in targets])
        return [list(row) for row in ratio(masses, masses.sum(0))]


def make_loss(options, weight=None):
    """The loss `options.loss_type` names, from its focal_*, tversky_*, dice_weight and label_smoothing; one logit or many.

    Args:
        weight: (C,) float tensor of class weights, or None.
    Returns:
        a WeightedSum.
    """
    cross = CrossEntropyLoss(weight, options.label_smoothing)
    focal = FocalLoss(options.focal_gamma, options.focal_alpha, weight)
    dice = TverskyLoss(0.5, 0.5, weight)
    costs, w = (options.tversky_alpha, options.tversky_beta, weight), options.dice_weight
    recipes = {
        "ce": [(1.0, cross)],
        "dice": [(1.0, dice)],
        "focal": [(1.0, focal)],
        "tversky": [(1.0, TverskyLoss(*costs))],
        "focal_tversky": [(1.0, TverskyLoss(*costs, options.focal_tversky_gamma))],
        "lovasz": [(1.0, LovaszLoss(weight))],
        "jaccard": [(1.0, TverskyLoss(1.0, 1.0, weight))],
        "dice_ce": [(1 - w, cross), (w, dice)],
        "focal_dice": [(1 - w, focal), (w, dice)],
        "combo": [((1 - w) / 2, cross), ((1 - w) / 2, focal), (w, dice)],
    }
    return WeightedSum(*recipes[options.loss_type])


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
