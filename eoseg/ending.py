"""The end of a run: the best network is calibrated, judged, saved as final and reported."""

import textwrap

import torch

from eoseg import advice, checkpoint, drawing, files, patchscores, runcard, runstate
from eoseg.areas import Ground, area_table
from eoseg.calibrating import calibrate
from eoseg.device import autocast
from eoseg.guarding import fitting
from eoseg.judging import evaluate
from eoseg.runfolder import path_of
from eoseg.tracking import calibration_line, score_table


def finish(run, splits, loaders, source):
    """The best network by validation IoU is judged, saved as final and reported. Returns the metrics.

    Args:
        splits: dict split -> pairs. loaders: of validation and test (None without test patches), in this order.
    """
    config = run.config
    run.behind.wait()
    last = {name: value.clone() for name, value in run.judged.state_dict().items()}
    best = checkpoint.load(path_of(config, "best_iou.pth"), run.device)
    checkpoint.load_weights(run.judged, best["model_state_dict"], path_of(config, "best_iou.pth"))
    between = lambda: run.stop.leave_if_asked("stopped while the best network was tested; all is saved, --resume tests it again")
    calibration = calibrated(run, loaders[0], between) if config.calibrate else None
    if calibration:
        print(calibration_line(calibration))
    scores, margins = {"validation": None, "test": None}, {}
    for split, loader in zip(scores, loaders):
        if loader:
            seen = split == "validation"  # by the calibration, which therefore has no say in its scores
            watch = run.panel if seen else Ground(splits[split], source, run.names)
            _, tally = evaluate(run, loader, between, None if seen else calibration, watch, by_patch=True)
            scores[split], margins[split] = tally.scores(run.names, intervals=True), tally.margins.cpu()
            if not seen:
                scores[split]["areas"] = watch.table(tally.confusion.matrix)
    checkpoint.save(path_of(config, "final.pth"), **{key: value for key, value in best.items() if key != "format"} | {"calibration": calibration, **scores})
    for split, counts in margins.items():
        patchscores.write(path_of(config, f"{split}_patches.csv"), splits[split], counts, run.names)
    report(run, best, calibration, scores, source.survey.class_pixels, splits["train"])
    run.judged.load_state_dict(last)  # what more epochs, should they be asked for, go on from
    run.finished = True
    runstate.save(run)
    run.behind.wait()
    return files.read_json(path_of(config, "metrics.json"))


def calibrated(run, loader, between):
    """What `calibrating.calibrate` finds on validation patches."""
    def logits(image):
        with autocast(run.device, run.amp_dtype):
            return torch.cat([run.judged(part) for part in image.split(run.judged_part)])

    forward = lambda image: fitting(run, "judged_part", lambda: logits(image))

    run.judged.eval()
    return calibrate(forward, loader.epoch(), len(loader.patches), len(run.names), "validation", between)


def report(run, best, calibration, scores, class_pixels, train_pairs):
    """Pictures, JSON and words."""
    config, epoch = run.config, best["performance_metrics"]["epoch"]
    validation, test = scores["validation"], scores["test"]
    total = sum(class_pixels[image] for image, _ in train_pairs)
    text = advice.paragraph(config, run.history, epoch, validation, test, dict(zip(run.names, (total / max(total.sum(), 1)).tolist())))
    files.write_text(path_of(config, "summary.txt"), textwrap.fill(text, 110) + "\n")
    if config.save_csv:
        files.write_csv(path_of(config, "training_log.csv"), list(run.history))  # a resumed run may have lost it
    history = {key: [row.get(key) for row in run.history] for key in run.history[-1]}
    metrics = {"test": test, "validation": validation, "calibration": calibration, "summary": text, "config": best["config"], "history": history,
               "test_metrics": test, "training_history": history}
    short = {split: {key: part[key] for key in ("mean_iou", "accuracy", "kappa", "ece")} for split, part in scores.items() if part}
    runcard.keep(run, finished=True, best_epoch=epoch, scores=short)
    files.write_json(path_of(config, "metrics.json"), metrics)
    drawing.draw(pictures(run, validation, f"{config.model_name}, epoch {epoch}, validation IoU {run.best_iou:.3f}", epoch, final=True))
    print(f"best      epoch {epoch}; on validation:\n{score_table(validation)}")
    if test or config.val_strategy == "split":
        print(f"on test:\n{score_table(test)}\n{area_table(test['areas'])}" if test else "test      none: no labelled patches in test/")
    print("\n" + textwrap.fill(text, 110) + "\n")
    print(f"wrote     {path_of(config, 'final.pth')}")


def pictures(run, scores, title, best_epoch=None, final=False):
    """What is drawn of a run, as drawing.draw takes it.

    Args:
        scores: of validation. best_epoch: to be marked in the curves. final: draw also what only a finished run has.
    """
    config = run.config
    jobs = [("draw_curves", list(run.history), path_of(config, "training_plot.png"), title, best_epoch)]
    if config.log_per_class:
        jobs.append(("draw_class_iou", list(run.history), run.names, path_of(config, "per_class_iou.png"), title))
    jobs.append(("draw_confusion", scores["confusion_matrix"], run.names, path_of(config, "confusion_matrix.png"), f"{title}: validation"))
    jobs.append(("draw_panel", run.panel.shown(), run.names, path_of(config, "validation_panel.png"), title))
    if final:
        jobs.append(("draw_reliability", scores["reliability"], scores["ece"], path_of(config, "reliability.png"), f"{title}: validation"))
    return jobs
