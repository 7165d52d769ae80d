"""Random changes of a training patch; the same (seed, epoch, sample) always makes the same change."""

import cv2
import numpy as np

from eoseg.coding import IGNORE


def augment(image, target, key):
    """Flip, turn, stretch and re-light one patch.

    The eight flips and quarter turns are equally likely. Every second patch is also turned by up to 15 degrees and
    scaled by 0.8 to 1.25 (image bilinear and mirrored at the border, target nearest and ignored beyond it), and every
    second one gets a gain of up to 10 % and an offset of up to 5 % of its range per band.

    Args:
        image: (B, H, W) float32, normalised. target: (H, W) int64. key: whole numbers that seed this sample.
    Returns:
        image and target, changed, of the same shapes.
    """
    rng = np.random.default_rng(key)
    square = image.shape[1] == image.shape[2]
    turns = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
    image, target = np.rot90(image, turns, (1, 2)), np.rot90(target, turns)
    if rng.integers(2):
        image, target = image[:, :, ::-1], target[:, ::-1]
    angle, scale, warp = rng.uniform(-15, 15), np.exp(rng.uniform(np.log(0.8), np.log(1.25))), rng.integers(2)
    if warp:
        image, target = affine(image, target, angle, scale)
    gain, offset, light = rng.uniform(0.9, 1.1, len(image)), rng.uniform(-0.05, 0.05, len(image)), rng.integers(2)
    if light:
        spread = max(float(image.max() - image.min()), 1e-6)
        image = image * gain.astype(np.float32)[:, None, None] + (offset * spread).astype(np.float32)[:, None, None]
    return np.ascontiguousarray(image), np.ascontiguousarray(target)


def affine(image, target, angle, scale):
    """Turn by `angle` degrees and scale about the centre."""
    height, width = target.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    # band by band: with more than four at once OpenCV rounds places to 1/32 pixel, and with more than 128 it refuses
    bands = [cv2.warpAffine(np.ascontiguousarray(band), matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
             for band in image]
    labels = cv2.warpAffine(np.ascontiguousarray(target, np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST,
                            borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE)
    return np.stack(bands), labels.astype(target.dtype)
