"""What a checkpoint says of its network, held against what it may say before any of it is used: a stranger's file may say anything."""

import math
import re

import torch

from eoseg.errors import SetupError

MOST = 65535  # bands that GDAL knows in a file; classes that a map can number
LARGEST = 3.4e38  # of what a float32 holds
BANDWISE = ("offset", "scale", "fill")  # of a normalisation: a number per band
LONGEST = 1000  # characters of a name
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def whole(value, least=0, most=MOST):
    return type(value) is int and least <= value <= most  # True is no number here


def number(value, least=-LARGEST, most=LARGEST):
    return type(value) in (int, float) and least <= value <= most  # never NaN


def limit(value):
    return whole(value, -(2**53), 2**53) or type(value) is float and (number(value) or math.isinf(value))


def text(value):
    return isinstance(value, str) and 0 < len(value) <= LONGEST and not UNPRINTABLE.search(value)


def every(test, least=1):
    """A test of lists whose items all pass `test`."""
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(test, value))


def maybe(test):
    return lambda value: value is None or test(value)


def named(value):
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def simple(value):
    """Is it made of numbers, texts, lists and dicts alone?"""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list, str, int, float, type(None))) and all(map(simple, parts))


def sized(value):
    """Width, height and unit of a pixel?"""
    return isinstance(value, list) and len(value) == 3 and number(value[0], 1e-30) and number(value[1], 1e-30) and text(value[2])


FIELDS = {  # what may stand there, and in words; a field that lacks may lack, or its reader says so
    "config": (lambda value: named(value) and simple(value), "a dict of options"),
    "config.model_name": (maybe(text), "a name"),
    "config.encoder_name": (maybe(text), "a name"),
    "config.mode": (lambda value: value in (None, "multiclass", "binary"), "multiclass or binary"),
    "config.in_channels": (maybe(lambda value: whole(value, 1)), f"a whole number from 1 to {MOST}"),
    "config.num_classes": (maybe(lambda value: whole(value, 1)), f"a whole number from 1 to {MOST}"),
    "class_names": (maybe(lambda value: every(text)(value) and len(set(value)) == len(value)), "a list of different names"),
    "normalization": (maybe(lambda value: named(value) and "kind" in value), "a dict with a kind"),
    "normalization.kind": (lambda value: value in ("percentile", "zscore", "none", "patch_percentile"), "a kind that this program knows"),
    "normalization.offset": (every(number), "a list of finite numbers"),
    "normalization.scale": (every(lambda value: number(value, 1e-38)), "a list of finite numbers above 0"),
    "normalization.fill": (every(number), "a list of finite numbers"),
    "normalization.low": (limit, "a number"),
    "normalization.high": (limit, "a number"),
    "normalization.percent": (lambda value: number(value, 1e-9, 100), "a number above 0 and up to 100"),
    "normalization.per_band": (lambda value: isinstance(value, bool), "true or false"),
    "input": (maybe(lambda value: named(value) and {"names", "of_scene", "scene_count"} <= value.keys()), "a dict of names, of_scene and scene_count"),
    "input.of_patch": (every(whole), "a list of whole numbers from 0"),
    "input.names": (every(lambda value: isinstance(value, str) and len(value) <= LONGEST), "a list of names"),
    "input.of_scene": (every(lambda value: whole(value, 1)), "a list of whole numbers from 1"),
    "input.scene_count": (lambda value: whole(value, 1), f"a whole number from 1 to {MOST}"),
    "input.require_all_bands": (lambda value: isinstance(value, bool), "true or false"),
    "input.input_nodata": (lambda value: value is None or type(value) is float or whole(value, -(2**53), 2**53), "a number"),
    "pixel_size": (maybe(sized), "a width, a height and a unit"),
    "label_map": (maybe(lambda value: isinstance(value, dict) and all(map(text, value)) and all(whole(one, 0, 255) for one in value.values())), "a dict of codes and classes up to 255"),
    "trained_on": (lambda value: torch.is_tensor(value) and value.ndim == 1 and value.dtype == torch.int64, "a row of whole numbers"),
    "calibration": (maybe(lambda value: named(value) and (not value or {"temperature", "split"} <= value.keys())), "a dict of temperature and split"),
    "calibration.temperature": (lambda value: number(value, 0.01, 100), "a number from 0.01 to 100"),
    "calibration.threshold": (lambda value: number(value, 0, 1), "a number from 0 to 1"),
    "calibration.split": (text, "a name"),
}


def check(saved, path):
    """Raises SetupError for a field of a checkpoint that no training writes; of those that are there."""
    for key, (test, wanted) in FIELDS.items():
        place, _, name = key.rpartition(".")
        part = (saved.get(place) or {}) if place else saved
        if name in part and not test(part[name]):
            refuse(path, f"its {key} is {shown(part[name])}, not {wanted}")


def check_counts(saved, bands, path):
    """Raises SetupError when what a checkpoint says of its bands is not whole, or not as much as the network takes."""
    about, inputs = saved["normalization"] or {}, saved["input"] or {}
    odd = [f"lacks {key}" for key in BANDWISE if about and key not in about] + [f"holds {shown(key)}" for key in about if f"normalization.{key}" not in FIELDS]
    if odd:
        refuse(path, f"its normalization {odd[0]}")
    if not about.get("low", -1) < about.get("high", 1):
        refuse(path, f"its normalization clips to {about.get('low')} ... {about.get('high')}, which leaves nothing")
    for place, part, keys in (("normalization", about, BANDWISE), ("input", inputs, ("names", "of_scene", "of_patch"))):
        wrong = [key for key in keys if key in part and len(part[key]) != bands]
        if wrong:
            refuse(path, f"its {place}.{wrong[0]} is of {len(part[wrong[0]])} bands, its network of {bands}")
    if inputs and max(inputs["of_scene"]) > inputs["scene_count"]:
        refuse(path, f"its input takes band {max(inputs['of_scene'])} of {inputs['scene_count']}")


def shown(value):
    """A value of any kind in a few characters that can be printed."""
    return brief(ascii(value) if isinstance(value, (str, int, float, bytes, type(None))) else f"a {type(value).__name__}")


def brief(words):
    """The beginning of a long text."""
    return words if len(words) <= 80 else f"{words[:70]} ..."


def refuse(path, what):
    raise SetupError(f"{path}: {what}; the file is damaged, or was changed: get it again from where it was trained.")
