"""Tiles of a strip become rows of a map: normalised, predicted, blended and classified where the network is.

Each row of pixels is sent to the device once, and only what is written comes back.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from eoseg.committee import answer, entropy
from eoseg.deciding import decide
from eoseg.errors import SetupError
from eoseg.mapfile import BINS, LEVELS, ONE
from eoseg.metrics import histogram
from eoseg.scaling import Scaling

TILES_ON_GPU = 16  # at once, unless told


class Finished(NamedTuple):
    """Rows of a map that no later tile touches, as arrays; as tensors on their way from the device before `arrived`."""

    layers: dict  # kind -> (bands, h, w), nodata in place
    counts: np.ndarray  # (h, C) int64: pixels of each class in each row
    histogram: np.ndarray  # (BINS,) int64: of the confidence
    total: int  # sum of the confidence, in steps of 1 / ONE
    finite: bool
    event: object = None  # on CUDA: has everything arrived?


def arrived(finished):
    """Wait for tensors that are on their way, and give them as arrays. Any thread may wait."""
    if finished.event is not None:
        finished.event.synchronize()
    layers = {kind: part.numpy() for kind, part in finished.layers.items()}
    return Finished(layers, finished.counts.numpy(), finished.histogram.numpy(), round(float(finished.total) * ONE), bool(finished.finite))


class Blending:
    """The rows of a strip that tiles still work on.

    Args:
        network: network.Network. rows, cols: tiling.Axis. strip: tiling.Strip. options: PredictionConfig, with a threshold.
        batch: tiles at once. layers: mapfile.Layer's that are wanted. say: takes a line of report.
    """

    def __init__(self, network, rows, cols, strip, options, batch, layers, say=print):
        self.network, self.rows, self.cols, self.strip, self.options, self.batch, self.say = network, rows, cols, strip, options, batch, say
        self.layers = {layer.kind: layer for layer in layers}
        self.disagreement = "uncertainty" in self.layers and len(self.layers["uncertainty"].bands) > 1
        self.device, shape = network.device, (rows.size, strip.end - strip.begin)
        self.classes = len(network.class_names)
        self.inputs = {one.normalizer: torch.zeros(one.in_channels, *shape, device=self.device) for one in network.members}
        self.scalings = {normalizer: Scaling(normalizer, self.device) for normalizer in self.inputs}
        self.sums = torch.zeros((1 if network.binary else self.classes) + self.disagreement, *shape, device=self.device)
        self.known = torch.zeros(shape, dtype=torch.bool, device=self.device)
        self.valid = np.zeros(shape, bool)  # the same, where the program is
        self.row_weights, self.col_weights = (torch.from_numpy(axis.weights).to(self.device) for axis in (rows, cols))
        self.codes = torch.tensor(network.codes, device=self.device) if options.original_codes else None
        self.tiles = torch.empty(0)  # what goes through the network, kept: new memory costs more than filling it

    def take(self, rows):
        """Move up by as many rows as come in at the bottom: `reading.Rows`."""
        height, count = self.valid.shape[0], len(rows.valid)
        for part in (*self.inputs.values(), self.sums, self.known):
            stays = part[..., count:, :]
            part[..., : height - count, :] = stays if 2 * count >= height else stays.clone()  # a copy must not overlap its source
        self.sums[:, height - count :] = 0
        self.valid = np.concatenate([self.valid[count:], rows.valid])
        pixels, known = sent(rows.pixels, self.device), sent(rows.valid, self.device)
        holes = None if rows.holes is None else sent(rows.holes, self.device)
        self.known[height - count :] = known
        for normalizer, part in self.inputs.items():
            here = part[:, height - count :].copy_(pixels)
            if pixels.dtype != torch.uint16 and rows.pixels.dtype == np.uint16:
                unsigned(here)
            if normalizer.kind != "patch_percentile":
                self.scalings[normalizer](here[None], holes)
            elif holes is not None:
                here.masked_fill_(holes, 0)  # what the older system had there

    def add(self, index, watch=lambda: None):
        """Run the tiles of block row `index`, and add their weighted probabilities.

        Args:
            watch: called between batches.
        Yields:
            (index of the tile's column, its probabilities (C, h, w)) of each; None for those of a tile without a valid pixel, which never runs.
        """
        weights, todo = self.row_weights[index][:, None], []
        for j in self.strip.tiles:
            if self.valid[:, self._columns(j)].any():
                todo.append(j)
            else:
                yield j, None
        while todo:
            watch()
            some, todo = todo[: self.batch], todo[self.batch :]
            for j, probability in zip(some, self._probabilities(some)):
                self.sums[:, :, self._columns(j)].addcmul_(probability, weights * self.col_weights[j])
                yield j, probability

    def _columns(self, j):
        """Where tile `j` lies in the strip."""
        begin = self.cols.starts[j] - self.strip.begin
        return slice(begin, begin + self.cols.size)

    def _probabilities(self, some):
        """Mean probabilities (N, C, h, w) of some tiles, as `committee.answer` gives them; in smaller batches where memory does not suffice."""
        while True:
            try:
                tiles_of = [partial(self._tiles, some[first : first + self.batch]) for first in range(0, len(some), self.batch)]
                return torch.cat([answer(self.network, tiles, self.options.tta, self.disagreement) for tiles in tiles_of])[..., : self.rows.size, : self.cols.size]
            except torch.OutOfMemoryError:
                pass  # handled where the error no longer holds on to what the networks had computed
            most = min(self.batch, len(some))
            if most == 1:
                raise SetupError(f"--patch_size {self.options.patch_size}: not even one tile fits the memory of {self.device}; give a smaller one, or --use_amp.")
            self.batch = most // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.say(f"note: the memory of {self.device} does not hold that many tiles: {self.batch} at once from here on")

    def _tiles(self, some, one):
        """Tiles as a member of the network wants them: (N, B, H, W), mirrored where they leave the scene."""
        source, height, width = self.inputs[one.normalizer], self.rows.padded, self.cols.padded
        shape = (len(some), len(source), height, width)
        if self.tiles.shape != shape:
            self.tiles = torch.empty(shape, device=self.device, memory_format=torch.channels_last)
        for tile, j in zip(self.tiles, some):
            part = source[:, :, self._columns(j)]
            if one.normalizer.kind == "patch_percentile":
                part = torch.from_numpy(one.normalizer(part.cpu().numpy(), np.zeros(part.shape, bool))).to(self.device)
            tile.copy_(mirrored(part, height, width))
        return self.tiles

    def finished(self, count):
        """The uppermost `count` rows of the strip's own columns, on their way from the device."""
        here = slice(self.strip.left - self.strip.begin, self.strip.right - self.strip.begin)
        sums = self.sums[:, :count, here]
        probability = sums[:-1] if self.disagreement else sums
        classes, confidence = decide(probability, self.options.threshold)
        classes = classes ^ 1 if self.options.background_value else classes
        finite = torch.isfinite(confidence).all()
        bins = (confidence.nan_to_num_() * BINS).clamp_(max=BINS - 1).long()
        places = classes + torch.arange(count, device=self.device)[:, None] * self.classes
        unknown = None if self.valid[:count, here].all() else ~self.known[:count, here]
        if unknown is not None:
            places.masked_fill_(unknown, count * self.classes)
            bins.masked_fill_(unknown, BINS)
            confidence.masked_fill_(unknown, 0)
        counts = histogram(places, count * self.classes + 1)[:-1].view(count, -1)
        total = confidence.sum(dtype=torch.float32 if self.device.type == "mps" else torch.float64)  # exact: of multiples of 1 / ONE
        made = {"classes": lambda: self._coded(classes), "confidence": lambda: confidence[None], "probabilities": lambda: self._of_classes(probability), "uncertainty": lambda: self._unsure(sums)}
        layers = {kind: self._stored(layer, made[kind](), unknown) for kind, layer in self.layers.items()}
        return self._sent_back(layers, [counts, histogram(bins, BINS + 1)[:-1], total, finite])

    def _coded(self, classes):
        """Classes (h, w) as the map numbers them: (1, h, w)."""
        return (classes if self.codes is None else self.codes[classes])[None]

    def _of_classes(self, probability):
        """Probabilities (C, h, w) of all classes, in the order of the map's classes."""
        if self.network.binary:
            probability = torch.cat([1 - probability, probability])
        return probability.flip(0) if self.options.background_value else probability

    def _unsure(self, sums):
        """Entropy of the mean answer, and with several answers how much of it is disagreement between them: (1 or 2, h, w), 0 to 1.

        Source:
            Houlsby et al. 2011, "Bayesian Active Learning", arXiv:1112.5745: the mutual information of answer and member.
        """
        if not self.disagreement:
            return entropy(sums, 0)
        whole = entropy(sums[:-1], 0)
        return torch.cat([whole, (whole - sums[-1:]).clamp_(min=0)])

    def _stored(self, layer, values, unknown):
        """Values (bands, h, w) as a layer stores them, nodata where they are unknown (h, w; None: nowhere)."""
        if layer.scale != 1:
            values = (values * LEVELS).round_()
        kind = {"uint8": torch.uint8, "uint16": torch.int32, "float32": torch.float32}[layer.dtype]
        values = values.to(kind, copy=True)  # what is counted must not change, nor what later rows are blended from
        return values if unknown is None else values.masked_fill_(unknown, float("nan") if layer.nodata == "nan" else layer.nodata)

    def _sent_back(self, layers, numbers):
        parts = [*layers.values(), *numbers]
        if self.device.type == "cuda":
            parts = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True) for part in parts]
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
        else:
            parts, event = [part.cpu() for part in parts], None
        return Finished(dict(zip(layers, parts)), *parts[len(layers) :], event)


def sent(array, device):
    """An array as a tensor on the device, from pinned memory to a GPU. GPUs get 16 bits without a sign as int16, what they do not know at all as float32."""
    if device.type == "cpu":
        return torch.from_numpy(array)
    if array.dtype == np.uint16:
        array = array.view(np.int16)
    elif array.dtype not in (bool, np.uint8, np.int8, np.int16, np.int32, np.float32):
        array = array.astype(np.float32)
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def unsigned(values):
    """Give floats that were read as int16, in place, the numbers that their bits mean without a sign."""
    return values.add_(values < 0, alpha=65536)


def mirrored(tile, height, width):
    """A tile (B, h, w) continued to (B, height, width) by its own mirror image, edge pixels twice."""
    for dim, length in ((1, height), (2, width)):
        size = tile.shape[dim]
        if size < length:
            place = torch.arange(length, device=tile.device) % (2 * size)
            tile = tile.index_select(dim, torch.minimum(place, 2 * size - 1 - place))
    return tile
