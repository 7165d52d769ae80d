"""Augmentation moves image and target together, and says nothing about ignored pixels."""

import numpy as np
import pytest

from eoseg.augment import affine, augment


def coded(height=15, width=15, bands=3):
    """Bands that hold row, column, row, ... ; a target unique to each pixel, which a warp (uint8) does not leave so."""
    row, col = np.indices((height, width))
    image = np.stack([(row, col)[band % 2] for band in range(bands)]).astype(np.float32)
    return image, (row * width + col).astype(np.int64)


def keys(count=300):
    return [[42, epoch, index] for epoch in range(3) for index in range(count // 3)]


def is_moved_only(image, target, wide, height, width):
    """No warp (every class still there once) and no change of light."""
    return np.array_equal(np.sort(target, None), np.arange(height * width)) and np.array_equal(np.sort(image[1], None), np.sort(wide, None))


@pytest.mark.parametrize("height, width, orientations", [(30, 30, 8), (24, 30, 4)])
def test_flips_and_turns_move_image_and_target_together_and_all_of_them_occur(height, width, orientations):
    image, target = coded(height, width)
    seen = {}
    for key in keys():
        new_image, new_target = augment(image, target, key)
        assert new_image.shape == image.shape and new_target.shape == target.shape
        if is_moved_only(new_image, new_target, image[1], height, width):
            assert np.array_equal(new_image[0] * width + new_image[1], new_target)
            seen[new_target.tobytes()] = seen.get(new_target.tobytes(), 0) + 1
    assert len(seen) == orientations
    assert 40 < sum(seen.values()) < 110  # a quarter of 300
    assert max(seen.values()) < 4 * min(seen.values())


def test_light_is_a_gain_and_an_offset_per_band_within_its_bounds():
    image, target = coded(30, 30, bands=4)
    found = []
    for key in keys():
        new_image, new_target = augment(image, target, key)
        if np.array_equal(np.sort(new_target, None), np.arange(900)):
            was = image[:, new_target // 30, new_target % 30]
            for before, after in zip(was, new_image):
                gain, offset = np.polyfit(before.ravel(), after.ravel(), 1)
                assert np.abs(gain * before + offset - after).max() < 1e-4
                found.append((gain, offset / 29))
    gains, offsets = np.array(found).T
    assert gains.min() > 0.9 - 1e-5 and gains.max() < 1.1 + 1e-5 and np.ptp(gains) > 0.18
    assert np.abs(offsets).max() < 0.05 + 1e-5 and np.ptp(offsets) > 0.09
    assert len(np.unique(np.round(gains, 4))) > 100  # bands differ


@pytest.mark.parametrize("angle, scale", [(0, 1), (15, 1), (-15, 1.25), (7, 0.8), (0, 1.25), (0, 0.8)])
@pytest.mark.parametrize("height, width", [(64, 64), (48, 80)])
def test_warped_image_and_target_show_the_same_place(height, width, angle, scale):
    row, col = np.indices((height, width)).astype(np.float32)
    target = (row // 6 * 15 + col // 6).astype(np.int64)  # blocks of 6 pixels
    (new_row, new_col), new_target = affine(np.stack([row, col]), target, angle, scale)
    here = new_target != 255
    inner = here & (new_row > 1) & (new_row < height - 2) & (new_col > 1) & (new_col < width - 2)  # beyond, the image is mirrored
    assert inner.mean() > 0.5
    sure = inner & (np.abs((new_row + 0.5) % 6 - 3) < 2.95) & (np.abs((new_col + 0.5) % 6 - 3) < 2.95)  # not on a block's edge
    wanted = np.rint(new_row) // 6 * 15 + np.rint(new_col) // 6
    assert sure.sum() > 0.8 * inner.sum() and np.array_equal(new_target[sure], wanted[sure])


def test_a_warp_turns_and_scales_about_the_centre():
    row, col = np.indices((41, 41)).astype(np.float32)
    (new_row, new_col), _ = affine(np.stack([row, col]), np.zeros((41, 41), np.int64), 0, 1.25)
    assert (new_row[20, 20], new_col[20, 20]) == (20, 20)
    assert new_row[30, 20] == pytest.approx(28, abs=0.02) and new_col[20, 10] == pytest.approx(12, abs=0.02)  # ten pixels show eight
    (new_row, new_col), _ = affine(np.stack([row, col]), np.zeros((41, 41), np.int64), 10, 1)
    assert np.hypot(new_row[20, 35] - 20, new_col[20, 35] - 20) == pytest.approx(15, abs=0.05)
    assert abs(np.degrees(np.arctan2(new_row[20, 35] - 20, 15))) == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 6, 8, 13, 200])
@pytest.mark.parametrize("height, width", [(20, 20), (18, 25), (1, 7)])
def test_any_number_of_bands_and_any_shape(bands, height, width):
    image, target = np.random.default_rng(0).random((bands, height, width), np.float32), np.zeros((height, width), np.int64)
    for key in keys(18):
        new_image, new_target = augment(image, target, key)
        assert new_image.shape == image.shape and new_image.dtype == np.float32 and np.isfinite(new_image).all()
        assert new_target.shape == target.shape and new_target.dtype == np.int64
        assert new_image.flags.c_contiguous and new_target.flags.c_contiguous


def test_a_bands_warp_does_not_hang_on_how_many_bands_there_are():
    image, target = np.random.default_rng(0).random((13, 32, 32), np.float32), np.zeros((32, 32), np.int64)
    together = affine(image, target, 9, 1.1)[0]
    for number in range(13):
        assert np.array_equal(affine(image[number : number + 1], target, 9, 1.1)[0][0], together[number])


def test_the_same_key_gives_the_same_patch_and_another_epoch_another():
    image, target = coded()
    for key in keys(30):
        one, other = augment(image, target, key), augment(image, target, key)
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    versions = {augment(image, target, [42, epoch, 7])[0].tobytes() for epoch in range(40)}
    assert len(versions) > 30  # nearly every epoch a new one
    assert len({augment(image, target, [seed, 3, 7])[0].tobytes() for seed in range(40)}) > 30
    assert len({augment(image, target, [42, 3, index])[0].tobytes() for index in range(40)}) > 30


def test_the_patch_given_is_not_changed():
    image, target = coded()
    before = image.copy(), target.copy()
    for key in keys(60):
        new_image, new_target = augment(image, target, key)
        new_image += 0
    assert np.array_equal(image, before[0]) and np.array_equal(target, before[1])


def test_ignored_never_becomes_a_class_and_no_class_becomes_another():
    image = np.zeros((1, 40, 40), np.float32)
    target = np.full((40, 40), 255, np.int64)
    target[10:30, 10:30] = 0
    target[15:20, 15:20] = 254
    for key in keys(120):
        new = augment(image, target, key)[1]
        assert set(np.unique(new)) <= {0, 254, 255}
        assert (new == 255).sum() > 0.4 * new.size  # the frame is wide enough to stay: nothing fills it
        rows, cols = np.nonzero(new == 254)
        assert len(rows) and (new[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] != 255).all()


def test_beyond_the_border_the_target_is_ignored_and_the_image_mirrored():
    image, target = np.ones((2, 30, 30), np.float32), np.zeros((30, 30), np.int64)
    new_image, new_target = affine(image, target, 15, 0.8)
    assert (new_target[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() and (new_target[5:25, 5:25] == 0).all()
    assert 0.55 < (new_target == 0).mean() < 0.75  # 0.8 * 0.8
    assert np.allclose(new_image, 1)  # no black corners
    assert set(np.unique(new_target)) == {0, 255}
