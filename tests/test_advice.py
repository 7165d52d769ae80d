"""What a finished run says of itself in plain words."""

from types import SimpleNamespace

import pytest

from eoseg import advice

NAN = float("nan")


def scores(low=0.6, high=0.7, patches=40, ece=0.01, **iou):
    """Scores of classes named by keyword: their IoU; None is absent. Rare ones of the default have a recall of their IoU."""
    iou = iou or {"land": 0.8, "water": 0.5}
    names = list(iou)
    per_class = {name: {"iou": NAN if value is None else value, "recall": NAN if value is None else value, "support": 0 if value is None else 100} for name, value in iou.items()}
    matrix = [[0 if value is None else round(100 * value) if i == j else round(100 * (1 - value)) if j == (i + 1) % len(names) else 0 for j in range(len(names))]
              for i, value in enumerate(iou.values())]
    known = [value for value in iou.values() if value is not None]
    return {"mean_iou": sum(known) / len(known) if known else NAN, "accuracy": 0.75, "intervals": {"mean_iou": [low, high]}, "patches": patches, "ece": ece,
            "per_class": per_class, "confusion_matrix": matrix, "absent": [name for name, value in iou.items() if value is None]}


def config(**changes):
    return SimpleNamespace(**{"epochs": 20, "augmentation": "basic", "learning_rate": 5e-4, "oversample": False, "calibrate": False, "val_strategy": "split"} | changes)


def history(count=20, train=0.7, validation=0.65):
    return [{"train_iou": train, "val_iou": validation} for _ in range(count)]


def text(validation=None, test=None, shares=None, best=10, told=None, **changes):
    validation = validation or scores()
    return advice.paragraph(config(**changes), told or history(), best, validation, test, shares or dict.fromkeys(validation["per_class"], 0.5))


def test_the_paragraph_tells_the_best_epoch_the_test_and_the_weakest_class():
    assert text(test=scores(0.55, 0.66, land=0.7, water=0.5)) == (
        "The best of 20 epochs was number 10, with a mean IoU of 0.650 on validation (95 % interval over patches 0.600 to 0.700) and 75.0% of its pixels right. "
        "On test patches the mean IoU is 0.600 (0.550 to 0.660). Weakest: water (IoU 0.500, 50.0% of the training pixels, 50% of it called land). "
        "Nothing in these figures asks for a change.")


def test_a_test_much_harder_than_validation_is_said():
    assert "; the test patches are harder than those the network was chosen by" in text(test=scores(land=0.6, water=0.3))
    assert "harder" not in text(test=scores(land=0.75, water=0.4))


@pytest.mark.parametrize("changes, hint", [
    ({"told": history(train=0.9, validation=0.6)}, "known by heart (IoU 0.90 there, 0.60 on validation): --augmentation strong"),
    ({"told": history(train=0.9, validation=0.6), "augmentation": "strong"}, "a higher --dropout_rate"),
    ({"told": history(train=0.3, validation=0.3)}, "even the training patches are not learned (IoU 0.30)"),
    ({"best": 20}, "the scores still rose at the end: more --epochs (--resume goes on from here, with --epochs 40 say)"),
    ({"told": history(2, 0.1, 0.1), "epochs": 2, "best": 1}, "2 epochs are few: more --epochs (--resume goes on from here, with --epochs 10 say)"),
    ({"best": 1}, "nothing was gained after the first epoch: a lower --learning_rate (5e-05, say)"),
    ({"shares": {"land": 0.99, "water": 0.01}, "validation": scores(land=0.8, water=0.2)}, "water is rare and missed: --oversample"),
    ({"shares": {"land": 1.0, "water": 0.0}}, "water has no training pixel: label some"),
    ({"validation": scores(0.5, 0.8)}, "40 validation patches are too few to choose by: --val_strategy kfold"),
    ({"validation": scores(patches=1)}, "1 validation patch is too few"),
    ({"validation": scores(ece=0.2)}, "confidence is off by 0.20 on average: --calibrate"),
    ({"test": scores(ece=0.2)}, "confidence is off by 0.20 on average: --calibrate"),
])
def test_what_the_figures_suggest_is_said(changes, hint):
    said = text(**changes)
    assert f"What to try: {hint}" in said or hint in said.split("What to try: ")[1]


@pytest.mark.parametrize("changes, silent", [
    ({"told": history(train=0.7, validation=0.6)}, "by heart"),
    ({"told": history(2, 0.1, 0.1), "epochs": 2, "best": 1}, "not learned"),
    ({"told": history(15), "best": 15}, "--epochs"),  # stopped early: more epochs would change nothing
    ({"shares": {"land": 0.99, "water": 0.01}, "validation": scores(land=0.8, water=0.2), "oversample": True}, "--oversample"),
    ({"validation": scores(ece=0.2), "calibrate": True}, "--calibrate"),
    ({"validation": scores(0.5, 0.8), "val_strategy": "kfold"}, "--val_strategy"),
])
def test_what_would_not_help_is_not_suggested(changes, silent):
    assert silent not in text(**changes)


def test_classes_of_which_nothing_is_known_are_said_and_never_the_weakest():
    said = text(scores(land=0.8, water=0.5, ice=None))
    assert "ice is not in validation, and nothing is known of it." in said and "Weakest: water" in said
    assert "ice, snow are not in validation, and nothing is known of them." in text(scores(land=0.8, water=0.5, ice=None, snow=None))
    assert "Validation holds one class alone (land)" in text(scores(land=0.8, water=None))


def test_of_many_classes_the_two_lowest_are_told():
    assert "Weakest: c (IoU 0.300, 50.0% of the training pixels, 70% of it called d) and a (IoU 0.400" in text(scores(a=0.4, b=0.8, c=0.3, d=0.9, e=0.7))


def test_one_labelled_patch_gives_no_interval():
    assert "(one labelled patch: no interval)" in text(scores(NAN, NAN, patches=1), test=scores(NAN, NAN)) and "nan" not in text(scores(NAN, NAN, patches=1), test=scores(NAN, NAN))
