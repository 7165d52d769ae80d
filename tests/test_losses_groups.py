"""Losses added up over the micro-batches of one optimiser step."""

import pytest
import torch
from test_losses import LOGITS, NAMES, REGIONS, TARGET, options, random_batch

from losses import IGNORE, make_loss


def group():
    """Three micro-batches of unequal size with unequal numbers of labelled pixels, the middle one without any; class weights."""
    torch.manual_seed(5)
    targets = [torch.randint(4, (n, 8, 8)) for n in (2, 1, 3)]
    targets[0][:, 1:] = IGNORE
    targets[1][:] = IGNORE
    return [torch.randn(len(t), 4, 8, 8) for t in targets], targets, torch.tensor([0.5, 0.0, 2.0, 1.5])


def added_up(loss, logits, targets):
    """The loss of a group, part by part, and the gradient of each micro-batch's logits."""
    logits = [x.clone().requires_grad_() for x in logits]
    total = 0
    for x, target, factors in zip(logits, targets, loss.factors(targets)):
        value = loss(x, target, factors)
        value.backward()
        total += value.detach()
    return total, torch.cat([x.grad for x in logits])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.2}, {"focal_gamma": 0.5}])
@pytest.mark.parametrize("name", ["ce", "focal"])
def test_a_group_of_micro_batches_is_one_large_batch_to_losses_of_pixels(name, changes, weighted):
    logits, targets, weight = group()
    loss = make_loss(options(name, **changes), weight if weighted else None)
    large = torch.cat(logits).requires_grad_()
    value = loss(large, torch.cat(targets))
    value.backward()
    total, gradient = added_up(loss, logits, targets)
    torch.testing.assert_close(total, value.detach())
    torch.testing.assert_close(gradient, large.grad, rtol=1e-5, atol=1e-8)
    plain = sum(loss(x, t) for x, t in zip(logits, targets)) / 3
    assert abs(plain - value) > 0.01  # which the plain mean is not


@pytest.mark.parametrize("name", REGIONS)
def test_a_group_of_micro_batches_is_the_mean_of_the_labelled_ones_to_losses_of_regions(name):
    logits, targets, weight = group()
    loss = make_loss(options(name), weight)
    total, gradient = added_up(loss, logits, targets)
    torch.testing.assert_close(total, (loss(logits[0], targets[0]) + loss(logits[2], targets[2])) / 2)
    assert torch.isfinite(gradient).all() and (gradient[2] == 0).all() and (gradient[3:] != 0).any()


def test_in_a_sum_each_part_has_its_own_factor():
    logits, targets, weight = group()
    total = {name: added_up(make_loss(options(name, dice_weight=0.3), weight), logits, targets)[0] for name in NAMES}
    torch.testing.assert_close(total["dice_ce"], 0.7 * total["ce"] + 0.3 * total["dice"])
    torch.testing.assert_close(total["focal_dice"], 0.7 * total["focal"] + 0.3 * total["dice"])
    torch.testing.assert_close(total["combo"], 0.35 * (total["ce"] + total["focal"]) + 0.3 * total["dice"])


def test_factors_by_hand():
    targets = [torch.tensor([[[0, 1, 255]]], dtype=torch.uint8), torch.full((1, 1, 3), 255), torch.tensor([[[1, 1, 1]]])]
    numbers = [[f.item() for f in row] for row in make_loss(options("dice_ce")).factors(targets)]
    assert numbers == [pytest.approx(row) for row in ([2 / 5, 1 / 2], [0, 0], [3 / 5, 1 / 2])]
    weighted = make_loss(options("dice_ce"), torch.tensor([2.0, 6.0])).factors(targets)
    assert [[f.item() for f in row] for row in weighted] == [pytest.approx(row) for row in ([8 / 26, 1 / 2], [0, 0], [18 / 26, 1 / 2])]
    assert all(f.dtype == torch.float32 and f.ndim == 0 for row in weighted for f in row)
    assert make_loss(options("ce")).factors([targets[1]] * 2) == [[0.0], [0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_one_is_the_loss_itself(name):
    for logits, target in ((LOGITS, TARGET), (LOGITS, torch.full_like(TARGET, IGNORE)), random_batch(3)):
        loss = make_loss(options(name, label_smoothing=0.1), torch.tensor([0.3, 1.0, 1.7]))
        assert torch.equal(loss(logits, target, loss.factors([target])[0]), loss(logits, target))
