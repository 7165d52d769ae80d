"""Flags: the parser all three scripts share, and how a dataclass of options becomes flags."""

import argparse
import dataclasses as dc
import difflib
import math
import re
import sys
from typing import get_args

from eoseg.errors import SetupError


class Parser(argparse.ArgumentParser):
    """argparse, with our one-line errors, no abbreviations, and words such as -1=ignore or -3.4e+38 taken as values."""

    words = ()  # those being parsed

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def parse_known_args(self, args=None, namespace=None):
        self.words = [protected(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self.words, namespace)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        for text in unknown:
            near = difflib.get_close_matches(text.split("=")[0], self.flags(), n=1)
            raise SetupError(f"{text.strip()}: no such option" + (f"; did you mean {near[0]}?" if near else "; --help lists them."))
        return options

    def given(self, args=None):
        """What was typed: dict dest -> value, without defaults."""
        unset = object()
        start = {action.dest: None if isinstance(action, argparse._ExtendAction) else unset for action in every_action(self)}  # those extend what is there
        options, _ = super().parse_known_args([protected(word) for word in (sys.argv[1:] if args is None else args)], argparse.Namespace(**start))
        return {key: value for key, value in vars(options).items() if value is not start.get(key)}

    def flags(self):
        return [flag for action in every_action(self) for flag in action.option_strings]

    def error(self, message):
        message = re.sub(r"^argument (.+?): (.+)", r"\1: \2", message)
        missing = re.match(r"the following arguments are required: (.+)", message)
        if not missing:
            raise SetupError(f"{message}; see --help.")
        for text in self.words:  # --modle unet: the typo says more than the --model that lacks
            near = difflib.get_close_matches(text.split("=")[0], missing[1].split(", "), n=1)
            if near and text.startswith("--") and text.split("=")[0] not in self.flags():
                raise SetupError(f"{text}: no such option; did you mean {near[0]}?")
        raise SetupError(f"{missing[1]}: missing; give it, or see --help.")


def protected(word):
    """A leading space keeps argparse from taking a value that starts with a minus for a flag."""
    return " " + word if re.match(r"-([\d.]|inf)", word) else word


def every_action(parser):
    """All options of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in dict.fromkeys(action.choices.values()):
                yield from every_action(sub)


def option(default, help, flag=None, choices=None, type=None, nargs=None, off=None, none=None, section=None):
    """A dataclass field that carries its own command-line help.

    Args:
        flag: its flag, where that is not `--` and the field's name.
        off: the flag that turns a default of True off.
        none: what the help calls a default of None.
        section: heading in the help of this field and those after it.
    """
    factory = {} if default is dc.MISSING else {"default_factory": lambda: list(default)} if isinstance(default, tuple) else {"default": default}
    return dc.field(**factory, metadata={"help": help, "flag": flag, "choices": choices, "type": type, "nargs": nargs, "off": off, "none": none, "section": section})


def flag_of(field):
    return field.metadata["flag"] or f"--{field.name}"


def add_options(parser, options_class, only=None, group=None):
    """Give `parser` one flag per field of `options_class` (those of `only`), under the heading `group`. Names, types and defaults live in the dataclass alone."""
    group = group or parser.add_argument_group("what the job is told")
    for f in dc.fields(options_class):
        if only and f.name not in only:
            continue
        meta = f.metadata
        group = parser.add_argument_group(meta["section"]) if meta["section"] else group
        default = f.default_factory() if f.default is dc.MISSING and f.default_factory is not dc.MISSING else f.default
        if f.type is bool:
            state = " (on unless " + meta["off"] + ")" if meta["off"] else ""
            group.add_argument(flag_of(f), dest=f.name, action="store_true", default=default, help=meta["help"] + state)
            if meta["off"]:
                group.add_argument(meta["off"], dest=f.name, action="store_false", help=argparse.SUPPRESS)
            continue
        required = default is dc.MISSING
        shown = meta["none"] if default is None else " ".join(map(str, default)) if isinstance(default, list) else default
        group.add_argument(flag_of(f), dest=f.name, type=type_of(f), choices=meta["choices"], nargs=meta["nargs"], metavar=placeholder(f),
                           required=required, default=None if required else default,
                           help=meta["help"] + ("" if required or shown is None else f" (default: {shown})"))


def placeholder(field):
    """What stands for a flag's value in the help."""
    if field.metadata["choices"]:
        return None
    if field.metadata["nargs"] == 2:
        return "LO", "HI"
    return {"int": "N", "float": "X"}.get(type_of(field).__name__, "TEXT")


def take(options_class, args):
    """Pick the fields of `options_class` out of parsed `args`; its own checks run here."""
    return options_class(**{f.name: getattr(args, f.name) for f in dc.fields(options_class)})


def check_fields(options):
    """Hold every field to its flag's type and choices, so that a notebook's mistake is told like a typed one.

    Raises:
        SetupError: a value that its flag would refuse.
    """
    for f in dc.fields(options):
        value, flag, meta = getattr(options, f.name), flag_of(f), f.metadata
        if f.type is bool and not isinstance(value, bool):
            raise SetupError(f"{flag} {value}: is neither True nor False.")
        if f.type is bool or value is None and f.default is None:
            continue
        values = [value] if isinstance(value, str) or not meta["nargs"] else value
        try:
            values = [type_of(f)(str(one)) for one in values]
        except argparse.ArgumentTypeError as error:
            raise SetupError(f"{flag}: {error}; see --help.") from None
        except (ValueError, TypeError):
            raise SetupError(f"{flag} {value}: is no {type_of(f).__name__}; see --help.") from None
        if "" in values:  # an unset variable of the shell
            raise SetupError(f"{flag}: is empty; give a value, or leave the flag out.")
        if meta["choices"] and values[0] not in meta["choices"]:
            raise SetupError(f"{flag} {value}: no such choice; it is one of {', '.join(map(str, meta['choices']))}.")
        setattr(options, f.name, values if meta["nargs"] else values[0])  # plain values: checkpoints hold nothing else


def type_of(field):
    """What turns a flag's text into the field's value."""
    kind = next(iter(get_args(field.type)), field.type)
    return field.metadata["type"] or (kind if kind in (int, float) else word)


def at_least(least, kind=int, most=math.inf):
    """A flag's type: a finite number from `least` to `most`."""
    def parse(text):
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            raise argparse.ArgumentTypeError(f"{text.strip()} is not a number of {least} or more" if most == math.inf else f"{text.strip()} does not lie between {least} and {most}")
        return value

    parse.__name__ = kind.__name__
    return parse


def word(text):
    """A flag's type: text, freed from the space that `protected` put before it."""
    return text[1:] if text.startswith(" -") else text


def auto_or(kind):
    """A flag's type: None for `auto`, else `kind`."""
    def parse(text):
        return None if text.lower() == "auto" else kind(text)

    parse.__name__ = getattr(kind, "__name__", "value")
    return parse


def filled(text):
    """A flag's type: text. Without any, as of an unset variable of the shell, it would mean the folder one is in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, name a path")
    return text
