"""Losses of regions: Tversky and its kin, Lovasz; against other people's where those are right, and by definition."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from test_losses import REGIONS, index_of, labels, of_probabilities, options, random_batch

from losses import IGNORE, LovaszLoss, TverskyLoss, make_loss

USUAL = {"mode": "multiclass", "from_logits": True, "smooth": 0.0, "ignore_index": IGNORE}  # right while every class occurs
THEIRS = {
    "dice": smp.losses.DiceLoss(**USUAL),
    "jaccard": smp.losses.JaccardLoss(**USUAL),
    "tversky": smp.losses.TverskyLoss(**USUAL, alpha=0.3, beta=0.7),
    "lovasz": smp.losses.LovaszLoss("multiclass", ignore_index=IGNORE),
}


@pytest.mark.parametrize("name", THEIRS)
def test_losses_of_regions_are_smps_where_every_class_occurs(name):
    logits, target = random_batch()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, wanted = make_loss(options(name))(ours, target), THEIRS[name](theirs, target)
    torch.testing.assert_close(value, wanted)
    value.backward(), wanted.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", REGIONS)
def test_a_class_that_does_not_occur_is_left_out(name):
    certain = torch.full((1, 3, 2, 2), -50.0)
    certain[:, 0] = 50
    assert make_loss(options(name))(certain, torch.zeros(1, 2, 2, dtype=torch.int64)).item() == pytest.approx(0, abs=1e-5)
    certain[0, :, 0, 0] = torch.tensor([-50, 50.0, -50])  # one pixel of four called class 1, which is nowhere: a miss of class 0
    cost = {"dice": 0.5, "tversky": 0.7, "focal_tversky": 0.7, "lovasz": 1, "jaccard": 1}[name]
    wanted = (1 - index_of(3, 0, 1, 0, cost)) ** (3 / 4 if name == "focal_tversky" else 1)
    assert make_loss(options(name))(certain, torch.zeros(1, 2, 2, dtype=torch.int64)).item() == pytest.approx(wanted)


@pytest.mark.parametrize("name", REGIONS)
def test_regions_are_counted_over_the_batch_not_patch_by_patch(name):
    logits, target = random_batch()
    loss = make_loss(options(name))
    stacked = logits.movedim(1, 0).reshape(1, 4, 18, 7), target.reshape(1, 18, 7)
    torch.testing.assert_close(loss(logits, target), loss(*stacked))
    apart = sum(loss(logits[i : i + 1], target[i : i + 1]) for i in range(2)) / 2
    assert abs(apart - loss(logits, target)) > 1e-4


def test_a_miss_costs_beta_and_a_false_alarm_alpha():
    everywhere, upper = torch.full((2, 2), 50.0), torch.tensor([[50.0, 50], [-50, -50]])  # where class 1 is called
    loss = TverskyLoss(alpha=0.3, beta=0.7)
    missed = loss(torch.stack([-upper, upper])[None], torch.ones(1, 2, 2, dtype=torch.int64))
    assert missed.item() == pytest.approx(1 - 2 / (2 + 0.7 * 2))  # 2 hits, 2 misses
    too_much = loss(torch.stack([-everywhere, everywhere])[None], torch.tensor([[[1, 1], [255, 0]]]))
    assert too_much.item() == pytest.approx((1 - 2 / (2 + 0.3) + 1) / 2)  # 2 hits, 1 false alarm; class 0 lost


def test_jaccard_is_dice_by_another_scale():
    p = torch.tensor([0.1, 0.4, 0.9])[None, None, None].logit()
    one = torch.tensor([0.0, 1.0])  # of class 1 alone
    dice, jaccard = (make_loss(options(name), one)(p, labels(0, 1, 1)) for name in ("dice", "jaccard"))
    torch.testing.assert_close(1 - jaccard, (1 - dice) / (1 + dice))


@pytest.mark.parametrize("gamma", [1, 4 / 3, 2, 3])
def test_focal_tversky_by_hand(gamma):
    logits = of_probabilities((0.8, 0.2), (0.3, 0.7), (0.6, 0.4))
    zero, one = index_of(0.8, 0.3 + 0.6, 0.2, 0.3, 0.7), index_of(0.7 + 0.4, 0.2, 0.3 + 0.6, 0.3, 0.7)
    wanted = ((1 - zero) ** (1 / gamma) + 3 * (1 - one) ** (1 / gamma)) / 4
    loss = make_loss(options("focal_tversky", focal_tversky_gamma=gamma), torch.tensor([1.0, 3.0]))
    assert loss(logits, labels(0, 1, 1)).item() == pytest.approx(wanted, rel=1e-5)


def test_focal_tversky_with_gamma_1_is_tversky():
    logits, target = random_batch()
    assert torch.equal(make_loss(options("focal_tversky", focal_tversky_gamma=1))(logits, target), make_loss(options("tversky"))(logits, target))


@pytest.mark.parametrize("gamma", [4 / 3, 3])
@pytest.mark.parametrize("sharpness", [5, 10, 15, 17, 20, 50, 200])
def test_focal_tversky_stays_calm_as_the_index_nears_1(gamma, sharpness):
    _, target = random_batch(2)
    logits = ((target == 1) * 2.0 - 1)[:, None].mul(sharpness).requires_grad_()  # one logit z, nowhere wrong
    value = make_loss(options("focal_tversky", focal_tversky_gamma=gamma))(logits, target)
    value.backward()
    assert 0 <= value.item() < 0.25 and logits.grad.abs().max() < 0.01


@pytest.mark.parametrize("make", [lambda: TverskyLoss(-0.1, 1), lambda: TverskyLoss(0, 0), lambda: TverskyLoss(gamma=0.9), lambda: TverskyLoss(gamma=3.1)])
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


# ---------------------------------------------------------------- Lovasz


def missing_overlap(wrong, own):
    """1 - IoU of a class with the pixels `own`, when just the pixels `wrong` are mistaken; both sets."""
    return 1 - len(own - wrong) / len(own | wrong)


def extension(errors, own):
    """The Lovasz extension of that set function, by the greedy formula that defines it."""
    total, wrong = 0.0, set()
    for pixel in np.argsort(-errors):
        total += errors[pixel] * (missing_overlap(wrong | {pixel}, own) - missing_overlap(wrong, own))
        wrong |= {pixel}
    return total


def by_definition(logits, target):
    """The mean over the classes that occur, in float64, of labelled pixels alone."""
    prob = logits.double().softmax(1).movedim(1, -1)[target != IGNORE].numpy()
    truth = target[target != IGNORE].numpy()
    return np.mean([extension(np.abs((truth == c) - prob[:, c]), set(np.flatnonzero(truth == c))) for c in np.unique(truth)])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 4, 9])
def test_lovasz_is_the_extension_by_definition(classes, seed):
    logits, target = random_batch(classes, seed=seed)
    target[target == 1] = IGNORE if seed == 0 else 0  # ignored here and there; class 1 does not occur
    assert LovaszLoss()(logits * 3, target).item() == pytest.approx(by_definition(logits * 3, target), rel=1e-5)
    assert LovaszLoss()(logits.round(), target).item() == pytest.approx(by_definition(logits.round(), target), rel=1e-5)  # equal errors


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    called, truth = torch.tensor([0, 0, 1, 1, 1, 0, 2, 2]), torch.tensor([0, 1, 1, 1, 0, 0, 2, 255])
    logits = torch.nn.functional.one_hot(called, 3).T[None, :, None] * 100.0
    assert LovaszLoss()(logits, truth[None, None]).item() == pytest.approx(1 - (2 / 4 + 2 / 4 + 1) / 3)


def test_lovasz_keeps_its_digits_over_many_pixels():
    torch.manual_seed(0)
    target = torch.randint(3, (1, 1200, 1200))
    prob = torch.rand(1, 3, 1200, 1200).softmax(1)
    logits = prob.log().requires_grad_()
    value = LovaszLoss()(logits, target)
    value.backward()
    errors = (torch.nn.functional.one_hot(target, 3).movedim(-1, 1) - prob.double()).abs().movedim(1, 0).reshape(3, -1)
    errors, order = errors.sort(1, descending=True)
    own = torch.stack([target.flatten() == c for c in range(3)]).gather(1, order).double()
    left, outside = own.sum(1, keepdim=True) - own.cumsum(1), (1 - own).cumsum(1)
    lost = 1 - left / (own.sum(1, keepdim=True) + outside)
    rise = lost.diff(dim=1, prepend=torch.zeros(3, 1))
    assert value.item() == pytest.approx(((errors * rise).sum(1).mean()).item(), rel=1e-6)
    slopes = torch.zeros_like(rise).scatter_(1, order, rise * (1 - 2 * own))  # of the probabilities: down for its own pixels
    slopes = slopes.view(3, 1, 1200, 1200).movedim(0, 1) / 3
    wanted = prob.double() * (slopes - (slopes * prob).sum(1, keepdim=True))
    assert (logits.grad - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_lovasz_ignores_just_as_if_the_pixels_were_not_there():
    logits, target = random_batch()
    kept = logits[:, :, 3:].clone().requires_grad_()
    whole = logits.clone().requires_grad_()
    values = LovaszLoss()(whole, target), LovaszLoss()(kept, target[:, 3:])  # rows 0 to 2 are ignored
    sum(values).backward()
    torch.testing.assert_close(*values)
    torch.testing.assert_close(whole.grad[:, :, 3:], kept.grad)
