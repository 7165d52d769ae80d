"""Areas of the classes on the patches that a network is judged by: as mapped, and freed from the map's bias by the confusion matrix."""

import textwrap

import numpy as np
import torch

from eoseg import georef, intervals, raster
from eoseg.metrics import count_pairs

MATRICES = 2**24  # numbers: confusion matrices of single patches that are held for the intervals


class Ground:
    """Watches what is called where: the mapped area of each class, on labelled and unlabelled pixels, and each patch's confusion matrix."""

    def __init__(self, pairs, source, names):
        self.pairs, self.source, self.names = pairs, source, names
        classes = len(names)
        self.pixels, self.hectares = np.zeros(classes), np.zeros(classes)
        self.matrices = np.zeros((len(pairs), classes, classes), np.int64) if len(pairs) * classes**2 <= MATRICES else None

    def __call__(self, classes, confidence, indices):
        for called, index in zip(classes.cpu(), indices):
            _, holes, target = self.source.fetch(self.pairs[index])
            rows, cols = target.shape
            called, count = called[:rows, :cols], len(self.names)
            valid = np.ones(target.shape, bool) if holes is None else ~holes.all(0)
            by_row = np.bincount((np.arange(rows)[:, None] * count + called.numpy())[valid], minlength=rows * count).reshape(rows, count)
            place = raster.header(self.pairs[index][0])
            areas = georef.pixel_areas(place.transform, place.crs, rows, cols)
            self.pixels += by_row.sum(0)
            self.hectares += np.nan if areas is None else areas @ by_row / 1e4
            if self.matrices is not None:
                self.matrices[index] = count_pairs(called, torch.from_numpy(target.astype(np.int64)), count)[:-1].numpy()

    def table(self, matrix):
        """Area of each class as mapped and as estimated, with standard error and limits; in hectares, or pixels where the place on Earth is unknown."""
        placed = not np.isnan(self.hectares).any()
        mapped = self.hectares if placed else self.pixels
        area, error, low, high = intervals.areas(matrix, mapped)
        by_patch = intervals.areas_by_patch(self.matrices, mapped) if self.matrices is not None else np.full((2, len(self.names)), np.nan)
        columns = {"mapped": mapped, "estimated": area, "standard_error": error, "low": low, "high": high, "low_over_patches": by_patch[0], "high_over_patches": by_patch[1]}
        return {"unit": "hectares" if placed else "pixels", "per_class": {name: {key: float(values[i]) for key, values in columns.items()} for i, name in enumerate(self.names)}}


def area_table(areas):
    """Mapped and estimated areas, a class per line."""
    lines = [f"  areas in {areas['unit']}: as mapped; freed from the map's bias (Olofsson et al. 2014), 95 % over pixels; 95 % over patches"]
    for name, part in areas["per_class"].items():
        lines.append(f"  {name:<16}{part['mapped']:>14,.1f}{part['estimated']:>14,.1f}  {part['low']:,.1f} to {part['high']:,.1f};  "
                     f"{part['low_over_patches']:,.1f} to {part['high_over_patches']:,.1f}")
    return "\n".join([*lines, *textwrap.wrap("Neighbouring pixels are not independent: trust the wider interval. Both hold for the region these patches were drawn from at random.", 110,
                                            initial_indent="  ", subsequent_indent="  ")])
