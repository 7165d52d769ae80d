"""Runs that go on, are judged or compared, where something of them is damaged, another's, or an attacker's."""

import copy
import json
import os
import pickle
import shutil

import faults
import numpy as np
import pytest
import torch
from tinypatches import change, config, make, rows, same_weights, saved, timeless

import model_training_v2 as training
from eoseg import runstate
from eoseg.errors import SetupError
from eoseg.source import open_splits
from eoseg.stopping import Stopping

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")  # what Python warns of would stand on stderr
FLAGS = ["--model", "unet-dropout", "--classes", 3, "--workers", 0, "--device", "cpu", "--batch_size", 2, "--cache", "none"]
LAST, PREVIOUS, LOG, METRICS = (f"unet-dropout_{ending}" for ending in ("last.pth", "previous.pth", "training_log.csv", "metrics.json"))


@pytest.fixture(autouse=True)
def quick(monkeypatch, narrow, without_fsync):
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)
    monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, narrow):
    """Patches, and a run of two epochs on them."""
    from conftest import leave

    folder = tmp_path_factory.mktemp("finished")
    make(folder / "patches", (3, 2, 1), 16)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("eoseg.drawing.draw", lambda jobs: None)
        assert leave(patched, "main_v2", [*FLAGS, "--epochs", 2, "--dataset_root", folder / "patches", "--save_dir", folder / "run"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy to be spoilt."""
    shutil.copytree(finished / "patches", tmp_path / "patches")
    return shutil.copytree(finished / "run", tmp_path / "run")


@pytest.fixture
def resume(fate, run):
    """Go on with the run, to `epochs` and with further flags."""
    return lambda *words, epochs=3: fate("main_v2", *FLAGS, "--epochs", epochs, "--resume", "--dataset_root", run.parent / "patches", "--save_dir", run, *words, may_change="/run/")


def assert_unchanged(fate, *words):
    """Refused, and not a file of the run has changed."""
    faults.assert_refused(fate, *words)


def edited(run, edit, names=(LAST, PREVIOUS)):
    for name in names:
        state = torch.load(run / name, weights_only=True)
        edit(state)
        torch.save(state, run / name)


def put(where, value):
    """An edit: `value` at a place like "run optimizer state"."""
    def edit(state):
        *above, last = where.split()
        for key in above:
            state = state[key]
        state[last] = value

    return edit


def moments(function):
    """An edit of what the optimiser keeps for each weight."""
    return lambda state: [kept.update(function(kept)) for kept in state["run"]["optimizer"]["state"].values()]


# ---------------------------------------------------------------- states


NO_STATES = {  # that anything could go on from
    **{f"a run that is {value!r}": put("run", value) for value in ([1], None, "x", {})}, **{f"a config that is {value!r}": put("config", value) for value in ([1], {})},
    "without patches": lambda state: state.pop("patches"), "without a map of labels": lambda state: state.pop("label_map"), "of a newer format": put("format", 99), "of an odd format": put("format", "x"),
    "normalisation by nothing": put("normalization", None), "normalisation by a list": put("normalization", [1]), "without weights": put("model_state_dict", None), "a list as weights": put("model_state_dict", [1]),
}


@pytest.mark.parametrize("fault", NO_STATES)
def test_what_is_no_state_is_not_gone_on_from(resume, run, fault):
    edited(run, NO_STATES[fault])
    assert_unchanged(resume(), "--resume: neither", "can be gone on from", "--overwrite")


FOREIGN = {
    **{f"optimizer: {value!r}": put("run optimizer", value) for value in (None, {}, {"state": {}, "param_groups": []})},
    "optimizer: arrays too small, beyond whose end torch would read": moments(lambda kept: {"exp_avg": torch.zeros(3)}), "optimizer: arrays that lack": moments(lambda kept: kept.pop("exp_avg") is None or {}),
    "optimizer: arrays not finite": moments(lambda kept: {"exp_avg_sq": kept["exp_avg_sq"] * np.nan}), "optimizer: text for a rate": lambda state: [group.update(lr="x") for group in state["run"]["optimizer"]["param_groups"]],
    "optimizer: another base rate": lambda state: [group.update(base_lr=np.nan) for group in state["run"]["optimizer"]["param_groups"]],
    "optimizer: a weight too many": lambda state: state["run"]["optimizer"]["state"].update({9999: {}}), "schedule: nothing": put("run schedule", {}), "schedule: text": put("run schedule step", "x"),
    "schedule: nan": put("run schedule reduced", np.nan), **{f"counters: {name} {value!r}": put(f"run {name}", value) for name, value in (
        ("epoch", "x"), ("epoch", -5), ("epoch", np.nan), ("epoch", 10**12), ("epoch", 1), ("step", 10**6), ("step", -3), ("step", None), ("part", 0), ("part", None), ("judged_part", 0), ("per_class", 7),
        ("best_iou", None), ("best_score", np.nan), ("waited", "x"), ("finished", None), ("total", torch.zeros(5)), ("total", None), ("seen", torch.zeros(2, 2)), ("seen", None),
        ("history", None), ("history", []), ("history", [1, 2]), ("history", [{"a": 1}, {"a": 2}]))},
}


@pytest.fixture(scope="module")
def begun(finished):
    """The run as it is before it takes up its state, and that state."""
    settings = config(finished / "patches", finished / "run", cache="none", resume=True)
    splits, source = open_splits(settings, lambda items, **told: items)
    return training.prepare(settings, splits, source, Stopping())[0], torch.load(finished / "run" / LAST, weights_only=True)


def test_a_runs_own_state_is_of_the_run(begun):
    runstate.check_state(begun[0], begun[1]["run"], LAST)


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_state_that_cannot_be_of_the_run_is_refused_before_it_is_taken(begun, fault):
    state = copy.deepcopy(begun[1])
    FOREIGN[fault](state)
    with pytest.raises(SetupError, match="last.pth: its .*cannot be of this run; train in another --save_dir, or start anew with --overwrite."):
        runstate.check_state(begun[0], state["run"], LAST)


@pytest.mark.parametrize("fault", ["optimizer: arrays too small, beyond whose end torch would read", "schedule: nothing", "counters: epoch 1000000000000", "counters: history [1, 2]"])
def test_such_a_state_is_one_line(resume, run, fault):
    edited(run, FOREIGN[fault])
    assert_unchanged(resume(), f"{LAST}: its ", "cannot be of this run")


@pytest.mark.parametrize("words", [["--optimizer", "sgd"], ["--ema", 0.9], ["--accumulate", 2], ["--val_strategy", "kfold"], ["--mode", "binary"], ["--patch_size", 8], ["--use_amp"], ["--normalization", "zscore"], ["--calibrate"]])
def test_other_options_are_listed(resume, words):
    assert_unchanged(resume(*words), "was trained otherwise" if words[0] != "--val_strategy" else "val_strategy (split -> kfold)", words[0][2:])


def test_folds_are_not_resumed_as_one_run(resume, run):
    (run / "fold1").mkdir()
    shutil.move(run / LAST, run / "fold1" / LAST)
    assert_unchanged(resume(), "val_strategy (kfold -> split)")


@pytest.mark.parametrize("edit", [NO_STATES["a run that is [1]"], NO_STATES["without patches"]])
def test_the_state_before_stands_in_for_one_that_is_none(resume, run, edit):
    edited(run, edit, [LAST])
    faults.assert_worked(resume(), "going on from", PREVIOUS)
    assert len(rows(run)) == 3


class Payload:
    """What a hostile pickle would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [lambda evil, path: path.write_bytes(pickle.dumps(evil)), lambda evil, path: torch.save({"format": 3, "run": evil}, path)], ids=["bare", "within torch's"])
def test_a_pickle_that_runs_code_does_not_run_as_a_state(resume, run, write):
    for name in (LAST, PREVIOUS):
        write(Payload(run.parent / "ran"), run / name)
    assert_unchanged(resume(), "--resume: neither")
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize("fault, told", [("folder", "a directory"), ("empty", None), ("loop", None), ("text", None)])
def test_a_newest_state_that_is_no_file_gives_way_or_is_named(resume, run, fault, told):
    (run / LAST).unlink()
    faults.spoil(fault, None, run / LAST)
    fate = resume()
    faults.assert_worked(fate, "going on from") if told is None else assert_unchanged(fate, LAST, "Is a directory")


# ---------------------------------------------------------------- what a finished run has lost


LOST = {
    "the log": lambda run: (run / LOG).unlink(), "half of the log": lambda run: (run / LOG).write_bytes((run / LOG).read_bytes()[:50]), "a log of another program": lambda run: (run / LOG).write_text("a,b\n"),
    **{f"metrics: {text[:9]}": lambda run, text=text: (run / METRICS).write_text(text) for text in ('{"a": 1}', "[1]", "[" * 100_000)},
    "the table of patches": lambda run: (run / "unet-dropout_validation_patches.csv").write_text("x"),
}


@pytest.mark.parametrize("fault", LOST)
def test_a_finished_run_makes_again_what_it_has_lost(resume, run, finished, fault):
    LOST[fault](run)
    faults.assert_worked(resume(epochs=2), "resumed   after epoch 2")
    assert timeless(rows(run)) == timeless(rows(finished / "run")) and same_weights(*(saved(folder, "final.pth")["model_state_dict"] for folder in (run, finished / "run")))
    assert json.loads((run / METRICS).read_text())["validation"] == json.loads((finished / "run" / METRICS).read_text())["validation"]


def test_fewer_epochs_than_were_trained_change_nothing(resume):
    fate = resume(epochs=1)
    faults.assert_worked(fate, "finished after 2 epochs; nothing to do")
    assert not fate.made


@pytest.mark.parametrize("spoil", [lambda root: change(root / "train/images/p0.tif", lambda image: image * 2), lambda root: change(root / "validation/labels/p0.tif", lambda label: label * 0),
                                   lambda root: [(root / f"train/{kind}/p0.tif").unlink() for kind in ("images", "labels")]])
def test_other_patches_are_not_gone_on_with(resume, run, spoil):
    spoil(run.parent / "patches")
    assert_unchanged(resume(), "was trained otherwise")


# ---------------------------------------------------------------- evaluating


@pytest.fixture
def evaluate(fate, run):
    return lambda *words, may_change=None: fate("main_v2", "--evaluate", run / "unet-dropout_final.pth", "--dataset_root", run.parent / "patches", *words, may_change=may_change)


JUDGED = {
    "no patches": (lambda root: shutil.rmtree(root), [], "--dataset_root"), "other bands": (lambda root: [change(path, lambda image: image[:2]) for path in root.glob("test/images/*")], [], "its patches have 2 bands"),
    "no labels": (lambda root: [path.unlink() for path in root.glob("test/labels/*")], [], "image without a label"), "a damaged patch": (lambda root: (root / "test/images/p0.tif").write_bytes(b"II*\0junk"), [], "p0.tif"),
    "other classes": (lambda root: [change(path, lambda label: label + 5) for path in root.glob("test/labels/*")], [], "label values"), "deep metadata": (lambda root: (root / "patch_metadata.json").write_text("[" * 100_000), [], "JSON"),
    "metadata of other types": (lambda root: (root / "patch_metadata.json").write_text('{"class_names": 5}'), [], "class_names"), "a file as folder": (lambda root: None, ["--save_dir", "{root}/test/images/p0.tif"], "--save_dir"),
    "no folder": (lambda root: None, ["--save_dir", ""], "--save_dir"), "a CPU of many": (lambda root: None, ["--device", "cpu:3"], "--device cpu:3"), "huge batches": (lambda root: None, ["--batch_size", 10**20], "--batch_size"),
    "a hot network": (lambda root: None, ["--temperature", "nan"], "--temperature"), "a split elsewhere": (lambda root: None, ["--split", "../patches/test"], "--split"),
}


@pytest.mark.parametrize("fault", JUDGED)
def test_what_cannot_be_evaluated_is_one_line(evaluate, run, fault):
    spoil, words, told = JUDGED[fault]
    spoil(run.parent / "patches")
    faults.assert_refused(evaluate(*(str(word).format(root=run.parent / "patches") for word in words)), told)


def test_far_too_many_workers_judge_in_as_many_as_there_are_batches(evaluate, run, monkeypatch):
    from eoseg import data

    asked = []
    monkeypatch.setattr(data, "DataLoader", lambda *words, num_workers, real=data.DataLoader, **named: asked.append(num_workers) or real(*words, num_workers=0, **named | {"persistent_workers": False}))
    faults.assert_worked(evaluate("--workers", 99999, "--batch_size", 2**32 - 1))
    assert max(asked) == 1 and json.loads((run / "unet-dropout_final_test/metrics.json").read_text())["patches"] == 1


# ---------------------------------------------------------------- comparing, sweeping


@pytest.fixture
def compare(fate, run):
    return lambda *words: fate("main_v2", "--compare", *(words or [run]), "--save_dir", run.parent / "table")


def told_of(run, name, where, value):
    found = json.loads((run / name).read_text())
    put(where, value)(found)
    (run / name).write_text(json.dumps(found))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"validation": {}}', "[" * 100_000, '{"validation": ' * 50_000])
@pytest.mark.parametrize("name", [METRICS, "run.json"])
def test_a_damaged_word_of_a_run_is_named(compare, run, name, text):
    if name == "run.json" and text in ("{}", '{"validation": {}}'):
        return faults.assert_worked(prepared(compare, run, name, text), "wrote")
    faults.assert_refused(prepared(compare, run, name, text), f"run/{name}: ", "restore it")


def prepared(compare, run, name, text):
    (run / name).write_text(text)
    return compare()


@pytest.mark.parametrize("name, where, value", [
    *[(METRICS, "validation mean_iou", value) for value in ("abc", 10**400, float("inf"), -5, 1.5, [1])], *[(METRICS, "validation per_class", value) for value in ([1], {"a": 5}, {"a": {"iou": "x"}}, {"a": None, "b": None})],
    *[(METRICS, "validation intervals", value) for value in ({"mean_iou": "ab"}, None, [1])], *[(METRICS, "test", value) for value in (5, "x", [1])], (METRICS, "config", [1]), (METRICS, "validation", None),
    *[("run.json", "epoch_seconds", value) for value in ("a", 10**400, float("inf"), [1])], ("run.json", "network", [1]), ("run.json", "network parameters", "x"), ("run.json", "data", 5),
])
def test_values_that_training_does_not_write_are_told_with_their_file(compare, run, name, where, value):
    told_of(run, name, where, value)
    faults.assert_refused(compare(), f"run/{name}: is not what training writes")


@pytest.mark.parametrize("where, value", [("data fingerprint", [1]), ("model", "another"), ("epoch_seconds", None)])
def test_what_a_run_does_not_know_of_itself_is_left_out(compare, run, where, value):
    told_of(run, "run.json", where, value)
    faults.assert_worked(compare(), "val mean IoU")


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "loop", "dangling"])
def test_a_word_that_is_no_run_is_told(compare, run, kind):
    faults.assert_refused(compare(faults.spoil(kind, None, run.parent / "other")), f"--compare {run.parent / 'other'}: ")


@pytest.mark.parametrize("word, told", [("seed=" + ",".join(map(str, range(201))), "201 combinations"), ("epochs=" + "9" * 400, "--epochs: a number of 400 digits"), ("learning_rate=nan", "--learning_rate"),
                                        ("device=cpu,cpu:3", None), ("class_names=a,b", "lists are not supported"), ("save_dir=a,b", "--save_dir"), ("=1", "no option is called ''"), ("seed=", "a value is missing")])
def test_a_sweep_that_cannot_be_is_one_line_and_one_value_that_cannot_does_not_end_it(fate, run, word, told):
    fate = fate("main_v2", *FLAGS, "--epochs", 1, "--dataset_root", run.parent / "patches", "--save_dir", run.parent / "sweep", "--sweep", word)
    if told:
        return faults.assert_refused(fate, "--sweep", told)
    faults.assert_refused(fate, "1 of 2 runs failed (device=cpu_3)", status=1, left="/sweep/(device=cpu/|comparison)")
    assert len(rows(run.parent / "sweep/device=cpu")) == 1
