"""Every loss: numbers worked out by hand, and what all of them promise."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import losses
from losses import IGNORE, CrossEntropyLoss, FocalLoss, LovaszLoss, TverskyLoss, class_weights, make_loss

REGIONS = ("dice", "tversky", "focal_tversky", "lovasz", "jaccard")
NAMES = ("ce", "focal", *REGIONS, "dice_ce", "focal_dice", "combo")


def options(name, **changes):
    usual = {"focal_gamma": 2.0, "focal_alpha": 0.25, "tversky_alpha": 0.3, "tversky_beta": 0.7, "dice_weight": 0.5,
             "focal_tversky_gamma": 4 / 3, "label_smoothing": 0.0}
    return SimpleNamespace(loss_type=name, **{**usual, **changes})


def of_probabilities(*pixels):
    """Logits (1, C, 1, n) whose softmax is the given probabilities, one tuple per pixel."""
    return torch.tensor(pixels, dtype=torch.float32).log().T[None, :, None]


def labels(*values):
    return torch.tensor(values)[None, None]


def random_batch(classes=4, channels=None, seed=0):
    torch.manual_seed(seed)
    target = torch.randint(classes, (2, 9, 7))
    target[:, :3] = 255
    return torch.randn(2, channels or classes, 9, 7), target


# three pixels of classes 0, 1, 1 and one ignored; class 2 does not occur, but takes probability
LOGITS = of_probabilities((0.7, 0.2, 0.1), (0.1, 0.6, 0.3), (0.5, 0.25, 0.25), (0.1, 0.1, 0.8))
TARGET = labels(0, 1, 1, 255)
CE = [-math.log(p) for p in (0.7, 0.6, 0.25)]
FOCAL = [0.25 * (1 - p) ** 2 * -math.log(p) for p in (0.7, 0.6, 0.25)]


def index_of(hit, false_alarm, miss, alpha, beta):
    return hit / (hit + alpha * false_alarm + beta * miss)


def overlap(alpha, beta, weights=(1, 1), power=1):
    """One minus Tversky of classes 0 and 1 above: sums of probabilities, without the ignored pixel."""
    zero = index_of(0.7, 0.1 + 0.5, 0.3, alpha, beta)
    one = index_of(0.6 + 0.25, 0.2, 0.4 + 0.75, alpha, beta)
    return mean([(1 - zero) ** power, (1 - one) ** power], weights)


def mean(values, weights=(1, 1, 1)):
    return sum(v * w for v, w in zip(values, weights)) / sum(w for _, w in zip(values, weights))


# 1 - IoU as the pixels turn wrong, largest error first. Class 0: 0.5 (another's), 0.3 (its own), 0.1 (another's);
# class 1: 0.75 (own), 0.4 (own), 0.2 (another's)
LOVASZ = [0.5 * 1 / 2 + 0.3 * 1 / 2, 0.75 * 1 / 2 + 0.4 * 1 / 2]


def by_hand(pixels=(1, 1, 1), classes=(1, 1), w=0.2):
    """Every loss of the batch above, for weights per pixel and per class that occurs."""
    ce, focal, dice = mean(CE, pixels), mean(FOCAL, pixels), overlap(0.5, 0.5, classes)
    return {
        "ce": ce,
        "dice": dice,
        "focal": focal,
        "tversky": overlap(0.3, 0.7, classes),
        "focal_tversky": overlap(0.3, 0.7, classes, 3 / 4),
        "lovasz": mean(LOVASZ, classes),
        "jaccard": overlap(1, 1, classes),
        "dice_ce": (1 - w) * ce + w * dice,
        "focal_dice": (1 - w) * focal + w * dice,
        "combo": (1 - w) / 2 * (ce + focal) + w * dice,
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_its_value_by_hand(name):
    assert make_loss(options(name, dice_weight=0.2))(LOGITS, TARGET).item() == pytest.approx(by_hand()[name], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_its_weighted_value_by_hand(name):
    loss = make_loss(options(name, dice_weight=0.2), torch.tensor([2.0, 5.0, 100.0]))
    assert loss(LOGITS, TARGET).item() == pytest.approx(by_hand((2, 5, 5), (2, 5))[name], rel=1e-5)


def binary_by_hand(name, w=0.2):
    """One logit, probabilities of class 1: 0.8 and 0.4 where it is, 0.3 where it is not."""
    ce = mean([-math.log(0.8), -math.log(0.4), -math.log(0.7)])
    focal = mean([0.25 * 0.2**2 * -math.log(0.8), 0.25 * 0.6**2 * -math.log(0.4), 0.75 * 0.3**2 * -math.log(0.7)])

    def region(alpha, beta, power=1):
        one = index_of(1.2, 0.3, 0.8, alpha, beta)
        zero = index_of(0.7, 0.8, 0.3, alpha, beta)
        return ((1 - one) ** power + (1 - zero) ** power) / 2

    dice = region(0.5, 0.5)
    lovasz_one = 0.6 * 1 / 2 + 0.3 * (2 / 3 - 1 / 2) + 0.2 * 1 / 3  # own, another's, own
    lovasz_zero = 0.6 * 1 / 2 + 0.3 * 1 / 2  # another's, own
    return {"ce": ce, "dice": dice, "focal": focal, "tversky": region(0.3, 0.7), "focal_tversky": region(0.3, 0.7, 3 / 4),
            "lovasz": (lovasz_one + lovasz_zero) / 2, "jaccard": region(1, 1), "dice_ce": (1 - w) * ce + w * dice,
            "focal_dice": (1 - w) * focal + w * dice, "combo": (1 - w) / 2 * (ce + focal) + w * dice}[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_its_binary_value_by_hand(name):
    z = torch.logit(torch.tensor([0.8, 0.4, 0.3, 0.99]))[None, None, None]
    assert make_loss(options(name, dice_weight=0.2))(z, labels(1, 1, 0, 255)).item() == pytest.approx(binary_by_hand(name), rel=1e-5)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.5])])
@pytest.mark.parametrize("name", NAMES)
def test_one_logit_is_the_two_logits_zero_and_z(name, weight):
    z, target = random_batch(2, channels=1)
    loss = make_loss(options(name), weight)
    assert torch.equal(loss(z, target), loss(torch.cat([torch.zeros_like(z), z], 1), target))


def test_binary_cross_entropy_is_torchs_own():
    z, target = random_batch(2, channels=1)
    known = target != 255
    wanted = F.binary_cross_entropy_with_logits(z[:, 0][known], target[known].float())
    torch.testing.assert_close(make_loss(options("ce"))(z, target), wanted)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.1, 1.0, 2.0, 0.0])])
def test_cross_entropy_is_torchs_own(weight):
    logits, target = random_batch()
    torch.testing.assert_close(CrossEntropyLoss(weight)(logits, target), F.cross_entropy(logits, target, weight, ignore_index=255))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.1, 1.0, 2.0, 0.0])])
def test_label_smoothing_is_torchs_own(weight, smoothing):
    logits, target = random_batch()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = make_loss(options("ce", label_smoothing=smoothing), weight)(ours, target)
    wanted = F.cross_entropy(theirs, target, weight, ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(value, wanted)
    value.backward(), wanted.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_label_smoothing_touches_the_cross_entropy_alone():
    def change(name):
        return make_loss(options(name, label_smoothing=0.3, dice_weight=0.2))(LOGITS, TARGET) - make_loss(options(name, dice_weight=0.2))(LOGITS, TARGET)

    assert all(change(name) == 0 for name in (*REGIONS, "focal", "focal_dice"))
    for name, share in (("dice_ce", 0.8), ("combo", 0.4)):
        torch.testing.assert_close(change(name), share * change("ce"))


@pytest.mark.parametrize("channels", [4, 1])
@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_change_nothing(name, channels):
    logits, target = random_batch(max(channels, 2), channels)
    weight = torch.linspace(0.5, 1.5, max(channels, 2))
    loss = make_loss(options(name), weight)
    value = loss(logits.requires_grad_(), target)
    value.backward()
    assert (logits.grad[:, :, :3] == 0).all() and (logits.grad[:, :, 3:] != 0).all()
    other = logits.detach().clone()
    other[:, :, :3] = 30.0
    assert torch.equal(loss(other, target), value)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_labelled_pixel_loss_and_gradient_are_zero(name, channels, smoothing):
    logits = torch.randn(2, channels, 4, 4, requires_grad=True)
    loss = make_loss(options(name, label_smoothing=smoothing), torch.ones(max(channels, 2)))
    value = loss(logits, torch.full((2, 4, 4), 255))
    value.backward()
    assert value.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_classes_that_weigh_nothing_is_zero(name, smoothing):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = make_loss(options(name, label_smoothing=smoothing), torch.tensor([0.0, 1, 1]))
    value = loss(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    value.backward()
    assert value.item() == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 1.8])])
def test_focal_with_gamma_0_is_cross_entropy(weight):
    logits, target = random_batch(3)
    torch.testing.assert_close(FocalLoss(0, 1, weight)(logits, target), CrossEntropyLoss(weight)(logits, target))
    two, target = random_batch(2)
    torch.testing.assert_close(FocalLoss(0, 0.5)(two, target), 0.5 * CrossEntropyLoss()(two, target))


def test_alpha_is_class_1s_weight_in_binary_and_a_factor_otherwise():
    z = torch.logit(torch.tensor([0.6]))[None, None, None]
    loss = make_loss(options("focal", focal_alpha=0.9, focal_gamma=1.0))
    assert loss(z, labels(1)).item() == pytest.approx(0.9 * 0.4 * -math.log(0.6), rel=1e-5)
    assert loss(z, labels(0)).item() == pytest.approx(0.1 * 0.6 * -math.log(0.4), rel=1e-5)
    for truth, p in enumerate((0.5, 0.3, 0.2)):
        assert loss(of_probabilities((0.5, 0.3, 0.2)), labels(truth)).item() == pytest.approx(0.9 * (1 - p) * -math.log(p), rel=1e-5)


def test_class_weights_do_not_bend_focals_probability():
    loss = FocalLoss(2.0, 1.0, torch.tensor([9.0, 9, 9]))  # p_t from the weighted entropy would be 0.5 ** 9
    assert loss(of_probabilities((0.5, 0.3, 0.2)), labels(0)).item() == pytest.approx(0.25 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("gamma", [0, 0.3, 0.5, 1, 2, 5])
def test_focal_of_certain_pixels_has_a_finite_gradient(gamma):
    logits = torch.tensor([200.0, -200, 0, 0])[None, :, None, None].repeat(1, 1, 1, 2).requires_grad_()
    value = FocalLoss(gamma)(logits, labels(0, 1))  # quite right, and quite wrong
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [2, 1])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_does_not_overflow(name, channels, dtype):
    target = (torch.arange(300 * 300) % 3 == 0).long().view(1, 300, 300)  # 90,000 pixels: more than 65,504
    logits = torch.zeros(1, channels, 300, 300)
    logits[:, -1] = torch.where(target == 1, 2.0, -1.0)
    half = logits.to(dtype).requires_grad_()
    value = make_loss(options(name))(half, target)
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(half.grad).all()
    torch.testing.assert_close(value, make_loss(options(name))(logits, target), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [4, 1])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_have_a_finite_loss_and_gradient(name, channels, dtype):
    logits, target = random_batch(max(channels, 2), channels)
    logits = (logits.sign() * 1e4).to(dtype).requires_grad_()
    value = make_loss(options(name, label_smoothing=0.1))(logits, target)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_logit_that_is_no_number_shows_in_the_loss(name):
    logits, target = random_batch()
    logits[0, 2, 5, 5] = math.nan
    assert make_loss(options(name))(logits, target).isnan()


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_prediction_costs_nearly_nothing_and_has_hardly_a_gradient(name):
    _, target = random_batch()
    logits = (F.one_hot(target.where(target != IGNORE, 0), 4).movedim(-1, 1) * 60.0).requires_grad_()
    value = make_loss(options(name))(logits, target)
    value.backward()
    assert 0 <= value.item() < 1e-5 and logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("channels", [4, 1])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_slope_of_the_loss(name, channels):
    logits, target = random_batch(max(channels, 2), channels)
    loss = make_loss(options(name, label_smoothing=0.1), torch.linspace(0.5, 1.5, max(channels, 2)))
    loss(logits.requires_grad_(), target).backward()
    step = logits.grad / logits.grad.norm() * 0.02
    with torch.no_grad():
        slope = (loss(logits + step, target) - loss(logits - step, target)) / 0.04
    assert slope.item() == pytest.approx(logits.grad.norm().item(), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_of_bytes_is_as_good_and_so_is_any_memory_layout(name):
    logits, target = random_batch()
    loss = make_loss(options(name, label_smoothing=0.1), torch.linspace(0.5, 1.5, 4))
    usual, other = logits.clone().requires_grad_(), logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    values = loss(usual, target), loss(other, target.to(torch.uint8))
    sum(values).backward()
    assert torch.equal(*values) and torch.equal(usual.grad, other.grad)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_batch_gives_the_same_bits_again(name):
    torch.manual_seed(3)
    logits, target = torch.randn(4, 5, 64, 64).round(decimals=1), torch.randint(6, (4, 64, 64))  # rounded: many equal errors
    target[target == 5] = IGNORE
    loss, runs = make_loss(options(name, label_smoothing=0.1), torch.linspace(0.5, 1.5, 5)), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(4):
            again = logits.clone().requires_grad_()
            value = loss(again, target)
            value.backward()
            runs.append((value, again.grad))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(value, runs[0][0]) and torch.equal(grad, runs[0][1]) for value, grad in runs)


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_reads_a_number_back_from_the_device(name):
    loss = make_loss(options(name, label_smoothing=0.1), torch.ones(4)).to("meta")  # which has shapes and no values
    logits, target = torch.randn(2, 4, 9, 7, device="meta", requires_grad=True), torch.zeros(2, 9, 7, dtype=torch.int64, device="meta")
    loss(logits, target, loss.factors([target, target])[0]).backward()
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [3, 1])
def test_every_loss_falls_to_nearly_nothing_when_followed(name, channels):
    target = torch.randint(max(channels, 2), (1, 6, 6), generator=torch.Generator().manual_seed(1))
    logits = torch.zeros(1, channels, 6, 6, requires_grad=True)
    loss, optimizer = make_loss(options(name)), torch.optim.Adam([logits], 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    assert loss(logits, target).item() < 0.02
    assert (losses.two_logits(logits).argmax(1) == target).all()


def test_logits_and_target_that_do_not_belong_together_are_refused():
    for logits, target in (((1, 3, 4, 4), (1, 4, 5)), ((1, 3, 4, 4), (2, 4, 4)), ((3, 4, 4), (4, 4))):
        for loss in (CrossEntropyLoss(), FocalLoss(), TverskyLoss(), LovaszLoss()):
            with pytest.raises(ValueError, match="do not fit"):
                loss(torch.zeros(logits), torch.zeros(target, dtype=torch.int64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", [4, 254, -1])
def test_a_label_that_is_no_class_is_refused(name, label):
    logits, target = random_batch()
    target[1, 5, 5] = label
    with pytest.raises(IndexError, match=str(label)):
        make_loss(options(name))(logits, target)


@pytest.mark.parametrize("make", [lambda: FocalLoss(-1), lambda: FocalLoss(2, 1.1), lambda: CrossEntropyLoss(None, -0.1),
                                  lambda: CrossEntropyLoss(None, 1.0)])
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


# ---------------------------------------------------------------- class weights


def test_class_weights_by_hand():
    counts = [100, 400, 0]
    assert class_weights(counts, "inverse_freq").tolist() == pytest.approx([1.6, 0.4, 0])  # 4 : 1
    assert class_weights(counts, "inverse_sqrt").tolist() == pytest.approx([4 / 3, 2 / 3, 0])  # 2 : 1
    effective = [1 / (1 - 0.9999**n) for n in counts[:2]]
    assert class_weights(counts, "effective_samples").tolist() == pytest.approx([2 * e / sum(effective) for e in effective] + [0])
    assert torch.equal(class_weights(counts), class_weights(counts, "inverse_sqrt"))


@pytest.mark.parametrize("method", ["inverse_freq", "inverse_sqrt", "effective_samples"])
@pytest.mark.parametrize("counts", [[1, *[10**9] * 19], [1, 2, 0, *[10**8] * 30], [5, 5, 5], [10**12, 1], [0, 7, 0], [1] * 254])
def test_class_weights_have_mean_1_and_stay_below_the_cap(counts, method):
    weights, seen = class_weights(counts, method), torch.tensor(counts) > 0
    assert weights.dtype == torch.float32 and weights.max() <= 10
    assert weights[seen].mean().item() == pytest.approx(1, rel=1e-5)
    assert (weights[~seen] == 0).all() and (weights[seen] > 0).all()
    order = torch.argsort(torch.tensor(counts)[seen], descending=True)
    assert (weights[seen][order].diff() >= 0).all()  # rarer never weighs less


def test_the_cap_holds_rare_classes_back():
    weights = class_weights([1, *[10**9] * 19])
    assert weights[0] == 10 and weights[1].item() == pytest.approx(10 / 19)


def test_no_labelled_pixel_at_all_gives_equal_weights():
    assert class_weights([0, 0, 0]).tolist() == [1, 1, 1]
