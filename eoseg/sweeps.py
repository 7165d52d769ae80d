"""A sweep: one training run for every combination of the values that some options are to take."""

import argparse
import dataclasses as dc
import difflib
import itertools
import math
import re
from pathlib import Path

from eoseg.config import TrainingConfig
from eoseg.errors import SetupError
from eoseg.flags import flag_of, type_of

MOST = 200
FIXED = ("save_dir", "resume", "overwrite")
FIELDS = {name: f for f in dc.fields(TrainingConfig) for name in (f.name, flag_of(f)[2:])}


def plan(words, config):
    """The runs of a sweep.

    Args:
        words: options and their values, `learning_rate=0.1,0.05` or `model=unet,fpn`; of several, every combination is run.
        config: TrainingConfig of all that is not varied.
    Returns:
        list of (name, TrainingConfig), the last option varying fastest; each saves to `<save_dir>/<name>`.
    Raises:
        SetupError: an option or a value that cannot be swept.
    """
    choices = [parsed(word) for word in words]
    options = [option for option, _ in choices]
    for option in options:
        if options.count(option) > 1:
            raise SetupError(f"--sweep {option}: is given twice; put all its values into one, {option}=A,B,C.")
    count = math.prod(len(values) for _, values in choices)
    if count > MOST:
        raise SetupError(f"--sweep: {count:,} combinations; at most {MOST} are run, so give fewer options or values.")
    runs = [made(dict(zip(options, picked)), config) for picked in itertools.product(*(values for _, values in choices))]
    names = [name for name, _ in runs]
    for name in names:
        if names.count(name) > 1 or len(name) > 200:
            raise SetupError(f"--sweep: {name} is no name for a folder, too long or that of two runs; sweep these values one by one.")
    return runs


def parsed(word):
    """An option by its flag's name, and its values: list of (text, value)."""
    name, equals, text = word.partition("=")
    field = FIELDS.get(name)
    if field is None:
        near = difflib.get_close_matches(name, FIELDS, n=3)
        remedy = f"did you mean {', '.join(near)}?" if near else "--help lists them; here they are written without dashes."
        raise SetupError(f"--sweep {word}: no option is called '{name}'; {remedy}")
    if field.name in FIXED:
        raise SetupError(f"--sweep {word}: {name} cannot vary; give --{name} once, for all runs.")
    if field.metadata["nargs"]:
        raise SetupError(f"--sweep {word}: {name} is a list, and lists are not supported; train once for each, with its own --save_dir.")
    texts = [part.strip() for part in text.split(",")]
    if not equals or "" in texts:
        raise SetupError(f"--sweep {word}: a value is missing; write {name}=A,B,C, without spaces.")
    values = [value_of(field, text) for text in texts]
    for text, value in zip(texts, values):
        if values.count(value) > 1:
            raise SetupError(f"--sweep {word}: {text} is there twice; give each value once.")
    return flag_of(field)[2:], list(zip(texts, values))


def value_of(field, text):
    """A value as its flag reads it; `none` for a number that need not be given. What cannot be read stays text, for the configuration to refuse."""
    if field.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return type_of(field)(text)
    except (ValueError, argparse.ArgumentTypeError):
        return None if text.lower() == "none" and field.default is None else text


def made(picked, config):
    """The run of one combination: its name and its configuration.

    Args:
        picked: option -> (text, value).
    """
    label = ",".join(f"{option}={text}" for option, (text, _) in picked.items())
    name = re.sub(r"[^\w.,=+-]", "_", label)
    changes = {FIELDS[option].name: value for option, (_, value) in picked.items()}
    try:
        run = dc.replace(config, **before(changes, config), **changes, save_dir=str(Path(config.save_dir) / name))
    except SetupError as error:
        raise SetupError(f"--sweep {label}: {error}") from None
    for field, value in changes.items():
        if getattr(run, field) != value:
            raise SetupError(f"--sweep {label}: {field} stays {getattr(run, field)}, as another option says; leave one of them out.")
    return name, run


def before(changes, config):
    """What the configuration had derived from an option that now changes, as it was before."""
    earlier = {}
    if "augmentation" in changes:
        earlier["data_augmentation"] = True  # follows from it
    elif "data_augmentation" in changes:
        earlier["augmentation"] = config.augmentation if changes["data_augmentation"] is True and config.augmentation != "none" else None
    if "mode" in changes:
        earlier["num_classes"] = config.class_count  # binary had made it 1
    return {key: value for key, value in earlier.items() if key not in changes}
