"""The table of patches: what is written, what is read back, and which patches are the worst."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from eoseg import patchscores
from eoseg.errors import SetupError

pytestmark = pytest.mark.usefixtures("without_fsync")
NAMES = ["land, wet or dry", 'water "deep"', "true_ice"]
MARGINS = np.array([  # hit, true, called, each of three classes
    [[10, 5, 0], [12, 8, 0], [13, 7, 0]],
    [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    [[0, 0, 40], [0, 0, 40], [0, 0, 40]],
])
PAIRS = [(Path(f"images/{name}.tif"), Path(f"labels/{name}.tif")) for name in ("a", "b,1", "c")]


def margins_of(*shares):
    """Margins (P, 3, 2) of patches of which so many of 100 pixels are right; None: nothing is labelled."""
    found = np.zeros((len(shares), 3, 2), int)
    for patch, share in zip(found, shares):
        if share is not None:
            patch[:] = [[share, 0], [100, 0], [share, 100 - share]]
    return found


def test_counts_come_back_as_they_were_written_whatever_the_classes_are_called(tmp_path):
    patchscores.write(tmp_path / "patches.csv", PAIRS, MARGINS, NAMES)
    found = patchscores.read(tmp_path / "patches.csv", NAMES)
    assert found.dtype == np.int64 and np.array_equal(found, MARGINS)
    assert np.array_equal(patchscores.read(tmp_path / "patches.csv", NAMES[::-1]), MARGINS[:, :, ::-1])  # by name, not by place


def test_the_table_says_how_well_each_patch_was_called_by_hand(tmp_path):
    patchscores.write(tmp_path / "patches.csv", PAIRS, MARGINS, NAMES)
    with open(tmp_path / "patches.csv", newline="", encoding="utf-8") as f:
        first, second, third = csv.DictReader(f)
    assert [row["patch"] for row in (first, second, third)] == ["a.tif", "b,1.tif", "c.tif"]
    assert [row["labelled"] for row in (first, second, third)] == ["20", "0", "40"]
    assert float(first["accuracy"]) == 0.75  # 15 of 20
    assert float(first["iou_land, wet or dry"]) == 10 / 15 and float(first['iou_water "deep"']) == 0.5  # 5 / (8 + 7 - 5)
    assert float(first["mean_iou"]) == pytest.approx((2 / 3 + 1 / 2) / 2) and first["iou_true_ice"] == ""
    assert second["accuracy"] == second["mean_iou"] == "" and float(third["accuracy"]) == float(third["iou_true_ice"]) == 1
    assert (first["hit_land, wet or dry"], first["true_land, wet or dry"], first["called_land, wet or dry"]) == ("10", "12", "13")


def test_a_table_without_patches_has_none(tmp_path):
    patchscores.write(tmp_path / "patches.csv", [], np.zeros((0, 3, 2), int), ["a", "b"])
    assert patchscores.read(tmp_path / "patches.csv", ["a", "b"]).shape == (0, 3, 2)


def test_a_table_that_is_missing_damaged_or_of_other_classes_is_named(tmp_path):
    path = tmp_path / "patches.csv"
    patchscores.write(path, PAIRS, MARGINS, NAMES)
    whole = path.read_bytes()
    unclosed = whole.replace(b'"b,1', b'"b' + b"1" * 200_000)  # as a quote that is not closed makes one field of a long table
    for content in (whole.replace(b",13,", b",many,"), whole[:-8], b"\xff\xfe" + whole, unclosed, whole.replace(b"hit_true_ice", b"hit_snow"), None):
        path.write_bytes(content) if content else path.unlink()
        with pytest.raises(SetupError, match=r"patches.csv: is missing or damaged; train this fold anew"):
            patchscores.read(path, NAMES)


def test_the_worst_come_first_and_equals_in_their_order():
    assert patchscores.worst(margins_of(90, 20, 50, 20, 0), 10) == [4, 1, 3, 2, 0]
    assert patchscores.worst(margins_of(90, 20, 50, 20, 0), 3) == [4, 1, 3]


def test_patches_without_a_label_or_without_a_mistake_are_not_among_the_worst():
    assert patchscores.worst(margins_of(None, 100, 99, None, 100), 4) == [2]
    assert patchscores.worst(margins_of(None, 100), 4) == patchscores.worst(np.zeros((0, 3, 2), int), 4) == []


def test_accuracy_is_the_share_of_labelled_pixels_that_are_right():
    found = patchscores.accuracy(margins_of(30, None, 100))
    assert found.tolist() == pytest.approx([0.3, math.nan, 1], nan_ok=True)
    assert patchscores.accuracy(MARGINS)[0] == 0.75  # over all classes, not their mean
