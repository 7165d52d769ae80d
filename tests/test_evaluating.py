"""--evaluate and --calibrate: any folder of patches, by any checkpoint, from end to end."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
import rasterio
import torch
from tinypatches import FLAGS, change, config, speckled

import model_training_v2 as training
from eoseg import areas, checkpoint, evaluating, files, models
from eoseg.errors import SetupError, Stopped, Terminated
from eoseg.normalize import Normalizer

pytestmark = pytest.mark.usefixtures("narrow", "without_fsync")
NAMES = ["low", "middle", "high"]
WRITTEN = ["classes.csv", "confusion_matrix.png", "metrics.json", "patches.csv", "reliability.png", "summary.txt", "worst_patches.png"]


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("eoseg.intervals.RESAMPLES", 50)
        yield


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "judged" not in request.fixturenames:
        monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)


@pytest.fixture(scope="module")
def root(tmp_path_factory, narrow):
    return speckled(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    """A run that was not calibrated: the folder it left."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("eoseg.plots.save", lambda figure, path: path)
        training.train(config(root, folder, epochs=4, learning_rate=1e-2, class_names=NAMES))
    return folder


@pytest.fixture(scope="module")
def binary(root, tmp_path_factory):
    """A calibrated run of two classes."""
    folder = tmp_path_factory.mktemp("binary")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("eoseg.plots.save", lambda figure, path: path)
        training.train(config(root, folder, mode="binary", label_map=["0=0", "1=0", "2=1"], calibrate=True))
    return folder


@pytest.fixture(scope="module")
def judged(plain, tmp_path_factory):
    """The final network on test: the folder of results."""
    folder = tmp_path_factory.mktemp("judged")
    evaluating.evaluate([plain / "unet-dropout_final.pth"], "test", {"save_dir": str(folder), "workers": 0})
    return folder / "unet-dropout_final_test"


def final(folder):
    return folder / "unet-dropout_final.pth"


def evaluate(path, to, split="test", **given):
    """Scores as JSON has them."""
    return files.without_nan(evaluating.evaluate([path], split, {"save_dir": str(to), "workers": 0, **given}))


def copied(root, to):
    shutil.copytree(root, to, ignore=shutil.ignore_patterns(".cache"))
    return to


def tell(root, **about):
    (root / "patch_metadata.json").write_text(json.dumps(about))
    return root


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits_by_hand(root, folder, split, nodata=0):
    """Truth (n,) and logits (n, C) of every labelled pixel, in the order of patches.csv, by plain torch."""
    saved = torch.load(final(folder), weights_only=True)
    net = models.build_model("unet-dropout", 3, saved["config"]["num_classes"]).eval()
    net.load_state_dict(saved["model_state_dict"])
    truth, logits = [], []
    for path in sorted(root.glob(f"{split}/images/*")):
        image, label = rasterio.open(path).read(), rasterio.open(str(path).replace("images", "labels")).read(1)
        holes = np.broadcast_to((image == nodata).all(0), image.shape)
        with torch.no_grad():
            out = net(torch.from_numpy(Normalizer.from_dict(saved["normalization"])(image, holes)[None]))[0]
        known = ~holes[0] & (label != 255)
        truth.append(label[known])
        logits.append(out.movedim(0, -1)[torch.from_numpy(known)])
    return truth, logits


# ---------------------------------------------------------------- what is found


def test_the_scores_on_test_are_those_that_the_run_found(plain, judged):
    run = json.loads((plain / "unet-dropout_metrics.json").read_text())["test"]
    found = json.loads((judged / "metrics.json").read_text())
    assert {key: found["scores"][key] for key in run} == run and run["mean_iou"] > 0
    assert (found["split"], found["patches"], found["temperature"], found["threshold"]) == ("test", 3, [1.0], None)
    assert found["checkpoints"] == [str(final(plain))]


def test_the_scores_are_those_sklearn_finds(root, plain, judged):
    from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, precision_recall_fscore_support

    found = json.loads((judged / "metrics.json").read_text())["scores"]
    truth, logits = logits_by_hand(root, plain, "test")
    called = [one.argmax(1).numpy() for one in logits]
    every, all_called = np.concatenate(truth), np.concatenate(called)
    precision, recall, f1, support = precision_recall_fscore_support(every, all_called, labels=[0, 1, 2], zero_division=0)
    for i, name in enumerate(NAMES):
        wanted = {"precision": precision[i], "recall": recall[i], "f1": f1[i], "support": support[i]}
        assert {key: found["per_class"][name][key] for key in wanted} == pytest.approx(wanted)
    assert found["confusion_matrix"] == confusion_matrix(every, all_called, labels=[0, 1, 2]).tolist()
    assert (found["accuracy"], found["kappa"]) == pytest.approx((accuracy_score(every, all_called), cohen_kappa_score(every, all_called)))
    with open(judged / "patches.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["patch"] for row in rows] == ["p0.tif", "p1.tif", "p2.tif"]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([accuracy_score(*one) for one in zip(truth, called)])


def test_an_evaluation_leaves_tables_words_and_pictures(judged):
    assert sorted(path.name for path in judged.iterdir()) == WRITTEN
    for path in judged.glob("*.png"):
        with rasterio.open(path) as picture:
            assert min(picture.shape) > 100 and picture.read().std() > 5
    scores = json.loads((judged / "metrics.json").read_text())["scores"]
    with open(judged / "classes.csv", newline="") as f:
        *classes, whole = csv.DictReader(f)
    assert [row["class"] for row in classes] == NAMES and float(whole["iou"]) == scores["mean_iou"] and int(whole["support"]) == sum(int(row["support"]) for row in classes)
    for row in classes:
        part = scores["per_class"][row["class"]]
        assert float(row["iou"]) == part["iou"] and float(row["area_mapped"]) == scores["areas"]["per_class"][row["class"]]["mapped"]
        assert [float(row["iou_low"]), float(row["iou_high"])] == scores["intervals"][f"iou_{row['class']}"]
    text = (judged / "summary.txt").read_text()
    assert f"{scores['mean_iou']:.3f}" in text and "areas in hectares" in text and all(name in text for name in NAMES)


def test_the_worst_patches_are_shown_worst_first_and_none_without_a_mistake(root, plain, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("eoseg.scoreplots.draw_panel", lambda patches, *rest: shown.append([one.caption for one in patches]))
    other = copied(root, tmp_path / "patches")
    truth, logits = logits_by_hand(root, plain, "test")
    right = [(one.argmax(1).numpy() == label).mean() for label, one in zip(truth, logits)]
    evaluate(final(plain), tmp_path / "out", dataset_root=str(other))
    assert shown == [[f"p{i}  {right[i]:.0%} right" for i in np.argsort(right)]]
    monkeypatch.setattr("eoseg.judging.decide", lambda probability, threshold: (torch.zeros(probability[:, 0].shape, dtype=torch.int64), probability[:, 0]))
    for path in other.glob("test/labels/*"):
        change(path, lambda label: np.zeros_like(label))
    earlier = tmp_path / "out/unet-dropout_final_test/worst_patches.png"
    earlier.write_bytes(b"of the time before")
    evaluate(final(plain), tmp_path / "out", dataset_root=str(other), overwrite=True)
    assert len(shown) == 1 and not earlier.exists()


# ---------------------------------------------------------------- other patches


def test_any_folder_of_any_data_set_is_a_split_and_a_class_without_labels_is_left_out(root, plain, tmp_path, script):
    other = copied(root, tmp_path / "patches")
    (other / "test").rename(other / "bolivia")
    for path in other.glob("bolivia/labels/*"):
        change(path, lambda label: np.where(label == 2, 255, label).astype("uint8"))
    status, out, err = script("main_v2", "--evaluate", final(plain), "--dataset_root", other, "--split", "bolivia", "--save_dir", tmp_path, "--workers", 0)
    assert status == 0 and "not in the truth, left out of the mean: high" in out, err
    found = json.loads((tmp_path / "unet-dropout_final_bolivia/metrics.json").read_text())["scores"]
    assert found["absent"] == ["high"] and found["per_class"]["high"]["iou"] is None and found["mean_iou"] == pytest.approx(np.mean([found["per_class"][name]["iou"] for name in NAMES[:2]]))


def test_bands_are_taken_by_name(root, tmp_path):
    """The network was trained on red, green, blue; the patches name them in another order, among others."""
    three = tell(copied(root, tmp_path / "three"), bands={"names": ["red", "green", "blue"]})
    for i, path in enumerate(sorted(three.glob("*/images/*"))):
        change(path, lambda image: image * np.array([1, 2, 3], "uint16")[:, None, None])
    training.train(config(three, tmp_path / "run", epochs=1))
    straight = evaluate(final(tmp_path / "run"), tmp_path / "a")
    four = tell(copied(three, tmp_path / "four"), bands={"names": ["nir", "blue", "green", "red"]})
    for path in four.glob("*/images/*"):
        change(path, lambda image: np.stack([image[0] // 7, image[2], image[1], image[0]]))
    assert evaluate(final(tmp_path / "run"), tmp_path / "b", dataset_root=str(four)) == straight
    with pytest.raises(SetupError, match=r"^--dataset_root .*four: its patches have 4 bands .nir, a, b, c., the network takes 3 .red, green, blue.; extract them"):
        evaluate(final(tmp_path / "run"), tmp_path / "c", dataset_root=str(tell(four, bands={"names": ["nir", "a", "b", "c"]})))
    assert not (tmp_path / "c").exists()


def test_bands_of_other_names_are_taken_by_place_and_that_is_said(root, plain, tmp_path, capsys):
    evaluate(final(plain), tmp_path / "out", dataset_root=str(tell(copied(root, tmp_path / "p"), bands={"names": ["vv", "vh", "dem"]})))
    assert "bands vv, vh, dem are taken by place for band_1, band_2, band_3; if they are other bands, the scores are wrong" in capsys.readouterr().out


def test_classes_of_other_numbers_are_refused_with_the_map_that_mends_it(root, plain, judged, tmp_path):
    other = tell(copied(root, tmp_path / "p"), class_names=["rock", "high", "low", "middle"])
    for path in other.glob("*/labels/*"):
        change(path, lambda label: np.where(label == 255, 255, np.array([2, 3, 1])[np.minimum(label, 2)]).astype("uint8"))
    with pytest.raises(SetupError, match="^--dataset_root .*: its classes are rock, high, low, middle, those of the network low, middle, high; give --label_map ") as refused:
        evaluate(final(plain), tmp_path / "out", dataset_root=str(other))
    words = str(refused.value).rstrip(".").split("--label_map ")[1].split()
    assert words == ["0=ignore", "1=2", "2=0", "3=1"] and not (tmp_path / "out").exists()
    run = json.loads((judged / "metrics.json").read_text())["scores"]
    assert evaluate(final(plain), tmp_path / "out", dataset_root=str(other), label_map=words) == run


def test_classes_of_other_names_alone_are_taken_by_number_and_that_is_said(root, plain, tmp_path, capsys):
    evaluate(final(plain), tmp_path / "out", dataset_root=str(tell(copied(root, tmp_path / "p"), class_names=["sea", "field", "wood"])))
    assert "classes sea, field, wood are taken by number for low, middle, high" in capsys.readouterr().out


def test_several_networks_are_one_whose_probabilities_are_the_mean(root, plain, tmp_path, script):
    paths = [plain / f"unet-dropout_{kind}.pth" for kind in ("final", "last", "best_loss")]
    status, out, err = script("main_v2", "--evaluate", *paths, "--save_dir", tmp_path, "--workers", 0)
    assert status == 0 and "the mean of 3 networks" in out, err
    total, folder = 0, tmp_path / "copy"
    for path in paths:
        folder.mkdir(exist_ok=True)
        shutil.copy(path, final(folder))
        truth, logits = logits_by_hand(root, folder, "test")
        total = total + torch.cat(logits).softmax(1)
    found = json.loads((tmp_path / "unet-dropout_final_and_2_more_test/metrics.json").read_text())
    assert found["scores"]["accuracy"] == pytest.approx((total.argmax(1).numpy() == np.concatenate(truth)).mean(), abs=2e-3) and len(found["checkpoints"]) == 3


def test_a_folder_of_folds_stands_for_its_networks_and_keeps_the_results(root, tmp_path):
    folder = tmp_path / "folds"
    found = training.cross_validate(config(root, folder, val_strategy="kfold", n_splits=2, epochs=1, fold_by="random"))
    scores = evaluating.evaluate([folder], "test", {"workers": 0})
    assert scores["mean_iou"] == found["test"]["mean_iou"] and (folder / "unet-dropout_kfold_test/metrics.json").exists()
    before = content(folder)
    with pytest.raises(SetupError, match="^--calibrate: .*fold1.*was trained on patches of validation/ too.*cross-validate with --calibrate"):
        evaluating.evaluate([folder], "test", {"workers": 0, "calibrate": True, "overwrite": True})
    assert content(folder) == before


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("words, told", [
    (["--split", "nowhere"], "--split nowhere: .* holds no nowhere/images; there is test, train, validation."),
    (["--split", "../test"], r"--split ../test: is not the name of a folder"),
    (["--split", ""], r"--split : is not the name of a folder"),
    (["--epochs", 9], "--epochs 9: .*final.pth was trained with 4; leave the flag out"),
    (["--classes", 5], "--classes 5: .* was trained with 3; leave the flag out"),
    (["--resume"], "--resume: has no say in --evaluate"),
    (["--calibrate", "--temperature", 2], "--calibrate: finds temperature and threshold itself"),
    (["--temperature", 0], "--temperature: .* 0"),
    (["--dataset_root", "nowhere"], "--dataset_root nowhere: holds neither"),
    (["--save_dir", __file__], f"--save_dir {__file__}: .* is no folder that can be written to"),
    (["--label_map", "0=0", "1=9"], "--label_map: leads to class 9, but there are 3 classes"),
])
def test_a_mistake_is_one_line_and_writes_nothing(script, plain, tmp_path, words, told):
    import re

    before = content(plain)
    status, _, err = script("main_v2", "--evaluate", final(plain), "--save_dir", tmp_path / "out", "--workers", 0, *words)
    assert status == 2 and re.match(f"error: {told}", err.splitlines()[-1]) and "Traceback" not in err, err
    assert not (tmp_path / "out").exists() and content(plain) == before


def damaged(folder, source):
    shutil.copy(source, folder / "flipped.pth")
    with open(folder / "flipped.pth", "r+b") as f:
        f.seek(source.stat().st_size // 2)
        byte = f.read(1)[0]
        f.seek(-1, 1)
        f.write(bytes([byte ^ 0xFF]))
    (folder / "cut.pth").write_bytes(source.read_bytes()[:3000])
    (folder / "text.pth").write_text("weights")
    (folder / "empty").mkdir()


@pytest.mark.parametrize("name, told", [("flipped.pth", "is damaged .*copy it again"), ("cut.pth", "damaged or truncated; copy it again"), ("text.pth", "is no checkpoint"),
                                        ("empty", "is not a file"), ("absent.pth", "no such checkpoint")])
def test_a_checkpoint_that_cannot_be_used_is_named(script, plain, tmp_path, name, told):
    import re

    damaged(tmp_path, final(plain))
    before = content(tmp_path)
    for words in ([], ["--calibrate"]):
        status, _, err = script("main_v2", "--evaluate", final(plain), tmp_path / name, "--save_dir", tmp_path / "out", *words)
        assert status == 2 and re.match(f"error: .*{name}: .*{told}", err.splitlines()[-1]) and len(err.splitlines()) == 1, err
    assert content(tmp_path) == before and checkpoint.load(final(plain))["calibration"] is None


def test_patches_without_a_label_are_refused(root, plain, tmp_path):
    other = copied(root, tmp_path / "p")
    for path in other.glob("test/labels/*"):
        change(path, lambda label: np.full_like(label, 255))
    with pytest.raises(SetupError, match="^--split: not one pixel of the patches in .*test is labelled"):
        evaluate(final(plain), tmp_path / "out", dataset_root=str(other))


def test_results_that_are_there_are_kept_until_overwritten_whole(plain, judged, tmp_path):
    shutil.copytree(judged, tmp_path / judged.name)
    (tmp_path / judged.name / "metrics.json").write_text("earlier")
    before = content(tmp_path)
    with pytest.raises(SetupError, match="^--evaluate: .*holds results already; give --overwrite"):
        evaluate(final(plain), tmp_path)
    assert content(tmp_path) == before
    evaluate(final(plain), tmp_path, overwrite=True)
    assert json.loads((tmp_path / judged.name / "metrics.json").read_text()) == json.loads((judged / "metrics.json").read_text())


@pytest.mark.parametrize("name, kind", [("SIGTERM", Terminated), ("SIGINT", KeyboardInterrupt), ("SIGUSR1", Stopped)])
def test_a_signal_leaves_no_results_and_no_changed_checkpoint(plain, tmp_path, monkeypatch, name, kind):
    shutil.copy(final(plain), final(tmp_path))
    before = content(tmp_path)
    for place, named, given in ((areas.Ground, "__call__", {}), (evaluating, "calibrate", {"calibrate": True})):
        with monkeypatch.context() as patched, pytest.raises(kind):
            real = getattr(place, named)
            patched.setattr(place, named, lambda *found, real=real: (os.kill(os.getpid(), getattr(signal, name)), real(*found))[1])
            evaluate(final(tmp_path), tmp_path, **given)
        assert content(tmp_path) == before


# ---------------------------------------------------------------- calibration


def test_calibrating_needs_validation_patches(root, plain, tmp_path):
    other = copied(root, tmp_path / "p")
    shutil.rmtree(other / "validation")
    before = content(plain)
    with pytest.raises(SetupError, match="^--dataset_root .*: holds neither Patch/validation/images nor validation/images"):
        evaluate(final(plain), tmp_path / "out", dataset_root=str(other), calibrate=True)
    assert content(plain) == before and not (tmp_path / "out").exists()


def test_calibrating_finds_the_temperature_of_least_loss_and_stores_it_beside_all_else(root, plain, tmp_path, capsys):
    shutil.copy(final(plain), final(tmp_path))
    evaluate(final(tmp_path), tmp_path, calibrate=True)
    before, after = (torch.load(final(folder), weights_only=True) for folder in (plain, tmp_path))
    found = after["calibration"]
    truth, logits = logits_by_hand(root, plain, "validation")
    truth, logits = torch.from_numpy(np.concatenate(truth)).long(), torch.cat(logits)
    loss = lambda temperature: torch.nn.functional.cross_entropy(logits / temperature, truth).item()
    tried = np.geomspace(0.05, 20, 2000)
    assert found["temperature"] == pytest.approx(tried[np.argmin([loss(one) for one in tried])], rel=0.01)
    assert found["nll"] == pytest.approx([loss(1), loss(found["temperature"])], rel=1e-4) and found["pixels"] == len(truth) and "threshold" not in found
    assert before.keys() == after.keys() and before["config"] == after["config"] and files.without_nan(before["test"]) == files.without_nan(after["test"])
    assert all(torch.equal(before["model_state_dict"][name], value) for name, value in after["model_state_dict"].items())
    out = capsys.readouterr().out
    assert f"stored in {final(tmp_path)}" in out and f"temperature {found['temperature']:.4g}; fitted on validation" in out
    assert json.loads((tmp_path / "unet-dropout_final_test/metrics.json").read_text())["temperature"] == [found["temperature"]]


def test_calibrating_changes_how_sure_a_network_is_not_what_it_says(plain, judged, tmp_path):
    shutil.copy(final(plain), final(tmp_path))
    one, two = json.loads((judged / "metrics.json").read_text())["scores"], evaluate(final(tmp_path), tmp_path, calibrate=True)
    assert two["reliability"] != one["reliability"] and two["accuracy"] == pytest.approx(one["accuracy"], abs=2e-3)  # rounded probabilities may tie


def test_a_calibrated_binary_run_is_judged_at_its_threshold_unless_told_otherwise(root, binary, tmp_path):
    found = checkpoint.load(final(binary))["calibration"]
    truth, logits = logits_by_hand(root, binary, "validation")
    truth, logits = np.concatenate(truth) == 2, torch.cat(logits)[:, 0].numpy()
    probability = 1 / (1 + np.exp(-logits / found["temperature"]))
    iou = lambda threshold, sure: ((sure >= threshold) & truth).sum() / ((sure >= threshold) | truth).sum()
    assert iou(found["threshold"], probability) >= max(iou(one, probability) for one in np.linspace(0.01, 0.99, 197)) - 2e-3
    run = json.loads((binary / "unet-dropout_metrics.json").read_text())
    scores = evaluate(final(binary), tmp_path)
    assert scores["per_class"] == run["test"]["per_class"] and run["calibration"]["threshold"] == found["threshold"]
    told = evaluate(final(binary), tmp_path, temperature=1.0, threshold=0.5, overwrite=True)
    test_truth, test_logits = logits_by_hand(root, binary, "test")
    by_hand = iou(0.5, 1 / (1 + np.exp(-torch.cat(test_logits)[:, 0].numpy()))) if (truth := np.concatenate(test_truth) == 2).any() else None
    assert told["per_class"]["class_1"]["iou"] == pytest.approx(by_hand, abs=2e-3)


def test_prediction_says_that_a_network_is_calibrated_and_obeys_the_flags(root, binary, tmp_path, script):
    saved = checkpoint.load(final(binary))
    changed = saved["calibration"] | {"temperature": 2.0, "threshold": 0.0}  # everything is class 1
    checkpoint.save(tmp_path / "unet-dropout_final.pth", **{key: value for key, value in saved.items() if key not in ("format", "calibration")}, calibration=changed)
    scene = root / "test/images/p0.tif"
    called = {}
    for name, words in (("fitted", []), ("told", ["--temperature", 1, "--threshold", 0.5])):
        status, out, err = script("Predict_large_image_v2", "--model", final(tmp_path), "--input", scene, "--output", tmp_path / f"{name}.tif", "--patch_size", 32, "--overlap", 0, *words)
        assert status == 0, err
        called[name] = rasterio.open(tmp_path / f"{name}.tif").read(1), out
    holes = (rasterio.open(scene).read() == 0).all(0)
    _, logits = logits_by_hand(root, binary, "test")
    assert (called["fitted"][0][~holes] == 1).all() and "temperature 2, threshold 0; fitted on validation" in called["fitted"][1]
    known = ~holes & (rasterio.open(str(scene).replace("images", "labels")).read(1) != 255)
    clear = logits[0][:, 0].abs().numpy() > 1e-2
    assert ((called["told"][0][known] == 1) == (logits[0][:, 0].numpy() >= 0))[clear].all() and "temperature 1 as given, threshold 0.5 as given" in called["told"][1]


def test_a_checkpoint_of_the_older_system_is_judged_but_not_calibrated(root, plain, tmp_path):
    saved = torch.load(final(plain), weights_only=True)
    old = {"model_state_dict": saved["model_state_dict"], "config": {"model_name": "unet-dropout", "num_classes": 3, "in_channels": 3, "class_names": NAMES}}
    torch.save(old, tmp_path / "old.pth")
    scores = evaluate(tmp_path / "old.pth", tmp_path, dataset_root=str(root))
    assert scores["per_class"].keys() == set(NAMES) and scores["patches"] == 3
    with pytest.raises(SetupError, match="^--calibrate: .*old.pth is of the older system"):
        evaluate(tmp_path / "old.pth", tmp_path, dataset_root=str(root), calibrate=True, overwrite=True)
    with pytest.raises(SetupError, match="^--dataset_root: .*old.pth does not say on what it was trained"):
        evaluate(tmp_path / "old.pth", tmp_path, overwrite=True)


def test_training_says_what_calibrating_found(root, tmp_path, script):
    status, out, err = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path, "--epochs", 1, "--calibrate")
    assert status == 0 and "\ncalibrated temperature " in out, err
    assert checkpoint.load(final(tmp_path))["calibration"]["temperature"] > 0 and checkpoint.load(tmp_path / "unet-dropout_best_iou.pth").get("calibration") is None


def test_patches_that_were_trained_on_are_told_and_not_calibrated_by(root, plain, tmp_path, capsys):
    evaluate(final(plain), tmp_path, "train")
    assert "warning: --split train: 6 of its 6 patches were trained on; the scores are too good to be believed" in capsys.readouterr().out
    evaluate(final(plain), tmp_path, "test")
    assert "trained on;" not in capsys.readouterr().out
    mixed = copied(root, tmp_path / "mixed")  # wherever the folder lies, and whatever it is called
    for kind in ("images", "labels"):
        shutil.copy(root / "train" / kind / "p5.tif", mixed / "validation" / kind / "p9.tif")
        (mixed / "validation" / kind / "p5.tif").unlink(missing_ok=True)
        (mixed / "validation" / kind / "p9.tif").rename(mixed / "validation" / kind / "p5.tif")
    before = final(plain).read_bytes()
    with pytest.raises(SetupError, match="--calibrate: .*trained on patches of validation"):
        evaluate(final(plain), tmp_path / "out", dataset_root=str(mixed), calibrate=True)
    assert final(plain).read_bytes() == before


def test_an_evaluation_leaves_the_pack_of_training_alone(root, plain, tmp_path):
    here = copied(root, tmp_path / "patches")
    training.train(config(here, tmp_path / "run", epochs=1, class_names=NAMES))
    packs = {path.name for path in (here / ".cache").glob("*.pack")}
    assert packs
    evaluate(tmp_path / "run/unet-dropout_final.pth", tmp_path / "out")
    assert {path.name for path in (here / ".cache").glob("*.pack")} == packs


def test_a_network_that_gives_nan_is_not_scored(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("eoseg.network.probabilities", lambda logits, *rest: logits * float("nan"))
    with pytest.raises(SetupError, match="values that are not finite"):
        evaluate(final(plain), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_whose_best_network_was_calibrated_goes_on(root, tmp_path):
    training.train(config(root, tmp_path, class_names=NAMES))
    evaluating.evaluate([tmp_path / "unet-dropout_best_iou.pth"], "test", {"calibrate": True, "save_dir": str(tmp_path / "out"), "workers": 0})
    assert torch.load(tmp_path / "unet-dropout_best_iou.pth", weights_only=True)["calibration"]
    training.train(config(root, tmp_path, class_names=NAMES, epochs=3, resume=True))
    assert torch.load(final(tmp_path), weights_only=True)["performance_metrics"]["epoch"] in (1, 2, 3)


def test_validation_scores_are_those_before_calibration_which_saw_them(binary):
    metrics = json.loads((binary / "unet-dropout_metrics.json").read_text())
    calibration = metrics["calibration"]
    assert metrics["validation"]["ece"] == pytest.approx(calibration["ece"][0], abs=1e-3)
    assert metrics["validation"]["per_class"]["class_1"]["iou"] == pytest.approx(calibration["iou"][0], abs=1e-3)


def test_calibration_and_judgement_go_on_in_parts_where_memory_is_short(root, plain, tmp_path, monkeypatch):
    real = models.UNetDropout.func.forward if hasattr(models.UNetDropout, "func") else models.UNetDropout.forward
    target = models.UNetDropout.func if hasattr(models.UNetDropout, "func") else models.UNetDropout

    def cramped(self, x):
        if len(x) > 1 and not self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, x)

    whole = evaluate(final(plain), tmp_path / "whole")
    monkeypatch.setattr(target, "forward", cramped)
    assert evaluate(final(plain), tmp_path / "parts")["confusion_matrix"] == whole["confusion_matrix"]
    training.train(config(root, tmp_path / "run", epochs=1, calibrate=True, class_names=NAMES))
    assert torch.load(final(tmp_path / "run"), weights_only=True)["calibration"]["temperature"] > 0
