"""From the codes people keep in labels to class numbers, and what counts as unlabelled: decided here alone."""

import re

import numpy as np

from eoseg.errors import DataError, SetupError, listing

IGNORE = 255  # in targets and label patches: unlabelled
WHOLE = re.compile("[+-]?[0-9]{1,999}")  # Python turns no longer ones into numbers
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_map(words):
    """Turn `11=0 water=2 -1=ignore` into {"11": 0, "water": 2, "-1": 255}; None stays None.

    Raises:
        SetupError: no `=`, a class outside 0 to 254, or a code given twice.
    """
    if words is None:
        return None
    found = {}
    for word in words:
        code, equals, number = word.strip().rpartition("=")
        key = key_of(code)
        if not equals or not code or class_number(number) is None:
            raise SetupError(f"--label_map {word.strip()}: write CODE=CLASS with a class from 0 to 254, or CODE=ignore.")
        if key in found:
            raise SetupError(f"--label_map: code {key} is given twice; give each code one class.")
        found[key] = class_number(number)
    return found


def class_number(text):
    """A class as people write it: 0 to 254, or ignore, which is 255; None for anything else."""
    if text == "ignore":
        return IGNORE
    return int(text) if re.fullmatch("[0-9]{1,9}", text) and int(text) < IGNORE else None


def key_of(value):
    """One spelling for a code or a name: 11, 11.0 and "11" are the same code; 1_1 is a name. Whole numbers are exact, however large."""
    text = str(value).strip()
    if WHOLE.fullmatch(text):
        return str(int(text))
    number = float(text) if NUMBER.fullmatch(text) else np.nan
    return str(int(number)) if np.isfinite(number) and number == int(number) else text


def names_of(mapping):
    """Class names a map brings along: class 0's, class 1's ...; None where it maps bare codes."""
    words = {}
    for code, number in (mapping or {}).items():
        if number != IGNORE and not NUMBER.fullmatch(code):
            words.setdefault(number, []).append(code)
    if not words:
        return None
    last = max(number for number in mapping.values() if number != IGNORE)
    return ["/".join(words.get(number, [f"class_{number}"])) for number in range(last + 1)]


def exact(text):
    """A number as typed; whole ones are not rounded, however large."""
    key = key_of(text)
    return int(key) if WHOLE.fullmatch(key) else float(text)


class Coding:
    """Turns label rasters into classes, the same way for every file.

    Args:
        mapping: what `parse_map` returned; None when codes are classes already.
        nodata: None (each file's tag), "none" (no value is), or a number as text.
        classes: how many there are; None when only the training will know.
    """

    def __init__(self, mapping=None, nodata=None, classes=None):
        self.mapping, self.classes = mapping, classes
        self.by_tag = nodata is None
        try:
            self.nodata = None if self.by_tag or str(nodata).lower() == "none" else exact(nodata)
        except ValueError:
            raise SetupError(f"--label_nodata {nodata}: is neither a number nor none; give one of them.") from None
        self.highest, self.tag_seen = {}, {}  # per file, where no map says what is a class

    def memory(self, where):
        """What `check_tag` must know of the windows of a file seen so far, as plain values: highest class and whether the tag occurred."""
        return [self.highest[where], self.tag_seen[where]] if where in self.highest else None

    def recall(self, where, memory):
        """Take up an earlier run's `memory` of a file."""
        if memory:
            self.highest[where], self.tag_seen[where] = memory

    def nodata_of(self, tag):
        """The value that means unlabelled in a file whose tag is `tag`."""
        return tag if self.by_tag else self.nodata

    def decode(self, codes, tag, where):
        """Classes of a label raster.

        Args:
            codes: (H, W) of any real type. tag: the file's nodata tag or None. where: the file's name.
        Returns:
            (H, W) uint8, 255 where unlabelled.
        Raises:
            DataError: values that are neither a class nor unlabelled, or a tag that could be either.
        """
        if codes.dtype == np.uint8:
            values = np.flatnonzero(np.bincount(codes.ravel(), minlength=256))
        else:
            values, place = np.unique(codes, return_inverse=True)
        nodata = self.nodata_of(tag)
        classes = [self.class_of(value, nodata) for value in values.tolist()]
        unknown = [value for value, number in zip(values.tolist(), classes) if number is None]
        if unknown:
            raise DataError(f"{where}: holds label values {listing(map(key_of, unknown), 8)}, which are no classes ({self._wanted()}); "
                            f"{self._more(unknown)}map them, e.g. --label_map {key_of(unknown[0])}=ignore, or mend the label.")
        self.check_tag(values, tag, where)
        if codes.dtype == np.uint8:
            table = np.full(256, IGNORE, np.uint8)
            table[values] = classes
            return table[codes]
        return np.array(classes, np.uint8)[place].reshape(codes.shape)

    def class_of(self, value, nodata):
        """The class of one value, 255 for unlabelled, None for neither."""
        if value != value or value in (float("inf"), float("-inf")) or value == nodata:
            return IGNORE
        if self.mapping is not None:
            return self.mapping.get(key_of(value), IGNORE if value == IGNORE else None)
        if value != int(value):
            return None
        return int(value) if 0 <= value < (self.classes or IGNORE) or value == IGNORE else None

    def _more(self, unknown):
        """The first remedy, where the codes look like further classes."""
        if self.mapping is not None or not self.classes or not all(self.classes <= value < IGNORE for value in unknown):
            return ""
        return f"give --classes {int(max(unknown)) + 1}{' and --mode multiclass' if self.classes == 2 else ''}, or "

    def _wanted(self):
        if self.mapping is not None:
            return "mapped are " + listing(self.mapping, 8)
        return f"classes are 0 to {(self.classes or IGNORE) - 1}, 255 is unlabelled"

    def check_tag(self, values, tag, where):
        """A nodata tag that lies among the classes: a background class, or unlabelled? Nobody guesses."""
        if not self.by_tag or tag is None or tag != tag or tag in (IGNORE, np.inf, -np.inf):
            return
        if self.mapping is not None:
            doubtful = self.mapping.get(key_of(tag), IGNORE) != IGNORE
        else:
            real = values[np.isfinite(values) & (values != IGNORE) & (values != tag)]
            self.highest[where] = max([self.highest.get(where, -1), *real.tolist()])
            self.tag_seen[where] = self.tag_seen.get(where, False) or bool((values == tag).any())
            top = self.highest[where] if self.classes is None else self.classes - 1
            doubtful = self.tag_seen[where] and 0 <= tag <= top and tag == int(tag)
        if doubtful:
            raise DataError(f"{where}: its nodata tag {tag:g} lies among the classes; say which it is: "
                            f"--label_nodata none (it is a class) or --label_nodata {tag:g} (it is unlabelled).")
