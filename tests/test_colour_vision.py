"""The default colours of classes, as people see them who lack one kind of cone."""

import itertools

import numpy as np
import pytest

from eoseg import plots

LAND_COVER = ["water", "tree", "crop", "developed", "grass", "bare", "wetland", "background", "snow", "shrub", "road"]  # the commonest first
SEEN = {  # Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency", severity 1; of linear RGB
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def lab(colours, vision="normal"):
    """sRGB (N, 3), 0 to 255, as CIE L*a*b* under D65."""
    rgb = np.array(colours) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ SEEN[vision].T, 0, 1)
    xyz = linear @ np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]).T / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def difference(one, other):
    """CIEDE2000 between L*a*b* (..., 3); 2.3 is just seen, side by side. Sharma, Wu and Dalal 2005."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    grow = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25.0**7))
    c1, c2 = np.hypot(grow * a1, b1), np.hypot(grow * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, grow * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + 180) % 360 - 180)
    hue, light, chroma = (h1 + turn / 2) % 360, (l1 + l2) / 2, (c1 + c2) / 2
    wave = lambda factor, shift: np.cos(np.radians(factor * hue - shift))
    t = 1 - 0.17 * wave(1, 30) + 0.24 * wave(2, 0) + 0.32 * wave(3, -6) - 0.20 * wave(4, 63)
    in_l = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    in_c, in_h = (c2 - c1) / (1 + 0.045 * chroma), 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    twist = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    return np.sqrt(in_l**2 + in_c**2 + in_h**2 + twist * in_c * in_h)


def closest(colours, vision):
    """The least difference between two of `colours`, and which two."""
    seen = lab(colours, vision)
    return min((float(difference(seen[i], seen[j])), i, j) for i, j in itertools.combinations(range(len(seen)), 2))


@pytest.mark.parametrize("one, other, wanted", [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 2.5, 0), (73, 25, -18), 27.1492), ((50, -1, 2), (50, 0, 0), 2.3669),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377), ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
])
def test_the_difference_of_colours_is_that_of_the_published_pairs(one, other, wanted):
    assert difference(np.array(one), np.array(other)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("vision", SEEN)
def test_common_land_cover_can_be_told_apart(vision):
    least, i, j = closest(plots.colours(LAND_COVER), vision)
    assert least > 11, (LAND_COVER[i], LAND_COVER[j])


@pytest.mark.parametrize("vision", SEEN)
def test_classes_of_other_names_can_be_told_apart(vision):
    assert closest(plots.PALETTE, vision)[0] > 11


@pytest.mark.parametrize("names, taken", [(["tree", "wetland", "shrub", "developed"], []), (["a", "b"], [(20, 110, 50), (55, 36, 130)])])
def test_spare_colours_are_not_those_beside_a_colour_in_use(names, taken):
    others = [f"kind {i}" for i in range(4)]
    for order in (names + others, others + names):
        assert closest([*plots.colours(order, taken), *taken], "normal")[0] > 11
