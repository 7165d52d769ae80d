"""Runs of the scripts in a process of the fuzzer's own, without what takes time and has no say in the outcome."""

import contextlib
import importlib
import os
import sys
from functools import partial


class Cut(BaseException):
    """A run is stopped here, as if it had been killed."""


def leave(name, *words):
    """Run a script's main as the shell would; its exit status."""
    from eoseg import errors

    sys.argv = [f"{name}.py", *map(str, words)]
    try:
        errors.run(importlib.import_module(name).main)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def hasten():
    """Nothing is drawn, nothing waits for the disk."""
    from eoseg import panel, runcard, scoreplots
    from eoseg.drawing import Artist

    os.fsync = lambda handle: None
    Artist.__call__ = lambda self, jobs: None
    runcard.layers_of = lambda net, shape: ([], None)
    panel.Panel.shown = lambda self, *told: []
    for name in ("draw_confusion", "draw_reliability", "draw_panel"):
        setattr(scoreplots, name, lambda *told, **options: None)


def point():
    """Checkpoints hold 1x1 convolutions."""
    from tinynet import Point

    from eoseg import models

    hasten()
    models.build_model = lambda name, bands, outputs, *rest: Point(bands, outputs)


def narrow():
    """unet-dropout with an eighth of its channels."""
    from eoseg import models, unet

    hasten()
    models.UNetDropout = partial(unet.UNetDropout, width=4)


@contextlib.contextmanager
def cut_after(count):
    """Runs in this block are cut off when they have noted `count` rows or patches that are done."""
    from eoseg import mapfile, staging

    before = [(owner, name, getattr(owner, name)) for owner, name in ((mapfile.MapFile, "write"), (staging.Journal, "add"))]
    for owner, name, function in before:
        setattr(owner, name, counted(function, count))
    try:
        yield
    finally:
        for place in before:
            setattr(*place)


def counted(function, count):
    left = [count]

    def call(*told):
        if not left[0]:
            raise Cut
        left[0] -= 1
        return function(*told)

    return call
