"""Training by an unlucky user: flags, patches, metadata, encoder weights and files that change under the run. Either the run is right, or one line says what is wrong."""

import json
import os
import shutil

import faults
import numpy as np
import pytest
import torch
from conftest import write_raster
from tinypatches import REAL, change, make, rows, saved

import model_training_v2 as training
from eoseg import data

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")  # what Python warns of would stand on stderr
FLAGS = ["--model", "unet-dropout", "--classes", 3, "--workers", 0, "--device", "cpu", "--epochs", 1, "--batch_size", 2, "--cache", "none"]
LINKNET = ["--model", REAL["model_name"], "--encoder_name", REAL["encoder_name"]]
MANY = "9" * 400


@pytest.fixture(autouse=True)
def quick(monkeypatch, narrow, without_fsync):
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)
    monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make(tmp_path_factory.mktemp("good"), (3, 2, 1), 16)


@pytest.fixture
def root(good, tmp_path):
    """Patches to be spoilt."""
    return shutil.copytree(good, tmp_path / "patches")


@pytest.fixture
def train(fate, root):
    """Train on `root` with further flags; files named in `may_change` may change."""
    return lambda *words, may_change=None: fate("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", root.parent / "run", *words, may_change=may_change)


def assert_trained(fate, root, *words):
    """The run ended well: a log of one epoch, and a network of finite weights whose scores are shares."""
    faults.assert_worked(fate, *words)
    state = saved(root.parent / "run", "final.pth")
    assert len(rows(root.parent / "run")) == 1 and all(torch.isfinite(value).all() for value in state["model_state_dict"].values())
    assert 0 <= state["performance_metrics"]["best_val_iou"] <= 1
    return state


def pixels(root, function, where="*/images/*"):
    """Change the pixels of some patches."""
    for path in sorted(root.glob(where)):
        change(path, function)


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("words, told", [
    (["--device", "banana"], "--device banana: no such kind"), (["--device", ""], "--device"), (["--device", "meta"], "--device meta"), (["--device", "cpu:3"], "--device cpu:3"),
    (["--device", "cuda:-1"], "--device cuda:-1"), (["--device", "cuda:99999999999"], "--device"), (["--device", "CPU"], "--device CPU"),
    (["--dataset_root", ""], "--dataset_root: is empty"), (["--save_dir", ""], "--save_dir: is empty"), (["--save_dir", " "], "--save_dir: is empty"), (["--model", ""], "--model"),
    (["--epochs", MANY], "--epochs: a number of 400 digits"), (["--batch_size", MANY], "--batch_size"), (["--n_splits", MANY], "--n_splits"), (["--accumulate", 2**32], "--accumulate"),
    (["--patience", MANY], "--patience"), (["--seed", "1e3"], "--seed"), (["--seed", "9" * 5000], "--seed"), (["--epochs", "nan"], "--epochs"), (["--epochs", "0x5"], "--epochs"),
    (["--warmup_epochs", 1, "--warmup_lr", 1], "--warmup_lr 1: lies above --learning_rate 0.0005"), (["--focal_gamma", "1e308"], "--focal_gamma"), (["--tversky_beta", "1e308"], "--tversky_beta"),
    (["--custom_class_weights", "1e300", 1, 1], "--custom_class_weights"), (["--custom_class_weights", "nan", 1, 1], "--custom_class_weights"), (["--custom_class_weights", -1, 1, 1], "--custom_class_weights"),
    (["--custom_class_weights", "1e-300", "1e-300", "1e-300"], "--custom_class_weights: all are 0, or nearly"), (["--custom_class_weights", "inf", 1, 1], "--custom_class_weights"),
    (["--class_names", "a", "", "b"], "--class_names: is empty"), (["--class_names", "a", " ", "b"], "--class_names"), (["--class_names", "a\nb", "c", "d"], r"'a\nb' is no name"),
    (["--class_names", "a", "\x1b[2J", "b"], r"'\x1b[2J'"), (["--class_names", "a", "\ud800", "b"], "--class_names"), (["--class_names", "a", "a", "b"], "--class_names: a name is given twice"),
    (["--dropout_rate", "nan"], "--dropout_rate"), (["--augment_scale", "nan", 1], "--augment_scale"), (["--ema", "0.99999999999999999999"], "--ema"), (["--clip", "-inf"], "--clip"),
    (["--in_channels", 7], "--in_channels 7"), (["--bands", 0], "no band 0"), (["--bands", -1], "no band -1"), (["--bands", "²"], "no band ²"), (["--bands", "1.0"], "no band 1.0"), (["--bands", ""], "--bands: is empty"),
    (["--save_dir", "{root}/train/images/p0.tif"], "p0.tif: a folder is needed"), (["--save_dir", "{root}/train/images/p0.tif/run"], "a folder is needed"),
    (["--val_strategy", "kfold", "--n_splits", 2**32 - 1], "--n_splits"), (["--val_strategy", "kfold", "--subdirectories", ".."], "--subdirectories .."),
    (["--val_strategy", "kfold", "--subdirectories", ""], "--subdirectories"), (["--init_weights", "{root}"], "--init_weights"), (["--label_nodata", "abc"], "--label_nodata abc"),
], ids=lambda words: " ".join(map(str, words))[:40] if isinstance(words, list) else "")
def test_a_flag_that_cannot_be_is_one_line_and_nothing_is_begun(train, root, words, told):
    faults.assert_refused(train(*(str(word).format(root=root) for word in words)), told)


@pytest.mark.parametrize("words", [
    ["--batch_size", 2**32 - 1, "--calibrate"], ["--accumulate", 2**32 - 1], ["--freeze_encoder", "--freeze_epochs", 2**32 - 1], ["--warmup_epochs", 2**32 - 1, "--warmup_lr", 0],
    ["--patch_size", 1], ["--bands", 1, 1, "band_2"], ["--augment_scale", 100, 100], ["--dropout_rate", 1, "--clip", "1e300"], ["--use_amp", "--amp_dtype", "fp16"],
], ids=lambda words: " ".join(map(str, words))[:40])
def test_an_extreme_flag_is_obeyed(train, root, words):
    assert_trained(train(*words), root)


def test_names_in_any_script_are_drawn_without_a_word_on_stderr(train, root, monkeypatch):
    monkeypatch.undo()
    state = assert_trained(train("--class_names", "é", "中", "🌲"), root)
    assert state["class_names"] == ["é", "中", "🌲"] and (root.parent / "run/unet-dropout_confusion_matrix.png").read_bytes()[:4] == b"\x89PNG"


# ---------------------------------------------------------------- patches


def halved(root, value):
    """A quarter of every image has `value`, as float64."""
    pixels(root, lambda image: np.where(np.indices(image.shape)[1:].max(0) < 8, value, image.astype(float)))


def tagged(root):
    """float64 with the usual tag of that type."""
    least = float(np.finfo(np.float64).min)
    for path in root.glob("*/images/*"):
        image = np.full((3, 16, 16), 300.0)
        image[:, :8] = least
        path.unlink()
        write_raster(path, image, least)


def nearly(root, kind, factor):
    pixels(root, lambda image: image.astype(kind) * kind(factor))


SPOILT = {
    "no pixel of validation is labelled": (lambda root: pixels(root, lambda label: label * 0 + 255, "validation/labels/*"), [], ["validation: not one pixel", "--label_map"]),
    "no pixel of training is labelled": (lambda root: pixels(root, lambda label: label * 0 + 255, "train/labels/*"), [], ["train: not one pixel"]),
    "a fold without a label": (lambda root: pixels(root, lambda label: label * 0 + 255, "*/labels/p[12].tif"), ["--val_strategy", "kfold", "--n_splits", 5, "--fold_by", "random"], ["--n_splits 5", "fold"]),
    "weights of classes that are not there": (lambda root: pixels(root, lambda label: np.where(label == 2, 0, label), "*/labels/*"), ["--custom_class_weights", 0, 0, 1], ["--custom_class_weights 0 0 1"]),
    "raw values of 1e38": (lambda root: halved(root, 1e38), ["--normalization", "none"], ["--normalization none", "is not finite"]),
    "a band of NaN": (lambda root: pixels(root, lambda image: image * np.array([1, 1, np.nan])[:, None, None]), [], ["holds no valid pixel"]),
    "an image that is a folder": (lambda root: (root / "train/images/d.tif").mkdir(), [], ["d.tif: image without a label"]),
    "a link to itself": (lambda root: [(root / "train/images/p0.tif").unlink(), (root / "train/images/p0.tif").symlink_to("p0.tif")], [], ["p0.tif: "]),
    "a truncated patch of validation": (lambda root: (root / "validation/images/p0.tif").write_bytes((root / "validation/images/p0.tif").read_bytes()[:600]), [], ["validation/images/p0.tif"]),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_spoilt_patches_are_one_line(train, root, fault):
    spoil, words, told = SPOILT[fault]
    spoil(root)
    faults.assert_refused(train(*words), *told)


ODD = {
    "constant bands": (lambda root: pixels(root, lambda image: image * 0 + 7), []),
    "constant bands by deviation": (lambda root: pixels(root, lambda image: image * 0 + 7), ["--normalization", "zscore"]),
    "values beyond float32": (lambda root: halved(root, 1e300), []),
    "infinite values": (lambda root: halved(root, np.inf), []),
    "values of 3e38": (lambda root: halved(root, 3e38), ["--normalization", "zscore"]),
    "values of both ends of float32": (lambda root: pixels(root, lambda image: np.where(np.indices(image.shape)[1] % 2, 3e38, -3e38).astype("float32")), []),
    "values below the least float32": (lambda root: nearly(root, np.float64, 1e-312), []),
    "subnormal values by deviation": (lambda root: nearly(root, np.float32, 1e-42), ["--normalization", "zscore"]),
    "the lowest float64 as nodata": (tagged, []),
    "a class that lacks in training": (lambda root: pixels(root, lambda label: np.where(label == 2, 0, label), "train/labels/*"), []),
    "a class that lacks in validation": (lambda root: pixels(root, lambda label: np.where(label == 2, 0, label), "validation/labels/*"), []),
    "one class": (lambda root: pixels(root, lambda label: label * 0 + 1, "*/labels/*"), []),
    "an unlabelled test": (lambda root: pixels(root, lambda label: label * 0 + 255, "test/labels/*"), []),
    "names that differ in the suffix's case": (lambda root: [shutil.copy(root / f"train/{kind}/p0.tif", root / f"train/{kind}/P0.TIF") for kind in ("images", "labels")], []),
}


@pytest.mark.parametrize("fault", ODD)
def test_odd_patches_are_learned_from(train, root, fault):
    spoil, words = ODD[fault]
    spoil(root)
    state = assert_trained(train(*words), root)
    assert np.isfinite(state["normalization"]["scale"]).all() and np.isfinite(np.array(state["normalization"]["scale"], np.float32)).all()


# ---------------------------------------------------------------- metadata


ABOUT = {"bands": {"names": ["r", "g", "n"], "source_bands": [1, 2, 4], "source_count": 4}, "class_names": ["x", "y", "z"], "settings": {"input_nodata": 0}}
TEXTS = {"empty": b"", "no text": bytes(range(256)), "UTF-16": json.dumps(ABOUT).encode("utf-16"), "deep": b"[" * 100_000, "deep dicts": b'{"bands":' * 50_000, "cut": json.dumps(ABOUT).encode()[:30],
         "a number of 5000 digits": b'{"class_names": %s}' % (b"9" * 5000)}


@pytest.mark.parametrize("text", TEXTS)
def test_metadata_that_cannot_be_read_is_named(train, root, text):
    (root / "patch_metadata.json").write_bytes(TEXTS[text])
    faults.assert_refused(train(), "patch_metadata.json: is not readable as JSON", "restore it")


@pytest.mark.parametrize("where, values", [
    ("bands names", [5, "rgn", [1, 2, 3], [["r"], ["g"], ["n"]]]),
    ("bands source_bands", ["abc", [1], [-1, 0, 9], [1.5, 2, 3], {"a": 1}]), ("bands source_count", ["x", 2, 1e308]),
    ("settings input_nodata", ["abc", [1], float("nan")]), ("settings require_all_bands", ["no", 2]),
    ("class_names", ["xyz", 3, {"x": 1}, [["x"], "y", "z"]]), ("label_map", ["abc", 5, {"1": "x"}, {"1": None}, {"1": 999}]),
])
def test_metadata_of_the_wrong_types_is_named_with_its_place(train, root, where, values):
    for value in values:
        about = json.loads(json.dumps(ABOUT))
        *above, last = where.split()
        (about[above[0]] if above else about)[last] = value
        (root / "patch_metadata.json").write_text(json.dumps(about))
        faults.assert_refused(train(), "patch_metadata.json: " + ": ".join(where.split()), "restore the file, or remove it")


@pytest.mark.parametrize("names", [["a", "a", "b"], ["", "a", "b"], ["a\nb", "c", "d"], ["\x1b[2J", "a", "b"], ["\0", "a", "b"], ["\ud800", "a", "b"]])
def test_names_of_classes_that_cannot_be_shown_come_from_no_metadata(train, root, names):
    (root / "patch_metadata.json").write_text(json.dumps(ABOUT | {"class_names": names}))
    faults.assert_refused(train(), "patch_metadata.json: ", "give --class_names")
    if names[0] == "a":  # which helps
        assert assert_trained(train("--class_names", "a", "b", "c"), root)["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize("about", [7, {"bands": {"names": ["too", "few"]}}, {"bands": [1], "settings": "x"}])
def test_metadata_of_another_program_is_not_heeded(train, root, about):
    (root / "patch_metadata.json").write_text(json.dumps(about))
    assert assert_trained(train(), root)["input"]["of_scene"] == [1, 2, 3]


@pytest.mark.parametrize("text", [bytes(range(256)), "patch,place\np0.tif,1".encode("utf-16"), b"patch,place\np0.tif," + b"x" * 200_000])
def test_a_damaged_table_of_patches_is_named(train, root, text):
    (root / "patches.csv").write_bytes(text)
    faults.assert_refused(train("--val_strategy", "kfold", "--n_splits", 2), "patches.csv: ")


# ---------------------------------------------------------------- first weights


@pytest.fixture(scope="module")
def published():
    import timm

    return timm.create_model("mobilenetv3_small_050").state_dict()


def floats(state, function):
    return {name: function(value) if value.is_floating_point() else value for name, value in state.items()}


WEIGHTS = {
    "other shapes": (lambda state: {name: value[:1] if value.ndim == 1 else value for name, value in state.items()}, "name a file of the same encoder"),
    "half the keys": (lambda state: dict(list(state.items())[: len(state) // 2]), "missing"),
    "no keys": (lambda state: {}, "missing"), "numbers as keys": (lambda state: {1: torch.zeros(2), "state_dict": {2: torch.zeros(2)}}, "missing"),
    "not finite": (lambda state: floats(state, lambda value: value * np.nan), "not finite"), "whole numbers": (lambda state: floats(state, torch.Tensor.int), "no real numbers"),
    "complex numbers": (lambda state: floats(state, lambda value: value.to(torch.complex64)), "no real numbers"), "a list": (list, "w.pth"),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_weights_of_an_encoder_that_do_not_fit_are_one_line(train, root, published, fault):
    spoil, told = WEIGHTS[fault]
    torch.save(spoil(published), root.parent / "w.pth")
    faults.assert_refused(train(*LINKNET, "--encoder_weights", root.parent / "w.pth"), "w.pth", told)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder", "loop"])
@pytest.mark.parametrize("flag, name", [("--encoder_weights", "w.pth"), ("--encoder_weights", "w.safetensors"), ("--init_weights", "w.pth")])
def test_weights_that_are_no_file_are_said_before_a_patch_is_looked_at(train, root, kind, flag, name, monkeypatch):
    file = faults.spoil(kind, None, root.parent / name)
    if flag == "--encoder_weights" or kind not in ("empty", "text"):
        monkeypatch.setattr(training, "open_splits", lambda *words: pytest.fail("the patches were looked at"))
    faults.assert_refused(train(*(LINKNET if flag == "--encoder_weights" else []), flag, file), name)


@pytest.mark.parametrize("words", [LINKNET, [*LINKNET, "--no_pretrained", "--encoder_weights", "imagenet"], ["--model", "deeplabv3_mobilenet_v3_large"], ["--model", "unet", "--encoder_name", "resnet18"]])
def test_weights_without_a_network_are_told_at_once_with_both_ways_out(train, monkeypatch, words):
    def nowhere(*words, **settings):
        raise OSError(-2, "Name or service not known")

    for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    monkeypatch.setattr(training, "open_splits", lambda *words: pytest.fail("the patches were looked at"))
    faults.assert_refused(train(*words), "ImageNet weights", "--no_pretrained", "--encoder_weights FILE")


# ---------------------------------------------------------------- under way


CHANGED = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:600]), "gone": lambda path: path.unlink(), "emptied": lambda path: path.write_bytes(b""),
    "a folder": lambda path: [path.unlink(), path.mkdir()], "of another size": lambda path: change(path, lambda image: image[:, :8]), "of fewer bands": lambda path: change(path, lambda image: image[:2]),
    "of another type": lambda path: change(path, lambda image: image * np.float64(np.nan)), "larger": lambda path: change(path, lambda image: np.concatenate([image, image], 1)),
}


@pytest.mark.parametrize("fault, split", [*((fault, "train") for fault in CHANGED), ("gone", "validation"), ("of another type", "validation")])
def test_a_patch_that_changes_under_the_run_is_named(train, root, monkeypatch, fault, split):
    path = root / split / "images/p0.tif"

    def epoch(*words, real=training.train_epoch):
        CHANGED[fault](path)
        return real(*words)

    monkeypatch.setattr(training, "train_epoch", epoch)
    faults.assert_refused(train(may_change=f"{split}/images/p0.tif"), f"{split}/images/p0.tif: ", left="/run/|p0.tif")


DEATHS = {"exit": lambda: os._exit(3), "kill": lambda: os.kill(os.getpid(), 9), "memory": lambda: bytearray(2**60), "shared memory": lambda: fail(RuntimeError("unable to write to file </torch_1>: No space left on device (28)")),
          "open files": lambda: fail(OSError(24, "Too many open files", "/data/p0.tif"))}


def fail(error):
    raise error


@pytest.mark.slow
@pytest.mark.parametrize("fault, told", [("exit", "--workers 2: a loader process died"), ("kill", "--workers 2: a loader process died"), ("memory", "memory: not enough"),
                                         ("shared memory", "/dev/shm may be short"), ("open files", "/data/p0.tif: Too many open files")])
def test_a_loader_process_that_dies_is_one_line(train, monkeypatch, fault, told):
    def fetched(self, pair, real=data.Patches._fetched):
        return DEATHS[fault]() if torch.utils.data.get_worker_info() else real(self, pair)

    def fetch(self, pair, real=data.Patches._fetched):
        self.fetch = lambda pair, kept=self.fetch: DEATHS[fault]() if torch.utils.data.get_worker_info() else kept(pair)
        return real(self, pair)

    monkeypatch.setattr(data.Patches, "_fetched", fetch if fault == "open files" else fetched)
    faults.assert_refused(train("--workers", 2), told)


@pytest.mark.slow
def test_far_too_many_workers_are_as_many_as_there_are_batches(train, root):
    assert_trained(train("--workers", 99999), root)
