"""Pictures of a patch folder: the PNGs are opened, and their pixels held against what was drawn."""

import json

import cv2
import geopandas
import numpy as np
import pytest
from conftest import write_raster
from matplotlib.image import imread
from scipy import ndimage
from shapely import box

from eoseg import patchplots, patchset, plots, raster
from eoseg.errors import SetupError

pytestmark = pytest.mark.usefixtures("without_fsync")
BLUE, GREEN = plots.colours(["class 0", "class 1"])
TRAIN, VALIDATION, TEST = patchplots.SPLIT_COLOURS.values()
WEST = np.indices((32, 32))[1] < 16


def add(folder, name, image, label, split="train", nodata=None, names=None, images="images"):
    """One patch with its label, written into a patch folder."""
    for kind, pixels, options in ((images, image, {"nodata": nodata, "names": names}), ("labels", label, {"nodata": 255})):
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
        write_raster(folder / split / kind / f"{name}.tif", pixels, **options)


def flat(value, bands=1, dtype="uint16", size=32):
    return np.full((bands, size, size), value, dtype)


def label_of(number, size=32):
    return np.full((size, size), number, "uint8")


def ramp(low, high, size=32):
    """One band from `low` at the left to `high` at the right."""
    return np.broadcast_to(np.linspace(low, high, size, dtype="float32"), (1, size, size)).copy()


def opened(path):
    """A PNG as (H, W, 3) uint8."""
    return (imread(path)[:, :, :3] * 255).round().astype("uint8")


def where(picture, colour):
    return (picture == np.array(colour, "uint8")).all(2)


def middle(mask):
    """Row and column of the middle of a mask's pixels, as a share of the picture."""
    return np.argwhere(mask).mean(0) / mask.shape


def biggest(mask):
    """The largest connected part of a mask."""
    parts, _ = ndimage.label(mask)
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def squares(picture):
    """The insides of the pictures of a contact sheet, in reading order: found by their grey frames."""
    grey = where(picture, (153, 153, 153)).astype("uint8")
    found, _ = cv2.findContours(cv2.dilate(grey, np.ones((3, 3))), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = sorted((round(y / 30), x, y, w, h) for x, y, w, h in map(cv2.boundingRect, found) if min(w, h) > 40)
    return [picture[y + 5 : y + h - 5, x + 5 : x + w - 5] for _, x, y, w, h in boxes]


# ---------------------------------------------------------------- one patch


def test_a_sample_shows_classes_at_their_place_and_white_where_unlabelled(tmp_path):
    label = np.where(WEST, 0, 1).astype("uint8")
    label[24:] = 255
    add(tmp_path, "p", flat(7, 3), label)
    assert patchplots.draw_sample(tmp_path, "train", 0) == tmp_path / "sample_train_0.png"
    picture = opened(tmp_path / "sample_train_0.png")
    west, east = biggest(where(picture, BLUE)), biggest(where(picture, GREEN))  # the other is the legend's
    assert west.sum() == pytest.approx(east.sum(), rel=0.02) and west.sum() > 30000
    rows, columns = (np.ptp(line) + 1 for line in np.nonzero(west | east))
    assert rows / columns == pytest.approx(24 / 32, rel=0.02)  # the rest below is unlabelled
    assert 0.4 < middle(west)[1] < middle(east)[1] and middle(west)[0] == pytest.approx(middle(east)[0], abs=0.01)
    (_, bottom), (left, right) = ((line.min(), line.max()) for line in np.nonzero(west | east))
    assert (picture[bottom + 3 : bottom + rows // 4, left:right] == 255).all()


@pytest.mark.parametrize("rgb, wanted", [
    (None, ["red", "green", "blue"]),
    ([3, 2, 1], ["blue", "green", "red"]),
    (["c", "2", "a"], ["blue", "green", "red"]),
    (["a", "a", "b"], [(255, 255, 0), "blue", "black"]),
    (["b"], ["black", "white", "black"]),
])
def test_the_bands_asked_for_are_red_green_and_blue(tmp_path, rgb, wanted):
    image = np.zeros((3, 30, 30), "uint8")
    for band in range(3):
        image[band, :, band * 10 : band * 10 + 10] = 200  # the band's own third
    add(tmp_path, "p", image, label_of(255, 30), names=["a", "b", "c"])
    picture = opened(patchplots.draw_sample(tmp_path, "train", 0, rgb))
    left = picture[picture.shape[0] // 2, : picture.shape[1] // 2]
    inside = left[np.flatnonzero((left != 255).any(1))[0] : np.flatnonzero((left != 255).any(1))[-1] + 1] if wanted[0] != "white" else left
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "white": (255, 255, 255)}
    thirds = [inside[len(inside) * (2 * third + 1) // 6].tolist() for third in range(3)]
    assert thirds == [list(colours.get(name, name)) for name in wanted]


@pytest.mark.parametrize("rgb, text", [([1, 2], r"--rgb 1 2: give three bands, or one; .*p.tif has 3: a, b, c"), ([1, 2, 3, 1], "--rgb 1 2 3 1: give three"),
                                       (["red"], r"has no band red \(--rgb\); choose from 1 to 3: a, b, c"), ([0, 1, 2], r"no band 0 \(--rgb\)")])
def test_other_bands_are_refused(tmp_path, rgb, text):
    add(tmp_path, "p", flat(7, 3), label_of(0), names=["a", "b", "c"])
    for draw in (lambda: patchplots.draw_sample(tmp_path, "train", 0, rgb), lambda: patchplots.draw_contact_sheet(tmp_path, "train", rgb=rgb)):
        with pytest.raises(SetupError, match=text):
            draw()
    assert not list(tmp_path.glob("*.png"))


def test_each_sensor_has_its_own_folder_of_images(tmp_path):
    add(tmp_path, "p", flat(7, 3), label_of(0))
    add(tmp_path, "p", ramp(-20, 0), label_of(0), images="images_s1", names=["VV"])
    optical = opened(patchplots.draw_sample(tmp_path, "train", 0))
    radar = opened(patchplots.draw_sample(tmp_path, "train", 0, ["VV"], images="images_s1"))
    row = radar[radar.shape[0] // 2, 30 : radar.shape[1] // 3, 0].astype(int)
    assert row[-1] > row[0] + 100 and (np.diff(row) >= 0).all()  # brighter to the right
    assert (optical[optical.shape[0] // 2, 30 : optical.shape[1] // 3] == 0).all()  # all of one value
    with pytest.raises(SetupError, match="holds no patches of train in images_s2; "):
        patchplots.draw_contact_sheet(tmp_path, "train", images="images_s2")
    with pytest.raises(SetupError, match="1 patches; give 0 to 0"):
        patchplots.draw_sample(tmp_path, "train", 1)
    with pytest.raises(SetupError, match="no patches of test; "):
        patchplots.draw_sample(tmp_path, "test", 0)


# ---------------------------------------------------------------- many patches


def test_the_sheet_shows_patches_from_the_first_to_the_last_in_order_of_name(tmp_path):
    for number in range(10):
        add(tmp_path, f"p{number}", flat(number + 1), label_of(number))
    (tmp_path / "patch_metadata.json").write_text(json.dumps({"class_names": [f"kind {n}" for n in range(10)]}))
    palette = plots.colours([f"kind {n}" for n in range(10)])
    path = patchplots.draw_contact_sheet(tmp_path, "train", count=4)
    assert path == tmp_path / "contact_train.png"
    shown = squares(opened(path))
    assert len(shown) == 8
    assert [tuple(part[len(part) // 2, part.shape[1] // 2].tolist()) for part in shown[1::2]] == [palette[n] for n in (0, 3, 6, 9)]
    assert all((part == part[0, 0]).all() for part in shown)  # one colour each, image and label
    greys = [int(part[0, 0, 0]) for part in shown[::2]]
    assert greys[0] < greys[1] < greys[2] < greys[3]  # as bright as they are


def test_one_stretch_holds_for_all_patches_of_a_sheet(tmp_path):
    add(tmp_path, "dark", ramp(0, 100), label_of(0))
    add(tmp_path, "light", ramp(900, 1000), label_of(0))
    dark, _, light, _ = squares(opened(patchplots.draw_contact_sheet(tmp_path, "train")))
    assert dark.max() < 0.12 * 255 and light.min() > 0.88 * 255
    alone = opened(patchplots.draw_sample(tmp_path, "train", 0))
    alone = alone[alone.shape[0] // 2, : alone.shape[1] // 3]
    assert alone.min() == 0 and alone.max() > 150


@pytest.mark.parametrize("hole", [-9999.0, np.nan, np.inf])
def test_pixels_without_data_are_white_and_do_not_count_for_the_stretch(tmp_path, hole):
    image = ramp(0, 100)
    image[:, :8] = hole
    add(tmp_path, "a", image, label_of(1), nodata=-9999.0)
    add(tmp_path, "b", flat(-9999.0 if np.isinf(hole) else hole, dtype="float32"), label_of(255), nodata=-9999.0)
    part, label, empty, unlabelled = squares(opened(patchplots.draw_contact_sheet(tmp_path, "train")))
    quarter = len(part) // 4
    assert (part[: quarter - 8] == 255).all() and (empty == 255).all() and (unlabelled == 255).all()
    assert (label == GREEN).all()
    below = part[quarter + 12 :, :, 0].astype(int)
    assert below[:, 2].max() < 30 and below[:, -2].min() > 225 and abs(below[:, below.shape[1] // 2] - 128).max() < 20


def test_a_band_that_is_missing_where_others_are_not_leaves_no_hole(tmp_path):
    image = np.stack([ramp(1, 100)[0], ramp(1, 100)[0], ramp(1, 100)[0]])
    image[2, :, 16:] = 0
    add(tmp_path, "a", image, label_of(0), nodata=0)
    part, _ = squares(opened(patchplots.draw_contact_sheet(tmp_path, "train")))
    assert (part[:, -5, :2] > 200).all() and (part[:, -5, 2] == 0).all()  # yellow, not white


@pytest.mark.parametrize("bands", [1, 2, 3, 13, 68])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_sheets_take_any_number_of_bands_any_type_and_unequal_sizes(tmp_path, bands, dtype):
    rng = np.random.default_rng(bands)
    for name, shape in (("tall", (40, 10)), ("square", (33, 33)), ("wide", (12, 48)), ("one", (1, 1))):
        label = rng.integers(0, 3, shape).astype("uint8")
        add(tmp_path, name, rng.integers(1, 100, (bands, *shape)).astype(dtype), label, nodata=0)
    picture = opened(patchplots.draw_contact_sheet(tmp_path, "train"))
    one, _, square, _, tall, _, wide, _ = squares(picture)
    assert one.shape == pytest.approx(square.shape, abs=3) and (one == one[0, 0]).all()
    assert tall.shape[0] / tall.shape[1] == pytest.approx(4, rel=0.15) and wide.shape[1] / wide.shape[0] == pytest.approx(4, rel=0.15)
    coloured = (square.max(2) != square.min(2)).any()
    assert coloured == (bands >= 3)


def test_labels_without_a_class_still_have_the_legend_of_the_metadata(tmp_path):
    (tmp_path / "patch_metadata.json").write_text(json.dumps({"class_names": ["water", "forest"]}))
    for name in "ab":
        add(tmp_path, name, flat(5, 3), label_of(255))
    for path in (patchplots.draw_contact_sheet(tmp_path, "train"), patchplots.draw_sample(tmp_path, "train", 0)):
        picture = opened(path)
        for colour in plots.colours(["water", "forest"]):
            assert 100 < where(picture, colour).sum() < 2000  # a swatch, and nothing else


def test_labels_of_other_programs_are_drawn_without_their_strange_codes(tmp_path):
    label = np.where(WEST, -1, 1).astype("int16")
    label[:8] = 300
    add(tmp_path, "p", flat(5, 3), label)
    _, classes = patchplots.read_pair(tmp_path / "train/images/p.tif", tmp_path / "train/labels/p.tif")
    assert (classes[:, :16] == 255).all() and (classes[:8] == 255).all() and (classes[8:, 16:] == 1).all()
    _, shown = squares(opened(patchplots.draw_contact_sheet(tmp_path, "train")))
    assert where(shown, GREEN).mean() == pytest.approx(0.75 * 0.5, abs=0.03) and where(shown, (255, 255, 255)).mean() == pytest.approx(1 - 0.75 * 0.5, abs=0.03)


def test_only_the_patches_shown_are_read(tmp_path, monkeypatch):
    for number in range(12):
        add(tmp_path, f"p{number:02}", flat(number), label_of(0))
    read, real = [], raster.read_patch
    monkeypatch.setattr(raster, "read_patch", lambda path, *rest: (read.append(path.stem), real(path, *rest))[1])
    patchplots.draw_contact_sheet(tmp_path, "train", count=3)
    assert read == ["p00", "p06", "p11"]
    read.clear()
    assert len(squares(opened(patchplots.draw_contact_sheet(tmp_path, "train", count=50)))) == 24
    assert read == [f"p{number:02}" for number in range(12)]


@pytest.mark.parametrize("shape, step", [((2048, 2048), 8), ((300, 100), 2), ((256, 256), 1), ((20, 257), 2)])
def test_big_patches_are_thinned_by_whole_steps(tmp_path, shape, step):
    rows, cols = np.indices(shape)
    add(tmp_path, "p", np.stack([rows, cols]).astype("uint16"), (rows % 5).astype("uint8"))
    pixels, classes = patchplots.read_pair(tmp_path / "train/images/p.tif", tmp_path / "train/labels/p.tif", [1], longest=256)
    assert max(pixels.shape) <= 256 and (pixels[0] == rows[::step, ::step]).all() and (classes == rows[::step, ::step] % 5).all()


def test_long_names_keep_their_end():
    assert plots.shortened("patch_7", 20) == "patch_7"
    short = plots.shortened("S2A_MSIL2A_20200101T101010_N0500_R022_patch_1234", 24)
    assert len(short) == 24 and short.startswith("S2A_") and short.endswith("_patch_1234")


def test_pairs_are_found_for_every_folder_of_images(tmp_path):
    add(tmp_path, "p", flat(1), label_of(0))
    add(tmp_path, "p", flat(1), label_of(0), images="images_s1")
    assert [path.parent.name for path, _ in patchset.find_pairs(tmp_path, "train", "images_s1")] == ["images_s1"]
    add(tmp_path, "q", flat(1), label_of(0))
    with pytest.raises(SetupError, match="q.tif: image without a label of the same name"):
        patchset.find_pairs(tmp_path, "train", "images_s1")


# ---------------------------------------------------------------- the map


@pytest.fixture
def drawn(monkeypatch):
    """draw_split_map returns the figure, not the path."""
    monkeypatch.setattr(plots, "save", lambda figure, path: figure)
    return patchplots.draw_split_map


def write_patches(folder, shapes, splits, scenes="scene.tif", crs="EPSG:32630"):
    columns = {"patch": [f"p{n}.tif" for n in range(len(shapes))], "id": range(len(shapes)), "scene": scenes, "split": splits}
    frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)
    frame.to_file(folder / "patches.gpkg")
    return folder


def grid(rows, cols, x=500000, y=4800000, size=640):
    """Squares beside one another, row by row from the north."""
    return [box(x + col * size, y - (row + 1) * size, x + (col + 1) * size, y - row * size) for row in range(rows) for col in range(cols)]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_map_colours_patches_by_split_at_their_place(tmp_path):
    splits = ["train"] * 6 + ["validation", "train", "train", "test", "test", "validation"]  # 3 rows of 4
    path = patchplots.draw_split_map(write_patches(tmp_path, grid(3, 4), splits))
    assert path == tmp_path / "splits.png"
    picture = opened(path)
    picture = picture[: int(len(picture) * 0.85)]  # the legend lies below
    cells = [where(picture, colour) for colour in (TRAIN, VALIDATION, TEST)]
    areas = [cell.sum() for cell in cells]
    assert min(areas) > 5000 and np.array(areas) / sum(areas) == pytest.approx(np.array([8, 2, 2]) / 12, abs=0.01)
    rows, cols = (np.array(sorted(line)) for line in np.nonzero(sum(cells)))
    (top, bottom), (left, right) = (rows[0], rows[-1]), (cols[0], cols[-1])
    assert (bottom - top) / (right - left) == pytest.approx(3 / 4, abs=0.02)
    for number, split in enumerate(splits):
        row, col = top + (number // 4 + 0.5) / 3 * (bottom - top), left + (number % 4 + 0.5) / 4 * (right - left)
        assert tuple(picture[int(row), int(col)].tolist()) == patchplots.SPLIT_COLOURS[split]


def test_the_legend_counts_and_an_empty_split_counts_none(tmp_path, drawn):
    figure = drawn(write_patches(tmp_path, grid(40, 50), ["train"] * 1500 + ["validation"] * 500))
    assert legend_of(figure) == ["train (1,500)", "validation (500)", "test (0)"]
    assert figure.get_suptitle() == "patches: 2,000; scenes: 1" and len(figure.axes) == 1


def test_thousands_of_patches_are_few_artists(tmp_path, drawn):
    figure = drawn(write_patches(tmp_path, grid(100, 100), (["train"] * 3 + ["test"]) * 2500))
    collections = figure.axes[0].collections
    assert len(collections) == 3 and sum(len(part.get_paths()) for part in collections) == 10000


CONTINENTS = [(-72.5, -38.8), (-48.1, -25.3), (9.8, 57.2), (34.1, -3.4)]


def test_chips_on_four_continents_have_a_panel_each(tmp_path, drawn):
    shapes = [shape for x, y in CONTINENTS for shape in grid(4, 4, x, y, 0.005)]
    scenes = [f"chip_{n // 16}" for n in range(64)]
    figure = drawn(write_patches(tmp_path, shapes, ["train", "train", "train", "validation"] * 16, scenes, "EPSG:4326"))
    assert len(figure.axes) == 4 and figure.get_suptitle() == "patches: 64; scenes: 4; places: 4"
    assert sorted(axes.get_title() for axes in figure.axes) == [f"chip_{n}: 16" for n in range(4)]
    for axes in figure.axes:
        assert max(np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())) < 0.025  # the chip fills its panel


def test_every_chip_on_four_continents_is_seen(tmp_path):
    shapes = [shape for x, y in CONTINENTS for shape in grid(2, 2, x, y, 0.01)]
    picture = opened(patchplots.draw_split_map(write_patches(tmp_path, shapes, ["train"] * 8 + ["validation"] * 4 + ["test"] * 4, "s", "EPSG:4326")))
    for colour, least in ((TRAIN, 60000), (VALIDATION, 30000), (TEST, 30000)):
        assert where(picture, colour).sum() > least


@pytest.mark.parametrize("lat", [-60.0, 0.0, 48.0])
def test_a_degree_of_longitude_is_drawn_as_short_as_it_is(tmp_path, drawn, lat):
    axes = drawn(write_patches(tmp_path, grid(2, 2, 10, lat, 0.01), ["train"] * 4, crs="EPSG:4326")).axes[0]
    assert axes.get_aspect() == pytest.approx(1 / np.cos(np.radians(lat)), rel=1e-3) and axes.get_xlabel() == "degree"


def test_scenes_side_by_side_share_a_map_even_with_a_gap(tmp_path, drawn):
    shapes = [*grid(20, 20), *grid(20, 20, x=500000 + 640 * 200)]  # 180 patches apart, each 20 wide: a tenth of the map
    figure = drawn(write_patches(tmp_path, shapes, ["train"] * 800, ["a"] * 400 + ["b"] * 400))
    assert len(figure.axes) == 1 and figure.axes[0].get_aspect() == 1 and figure.axes[0].get_xlabel() == "metre"


def test_more_than_twelve_places_are_said_and_the_first_panel_shows_all(tmp_path, drawn):
    shapes = [shape for place in range(20) for shape in grid(2, 3 + (place == 7), -170 + 17 * place, 60 - 6 * place, 0.01)]
    scenes = [f"s{place}" for place in range(20) for _ in range(8 if place == 7 else 6)]
    figure = drawn(write_patches(tmp_path, shapes, ["train"] * len(shapes), scenes, "EPSG:4326"))
    assert len(figure.axes) == 12 and figure.get_suptitle() == "patches: 122; scenes: 20; places: 20, here those with the most patches"
    assert figure.axes[0].get_title() == "20 scenes: 122" and figure.axes[1].get_title() == "s7: 8"


def test_single_patches_scattered_over_the_world_are_dots_on_one_map(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [box(x, y, x + 0.02, y + 0.02) for x, y in zip(rng.uniform(-180, 180, 300), rng.uniform(-60, 70, 300))]
    picture = opened(patchplots.draw_split_map(write_patches(tmp_path, shapes, ["train", "train", "test"] * 100, [f"s{n}" for n in range(300)], "EPSG:4326")))
    picture = picture[: int(len(picture) * 0.8)]
    assert where(picture, TRAIN).sum() > 1500 and where(picture, TEST).sum() > 750  # about 9 pixels a dot


def test_without_a_crs_each_scene_has_a_panel_and_rows_count_downwards(tmp_path, drawn, recwarn):
    shapes = [box(256 * col, 256 * row, 256 * col + 256, 256 * row + 256) for row in range(2) for col in range(3)] * 2
    figure = drawn(write_patches(tmp_path, shapes, ["train"] * 12, ["a"] * 6 + ["b"] * 6, None))
    assert [axes.get_title() for axes in figure.axes] == ["a: 6", "b: 6"]
    assert all(axes.yaxis_inverted() and axes.get_xlabel() == "no CRS" for axes in figure.axes)
    figure = drawn(write_patches(tmp_path, grid(2, 2), ["train"] * 4, "a", None))
    assert not figure.axes[0].yaxis_inverted()  # metres


def test_dates_of_one_place_lie_upon_one_another(tmp_path, drawn):
    figure = drawn(write_patches(tmp_path, grid(2, 2) * 3, ["train", "train", "validation", "test"] * 3, [f"date {n // 4}" for n in range(12)]))
    assert len(figure.axes) == 1 and legend_of(figure) == ["train (6)", "validation (3)", "test (3)"]
    assert figure.get_suptitle() == "patches: 12; scenes: 3"


@pytest.mark.parametrize("gap, places", [(0, 1), (30, 1), (5000, 2)])
def test_places_are_told_apart_by_gaps_far_wider_than_they_are(gap, places):
    bounds = np.array([shape.bounds for shape in [*grid(3, 3), *grid(3, 3, x=500000 + 640 * (3 + gap))]])
    of = patchplots.far_apart(bounds)
    assert len(set(of)) == places and len(set(of[:9])) == len(set(of[9:])) == 1


@pytest.mark.parametrize("shift", [0, 0.3, 17.9, 49])
def test_a_strip_of_patches_is_one_place_wherever_it_begins(shift):
    bounds = np.array([shape.bounds for shape in grid(1, 500, x=640 * shift)] + [[1e9, 0, 1e9 + 640, 640]])
    assert len(set(patchplots.far_apart(bounds)[:500])) == 1


def test_a_folder_without_patches_gpkg_says_how_to_get_one(tmp_path):
    with pytest.raises(SetupError, match=r"patches.gpkg: no such file, .*extract the patches again"):
        patchplots.draw_split_map(tmp_path)
    geopandas.GeoDataFrame({"name": ["a"]}, geometry=grid(1, 1), crs="EPSG:32630").to_file(tmp_path / "patches.gpkg")
    with pytest.raises(SetupError, match=r"patches.gpkg: is no list of patches.*extract the patches again"):
        patchplots.draw_split_map(tmp_path)
    write_patches(tmp_path, [grid(1, 1)[0], None], ["train", "test"])
    with pytest.raises(SetupError, match="is no list of patches"):
        patchplots.draw_split_map(tmp_path)
