"""The normaliser on batches of tensors, on any device."""

import numpy as np
import torch


class Scaling:
    """A `Normalizer` for tensors (N, B, H, W): the same arithmetic in the same order, so the same bits.

    Args:
        normalizer: of any kind but patch_percentile, which looks at each patch.
    """

    def __init__(self, normalizer, device):
        column = lambda values: torch.tensor(np.array(values, np.float32), device=device).view(-1, 1, 1)
        self.fill, self.offset, self.scale = column(normalizer.fill), column(normalizer.offset), column(normalizer.scale)
        self.limits = normalizer.low, normalizer.high

    def __call__(self, raw, holes=None):
        """Normalise float32 `raw` in place; where `holes` (N, B, H, W) is True, put the band's median."""
        image = raw if holes is None else raw.copy_(torch.where(holes, self.fill, raw))
        image.sub_(self.offset).mul_(self.scale)
        return image if self.limits == (-np.inf, np.inf) else image.clamp_(*self.limits)
