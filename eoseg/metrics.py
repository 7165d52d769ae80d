"""One confusion matrix, from which every score derives."""

import torch


class Confusion:
    """How often each true class (row) was called each class (column), counted over any number of batches.

    Counts are int64, so an epoch, a fold or a whole country adds up exactly, in any order. The last row holds the
    ignored pixels, so that counting needs no mask and no wait for the device.
    """

    def __init__(self, classes, device="cpu"):
        self.counts = torch.zeros(classes + 1, classes, dtype=torch.int64, device=device)

    def add(self, predicted, target):
        """Count int64 label maps of equal shape; a target of C or more is ignored."""
        classes = self.counts.shape[1]
        pairs = target.clamp(max=classes) * classes + predicted
        self.counts += torch.bincount(pairs.flatten(), minlength=self.counts.numel()).view_as(self.counts)

    def scores(self, names):
        """Every score as plain numbers.

        Returns:
            dict of mean_iou and mean_f1 (over the classes present in the truth), accuracy, absent (names of the classes
            that are not), and per_class: name -> iou, f1, precision, recall (0 to 1, nan where undefined) and
            support (true pixels).
        """
        counts = self.counts[:-1].cpu().double()
        hit, truth, called = counts.diag(), counts.sum(1), counts.sum(0)
        seen = truth > 0
        parts = {
            "iou": hit / (truth + called - hit),
            "f1": 2 * hit / (truth + called),
            "precision": hit / called,
            "recall": hit / truth,
        }
        for values in parts.values():
            values[~seen] = float("nan")  # a class that is not there has no score, however often it was called
        parts["precision"][seen & (called == 0)] = 0.0
        mean = lambda key: parts[key][seen].mean().item() if seen.any() else float("nan")
        return {
            "mean_iou": mean("iou"),
            "accuracy": (hit.sum() / truth.sum()).item() if seen.any() else float("nan"),
            "mean_f1": mean("f1"),
            "absent": [name for name, there in zip(names, seen.tolist()) if not there],
            "per_class": {
                name: {**{key: values[i].item() for key, values in parts.items()}, "support": int(truth[i])}
                for i, name in enumerate(names)
            },
        }
