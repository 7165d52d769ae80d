"""What the figures of a run say, in plain words, and what they suggest trying."""

from eoseg.errors import listing

FAR = 0.15  # IoU by which training may be ahead of validation before it counts as learned by heart
RARE = 0.02  # share of the training pixels
FEW = 10  # epochs, from which little can be told
LATE = 0.9  # of the epochs: a best epoch after that came while the scores still rose


def paragraph(config, history, best_epoch, validation, test, shares):
    """One paragraph on a finished run.

    Args:
        history: rows of the log. validation, test: scores as `scoring.scores` gives them; test None without test patches.
        shares: class name -> share of the labelled training pixels.
    """
    text = [best(history, best_epoch, validation), *([on_test(validation, test)] if test else []), weakest(validation, shares)]
    hints = [*of_the_curve(config, history, best_epoch), *of_the_classes(config, validation, shares), *of_the_scores(config, validation, test)]
    return " ".join([*text, f"What to try: {'; '.join(hints)}." if hints else "Nothing in these figures asks for a change."])


def of_folds(table, whole, test, division):
    """One paragraph on a finished cross-validation.

    Args:
        table: intervals over folds, as `folds.summarise` makes them. whole, test: scores out of fold and of all folds on test patches (or None).
    """
    each, (low, high) = [value for value in table["mean_iou"]["folds"] if value == value], whole["intervals"]["mean_iou"]
    text = [f"Out of fold the mean IoU is {whole['mean_iou']:.3f} (95 % interval over patches {low:.3f} to {high:.3f}); single folds reach {min(each):.3f} to {max(each):.3f}."]
    if test:
        text.append(on_test(whole, test))
    text.append(weakest(whole, {name: part["support"] / max(sum(p["support"] for p in whole["per_class"].values()), 1) for name, part in whole["per_class"].items()}))
    if max(each) - min(each) > 0.15:
        text.append("The folds differ much: what the network learns hangs on where its patches lie, so label more places rather than more of the same.")
    if division.by == "random":
        text.append("The folds were drawn at random, neighbours of a validation patch may have trained: the scores are too good for places further away.")
    return " ".join(text)


def best(history, best_epoch, scores):
    """Which epoch, and how good."""
    low, high = scores["intervals"]["mean_iou"]
    sure = f" (95 % interval over patches {low:.3f} to {high:.3f})" if low == low else " (one labelled patch: no interval)"
    return f"The best of {len(history)} epochs was number {best_epoch}, with a mean IoU of {scores['mean_iou']:.3f} on validation{sure} and {scores['accuracy']:.1%} of its pixels right."


def on_test(validation, test):
    """The test scores, beside those the network was chosen by."""
    low, high = test["intervals"]["mean_iou"]
    sure = f" ({low:.3f} to {high:.3f})" if low == low else ""
    apart = validation["mean_iou"] - test["mean_iou"]
    word = "; the test patches are harder than those the network was chosen by" if apart > 0.1 else ""
    return f"On test patches the mean IoU is {test['mean_iou']:.3f}{sure}{word}."


def weakest(scores, shares):
    """The lowest classes, and what they are taken for."""
    there = [(part["iou"], name) for name, part in scores["per_class"].items() if part["iou"] == part["iou"]]
    if len(there) < 2:
        return f"Validation holds one class alone ({there[0][1]}), so that the scores say little." if there else "Validation holds no labelled pixel."
    told = []
    for iou, name in sorted(there)[: 1 if len(there) < 5 else 2]:
        taken, share = mostly_called(scores, name)
        told.append(f"{name} (IoU {iou:.3f}, {shares.get(name, 0):.1%} of the training pixels" + (f", {share:.0%} of it called {taken}" if share >= 0.05 else "") + ")")
    absent = f" {listing(scores['absent'], 8)} {'is' if len(scores['absent']) == 1 else 'are'} not in validation, and nothing is known of {'it' if len(scores['absent']) == 1 else 'them'}." if scores["absent"] else ""
    return f"Weakest: {' and '.join(told)}.{absent}"


def mostly_called(scores, name):
    """The class that pixels of class `name` are most often mistaken for, and their share."""
    names = list(scores["per_class"])
    row = list(scores["confusion_matrix"][names.index(name)])
    total = sum(row) or 1
    row[names.index(name)] = -1
    taken = max(range(len(row)), key=row.__getitem__)
    return names[taken], row[taken] / total


def of_the_curve(config, history, best_epoch):
    """Learned by heart, stopped too early, or never settled?"""
    row = history[best_epoch - 1]
    ahead = row["train_iou"] - row["val_iou"]
    if ahead > FAR and row["train_iou"] > 0.5:
        stronger = "--augmentation strong" if config.augmentation != "strong" else "a higher --dropout_rate"
        yield f"the training patches are known by heart (IoU {row['train_iou']:.2f} there, {row['val_iou']:.2f} on validation): {stronger}, a smaller network, or more patches"
    elif len(history) >= FEW and row["train_iou"] < 0.5 and row["train_iou"] - row["val_iou"] < FAR / 3 and best_epoch < LATE * config.epochs:
        yield f"even the training patches are not learned (IoU {row['train_iou']:.2f}): a larger encoder, another --learning_rate, or labels that lie on their images"
    if len(history) == config.epochs and (best_epoch > LATE * config.epochs or config.epochs < FEW):
        why = "the scores still rose at the end" if best_epoch > LATE * config.epochs else f"{config.epochs} epoch{'s are' if config.epochs > 1 else ' is'} few"
        yield f"{why}: more --epochs (--resume goes on from here, with --epochs {max(2 * config.epochs, FEW)} say)"
    if best_epoch == 1 and len(history) > 3:
        yield f"nothing was gained after the first epoch: a lower --learning_rate ({config.learning_rate / 10:g}, say)"


def of_the_classes(config, scores, shares):
    """Rare classes that are missed."""
    rare = [name for name, part in scores["per_class"].items() if 0 < shares.get(name, 0) < RARE and part["recall"] == part["recall"] and part["recall"] < 0.5]
    if rare and not config.oversample:
        yield f"{listing(rare, 5)} {'is' if len(rare) == 1 else 'are'} rare and missed: --oversample, --loss_type focal_tversky, or more patches that hold {'it' if len(rare) == 1 else 'them'}"
    never = [name for name, part in scores["per_class"].items() if part["support"] and not shares.get(name)]
    if never:
        yield f"{listing(never, 5)} {'has' if len(never) == 1 else 'have'} no training pixel: label some"


def of_the_scores(config, validation, test):
    """Trust: too few patches, and confidence that is not to be believed."""
    low, high = validation["intervals"]["mean_iou"]
    if config.val_strategy == "split" and (validation["patches"] < 10 or high - low > 0.2):
        yield f"{validation['patches']} validation patch{'es are' if validation['patches'] != 1 else ' is'} too few to choose by: --val_strategy kfold"
    if (test or validation)["ece"] > 0.05 and not config.calibrate:
        yield f"confidence is off by {(test or validation)['ece']:.2f} on average: --calibrate"
