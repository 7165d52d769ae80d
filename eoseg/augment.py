"""Random changes of training patches, whole batches at a time, on any device.

What changes is drawn on the CPU from each patch's own key (`draw`) and carried out where the batch lies (`apply`):
the same key makes the same change in any batch, by any worker, on any device.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from eoseg.coding import IGNORE


class Strengths(NamedTuple):
    """How far a patch may change; `Strengths()` only flips and turns by quarters, which every other one does as well.

    Turn and scale come together to every second patch, and so do light (contrast and brightness), colour (hue and
    saturation) and noise, each by a coin of its own. "Range" is a patch's highest value less its lowest, over all bands.
    """

    scale: tuple = (1.0, 1.0)  # lowest and highest, log-uniform: 2 shows half as many pixels, each twice as wide
    rotation: float = 0.0  # degrees, either way
    brightness: float = 0.0  # offset of each band, as a share of the range, either way
    contrast: float = 0.0  # gain of each band, 1 plus or minus this, about 0: about the mean after zscore, about dark after percentile
    hue: float = 0.0  # share of a full turn, either way; needs red, green and blue
    saturation: float = 0.0  # colourfulness times 1 plus or minus this; 1 reaches down to grey; needs red, green and blue
    noise: float = 0.0  # highest standard deviation, as a share of the range
    band_dropout: float = 0.0  # chance of each band of every patch to be its mean everywhere; one band always stays


# strong: what a network should bear between sensors, dates and haze. Scales down to 0.5 leave up to three quarters of a
# target unlabelled, but as few patches go so far, all of this warping costs 11 % of the labels (basic: 5 %). Hue stays small
# (18 degrees), because colour is what tells many covers apart. One band in ten dropped leaves three quarters of RGB patches
# whole, and a third of those with ten bands.
PRESETS = {
    "basic": Strengths(scale=(0.8, 1.25), rotation=15.0, brightness=0.05, contrast=0.1),
    "strong": Strengths((0.5, 2.0), 45.0, brightness=0.15, contrast=0.3, hue=0.05, saturation=0.3, noise=0.02, band_dropout=0.1),
}


class Changes(NamedTuple):
    """What is to become of N patches of B bands: small tensors on the CPU, float32 unless said otherwise."""

    turns: torch.Tensor  # (N,) int64, quarter turns as np.rot90 counts them, before the mirror
    mirrored: torch.Tensor  # (N,) bool, left and right
    warped: torch.Tensor  # (N,) bool; the others are copied bit for bit
    matrix: torch.Tensor  # (N, 2, 2) from (x, y) in the result to (x, y) in the patch, pixels off the centre; quarter turns and mirror within
    place: torch.Tensor  # (N, 2) x, y of the window shown, from -1 to 1: at the far left or top, or right or bottom, of what room it has
    gain: torch.Tensor  # (N, B)
    offset: torch.Tensor  # (N, B) as a share of the range
    hue: torch.Tensor  # (N,) radians
    saturation: torch.Tensor  # (N,) factor
    noise: torch.Tensor  # (N,) standard deviation as a share of the range
    noise_seed: torch.Tensor  # (N,) int64
    dropped: torch.Tensor  # (N, B) bool


def draw(keys, strengths, bands):
    """Draw what is to become of each patch.

    Each key seeds a generator that gives 13 + 3 * `bands` numbers from 0 to 1, in this order whatever the strengths: flip and
    turn, whether to warp, angle, scale, place x and y, whether light changes, whether colour, hue, saturation, whether noise,
    its level, its seed; then gain, offset and dropout of band 0, of band 1 ...: more bands leave those before as they were.

    Args:
        keys: N tuples of whole numbers from 0.
    Returns:
        Changes.
    """
    rolls = np.stack([np.random.default_rng(key).random(13 + 3 * bands) for key in keys])
    code, warp, angle, zoom, x, y, light, colour, hue, saturation, noisy, noise, seed = rolls[:, :13].T
    gain, offset, drop = rolls[:, 13:].reshape(len(keys), bands, 3).transpose(2, 0, 1)
    s, either = strengths, lambda roll: 2 * roll - 1
    turns, mirrored = np.divmod((code * 8).astype(np.int64), 2)
    scale = np.exp(np.log(s.scale[0]) + zoom * np.log(s.scale[1] / s.scale[0]))
    warped = (warp < 0.5) & (s.rotation > 0 or tuple(s.scale) != (1, 1))
    lit, coloured = light < 0.5, colour < 0.5
    dropped = (drop < s.band_dropout) & (drop < drop.max(1, keepdims=True))  # the highest roll stays, even if all are low
    single = lambda values: torch.from_numpy(np.asarray(values, np.float32))
    return Changes(
        torch.from_numpy(turns), torch.from_numpy(mirrored > 0), torch.from_numpy(warped),
        single(matrices(turns, mirrored, np.radians(s.rotation * either(angle)), scale)), single(either(np.stack([x, y], 1))),
        single(1 + s.contrast * either(gain) * lit[:, None]), single(s.brightness * either(offset) * lit[:, None]),
        single(2 * np.pi * s.hue * either(hue) * coloured), single(1 + s.saturation * either(saturation) * coloured),
        single(s.noise * noise * (noisy < 0.5)), torch.from_numpy((seed * 2**53).astype(np.int64)), torch.from_numpy(dropped),
    )


def matrices(turns, mirrored, angle, scale):
    """(N, 2, 2) from pixels of the result to pixels of the patch, x before y: scaled and turned, then mirrored, then turned by quarters."""
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    flip = 1 - 2 * mirrored
    turn = np.array([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]])[turns]
    return turn @ np.stack([np.stack([cos * flip, -sin * flip], 1), np.stack([sin, cos], 1)], 1)


def apply(image, target, changes, rgb=None):
    """Carry out `changes` on a batch; what is given stays as it is.

    First place (image bilinear and mirrored at the border, target nearest and ignored beyond it), then light, colour, noise
    and dropped bands. Nothing waits for the device, and no patch's bits hang on its neighbours in the batch.

    Args:
        image: (N, B, H, W) float32, normalised. target: (N, H, W) uint8 or int64. changes: of these N patches.
        rgb: where red, green and blue are among the bands, from 0; None leaves hue and saturation alone.
    Returns:
        image, in channels-last memory as the networks want it, and target, of the same shapes and types.
    """
    new = torch.empty_like(image, memory_format=torch.channels_last)
    new_target = torch.empty_like(target, memory_format=torch.contiguous_format)
    spread = image.amax((1, 2, 3)) - image.amin((1, 2, 3))
    gain, offset = sent(changes.gain, image.device), sent(changes.offset, image.device) * spread[:, None]
    lit = ((changes.gain != 1) | (changes.offset != 0)).any(1).tolist()
    for sample, (pixels, labels) in enumerate(placed(image, target, changes)):
        if lit[sample]:  # here and not in `new`: band by band is quicker
            pixels = (pixels * gain[sample, :, None, None]).add_(offset[sample, :, None, None])
        new[sample].copy_(pixels)
        new_target[sample].copy_(labels)
    if rgb is not None:
        recolour(new, changes, rgb)
    add_noise(new, changes, spread)
    for sample, band in changes.dropped.nonzero().tolist():
        new[sample, band].copy_(new[sample, band].mean())
    return new, new_target


def placed(image, target, changes):
    """Yield each patch and its target, flipped and turned or warped; some are views of what was given."""
    chosen = changes.warped.nonzero()[:, 0].tolist()
    if chosen:
        where = sent(windows(changes.matrix[chosen], changes.place[chosen], *target.shape[1:]), image.device)
        some = [torch.stack([batch[sample] for sample in chosen]) for batch in (image, target)]  # batch[chosen] would wait for the GPU
        warped = zip(*warp(*some, where))
    for sample, (turns, mirrored) in enumerate(zip(changes.turns.tolist(), changes.mirrored.tolist())):
        yield next(warped) if sample in chosen else (turned(image[sample], turns, mirrored), turned(target[sample], turns, mirrored))


def turned(array, turns, mirrored):
    """Quarter turns, then a mirror, of the last two dimensions."""
    array = torch.rot90(array, turns, (-2, -1)) if turns else array
    return array.flip(-1) if mirrored else array


def windows(matrix, place, height, width):
    """(N, 2, 3) as F.affine_grid has them, in half widths and half heights off the centre.

    The window shown, the box around it when it is turned, lies within the patch at `place`; in the middle where it is too large.
    """
    shape = matrix * torch.tensor([[1, height / width], [width / height, 1]])
    room = (1 - shape.abs().sum(2)).clamp(min=0)
    return torch.cat([shape, (place * room)[:, :, None]], 2)


def warp(image, target, where):
    """Resample (N, B, H, W) bilinearly and (N, H, W) by the nearest pixel, at the same places; `where` as `windows` returns it."""
    height, width = target.shape[1:]
    x, y = (sent((2 * torch.arange(length) + 1) / length - 1, image.device) for length in (width, height))
    where = where[:, None, None]  # an outer sum is quicker than F.affine_grid, whose matrix product may round by the size of the batch
    grid = where[..., 0] * x[:, None] + (where[..., 1] * y[:, None, None] + where[..., 2])
    labels = (target.float() - IGNORE)[:, None]  # so that the zeros beyond the border mean ignored
    labels = F.grid_sample(labels, grid, "nearest", "zeros", align_corners=False)[:, 0] + IGNORE
    return F.grid_sample(image, grid, "bilinear", "reflection", align_corners=False), labels.to(target.dtype)


def recolour(new, changes, rgb):
    """Turn hues and change saturation, in place."""
    chosen = ((changes.hue != 0) | (changes.saturation != 1)).nonzero()[:, 0].tolist()
    if not chosen:
        return
    mixed = sent(torch.stack([mixture(changes.hue[sample].item(), changes.saturation[sample].item()) for sample in chosen]), new.device)
    for sample, share in zip(chosen, mixed[..., None, None]):
        red, green, blue = (new[sample, band] for band in rgb)
        for band, pixels in zip(rgb, share[:, 0] * red + share[:, 1] * green + share[:, 2] * blue):
            new[sample, band].copy_(pixels)


def mixture(hue, saturation):
    """(3, 3) that turns colours by `hue` radians about grey and moves them `saturation` times as far from it; luma stays.

    Source: the YIQ colour space, FCC 47 CFR 73.682 (NTSC): I and Q are the colour, Y the luma.
    """
    yiq = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    cos, sin = saturation * np.cos(hue), saturation * np.sin(hue)
    return torch.from_numpy((np.linalg.inv(yiq) @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ yiq).astype(np.float32))


def add_noise(new, changes, spread):
    """Add Gaussian noise, in place; `spread` (N,) is each patch's range. Drawn on the CPU (3 ns a value), so that every device has the same."""
    level = sent(changes.noise, new.device) * spread
    for sample in changes.noise.nonzero()[:, 0].tolist():
        seeded = torch.Generator().manual_seed(changes.noise_seed[sample].item())
        new[sample].add_(sent(torch.randn(new.shape[1:], generator=seeded), new.device) * level[sample])


def sent(tensor, device):
    """A tensor of the CPU on `device`, without waiting: from pinned memory, as CUDA waits for any other."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
