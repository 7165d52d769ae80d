"""How good a network is on a set of patches: in the training loop, and as a checkpoint."""

from contextlib import closing

import torch

from eoseg import data
from eoseg.coding import IGNORE
from eoseg.committee import answer
from eoseg.deciding import decide, probabilities
from eoseg.device import autocast
from eoseg.errors import SetupError
from eoseg.guarding import fitting
from eoseg.metrics import Tally
from eoseg.network import network_size


def parted(image, target, most):
    """A batch in even parts of at most `most` patches."""
    count = -(-len(image) // most)
    return list(zip(image.tensor_split(count), target.tensor_split(count)))


@torch.inference_mode()
def evaluate(run, loader, between=lambda: None, calibration=None, watch=None, by_patch=False):
    """Judge the network of a run as it is.

    Args:
        between: called after every batch. calibration: dict of temperature and threshold; None: as it was trained.
        watch: called with classes and confidence (N, H, W) and the indices of each batch; None: nobody looks. by_patch: count each patch by itself too.
    Returns:
        the loss, averaged over labelled pixels, and a metrics.Tally.
    """
    net, total = run.judged.eval(), torch.zeros_like(run.total)
    tally = Tally(len(run.names), run.device, run.about["patch_size"], len(loader.patches) * by_patch)
    with closing(loader.epoch()) as batches:
        for image, target, indices in batches:
            sums, classes, confidence = fitting(run, "judged_part", lambda: judge(run, net, image, target, calibration or {}))
            total += sums
            tally.add(classes, confidence, target, indices)
            if watch:
                watch(classes, confidence, indices)
            between()
    return (total[0] / total[1].clamp(min=1)).item(), tally


def judge(run, net, image, target, calibration):
    """Loss times labelled pixels and their number, (2,); the classes and the confidence, both (N, H, W), of a batch."""
    sums, found = torch.zeros_like(run.total), []
    for part, truth in parted(image, target, run.judged_part):
        with autocast(run.device, run.amp_dtype):
            logits = net(part)
        labelled = (truth != IGNORE).sum()
        sums += torch.stack([run.loss(logits, truth) * labelled, labelled])
        probability = probabilities(logits, run.config.mode == "binary", calibration.get("temperature", 1.0))
        found.append(decide(probability, calibration.get("threshold", 0.5)))
    return sums, *map(torch.cat, zip(*found))


@torch.inference_mode()
def assess(network, pairs, source, batch_size, workers=0, between=lambda: None, watch=None):
    """Judge a network.Network, or several that are averaged, on patches. Each normalises by its own statistics.

    Args:
        pairs: list of (image, label). source: the source.Source they are of. between, watch: as `evaluate`.
    Returns:
        a metrics.Tally, of each patch too.
    Raises:
        SetupError: not even one patch fits the memory, or the network gives values that are not finite.
    """
    loader, most = patches_of(network, pairs, source, batch_size, workers), batch_size
    tally = Tally(len(network.class_names), network.device, source.largest, len(pairs))
    with closing(loader.raw()) as batches:
        for pixels, holes, target, indices in batches:
            probability, most = together(network, pixels, holes, source, most)
            if not torch.isfinite(probability).all():
                raise SetupError(f"{network.path}: the network gives values that are not finite; check the checkpoint, or leave --use_amp out.")
            classes, confidence = decide(probability, network.threshold)
            tally.add(classes, confidence, target, indices)
            if watch:
                watch(classes, confidence, indices)
            between()
    return tally


def together(network, pixels, holes, source, most):
    """Mean probabilities (N, C, H, W) of all members on patches, in parts of at most `most`, and how many fitted the memory at once."""
    size = next(iter(source.survey.sizes)) if len(source.survey.sizes) == 1 else pixels.shape[2:]
    while True:
        try:
            parts = zip(pixels.split(most), [None] * len(pixels) if holes is None else holes.split(most))
            return torch.cat([answer(network, lambda one, part=part: one.normalised(*part, size)) for part in parts]), most
        except torch.OutOfMemoryError:
            pass  # handled where the error no longer holds on to what the networks had computed
        if most == 1:
            raise SetupError(f"--device {network.device}: not even one patch fits the memory; choose another device, or extract smaller patches.")
        most //= 2


def patches_of(network, pairs, source, batch_size, workers):
    """A data.Loader of whole patches, as large as all members of `network` want them."""
    return data.Loader(data.Patches(pairs, source.fetch, None, network_size(network, source.largest), survey=source.survey), batch_size, network.normalizer, network.device, workers)
