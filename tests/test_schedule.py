"""Learning rates, step by step, against curves worked out by hand."""

import math

import pytest
import torch

from eoseg.schedule import Schedule

RATE = 5e-4

SCHEDULES = ("reduce_plateau", "cosine", "one_cycle", "poly", "constant")


def rates(schedule, count):
    """The rate of every step of a run, as the optimiser sees it."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 9.0, "base_lr": schedule.rate}])
    found = []
    for _ in range(count):
        schedule.apply(optimizer)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_falls_from_the_rate_to_the_floor():
    found = rates(Schedule("cosine", RATE, steps=100), 101)
    for step in (0, 25, 50, 75):
        assert found[step] == pytest.approx(RATE * (1 + math.cos(math.pi * step / 100)) / 2)
    assert found[0] == RATE and found[50] == pytest.approx(RATE / 2)
    assert found[100] == pytest.approx(1e-6) and all(a >= b for a, b in zip(found, found[1:]))


def test_one_cycle_rises_for_30_percent_and_falls_after():
    found = rates(Schedule("one_cycle", RATE, steps=100), 101)
    assert found[0] == pytest.approx(RATE / 25) and found[30] == pytest.approx(RATE) and found[100] == pytest.approx(1e-6)
    assert found[15] == pytest.approx(RATE * (0.04 + 1) / 2) and found[65] == pytest.approx(RATE / 2)
    assert found.index(max(found)) == 30


def test_poly_falls_by_the_power_of_0_9():
    found = rates(Schedule("poly", RATE, steps=100), 101)
    assert [found[step] / RATE for step in (0, 25, 50, 75)] == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0.25**0.9])
    assert found[100] == pytest.approx(1e-6)


def test_plateau_keeps_the_rate_until_a_plateau():
    assert rates(Schedule("reduce_plateau", RATE, steps=100), 100) == [RATE] * 100


def test_constant_is_constant():
    assert rates(Schedule("constant", RATE, steps=100), 120) == [RATE] * 120


@pytest.mark.parametrize("kind, curve", [  # of a rate of 1e-3 over 10 steps, two of them warm-up from 1e-4
    ("reduce_plateau", [1.0, 5.5, 10, 10, 10, 10, 10, 10, 10, 10]),
    ("constant", [1.0, 5.5, 10, 10, 10, 10, 10, 10, 10, 10]),
    ("cosine", [1.0, 5.5, 10, 9.619, 8.536, 6.913, 5, 3.087, 1.464, 0.381]),
    ("one_cycle", [1.0, 5.5, 10, 9.619, 8.536, 6.913, 5, 3.087, 1.464, 0.381]),
    ("poly", [1.0, 5.5, 10, 8.868, 7.719, 6.551, 5.359, 4.136, 2.872, 1.539]),
])
def test_the_printed_curve_of_every_schedule(kind, curve):
    assert [round(rate * 1e4, 3) for rate in rates(Schedule(kind, 1e-3, 10, 2, 1e-4), 10)] == curve


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up_is_a_straight_rise_inside_the_run(kind):
    found = rates(Schedule(kind, RATE, steps=100, warmup=20, warmup_rate=1e-5), 100)
    for step in range(20):
        assert found[step] == pytest.approx(1e-5 + (RATE - 1e-5) * step / 20)
    assert found[20] == pytest.approx(RATE)
    halfway = {"reduce_plateau": 1, "constant": 1, "poly": 0.5**0.9}.get(kind, 0.5)
    assert found[60] == pytest.approx(RATE * halfway) and (halfway == 1 or found[99] < RATE / 50)  # the fall takes the 80 steps that are left


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 10, 50])
def test_odd_lengths_give_finite_rates(kind, warmup):
    for steps in (0, 1, 10):
        found = rates(Schedule(kind, RATE, steps, warmup), steps + 5)
        assert all(1e-6 <= rate <= RATE * (1 + 1e-12) for rate in found)


def factor_after(schedule, scores):
    for score in scores:
        schedule.step += 1
        schedule.epoch_end(score)
    return schedule.factor(schedule.step)


@pytest.mark.parametrize("scores, factor", [
    ([0.1, 0.2, 0.3, 0.4], 1),
    ([0.5, 0.4, 0.4], 1),
    ([0.5, 0.4, 0.4, 0.4], 0.5),
    ([0.5, 0.5, 0.5, 0.5], 0.5),  # no better is worse
    ([0.5, 0.4, 0.4, 0.6, 0.4, 0.4], 1),  # the count begins anew
    ([0.5] + [0.4] * 5, 0.5),
    ([0.5] + [0.4] * 6, 0.25),
    ([-2.0, -1.0, -1.5, -1.5, -1.5], 0.5),  # a loss, turned round
    ([0.5, float("nan"), float("nan"), float("nan")], 0.5),
])
def test_a_plateau_of_patience_epochs_halves_the_rate(scores, factor):
    assert factor_after(Schedule("reduce_plateau", RATE, 1000, patience=3), scores) == factor


def test_the_floor_is_1e_6():
    schedule = Schedule("reduce_plateau", RATE, 1000, patience=1)
    assert RATE * factor_after(schedule, [0.5] * 50) == pytest.approx(1e-6)


def test_a_rate_below_the_floor_stays_as_asked():
    for kind in SCHEDULES:
        assert max(rates(Schedule(kind, 1e-8, 10), 10)) <= 1e-8


def test_patience_0_counts_as_1():
    assert factor_after(Schedule("reduce_plateau", RATE, 1000, patience=0), [0.5, 0.4]) == 0.5


def test_plateaus_do_not_count_during_warm_up():
    assert factor_after(Schedule("reduce_plateau", RATE, 100, warmup=8, patience=2), [0.5] * 9) == 1
    assert factor_after(Schedule("reduce_plateau", RATE, 100, warmup=8, patience=2), [0.5] * 10) == 0.5


@pytest.mark.parametrize("kind", ["cosine", "one_cycle", "poly", "constant"])
def test_only_the_plateau_schedule_hears_the_score(kind):
    one, other = Schedule(kind, RATE, 50, patience=1), Schedule(kind, RATE, 50, patience=1)
    for _ in range(20):
        one.epoch_end(0.1)
    assert rates(one, 50) == rates(other, 50)


def test_parameter_groups_keep_their_proportion():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 1.0, "base_lr": RATE}, {"params": [torch.zeros(1)], "lr": 1.0, "base_lr": RATE / 10}])
    schedule = Schedule("cosine", RATE, 10)
    for _ in range(4):
        schedule.apply(optimizer)
    high, low = (group["lr"] for group in optimizer.param_groups)
    assert high == pytest.approx(RATE * (1 + math.cos(0.3 * math.pi)) / 2) and high == pytest.approx(10 * low)


@pytest.mark.parametrize("cut", range(1, 6))
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_saved_state_goes_on_exactly(kind, cut):
    make = lambda: Schedule(kind, RATE, 60, warmup=5, patience=2)
    whole, first, second = make(), make(), make()
    scores = [0.3, 0.2, 0.2, 0.2, 0.4, 0.1]

    def run(schedule, part):
        found = []
        for score in part:
            found += rates(schedule, 10)
            schedule.epoch_end(score)
        return found

    wanted = run(whole, scores)
    begun = run(first, scores[:cut])
    second.load_state_dict(first.state_dict())
    assert begun + run(second, scores[cut:]) == wanted
    assert second.state_dict() == whole.state_dict()
    assert all(type(value) in (int, float) for value in whole.state_dict().values())
