"""Runs side by side: what is found, in which order, what the table, the CSV and the notes say."""

import csv
import json
import os

import pytest
from matplotlib.image import imread

from eoseg import comparing
from eoseg.errors import SetupError

pytestmark = pytest.mark.usefixtures("without_fsync")


def scores(mean_iou, half=0.02, names=("land", "crop", "water"), **more):
    """Scores as training writes them; each class's IoU lies 0.1 beside the mean."""
    per_class = {name: {"iou": mean_iou + 0.1, "f1": 0.9, "support": 100} for name in names}
    low_high = lambda value: [value - half, value + half]
    intervals = {"mean_iou": low_high(mean_iou), **{f"iou_{name}": low_high(mean_iou + 0.1) for name in names}}
    return {"mean_iou": mean_iou, "accuracy": 0.9, "mean_f1": 0.8, "kappa": 0.7, "absent": [], "per_class": per_class, "intervals": intervals, **more}


def told(parameters=24_400_000, gflops=31.25, seconds=12.5, memory=3421.0, patches="abc", model="unet"):
    return {"model": model, "network": {"name": model, "parameters": parameters, "gflops": gflops}, "epoch_seconds": seconds,
            "peak_memory_mb": memory, "best_epoch": 4, "epochs": 5, "data": {"fingerprint": patches}}


def add(folder, validation, test=None, run=True, model="unet", alone=True, history=None, **config):
    """A finished run; `run` False: of the time before run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_name": model, "learning_rate": 5e-4, "loss_type": "dice_ce", "save_dir": str(folder), **config}
    text = json.dumps({"test": test, "validation": validation, "config": config, "history": history or {"epoch": [1], "epoch_time": [9.0]}})
    (folder / f"{model}_metrics.json").write_text(text)
    if run:
        (folder / ("run.json" if alone else f"{model}_run.json")).write_text(json.dumps(told(model=model) if run is True else run))
    return folder


def add_folds(folder, out_of_fold=None):
    """A k-fold run with two folds, whose validation IoU are 0.5 and 0.7."""
    for number, value in ((1, 0.5), (2, 0.7)):
        add(folder / f"fold{number}", scores(value), run=told(seconds=float(number)))
    table = {"mean_iou": {"folds": [0.5, 0.7], "mean": 0.6, "std": 0.14, "low": 0.4, "high": 0.8},
             **{f"iou_{name}": {"folds": [0.5, None], "mean": 0.5, "std": None, "low": None, "high": None} for name in ("land", "crop", "water")}}
    metrics = {"validation": table, "test": None, "config": {"model_name": "unet", "val_strategy": "kfold"}, **({"out_of_fold": out_of_fold} if out_of_fold else {})}
    (folder / "unet_kfold_metrics.json").write_text(json.dumps(metrics))
    return folder


def read(*words):
    said = []
    return comparing.read_runs(list(map(str, words)), said.append), said


def names(rows):
    return [row["run"] for row in rows]


def test_the_best_run_comes_first_and_one_without_a_score_last(tmp_path):
    for name, value in (("a", 0.5), ("b", None), ("c", 0.7)):
        add(tmp_path / name, {**scores(0.5), "mean_iou": value})
    rows, said = read(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert names(rows) == ["c", "a", "b"] and not said


def test_a_row_holds_scores_intervals_and_costs(tmp_path):
    row, = read(add(tmp_path / "a", scores(0.6), scores(0.5, half=0.03, ece=0.04)))[0]
    expected = {"validation_mean_iou": 0.6, "validation_mean_iou_ci_low": 0.58, "validation_mean_iou_ci_high": 0.62, "test_mean_iou": 0.5,
                "test_mean_iou_ci_low": 0.47, "test_ece": 0.04, "test_iou_crop": 0.6, "test_iou_crop_ci_high": 0.63, "validation_f1_water": 0.9, "test_kappa": 0.7,
                "parameters": 24_400_000, "gflops": 31.25, "epoch_seconds": 12.5, "peak_memory_mb": 3421.0, "best_epoch": 4}
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert row["model"] == "unet" and row["validated_on"] == "abc" and "class_1" not in row


def test_an_older_run_leaves_out_what_it_does_not_know(tmp_path):
    old = {"mean_iou": 0.6, "accuracy": 0.9, "mean_f1": 0.8, "per_class": {"land": {"iou": 0.5}, "water": {"iou": None}}}
    row, = read(add(tmp_path / "a", old, run=False, history={"epoch": [1, 2, 3], "epoch_time": [30.0, 9.0, 10.0]}))[0]
    assert row["epoch_seconds"] == 10.0  # the median: the first epoch warms up
    assert not {"parameters", "gflops", "peak_memory_mb", "validation_mean_iou_ci_low", "validation_kappa", "test_mean_iou"} & row.keys()
    assert row["validation_iou_water"] != row["validation_iou_water"]


def test_words_are_folders_files_and_globs_and_a_run_counts_once(tmp_path):
    for number in range(3):
        add(tmp_path / f"lr=0.{number + 1}", scores(0.5 + number / 10))
    (tmp_path / "notes.txt").write_text("beside the runs")
    rows, _ = read(tmp_path / "*")
    assert names(rows) == ["lr=0.3", "lr=0.2", "lr=0.1"]
    again, _ = read(tmp_path / "lr=0.1", tmp_path / "lr=0.1" / "unet_metrics.json", tmp_path / "lr*")
    assert sorted(names(again)) == sorted(names(rows))


def test_a_folder_with_brackets_in_its_name_is_no_glob(tmp_path):
    rows, _ = read(add(tmp_path / "run[1]", scores(0.5)))
    assert names(rows) == ["run[1]"]


def test_two_networks_in_one_folder_are_two_runs_each_with_its_own_costs(tmp_path):
    add(tmp_path / "a", scores(0.5), model="unet", alone=False, run=told(parameters=1000))
    add(tmp_path / "a", scores(0.6), model="fpn", alone=False, run=told(parameters=2000, model="fpn"))
    rows, _ = read(tmp_path / "a")
    assert [(row["run"], row["model"], row["parameters"]) for row in rows] == [("a fpn", "fpn", 2000), ("a unet", "unet", 1000)]


def test_another_networks_word_about_itself_is_not_taken(tmp_path):
    add(tmp_path / "a", scores(0.5), run=told(model="fpn"))
    assert "parameters" not in read(tmp_path / "a")[0][0]


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    rows, _ = read(add(tmp_path / "x" / "run", scores(0.6)), add(tmp_path / "y" / "run", scores(0.5)))
    assert names(rows) == ["x/run", "y/run"]


def test_a_kfold_run_is_judged_out_of_fold_and_its_folds_are_no_runs(tmp_path):
    folder = add_folds(tmp_path / "k", out_of_fold=scores(0.61, half=0.01))
    for words in ([folder], [folder / "*"], [tmp_path / "**"]):
        row, = read(*words)[0]
        assert (row["model"], row["validation_mean_iou"]) == ("unet", 0.61) and row["validation_mean_iou_ci_low"] == pytest.approx(0.60)
    assert row["epoch_seconds"] == 1.0  # as its first fold says
    assert [row["validation_mean_iou"] for row in read(folder / "fold*")[0]] == [0.7, 0.5]
    assert names(read(folder, folder / "fold2")[0]) == ["k/fold2", "k"]


def test_an_older_kfold_run_gives_the_mean_over_its_folds(tmp_path):
    row, = read(add_folds(tmp_path / "k"))[0]
    assert [row[f"validation_mean_iou{end}"] for end in ("", "_ci_low", "_ci_high")] == [0.6, 0.4, 0.8] and row["validation_iou_land"] == 0.5


def test_a_run_that_is_not_finished_is_told_and_left_out(tmp_path):
    add(tmp_path / "a", scores(0.5))
    for place, name in (("b", "run.json"), ("a", "fpn_run.json"), ("c", "run.json")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / name).write_text(json.dumps(told()))
    add(tmp_path / "k" / "fold1", scores(0.5))
    rows, said = read(*(tmp_path / name for name in "abck"))
    assert names(rows) == ["a"]
    assert [line.split(": ")[1] for line in said] == [str(tmp_path / name) for name in ("a/fpn_run.json", "b/run.json", "c/run.json", "k/fold1")]
    with pytest.raises(SetupError, match="--compare .*b: no run is finished; --resume"):
        read(tmp_path / "b")


def test_words_without_a_run_are_told(tmp_path):
    with pytest.raises(SetupError, match=r"--compare .*nowhere: no such folder or file"):
        read(tmp_path / "nowhere")
    with pytest.raises(SetupError, match=r"--compare .*no\*: no such folder or file"):
        read(tmp_path / "no*")
    add(tmp_path / "sweep" / "a", scores(0.5))
    with pytest.raises(SetupError, match=r"--compare .*sweep: holds no run, but folders in it do; give '.*sweep.\*'"):
        read(tmp_path / "sweep")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SetupError, match=r"--compare .*empty: holds no run; name a folder"):
        read(tmp_path / "sweep" / "a", tmp_path / "empty")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"validation": {"mean_iou": "high"}, "config": {}}', '{"validation": 0.5, "config": {}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    add(tmp_path / "a", scores(0.5))
    (tmp_path / "a" / "unet_metrics.json").write_text(text)
    with pytest.raises(SetupError, match=r"a.unet_metrics.json: is not"):
        read(tmp_path / "a")
    add(tmp_path / "a", scores(0.5))
    (tmp_path / "a" / "run.json").write_text("{")
    with pytest.raises(SetupError, match=r"run.json: is not readable"):
        read(tmp_path / "a")


def test_many_options_are_cut_short_on_the_screen_and_whole_in_the_rows(tmp_path):
    options = {"dataset_root": "/archive/of/many/scenes/patches_2021", "batch_size": 4, "epochs": 9, "optimizer": "sgd", "dropout_rate": 0.1}
    add(tmp_path / "a", scores(0.7), **options)
    add(tmp_path / "b", scores(0.6), dataset_root="d")
    row = read(tmp_path / "*")[0][0]
    assert comparing.options_of(row) == "dataset_root=/archi...atches_2021, dropout_rate=0.1, epochs=9, batch_size=4 and 1 more"
    assert {name: row[name] for name in options} == options


def test_only_options_that_differ_are_told_and_an_older_run_had_the_default(tmp_path):
    add(tmp_path / "a", scores(0.7), learning_rate=0.1, bands=["B4", "B3"], patience=15)
    add(tmp_path / "b", scores(0.6), learning_rate=0.0005, pretrained=False)
    rows, _ = read(tmp_path / "*")
    assert [comparing.options_of(row) for row in rows] == ["bands=B4 B3, learning_rate=0.1", "pretrained=false, learning_rate=0.0005"]


@pytest.fixture
def compared(tmp_path):
    """compare(words) into a new folder: (lines said, rows of the CSV)."""
    def compare(*words, overwrite=False):
        said = []
        comparing.compare(list(map(str, words)), tmp_path / "out", overwrite, said.append)
        with open(tmp_path / "out" / "comparison.csv", newline="") as table:
            return said, list(csv.DictReader(table))
    return compare


def test_table_csv_and_picture_hold_every_run(tmp_path, compared):
    add(tmp_path / "runs" / "low", scores(0.5), scores(0.4), learning_rate=0.1)
    add(tmp_path / "runs" / "high", scores(0.7), run=told(gflops=None, memory=None, seconds=2.0))
    said, rows = compared(tmp_path / "runs" / "*")
    assert " ".join(said[0].split()) == "run options val mean IoU test mean IoU params (M) GFLOPs epoch (s) peak (MB)"
    assert " ".join(said[1].split()) == "high learning_rate=0.0005 0.700 [0.680, 0.720] 24.4 2.0"
    assert " ".join(said[2].split()) == "low learning_rate=0.1 0.500 [0.480, 0.520] 0.400 [0.380, 0.420] 24.4 31.25 12.5 3,421"
    assert len(said) == 4 and said[3].startswith("wrote")  # no note: the intervals lie apart
    for head, cell in (("val mean IoU", "0.720]"), ("params (M)", "24.4")):  # columns end beneath their heads
        assert said[1][: said[0].index(head) + len(head)].endswith(cell)
    assert [row["run"] for row in rows] == ["high", "low"]
    assert (rows[0]["test_mean_iou"], rows[0]["gflops"]) == ("", "") and float(rows[1]["test_iou_water"]) == 0.5 and rows[1]["learning_rate"] == "0.1"
    assert imread(tmp_path / "out" / "comparison.png").shape[0] > 100


def test_two_classes_show_the_iou_of_class_1(tmp_path, compared):
    add(tmp_path / "a", scores(0.7, names=("land", "water")))
    add(tmp_path / "b", scores(0.6, names=("land", "water")))
    said, _ = compared(tmp_path / "a", tmp_path / "b")
    assert "val water" in said[0] and "test" not in said[0] and "0.800 [0.780, 0.820]" in said[1]
    add(tmp_path / "c", scores(0.5))
    said, _ = compared(tmp_path / "[abc]", overwrite=True)
    assert "val class 1" in said[0] and said[3].count("[") == 1  # the third run has three classes


def test_overlapping_intervals_of_the_best_two_are_told(tmp_path, compared):
    add(tmp_path / "a", scores(0.70, half=0.02))
    add(tmp_path / "b", scores(0.67, half=0.02))
    add(tmp_path / "c", scores(0.40, half=0.02))
    note = "note: the intervals of the best two, a and b, overlap: their difference may be chance"
    assert note in compared(tmp_path / "[abc]")[0]
    assert not any("chance" in line for line in compared(tmp_path / "a", tmp_path / "c", overwrite=True)[0])


def test_runs_validated_on_different_patches_are_told(tmp_path, compared):
    add(tmp_path / "a", scores(0.7), run=told(patches="x"))
    add(tmp_path / "b", scores(0.5), run=told(patches="y"))
    add(tmp_path / "c", scores(0.3), run=told(patches="x"))
    add(tmp_path / "old", scores(0.2), run=False)
    lines = [line for line in compared(tmp_path / "[abco]*")[0] if "different patches" in line]
    assert len(lines) == 1 and lines[0].endswith("do not compare: a, c | b")
    assert not any("different patches" in line for line in compared(tmp_path / "a", tmp_path / "c", tmp_path / "old", overwrite=True)[0])


def test_an_existing_comparison_is_kept_unless_told(tmp_path, compared):
    run = add(tmp_path / "a", scores(0.5))
    compared(run)
    for name in ("comparison.csv", "comparison.png"):
        with pytest.raises(SetupError, match=rf"{name}: is there already; give --overwrite"):
            compared(run)
        os.remove(tmp_path / "out" / name)
    compared(run)
    compared(run, overwrite=True)


def test_what_the_shell_names_beside_the_runs_is_left_out(tmp_path, compared):
    add(tmp_path / "runs" / "a", scores(0.5))
    (tmp_path / "runs" / "comparison.csv").write_text("x")
    (tmp_path / "runs" / "unet_final_test").mkdir()
    (tmp_path / "runs" / "unet_final_test" / "metrics.json").write_text("{}")
    _, rows = compared(*sorted((tmp_path / "runs").iterdir()))
    assert [row["run"] for row in rows] == ["a"]
    for alone in ("comparison.csv", "unet_final_test"):
        with pytest.raises(SetupError, match=f"{alone}: holds no run"):
            read(tmp_path / "runs" / alone)
