"""Augmentation moves image and target together, does what each strength says, and the same key does the same anywhere."""

import math

import numpy as np
import pytest
import torch

from eoseg import augment
from eoseg.augment import PRESETS, Changes, Strengths, apply, draw

CODES = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]


def coded(height=15, width=15, bands=3, dtype=torch.int64):
    """One patch whose bands hold row, column, row, ... and whose target is unique to each pixel where the type allows."""
    row, col = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([(row, col)[band % 2] for band in range(bands)]).float()
    return image[None], (row * width + col)[None].to(dtype)


def keys(count, epoch=0):
    return [(42, epoch, index) for index in range(count)]


def changes(count=1, bands=3, **fields):
    """Changes that change nothing, but for `fields`."""
    ones = torch.ones(count)
    nothing = Changes(
        turns=torch.zeros(count, dtype=torch.int64), mirrored=ones < 0, warped=ones < 0, matrix=torch.eye(2).repeat(count, 1, 1), place=torch.zeros(count, 2),
        gain=torch.ones(count, bands), offset=torch.zeros(count, bands), hue=0 * ones, saturation=ones, noise=0 * ones,
        noise_seed=torch.zeros(count, dtype=torch.int64), dropped=torch.zeros(count, bands, dtype=torch.bool))
    return nothing._replace(**{name: torch.as_tensor(value) for name, value in fields.items()})


def warping(angle, scale, place=(0.0, 0.0), turns=0, mirrored=False, bands=2):
    """Changes of one patch that is warped for certain; angle in degrees."""
    matrix = augment.matrices(np.array([turns]), np.array([mirrored]), np.radians([angle]), np.array([scale]))
    return changes(1, bands, warped=[True], matrix=torch.from_numpy(matrix).float(), place=[place])


def angle_and_scale(drawn):
    """Degrees and scale that the matrices of Changes hold, without the quarter turns and mirrors."""
    upright = augment.matrices(drawn.turns.numpy(), drawn.mirrored.numpy(), np.zeros(len(drawn.turns)), np.ones(len(drawn.turns)))
    rest = np.linalg.inv(upright) @ drawn.matrix.numpy().astype(float)
    return np.degrees(np.arctan2(rest[:, 1, 0], rest[:, 0, 0])), 1 / np.sqrt(np.linalg.det(rest))


def is_even(values, low, high):
    """Whether values lie within bounds and are spread evenly over them (Kolmogorov-Smirnov, far beyond any luck)."""
    share = (np.sort(np.ravel(values)) - low) / (high - low)
    return -1e-6 <= share[0] and share[-1] <= 1 + 1e-6 and np.abs(share - np.linspace(0, 1, len(share))).max() < 2 / len(share) ** 0.5


# ---- drawing


def test_all_orientations_are_equally_likely():
    drawn = draw(keys(4000), PRESETS["basic"], 1)
    counts = np.bincount(drawn.turns * 2 + drawn.mirrored)
    counts = counts[counts > 0]
    assert len(counts) == 8 and np.abs(counts / 4000 - 1 / 8).max() < 0.025


@pytest.mark.parametrize("name, angle, low, high", [("basic", 15, 0.8, 1.25), ("strong", 45, 0.5, 2)])
def test_every_second_patch_is_warped_by_an_even_angle_and_a_log_uniform_scale_to_an_even_place(name, angle, low, high):
    drawn = draw(keys(4000), PRESETS[name], 1)
    angles, scales = angle_and_scale(drawn)
    assert abs(drawn.warped.float().mean() - 0.5) < 0.03
    assert is_even(angles, -angle, angle) and is_even(np.log(scales), math.log(low), math.log(high))
    assert is_even(drawn.place[:, 0], -1, 1) and is_even(drawn.place[:, 1], -1, 1)
    assert abs(np.corrcoef([*drawn.place.numpy().T, angles, np.log(scales), drawn.warped.numpy()]) - np.eye(5)).max() < 0.06


@pytest.mark.parametrize("name, contrast, brightness", [("basic", 0.1, 0.05), ("strong", 0.3, 0.15)])
def test_every_second_patch_has_another_even_gain_and_offset_in_each_band(name, contrast, brightness):
    drawn = draw(keys(2000), PRESETS[name], 4)
    lit = (drawn.gain != 1).any(1)
    assert abs(lit.float().mean() - 0.5) < 0.04 and torch.equal(lit, (drawn.offset != 0).any(1))
    assert is_even(drawn.gain[lit], 1 - contrast, 1 + contrast) and is_even(drawn.offset[lit], -brightness, brightness)
    assert abs(np.corrcoef(drawn.gain[lit].T) - np.eye(4)).max() < 0.15


def test_every_second_patch_has_other_colours_and_noise():
    drawn = draw(keys(4000), PRESETS["strong"], 3)
    coloured, noisy = drawn.hue != 0, drawn.noise > 0
    assert abs(coloured.float().mean() - 0.5) < 0.03 and torch.equal(coloured, drawn.saturation != 1)
    assert is_even(drawn.hue[coloured], -0.1 * math.pi, 0.1 * math.pi) and is_even(drawn.saturation[coloured], 0.7, 1.3)
    assert abs(noisy.float().mean() - 0.5) < 0.03 and is_even(drawn.noise[noisy], 0, 0.02)
    assert len(drawn.noise_seed.unique()) == 4000
    coins = np.stack([drawn.warped, coloured, noisy, (drawn.gain != 1).any(1)])
    assert abs(np.corrcoef(coins) - np.eye(4)).max() < 0.06  # each falls by itself


@pytest.mark.parametrize("bands, chance", [(1, 0.9), (2, 0.9), (3, 1.0), (10, 0.1)])
def test_bands_drop_with_their_chance_but_never_all(bands, chance):
    dropped = draw(keys(3000), Strengths(band_dropout=chance), bands).dropped.float()
    assert dropped.mean() == pytest.approx(chance - chance**bands / bands, abs=0.02)  # where all would drop, one stays
    assert dropped.sum(1).max() < bands
    assert dropped.mean(0).max() - dropped.mean(0).min() < 0.06  # no band is spared


def test_no_strength_only_flips_and_turns():
    drawn = draw(keys(100), Strengths(), 3)
    for name, value in changes(100, 3)._asdict().items():
        if name not in ("turns", "mirrored", "matrix", "place", "noise_seed"):
            assert torch.equal(getattr(drawn, name), value), name
    still = Changes(*(field[(drawn.turns == 0) & ~drawn.mirrored] for field in drawn))
    image, target = torch.rand(len(still.turns), 3, 9, 9), torch.randint(9, (len(still.turns), 9, 9))
    new_image, new_target = apply(image, target, still, rgb=(0, 1, 2))
    assert len(image) > 5 and torch.equal(new_image, image) and torch.equal(new_target, target)


@pytest.mark.parametrize("field, strengths", [
    ("warped", Strengths(rotation=5)), ("warped", Strengths(scale=[1, 2])), ("gain", Strengths(contrast=0.1)), ("offset", Strengths(brightness=0.1)),
    ("hue", Strengths(hue=0.1)), ("saturation", Strengths(saturation=0.1)), ("noise", Strengths(noise=0.1)), ("dropped", Strengths(band_dropout=0.1))])
def test_each_strength_alone_changes_its_own_field_alone(field, strengths):
    drawn, nothing = draw(keys(50), strengths, 3), draw(keys(50), Strengths(), 3)
    differing = {name for name in Changes._fields if not torch.equal(getattr(drawn, name), getattr(nothing, name))}
    assert differing == ({"warped", "matrix"} if field == "warped" else {field})


def test_a_key_draws_the_same_alone_in_a_batch_and_with_more_bands():
    many = draw(keys(8), PRESETS["strong"], 10)
    for index, key in enumerate(keys(8)):
        for whole, one in zip(many, draw([key], PRESETS["strong"], 10)):
            assert torch.equal(whole[index], one[0])
    for wide, narrow in zip(many, draw(keys(8), PRESETS["basic"]._replace(contrast=0.3, brightness=0.15, noise=0.02), 4)):
        if wide.shape == (8, 10) and wide.dtype == torch.float32:
            assert torch.equal(wide[:, :4], narrow)
    for other in ([(43, 0, i) for i in range(8)], [(42, 1, i) for i in range(8)], [(42, 0, i + 8) for i in range(8)]):
        assert not torch.isin(draw(other, PRESETS["strong"], 10).noise_seed, many.noise_seed).any()


# ---- place


@pytest.mark.parametrize("turns, mirrored", CODES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_flips_and_turns_are_numpys_to_the_bit(turns, mirrored, dtype):
    image, target = torch.randn(1, 3, 15, 15), coded(dtype=dtype)[1]
    new_image, new_target = apply(image, target, changes(turns=[turns], mirrored=[mirrored]))
    for before, after in zip([*image[0], target[0]], [*new_image[0], new_target[0]]):
        wanted = np.rot90(before.numpy(), turns)
        assert np.array_equal(after.numpy(), wanted[:, ::-1] if mirrored else wanted)


@pytest.mark.parametrize("turns, mirrored", CODES)
@pytest.mark.parametrize("height, width", [(15, 15), (12, 20)])
def test_a_warp_by_nothing_is_the_flip_and_turn_alone(turns, mirrored, height, width):
    if height != width and turns % 2:
        return
    image, target = coded(height, width, bands=2)
    new_image, new_target = apply(image, target, warping(0, 1, turns=turns, mirrored=mirrored))
    wanted_image, wanted_target = apply(image, target, changes(1, 2, turns=[turns], mirrored=[mirrored]))
    assert torch.allclose(new_image, wanted_image, atol=1e-4) and torch.equal(new_target, wanted_target)


def test_a_scale_of_two_shows_half_as_many_pixels():
    (row, col), target = (result[0] for result in apply(*coded(40, 40, bands=2, dtype=torch.uint8), warping(0, 2)))
    assert row[:, 20].tolist() == pytest.approx(np.arange(40) / 2 + 9.75, abs=1e-4)  # rows 10 to 30, where pixel 10 begins at 9.5
    assert col[20].tolist() == pytest.approx(np.arange(40) / 2 + 9.75, abs=1e-4)
    assert (target[::2, ::2] == coded(40, 40, dtype=torch.uint8)[1][0, 10:30, 10:30]).all() and (target[1::2, 1::2] == target[::2, ::2]).all()


@pytest.mark.parametrize("height, width", [(41, 41), (31, 51)])
def test_a_warp_turns_by_its_angle(height, width):
    row, col = apply(*coded(height, width, bands=2), warping(10, 1))[0][0]
    y, x, sin, cos = height // 2, width // 2, math.sin(math.radians(10)), math.cos(math.radians(10))
    assert (row[y, x].item(), col[y, x].item()) == pytest.approx((y, x), abs=1e-4)
    assert (row[y, x + 12].item(), col[y, x + 12].item()) == pytest.approx((y + 12 * sin, x + 12 * cos), abs=1e-3)
    assert (row[y + 12, x].item(), col[y + 12, x].item()) == pytest.approx((y + 12 * cos, x - 12 * sin), abs=1e-3)


@pytest.mark.parametrize("place, row, col", [((-1, -1), 0, 0), ((1, -1), 0, 10), ((-1, 1), 6, 0), ((1, 1), 6, 10), ((0, 1), 6, 5)])
def test_a_zoomed_window_lies_at_its_place_within_the_patch(place, row, col):
    image, target = coded(12, 20, bands=2, dtype=torch.uint8)
    (rows, cols), labels = (result[0] for result in apply(image, target, warping(0, 2, place)))
    assert torch.equal(labels[::2, ::2], target[0, row : row + 6, col : col + 10])
    assert rows[5:7, 9].tolist() == pytest.approx([row + 2.25, row + 2.75], abs=1e-4)
    assert cols[5, 9:11].tolist() == pytest.approx([col + 4.25, col + 4.75], abs=1e-4)


@pytest.mark.parametrize("height, width", [(30, 30), (45, 45)])
def test_a_window_that_fits_never_leaves_the_patch_and_a_larger_one_stays_in_its_middle(height, width):
    drawn = draw(keys(400), Strengths(scale=(0.5, 4), rotation=45), 1)
    where = augment.windows(drawn.matrix, drawn.place, height, width)
    reach = where[:, :, :2].abs().sum(2)
    fits = reach <= 1
    assert 0.2 < fits.float().mean() < 0.9 and (reach + where[:, :, 2].abs())[fits].max() < 1 + 1e-6
    assert (where[:, :, 2][~fits] == 0).all()
    inside = fits.all(1) & drawn.warped
    new_target = apply(torch.zeros(400, 1, height, width), torch.zeros(400, height, width, dtype=torch.uint8), drawn)[1]
    assert inside.sum() > 50 and not new_target[inside].any()


@pytest.mark.parametrize("angle, scale", [(0, 1.25), (0, 0.8), (15, 1), (-15, 1.25), (7, 0.8), (45, 0.5), (-45, 2)])
@pytest.mark.parametrize("height, width", [(64, 64), (48, 80)])
@pytest.mark.parametrize("turns, mirrored, place", [(0, False, (0.3, -1)), (3, True, (-1, 0.5)), (2, True, (1, 0))])
def test_warped_image_and_target_show_the_same_place(height, width, angle, scale, turns, mirrored, place):
    image, _ = coded(height, width, bands=2)
    label = lambda row, col: torch.div(row, 6, rounding_mode="floor") * 14 + torch.div(col, 6, rounding_mode="floor")  # blocks of 6 pixels
    target = label(*image[0])[None].to(torch.uint8)
    (row, col), new_target = (result[0] for result in apply(image, target, warping(angle, scale, place, turns, mirrored)))
    inner = (new_target != 255) & (row > 0.6) & (row < height - 1.6) & (col > 0.6) & (col < width - 1.6)  # further out, the image is mirrored
    sure = inner & ((row + 0.5) % 6 - 3).abs().lt(2.98) & ((col + 0.5) % 6 - 3).abs().lt(2.98)  # not on a block's edge
    assert inner.float().mean() > 0.15 and sure.sum() > 0.8 * inner.sum()
    assert torch.equal(new_target[sure].float(), label(row.round(), col.round())[sure])


def test_beyond_the_border_the_target_is_ignored_and_the_image_mirrored():
    image, target = coded(32, 32, bands=2, dtype=torch.uint8)
    (row, col), labels = (result[0] for result in apply(image, target * 0, warping(0, 0.5)))
    assert (labels[8:24, 8:24] == 0).all() and (labels == 255).sum() == 32 * 32 - 16 * 16
    assert row[:8, 16].flip(0).tolist() == pytest.approx(row[8:16, 16].tolist(), abs=1e-4)  # the first rows once more, backwards
    assert col[16, 24:].flip(0).tolist() == pytest.approx(col[16, 16:24].tolist(), abs=1e-4)
    image, target = torch.ones(1, 2, 30, 30), torch.zeros(1, 30, 30, dtype=torch.int64)
    new_image, new_target = apply(image, target, warping(15, 0.8))
    assert torch.allclose(new_image, image)  # no black corners
    assert (new_target[0, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() and set(new_target.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_ignored_never_becomes_a_class_and_no_class_becomes_another(dtype):
    target = torch.full((100, 40, 40), 255, dtype=dtype)
    target[:, 10:30, 10:30] = 0
    target[:, 15:20, 15:20] = 254
    drawn = draw(keys(100), PRESETS["basic"], 1)
    new = apply(torch.zeros(100, 1, 40, 40), target, drawn)[1]
    assert new.dtype == dtype and set(new.unique().tolist()) <= {0, 254, 255}
    assert ((new == 255).sum((1, 2)) > 0.3 * 40 * 40).all()  # the frame is wide enough to stay: nothing fills it
    for one in new:
        rows, cols = (one == 254).nonzero(as_tuple=True)
        assert len(rows) and (one[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] != 255).all()


# ---- light, colour, noise, dropped bands


def test_light_is_a_gain_and_an_offset_by_the_patchs_own_range():
    image = torch.stack([torch.linspace(0, 2, 50).reshape(2, 5, 5), torch.linspace(-3, 1, 50).reshape(2, 5, 5)])
    lighting = changes(2, 2, gain=[[1.1, 0.5], [1, 2]], offset=[[0.05, 0], [-0.25, 1]])
    new, _ = apply(image, torch.zeros(2, 5, 5, dtype=torch.uint8), lighting)
    assert torch.allclose(new[0, 0], image[0, 0] * 1.1 + 0.1) and torch.allclose(new[0, 1], image[0, 1] * 0.5)  # a range of 2
    assert torch.allclose(new[1, 0], image[1, 0] - 1) and torch.allclose(new[1, 1], image[1, 1] * 2 + 4)  # a range of 4


def luma(rgb):
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def test_no_saturation_is_grey_by_the_luma_of_the_right_bands():
    image = torch.tensor([1.0, 2, 3, 4])[None, :, None, None].expand(1, 4, 3, 3)
    new, _ = apply(image, torch.zeros(1, 3, 3, dtype=torch.uint8), changes(1, 4, saturation=[0.0]), rgb=[2, 1, 0])
    assert torch.allclose(new[0, :3], torch.tensor(0.299 * 3 + 0.587 * 2 + 0.114 * 1), atol=1e-5) and (new[0, 3] == 4).all()
    half, _ = apply(image, torch.zeros(1, 3, 3, dtype=torch.uint8), changes(1, 4, saturation=[0.5]), rgb=[2, 1, 0])
    assert torch.allclose(half, (new + image) / 2, atol=1e-5)


def test_hue_turns_colours_about_grey_and_keeps_luma():
    image = torch.rand(1, 3, 9, 9)
    turn = lambda degrees, image: apply(image, torch.zeros(1, 9, 9, dtype=torch.uint8), changes(hue=[math.radians(degrees)]), rgb=(0, 1, 2))[0]
    assert torch.allclose(luma(turn(77, image)[0]), luma(image[0]), atol=1e-5)
    assert torch.allclose(turn(200, turn(160, image)), image, atol=1e-5) and not torch.allclose(turn(160, image), image, atol=0.1)
    assert torch.allclose(turn(180, image), 2 * luma(image[0]) - image, atol=1e-5)  # the complement
    both, _ = apply(image, torch.zeros(1, 9, 9, dtype=torch.uint8), changes(hue=[math.radians(77)], saturation=[0.5]), rgb=(0, 1, 2))
    assert torch.allclose(both, (turn(77, image) + luma(image[0])) / 2, atol=1e-5)  # half as far from grey
    grey = torch.rand(1, 1, 9, 9).expand(1, 3, 9, 9)
    assert torch.allclose(turn(50, grey), grey, atol=1e-5)


def test_colour_changes_after_light_and_bands_drop_last():
    image = torch.rand(1, 3, 9, 9)
    both = changes(saturation=[0.0], gain=[[2.0, 1, 1]], noise=[0.1], dropped=[[False, False, True]])
    grey = apply(image, torch.zeros(1, 9, 9, dtype=torch.uint8), both._replace(noise=torch.zeros(1)), rgb=(0, 1, 2))[0][0, :2]
    assert torch.allclose(grey, luma(image[0]) + 0.299 * image[0, 0], atol=1e-5)  # of twice the red
    assert apply(image, torch.zeros(1, 9, 9, dtype=torch.uint8), both, rgb=(0, 1, 2))[0][0, 2].unique().numel() == 1  # no noise on it


def test_colour_needs_to_know_red_green_and_blue():
    image = torch.rand(1, 3, 9, 9)
    assert torch.equal(apply(image, torch.zeros(1, 9, 9, dtype=torch.uint8), changes(hue=[1.0], saturation=[0.2]))[0], image)


def test_noise_has_its_level_by_the_range_and_its_seed():
    image = torch.zeros(4, 3, 64, 64)
    image[:, 0, 0, 0] = 5
    noisy = changes(4, 3, noise=[0.0, 0.02, 0.1, 0.02], noise_seed=[7, 7, 7, 2**53 - 1])
    noise = apply(image, torch.zeros(4, 64, 64, dtype=torch.uint8), noisy)[0] - image
    assert not noise[0].any()
    assert noise.std((1, 2, 3)).tolist() == pytest.approx([0, 0.1, 0.5, 0.1], rel=0.03)
    assert noise.mean((1, 2, 3)).abs().max() < 0.02 and (noise[1].abs() < 0.1).float().mean().item() == pytest.approx(0.683, abs=0.02)
    assert torch.allclose(noise[2], noise[1] * 5, atol=1e-5) and not torch.allclose(noise[3], noise[1], atol=0.1)
    assert abs(np.corrcoef(noise[1].reshape(3, -1))[0, 1]) < 0.06  # bands differ


def test_a_dropped_band_is_its_mean():
    image = torch.rand(2, 3, 8, 8)
    new, _ = apply(image, torch.zeros(2, 8, 8, dtype=torch.uint8), changes(2, 3, dropped=[[False, True, False], [True, False, True]]))
    for sample, band in [(0, 1), (1, 0), (1, 2)]:
        assert new[sample, band].unique().numel() == 1 and new[sample, band, 0, 0].item() == pytest.approx(image[sample, band].mean().item(), abs=1e-5)
    for sample, band in [(0, 0), (0, 2), (1, 1)]:
        assert torch.equal(new[sample, band], image[sample, band])


# ---- the batch as a whole


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("height, width, bands", [(64, 64, 10), (37, 37, 3)])
def test_a_patch_comes_out_alike_to_the_bit_alone_in_a_batch_and_once_more(preset, height, width, bands):
    image, target = torch.randn(8, bands, height, width), torch.randint(9, (8, height, width), dtype=torch.uint8)
    for epoch in range(4):
        drawn = draw(keys(8, epoch), PRESETS[preset], bands)
        together, again = apply(image, target, drawn, (0, 1, 2)), apply(image, target, drawn, (0, 1, 2))
        assert torch.equal(together[0], again[0]) and torch.equal(together[1], again[1])
        for index, key in enumerate(keys(8, epoch)):
            alone = apply(image[index : index + 1], target[index : index + 1], draw([key], PRESETS[preset], bands), (0, 1, 2))
            assert torch.equal(alone[0][0], together[0][index]) and torch.equal(alone[1][0], together[1][index])


@pytest.mark.parametrize("bands", [*range(1, 14), 200])
@pytest.mark.parametrize("height, width", [(20, 20), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_any_number_of_bands_and_any_size(bands, height, width, dtype):
    image, target = torch.rand(12, bands, height, width), torch.randint(9, (12, height, width), dtype=dtype)
    before = image.clone(), target.clone()
    drawn, found = draw(keys(12), PRESETS["strong"], bands), []
    for given in (image, image.contiguous(memory_format=torch.channels_last)):
        new_image, new_target = apply(given, target, drawn, (2, 1, 0) if bands > 2 else None)
        assert new_image.shape == image.shape and new_image.dtype == torch.float32 and new_image.isfinite().all()
        assert new_image.is_contiguous(memory_format=torch.channels_last)
        assert new_target.shape == target.shape and new_target.dtype == dtype and new_target.is_contiguous()
        found.append(new_image)
    assert torch.allclose(*found, atol=1e-5)
    new_image += 1
    new_target += 1
    assert torch.equal(image, before[0]) and torch.equal(target, before[1])  # what is given is not changed


def test_a_patch_seldom_comes_twice():
    image, target = torch.rand(40, 3, 16, 16)[:1].expand(40, -1, -1, -1), torch.zeros(40, 16, 16, dtype=torch.uint8)
    for some in ([(42, epoch, 7) for epoch in range(40)], [(seed, 3, 7) for seed in range(40)], [(42, 3, index) for index in range(40)]):
        new, _ = apply(image, target, draw(some, PRESETS["basic"], 3))
        assert len({one.numpy().tobytes() for one in new}) > 30


def test_nothing_waits_for_a_gpu(monkeypatch):
    """On tensors that have a device but no values, reading one, choosing by a mask and mixing devices are errors."""
    from torch._subclasses import fake_tensor

    fake = fake_tensor.FakeTensorMode()

    def without_values(tensor, device="cuda"):
        with fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    image, target = without_values(torch.zeros(16, 5, 32, 32)), without_values(torch.zeros(16, 32, 32, dtype=torch.uint8))
    monkeypatch.setattr(augment, "sent", without_values)
    with pytest.raises(fake_tensor.DataDependentOutputException):
        image.sum().item()
    with pytest.raises(fake_tensor.DynamicOutputShapeException):
        image[image > 0]
    with pytest.raises(Exception, match="[Ff]ake"):
        image + torch.zeros(5, 1, 1)
    drawn = draw(keys(16), PRESETS["strong"], 5)
    assert drawn.warped.any() and drawn.noise.any() and drawn.hue.any() and drawn.dropped.any() and (drawn.gain != 1).any()
    new_image, new_target = apply(image, target, drawn, (2, 1, 0))
    assert (new_image.shape, new_image.device, new_target.shape, new_target.device) == (image.shape, image.device, target.shape, image.device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_gpu_changes_patches_as_the_cpu_does(dtype):
    image, target = torch.rand(64, 10, 96, 96), torch.randint(9, (64, 96, 96), dtype=dtype)
    drawn = draw(keys(64), PRESETS["strong"], 10)
    wanted = apply(image, target, drawn, (2, 1, 0))
    image, target = image.cuda(), target.cuda()
    torch.cuda.set_sync_debug_mode("error")  # whatever waits for the GPU raises an error
    try:
        new_image, new_target = apply(image, target, drawn, (2, 1, 0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    still = ~drawn.warped
    assert torch.equal(new_target.cpu()[still], wanted[1][still])
    assert (new_target.cpu() != wanted[1]).float().mean() < 1e-3  # a place may round to either of two pixels
    assert torch.allclose(new_image.cpu(), wanted[0], atol=1e-3)
