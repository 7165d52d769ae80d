"""Label codes become classes; what cannot be told is asked, never guessed."""

import numpy as np
import pytest

from eoseg.coding import Coding, key_of, names_of, parse_map
from eoseg.errors import DataError, SetupError

TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")


def decode(values, tag=None, mapping=None, nodata=None, classes=None, dtype="int16"):
    found = Coding(mapping and parse_map(mapping), nodata, classes).decode(np.array([values], dtype), tag, "label.tif")
    assert found.dtype == np.uint8
    return found[0].tolist()


# ---------------------------------------------------------------- --label_map


def test_a_map_takes_codes_names_and_ignore():
    assert parse_map(["11=0", "water=2", "-1=ignore", " 12=1", "2.5=4", "a=b=3"]) == {"11": 0, "water": 2, "-1": 255, "12": 1, "2.5": 4, "a=b": 3}
    assert parse_map(None) is None


@pytest.mark.parametrize("word", ["11", "=1", "11=", "11=x", "11=255", "11=300", "11=-1", "11=1.5", "11=\u00b2", "11=Ignored"])
def test_a_word_that_is_no_map_is_refused_by_name(word):
    with pytest.raises(SetupError, match=f"^--label_map {word}: .*CODE=CLASS"):
        parse_map([word])


@pytest.mark.parametrize("words", [["11=0", "11=1"], ["11=0", "11.0=1"], ["water=0", "water=ignore"]])
def test_a_code_given_twice_is_refused(words):
    with pytest.raises(SetupError, match="twice"):
        parse_map(words)


def test_a_code_has_one_spelling():
    assert {key_of(value) for value in (11, 11.0, "11", " 11 ", "11.0", np.uint8(11), np.float32(11))} == {"11"}
    assert key_of("-0") == "0" and key_of("1.50") == "1.50" and key_of("nan") == "nan" and key_of(None) == "None"


@pytest.mark.parametrize("words, names", [
    (["water=0", "crop=1", "river=0"], ["water/river", "crop"]),
    (["crop=2", "-1=ignore", "cloud=ignore"], ["class_0", "class_1", "crop"]),
    (["11=0", "-3=1", "2.5=2"], None),
    (["water=0", "12=1"], ["water", "class_1"]),
])
def test_names_come_from_the_map_where_it_has_some(words, names):
    assert names_of(parse_map(words)) == names


def test_no_map_brings_no_names():
    assert names_of(None) is None


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_of_label_is_decoded_alike(dtype):
    assert decode([0, 1, 4, 3], dtype=dtype, classes=5) == [0, 1, 4, 3]
    assert decode([11, 82, 11, 3], mapping=["11=0", "82=1", "3=ignore"], dtype=dtype) == [0, 1, 0, 255]
    assert decode([0, 1, 9, 1], tag=9, classes=2, dtype=dtype) == [0, 1, 255, 1]
    assert decode([0, 1, 9, 1], nodata="9", classes=2, dtype=dtype) == [0, 1, 255, 1]
    with pytest.raises(DataError, match="label.tif: holds label values 7,"):
        decode([0, 1, 7, 1], classes=2, dtype=dtype)


@pytest.mark.parametrize("dtype", [t for t in TYPES if t not in ("uint8", "uint16", "uint32")])
def test_minus_1_is_ignored_when_told_so_and_refused_otherwise(dtype):
    assert decode([-1, 0, 1], mapping=["-1=ignore", "0=0", "1=1"], dtype=dtype) == [255, 0, 1]
    assert decode([-1, 0, 1], tag=-1, classes=2, dtype=dtype) == [255, 0, 1]
    for classes in (2, None):
        with pytest.raises(DataError, match="-1"):
            decode([-1, 0, 1], classes=classes, dtype=dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_255_is_unlabelled_unless_the_map_says_otherwise(dtype):
    assert decode([0, 255, 1], dtype=dtype, classes=2) == decode([0, 255, 1], dtype=dtype) == [0, 255, 1]
    assert decode([0, 255, 1], mapping=["0=0", "1=1"], dtype=dtype) == [0, 255, 1]
    assert decode([0, 255, 0], mapping=["0=0", "255=1"], dtype=dtype) == [0, 1, 0]
    assert decode([0, 255, 255], tag=255, classes=2, dtype=dtype) == [0, 255, 255]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_with_whole_values_are_classes_and_others_are_refused(dtype):
    assert decode([0.0, 1.0, 2.0], classes=3, dtype=dtype) == [0, 1, 2]
    with pytest.raises(DataError, match=r"label.tif: holds label values 1\.5.*--label_map 1\.5=ignore"):
        decode([0, 1.5, 1], dtype=dtype)
    assert decode([0, 1.5, 1], mapping=["0=0", "1=1", "1.5=ignore"], dtype=dtype) == [0, 255, 1]


@pytest.mark.parametrize("nodata, tag", [(None, None), (None, np.nan), ("none", None), ("none", np.nan), ("nan", 0)])
@pytest.mark.parametrize("mapping", [None, ["0=0", "1=1"]])
def test_nan_and_infinity_are_unlabelled_whatever_is_told(nodata, tag, mapping):
    values = [0, np.nan, 1, np.inf, -np.inf]
    assert decode(values, tag=tag, nodata=nodata, mapping=mapping, dtype="float32") == [0, 255, 1, 255, 255]


@pytest.mark.parametrize("value", [-3.4028234663852886e38, 1e300, 2.0**60])
def test_huge_floats_are_refused_or_taken_as_the_tag(value):
    assert decode([0, value], tag=value, classes=2, dtype="float64") == [0, 255]
    with pytest.raises(DataError):
        decode([0, value], classes=2, dtype="float64")


def test_values_that_are_no_classes_are_never_clipped_into_one():
    with pytest.raises(DataError, match="label.tif: holds label values 5, 6, 200, which are no classes .classes are 0 to 4"):
        decode([0, 4, 5, 6, 200], dtype="uint8", classes=5)
    with pytest.raises(DataError, match="mapped are 11, 21.*--label_map 22=ignore"):
        decode([11, 21, 22], mapping=["11=0", "21=1"], dtype="uint8")


def test_many_strange_values_are_counted_not_listed():
    with pytest.raises(DataError, match="and 92 more"):
        decode(list(range(102)), classes=2, dtype="int32")


def test_classes_do_not_hang_on_what_occurs_in_a_file():
    coding = Coding(parse_map(["11=0", "21=1", "82=2"]))
    assert coding.decode(np.array([[82]], "uint8"), None, "a").tolist() == [[2]]
    assert coding.decode(np.array([[21, 82]], "int16"), None, "b").tolist() == [[1, 2]]


def test_the_shape_is_kept():
    codes = np.arange(12).reshape(3, 4)
    for dtype in TYPES:
        assert np.array_equal(Coding().decode(codes.astype(dtype), None, "a"), codes)


# ---------------------------------------------------------------- the nodata tag


def refused(values, tag, **settings):
    with pytest.raises(DataError) as error:
        decode(values, tag, **settings)
    said = str(error.value)
    assert said.startswith("label.tif: ") and "--label_nodata none" in said and f"--label_nodata {tag:g}" in said and "among the classes" in said


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("classes", [2, None])
def test_a_tag_among_the_classes_is_refused_naming_both_remedies(dtype, classes):
    refused([0, 1, 1], 0, classes=classes, dtype=dtype)
    refused([0, 1, 1], 0.0, classes=classes, dtype=dtype)
    refused([11, 21], 11, mapping=["11=0", "21=1"], dtype=dtype)
    refused([21, 21], 11, mapping=["11=0", "21=1"], dtype=dtype)  # also where the value itself does not occur


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("classes", [2, None])
def test_each_remedy_is_obeyed(dtype, classes):
    assert decode([0, 1, 1], 0, nodata="none", classes=classes, dtype=dtype) == [0, 1, 1]
    assert decode([0, 1, 1], 0, nodata="NONE", classes=classes, dtype=dtype) == [0, 1, 1]
    assert decode([0, 1, 1], 0, nodata="0", classes=classes, dtype=dtype) == [255, 1, 1]
    assert decode([0, 1, 1], 0, nodata=0, classes=classes, dtype=dtype) == [255, 1, 1]  # a notebook's number
    assert decode([0, 1, 1], 0, mapping=["0=ignore", "1=0"], dtype=dtype) == [255, 0, 0]
    assert decode([11, 21], 11, mapping=["11=0", "21=1"], nodata="none", dtype=dtype) == [0, 1]


@pytest.mark.parametrize("values, tag", [([0, 1, 2], 200), ([0, 1, 2], -128), ([0, 1, 2], np.nan), ([0, 1, 255], 255), ([1, 2, 3], 9), ([1, 2], 0.5)])
def test_a_tag_that_is_not_among_the_classes_is_simply_unlabelled(values, tag):
    assert decode(values, tag, dtype="float64") == [255 if value == tag else value for value in values]
    assert decode([*values, tag], tag, dtype="float64") == [*values, 255]


def test_a_tag_met_before_the_classes_above_it_is_refused_once_they_come():
    coding = Coding()
    assert coding.decode(np.zeros((1, 2), "uint8"), 0, "a").tolist() == [[255, 255]]
    with pytest.raises(DataError, match="--label_nodata none"):
        coding.decode(np.ones((1, 2), "uint8"), 0, "a")
    other = Coding()
    other.decode(np.zeros((1, 2), "uint8"), 0, "a")
    assert other.decode(np.ones((1, 2), "uint8"), 9, "b").tolist() == [[1, 1]]  # another file, another tag


def test_a_tag_among_the_classes_that_training_knows_is_refused_though_no_higher_class_occurs():
    refused([0, 1, 4], 4, classes=5)
    assert decode([0, 1, 4], 4) == [0, 1, 255]  # extraction knows no number of classes


def test_a_tag_below_classes_met_earlier_is_refused():
    coding = Coding()
    coding.decode(np.array([[0, 3]], "uint8"), 1, "a")
    with pytest.raises(DataError, match="--label_nodata 1 "):
        coding.decode(np.array([[1, 1]], "uint8"), 1, "a")


def test_a_tag_that_does_not_occur_is_no_doubt_while_nothing_names_it_a_class():
    assert decode([1, 2, 3], 0, dtype="uint8") == [1, 2, 3]


def test_label_nodata_that_is_no_number_is_refused():
    with pytest.raises(SetupError, match="^--label_nodata water: "):
        Coding(nodata="water")
