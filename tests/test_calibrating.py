"""Temperature and threshold: known ones are found again, and every patch has its say."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from eoseg import calibrating
from eoseg.calibrating import best_threshold, calibrate, certain, fit_temperature, loss_at, probabilities_of
from eoseg.scoring import bins_of, calibration_error


def honest(classes, pixels=40_000, seed=0):
    """Logits (n, classes) whose probabilities are honest, and the truth (n,) drawn from them; `classes` of 1 is binary."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pixels, classes, generator=generator) * 2
    both = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits
    return logits, torch.multinomial(both.softmax(1), 1, generator=generator)[:, 0]


def patches_of(logits, truth, count=10, side=20):
    """Pixels as `count` square patches: (image, target, indices) in batches of 3, the image being the logits."""
    image = logits[:count * side**2].reshape(count, side, side, -1).movedim(-1, 1)
    target = truth[:count * side**2].reshape(count, side, side)
    for some in torch.arange(count).split(3):
        yield image[some], target[some], some.tolist()


def calibrated(logits, truth, classes, count=10, side=20, between=lambda: None):
    return calibrate(lambda image: image, patches_of(logits, truth, count, side), count, classes, "validation", between)


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("times", [2.5, 1, 0.4])
def test_a_known_temperature_is_found_again(classes, times):
    logits, truth = honest(classes)
    assert fit_temperature(logits * times, truth) == pytest.approx(times, rel=0.04)


@pytest.mark.parametrize("classes", [1, 4])
def test_calibration_makes_an_overconfident_network_honest(classes):
    logits, truth = honest(classes, 50_000)
    found = calibrated(logits * 2.5, truth, max(classes, 2), side=70)
    assert found["temperature"] == pytest.approx(2.5, rel=0.04) and found["pixels"] == 49_000 and found["split"] == "validation"
    assert found["ece"][0] > 0.08 and found["ece"][1] < 0.015 and found["nll"][1] < found["nll"][0]
    assert ("threshold" in found) == ("iou" in found) == (classes == 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_never_rises(classes, seed):
    logits, truth = honest(classes, 300, seed)
    for times in (1.0, 0.02, 30.0):
        found = calibrated(logits * times, truth, max(classes, 2), count=3, side=10)
        assert found["nll"][1] <= found["nll"][0]


def test_a_network_that_cannot_be_mended_keeps_temperature_1():
    assert fit_temperature(torch.zeros(50, 3), torch.arange(50) % 3) == 1
    logits, truth = honest(3, 2000)
    mended = logits / fit_temperature(logits, truth)
    again = fit_temperature(mended, truth)
    assert again == pytest.approx(1, abs=0.01) and loss_at(mended, truth, again) <= loss_at(mended, truth, 1)


def test_temperatures_stay_within_their_limits():
    logits = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    assert 0.05 <= fit_temperature(logits, torch.tensor([0, 1])) < 0.051  # all right: the surer the better
    assert 19.9 < fit_temperature(logits, torch.tensor([1, 0])) <= 20  # all wrong


def test_the_loss_is_the_mean_negative_log_likelihood_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    right = lambda apart: math.log(1 + math.exp(-apart))  # of a pixel whose logit lies that far above the other
    assert loss_at(logits, torch.tensor([0, 0]), 2.0) == pytest.approx((right(1) + right(-2)) / 2)
    assert loss_at(torch.tensor([[2.0], [-4.0]]), torch.tensor([1, 1]), 2.0) == pytest.approx((right(1) + right(-2)) / 2)
    many, truth = honest(3, 600_000)  # several parts
    assert loss_at(many, truth, 1.5) == pytest.approx(torch.nn.functional.cross_entropy(many / 1.5, truth).item(), rel=1e-5)


def test_confidence_is_counted_as_prediction_has_it():
    """A binary logit of -0.0001 rounds to a probability of 0.5, and that is class 1; 0.45 is class 0 with a confidence of 0.55, 2252.8 steps."""
    sure = certain(probabilities_of(torch.tensor([[-0.0001], [-math.log(0.55 / 0.45)], [100.0]]), 1.0), torch.tensor([1, 1, 1]))
    assert sure[2048].tolist() == [0, 1] and sure[2253].tolist() == [1, 0] and sure[4096].tolist() == [0, 1] and sure.sum() == 3
    logits, truth = honest(4, 5000)
    confidence = special.softmax(logits.numpy(), 1)
    steps, right = np.rint(confidence.max(1) * 4096).astype(int), confidence.argmax(1) == truth.numpy()
    expected = np.zeros((4097, 2), int)
    np.add.at(expected, (steps, right.astype(int)), 1)
    found = certain(probabilities_of(logits, 1.0), truth)
    assert found.sum() == 5000 and calibration_error(bins_of(found)) == pytest.approx(calibration_error(bins_of(expected)), abs=2e-3)


# ---------------------------------------------------------------- which pixels


@pytest.fixture
def held(monkeypatch):
    """What is fitted to: a list of (logits, truth); nothing is fitted."""
    found = []
    monkeypatch.setattr(calibrating, "fit_temperature", lambda logits, truth: found.append((logits, truth)) or 1.0)
    return found


def spelled(labels):
    """Logits of three classes that spell patch, row and column, and `labels` (N, H, W), in batches."""
    image = torch.stack(torch.meshgrid(*map(torch.arange, labels.shape), indexing="ij"), 1).float()
    for some in torch.arange(len(labels)).split(2):
        yield image[some], labels[some], some.tolist()


def test_only_labelled_pixels_count_each_with_its_own_label(held):
    labels = torch.arange(5 * 8 * 8).reshape(5, 8, 8) % 3
    labels[0, :, 3:] = labels[2] = 255
    found = calibrate(lambda image: image.half(), spelled(labels), 5, 3, "validation")
    (logits, truth), = held
    assert found["pixels"] == len(truth) == 8 * 3 + 3 * 64 and logits.dtype == torch.float32
    assert {tuple(map(int, where)) for where in logits} == set(map(tuple, (labels != 255).nonzero().tolist()))
    assert torch.equal(truth, labels[tuple(logits.long().T)])


def test_no_patch_gives_more_than_its_share_and_none_less_than_it_can(held, monkeypatch):
    monkeypatch.setattr(calibrating, "MOST", 210)  # 42 of each of five patches
    labels = torch.zeros(5, 20, 20, dtype=torch.int64)
    labels[1] = 255
    labels[1, 6, :7] = 2
    labels[2, 10:] = 255
    calibrate(lambda image: image, spelled(labels), 5, 3, "validation")
    (logits, truth), = held
    patch, row, col = logits.long().T
    assert torch.bincount(patch).tolist() == [42, 7, 42, 42, 42]
    for some in (row, col):  # from all over the patch: every n-th pixel would be whole columns
        assert len(set(some[patch == 0].tolist())) > 12
    assert (truth == 2).sum() == 7


def test_many_classes_leave_room_for_fewer_pixels(held, monkeypatch):
    monkeypatch.setattr(calibrating, "NUMBERS", 3 * 4 * 50)  # 50 pixels of each of four patches, of three logits
    assert calibrate(lambda image: image, spelled(torch.zeros(4, 10, 10, dtype=torch.int64)), 4, 3, "validation")["pixels"] == 4 * 50


def test_more_patches_than_pixels_still_give_one_each(held, monkeypatch):
    monkeypatch.setattr(calibrating, "MOST", 2)
    calibrate(lambda image: image, spelled(torch.zeros(6, 4, 4, dtype=torch.int64)), 6, 3, "validation")
    assert held[0][0][:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_run_that_is_to_stop_stops_between_batches_and_closes_them():
    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    calls, batches = [], patches_of(*honest(3))
    with pytest.raises(KeyboardInterrupt):
        calibrate(lambda image: image, batches, 10, 3, "validation", stop)
    assert len(calls) == 2 and next(batches, None) is None


# ---------------------------------------------------------------- threshold


def slow_iou(steps, truth, threshold):
    called = steps >= threshold
    return (called & (truth == 1)).sum() / max((called | (truth == 1)).sum(), 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_the_best_of_all_that_there_are(seed):
    rng = np.random.default_rng(seed)
    steps, truth = rng.integers(0, 4097, 60), (rng.random(60) < 0.3).astype(int)
    steps = np.where(truth == 1, np.minimum(steps + 900, 4096), steps)
    threshold, (before, after) = best_threshold(steps / 4096, truth)
    every = [slow_iou(steps, truth, t) for t in range(4097)]
    assert after == max(every) == slow_iou(steps, truth, threshold * 4096) and before == slow_iou(steps, truth, 2048)
    equals = [t for t in range(4097) if every[t] == after]
    assert abs(threshold * 4096 - 2048) == min(abs(t - 2048) for t in equals)
    f1 = [2 * iou / (1 + iou) for iou in every]
    assert 2 * after / (1 + after) == max(f1)


@pytest.mark.parametrize(("low", "high", "expected"), [(1000, 3500, 2048), (2400, 3500, 2401), (100, 1300, 1300), (2048, 2049, 2049), (4095, 4096, 4096)])
def test_of_equally_good_thresholds_the_one_nearest_a_half_is_taken(low, high, expected):
    assert best_threshold(np.array([low, high]) / 4096, np.array([0, 1]))[0] == expected / 4096


def test_the_iou_of_a_threshold_by_hand():
    probability, truth = np.array([0.9, 0.4, 0.3, 0.6, 0.1]), np.array([1, 1, 1, 0, 0])
    threshold, (before, after) = best_threshold(probability, truth)
    assert (before, after) == (1 / 4, 3 / 4)  # at 0.5 two are called and one is right; from 0.3 on four, three of them right
    assert threshold == 1229 / 4096  # 0.3 in steps is 1228.8, which rounds up


def test_without_a_pixel_of_class_1_the_threshold_is_a_half():
    assert best_threshold(np.array([0.2, 0.7]), np.array([0, 0])) == (0.5, [0.0, 0.0])


def test_where_all_is_class_1_whatever_is_said_every_pixel_is_called_so():
    assert best_threshold(np.zeros(3), np.ones(3)) == (0.0, [0.0, 1.0])


def test_the_threshold_is_found_after_the_temperature():
    logits, truth = honest(1, 4000)
    found = calibrated(logits * 2.5 - 2, truth, 2)
    steps = np.rint(special.expit((logits.numpy()[:, 0] * 2.5 - 2) / found["temperature"]) * 4096)
    every = [slow_iou(steps, truth.numpy(), t) for t in range(4097)]
    assert found["iou"][1] == pytest.approx(max(every), abs=1e-3) and slow_iou(steps, truth.numpy(), found["threshold"] * 4096) == pytest.approx(max(every), abs=1e-3)
    assert found["iou"][0] == pytest.approx(every[2048], abs=1e-3) and found["threshold"] < 0.5
