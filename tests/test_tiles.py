"""Windows, tiles and blending weights against hand figures."""

from fractions import Fraction

import numpy as np
import pytest

from eoseg.tiles import BLENDS, Window, around, blend_weights, largest_remainder, next_multiple, regular_windows, snap, starts, strips

AXES = [(2048, 512, 128), (2048, 512, 64), (2048, 512, 0), (512, 512, 128), (513, 512, 128), (700, 512, 128), (895, 512, 128), (897, 512, 128), (100, 64, 63),
        (200, 64, 50), (129, 64, 16), (65, 64, 32), (64, 64, 63), (10, 64, 16), (1, 1, 0), (7, 3, 2), (300, 96, 60), (97, 96, 95), (1000, 33, 7)]


def test_2048_pixels_at_512_and_128_take_5_tiles_an_axis_25_in_all():
    assert starts(2048, 512, 128) == [0, 384, 768, 1152, 1536]
    assert len(starts(2048, 512, 128)) ** 2 == 25


@pytest.mark.parametrize("length, size, overlap, wanted", [
    (512, 512, 128, [0]), (513, 512, 128, [0, 1]), (896, 512, 128, [0, 384]), (897, 512, 128, [0, 384, 385]), (1024, 512, 0, [0, 512]), (1025, 512, 0, [0, 512, 513]),
    (10, 64, 16, [0]), (7, 3, 2, [0, 1, 2, 3, 4]), (1, 1, 0, [0]),
])
def test_starts_by_hand(length, size, overlap, wanted):
    assert starts(length, size, overlap) == wanted


@pytest.mark.parametrize("length, size, overlap", AXES)
def test_tiles_cover_an_axis_none_twice_and_none_beyond_it(length, size, overlap):
    found = starts(length, size, overlap)
    seen = np.zeros(max(length, size), int)
    for start in found:
        seen[start : start + size] += 1
    assert seen.min() >= 1 and len(set(found)) == len(found) and found == sorted(found)
    assert found[0] == 0 and (found[-1] + size == length or length < size)
    assert all(b - a <= size - overlap for a, b in zip(found, found[1:]))  # at least the overlap that was asked for


def test_as_few_tiles_as_can_be():
    for length, size, overlap in AXES:
        if length > size:
            assert len(starts(length, size, overlap)) == -(-(length - overlap) // (size - overlap))


@pytest.mark.parametrize("overlap", [-1, 64, 65])
def test_an_overlap_that_leaves_no_step_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap"):
        starts(100, 64, overlap)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("length, size, overlap", AXES)
def test_weights_add_up_to_exactly_1_in_float32(length, size, overlap, blend):
    weights, first = blend_weights(length, size, overlap, blend), starts(length, size, overlap)
    assert weights.shape == (len(first), size) and weights.dtype == np.float32
    total = np.zeros(max(length, size), np.float32)
    for start, weight in zip(first, weights):
        total[start : start + size] += weight
    assert (total == np.float32(1)).all()
    assert (weights >= 0).all() and (weights * 64 == np.rint(weights * 64)).all()


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("length, size, overlap", AXES)
def test_outer_sides_and_places_of_one_tile_weigh_1(length, size, overlap, blend):
    weights, first = blend_weights(length, size, overlap, blend), starts(length, size, overlap)
    seen = np.zeros(max(length, size), int)
    for start in first:
        seen[start : start + size] += 1
    for start, weight in zip(first, weights):
        assert (weight[seen[start : start + size] == 1] == 1).all()
    assert weights[0, 0] == weights[-1, -1] == 1  # no dark frame


@pytest.mark.parametrize("blend", ["cosine", "linear"])
def test_weights_fall_smoothly_towards_the_neighbour(blend):
    left, right = blend_weights(896, 512, 128, blend)[0, 384:], blend_weights(896, 512, 128, blend)[1, :128]
    assert np.array_equal(left + right, np.ones(128, np.float32))
    assert (np.diff(left) <= 0).all() and left[0] == 1 and left[-1] == 0 and left[64] == pytest.approx(0.5, abs=1 / 64)
    assert np.abs(np.diff(left)).max() <= 2 / 64


@pytest.mark.parametrize("length, size, overlap, blend, steps", [
    (12, 8, 4, "linear", [56, 40, 24, 8]),  # 7/8, 5/8, 3/8, 1/8
    (12, 8, 4, "cosine", [62, 44, 20, 2]),  # cos^2 of 90 degrees times 1/8, 3/8 ...
    (12, 8, 4, "gaussian", [64, 56, 8, 0]),  # 1 / (1 + exp(-6)), 1 / (1 + exp(-2)) ...: an eighth of the tile is 1 pixel
    (12, 8, 4, "none", [64, 64, 0, 0]),
    (11, 8, 5, "none", [64, 64, 64, 0, 0]),  # as near to both: the first has it
])
def test_what_the_first_of_two_tiles_weighs_where_they_meet_by_hand(length, size, overlap, blend, steps):
    left, right = blend_weights(length, size, overlap, blend) * 64
    assert left.tolist() == [64] * (size - overlap) + steps
    assert right.tolist() == [64 - step for step in steps] + [64] * (size - overlap)


def test_without_blending_a_pixel_is_the_nearest_tiles_even_where_three_lie_over_it():
    first, second, third = (blend_weights(12, 8, 6, "none") > 0).astype(int).tolist()  # middles at 4, 6 and 8
    assert (first, second, third) == ([1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("size, overlap", [(16, 8), (16, 13), (12, 3)])
def test_blended_probabilities_are_exact_in_any_order(size, overlap, blend):
    height, width = 45, 38
    rng = np.random.default_rng(0)
    rows, cols = blend_weights(height, size, overlap, blend), blend_weights(width, size, overlap, blend)
    tiles = [(i, j) for i in range(len(rows)) for j in range(len(cols))]
    probability = rng.integers(0, 2**12 + 1, (len(tiles), size, size)).astype(np.float32) / np.float32(2**12)

    def blended(order, dtype=np.float32):
        total = np.zeros((height, width), dtype)
        for number in order:
            (i, j), tile = tiles[number], probability[number].astype(dtype)
            row, col = starts(height, size, overlap)[i], starts(width, size, overlap)[j]
            total[row : row + size, col : col + size] += tile * (rows[i][:, None] * cols[j]).astype(dtype)
        return total

    wanted = blended(range(len(tiles)))
    for _ in range(5):
        assert np.array_equal(blended(rng.permutation(len(tiles))), wanted)
    assert np.array_equal(blended(range(len(tiles)), np.float64), wanted)  # nothing was rounded


@pytest.mark.parametrize("blend", BLENDS)
def test_a_pixels_own_answer_comes_back_however_it_is_tiled(blend):
    truth = np.random.default_rng(1).integers(0, 2**12 + 1, 1000).astype(np.float32) / np.float32(2**12)
    for size, overlap in [(64, 0), (64, 32), (100, 99), (33, 7)]:
        total = np.zeros(1000, np.float32)
        for start, weight in zip(starts(1000, size, overlap), blend_weights(1000, size, overlap, blend)):
            total[start : start + size] += truth[start : start + size] * weight
        assert np.array_equal(total, truth)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("size", [64, 65, 1, 224])
@pytest.mark.parametrize("first", [0, 1, 37, 10000, -20])
def test_a_cell_goes_to_the_nearest_whole_pixels(first, size):
    centre = first + size / 2
    for shift in (0, 1e-9, -1e-9, 1e-7, 0.4, -0.4, 0.499, -0.499):
        assert snap(centre + shift, size) == first
    for shift, moved in ((0.501, 1), (-0.501, -1), (0.6, 1), (1.4, 1), (-1.4, -1)):
        assert snap(centre + shift, size) == first + moved
    assert type(snap(centre, size)) is int


def test_a_grid_half_a_pixel_off_moves_all_its_cells_the_same_way():
    moved = {snap(row + 32 + 0.5 + noise, 64) - row for row in range(-640, 640, 64) for noise in (0, 1e-9, -1e-9)}
    assert moved == {1}


@pytest.mark.parametrize("window, wanted", [
    (Window(0, 0, 4, 5), Window(0, 0, 4, 5)), (Window(-1, -2, 4, 5), Window(0, 0, 3, 3)), (Window(8, 17, 4, 5), Window(8, 17, 2, 3)),
    (Window(-5, -5, 100, 100), Window(0, 0, 10, 20)), (Window(10, 0, 4, 5), None), (Window(0, 20, 4, 5), None), (Window(-4, 0, 4, 5), None), (Window(9, 19, 1, 1), Window(9, 19, 1, 1)),
])
def test_a_window_is_clipped_to_the_image(window, wanted):
    assert window.clipped(10, 20) == wanted


@pytest.mark.parametrize("height, width, size, count", [(64, 64, 64, 1), (65, 64, 64, 2), (640, 320, 64, 50), (10, 300, 64, 5)])
def test_a_regular_grid_covers_each_pixel_once(height, width, size, count):
    windows = regular_windows(height, width, size)
    seen = np.zeros((height, width), int)
    for window in windows:
        part = window.clipped(height, width)
        seen[part.row : part.row + part.height, part.col : part.col + part.width] += 1
        assert (window.height, window.width) == (size, size)
    assert (seen == 1).all() and len(windows) == count
    assert windows == sorted(windows)


@pytest.mark.parametrize("length, stride, wanted", [(1, 32, 32), (32, 32, 32), (33, 32, 64), (512, 16, 512), (5, 1, 5)])
def test_the_next_multiple(length, stride, wanted):
    assert next_multiple(length, stride) == wanted


@pytest.mark.parametrize("count, ratios, wanted", [
    (100, (0.75, 0.2, 0.05), [75, 20, 5]), (10, (0.75, 0.2, 0.05), [8, 2, 0]), (1, (0.2, 0.75, 0.05), [0, 1, 0]), (3, (1, 1, 1), [1, 1, 1]), (4, (1, 1, 1), [2, 1, 1]),
    (5, (1, 1, 1), [2, 2, 1]), (0, (1, 1), [0, 0]), (7, (0, 0, 1), [0, 0, 7]), (10, (0.7, 0.2, 0.1), [7, 2, 1]), (30, (0.1, 0.2, 0.7), [3, 6, 21]), (2, (0.7, 0.2, 0.1), [2, 0, 0]), (2, (0.2, 0.7, 0.1), [1, 1, 0]),
])
def test_largest_remainder_by_hand(count, ratios, wanted):
    assert largest_remainder(count, ratios) == wanted


@pytest.mark.parametrize("percents", [(75, 20, 5), (70, 20, 10), (60, 20, 20), (33, 33, 34), (50, 30, 20), (0, 55, 45)])
def test_largest_remainders_are_those_of_exact_fractions(percents):
    for count in range(120):
        exact = [Fraction(p * count, 100) for p in percents]
        wanted = [int(share) for share in exact]
        for i in sorted(range(3), key=lambda i: (wanted[i] - exact[i], i))[: count - sum(wanted)]:
            wanted[i] += 1
        assert largest_remainder(count, [p / 100 for p in percents]) == wanted


@pytest.mark.parametrize("most", [10**9, 40 * 30 * 3, 1])
def test_strips_hold_their_windows_and_keep_their_bounds(most):
    windows = [Window(row + shift, col, 30, 40) for row in (0, 30, 61) for col, shift in ((0, 0), (40, 0), (90, 1), (900, 0))]
    windows.sort()
    found = strips(windows, most)
    assert [index for _, members in found for index in members] == list(range(len(windows)))
    for strip, members in found:
        inside = [windows[index] for index in members]
        assert all(around(strip, window) == strip for window in inside)
        assert len(inside) == 1 or strip.height * strip.width <= most
        assert strip.height * strip.width <= 2 * sum(w.height * w.width for w in inside)
    assert len(found) == 12 if most == 1 else len(found) < 12


@pytest.mark.parametrize("length, size, stride, wanted", [(10, 5, None, [0, 5]), (11, 5, None, [0, 5, 10]), (3, 5, None, [0]), (10, 5, 2, [0, 2, 4, 6]), (11, 5, 3, [0, 3, 6]), (10, 5, 5, [0, 5])])
def test_a_regular_grid_covers_the_image_with_no_more_windows_than_it_takes(length, size, stride, wanted):
    assert [window.row for window in regular_windows(length, 1, size, stride)] == wanted == [window.col for window in regular_windows(1, length, size, stride)]
