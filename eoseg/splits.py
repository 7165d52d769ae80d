"""Which patches train, which validate and which test."""

import numpy as np

from eoseg.errors import SetupError, listing
from eoseg.tiles import largest_remainder

SPLITS = ("train", "validation", "test")
SPELLINGS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
             "test": "test", "testing": "test"}


def by_ratio(places, ratios, seed):
    """Give every place to one split at random, in numbers as near to `ratios` as whole numbers come.

    Args:
        places: keys, some perhaps several times (dates of one place): all of one key go together.
    Returns:
        dict place -> split. The same for any order of `places`.
    """
    unique = sorted(set(places))
    order = np.random.default_rng(seed).permutation(len(unique))
    counts = largest_remainder(len(unique), ratios)
    names = np.repeat(SPLITS, counts)
    return {unique[index]: str(name) for index, name in zip(order, names)}


def by_column(values, column):
    """Read a grid's own train / validation / test.

    Raises:
        SetupError: another word, or nothing, stands there.
    """
    found = [SPELLINGS.get(str(value).strip().lower()) for value in values]
    strange = sorted({str(value) for value, name in zip(values, found) if name is None})
    if strange:
        raise SetupError(f"--split_column {column}: holds {listing(strange)}; write train, validation or test in every cell.")
    return found
