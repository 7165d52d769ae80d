"""run.json: command, versions, commit, data, and the table of layers held against counts by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tinypatches import change, config, prepared, speckled
from torch import nn

import model_training_v2 as training
from eoseg import models, runcard

pytestmark = pytest.mark.usefixtures("narrow", "without_fsync")


@pytest.fixture(scope="module", autouse=True)
def with_layers(without_layers):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runcard, "layers_of", without_layers)
        yield


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("eoseg.intervals.RESAMPLES", 50)
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)


@pytest.fixture(scope="module")
def root(tmp_path_factory, narrow):
    return speckled(tmp_path_factory.mktemp("patches"))


def card(folder):
    return json.loads((folder / "run.json").read_text())


# ---------------------------------------------------------------- the layers


def test_a_convolution_has_the_parameters_shape_and_operations_of_paper_and_pencil():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1, bias=False))
    rows, flops = runcard.layers_of(net, [1, 3, 64, 32])
    assert rows == [{"name": "0", "kind": "Conv2d", "output": [1, 8, 32, 16], "parameters": 8 * 3 * 9 + 8},
                    {"name": "1", "kind": "BatchNorm2d", "output": [1, 8, 32, 16], "parameters": 16},
                    {"name": "2", "kind": "ReLU", "output": [1, 8, 32, 16], "parameters": 0},
                    {"name": "3", "kind": "Conv2d", "output": [1, 2, 32, 16], "parameters": 16}]
    assert flops == 2 * 32 * 16 * (8 * 3 * 9 + 2 * 8)  # a multiplication and an addition each


def test_looking_at_the_layers_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    runcard.layers_of(net, [1, 3, 8, 8])
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(layer._forward_hooks for layer in net.modules()) and next(net.parameters()).device.type == "cpu"


def test_a_network_that_looks_at_its_input_still_has_its_parameters_told():
    class Curious(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    rows, flops = runcard.layers_of(Curious(), [1, 3, 8, 8])
    assert flops is None and rows == [{"name": "conv", "kind": "Conv2d", "output": None, "parameters": 8}]


@pytest.mark.parametrize("name, encoder", [("unet-dropout", "resnet34"), ("linknet", "tu-mobilenetv3_small_050"), pytest.param("deeplabv3+", "mobilenet_v2", marks=pytest.mark.slow)])
def test_the_parameters_of_the_layers_sum_to_the_networks_and_all_shapes_are_known(name, encoder):
    net = models.build_model(name, 3, 5, encoder)
    rows, flops = runcard.layers_of(net, [1, 3, 64, 64])
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in net.parameters()) and len({row["name"] for row in rows}) == len(rows) and flops > 1e5
    assert all(row["output"] for row in rows if row["parameters"]) and [1, 5] in [row["output"][:2] for row in rows[-4:]]


# ---------------------------------------------------------------- the whole card


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("eoseg.plots.save", lambda figure, path: path)
        patched.setattr(sys, "argv", ["/somewhere/main_v2.py", "--save_dir", "my runs", "--seed", "7"])
        metrics = training.train(config(root, folder, seed=7, ema=0.9))
    return folder, metrics


def test_a_finished_run_tells_how_to_do_it_again_and_what_it_found(root, finished):
    folder, metrics = finished
    told = card(folder)
    assert told["command"] == "main_v2.py --save_dir 'my runs' --seed 7" and told["seed"] == told["options"]["seed"] == 7
    assert torch.__version__.startswith(told["versions"]["torch"].partition("+")[0])
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3])) and told["versions"]["numpy"] == np.__version__
    assert told["finished"] is True and told["epochs"] == 2 and metrics["history"]["val_iou"][told["best_epoch"] - 1] == max(metrics["history"]["val_iou"])
    assert told["scores"]["validation"]["mean_iou"] == metrics["validation"]["mean_iou"] and told["scores"]["test"]["kappa"] == metrics["test"]["kappa"]
    assert told["epoch_seconds"] == np.median(metrics["history"]["epoch_time"]) and told["seconds"] == pytest.approx(sum(metrics["history"]["epoch_time"]))
    assert 50 < told["peak_memory_mb"] < 50_000 and told["device"] == "cpu" and told["precision"] == "float32"
    assert told["data"]["patches"] == {"train": 6, "validation": 4, "test": 3} and told["data"]["classes"] == ["class_0", "class_1", "class_2"]
    assert told["options"]["dataset_root"] == told["data"]["root"] == str(root)
    saved = torch.load(folder / "unet-dropout_final.pth", weights_only=True)["model_state_dict"]
    learned = sum(value.numel() for name, value in saved.items() if not name.endswith(("running_mean", "running_var", "num_batches_tracked")))
    assert told["network"]["parameters"] == learned == sum(row["parameters"] for row in told["network"]["layers"]) and told["network"]["input"] == [1, 3, 32, 32]
    assert told["network"]["layers"][-1]["output"] == [1, 3, 32, 32] and told["network"]["encoder"] is None
    assert told["network"]["gflops"] == pytest.approx(runcard.layers_of(models.build_model("unet-dropout", 3, 3), [1, 3, 32, 32])[1] / 1e9)


def test_an_unfinished_run_says_so_and_how_far_it_came(root, tmp_path, monkeypatch):
    def end(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "finish", end)
    with pytest.raises(KeyboardInterrupt):
        training.train(config(root, tmp_path))
    told = card(tmp_path)
    assert told["finished"] is False and told["epochs"] == 2 and "scores" not in told


def test_the_fingerprint_is_that_of_the_patches_alone(root, tmp_path):
    import shutil

    def fingerprints(of, **changes):
        run, _ = training.prepare(*prepared(of, tmp_path / "run", **changes))
        return run.card["data"]["fingerprints"]

    known = fingerprints(root)
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))
    assert fingerprints(tmp_path / "copy", seed=3, epochs=9) == known and known["train"] != known["validation"]
    change(tmp_path / "copy/validation/labels/p0.tif", lambda label: np.where(label == 1, 2, label).astype("uint8"))
    changed = fingerprints(tmp_path / "copy")
    assert changed["train"] == known["train"] and changed["validation"] != known["validation"]


def test_the_commit_is_gits_and_nothing_without_git(monkeypatch):
    answers = {"rev-parse": "0123abc\n", "status": " M main_v2.py\n"}

    def git(words, **settings):
        return subprocess.CompletedProcess(words, 0, answers[words[3]])

    monkeypatch.setattr(subprocess, "run", git)
    assert runcard.commit() == {"commit": "0123abc", "changed": True}
    answers["status"] = ""
    assert runcard.commit()["changed"] is False

    def broken(*words, **settings):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", broken)
    assert runcard.commit() is None


def test_a_second_networks_run_in_the_folder_keeps_its_own_word(root, tmp_path):
    (tmp_path / "run.json").write_text('{"model": "fpn"}')
    training.train(config(root, tmp_path, epochs=1))
    assert card(tmp_path) == {"model": "fpn"} and json.loads((tmp_path / "unet-dropout_run.json").read_text())["finished"] is True
