"""Pictures of scores: the PNGs are opened and their pixels held against what was drawn; texts are read from the figure."""


import numpy as np
import pytest
from matplotlib.image import imread

from eoseg import plots, scoreplots
from eoseg.scoreplots import Shown

pytestmark = pytest.mark.usefixtures("without_fsync")
NAMES = ["class 0", "class 1", "class 2"]
PALETTE = plots.colours(NAMES)


def opened(path):
    """A PNG as (H, W, 3) uint8."""
    return (imread(path)[:, :, :3] * 255).round().astype("uint8")


def where(picture, colour):
    return (picture == np.array(colour, "uint8")).all(2)


@pytest.fixture
def drawn(monkeypatch):
    """The figure in place of the path, after it was laid out."""
    def save(figure, path):
        figure.draw_without_rendering()
        return figure
    monkeypatch.setattr(plots, "save", save)
    return scoreplots


def texts(axes):
    return [text.get_text() for text in axes.texts]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# ---------------------------------------------------------------- confusion


def test_a_row_is_shares_of_a_true_class(drawn):
    axes = drawn.draw_confusion(np.array([[900, 100], [1_500_000, 500_000]]), ["land", "water"], None, "unet, test").axes[0]
    assert texts(axes) == ["90.0%\n900", "10.0%\n100", "75.0%\n1.5M", "25.0%\n500k"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("called", "truth", "unet, test")
    assert axes.images[0].get_array().tolist() == [[0.9, 0.1], [0.75, 0.25]] and axes.images[0].get_clim() == (0, 1)


def test_a_class_without_pixels_is_a_grey_row_and_says_so(drawn):
    axes = drawn.draw_confusion(np.array([[8, 2], [0, 0]]), ["land", "water"], None, "t").axes[0]
    assert ticks(axes.yaxis) == ["land", "water (none)"] and ticks(axes.xaxis) == ["land", "water"]
    assert axes.get_ylabel() == "truth (grey: no pixel of this class)" and len(axes.texts) == 2


def test_grey_is_seen_in_the_picture(tmp_path):
    picture = opened(scoreplots.draw_confusion(np.array([[8, 2], [0, 0]]), ["land", "water"], tmp_path / "c.png", "t"))
    grey = np.argwhere(where(picture, (216, 216, 216)))
    height, width = np.ptp(np.percentile(grey, [1, 99], axis=0), axis=0)
    assert len(grey) > 20000 and 1.8 < width / height < 2.2  # one of two rows


@pytest.mark.parametrize("count, text", [(0, "0"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (999_700, "1M"), (1_234_567, "1.23M"), (5 * 10**9, "5G")])
def test_counts_are_short(count, text):
    assert scoreplots.short(count) == text


def test_twenty_classes_with_long_names_do_not_touch(drawn):
    names = [f"Transitional woodland and shrubland of type {i}" for i in range(20)]
    axes = drawn.draw_confusion(np.full((20, 20), 5), names, None, "t").axes[0]
    assert set(texts(axes)) == {"5"} and len(axes.texts) == 400
    labels = ticks(axes.yaxis)
    assert len(set(labels)) == 20 and max(map(len, labels)) <= 28
    for axis in (axes.xaxis, axes.yaxis):
        assert_apart([label.get_window_extent() for label in axis.get_ticklabels()])


def test_254_classes_have_no_text_in_the_cells_and_few_names(drawn):
    axes = drawn.draw_confusion(np.eye(254, dtype=int), [f"species {i}" for i in range(254)], None, "t").axes[0]
    assert not axes.texts and 20 <= len(ticks(axes.yaxis)) <= 60
    assert ticks(axes.xaxis)[1] == f"species {int(axes.get_xticks()[1])}"
    assert_apart([label.get_window_extent() for label in axes.yaxis.get_ticklabels()])


def assert_apart(boxes):
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


# ---------------------------------------------------------------- reliability


def bins_of(*parts):
    nan = float("nan")
    return [{"low": i / 5, "high": (i + 1) / 5, "pixels": pixels, "confidence": sure if pixels else nan, "accuracy": right if pixels else nan}
            for i, (pixels, sure, right) in enumerate(parts)]


def test_bins_stand_at_their_confidence_and_the_gap_between_accuracy_and_confidence(drawn):
    figure = drawn.draw_reliability(bins_of((0, 0, 0), (0, 0, 0), (100, 0.5, 0.55), (100, 0.7, 0.6), (200, 0.9, 0.8)), 0.0876, None, "unet")
    curve, histogram = figure.axes
    accuracy, gap = curve.containers
    assert curve.get_title() == "unet, ECE 0.088" and curve.lines[0].get_xydata().tolist() == [[0.5, 0.55], [0.7, 0.6], [0.9, 0.8]]
    assert [(bar.get_x(), bar.get_height()) for bar in accuracy] == [(0.4, 0.55), (0.6, 0.6), (0.8, 0.8)]
    assert [edge for bar in gap for edge in (bar.get_y(), bar.get_y() + bar.get_height())] == pytest.approx([0.55, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert [bar.get_height() for bar in histogram.patches] == [0.25, 0.25, 0.5]
    assert {text.get_text() for text in curve.get_legend().get_texts()} == {"accuracy", "gap", "as often right as sure"}


def test_no_labelled_pixel_is_an_empty_diagram(tmp_path):
    assert opened(scoreplots.draw_reliability(bins_of(*[(0, 0, 0)] * 5), float("nan"), tmp_path / "r.png", "unet")).shape[0] > 300


# ---------------------------------------------------------------- the panel


def patch(height, width, truth=0, classes=0, confidence=0.5, caption="p"):
    fill = lambda value, dtype: np.full((height, width), value, dtype)
    return Shown(np.full((height, width, 3), 0.25), fill(truth, "uint8"), fill(classes, "uint8"), fill(confidence, "float32"), caption)


def test_right_pixels_are_pale_and_wrong_ones_have_their_colour_in_an_outline():
    one = patch(64, 64)
    one.classes[16:32, 16:32] = 1
    one.truth[:, 48:] = 255
    one.classes[40:60, 48:] = 2  # nobody knows whether that is wrong
    _, label, prediction, _ = scoreplots.pictures(one, PALETTE, 256)
    assert where(prediction, PALETTE[1]).sum() == 64 * 64 and where(prediction, PALETTE[1])[64:128, 64:128].all()
    assert where(prediction, (0, 0, 0)).sum() == 4 * 64 and prediction[63, 100].tolist() == prediction[128, 100].tolist() == [0, 0, 0]
    assert prediction[10, 10].tolist() == [part // 2 + 127 for part in PALETTE[0]]
    assert prediction[200, 220].tolist() == [part // 2 + 127 for part in PALETTE[2]]
    assert where(label, (255, 255, 255))[1:-1, 192:-1].all() and not where(label, (255, 255, 255))[:, :192].any()


def test_confidence_has_one_scale_and_is_blank_where_unknown():
    one = patch(32, 32)
    one.confidence[:, :8], one.confidence[:, 8:16], one.confidence[:, 16:] = 0, 1, np.nan
    certainty = scoreplots.pictures(one, PALETTE, 64)[3]
    assert certainty[5, 5].tolist() == [68, 1, 84] and certainty[5, 20].tolist() == [253, 231, 36] and certainty[5, 50].tolist() == [255, 255, 255]  # the ends of viridis


@pytest.mark.parametrize("shape, side, size", [((32, 32), 256, (256, 256)), ((1024, 1024), 256, (256, 256)), ((300, 500), 256, (154, 256)), ((500, 1), 100, (100, 1))])
def test_patches_of_any_size_keep_their_shape(shape, side, size):
    array = np.add.outer(np.arange(shape[0]) * 1000, np.arange(shape[1]))
    small = scoreplots.fitted(array, side)
    assert small.shape == size and small[0, 0] == 0 and (np.diff(small, axis=0) >= 0).all()
    assert array[-1, -1] - small[-1, -1] <= 1001 * max(shape) / side  # the far corner is there


def test_each_patch_is_a_row_of_four_with_its_caption(drawn):
    shown = [patch(224, 224, caption="first"), patch(32, 64, truth=255, caption="second"), patch(1024, 1024, classes=2, caption="third " * 40)]
    axes = drawn.draw_panel(shown, NAMES, None, "unet, epoch 3").axes[0]
    first, second, third, *heads = texts(axes)
    assert (first, second, heads) == ("first", "second", ["image", "label", "prediction\n(pale: right)", "confidence"]) and third.startswith("third ") and len(third) < 140
    assert axes.get_title() == "unet, epoch 3"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["class 0", "class 2", "unlabelled"]
    assert axes.images[0].get_array().shape[:2] == (3 * 24 + 256 + 128 + 256, 4 * 256 + 3 * 8)


def test_a_wrong_patch_is_seen_in_the_sheet(tmp_path):
    picture = opened(scoreplots.draw_panel([patch(128, 128, truth=0, classes=1)], NAMES, tmp_path / "p.png", "t"))
    truth, called = (np.argwhere(where(picture, PALETTE[i])) for i in (0, 1))
    truth, called = truth[truth[:, 0] < 360], called[called[:, 0] < 360]  # the legend lies below
    assert min(len(truth), len(called)) > 60000
    assert 255 < np.median(called[:, 1]) - np.median(truth[:, 1]) < 275  # a column further to the right


@pytest.mark.parametrize("rows", [1, 6, 16])
def test_a_panel_of_many_rows_makes_no_giant(tmp_path, rows):
    rng = np.random.default_rng(0)
    one = patch(224, 224)._replace(picture=rng.random((224, 224, 3)), classes=rng.integers(0, 3, (224, 224), "uint8"))
    path = scoreplots.draw_panel([one] * rows, NAMES, tmp_path / "p.png", "t")
    assert 200 < opened(path).shape[0] < 4000


# ---------------------------------------------------------------- runs side by side


def row(name, validation=0.7, test=None, **costs):
    found = {"run": name, "validation_mean_iou": validation, "validation_mean_iou_ci_low": validation - 0.05, "validation_mean_iou_ci_high": validation + 0.02, **costs}
    return found | ({"test_mean_iou": test, "test_mean_iou_ci_low": test - 0.1, "test_mean_iou_ci_high": test + 0.1} if test else {})


def test_intervals_are_drawn_for_both_splits_and_costs_beside_them(drawn):
    rows = [row("a", 0.7, 0.6, parameters=24_000_000, epoch_seconds=3.0), row("b", 0.5, parameters=2_000_000)]
    score, parameters, seconds = drawn.draw_comparison(rows, None, "2 runs").axes
    validation, test = score.collections
    assert np.array(validation.get_segments())[:, :, 0] == pytest.approx(np.array([[0.65, 0.72], [0.45, 0.52]]))
    assert np.array(test.get_segments()[0])[:, 0] == pytest.approx([0.5, 0.7])
    assert ticks(score.yaxis) == ["a", "b"] and score.yaxis_inverted()  # the best above
    assert [bar.get_width() for bar in parameters.patches] == [24, 2] and parameters.get_xlabel() == "parameters (M)"
    assert seconds.patches[0].get_width() == 3 and np.isnan(seconds.patches[1].get_width()) and seconds.get_xlabel() == "epoch (s)"


@pytest.mark.parametrize("count", [1, 40])
def test_names_of_runs_do_not_touch(drawn, count):
    rows = [row(f"learning_rate={i / 100},loss_type=dice,encoder_name=resnet34,seed={i}", 0.7 - i / 100) for i in range(count)]
    figure = drawn.draw_comparison(rows, None, "t")
    labels = figure.axes[0].yaxis.get_ticklabels()
    assert len(figure.axes) == 1 and len({label.get_text() for label in labels}) == count and max(len(label.get_text()) for label in labels) <= 44
    assert_apart([label.get_window_extent() for label in labels])
