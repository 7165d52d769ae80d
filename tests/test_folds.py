"""K folds: who validates when, what the intervals are, and what the folds say together on test patches."""

import csv
import json

import numpy as np
import pytest
import rasterio
import torch
from tinypatches import FLAGS, change, make

import model_training_v2 as training
from eoseg import checkpoint, files, intervals, models, partition, patchset, scoring
from eoseg.errors import SetupError
from eoseg.normalize import Normalizer

pytestmark = pytest.mark.usefixtures("narrow")
FOLDS = {"num_classes": 3, "epochs": 2, "batch_size": 2, "workers": 0, "device": "cpu", "n_splits": 3, "learning_rate": 1e-2, "fold_by": "random"}


def cross_validate(root, folder, **changes):
    return training.cross_validate_model_v2("unet-dropout", root, save_dir=str(folder), **FOLDS | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five and two patches of brightness as they may be, and two for the test; class 2 occurs in one patch alone."""
    root = make(tmp_path_factory.mktemp("patches"), (5, 2, 2))
    for path in root.glob("*/labels/*"):
        if path != root / "train/labels/p3.tif" and path.parts[-3] != "test":
            change(path, lambda label: np.where(label == 2, 1, label))
    for i, path in enumerate(sorted(root.glob("[tv]*/images/*"))):
        change(path, lambda image: (image * (1 + i / 10)).astype("uint16"))
    return root


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """Three folds, trained: their folder and the scores returned."""
    folder = tmp_path_factory.mktemp("folds")
    return folder, cross_validate(root, folder)


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "finished" not in request.fixturenames:
        monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)
        monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_interval_is_students():
    found = intervals.student([0.5, 0.6, 0.7])  # mean 0.6, deviation 0.1, t(0.975, 2) = 4.302653
    assert found["mean"] == pytest.approx(0.6) and found["std"] == pytest.approx(0.1)
    assert (found["low"], found["high"]) == pytest.approx((0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_class_absent_from_a_fold_does_not_count_there(missing):
    found = intervals.student([0.5, missing, 0.7])
    assert found["mean"] == pytest.approx(0.6) and found["high"] - found["mean"] == pytest.approx(12.706205 * 0.1 * 2**0.5 / 2**0.5)
    assert found["folds"][::2] == [0.5, 0.7] and np.isnan(found["folds"][1])
    alone = intervals.student([missing, 0.5])
    assert alone["mean"] == 0.5 and np.isnan(alone["low"]) and np.isnan(intervals.student([missing])["mean"])


def test_the_folds_leave_the_files_of_the_contract(finished):
    folder, _ = finished
    kinds = ("best_loss.pth best_iou.pth final.pth last.pth previous.pth training_plot.png training_log.csv per_class_iou.png metrics.json confusion_matrix.png "
             "reliability.png validation_panel.png validation_patches.csv summary.txt").split()
    single = {f"fold{i}/{name}" for i in (1, 2, 3) for name in ["run.json", *(f"unet-dropout_{kind}" for kind in kinds)]}
    assert {str(path) for path in content(folder)} == single | {f"unet-dropout_kfold{ending}" for ending in ("_metrics.json", ".csv", ".png", "_confusion_matrix.png", "_summary.txt")} | {"run.json"}
    assert (folder / "unet-dropout_kfold.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_holds_each_folds_scores_and_their_intervals(finished):
    folder, returned = finished
    each = [json.loads((folder / f"fold{i}/unet-dropout_metrics.json").read_text()) for i in (1, 2, 3)]
    metrics = json.loads((folder / "unet-dropout_kfold_metrics.json").read_text())
    assert [one["validation"]["mean_iou"] for one in each] == metrics["validation"]["mean_iou"]["folds"] == returned["validation"]["mean_iou"]["folds"]
    assert all(one["test"] is None for one in each)
    with open(folder / "unet-dropout_kfold.csv", newline="") as f:
        table = list(csv.DictReader(f))
    assert [row["fold"] for row in table] == ["1", "2", "3", "mean", "std", "low", "high", "out_of_fold"]
    for key in ("mean_iou", "accuracy", "iou_class_0"):
        values = [float(row[key]) for row in table[:3]]
        assert float(table[3][key]) == pytest.approx(np.mean(values)) and float(table[4][key]) == pytest.approx(np.std(values, ddof=1))
    rare = [row["iou_class_2"] for row in table[:3]]
    assert rare.count("") == 2 and float(table[3]["iou_class_2"]) == float("".join(rare)) and table[5]["iou_class_2"] == ""
    assert metrics["validation"]["iou_class_2"]["low"] is None


def test_each_fold_normalises_by_its_own_training_patches(root, finished):
    pairs = patchset.find_pairs(root, "train") + patchset.find_pairs(root, "validation")
    class_pixels = {image: np.bincount(rasterio.open(label).read(1).ravel(), minlength=3) for image, label in pairs}
    for i, (train, _) in enumerate(partition.divide(pairs, 3, 42, "random", class_pixels=class_pixels).folds, 1):
        seen = np.stack([rasterio.open(image).read(2) for image, _ in train])
        saved = checkpoint.load(finished[0] / f"fold{i}/unet-dropout_final.pth")
        assert saved["statistics"][1]["mean"] == pytest.approx(seen.mean()) and saved["normalization"]["offset"][1] == np.percentile(seen, 1)


def test_the_test_patches_are_scored_once_by_the_mean_of_the_folds(root, finished):
    from sklearn.metrics import jaccard_score

    folder, returned = finished
    pixels, truth, total = [], [], 0
    for path in sorted(root.glob("test/images/*")):
        pixels.append(rasterio.open(path).read())
        truth.append(rasterio.open(str(path).replace("images", "labels")).read(1))
    for i in (1, 2, 3):
        saved = checkpoint.load(folder / f"fold{i}/unet-dropout_final.pth")
        net = models.build_model("unet-dropout", 3, 3).eval()
        net.load_state_dict(saved["model_state_dict"])
        normalize = Normalizer.from_dict(saved["normalization"])
        with torch.no_grad():
            total = total + net(torch.from_numpy(np.stack([normalize(image, np.zeros(image.shape, bool)) for image in pixels]))).softmax(1).numpy()
    iou = jaccard_score(np.stack(truth).ravel(), total.argmax(1).ravel(), labels=[0, 1, 2], average=None)
    for found in (returned["test"], json.loads((folder / "unet-dropout_kfold_metrics.json").read_text())["test"]):
        assert [found["per_class"][f"class_{i}"]["iou"] for i in range(3)] == pytest.approx(iou.tolist(), abs=2e-3)
        assert sum(part["support"] for part in found["per_class"].values()) == 2 * 32 * 32


class Cut(Exception):
    """Stands for a run that is cut off."""


def test_killed_folds_resumed_end_as_if_they_had_not_been(root, finished, tmp_path, monkeypatch):
    calls, real = [], training.epoch_line

    def stop(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:  # in the second fold, after its first epoch
            raise Cut
        return real(*arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(training, "epoch_line", stop)
        cross_validate(root, tmp_path)
    assert not (tmp_path / "fold3").exists() and not (tmp_path / "unet-dropout_kfold.csv").exists()
    first = content(tmp_path / "fold1")
    resumed = cross_validate(root, tmp_path, resume=True)
    assert content(tmp_path / "fold1") == first
    folder, straight = finished
    assert (tmp_path / "unet-dropout_kfold.csv").read_bytes() == (folder / "unet-dropout_kfold.csv").read_bytes()
    assert resumed["test"] == straight["test"]
    for i in (1, 2, 3):
        one, two = (torch.load(place / f"fold{i}/unet-dropout_last.pth", weights_only=True)["model_state_dict"] for place in (folder, tmp_path))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_finished_folds_are_refused_then_replaced_whole(root, tmp_path):
    cross_validate(root, tmp_path, epochs=1)
    (tmp_path / "fold1/fpn_final.pth").write_text("mine")
    before = content(tmp_path)
    for changes in ({}, {"n_splits": 2}):
        with pytest.raises(SetupError, match="--save_dir.*--resume.*--overwrite"):
            cross_validate(root, tmp_path, epochs=1, **changes)
    with pytest.raises(SetupError, match="--resume: .*n_splits .3 -> 2."):
        cross_validate(root, tmp_path, epochs=1, n_splits=2, resume=True)
    with pytest.raises(SetupError, match="--save_dir.*holds a run"):  # a single run of the same network is no less a run
        training.train_and_save_model_v2_full("unet-dropout", root, num_classes=3, device="cpu", save_dir=tmp_path)
    assert content(tmp_path) == before
    cross_validate(root, tmp_path, epochs=1, n_splits=2, overwrite=True)
    left = {str(path) for path in content(tmp_path)}
    assert not any(name.startswith("fold3/unet-dropout") for name in left) and "fold1/fpn_final.pth" in left


def test_more_folds_than_patches_are_refused(script, root, tmp_path):
    status, _, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path / "out", "--val_strategy", "kfold", "--n_splits", 8)
    assert status == 2 and said.splitlines()[-1] == "error: --n_splits 8: the 7 patches show 7 places; give at most as many folds as places."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, count, scored", [([], 7, True), (["train"], 5, True), (["train", "train"], 5, True), (["train", "validation", "test"], 9, False)])
def test_the_folders_named_are_divided_and_test_is_scored_unless_it_is_among_them(root, tmp_path, monkeypatch, capsys, words, count, scored):
    seen = []
    monkeypatch.setattr(training, "fit", lambda config, splits, *rest: seen.append(splits) or {"validation": {}})
    monkeypatch.setattr(training.folds, "conclude", lambda config, single, division, results, test, *rest: len(test))
    tested = cross_validate(root, tmp_path, **({"subdirectories": words} if words else {}))
    held = [pair for splits in seen for pair in splits["validation"]]
    assert len(held) == len(set(held)) == count and all(splits["test"] == [] for splits in seen) and tested == (2 if scored else 0)


def test_scores_out_of_fold_are_those_of_all_validation_pixels_at_once(finished):
    folder, found = finished
    matrix = sum(np.array(json.loads((folder / f"fold{i}/unet-dropout_metrics.json").read_text())["validation"]["confusion_matrix"]) for i in (1, 2, 3))
    whole = found["out_of_fold"]
    assert whole["confusion_matrix"] == matrix.tolist() and matrix.sum() == 7 * 32 * 32 and whole["patches"] == 7
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert [whole["per_class"][f"class_{i}"]["iou"] for i in range(3)] == pytest.approx(iou.tolist())
    low, high = whole["intervals"]["mean_iou"]
    assert low < whole["mean_iou"] < high
    with open(folder / "unet-dropout_kfold.csv", newline="") as f:
        assert float(list(csv.DictReader(f))[-1]["mean_iou"]) == whole["mean_iou"]
    assert sum(part["pixels"] for part in whole["reliability"]) == matrix.sum() and found["division"]["by"] == "random"


def test_summing_one_set_of_scores_gives_them_back(finished):
    one = json.loads((finished[0] / "fold1/unet-dropout_metrics.json").read_text())["validation"]
    again = files.without_nan(scoring.together([one], list(one["per_class"])))
    assert again == {key: pytest.approx(value) if isinstance(value, float) else value for key, value in one.items() if key in again}


def test_the_folds_together_are_one_model_in_prediction(script, root, finished, tmp_path):
    """The map of all folds is the class of the highest mean probability, with each fold's own normalisation."""
    folder, scene = finished[0], sorted(root.glob("test/images/*"))[0]
    finals = [folder / f"fold{i}/unet-dropout_final.pth" for i in (1, 2, 3)]
    status, out, err = script("Predict_large_image_v2", "--model", *finals, "--input", scene, "--output", tmp_path / "m.tif", "--patch_size", 32, "--overlap", 0, "--save_confidence")
    assert status == 0 and "the mean of 3 networks" in out, err
    pixels, total = rasterio.open(scene).read(), 0
    for path in finals:
        saved = checkpoint.load(path)
        net = models.build_model("unet-dropout", 3, 3).eval()
        net.load_state_dict(saved["model_state_dict"])
        with torch.no_grad():
            total = total + net(torch.from_numpy(Normalizer.from_dict(saved["normalization"])(pixels, np.zeros(pixels.shape, bool))[None])).softmax(1)[0] / 3
    sure = total.max(0)
    clear = (total.topk(2, 0).values.diff(dim=0).abs()[0] > 1e-3).numpy()
    assert (rasterio.open(tmp_path / "m.tif").read(1) == sure.indices.numpy())[clear].all() and clear.mean() > 0.9
    assert np.abs(rasterio.open(tmp_path / "m_confidence.tif").read(1) - sure.values.numpy()).max() < 1e-3
    status, out, err = script("Predict_large_image_v2", "--model", folder, "--input", scene, "--output", tmp_path / "again.tif", "--patch_size", 32, "--overlap", 0)
    assert status == 0 and (rasterio.open(tmp_path / "again.tif").read(1) == rasterio.open(tmp_path / "m.tif").read(1)).all(), err


def test_a_folder_that_is_not_there_is_named(root, tmp_path):
    with pytest.raises(SetupError, match="^--subdirectories validatoin: .*validatoin/images"):
        cross_validate(root, tmp_path / "out", subdirectories=["train", "validatoin"])


def test_a_bad_test_patch_is_said_before_the_first_fold(root, tmp_path):
    import shutil

    shutil.copytree(root, tmp_path / "patches")
    change(tmp_path / "patches/test/labels/p1.tif", lambda label: label + 1)
    with pytest.raises(SetupError, match="test/labels/p1.tif: holds label values 3"):
        cross_validate(tmp_path / "patches", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_fold_that_was_never_begun_still_starts_from_the_encoder_weights(root, tmp_path, monkeypatch, capsys):
    import timm

    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "w.pth")
    choice = {"encoder_name": "tu-mobilenetv3_small_050", "encoder_weights": str(tmp_path / "w.pth"), **FOLDS, "n_splits": 2, "epochs": 1}
    real = training.fit
    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(training, "fit", lambda config, *rest: real(config, *rest) if "fold1" in config.save_dir else (_ for _ in ()).throw(Cut()))
        training.cross_validate_model_v2("linknet", root, save_dir=str(tmp_path / "out"), **choice)
    capsys.readouterr()
    training.cross_validate_model_v2("linknet", root, save_dir=str(tmp_path / "out"), resume=True, **choice)
    assert capsys.readouterr().out.count(f"from {tmp_path / 'w.pth'}") == 1


def test_a_signal_amid_the_folds_saves_and_resume_ends_as_if_none_had_come(root, finished, tmp_path, monkeypatch):
    import os
    import signal

    from eoseg.errors import Stopped

    calls = []

    def step(*arguments, real=training.train_step):
        calls.append(1)
        if len(calls) == 8:  # in the second fold: two epochs of three steps, and two
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Stopped) as stop:
        patched.setattr(training, "train_step", step)
        cross_validate(root, tmp_path)
    assert stop.value.status == 143 and not (tmp_path / "fold3").exists()
    cross_validate(root, tmp_path, resume=True)
    one, two = (json.loads((folder / "unet-dropout_kfold_metrics.json").read_text()) for folder in (finished[0], tmp_path))
    assert one["validation"] == two["validation"] and one["folds"] == two["folds"] and one["test"] == two["test"]


def test_finished_folds_resumed_change_nothing(root, finished, tmp_path, capsys):
    import shutil

    folder, scores = finished
    shutil.copytree(folder, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert cross_validate(root, tmp_path / "copy", resume=True)["validation"].keys() == scores["validation"].keys()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*") if path.is_file()} == before
    assert "nothing to do" in capsys.readouterr().out.splitlines()[-1]


def test_folds_that_cannot_start_overwrite_nothing(root, finished, tmp_path):
    import shutil

    shutil.copytree(finished[0], tmp_path / "copy")
    before = content(tmp_path / "copy")
    with pytest.raises(SetupError, match="nowhere.pth"):
        cross_validate(root, tmp_path / "copy", overwrite=True, encoder_weights="nowhere.pth")
    assert content(tmp_path / "copy") == before


def test_overwriting_removes_the_folds_of_an_earlier_cross_validation(root, tmp_path):
    (tmp_path / "fold9").mkdir()
    stale = [tmp_path / "fold9/unet-dropout_final.pth", tmp_path / "unet-dropout_kfold_metrics.json"]
    for path in stale:
        path.write_text("earlier")
    cross_validate(root, tmp_path, overwrite=True, epochs=1)
    assert not stale[0].exists() and stale[1].read_text() != "earlier"
