"""The same run again: from the same seed, after it was cut off, and where an earlier one lies."""

import dataclasses as dc
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from tinypatches import FLAGS, REAL, change, config, rows, same_weights, saved, speckled, telling, timeless

import model_training_v2 as training
from eoseg import checkpoint, ending, files, judging, runstate
from eoseg.errors import SetupError, Stopped
from eoseg.source import open_splits
from eoseg.stopping import Stopping

FEATURES = {"epochs": 4, "freeze_encoder": True, "freeze_epochs": 2, "scheduler_type": "cosine", "warmup_epochs": 1, "learning_rate": 3e-3}
SETS = {
    "usual": FEATURES,
    "all": {"epochs": 3, "ema": 0.9, "use_amp": True, "amp_dtype": "bf16", "gradual_unfreeze": True, "freeze_epochs": 1, "layer_decay": 0.8, "accumulate": 2, "clip": 1.0,
            "augmentation": "strong", "oversample": True, "label_smoothing": 0.1, "optimizer": "sgd", "scheduler_type": "one_cycle", "learning_rate": 0.05, "cache": "ram"},
    "half": {"epochs": 3, "use_amp": True, "amp_dtype": "fp16", "unfreeze_on_plateau": 1, "patience": 3, "loss_type": "lovasz", "cache": "none", "learning_rate": 1e-6},
}


class Cut(Exception):
    """Stands for a run that is cut off."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)
    monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory, narrow):
    return speckled(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def wholes(root, tmp_path_factory):
    """Uninterrupted runs to compare interrupted ones with: name in SETS -> folder."""
    made = {}

    def whole(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole")
            training.train(config(root, made[name], **SETS[name]))
        return made[name]

    return whole


@pytest.fixture(scope="module")
def whole(wholes):
    return wholes("usual")


def assert_same_run(one, two):
    """Two folders hold the same run: every weight, every state, every score."""
    for ending in ("last.pth", "final.pth", "best_iou.pth", "best_loss.pth"):
        first, second = saved(one, ending), saved(two, ending)
        assert same_weights(first["model_state_dict"], second["model_state_dict"]) and first["performance_metrics"] == second["performance_metrics"]
    first, second = (saved(folder)["run"] for folder in (one, two))
    assert first["live"] is None or same_weights(first["live"], second["live"])
    assert first["schedule"] == second["schedule"] and first["scaler"] == second["scaler"]
    moments = [[value for state in run["optimizer"]["state"].values() for value in state.values() if torch.is_tensor(value)] for run in (first, second)]
    assert len(moments[0]) == len(moments[1]) and all(map(torch.equal, *moments))
    assert timeless(rows(one)) == timeless(rows(two))
    assert json.loads((one / "unet-dropout_metrics.json").read_text())["test"] == json.loads((two / "unet-dropout_metrics.json").read_text())["test"]


@pytest.mark.parametrize("name", SETS)
def test_the_same_seed_gives_the_same_run_however_patches_are_loaded(root, wholes, tmp_path, name):
    training.train(config(root, tmp_path, **SETS[name] | {"workers": 2, "cache": "none" if name == "all" else "auto"}))
    assert_same_run(wholes(name), tmp_path)


def test_another_seed_gives_another_run(root, whole, tmp_path):
    training.train(config(root, tmp_path, **FEATURES | {"seed": 7}))
    assert timeless(rows(whole)) != timeless(rows(tmp_path))


def interrupted(root, folder, monkeypatch, name, at, how, **options):
    """Train until the `at`-th call of `name`, before which `how` is called."""
    calls, module = [], next(room for room in (training, runstate, judging, ending) if hasattr(room, name))
    real = getattr(module, name)

    def stop(*arguments, **named):
        calls.append(1)
        if len(calls) == at:
            how()
        return real(*arguments, **named)

    with monkeypatch.context() as patched, pytest.raises((Cut, Stopped)) as caught:
        patched.setattr(module, name, stop)
        training.train(config(root, folder, **options))
    return caught.value


def cut():
    raise Cut


@pytest.mark.parametrize("options", SETS)
@pytest.mark.parametrize("name, at", [("epoch_line", 2), ("train_step", 4), ("save", 2), ("judge", 5), ("report", 1)])
def test_a_run_cut_off_anywhere_ends_as_if_it_had_not_been(root, wholes, tmp_path, monkeypatch, options, name, at):
    interrupted(root, tmp_path, monkeypatch, name, at, cut, **SETS[options])
    training.train(config(root, tmp_path, **SETS[options], resume=True))
    assert_same_run(wholes(options), tmp_path)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
@pytest.mark.parametrize("options, name, at", [("usual", "train_step", 1), ("usual", "train_step", 6), ("usual", "judge", 3), ("all", "train_step", 4), ("half", "train_step", 2)])
def test_a_signal_ends_the_run_after_its_step_and_it_goes_on_from_there(root, wholes, tmp_path, monkeypatch, capsys, options, name, at, number, status):
    stopped = interrupted(root, tmp_path, monkeypatch, name, at, lambda: os.kill(os.getpid(), number), **SETS[options])
    assert stopped.status == status and "--resume goes on" in str(stopped)
    steps, done = saved(tmp_path)["run"]["step"], saved(tmp_path)["run"]["schedule"]["step"]
    assert 0 < steps <= 3 and (name != "train_step" or done == at)
    capsys.readouterr()
    taken = []
    with monkeypatch.context() as patched:
        patched.setattr(training, "train_step", lambda *arguments, real=training.train_step: taken.append(1) or real(*arguments))
        training.train(config(root, tmp_path, **SETS[options], resume=True))
    assert f"and {steps} steps" in capsys.readouterr().out
    assert_same_run(wholes(options), tmp_path)
    assert len(taken) == saved(tmp_path)["run"]["schedule"]["step"] - done  # none was taken twice


def test_a_long_epoch_is_saved_now_and_then(root, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("eoseg.guarding.SAVE_EVERY", -1)
        interrupted(root, tmp_path, monkeypatch, "train_step", 6, cut, **FEATURES)
    assert (saved(tmp_path)["run"]["epoch"], saved(tmp_path)["run"]["step"]) == (1, 2)
    training.train(config(root, tmp_path, **FEATURES, resume=True))
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-999]), lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_newest_state_falls_back_to_the_one_before(root, whole, tmp_path, monkeypatch, capsys, damage):
    interrupted(root, tmp_path, monkeypatch, "epoch_line", 3, cut, **FEATURES)
    assert saved(tmp_path)["run"]["epoch"] == 2 and saved(tmp_path, "previous.pth")["run"]["epoch"] == 1
    damage(tmp_path / "unet-dropout_last.pth")
    training.train(config(root, tmp_path, **FEATURES, resume=True))
    said = capsys.readouterr().out
    assert "resumed   after epoch 1" in said and "going on from" in said
    assert_same_run(whole, tmp_path)


def test_a_damaged_newest_state_never_takes_the_place_of_the_good_one(root, whole, tmp_path, monkeypatch):
    interrupted(root, tmp_path, monkeypatch, "epoch_line", 3, cut, **FEATURES)
    good = (tmp_path / "unet-dropout_previous.pth").read_bytes()
    (tmp_path / "unet-dropout_last.pth").write_bytes(b"damaged")
    interrupted(root, tmp_path, monkeypatch, "epoch_line", 1, cut, **FEATURES | {"resume": True})
    assert (tmp_path / "unet-dropout_previous.pth").read_bytes() == good and not (tmp_path / "unet-dropout_last.pth").exists()
    training.train(config(root, tmp_path, **FEATURES, resume=True))
    assert_same_run(whole, tmp_path)


def test_when_the_best_network_cannot_be_written_no_state_says_it_was(root, whole, tmp_path, monkeypatch):
    def full(path, real=checkpoint.save, **parts):
        if path.name.endswith("best_iou.pth") and parts["performance_metrics"]["epoch"] == 2:
            raise OSError(28, "No space left on device", str(path))
        real(path, **parts)

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(checkpoint, "save", full)
        patched.setattr(training, "evaluate", lambda run, loader, real=training.evaluate, **named: (lambda loss, tally: (loss, telling(tally, mean_iou=run.epoch / 10)))(*real(run, loader, **named)))
        training.train(config(root, tmp_path, **FEATURES))
    assert saved(tmp_path)["run"]["epoch"] == 1


def test_a_signal_while_the_best_network_is_tested_ends_the_run_and_it_is_tested_again(root, whole, tmp_path, monkeypatch):
    stopped = interrupted(root, tmp_path, monkeypatch, "judge", 9, lambda: os.kill(os.getpid(), signal.SIGTERM), **FEATURES)  # four epochs of two, then the best
    assert stopped.status == 143 and "tests it again" in str(stopped)
    training.train(config(root, tmp_path, **FEATURES, resume=True))
    assert_same_run(whole, tmp_path)


def test_an_earlier_model_that_is_gone_is_not_asked_for_again(root, whole, tmp_path, monkeypatch):
    start = tmp_path / "start.pth"
    shutil.copy(whole / "unet-dropout_final.pth", start)
    for name in ("straight", "cut"):
        how = {"epochs": 2, "init_weights": str(start), "learning_rate": 1e-3}
        if name == "straight":
            training.train(config(root, tmp_path / name, **how))
        else:
            interrupted(root, tmp_path / name, monkeypatch, "epoch_line", 2, cut, **how)
            start.unlink()
            training.train(config(root, tmp_path / name, **how, resume=True))
    assert_same_run(tmp_path / "straight", tmp_path / "cut")


def test_overwriting_the_model_it_starts_from_is_refused(root, copy):
    before = content(copy)
    with pytest.raises(SetupError, match="--init_weights .*lies among the files that --overwrite removes"):
        training.train(config(root, copy, init_weights=str(copy / "unet-dropout_final.pth"), overwrite=True))
    assert content(copy) == before


@pytest.mark.parametrize("ending", ["final.pth", "metrics.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{")])
def test_a_finished_run_that_lost_its_results_makes_them_again(root, whole, copy, ending, damage):
    damage(copy / f"unet-dropout_{ending}")
    training.train(config(root, copy, **FEATURES, resume=True))
    assert_same_run(whole, copy)


def test_a_run_that_lost_its_best_network_says_so_at_once(root, copy):
    (copy / "unet-dropout_best_iou.pth").write_bytes(b"damaged")
    before = content(copy)
    with pytest.raises(SetupError, match="best_iou.pth: the best network of the run is missing or damaged; start anew with --overwrite"):
        training.train(config(root, copy, **FEATURES | {"epochs": 6}, resume=True))
    assert content(copy) == before


def test_a_finished_run_without_its_state_is_not_replaced(root, copy):
    for ending in ("last.pth", "previous.pth"):
        (copy / f"unet-dropout_{ending}").unlink()
    before = content(copy)
    with pytest.raises(SetupError, match="--resume: .*a finished run is; give --overwrite"):
        training.train(config(root, copy, **FEATURES, resume=True))
    assert content(copy) == before


def test_a_state_of_an_earlier_version_is_refused_in_one_line(root, copy):
    for ending in ("last.pth", "previous.pth"):
        path = copy / f"unet-dropout_{ending}"
        state = torch.load(path, weights_only=True)
        del state["run"]["step"]
        torch.save(state, path)
    with pytest.raises(SetupError, match="neither .* can be gone on from; train in another --save_dir, or start anew with --overwrite"):
        training.train(config(root, copy, **FEATURES | {"epochs": 6}, resume=True))


def test_when_both_states_are_damaged_the_file_is_named_and_nothing_is_lost(root, tmp_path, monkeypatch):
    interrupted(root, tmp_path, monkeypatch, "epoch_line", 3, cut, **FEATURES)
    for ending in ("last.pth", "previous.pth"):
        (tmp_path / f"unet-dropout_{ending}").write_bytes(b"damaged")
    before = content(tmp_path)
    with pytest.raises(SetupError, match="unet-dropout_previous.pth"):
        training.train(config(root, tmp_path, **FEATURES, resume=True))
    assert content(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, workers):
    root = speckled(tmp_path / "patches")
    words = [sys.executable, str(ROOT / "main_v2.py"), *map(str, FLAGS[:-1]), workers, "--dataset_root", root, "--batch_size", 2, "--epochs", 6, "--device", "cpu",
             "--ema", 0.9, "--use_amp", "--amp_dtype", "bf16", "--gradual_unfreeze", "--freeze_epochs", 1, "--augmentation", "strong", "--cache", "none" if workers else "auto"]
    call = lambda folder, *more: subprocess.Popen(list(map(str, [*words, "--save_dir", folder, *more])), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert call(tmp_path / "whole").wait() == 0
    kills, rng = 0, np.random.default_rng(workers)
    for attempt in range(12):
        process = call(tmp_path / "killed", *["--resume"] * (attempt > 0))
        for line in process.stdout:
            if line.startswith("epoch"):
                time.sleep(rng.uniform(0, 0.8))
                process.kill()
                kills += 1
                break
        if process.wait() == 0:
            break
    while call(tmp_path / "killed", "--resume").wait():
        pass
    assert kills >= 3
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_run_that_never_saved_is_resumed_with_its_encoder_weights(root, tmp_path):
    import timm

    state = timm.create_model("mobilenetv3_small_050").state_dict()
    torch.save(state, tmp_path / "w.pth")
    settings = config(root, tmp_path, **REAL | {"encoder_weights": str(tmp_path / "w.pth"), "resume": True})
    run, _ = training.prepare(settings, *open_splits(settings, lambda items, **told: items), Stopping())
    assert torch.equal(run.net.state_dict()["encoder.model.conv_stem.weight"], state["conv_stem.weight"])


# ---------------------------------------------------------------- earlier runs


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the finished run, to be tried upon."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def content(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_finished_run_resumed_says_so_and_changes_no_file(root, copy, capsys):
    before = content(copy)
    metrics = training.train(config(root, copy, **FEATURES, resume=True))
    assert "finished after 4 epochs; nothing to do" in capsys.readouterr().out
    assert content(copy) == before and metrics == json.loads((copy / "unet-dropout_metrics.json").read_text())


def test_more_epochs_go_on_from_the_last_one_not_from_the_best(root, tmp_path):
    for epochs in (1, 2, 4):
        training.train(config(root, tmp_path / "steps", epochs=epochs, learning_rate=1e-2, resume=True))
    training.train(config(root, tmp_path / "straight", epochs=4, learning_rate=1e-2))
    assert timeless(rows(tmp_path / "steps")) == timeless(rows(tmp_path / "straight"))
    assert same_weights(saved(tmp_path / "steps")["model_state_dict"], saved(tmp_path / "straight")["model_state_dict"])


def test_a_finished_run_goes_on_when_given_more_epochs(root, copy):
    training.train(config(root, copy, **FEATURES | {"epochs": 5}, resume=True, log_per_class=False))
    assert len(rows(copy)) == 5
    training.train(config(root, copy, **FEATURES | {"epochs": 6}, resume=True))  # the row between lacks the classes
    assert [row["iou_class_0"] == "" for row in rows(copy)] == [False] * 4 + [True, False]


@pytest.mark.parametrize("changes, words", [
    ({"batch_size": 3, "loss_type": "ce"}, ["batch_size (2 -> 3)", "loss_type (dice_ce -> ce)"]),
    ({"seed": 1, "epochs": 50}, ["seed (42 -> 1)"]),
    ({"bands": ["1", "2"]}, ["bands", "in_channels (3 -> 2)"]),
    ({"class_names": ["a", "b", "c"]}, ["class_names"]),
    ({"num_classes": 4}, ["num_classes (3 -> 4)"]),
    ({"model_name": "linknet", "encoder_name": "tu-mobilenetv3_small_050", "pretrained": False}, ["model_name (unet-dropout -> linknet)"]),
])
def test_a_run_is_not_resumed_with_other_options(root, copy, changes, words):
    before = content(copy)
    with pytest.raises(SetupError) as caught:
        training.train(config(root, copy, **FEATURES | changes, resume=True))
    assert all(word in str(caught.value) for word in ["--resume", *words]) and content(copy) == before


def test_a_run_is_not_resumed_on_other_patches(root, copy, tmp_path):
    shutil.copytree(root, tmp_path / "patches")
    change(tmp_path / "patches/train/images/p0.tif", lambda image: image * 3)
    with pytest.raises(SetupError, match="--resume.*normalization"):
        training.train(config(tmp_path / "patches", copy, **FEATURES, resume=True))


def test_an_earlier_run_is_refused_and_the_ways_out_are_named(script, root, copy):
    before = content(copy)
    status, _, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", copy)
    assert status == 2 and all(word in said.splitlines()[-1] for word in (str(copy), "--resume", "--overwrite", "--save_dir", "unet-dropout_best_iou.pth"))
    status, _, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", copy, "--resume", "--overwrite")
    assert status == 2 and "--resume and --overwrite" in said
    assert content(copy) == before


def test_overwriting_replaces_the_run_and_leaves_other_models_alone(root, copy):
    others = ["fpn_final.pth", "unet-dropout_notes.txt", "unet_final.pth", "notes.txt"]
    for name in others:
        (copy / name).write_text("mine")
    (copy / ".unet-dropout_last.pth.part").write_text("left by a killed run")
    training.train(config(root, copy, overwrite=True, log_per_class=False))
    assert len(rows(copy)) == 2 and all((copy / name).read_text() == "mine" for name in others)
    assert not (copy / "unet-dropout_per_class_iou.png").exists() and not (copy / ".unet-dropout_last.pth.part").exists()


def test_a_run_that_cannot_start_overwrites_nothing(root, copy, tmp_path):
    before = content(copy)
    shutil.copytree(root, tmp_path / "patches")
    change(tmp_path / "patches/test/labels/p0.tif", lambda label: label + 3)
    with pytest.raises(SetupError, match="test/labels/p0.tif"):
        training.train(config(tmp_path / "patches", copy, overwrite=True))
    assert content(copy) == before


def test_other_models_share_a_folder(root, tmp_path):
    for name in ("fpn_final.pth", "deeplabv3_resnet50_final.pth"):
        (tmp_path / name).write_text("mine")
    settings = config(root, tmp_path, model_name="deeplabv3")
    training.check_folder(settings)
    training.clear(dc.replace(settings, overwrite=True))
    assert (tmp_path / "deeplabv3_resnet50_final.pth").exists()


def test_a_second_run_in_the_folder_is_refused_while_the_first_lasts(root, tmp_path):
    with files.lock(tmp_path), pytest.raises(SetupError, match="another run"):
        training.train(config(root, tmp_path))
    assert list(tmp_path.iterdir()) == []
