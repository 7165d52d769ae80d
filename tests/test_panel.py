"""Patches that are shown with what a network makes of them: which, and how."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tinypatches import config, prepared, speckled

import model_training_v2 as training
from eoseg import panel
from eoseg.panel import Panel, choose


def chosen(*counts, most=3):
    pairs = [(f"p{i}", None) for i in range(len(counts))]
    return choose(pairs, {image: np.array(count) for (image, _), count in zip(pairs, counts)}, most)


def test_every_class_is_seen_where_it_shows_most_the_rarest_first():
    assert chosen([9, 0, 0], [5, 4, 0], [1, 0, 2], [9, 0, 1], [0, 8, 1]) == [0, 2, 4]  # classes 24, 12 and 4 pixels: p2, p4, then p0
    assert chosen([9, 0, 0], [5, 4, 0], [1, 0, 2], [9, 0, 1], [0, 8, 1], most=1) == [2]


def test_the_rest_is_spread_evenly_and_no_patch_is_shown_twice():
    assert chosen(*[[9]] * 4, [10], *[[9]] * 6, most=4) == [0, 4, 5, 10]
    assert chosen([3, 3], [1, 1], most=6) == [0, 1]
    assert chosen([0, 0], [0, 0], [0, 0], most=2) == [0, 2]  # nothing is labelled


def source_of(patches, names):
    """A stand-in for source.Source; a pair's second part says which patch it is."""
    return SimpleNamespace(bands=SimpleNamespace(names=names), fetch=lambda pair: patches[pair[1]])


def test_a_picture_is_red_green_blue_and_white_where_no_data_is():
    pixels = np.zeros((4, 8, 8), "uint16")
    pixels[2] = np.arange(64).reshape(8, 8)  # red rises, blue falls
    pixels[0] = 63 - pixels[2]
    holes = np.zeros(pixels.shape, bool)
    holes[:, 0] = True
    holes[1, 4] = True  # of one band alone
    shown = Panel([(SimpleNamespace(stem="here"), 0)], [0], source_of([(pixels, holes, np.zeros((8, 8), "uint8"))], ["blue", "green", "red", "nir"]))
    picture = shown.known[0][0]
    assert picture.shape == (8, 8, 3) and picture.min() >= 0 and picture.max() <= 1
    rows = picture[1:].reshape(-1, 3)
    assert (np.diff(rows[:, 0]) >= 0).all() and (np.diff(rows[:, 2]) <= 0).all() and rows[-1, 0] > 0.9 and rows[-1, 2] < 0.1
    assert len(np.unique(picture[0], axis=0)) == 1 and not (picture[4] == picture[0, 0]).all(1).any()


def test_a_panel_takes_its_patches_from_any_batch_without_the_padding():
    patches = [(np.ones((3, rows, 4), "uint8"), None, np.full((rows, 4), rows, "uint8")) for rows in (3, 4, 5)]
    watch = Panel([(SimpleNamespace(stem=f"p{i}"), i) for i in range(3)], [2, 0], source_of(patches, ["a", "b", "c"]))
    watch(torch.full((2, 8, 8), 7), torch.full((2, 8, 8), 0.5), [0, 1])
    found = torch.arange(64).view(1, 8, 8)
    watch(found, found / 64, [2])
    worst, first = watch.shown({2: "10% right", 0: "20% right"})
    assert (worst.caption, first.caption) == ("p2  10% right", "p0  20% right") and first.classes.shape == (3, 4) and (first.classes == 7).all()
    assert worst.classes.tolist() == [[row * 8 + col for col in range(4)] for row in range(5)] and worst.classes.dtype == np.uint8
    assert worst.confidence == pytest.approx(worst.classes / 64) and (worst.truth == 5).all()
    watch(found * 0, found * 0.0, [2])
    assert [one.caption for one in watch.shown()] == ["p2", "p0"] and not watch.shown()[0].classes.any()


def test_large_patches_are_thinned_alike(monkeypatch):
    monkeypatch.setattr(panel, "LONGEST", 4)
    row = np.arange(8, dtype="uint8")
    label = np.broadcast_to(row, (8, 8)).copy()
    watch = Panel([(SimpleNamespace(stem="p"), 0)], [0], source_of([(np.broadcast_to(row, (3, 8, 8)).copy(), None, label)], ["a", "b", "c"]))
    watch(torch.from_numpy(label.astype(int))[None], torch.ones(1, 8, 8), [0])
    one, = watch.shown()
    assert one.picture.shape == (4, 4, 3) and one.truth.shape == one.classes.shape == one.confidence.shape == (4, 4) and (one.truth == one.classes).all()


def test_training_shows_the_same_validation_patches_after_every_epoch(narrow, tmp_path, monkeypatch):
    root, seen = speckled(tmp_path / "patches"), []
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)
    monkeypatch.setattr("eoseg.intervals.RESAMPLES", 50)
    monkeypatch.setattr("eoseg.drawing.Artist.__call__", lambda self, jobs: jobs and seen.append({job[0]: job[1:] for job in jobs}))
    training.train(config(root, tmp_path / "run", epochs=3))
    assert [list(jobs) for jobs in seen] == [["draw_curves", "draw_class_iou", "draw_confusion", "draw_panel"]] * 3
    assert [len(jobs["draw_curves"][0]) for jobs in seen] == [1, 2, 3]
    captions = [[one.caption for one in jobs["draw_panel"][0]] for jobs in seen]
    assert captions == [["p0", "p1", "p2", "p3"]] * 3
    for jobs in seen:  # the confusion matrix is that of the pictures beside it
        known = [(one.truth.astype(int), one.classes) for one in jobs["draw_panel"][0]]
        counts = sum(np.bincount(3 * truth[truth != 255] + classes[truth != 255], minlength=9) for truth, classes in known)
        assert counts.reshape(3, 3).tolist() == jobs["draw_confusion"][0]


def test_a_run_prepares_its_panel_from_validation(narrow, tmp_path):
    run, _ = training.prepare(*prepared(speckled(tmp_path / "patches"), tmp_path / "run"))
    assert [known[3] for known in run.panel.known.values()] == ["p0", "p1", "p2", "p3"] and not run.panel.found
