"""Trained networks as their checkpoints describe them: weights, bands, normalisation, classes. Ready to predict, alone or together."""

import contextlib
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eoseg import checkpoint, claims, models
from eoseg.config import NETWORKS
from eoseg.deciding import probabilities
from eoseg.device import amp_settings, autocast, choose_device
from eoseg.errors import SetupError, listing
from eoseg.normalize import Normalizer
from eoseg.scaling import Scaling
from eoseg.tiles import tile_size


class Network(NamedTuple):
    """What a prediction needs of a checkpoint."""

    path: str
    net: torch.nn.Module
    name: str
    device: torch.device
    amp_dtype: object
    normalizer: Normalizer
    class_names: list
    in_channels: int
    binary: bool
    input: dict  # data.Bands as a dict; None for older checkpoints
    pixel_size: list  # of the training patches; None when unknown
    temperature: float = 1.0  # by which logits are divided
    threshold: float = 0.5  # binary: probability from which a pixel is class 1
    trained_on: frozenset = frozenset()  # files.prints of its training patches; empty when unknown
    codes: tuple = ()  # of each class, in the training data; empty when unknown, or where none stands for a class
    others: tuple = ()  # further Networks, with which it is averaged

    @property
    def members(self):
        """All Networks that are averaged: one, mostly."""
        return (self, *self.others)

    @torch.inference_mode()
    def probabilities(self, tiles):
        """Probabilities of a batch of tiles, by this network alone.

        Args:
            tiles: (N, B, H, W) float32, normalised, on any device; H and W as `tiles.tile_size` wants them.
        Returns:
            (N, C, H, W) float32 on the device, multiples of 2^-12; in binary mode C is 1: the probability of class 1.
        """
        tiles = tiles.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        try:
            with autocast(self.device, self.amp_dtype):
                logits = self.net(tiles)
        except models.PICKY as error:
            if "memory" in str(error):
                raise
            raise SetupError(f"{self.path}: its network cannot take tiles of {tiles.shape[2]} x {tiles.shape[3]} pixels ({claims.brief(' '.join(str(error).split()))}); "
                             "give the --patch_size it was trained with, and a scene that is no smaller.") from None
        if logits.shape != (len(tiles), 1 if self.binary else len(self.class_names), *tiles.shape[2:]):
            raise SetupError(f"{self.path}: its network answers {tuple(logits.shape)} to tiles {tuple(tiles.shape)}, and has {len(self.class_names)} classes; get it again from where it was trained.")
        return probabilities(logits, self.binary, self.temperature)

    def normalised(self, raw, holes, size):
        """Patches as this network wants them.

        Args:
            raw: (N, B, H, W) float32 on its device. holes: bool of the same shape, where no data is, or None. size: rows and columns of the patches; the rest is padding.
        """
        if self.normalizer.kind != "patch_percentile":
            return Scaling(self.normalizer, self.device)(raw.clone(), holes)
        (rows, cols), (height, width) = size, raw.shape[2:]  # each by its own pixels, as in prediction
        missing = np.zeros(raw.shape, bool) if holes is None else holes.cpu().numpy()
        found = [self.normalizer(*(part[:, :rows, :cols] for part in one)) for one in zip(raw.cpu().numpy(), missing)]
        return torch.from_numpy(np.pad(np.stack(found), ((0, 0), (0, 0), (0, height - rows), (0, width - cols)), mode="symmetric")).to(self.device)


def load_all(paths, options, say=print):
    """The network of one checkpoint, or those of several to be averaged, as one Network.

    Args:
        paths: of checkpoints; a folder of a cross-validation stands for the final networks of its folds.
    Raises:
        SetupError: as `load`; or two networks take other bands or know other classes.
    """
    every = [one for path in paths for one in (folds_of(path) or [path])]
    first, *others = (load(path, options, say) for path in every)
    for other in others:
        for what, one, two in (("classes", first.class_names, other.class_names), ("modes (binary or not)", [first.binary], [other.binary]),
                               ("bands", bands_of(first), bands_of(other))):
            if one != two:
                raise SetupError(f"--model: {first.path} and {other.path} differ in {what}: {listing(one, 13)} and {listing(two, 13)}; only networks of the same are averaged.")
    if others:
        say(f"ensemble  the mean of {len(every)} networks")
    return first._replace(others=tuple(others), threshold=float(np.mean([one.threshold for one in (first, *others)])))


def folds_of(path):
    """The final networks of the folds in a folder that holds no other, in order; [] where `path` is anything else."""
    folder = Path(path)
    if not folder.is_dir() or list(folder.glob("*_final.pth")):
        return []
    found = sorted(folder.glob("fold[0-9]*/*_final.pth"), key=lambda file: int(re.sub(r"\D", "", file.parent.name)))
    kinds = {file.name for file in found}
    if len(kinds) > 1:
        raise SetupError(f"--model {path}: its folds hold {listing(sorted(kinds))}; name those of one, e.g. {folder}/fold*/{sorted(kinds)[0]}.")
    return found


def bands_of(network):
    """What tells a network's bands: their names, or their number where it was never told them."""
    return network.input["names"] if network.input else [str(network.in_channels)]


def load(path, options, say=print):
    """Load the network a checkpoint holds; flags fill in what older checkpoints do not say.

    Raises:
        SetupError: no checkpoint, flags that contradict it, or something missing that only a flag can tell.
    """
    path, note = checkpoint.find(path)
    if note:
        say(note)
    device = choose_device(options.device)
    amp_dtype, precision = amp_settings(options.use_amp, device)
    saved = checkpoint.load(path)
    about = settled(saved["config"], options, path, say)
    net = built(about, saved["model_state_dict"], path)
    checkpoint.load_weights(net, saved["model_state_dict"], path)
    net = net.to(device, memory_format=torch.channels_last).eval()
    binary = about["num_classes"] == 1
    count, names = 2 if binary else about["num_classes"], saved["class_names"]
    claims.check_counts(saved, about["in_channels"], path)
    if not names or len(names) != count:
        if names:
            say(f"note: {path} names {len(names)} of its {count} classes; they are called by number")
        names = [f"class_{i}" for i in range(count)]
    normalizer = normalizer_of(saved, about["in_channels"], options, path, say)
    encoder = f" with {about['encoder_name']}" if about["model_name"] in models.SMP else ""
    say(f"network   {about['model_name']}{encoder} from {path}, on {device}, {precision}")
    temperature, threshold = calibration_of(saved, binary, options, say)
    return Network(str(path), net, about["model_name"], device, amp_dtype, normalizer, names, about["in_channels"], binary,
                   saved["input"], saved.get("pixel_size"), temperature, threshold, frozenset(saved["trained_on"].tolist() if "trained_on" in saved else ()), codes_of(saved.get("label_map"), count))


def built(about, state, path):
    """A network with fresh weights, of the shapes of `state`: held against them before memory is taken for what a file merely names."""
    if about["in_channels"] > max((length for value in state.values() if value.numel() for length in value.shape), default=0):
        raise SetupError(f"{path}: does not fit the network: no weight is of {about['in_channels']} bands; check --in_channels.")
    make = partial(models.build_model, about["model_name"], about["in_channels"], about["num_classes"], about["encoder_name"])
    outline = None
    with contextlib.suppress(Exception), torch.device("meta"):  # a few encoders cannot be made without memory
        outline = make().state_dict()
    if outline:
        checkpoint.check_fit(outline, state, path)
    try:
        return make()
    except SetupError as error:
        raise SetupError(f"{path}: {error}") from None


def codes_of(label_map, classes):
    """The code that stands for each class in the training data, the lowest where several do; () where one has none, or is no whole number from 0.

    Without a map from codes to classes, those of the data are the classes.
    """
    found = {} if label_map else {number: number for number in range(classes)}
    for code, number in (label_map or {}).items():
        if re.fullmatch(r"\d+", str(code)) and isinstance(number, int):
            found[number] = min(int(code), found.get(number, int(code)))
    return tuple(found[number] for number in range(classes)) if all(number in found for number in range(classes)) else ()


def calibration_of(saved, binary, options, say):
    """Temperature and threshold: those of the flags, else what --calibrate found in training, which is said; else 1 and 0.5."""
    found, used = saved.get("calibration") or {}, {}
    for key, usual in (("temperature", 1.0), ("threshold", 0.5)):
        given = getattr(options, key)
        used[key] = found.get(key, usual) if given is None else given
    told = [f"{key} {used[key]:.4g}" + (" as given" if getattr(options, key) is not None else "") for key in ("temperature", *["threshold"] * binary) if key in found]
    if told:
        say(f"calibrated {', '.join(told)}; fitted on {found['split']} (--temperature 1{', --threshold 0.5,' if binary else ''} for the network as it was)")
    return used["temperature"], used["threshold"]


def settled(config, options, path, say):
    """Name, encoder, bands and outputs of the network, from the checkpoint and the flags together.

    Raises:
        SetupError: they contradict each other, or neither says.
    """
    config = dict(config)
    if config.get("mode") == "binary":
        config["num_classes"] = 1
    about = {}
    for key in ("model_name", "encoder_name", "in_channels", "num_classes"):
        flag, kept = getattr(options, key), config.get(key)
        if flag is not None and kept is not None and flag != kept and not (key == "num_classes" and {flag, kept} == {1, 2} and config.get("mode") == "binary"):
            raise SetupError(f"--{key} {flag}: {path} says {kept}; leave the flag out, or name another checkpoint.")
        about[key] = kept if kept is not None else flag
    if about["encoder_name"] is None:
        about["encoder_name"] = "resnet34"
        if about["model_name"] in models.SMP:
            say("note: the checkpoint names no encoder; resnet34 is taken (--encoder_name)")
    lacking = [f"--{key}" for key, value in about.items() if value is None]
    if lacking:
        raise SetupError(f"{', '.join(lacking)}: {path} does not say; give it as it was in training.")
    if about["model_name"] not in NETWORKS:
        raise SetupError(f"--model_name {claims.brief(about['model_name'])}: {path} is of a network that this program does not know; it knows {', '.join(NETWORKS)}.")
    return about


def normalizer_of(saved, bands, options, path, say):
    """The checkpoint's own normaliser; for one without statistics, the older system's division by a percentile."""
    asked = options.normalization_percentile is not None or options.normalize_per_channel
    if saved["normalization"]:
        if asked:
            raise SetupError(f"--normalization_percentile, --normalize_per_channel: {path} holds the statistics of its training, which are used; leave the flags out.")
        return Normalizer.from_dict(saved["normalization"])
    percent = options.normalization_percentile or 99.0
    say(f"note: {path} holds no statistics: each tile is divided by its own {percent:g}th percentile, as the older system did")
    return Normalizer.of_each_patch(bands, percent, options.normalize_per_channel)


def network_size(network, size):
    """The side a tile of `size` pixels is padded to, so that all members can take it."""
    return max(tile_size(one.name, size) for one in network.members)
