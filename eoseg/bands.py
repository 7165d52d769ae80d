"""Which band is which: by number, by name, by colour."""

import re

from eoseg.errors import SetupError, listing


def band_names(src):
    """The bands' descriptions; `band_N` where a band has none."""
    return [text or f"band_{number}" for number, text in enumerate(src.descriptions, 1)]


def speaks(name):
    """Does a band's name tell more than its place?"""
    return not re.fullmatch(r"band_\d+", name)


def choose_bands(names, wanted, where, flag="--bands"):
    """Turn numbers and names of bands into numbers from 1.

    Raises:
        SetupError: a band that is not there, or one named twice in the file.
    """
    chosen = []
    for word in map(str, wanted):
        if word.isdecimal() and len(word) < 9 and 1 <= int(word) <= len(names):
            chosen.append(int(word))
        elif names.count(word) == 1:
            chosen.append(names.index(word) + 1)
        else:
            raise SetupError(f"{where}: has no band {word} ({flag}); choose from 1 to {len(names)}: {listing(names, 20)}.")
    return chosen


def find_rgb(names):
    """Where red, green and blue are among bands of these names; None where the names do not say. Three bands without names are they."""
    lower = [name.lower() for name in names]
    for known in [("red", "green", "blue"), ("b04", "b03", "b02"), *[("band_1", "band_2", "band_3")] * (len(names) == 3)]:  # the second: Sentinel-2
        if all(word in lower for word in known):
            return [lower.index(word) for word in known]
    return None
