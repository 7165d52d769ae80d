"""A training run: its files, its numbers, and the ways to train."""

import dataclasses as dc
import itertools
import json
import time

import numpy as np
import pytest
import rasterio
import torch
from tinynet import Point
from tinypatches import FLAGS, REAL, config, prepared, rows, same_weights, saved, speckled, telling

import model_training_v2 as training
from eoseg import checkpoint, device, encoders, files, judging, models
from eoseg.config import TrainingConfig
from eoseg.errors import SetupError

ENDINGS = "best_loss.pth best_iou.pth final.pth training_plot.png training_log.csv per_class_iou.png metrics.json".split()
MORE = "last.pth previous.pth confusion_matrix.png reliability.png validation_panel.png validation_patches.csv test_patches.csv summary.txt".split()


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "finished" not in request.fixturenames:
        monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)
        monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory, narrow):
    return speckled(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """One run that learns its task: its folder."""
    folder = tmp_path_factory.mktemp("finished")
    training.train(config(root, folder, epochs=10, learning_rate=1e-2, class_names=["low", "middle", "high"]))
    return folder


# ---------------------------------------------------------------- what a run leaves


def test_a_run_leaves_exactly_the_files_of_the_contract_and_its_state(finished):
    assert sorted(path.name for path in finished.iterdir()) == sorted(["run.json", *(f"unet-dropout_{ending}" for ending in [*ENDINGS, *MORE])])
    for picture in finished.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000


def test_the_log_has_a_row_an_epoch_and_the_contracts_columns(finished):
    table = rows(finished)
    assert list(table[0])[:11] == "epoch train_loss val_loss val_iou val_f1 val_accuracy learning_rate epoch_time iou_low iou_middle iou_high".split()
    assert [row["epoch"] for row in table] == [str(i) for i in range(1, 11)] and all(-1 <= float(value) for row in table for value in row.values())
    more = {f"{split}_{key}" for split in ("train", "val") for key in ("iou", "f1", "precision", "recall", "accuracy", "kappa")} | {"val_boundary_iou", "val_ece"}
    of_class = {f"{prefix}{key}_{name}" for prefix in ("", "train_") for key in ("iou", "f1", "precision", "recall", "accuracy", "kappa") for name in ("low", "middle", "high")}
    assert set(table[0]) > more | of_class | {"boundary_iou_low"} and float(table[-1]["train_iou"]) > float(table[0]["train_iou"])
    assert float(table[-1]["train_loss"]) < 0.8 * float(table[0]["train_loss"])


def test_every_checkpoint_opens_with_weights_only_and_tells_everything(finished):
    for path in finished.glob("*.pth"):
        net = torch.load(path, weights_only=True)
        assert net["config"].keys() == {f.name for f in dc.fields(TrainingConfig)} and net["config"]["in_channels"] == 3
        assert net["performance_metrics"].keys() >= {"best_val_loss", "best_val_iou", "per_class_iou"}
        assert list(net["performance_metrics"]["per_class_iou"]) == net["class_names"] == ["low", "middle", "high"]
        assert net["input"] == {"of_patch": [0, 1, 2], "names": ["band_1", "band_2", "band_3"], "of_scene": [1, 2, 3], "scene_count": 3, "require_all_bands": False, "input_nodata": None}
    table = rows(finished)
    for ending, column, pick in (("best_iou.pth", "val_iou", max), ("best_loss.pth", "val_loss", min)):
        best = pick(float(row[column]) for row in table)
        metrics = saved(finished, ending)["performance_metrics"]
        assert metrics[f"best_{column}"] == pytest.approx(best) and float(table[metrics["epoch"] - 1][column]) == best


def by_hand(root, folder, split):
    """Truth and prediction of every labelled pixel of a split, by the network in _final.pth and plain numpy."""
    state = saved(folder, "final.pth")["model_state_dict"]
    net = models.build_model("unet-dropout", 3, 3).eval()
    net.load_state_dict(state)
    seen = np.concatenate([rasterio.open(path).read()[:, None] for path in sorted(root.glob("train/images/*"))], axis=1)
    limits = [np.percentile(band[band > 0], [1, 50, 99]) for band in seen]
    truth, called = [], []
    for path in sorted(root.glob(f"{split}/images/*")):
        image, label = rasterio.open(path).read(), rasterio.open(str(path).replace("images", "labels")).read(1)
        valid = (image > 0).any(0)
        scaled = np.stack([np.clip((np.where(valid, band, middle) - low) / (high - low), 0, 1) for band, (low, middle, high) in zip(image, limits)])
        with torch.no_grad():
            classes = net(torch.from_numpy(scaled[None].astype(np.float32)))[0].argmax(0).numpy()
        known = valid & (label != 255)
        truth.append(label[known])
        called.append(classes[known])
    return np.concatenate(truth), np.concatenate(called)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_scores_are_those_sklearn_finds_for_the_final_network(root, finished, split):
    from sklearn.metrics import (
        accuracy_score,
        cohen_kappa_score,
        jaccard_score,
        precision_recall_fscore_support,
    )

    found = json.loads((finished / "unet-dropout_metrics.json").read_text())[split]
    truth, called = by_hand(root, finished, split)
    precision, recall, f1, support = precision_recall_fscore_support(truth, called, labels=[0, 1, 2])
    iou = jaccard_score(truth, called, labels=[0, 1, 2], average=None)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, called)) and found["accuracy"] > 0.5
    assert found["mean_iou"] == pytest.approx(iou.mean()) and found["mean_f1"] == pytest.approx(f1.mean())
    for i, name in enumerate(["low", "middle", "high"]):
        wanted = {"iou": iou[i], "f1": f1[i], "precision": precision[i], "recall": recall[i], "support": support[i],
                  "accuracy": np.mean((truth == i) == (called == i)), "kappa": cohen_kappa_score(truth == i, called == i)}
        assert {key: found["per_class"][name][key] for key in wanted} == pytest.approx(wanted)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, called))


def test_the_metrics_hold_the_older_keys_and_the_log(finished):
    metrics = json.loads((finished / "unet-dropout_metrics.json").read_text())
    assert metrics["test_metrics"] == metrics["test"] and metrics["training_history"] == metrics["history"] and metrics["config"]["model_name"] == "unet-dropout"
    assert metrics["history"]["val_iou"] == [float(row["val_iou"]) for row in rows(finished)]
    assert metrics["validation"]["mean_iou"] == pytest.approx(max(metrics["history"]["val_iou"]))


def test_final_holds_the_best_weights_not_the_last_ones(root, tmp_path, monkeypatch):
    def judged(run, loader, real=training.evaluate, **named):
        loss, tally = real(run, loader, **named)
        return loss, telling(tally, mean_iou=(0.3, 0.9, 0.1)[run.epoch])

    monkeypatch.setattr(training, "evaluate", judged)
    training.train(config(root, tmp_path, epochs=3, save_csv=False, log_per_class=False))
    final, best, last = (saved(tmp_path, ending)["model_state_dict"] for ending in ("final.pth", "best_iou.pth", "last.pth"))
    assert saved(tmp_path, "final.pth")["performance_metrics"]["epoch"] == 2
    assert same_weights(final, best) and not same_weights(final, last)
    assert saved(tmp_path, "final.pth")["performance_metrics"]["per_class_iou"].keys() == {"class_0", "class_1", "class_2"}
    assert not (tmp_path / "unet-dropout_training_log.csv").exists() and not any("iou_class" in key for key in saved(tmp_path)["run"]["history"][0])


# ---------------------------------------------------------------- how it trains


def test_an_earlier_model_is_a_start_for_other_classes(root, finished, tmp_path):
    path = str(finished / "unet-dropout_final.pth")
    run, _ = training.prepare(*prepared(root, tmp_path, num_classes=5, init_weights=path, pretrained=True))
    theirs, mine = saved(finished, "final.pth")["model_state_dict"], run.net.state_dict()
    assert [name for name in mine if not torch.equal(mine[name].flatten()[:1], theirs[name].flatten()[:1])] == ["head.weight", "head.bias"]
    assert mine["head.bias"].shape == (5,)
    said = encoders.load_init_weights(run.net, path)
    assert path in said and "fresh: head.bias, head.weight" in said
    for other in ({"bands": ["1", "2"]}, REAL):
        with pytest.raises(SetupError, match="--init_weights .*another network.*--encoder_name"):
            training.prepare(*prepared(root, tmp_path, init_weights=path, **other))


def test_a_frozen_encoder_stays_as_it_is_with_its_statistics_until_it_is_let_go(root, tmp_path, monkeypatch):
    seen, optimizers = [], []

    def watch(run, *rest, real=training.remember):
        seen.append({name: value.clone() for name, value in models.encoder_of(run.net).state_dict().items()})
        optimizers.append((id(run.optimizer), sum(len(group["params"]) for group in run.optimizer.param_groups)))
        return real(run, *rest)

    monkeypatch.setattr(training, "remember", watch)
    settings = config(root, tmp_path, epochs=3, freeze_encoder=True, freeze_epochs=2)
    run, _ = training.prepare(*prepared(root, tmp_path / "start"))
    start = models.encoder_of(run.net).state_dict()
    training.train(settings)
    assert same_weights(start, seen[0]) and same_weights(start, seen[1])
    changed = {name for name in start if not torch.equal(start[name], seen[2][name])}
    assert {"0.0.weight", "0.1.running_mean", "0.1.weight", "4.4.running_var"} <= changed
    assert len(set(optimizers)) == 1 and optimizers[0][1] == len(list(run.net.parameters()))


def test_a_rate_far_too_high_is_named_with_the_files_and_nothing_broken_is_saved(script, root, tmp_path, monkeypatch):
    def steep(run, loader, real=training.train_epoch):
        if run.epoch == 1:
            run.optimizer.param_groups[0]["base_lr"] = 1e30
        return real(run, loader)

    monkeypatch.setattr(training, "train_epoch", steep)
    status, _, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path, "--batch_size", 2, "--learning_rate", 0.01)
    assert status == 2 and said.splitlines()[-1].startswith("error: --learning_rate 0.01: the loss of the batch p") and ".tif" in said
    assert "epoch 2" in said and "epochs before are whole" in said
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["unet-dropout_best_iou.pth", "unet-dropout_best_loss.pth", "unet-dropout_last.pth"]
    for path in tmp_path.glob("*.pth"):
        kept = checkpoint.load(path)
        assert kept["performance_metrics"]["epoch"] == 1 and all(map(checkpoint.finite, kept["model_state_dict"].values()))


@pytest.mark.parametrize("rate", ["1e4", "1e12", pytest.param("1e30", marks=pytest.mark.slow), pytest.param("1e38", marks=pytest.mark.slow)])
def test_no_rate_however_high_leaves_a_broken_file(script, root, tmp_path, rate):
    status, _, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path, "--batch_size", 2, "--epochs", 3, "--learning_rate", rate)
    assert status == 0 or status == 2 and "--learning_rate" in said.splitlines()[-1]
    for path in tmp_path.glob("*.pth"):
        assert all(map(checkpoint.finite, checkpoint.load(path)["model_state_dict"].values()))


@pytest.mark.parametrize("monitor", ["iou", "loss"])
def test_a_run_stops_when_its_score_no_longer_rises(root, tmp_path, monkeypatch, capsys, monitor):
    losses = itertools.chain([3.0, 2.0], itertools.repeat(2.5))
    real = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda run, loader, **named: (next(losses), telling(real(run, loader, **named)[1], mean_iou=0.5)))
    training.train(config(root, tmp_path, epochs=9, patience=3, monitor=monitor, log_per_class=False))
    table = rows(tmp_path)
    assert len(table) == (4 if monitor == "iou" else 5) and f"stopped   3 epochs without a better {monitor}" in capsys.readouterr().out
    rates = [float(row["learning_rate"]) for row in table]  # patience // 3 is one epoch: halved after each bad one
    assert rates[-1] == pytest.approx(5e-4 / 4) and rates[0] == 5e-4


@pytest.mark.parametrize("words, has", [
    (["--loss_type", "focal", "--no_class_weights"], lambda run: run.loss.parts[0].weight is None),
    (["--loss_type", "ce", "--custom_class_weights", "1", "2", "0"], lambda run: run.loss.parts[0].weight.tolist() == [1, 2, 0]),
    (["--scheduler_type", "one_cycle"], lambda run: float(run.history[-1]["learning_rate"]) < 5e-4),
    (["--scheduler_type", "poly", "--warmup_epochs", "1"], lambda run: float(run.history[-1]["learning_rate"]) < 5e-4),
    (["--scheduler_type", "constant", "--optimizer", "sgd"], lambda run: float(run.history[-1]["learning_rate"]) == 5e-4),
    (["--optimizer", "adam", "--augmentation", "strong", "--oversample"], lambda run: type(run.optimizer) is torch.optim.Adam),
    (["--use_amp", "--amp_dtype", "fp16"], lambda run: run.scaler.is_enabled() and run.history[-1]["train_loss"] > 0),
    (["--loss_type", "focal_tversky", "--ema", "0.99", "--accumulate", "2", "--clip", "1"], lambda run: run.average is not None),
    (["--scheduler_type", "cosine"], lambda run: float(run.history[-1]["learning_rate"]) < 5e-4),
    (["--use_amp"], lambda run: run.net(torch.zeros(1, 3, 32, 32)).dtype == torch.float32 and not run.scaler.is_enabled()),
    (["--normalization", "zscore"], lambda run: run.about["normalization"]["kind"] == "zscore"),
    (["--no_data_augmentation", "--dropout_rate", "0"], lambda run: run.history[-1]["train_loss"] > 0),
    (["--model", "pspnet", "--encoder_name", "mobilenet_v2", "--no_pretrained", "--batch_size", "5"], lambda run: run.history[-1]["val_iou"] >= 0),  # 5 + 1
])
def test_every_way_to_train_goes_through(script, root, tmp_path, monkeypatch, words, has):
    runs = []
    monkeypatch.setattr(training, "finish", lambda run, *loaders: runs.append(run))
    status, out, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path, "--batch_size", 2, "--epochs", 2, *words)
    assert status == 0 and "epoch   2/2" in out, said
    assert has(runs[0])


def cramped(monkeypatch, most):
    """A GPU that holds `most` patches at once."""
    def step(run, parts, real=training.backward):
        if max(len(image) for image, _ in parts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(run, parts)

    monkeypatch.setattr(training, "backward", step)


def test_a_batch_beyond_the_memory_of_the_gpu_is_halved_and_that_is_said_once_and_resumed(root, tmp_path, monkeypatch, capsys):
    cramped(monkeypatch, 2)
    training.train(config(root, tmp_path, batch_size=8))
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("note: --batch_size 8")] == [
        f"note: --batch_size 8: does not fit the memory of cpu; it is computed in parts of {size}, which add up" for size in (4, 2)]
    assert saved(tmp_path)["run"]["part"] == 2 and saved(tmp_path)["run"]["judged_part"] == 8 and len(rows(tmp_path)) == 2
    training.train(config(root, tmp_path, batch_size=8, epochs=3, resume=True))
    assert "note: --batch_size" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [5, 6, 2])
def test_any_batch_goes_down_to_parts_of_two(root, tmp_path, monkeypatch, size):
    cramped(monkeypatch, 2)
    training.train(config(root, tmp_path, batch_size=size, epochs=1))


def test_what_fits_in_no_part_names_the_way_out(script, root, tmp_path, monkeypatch):
    cramped(monkeypatch, 1)
    status, _, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path / "out", "--batch_size", 4)
    assert status == 2 and said.splitlines()[-1].startswith("error: --batch_size 4: not even 2 patches fit the memory of cpu") and not (tmp_path / "out").exists()


def test_memory_short_in_validation_alone_changes_no_training(root, tmp_path, monkeypatch, capsys):
    def judge(run, net, image, target, calibration, real=judging.judge):
        if min(run.judged_part, len(image)) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(run, net, image, target, calibration)

    monkeypatch.setattr(judging, "judge", judge)
    training.train(config(root, tmp_path, batch_size=4))
    assert (saved(tmp_path)["run"]["part"], saved(tmp_path)["run"]["judged_part"]) == (4, 1) and "in validation; it is computed in parts of 1" in capsys.readouterr().out


def test_validation_is_cut_into_parts_too(root, tmp_path, monkeypatch):
    run, loaders = training.prepare(*prepared(root, tmp_path, batch_size=4, loss_type="ce"))
    whole = training.evaluate(run, loaders[1])
    run.judged_part = 2
    loss, tally = training.evaluate(run, loaders[1])
    assert files.without_nan(tally.scores(run.names)) == files.without_nan(whole[1].scores(run.names)) and loss == pytest.approx(whole[0], rel=1e-2)  # averaged over pixels here, over their weights within a part


@pytest.mark.parametrize("words", [{}, {"label_smoothing": 0.1}, {"use_class_weights": False}, {"loss_type": "focal"}])
def test_batches_of_a_step_and_parts_of_a_batch_give_the_gradient_of_the_whole(root, tmp_path, words):
    """A 1x1 convolution, so that no batch normalisation looks at the parts; labelled pixels are shared out unevenly."""
    torch.manual_seed(1)
    image, target = torch.randn(8, 3, 16, 16), torch.randint(0, 3, (8, 16, 16))
    target[:3, 2:] = 255
    target[4:6] = 255
    found = []
    for batches, part in (([8], 8), ([8], 2), ([8], 3), ([4, 4], 4), ([4, 2, 2], 2)):
        run, _ = training.prepare(*prepared(root, tmp_path, **{"loss_type": "ce", "optimizer": "sgd", "learning_rate": 0.1} | words))
        run.net, run.part = Point(3, 3), part
        run.optimizer = torch.optim.SGD(run.net.parameters(), lr=0.1)
        loss, seen = training.train_step(run, [(x, y, None) for x, y in zip(image.split(batches), target.split(batches))])
        assert seen[:-1].sum() == (target != 255).sum() and seen[-1].sum() == (target == 255).sum()
        found.append((loss.item(), run.net.conv.weight.detach().clone()))
    for loss, weight in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6) and torch.allclose(weight, found[0][1], rtol=1e-5, atol=1e-7)


def test_a_step_is_taken_after_as_many_batches_as_asked_and_after_the_rest(root, tmp_path):
    run, loaders = training.prepare(*prepared(root, tmp_path, accumulate=2, batch_size=2))  # 3 batches: a step of two, a step of one
    training.train_epoch(run, loaders[0])
    assert run.schedule.step == run.step == 2 and run.schedule.steps == 2 * 2


def test_the_gradient_is_clipped_to_its_norm(root, tmp_path):
    run, _ = training.prepare(*prepared(root, tmp_path, clip=1e-3, loss_type="ce", use_class_weights=False))
    run.net = Point(3, 3)
    run.optimizer = torch.optim.SGD(run.net.parameters(), lr=1.0)
    before = torch.nn.utils.parameters_to_vector(run.net.parameters()).clone()
    training.train_step(run, [(100 * torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8)), None)])
    assert (torch.nn.utils.parameters_to_vector(run.net.parameters()) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_gradient_is_clipped_to_its_own_norm_when_it_is_scaled(root, tmp_path):
    run, _ = training.prepare(*prepared(root, tmp_path, clip=1e-3, loss_type="ce", use_class_weights=False, use_amp=True, amp_dtype="fp16"))
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 64.0})
    run.net = Point(3, 3)
    run.optimizer = torch.optim.SGD(run.net.parameters(), lr=1.0)
    before = torch.nn.utils.parameters_to_vector(run.net.parameters()).clone()
    training.train_step(run, [(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8)), None)])
    assert (torch.nn.utils.parameters_to_vector(run.net.parameters()) - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_gradients_that_no_scale_makes_finite_end_the_run(root, tmp_path):
    run, loaders = training.prepare(*prepared(root, tmp_path, use_amp=True, amp_dtype="fp16"))
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 0.25})
    with pytest.raises(SetupError, match="the gradient is not finite"):
        training.train_epoch(run, loaders[0])


def test_a_step_that_the_scaler_passed_over_counts_nowhere(root, tmp_path, monkeypatch):
    run, loaders = training.prepare(*prepared(root, tmp_path, use_amp=True, amp_dtype="fp16"))
    found = iter([(float("nan"), 1000), (0.5, 10), (0.8, 20)])
    pixels = lambda count: torch.tensor([[count, 0, 0], [0] * 3, [0] * 3, [5] * 3])  # of class 0, and ignored ones
    monkeypatch.setattr(training, "train_step", lambda run, batches: (lambda loss, count: (torch.tensor(loss), pixels(count)))(*next(found)))
    assert training.train_epoch(run, loaders[0]) == pytest.approx((0.5 * 10 + 0.8 * 20) / 30)


def test_every_step_draws_other_dropout_and_a_step_taken_again_the_same():
    drawn = []
    for key in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2, 3)):
        device.seed_step(*key)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[4] and len({tuple(row) for row in drawn}) == 4


def test_what_could_not_be_written_ends_the_run_at_the_next_step(root, tmp_path):
    run, _ = training.prepare(*prepared(root, tmp_path))
    run.saved = time.monotonic()  # there is nothing else to save yet
    with run.behind:
        run.behind(lambda: 1 / 0)
        while not run.behind.jobs[0].done():
            pass
        with pytest.raises(ZeroDivisionError):
            training.heed(run)


def test_a_score_that_stops_rising_lets_the_encoder_go_before_it_ends_the_run(root, tmp_path, monkeypatch, capsys):
    losses = itertools.count(9, -0.1)  # falls all the time
    real = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda run, loader, **named: (next(losses), telling(real(run, loader, **named)[1], mean_iou=0.5)))
    training.train(config(root, tmp_path, epochs=20, unfreeze_on_plateau=2, patience=3, log_per_class=False))
    out = capsys.readouterr().out
    assert out.index("epoch   4/20") < out.index("let go") < out.index("epoch   5/20") and len(rows(tmp_path)) == 7


def test_a_profile_tells_where_the_first_epoch_went_and_leaves_a_trace(root, tmp_path, capsys):
    training.train(config(root, tmp_path, batch_size=1, profile=3, log_per_class=False))
    out = capsys.readouterr().out
    assert out.count("waiting for patches") == 1 and "_trace.json, 3 steps" in out and "aten::" in out
    events = json.loads((tmp_path / "unet-dropout_trace.json").read_text())["traceEvents"]
    assert len([event for event in events if str(event.get("name", "")).startswith("Optimizer.step")]) == 3


def test_an_epoch_too_short_to_be_traced_says_so(root, tmp_path, capsys):
    training.train(config(root, tmp_path, batch_size=6, profile=3, epochs=1, log_per_class=False))
    assert "no trace: the epoch has no more than 2 steps" in capsys.readouterr().out and not (tmp_path / "unet-dropout_trace.json").exists()


def test_the_average_of_the_weights_is_what_is_validated_and_kept(root, tmp_path):
    training.train(config(root, tmp_path, ema=0.9, epochs=3, learning_rate=1e-2))
    last, final = saved(tmp_path), saved(tmp_path, "final.pth")
    assert not same_weights(last["run"]["live"], last["model_state_dict"])
    scores = json.loads((tmp_path / "unet-dropout_metrics.json").read_text())["validation"]
    run, loaders = training.prepare(*prepared(root, tmp_path))
    run.net.load_state_dict(final["model_state_dict"])
    assert training.evaluate(run, loaders[1])[1].scores(run.names)["mean_iou"] == scores["mean_iou"]


def test_a_stalled_validation_loss_lets_the_encoder_go_at_a_lower_rate(root, tmp_path, monkeypatch, capsys):
    losses = itertools.chain([3.0, 2.0], itertools.repeat(2.5))
    real = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda run, loader, **named: (next(losses), telling(real(run, loader, **named)[1], mean_iou=0.5)))
    moved = []

    def watch(run, *rest, real=training.remember):
        moved.append([value.clone() for value in models.encoder_of(run.net).parameters()])
        rates = {id(parameter): group["base_lr"] for group in run.optimizer.param_groups for parameter in group["params"]}
        assert {rates[id(parameter)] for parameter in models.encoder_of(run.net).parameters()} == {5e-5} and set(rates.values()) == {5e-4, 5e-5}
        return real(run, *rest)

    monkeypatch.setattr(training, "remember", watch)
    training.train(config(root, tmp_path, epochs=20, unfreeze_on_plateau=2, patience=3, monitor="loss", log_per_class=False))
    still = [all(map(torch.equal, one, two)) for one, two in itertools.pairwise(moved)]
    assert still == [True, True, True, False, False, False]  # losses 3, 2, 2.5, 2.5: let go after the fourth epoch, three more without a better one
    assert "let go, at 0.1 of the learning rate: 2 epochs without" in capsys.readouterr().out


def test_mixed_precision_is_bfloat16_where_it_is_fast_and_float16_on_older_cuda(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert device.amp_settings(False, cuda)[0] is None
    for fast, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
        assert device.amp_settings(True, cuda)[0] is wanted
        assert device.amp_settings(True, cpu)[0] is (torch.bfloat16 if fast else None)  # slow emulation helps nobody
    assert "float32" in device.amp_settings(True, cpu)[1]


def test_a_type_asked_for_by_name_is_used_and_its_slowness_said(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert device.amp_settings(True, cpu, "bf16") == (torch.bfloat16, "bfloat16 autocast (this device has no fast bfloat16)")
    assert device.amp_settings(True, cpu, "fp16")[0] is torch.float16 and "no fast float16" in device.amp_settings(True, cpu, "fp16")[1]
    assert device.amp_settings(False, cpu, "fp16")[0] is None


def test_without_a_compiler_the_run_goes_on_and_says_so(root, tmp_path, monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", broken)
    training.train(config(root, tmp_path, compile=True))
    out = capsys.readouterr().out
    assert "note: --compile: no working compiler here (no g++); the run goes on without" in out and "epoch   2/2" in out


@pytest.mark.parametrize("loss", training.get_available_losses())
def test_binary_networks_have_one_logit_and_learn_with_every_loss(root, tmp_path, loss):
    run, loaders = training.prepare(*prepared(root, tmp_path, mode="binary", loss_type=loss, learning_rate=1e-2, label_map=["0=0", "1=1", "2=1"]))
    assert run.net(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 32, 32) and run.names == ["class_0", "class_1"]
    trained = []
    for run.epoch in range(4):
        run.step = 0
        run.total.zero_()
        trained.append(training.train_epoch(run, loaders[0]))
    first, *_, last = trained
    assert 0 < last < first
    scores = training.evaluate(run, loaders[1])[1].scores(run.names)
    assert scores["per_class"].keys() == {"class_0", "class_1"} and 0 <= scores["mean_iou"] <= 1


@pytest.mark.slow
def test_a_binary_run_is_whole(root, tmp_path):
    metrics = training.train_and_save_model_v2_full("fpn", root, mode="binary", num_classes=9, device="cpu", batch_size=2, epochs=2, save_dir=tmp_path,
                                                    encoder_name="tu-mobilenetv3_small_050", pretrained=False, label_map=["0=0", "1=1", "2=1"], workers=0)
    assert metrics["config"]["num_classes"] == 1 and metrics["test"]["per_class"].keys() == {"class_0", "class_1"}
    assert saved(tmp_path, "final.pth", "fpn")["model_state_dict"]["segmentation_head.0.weight"].shape[0] == 1


def test_codes_become_classes_and_one_that_never_occurs_is_said(root, tmp_path, capsys):
    run, _ = training.prepare(*prepared(root, tmp_path, num_classes=4, label_map=["water=0", "0=1", "1=2", "2=ignore", "x=3"]))
    said = capsys.readouterr().out
    assert "no training pixel of water, x" in said and run.names == ["water", "class_1", "class_2", "x"]
    assert run.loss.parts[0].weight[[0, 3]].tolist() == [0, 0] and run.about["label_map"] == {"water": 0, "0": 1, "1": 2, "2": 255, "x": 3}
