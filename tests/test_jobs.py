"""The jobs of main_v2.py beside a single run: --sweep, --compare, and which flags belong to which job."""

import csv
import json

import pytest
import torch
from tinypatches import FLAGS, make, rows

import main_v2
import model_training_v2 as training

pytestmark = pytest.mark.usefixtures("narrow", "without_fsync")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("eoseg.intervals.RESAMPLES", 50)
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path.write_bytes(b"picture") and path)


@pytest.fixture(scope="module")
def root(tmp_path_factory, narrow):
    return make(tmp_path_factory.mktemp("patches"), (4, 2, 1))


@pytest.fixture
def sweep(script, root, tmp_path):
    """Call main_v2.py with a sweep over learning rates, and words; its runs go to tmp_path / "out"."""
    return lambda rates, *words: script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path / "out", "--epochs", 1, "--batch_size", 2, "--sweep", f"learning_rate={rates}", *words)


def compared(folder):
    with open(folder / "comparison.csv", newline="") as f:
        return {row["run"]: row for row in csv.DictReader(f)}


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last(err):
    return err.splitlines()[-1]


# ---------------------------------------------------------------- sweeps


def test_a_sweep_runs_every_combination_in_a_folder_of_its_own_and_compares_them(sweep, tmp_path):
    status, out, err = sweep("0.01,0.002", "loss_type=ce,dice")
    names = [f"learning_rate={rate},loss_type={loss}" for rate in ("0.01", "0.002") for loss in ("ce", "dice")]
    assert status == 0 and [f"run {i} of 4: {name}" for i, name in enumerate(names, 1)] == [line for line in out.splitlines() if line.startswith("run ") and " of " in line], err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, "comparison.csv", "comparison.png"])
    table = compared(tmp_path / "out")
    for name in names:
        metrics = json.loads((tmp_path / "out" / name / "unet-dropout_metrics.json").read_text())
        assert [f"learning_rate={metrics['config']['learning_rate']:g}", f"loss_type={metrics['config']['loss_type']}"] == name.split(",")
        assert float(rows(tmp_path / "out" / name)[0]["learning_rate"]) == metrics["config"]["learning_rate"]
        assert float(table[name]["validation_mean_iou"]) == metrics["validation"]["mean_iou"]


def test_a_value_that_diverges_is_named_and_the_others_are_compared(sweep, tmp_path, monkeypatch):
    def steep(run, loader, real=training.train_epoch):
        if run.config.learning_rate == 1e9:
            run.net.head.weight.data.fill_(float("inf"))
        return real(run, loader)

    monkeypatch.setattr(training, "train_epoch", steep)
    status, _, err = sweep("1e9,0.002")
    assert status == 1 and last(err) == "error: --sweep: 1 of 2 runs failed (learning_rate=1e9), as said above; with the cause mended, --resume makes up for them."
    assert err.splitlines()[0].startswith("learning_rate=1e9: --learning_rate 1e+09: the loss of the batch p") and "Traceback" not in err
    assert len(compared(tmp_path / "out")) == 1 and (tmp_path / "out/learning_rate=0.002/unet-dropout_final.pth").exists()
    assert not list(tmp_path.glob("out/learning_rate=1e9/*.pth"))


def test_a_run_beyond_the_memory_does_not_end_the_sweep(sweep, monkeypatch):
    def full(config, real=training.train):
        if config.learning_rate == 0.01:
            raise MemoryError("20 GB")
        return real(config)

    monkeypatch.setattr(training, "train", full)
    status, _, err = sweep("0.01,0.002")
    assert status == 1 and err.startswith("learning_rate=0.01: memory: not enough for this step (20 GB); use a smaller --batch_size")


def test_a_mistake_of_ours_ends_the_sweep_with_its_traceback(sweep, monkeypatch):
    def broken(config):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(training, "train", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        sweep("0.01,0.002")


def test_a_sweep_of_which_nothing_goes_well_compares_nothing(sweep, tmp_path, root):
    status, _, err = sweep("0.01,0.002", "--encoder_weights", "nowhere.pth")
    assert status == 2 and last(err) == "error: --sweep: 2 of 2 runs failed (learning_rate=0.01, learning_rate=0.002), as said above; mend the cause and run again."
    assert not list(tmp_path.glob("out/*.csv")) and not list(tmp_path.glob("out/*/*"))


def test_runs_that_are_there_are_refused_before_the_first_begins(sweep, tmp_path):
    assert sweep("0.002")[0] == 0
    before = content(tmp_path)
    status, _, err = sweep("0.01,0.002")
    assert status == 2 and last(err).startswith(f"error: --save_dir {tmp_path / 'out/learning_rate=0.002'}: holds a run of unet-dropout") and "--resume" in last(err)
    assert content(tmp_path) == before


class Cut(Exception):
    """Stands for a sweep that is cut off."""


def test_a_killed_sweep_resumed_trains_what_lacks_and_ends_as_if_it_had_not_been(sweep, tmp_path, monkeypatch):
    assert sweep("0.01,0.002")[0] == 0
    (tmp_path / "out").rename(tmp_path / "straight")

    def cut(config, real=training.train):
        if config.learning_rate == 0.002:
            raise Cut
        return real(config)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(training, "train", cut)
        sweep("0.01,0.002")
    assert not (tmp_path / "out/comparison.csv").exists()
    finished = content(tmp_path / "out/learning_rate=0.01")
    status, out, err = sweep("0.01,0.002", "--resume")
    assert status == 0 and "is finished after 1 epochs; nothing to do" in out, err
    assert content(tmp_path / "out/learning_rate=0.01") == finished
    one, two = (compared(tmp_path / name) for name in ("straight", "out"))
    assert one.keys() == two.keys() and all(one[name]["validation_mean_iou"] == two[name]["validation_mean_iou"] for name in one)
    weights = [torch.load(tmp_path / name / "learning_rate=0.002/unet-dropout_final.pth", weights_only=True)["model_state_dict"] for name in ("straight", "out")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_a_sweep_of_cross_validations_compares_them_out_of_fold(sweep, tmp_path):
    status, _, err = sweep("0.01,0.002", "--val_strategy", "kfold", "--n_splits", 2, "--fold_by", "random")
    assert status == 0, err
    for name, row in compared(tmp_path / "out").items():
        whole = json.loads((tmp_path / "out" / name / "unet-dropout_kfold_metrics.json").read_text())["out_of_fold"]
        assert float(row["validation_mean_iou"]) == whole["mean_iou"]


# ---------------------------------------------------------------- comparing


def test_a_flag_given_twice_adds_to_the_first(sweep, tmp_path):
    parser = main_v2.build_parser(["--compare"])
    assert parser.given(["--compare", "a", "--compare", "b", "c"]) == {"compare": ["a", "b", "c"]}
    assert parser.given(["--sweep", "seed=1,2"]) == {"sweep": ["seed=1,2"]} and parser.given([]) == {}


def test_comparing_needs_no_network_and_no_patches(sweep, script, tmp_path):
    assert sweep("0.01,0.002")[0] == 0
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/run.json").write_text('{"model": "unet"}')
    status, out, err = script("main_v2", "--compare", tmp_path / "out/*", tmp_path / "begun", "--save_dir", tmp_path / "table")
    assert status == 0 and f"note: {tmp_path / 'begun/run.json'}: the run is not finished; left out" in out, err
    assert compared(tmp_path / "table").keys() == {"learning_rate=0.01", "learning_rate=0.002"} and (tmp_path / "table/comparison.png").exists()
    assert "learning_rate=0.01  " in out and "val mean IoU" in out
    status, _, err = script("main_v2", "--compare", tmp_path / "out/*", "--save_dir", tmp_path / "table")
    assert status == 2 and "is there already; give --overwrite" in last(err)
    assert script("main_v2", "--compare", tmp_path / "out/learning_rate=0.01", "--save_dir", tmp_path / "table", "--overwrite")[0] == 0
    assert len(compared(tmp_path / "table")) == 1


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("words, told", [
    (["--compare", "a", "--evaluate", "b"], "--evaluate and --compare: are jobs of their own; give one of them."),
    (["--compare", "a", "--sweep", "epochs=1,2"], "--compare and --sweep: are jobs of their own; give one of them."),
    (["--evaluate", "a", "--sweep", "epochs=1,2"], "--evaluate and --sweep: are jobs of their own; give one of them."),
    (["--compare", "a", "--classes", 3], "--classes: has no say in --compare; leave it out."),
    (["--compare", "a", "--calibrate"], "--calibrate: has no say in --compare; leave it out."),
    (["--compare", "a", "--split", "test"], "--split: is for --evaluate; leave it out."),
    (["--compare"], "--compare: expected at least one argument; see --help."),
    (["--evaluate"], "--evaluate: expected at least one argument; see --help."),
    (["--compare", "nowhere"], "--compare nowhere: no such folder or file; name a run's folder, or its <model>_metrics.json."),
    (["--model", "unet", "--dataset_root", "a", "--split", "test"], "--split: is for --evaluate; leave it out."),
    (["--model", "unet", "--dataset_root", "a", "--threshold", 0.3], "--threshold: is for --evaluate; leave it out."),
    (["--model", "unet", "--dataset_root", "a", "--temperature", 2], "--temperature: is for --evaluate; leave it out."),
    (["--sweep", "epochs=1,2"], "--model, --dataset_root: missing; give it, or see --help."),
    (["--model", "unet", "--dataset_root", "a", "--sweep", "epochs=1,-2"], "--sweep epochs=-2: --epochs: -2 is not a number of 1 or more; see --help."),
    (["--model", "unet", "--dataset_root", "a", "--sweep", "epoch=1,2"], "--sweep epoch=1,2: no option is called 'epoch'; did you mean epochs"),
])
def test_flags_that_do_not_go_together_are_told_in_one_line(script, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    status, out, err = script("main_v2", *words)
    assert status == 2 and err.startswith(f"error: {told}") and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.iterdir())
