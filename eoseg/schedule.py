"""The learning rate at every optimiser step: one schedule, warm-up inside it."""

import math

FLOOR = 1e-6  # no schedule goes lower


class Schedule:
    """A factor on every parameter group's own learning rate, told step by step.

    Args:
        kind: reduce_plateau (halved after `patience` epochs without a better score), cosine (to 0 over the run:
            Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts), one_cycle (up over the first 30 %, then down:
            Smith & Topin 2018, arXiv:1708.07120), poly (to 0 as (1 - part of the run)^0.9: Chen et al. 2018, DeepLab,
            arXiv:1606.00915) or constant.
        rate: the run's learning rate, which the factor 1 stands for.
        steps, warmup: optimiser steps of the whole run, and of the straight rise from `warmup_rate` before it.
    """

    def __init__(self, kind, rate, steps, warmup=0, warmup_rate=1e-6, patience=5):
        self.kind, self.rate, self.steps, self.patience = kind, rate, max(steps, 1), max(patience, 1)
        self.warmup, self.start = min(warmup, self.steps), warmup_rate / rate
        self.step, self.reduced, self.best, self.bad = 0, 1.0, -math.inf, 0

    def factor(self, step):
        """The factor at optimiser step `step`, from 0; plateaus met so far included."""
        if step < self.warmup:
            return self.start + (1 - self.start) * step / self.warmup
        through = (step - self.warmup) / max(self.steps - self.warmup, 1)
        if self.kind == "cosine":
            factor = cosine(1.0, 0.0, through)
        elif self.kind == "one_cycle":
            rise = 0.0 if self.warmup else 0.3  # a warm-up is the rise
            factor = cosine(0.04, 1.0, through / rise) if through < rise else cosine(1.0, 0.0, (through - rise) / (1 - rise))
        elif self.kind == "poly":
            factor = max(1 - through, 0.0) ** 0.9
        else:
            factor = self.reduced  # stays 1 when constant
        return max(factor, min(FLOOR / self.rate, 1.0))

    def apply(self, optimizer):
        """Set the rates for the step to come and count it."""
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(self.step)
        self.step += 1

    def epoch_end(self, score):
        """Hear the validation score (higher is better); a plateau halves the rate, once warm-up is over."""
        if self.kind != "reduce_plateau" or self.step < self.warmup:
            return
        if score > self.best:
            self.best, self.bad = score, 0
        else:
            self.bad += 1
        if self.bad >= self.patience:
            self.reduced, self.bad = max(self.reduced / 2, min(FLOOR / self.rate, 1.0)), 0

    def state_dict(self):
        return {"step": self.step, "reduced": self.reduced, "best": self.best, "bad": self.bad}

    def load_state_dict(self, state):
        self.step, self.reduced, self.best, self.bad = state["step"], state["reduced"], state["best"], state["bad"]


def cosine(start, end, through):
    """From `start` at 0 to `end` at 1, flat at both."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(through, 0), 1))) / 2
