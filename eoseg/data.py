"""Patches become batches: fetched ahead, then normalised and changed where the network is."""

import contextlib
import os
import re
import signal
import warnings
import weakref
from collections import Counter
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from eoseg import augment
from eoseg.coding import IGNORE
from eoseg.errors import SetupError, describe
from eoseg.parallel import ahead
from eoseg.scaling import Scaling
from eoseg.tiles import tile_size

warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores, where they were asked for
DIED = re.compile("exited unexpectedly|killed by signal|shared memory|unable to write to file|Communication with the workers")  # torch's words when a worker is gone or cannot answer
MOST_OFTEN = 10.0  # times that a patch of a rare class is shown as often as one of common classes


class Raw(NamedTuple):
    """A batch as it comes from the files, cut and padded to one size."""

    pixels: torch.Tensor  # (N, B, S, S) in the files' type
    holes: Optional[torch.Tensor]  # (N, B, S, S) bool; None: nowhere
    target: torch.Tensor  # (N, S, S) uint8
    keys: list  # (epoch, index, how manieth time in the epoch) of each patch


class Patches(Dataset):
    """Patches, fetched by batches of keys (epoch, index, repeat): the same key always gives the same cut, whichever worker makes it.

    Args:
        fetch: from a pair to a packing.Patch. size: --patch_size, to which training cuts or pads; None keeps all of a patch.
        side: of a batch, to which patches are padded. seed: of the cuts; None in evaluation, which sees every patch whole.
        survey: the survey.Survey of the patches; one that is no longer as it was then is refused.
    """

    def __init__(self, pairs, fetch, size, side, seed=None, survey=None):
        self.pairs, self.fetch, self.size, self.side, self.seed = pairs, fetch, size, side, seed
        self.kind = survey and (np.dtype(survey.dtype), {*survey.sizes})

    def __len__(self):
        return len(self.pairs)

    def __getitems__(self, keys):
        batch, holed = None, None
        for i, key in enumerate(keys):
            pixels, holes, target = self._fetched(self.pairs[key[1]])
            if batch is None:  # what is wider than float32 is no better there
                small = pixels.dtype == np.float32 or pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2
                batch = np.empty((len(keys), len(pixels), self.side, self.side), pixels.dtype if small else np.float32)
                targets = np.empty((len(keys), self.side, self.side), np.uint8)
            if holes is not None and holed is None:
                holed = np.zeros(batch.shape, bool)
            where = self._cut(target.shape, key)
            put(pixels, where, batch[i], "symmetric")
            put(target, where, targets[i], "constant", constant_values=IGNORE)
            if holes is not None:
                put(holes, where, holed[i], "symmetric")
        return Raw(torch.from_numpy(batch), None if holed is None else torch.from_numpy(holed), torch.from_numpy(targets), keys)

    def _fetched(self, pair):
        """A packing.Patch; here, where it may be a process of its own, so that only one line need be sent."""
        try:
            found = self.fetch(pair)
        except OSError as error:
            if error.errno and not error.filename:
                error.filename = str(pair[0])
            raise SetupError(describe(error) or f"{pair[0]}: cannot be read ({error}); check the disk it lies on.") from None
        except (ValueError, IndexError):
            found = None
        if found is None or self.kind and (found.pixels.dtype != self.kind[0] or found.target.shape not in self.kind[1]):
            raise SetupError(f"{pair[0]}: it or its label is not what it was when the run began, in size, bands or type; extract them again, and change no patches while a run goes on.")
        return found

    def _cut(self, shape, key):
        """Rows and columns of a patch that are shown: anywhere, where it is larger than --patch_size."""
        if not self.size or self.seed is None:
            return slice(None), slice(None)
        spare = [max(length - self.size, 0) for length in shape]
        starts = np.random.default_rng([self.seed, *key, 1]).integers(0, np.array(spare) + 1) if any(spare) else (0, 0)
        return tuple(slice(start, start + self.size) for start in starts)


def put(array, where, out, mode, **settings):
    """Copy array[..., where] (of its last two dimensions) into the larger `out`, the rest padded by numpy's `mode`."""
    part = array[..., where[0], where[1]]
    spare = [length - had for length, had in zip(out.shape[-2:], part.shape[-2:])]
    with np.errstate(over="ignore"):  # a float64 tag for no data may lie beyond float32
        out[...] = np.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, length) for length in spare], mode, **settings) if any(spare) else part


class Order:
    """Batches of keys: shuffled by (seed, epoch) in training, in order otherwise. `skip` batches of an epoch are left out.

    A last batch of one gets a second patch in training, because batch normalisation needs two values.

    Args:
        weights: how often each patch is shown, in proportion; None: once.
    """

    def __init__(self, count, batch_size, seed=None, weights=None):
        self.count, self.batch_size, self.seed, self.weights = count, batch_size, seed, weights
        self.epoch, self.skip = 0, 0

    def __len__(self):
        return -(-self.count // self.batch_size)

    def __iter__(self):
        order, repeats = self._order(), Counter()
        for number, start in enumerate(range(0, self.count, self.batch_size)):
            batch = order[start : start + self.batch_size].tolist()
            if len(batch) == 1 and self.seed is not None and self.batch_size > 1:
                batch.append(int(order[0]))
            keys = []
            for index in batch:
                keys.append((self.epoch, index, repeats[index]))
                repeats[index] += 1
            if number >= self.skip:
                yield keys

    def _order(self):
        if self.seed is None:
            return np.arange(self.count)
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.count)
        if self.weights is None:
            return order
        upto = np.cumsum(self.weights[order])  # systematic sampling: each patch as often as its share says, but for less than one
        return rng.permutation(order[np.searchsorted(upto, (np.arange(self.count) + rng.random()) / self.count * upto[-1], side="right")])


class Loader:
    """Batches as the network takes them, epoch after epoch, the next one fetched while one is worked on.

    Args:
        patches: a Patches; those with a seed are shuffled and augmented. strengths: augment.Strengths, or None.
        rgb: where red, green and blue are among the bands, or None. weights: as Order takes them.
    """

    def __init__(self, patches, batch_size, normalizer, device, workers=0, strengths=None, rgb=None, weights=None):
        self.patches, self.device, self.strengths, self.rgb = patches, device, strengths, rgb
        self.scaling, self.order = Scaling(normalizer, device), Order(len(patches), batch_size, patches.seed, weights)
        own = torch.Generator()  # the loader draws a seed whenever it starts its workers: from torch's own generator, that would shift the dropout
        self.loader = DataLoader(patches, batch_sampler=self.order, collate_fn=unchanged, num_workers=workers, pin_memory=device.type == "cuda",
                                 generator=own, persistent_workers=workers > 0, worker_init_fn=quiet_worker)
        weakref.finalize(self, dismiss, self.loader)  # also at exit, before multiprocessing would wait for workers that heed no SIGTERM
        self.beside = torch.cuda.Stream(device) if device.type == "cuda" else None  # copies go on while the network computes

    def __len__(self):
        return len(self.order)

    def epoch(self, number=0, skip=0):
        """Yield image (N, B, S, S) float32, channels last, target (N, S, S) int64, both on the device, and each patch's index.

        Args:
            number: epochs before this one. skip: batches that an earlier run has had.
        """
        self.order.epoch, self.order.skip = number, skip
        with contextlib.closing(self._arrived()) as batches:
            for pixels, holes, target, changes, keys in batches:
                image = self.scaling(pixels.to(torch.float32), holes)
                if changes is not None:
                    image, target = augment.apply(image, target, changes, self.rgb)
                yield image.contiguous(memory_format=torch.channels_last), target.long(), [key[1] for key in keys]

    def raw(self):
        """Yield pixels (N, B, S, S) float32 as they are in the files, where they hold no data (or None), target (N, S, S) int64, and each patch's index."""
        self.order.epoch, self.order.skip = 0, 0
        with contextlib.closing(self._arrived()) as batches:
            for pixels, holes, target, _, keys in batches:
                yield pixels.to(torch.float32), holes, target.long(), [key[1] for key in keys]

    def names(self, indices):
        """File names of patches."""
        return [self.patches.pairs[i][0].name for i in indices]

    def _arrived(self):
        """What `_sent` sends, once it is on the device."""
        with contextlib.closing(ahead(self._sent())) as batches:
            for pixels, holes, target, changes, keys in batches:
                if self.beside:
                    torch.cuda.current_stream(self.device).wait_stream(self.beside)
                    for tensor in (pixels, holes, target):
                        tensor is None or tensor.record_stream(torch.cuda.current_stream(self.device))
                yield pixels, holes, target, changes, keys

    def _sent(self):
        """Batches on their way to the device, with what is to become of them.

        This runs in a thread of its own, and computes nothing on a CPU: torch would start a second team of threads for it,
        which takes turns with that of the network.
        """
        if self.beside:
            torch.cuda.set_device(self.device)
        for pixels, holes, target, keys in own_words(self.loader):
            changes = None
            if self.strengths:
                changes = augment.draw([(self.patches.seed, *key) for key in keys], self.strengths, pixels.shape[1])
            with torch.cuda.stream(self.beside) if self.beside else contextlib.nullcontext():
                send = lambda tensor: tensor.to(self.device, non_blocking=True)
                yield send(pixels), None if holes is None else send(holes), send(target), changes, keys


def unchanged(batch):
    """For a DataLoader whose data set gives whole batches."""
    return batch


def own_words(loader):
    """What the loader gives; an error in a worker comes as the line it was, without that process's traceback around it."""
    try:
        yield from loader
    except SetupError as error:
        raise type(error)(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from None
    except MemoryError as error:
        raise MemoryError(str(error).rstrip().rpartition("\n")[2]) from None
    except RuntimeError as error:
        if not DIED.search(str(error)):
            raise
        words = str(error).rstrip().rpartition("RuntimeError: ")[2]  # the last of another process's traceback
        raise SetupError(f"--workers {loader.num_workers}: a loader process died ({' '.join(words.split())[:100]}); memory or /dev/shm may be short, give fewer, or 0.") from None


def dismiss(loader):
    """End a DataLoader's workers."""
    if loader._iterator is not None and hasattr(loader._iterator, "_shutdown_workers"):
        loader._iterator._shutdown_workers()


def quiet_worker(number):
    """One thread a worker; signals are the main process's to hear, which ends its workers. Only a second SIGTERM is meant for them."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def worker_count(config, patches, packed):
    """--workers, as far as there are batches and not beyond four a core; or: none where patches are fetched from a pack or memory, for a handful
    of them, or on a single core; else one less than the cores, at most 8.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.workers is not None:
        return min(config.workers, -(-len(patches) // config.batch_size), 4 * cores)
    return 0 if packed or len(patches) < 64 or cores == 1 else min(8, cores - 1)


def strengths_of(config):
    """augment.Strengths that --augmentation and the --augment_... flags make; None: no augmentation."""
    if config.augmentation == "none":
        return None
    given = {"scale": config.augment_scale and tuple(config.augment_scale), "rotation": config.augment_rotation, "brightness": config.augment_brightness,
             "contrast": config.augment_contrast, "hue": config.augment_hue, "saturation": config.augment_saturation, "noise": config.augment_noise,
             "band_dropout": config.augment_band_dropout}
    return augment.PRESETS[config.augmentation]._replace(**{name: value for name, value in given.items() if value is not None})


def rarity(counts):
    """How often each patch is shown under --oversample: the square root of how much rarer its rarest class is than the commonest one.

    Args:
        counts: (P, C) labelled pixels.
    Returns:
        (P,) from 1 to 10; and the same of each class, (C,).
    Source:
        Gupta et al. 2019, "LVIS", arXiv:1908.03195 (repeat factor sampling), with the commonest class as the threshold.
    """
    holds = np.asarray(counts) > 0
    share = holds.mean(0)
    factor = np.sqrt(share.max() / np.where(share > 0, share, share.max() or 1.0)).clip(1, MOST_OFTEN)
    return np.where(holds, factor, 1.0).max(1), factor


def make_loaders(config, splits, source, normalizer, device):
    """Loaders of train (shuffled, augmented), validation and test (None when empty); and a line on what is shown more often, or None."""
    side = lambda size: tile_size(config.model_name, size)
    whole = side(source.largest)
    make = lambda pairs: Loader(Patches(pairs, source.fetch, None, whole, survey=source.survey), config.batch_size, normalizer, device, worker_count(config, pairs, source.quick))
    weights, said = None, None
    if (config.augment_hue or config.augment_saturation) and source.rgb is None:
        print("note: --augment_hue, --augment_saturation: no red, green and blue among the bands; they do nothing")
    if config.oversample:
        weights, factor = rarity([source.survey.class_pixels[image] for image, _ in splits["train"]])
        said = "shown     " + ", ".join(f"{name} x {times:.2g}" for name, times in zip(source.names, factor)) + " (--oversample)"
    train = Loader(Patches(splits["train"], source.fetch, config.patch_size, side(config.patch_size or source.largest), config.seed, source.survey), config.batch_size,
                   normalizer, device, worker_count(config, splits["train"], source.quick), strengths_of(config), source.rgb, weights)
    return (train, make(splits["validation"]), make(splits["test"]) if splits["test"] else None), said
