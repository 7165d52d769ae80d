"""What must hold for every window, tile, split, code and number, tried on many that nobody thought of. EXAMPLES=1000 tries more."""

import csv
import json
import os
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely import Polygon

from eoseg import files
from eoseg.coding import IGNORE, Coding, key_of, parse_map
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError
from eoseg.metrics import Confusion, edges
from eoseg.normalize import BandStatistics, Normalizer
from eoseg.packing import Mapped, Patch, write_pack
from eoseg.scaling import Scaling
from eoseg.tiles import BLENDS, STEPS, Window, around, blend_weights, largest_remainder, regular_windows, snap, starts, strips
from eoseg.tiling import Axis, narrow_enough, strips_of, widest
from eoseg.vector import cells, frame_of

settings.register_profile("house", derandomize=True, deadline=None, database=None, max_examples=int(os.environ.get("EXAMPLES", 25)), suppress_health_check=list(HealthCheck))
settings.load_profile("house")

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
whole = st.integers


@st.composite
def axes(draw, longest=400):
    """Length of a side, size of a tile, overlap."""
    size = draw(whole(1, 80))
    return draw(whole(1, longest)), size, draw(whole(0, size - 1))


def arrays(dtype, shape, low=None, high=None):
    """Arrays of any numbers from `low` to `high` that a type can hold, of a few of them, or of one."""
    return st.builds(lambda seed: filled(np.random.default_rng(seed), np.dtype(dtype), shape, low, high), whole(0, 2**32 - 1))


def filled(rng, dtype, shape, low, high):
    if dtype == bool:
        return rng.random(shape) < rng.choice([0, 0.1, 0.5, 1])
    if dtype.kind == "f":  # as far as 32 bits reach: what lies beyond is no pixel
        most = float(min(np.finfo(dtype).max, np.finfo(np.float32).max))
        found = rng.choice([rng.normal(0, 1000, shape), rng.choice([-most, most, 0, 1, 1e-30, -1e-30], shape), np.exp(rng.uniform(-60, 60, shape)).clip(-most, most)])
    else:
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if low is None else (low, high)
        found = rng.integers(low, high, shape, dtype if np.iinfo(dtype).min <= low <= high <= np.iinfo(dtype).max else None, endpoint=True)
    few = rng.choice(found.ravel(), rng.integers(1, 4))
    return (found if rng.integers(2) else rng.choice(few, shape)).astype(dtype)


# ---------------------------------------------------------------- windows


@given(whole(-50, 150), whole(-50, 150), whole(1, 200), whole(1, 200), whole(1, 120), whole(1, 120))
def test_the_clipped_part_of_a_window_is_what_both_hold(row, col, tall, wide, height, width):
    rows, cols = (sorted(set(range(first, first + size)) & set(range(length))) for first, size, length in ((row, tall, height), (col, wide, width)))
    part = Window(row, col, tall, wide).clipped(height, width)
    assert part == (Window(rows[0], cols[0], len(rows), len(cols)) if rows and cols else None)


@given(st.floats(-1e6, 1e6), whole(1, 2000), whole(-1000, 1000), st.floats(-1e-8, 1e-8))
def test_a_window_goes_to_the_nearest_pixel_moves_with_its_centre_and_forgives_noise(centre, size, moved, noise):
    first = snap(centre, size)
    assert abs(first + size / 2 - centre) <= 0.5 + 1e-5
    edge = abs((centre - size / 2) % 1 - 0.5) < 1e-5
    assert edge or snap(centre + moved, size) == first + moved and snap(centre + noise, size) == first


@given(whole(-30, 90), whole(-30, 90), whole(1, 40), st.floats(-0.49, 0.49), st.floats(-0.49, 0.49), st.sampled_from([(10, -10), (0.5, 2), (-3, 3), (1e-4, -1e-4)]), whole(0, 3), st.booleans(),
       st.sampled_from([0, 90, 180]))
def test_a_square_cell_becomes_the_window_it_lies_on_whatever_the_geotransform_and_the_order_of_its_corners(row, col, size, down, right, pixel, first, backwards, turned):
    transform = Affine.translation(500000, 4800000) * Affine.rotation(turned) * Affine.scale(*pixel)
    corners = [(col + right + dx, row + down + dy) for dx, dy in ((0, 0), (size, 0), (size, size), (0, size))][:: -1 if backwards else 1]
    shape = Polygon([transform * corner for corner in corners[first:] + corners[:first]])
    (cell,), left_out = cells(frame_of({"id": [1]}, [shape], None), ["1"], transform, size)
    assert cell.window == (row, col, size, size) and not left_out
    assert cell.rotation == 0 and np.allclose(cell.shift, (-down, -right), atol=1e-4) and np.allclose(cell.size, size, atol=1e-3)


@given(whole(1, 90), whole(1, 90), whole(1, 40), whole(1, 40))
def test_a_regular_grid_leaves_no_pixel_out_and_has_no_row_of_windows_too_many(height, width, size, stride):
    windows, seen = regular_windows(height, width, size, stride), np.zeros((height, width), int)
    for window in windows:
        part = window.clipped(height, width)
        if part:
            seen[part.row : part.row + part.height, part.col : part.col + part.width] += 1
    assert len(set(windows)) == len(windows)
    assert stride > size or seen.all()
    for axis, length in ((0, height), (1, width)):
        firsts = sorted({window[axis] for window in windows})
        assert all(first + size < length for first in firsts[:-1])  # without the last there would be pixels left


@given(st.lists(st.tuples(whole(0, 3), whole(0, 40), whole(0, 2), whole(1, 9), whole(1, 9)), min_size=1, max_size=30), whole(1, 2000))
def test_strips_read_each_window_once_and_little_beside_them(told, most):
    windows = sorted(Window(10 * row + down, col, height, width) for row, col, down, height, width in told)
    found = strips(windows, most)
    assert [index for _, members in found for index in members] == list(range(len(windows)))
    for strip, members in found:
        inside = [windows[index] for index in members]
        assert all(around(strip, window) == strip for window in inside)
        assert len(inside) == 1 or strip.height * strip.width <= min(most, 2 * sum(window.height * window.width for window in inside))


# ---------------------------------------------------------------- tiles


@given(axes())
def test_tiles_cover_every_pixel_none_starts_twice_and_there_are_as_few_as_can_be(axis):
    length, size, overlap = axis
    found = starts(length, size, overlap)
    assert found == sorted(set(found)) and found[0] == 0
    assert set(range(length)) <= {pixel for start in found for pixel in range(start, start + size)}
    assert all(after - before <= size - overlap for before, after in zip(found, found[1:]))
    assert length <= size and len(found) == 1 or found[-1] + size == length and len(found) == -(-(length - overlap) // (size - overlap))


@given(axes(), st.sampled_from(BLENDS))
def test_weights_over_any_pixel_add_up_to_exactly_one_in_steps_of_a_64th(axis, blend):
    length, size, overlap = axis
    weights, first = blend_weights(length, size, overlap, blend), starts(length, size, overlap)
    total, tiles = np.zeros(first[-1] + size, np.float32), np.zeros(first[-1] + size, int)
    for start, weight in zip(first, weights):
        total[start : start + size] += weight
        tiles[start : start + size] += 1
    assert (total == 1).all() and (weights >= 0).all() and (weights * STEPS == np.rint(weights * STEPS)).all()
    for start, weight in zip(first, weights):
        assert (weight[tiles[start : start + size] == 1] == 1).all()


def plain_weights(length, size, overlap, blend):
    """Weights (tiles, size) in double precision, without steps: each tile's profile over the sum of all."""
    first, pixel = starts(length, size, overlap), np.arange(size) + 0.5
    raw = np.ones((len(first), size))
    for i, start in enumerate(first):
        for j, other in enumerate(first):
            if blend == "none" and i != j:
                nearer = abs(start + pixel - (other + size / 2)) < abs(start + pixel - (start + size / 2))
                raw[i][nearer | (j < i) & np.isclose(abs(start + pixel - (other + size / 2)), abs(pixel - size / 2))] = 0
        if blend == "gaussian":
            raw[i] = np.exp(-((pixel - size / 2) ** 2) / (2 * (size / 8) ** 2))
        falling = {"cosine": lambda part: (1 - np.cos(np.pi * part)) / 2, "linear": lambda part: part}.get(blend)
        if falling and overlap:
            if i:
                raw[i] *= falling(np.minimum(pixel / overlap, 1))
            if i < len(first) - 1:
                raw[i] *= falling(np.minimum((size - pixel) / overlap, 1))
    total = np.zeros(first[-1] + size)
    for start, weight in zip(first, raw):
        total[start : start + size] += weight
    return np.array([weight / total[start : start + size] for start, weight in zip(first, raw)])


@given(axes(200), st.sampled_from(BLENDS))
def test_weights_are_those_of_their_formula_but_for_a_step(axis, blend):
    assert abs(blend_weights(*axis, blend) - plain_weights(*axis, blend)).max() <= 1 / STEPS + 1e-9


@given(axes())
def test_strips_share_the_columns_out_and_hold_every_tile_that_reaches_into_them(told):
    length, size, overlap = told
    axis = Axis(length, PredictionConfig(patch_size=size, overlap=overlap), lambda size: size)
    for count in {1, 2, 3, len(axis.starts) // 2, len(axis.starts)} & {*range(1, len(axis.starts) + 1)}:
        found, owners = strips_of(axis, count), np.zeros(length, int)
        for strip in found:
            owners[strip.left : strip.right] += 1
            assert list(strip.tiles) == [i for i, start in enumerate(axis.starts) if start < strip.right and start + axis.size > strip.left]
            assert strip.begin <= strip.left < strip.right <= strip.end
        assert len(found) == count and (owners == 1).all()
    narrow = narrow_enough(axis, 2 * size)
    fewer = len(narrow) - 1 if narrow else len(axis.starts)
    assert (not narrow or widest(narrow) <= 2 * size) and (not fewer or widest(strips_of(axis, fewer)) > 2 * size)


@settings(max_examples=settings().max_examples // 2)
@given(whole(1, 60), whole(1, 60), whole(1, 40), st.data())
def test_a_blended_map_is_the_plain_sum_of_weighted_tiles_whatever_tiles_strips_and_batches(tmp_path_factory, height, width, size, data):
    from conftest import write_raster
    from test_blending import swept
    from tinynet import Function, by_hand

    overlap, blend, strips, batch = data.draw(whole(0, size - 1)), data.draw(st.sampled_from(BLENDS)), data.draw(whole(1, 5)), data.draw(whole(1, 7))
    pixels = np.random.default_rng(data.draw(whole(0, 99))).integers(0, 50, (1, height, width)).astype("uint8")
    torch.manual_seed(0)
    around = torch.nn.Conv2d(1, 3, 3, padding=1)  # what it says hangs on where its tile ends
    folder = tmp_path_factory.getbasetemp()
    (folder / "s.tif").unlink(missing_ok=True)
    network = by_hand(folder, Function(lambda x: around(x / 8)), classes=3)
    found = swept(network, write_raster(folder / "s.tif", pixels), strips, patch_size=size, overlap=overlap, blend=blend, batch_size=batch)
    sizes = [min(size, length) for length in (height, width)]
    axes = [(length, side, min(overlap, side - 1)) for length, side in zip((height, width), sizes)]
    wanted = np.zeros((3, height, width))
    for top, row_weight in zip(starts(*axes[0]), blend_weights(*axes[0], blend).astype(float)):
        for left, col_weight in zip(starts(*axes[1]), blend_weights(*axes[1], blend).astype(float)):
            here = slice(top, top + sizes[0]), slice(left, left + sizes[1])
            padded = np.pad(pixels[0][here], [(0, -side % 32) for side in sizes], "symmetric")
            chance = network.probabilities(torch.from_numpy(padded[None, None].astype("float32")))[0].double().numpy()
            wanted[:, *here] += chance[:, : sizes[0], : sizes[1]] * row_weight[:, None] * col_weight
    assert np.array_equal(found.confidence, wanted.max(0)) and np.array_equal(found.classes, wanted.argmax(0))


# ---------------------------------------------------------------- shares


@given(whole(0, 500), st.lists(whole(0, 100), min_size=1, max_size=5).filter(any))
def test_whole_numbers_come_as_near_to_their_shares_as_any_can(count, percents):
    found, exact = largest_remainder(count, percents), [Fraction(percent * count, sum(percents)) for percent in percents]
    assert sum(found) == count and all(abs(number - share) < 1 for number, share in zip(found, exact))
    assert all(number == 0 for number, percent in zip(found, percents) if not percent)
    up, down = [share - int(share) for number, share in zip(found, exact) if number > share], [share - int(share) for number, share in zip(found, exact) if number < share]
    assert not up or not down or min(up) >= max(down)


# ---------------------------------------------------------------- codes and numbers


@given(st.dictionaries(whole(-5, 300), whole(0, 254) | st.just("ignore"), min_size=1, max_size=9), st.none() | whole(-10, 310) | st.just(float("nan")), st.none() | st.just("none") | whole(-10, 310),
       st.sampled_from(DTYPES), st.data())
def test_every_code_goes_where_its_map_says_or_is_refused(told, tag, nodata, dtype, data):
    drawn = data.draw(arrays("int16", (4, 5), -9, 310))
    codes = np.where(data.draw(arrays("bool", (4, 5))), drawn, data.draw(st.sampled_from(sorted(told)))).clip(*((np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype[0] != "f" else (None, None))).astype(dtype)
    coding = Coding(parse_map([f"{code}={number}" for code, number in told.items()]), nodata)
    empty = tag if nodata is None else None if nodata == "none" else nodata
    place = {float(code): IGNORE if number == "ignore" else number for code, number in told.items()} | {255.0: told.get(255, IGNORE) if told.get(255) != "ignore" else IGNORE}
    known = {value: IGNORE if value == empty else place.get(value) for value in np.unique(codes).astype(float).tolist()}
    doubtful = nodata is None and tag in told and told[tag] != "ignore" and tag != IGNORE
    if None in known.values() or doubtful:
        with pytest.raises(SetupError) as refused:
            coding.decode(codes, tag, "label.tif")
        lacking = [key_of(value) for value, number in known.items() if number is None]
        assert str(refused.value).startswith("label.tif: ") and (not lacking or lacking[0] in str(refused.value))
    else:
        found = coding.decode(codes, tag, "label.tif")
        assert found.dtype == np.uint8 and found.tolist() == [[known[float(value)] for value in line] for line in codes]


@given(st.sampled_from(DTYPES), st.sampled_from(["percentile", "zscore", "none"]), st.data())
def test_a_normaliser_survives_json_and_gives_finite_numbers_for_any_pixel_of_any_type(dtype, kind, data):
    train, pixels = (data.draw(arrays(dtype, (2, 3, 4))) for _ in range(2))
    missing = data.draw(arrays("bool", (2, 3, 4)))
    statistics = BandStatistics(2)
    statistics.add(train, np.ones(train.shape, bool))
    one = Normalizer.fitted(kind, statistics.result())
    assert Normalizer.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    found = one(pixels, missing)
    assert found.dtype == np.float32 and found.shape == pixels.shape
    if kind == "percentile":
        assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    if dtype not in ("float32", "float64"):  # there differences, too, may leave 32 bits
        assert np.isfinite(found).all()
        same = Scaling(one, torch.device("cpu"))(torch.from_numpy(pixels.astype(np.float32))[None], torch.from_numpy(missing)[None])[0].numpy()
        assert np.array_equal(same, found)


@given(st.sampled_from(["uint8", "int8", "uint16", "int16"]), st.lists(whole(1, 6), min_size=1, max_size=4), st.data())
def test_statistics_of_patches_are_those_of_all_their_pixels_in_any_order(dtype, rows, data):
    patches = [(data.draw(arrays(dtype, (2, count, 3))), data.draw(arrays("bool", (2, count, 3)))) for count in rows]
    total = BandStatistics(2)
    for pixels, good in data.draw(st.permutations(patches)):
        total.merge(BandStatistics.from_bytes(BandStatistics.of(pixels, good).to_bytes()))
    for band, found in enumerate(total.result()):
        values = np.concatenate([pixels[band][good[band]] for pixels, good in patches]).astype(float)
        wanted = [values.min(), values.max(), values.mean(), values.std(), *np.percentile(values, (1, 50, 99))] if len(values) else [np.nan] * 7
        assert found["valid_pixels"] == len(values)
        assert np.allclose([found[key] for key in ("min", "max", "mean", "std", "p1", "p50", "p99")], wanted, rtol=1e-9, atol=1e-9, equal_nan=True)


@given(whole(2, 5), st.data())
def test_counts_and_scores_are_those_of_plain_counting(classes, data):
    called, truth = (data.draw(arrays("int64", (2, 4, 5), 0, classes - 1)) for _ in range(2))
    truth[data.draw(arrays("bool", (2, 4, 5)))] = IGNORE
    confusion = Confusion(classes)
    for one, other in zip(called, truth):
        confusion.add(torch.from_numpy(one)[None], torch.from_numpy(other)[None])
    wanted = Counter(zip(truth.ravel().tolist(), called.ravel().tolist()))
    assert confusion.matrix.tolist() == [[wanted[row, col] for col in range(classes)] for row in range(classes)]
    scores, known = confusion.scores([f"c{i}" for i in range(classes)]), truth != IGNORE
    assert scores["accuracy"] == pytest.approx((called == truth)[known].mean() if known.any() else np.nan, nan_ok=True)
    for number, name in enumerate(scores["per_class"]):
        both, either = ((truth == number) & (called == number)).sum(), (known & ((truth == number) | (called == number))).sum()
        there = (truth == number).any()
        assert scores["per_class"][name]["iou"] == pytest.approx(both / either if there else np.nan, nan_ok=True)
        assert scores["per_class"][name]["support"] == (truth == number).sum()
    ious = [part["iou"] for part in scores["per_class"].values() if part["iou"] == part["iou"]]
    assert scores["mean_iou"] == pytest.approx(np.mean(ious) if ious else np.nan, nan_ok=True)


@given(whole(1, 4), st.data())
def test_a_pixel_is_of_the_boundary_when_another_class_is_within_reach(reach, data):
    labels = data.draw(arrays("int64", (1, 7, 8), 0, 3))
    known = data.draw(arrays("bool", (1, 7, 8)))
    found = edges(torch.from_numpy(labels), torch.from_numpy(known), reach)[0].numpy()
    for row, col in np.ndindex(7, 8):
        here = slice(max(row - reach, 0), row + reach + 1), slice(max(col - reach, 0), col + reach + 1)
        assert found[row, col] == (known[0, row, col] and bool((known[0][here] & (labels[0][here] != labels[0, row, col])).any()))


# ---------------------------------------------------------------- what is written can be read


@given(st.sampled_from(DTYPES), st.lists(st.tuples(whole(1, 7), whole(1, 7), st.booleans()), min_size=1, max_size=4), st.data())
def test_a_pack_gives_back_every_patch_bit_for_bit(tmp_path_factory, dtype, sizes, data):
    folder = tmp_path_factory.getbasetemp()
    held = {}
    for i, (rows, cols, holed) in enumerate(sizes):
        holes = data.draw(arrays("bool", (2, rows, cols))) if holed else None
        held[folder / f"p{i}.tif"] = Patch(data.draw(arrays(dtype, (2, rows, cols))), holes, data.draw(arrays("uint8", (rows, cols))))
    pairs = [(image, image) for image in held]
    write_pack(folder / "p.pack", lambda pair: held[pair[0]], pairs, lambda items, **told: items)
    pack = Mapped(folder / "p.pack")
    for image, wanted in held.items():
        found = pack((image, image))
        for one, other in zip(found, wanted):
            assert one is other is None or one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(plain, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4), max_leaves=12))
def test_any_plain_value_is_json_that_other_readers_understand_with_null_for_what_is_no_number(value):
    def strict(text):
        raise AssertionError(text)

    def wanted(part):
        if isinstance(part, dict):
            return {key: wanted(inner) for key, inner in part.items()}
        return [wanted(inner) for inner in part] if isinstance(part, list) else None if isinstance(part, float) and not np.isfinite(part) else part

    assert json.loads(json.dumps(files.without_nan(value), allow_nan=False), parse_constant=strict) == wanted(value)


@given(st.lists(st.dictionaries(st.text(st.characters(exclude_characters="\x00", codec="utf-8"), min_size=1), st.integers() | st.floats() | st.text(st.characters(exclude_characters="\x00", codec="utf-8")), max_size=4), min_size=1, max_size=5).filter(any))
def test_a_table_is_read_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "t.csv"
    files.write_csv(path, rows)
    with open(path, newline="", encoding="utf-8") as f:
        found = list(csv.DictReader(f))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = lambda value: "" if isinstance(value, float) and value != value else str(value)
    assert found == [{column: text(row[column]) if column in row else "" for column in columns} for row in rows]
