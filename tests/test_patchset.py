"""Folders of patches: which label belongs to which image."""

import pytest

from eoseg import patchset
from eoseg.errors import SetupError


@pytest.fixture
def root(tmp_path):
    """Empty files are enough: only names count."""
    for name in ("train/images/b.tif", "train/images/a.TIFF", "train/labels/a.TIFF", "train/labels/b.tif", "train/images/.c.tif.part", "train/images/.d.tif",
                 "train/labels/notes.txt", "train/images/b.tif.aux.xml", "validation/images/v.tif", "validation/labels/v.tif"):
        touch(tmp_path, name)
    return tmp_path


def touch(root, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def test_pairs_come_in_order_of_name_and_nothing_else_does(root):
    pairs, lines = patchset.match_splits(root, ("train", "validation", "test"))
    named = {split: [tuple(str(path.relative_to(root / split)) for path in pair) for pair in part] for split, part in pairs.items()}
    assert named == {"train": [("images/a.TIFF", "labels/a.TIFF"), ("images/b.tif", "labels/b.tif")], "validation": [("images/v.tif", "labels/v.tif")], "test": []}
    assert lines == [] and patchset.find_pairs(root, "train") == pairs["train"]


def test_each_lonely_file_is_a_line_and_the_pairs_beside_it_are_found(root):
    for name in ("train/images/x.tif", "train/images/y.tif", "train/labels/x.tiff", "validation/labels/w.tif"):
        touch(root, name)
    pairs, lines = patchset.match_splits(root, ("train", "validation"))
    assert [len(part) for part in pairs.values()] == [2, 1]
    assert lines == [
        f"{root / 'train/images/x.tif'}: image without a label of the same name in labels/; add that, or remove this image.",
        f"{root / 'train/images/y.tif'}: image without a label of the same name in labels/; add that, or remove this image.",
        f"{root / 'train/labels/x.tiff'}: label without an image of the same name in images/; add that, or remove this label.",
        f"{root / 'validation/labels/w.tif'}: label without an image of the same name in images/; add that, or remove this label.",
    ]
    with pytest.raises(SetupError, match="train: x.tif, x.tiff, y.tif: image without a label of the same name, or label without an image; complete"):
        patchset.find_pairs(root, "train")


def test_the_images_of_one_sensor_of_several_are_matched_by_themselves(root):
    for name in ("train/images_s1/a.TIFF", "train/images_s1/z.tif"):
        touch(root, name)
    pairs, lines = patchset.match_splits(root, ("train",), "images_s1")
    assert pairs["train"] == [(root / "train/images_s1/a.TIFF", root / "train/labels/a.TIFF")]
    assert [line.split(": ")[0] for line in lines] == [str(root / "train/images_s1/z.tif"), str(root / "train/labels/b.tif")]
    assert "in images_s1/;" in lines[1]


def test_images_without_a_folder_of_labels_are_one_line(root):
    touch(root, "test/images/t.tif")
    for search in (lambda: patchset.find_pairs(root, "test"), lambda: patchset.match_splits(root, ("train", "test"))):
        with pytest.raises(SetupError, match="labels: no such folder; the labels of .*images belong there"):
            search()


def test_a_file_on_another_drive_keeps_its_whole_name(monkeypatch):
    def relpath(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    patchset.way.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr("os.path.relpath", relpath)
        assert patchset.name_within("/data/train/images/a.tif", "/elsewhere") == "/data/train/images/a.tif"
    patchset.way.cache_clear()
