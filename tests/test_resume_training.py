"""The same run again: from the same seed, after it was cut off, and where an earlier one lies."""

import dataclasses as dc
import json
import shutil

import pytest
import torch
from tinypatches import FLAGS, REAL, change, config, rows, same_weights, saved, speckled, timeless

import model_training_v2 as training
from eoseg import data, files
from eoseg.errors import SetupError

FEATURES = {"epochs": 4, "freeze_encoder": True, "freeze_epochs": 2, "scheduler_type": "cosine", "warmup_epochs": 1, "learning_rate": 3e-3}


class Cut(Exception):
    """Stands for a run that is cut off."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)


@pytest.fixture(scope="module")
def root(tmp_path_factory, narrow):
    return speckled(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """An uninterrupted run with freezing, warm-up and a cosine, to compare interrupted ones with: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    training.train(config(root, folder, **FEATURES))
    return folder


def test_the_same_seed_gives_the_same_run_and_another_seed_another(root, whole, tmp_path):
    for name, changes in (("workers", {"workers": 2}), ("seed", {"seed": 7})):
        training.train(config(root, tmp_path / name, **FEATURES | changes))
    assert same_weights(saved(whole)["model_state_dict"], saved(tmp_path / "workers")["model_state_dict"])
    assert timeless(rows(whole)) == timeless(rows(tmp_path / "workers"))
    assert timeless(rows(whole)) != timeless(rows(tmp_path / "seed"))


def interrupted(root, folder, monkeypatch, name, at):
    """Train until the `at`-th call of training.`name`, which never returns."""
    calls, real = [], getattr(training, name)

    def stop(*arguments, **named):
        calls.append(1)
        if len(calls) == at:
            raise Cut
        return real(*arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(training, name, stop)
        training.train(config(root, folder, **FEATURES))


@pytest.mark.parametrize("name, at", [("epoch_line", 2), ("train_step", 5), ("save_last", 3), ("score_table", 1)])
def test_a_run_cut_off_anywhere_ends_as_if_it_had_not_been(root, whole, tmp_path, monkeypatch, name, at):
    interrupted(root, tmp_path, monkeypatch, name, at)
    training.train(config(root, tmp_path, **FEATURES, resume=True))
    for ending in ("last.pth", "final.pth", "best_iou.pth", "best_loss.pth"):
        one, two = saved(whole, ending), saved(tmp_path, ending)
        assert same_weights(one["model_state_dict"], two["model_state_dict"]) and one["performance_metrics"] == two["performance_metrics"]
    assert timeless(rows(whole)) == timeless(rows(tmp_path))
    assert json.loads((whole / "unet-dropout_metrics.json").read_text())["test"] == json.loads((tmp_path / "unet-dropout_metrics.json").read_text())["test"]


def test_a_run_that_never_saved_is_resumed_with_its_encoder_weights(root, tmp_path):
    import timm

    state = timm.create_model("mobilenetv3_small_050").state_dict()
    torch.save(state, tmp_path / "w.pth")
    settings = config(root, tmp_path, **REAL | {"encoder_weights": str(tmp_path / "w.pth"), "resume": True})
    run, _ = training.prepare(settings, *data.read_splits(settings))
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
