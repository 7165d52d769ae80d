"""The normaliser on tensors makes the same bits as the one on arrays."""

import numpy as np
import pytest
import torch

from eoseg.normalize import Normalizer
from eoseg.scaling import Scaling


def statistics(bands, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-500, 500, bands)
    return [{"valid_pixels": 9, "min": a - 9, "max": a + 3000, "mean": a + 700, "std": 300.3, "p1": a, "p50": a + 600, "p99": a + 2000.7} for a in low.tolist()]


@pytest.mark.parametrize("kind", ["percentile", "zscore", "none"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_tensors_and_arrays_are_normalised_to_the_same_bits(kind, dtype):
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 250, (2, 5, 16, 16)).astype(dtype) * (1 if dtype == "uint8" else 11)
    holes = rng.random(raw.shape) < 0.2
    normalizer = Normalizer.fitted(kind, statistics(5))
    scaling = Scaling(normalizer, torch.device("cpu"))
    for missing in (holes, np.zeros_like(holes)):
        wanted = np.stack([normalizer(pixels, mask) for pixels, mask in zip(raw, missing)])
        found = scaling(torch.from_numpy(raw).to(torch.float32, copy=True), torch.from_numpy(missing) if missing.any() else None)
        assert np.array_equal(found.numpy(), wanted)


def test_a_hole_of_nan_becomes_the_median():
    scaling = Scaling(Normalizer.fitted("percentile", statistics(1)), torch.device("cpu"))
    raw = torch.full((1, 1, 2, 2), float("nan"))
    assert scaling(raw, torch.ones(1, 1, 2, 2, dtype=torch.bool)).isfinite().all()
