"""Patches become batches: what is refused before training, and what a batch holds."""

import json
import os

import numpy as np
import pytest
import rasterio
import torch
from conftest import coded, write_raster
from tinypatches import FLAGS, change, config, make, prepared

import model_training_v2 as training
from eoseg import augment, data, files, tiles
from eoseg.errors import SetupError
from eoseg.normalize import Normalizer
from eoseg.source import fit_normalizer, open_splits

pytestmark = pytest.mark.usefixtures("narrow")
QUIET = lambda items, **settings: items


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)
    monkeypatch.setattr("eoseg.drawing.draw", lambda jobs: None)


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "data", (4, 2, 0))


@pytest.fixture
def train(script, tmp_path, root):
    """Run main_v2 on the patches; gives the exit status, what was printed, and the last line of stderr."""
    def call(*words, root=root):
        status, out, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path / "out", "--epochs", 1, "--batch_size", 2, *words)
        assert "Traceback" not in said
        return status, out, (said.splitlines() or [""])[-1]

    return call


def refused(train, root, *parts, words=()):
    """The run stops with one line that holds all `parts`, and leaves nothing behind."""
    status, _, said = train(*words)
    assert status == 2 and said.startswith("error: ") and all(str(part) in said for part in parts), said
    assert not (root.parent / "out").exists()


def spot(value):
    """Puts `value` at one pixel of every band."""
    def put(pixels):
        pixels = pixels.copy()
        pixels[:, 3, 5] = value
        return pixels

    return put


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_label_beyond_the_classes_names_file_and_values(train, root, split):
    path = root / split / "labels" / "p1.tif"
    change(path, lambda label: spot(200)(np.where(label == 2, 3, label)))
    refused(train, root, f"{path}: ", "3, 200", "classes are 0 to 2", "--label_map")


def test_a_label_of_the_first_value_beyond_is_not_clipped(train, root):
    change(root / "train" / "labels" / "p0.tif", spot(3))
    refused(train, root, "p0.tif", "label values 3,")


def test_every_bad_label_is_listed_and_the_last_line_counts_them(script, root, tmp_path):
    for i in range(4):
        change(root / "train" / "labels" / f"p{i}.tif", spot(9))
    (root / "validation/labels/p1.tif").unlink()
    status, _, said = script("main_v2", *FLAGS, "--dataset_root", root, "--save_dir", tmp_path / "out")
    *listed, last = said.splitlines()
    assert status == 2 and last.startswith(f"error: --dataset_root {root}: 5 problems with its patches, listed above") and "mend or remove" in last
    assert len([line for line in listed if "label values 9" in line]) == 4 and any("p1.tif: image without a label" in line for line in listed)


@pytest.mark.parametrize("code, fine", [(1.0, True), (float("nan"), True), (1.5, False), (-1, False)])
def test_whole_numbers_in_float_labels_are_classes_and_others_are_not(train, root, code, fine):
    change(root / "train" / "labels" / "p0.tif", lambda label: spot(code)(label.astype("float32")))
    if fine:
        assert train()[0] == 0
    else:
        refused(train, root, "p0.tif", f"{code:g}")


def test_a_nodata_tag_among_the_classes_is_not_guessed(train, root):
    path = root / "train" / "labels" / "p0.tif"
    with rasterio.open(path) as src:
        label = src.read()
    write_raster(path, label, nodata=0)
    refused(train, root, "p0.tif", "nodata tag 0", "--label_nodata none", "--label_nodata 0")
    assert train("--label_nodata", "none")[0] == 0


@pytest.mark.parametrize("spoil, parts", [
    (lambda root: (root / "train/labels/p1.tif").unlink(), ["train", "p1.tif", "image without a label"]),
    (lambda root: (root / "train/images/p1.tif").unlink(), ["train", "p1.tif", "label without an image"]),
    (lambda root: change(root / "train/labels/p1.tif", lambda label: label[:, :-1]), ["labels/p1.tif", "31 x 32", "32 x 32"]),
    (lambda root: change(root / "train/labels/p1.tif", lambda label: label.repeat(2, 0)), ["labels/p1.tif", "2 bands"]),
    (lambda root: change(root / "validation/images/p1.tif", lambda image: image[:2]), ["validation/images/p1.tif: has 2 bands of uint16", "3 of uint16"]),
    (lambda root: change(root / "train/images/p1.tif", lambda image: image.astype("float32")), ["train/images/p1.tif: has 3 bands of float32", "3 of uint16"]),
    (lambda root: (root / "train/images/p1.tif").write_bytes((root / "train/images/p1.tif").read_bytes()[:900]), ["images/p1.tif"]),
    (lambda root: (root / "train/images/p1.tif").write_bytes(b""), ["images/p1.tif", "0 bytes"]),
    (lambda root: [change(path, lambda label: label * 0 + 255) for path in root.glob("validation/labels/*")], ["validation: not one pixel"]),
    (lambda root: [change(path, lambda label: label * 0 + 255) for path in root.glob("train/labels/*")], ["train: not one pixel"]),
    (lambda root: [path.unlink() for path in root.glob("validation/*/*")], ["validation: holds no patches"]),
    (lambda root: [path.unlink() for path in root.glob("train/*/*")], ["train: holds no patches"]),
    (lambda root: (root / "train").rename(root / "training"), ["--dataset_root", "Patch/train/images"]),
    (lambda root: (root / "patch_metadata.json").write_text("{"), ["patch_metadata.json", "JSON"]),
    (lambda root: (root / "patch_metadata.json").write_text(json.dumps({"class_names": list("abcd")})), ["--classes 3", "a, b, c, d", "--classes 4"]),
], ids=lambda value: str(value[-1])[:24].replace(" ", "_") if isinstance(value, list) else "")
def test_a_broken_folder_is_one_line_that_names_the_place(train, root, spoil, parts):
    spoil(root)
    refused(train, root, *parts)


@pytest.mark.parametrize("words, parts", [
    (["--in_channels", 4], ["--in_channels 4", "3 bands"]),
    (["--in_channels", 3, "--bands", 1, 2], ["--in_channels 3", "2 bands"]),
    (["--bands", 4], ["no band 4", "1 to 3"]),
    (["--bands", "nir"], ["no band nir", "band_1"]),
    (["--class_names", "a", "b"], ["--class_names", "2 given for 3 classes"]),
    (["--class_names", "a", "b", "b"], ["--class_names", "twice"]),
    (["--custom_class_weights", 1, 2], ["--custom_class_weights", "2 given for 3 classes"]),
    (["--label_map", "0=0", "1=1"], ["p0.tif", "label values 2"]),
    (["--label_map", "0=0", "1=1", "2=3"], ["--label_map: leads to class 3", "--classes 4"]),
    (["--mode", "binary", "--label_map", "0=0", "1=1", "2=2"], ["--label_map: leads to class 2", "binary mode has 0 and 1"]),
    (["--device", "cuda:99"], ["--device cuda:99", "--device auto"]),
    (["--device", "meta"], ["--device meta", "auto, cpu, cuda"]),
    (["--device", "tpu"], ["--device tpu", "auto, cpu, cuda"]),
    (["--init_weights", "nowhere.pth"], ["nowhere.pth", "no such checkpoint"]),
])
def test_options_that_contradict_the_patches_are_refused(train, root, words, parts):
    refused(train, root, *parts, words=words)


def test_patches_of_several_sizes_need_a_patch_size(train, root, tmp_path):
    make(tmp_path / "more", (2, 0, 0), size=(45, 50), seed=4)
    for kind in ("images", "labels"):
        (tmp_path / "more/train" / kind / "p0.tif").rename(root / "train" / kind / "odd.tif")
    refused(train, root, "--patch_size", "32 x 32 (6), 45 x 50 (1)")
    for size in (32, 40, 50):  # cut, both, padded; 40 and 50 are no multiples of 32
        assert train("--patch_size", size, "--overwrite")[0] == 0


@pytest.mark.parametrize("size", [pytest.param((33, 33), marks=pytest.mark.slow), (20, 44), pytest.param((8, 8), marks=pytest.mark.slow)])
def test_odd_sizes_are_trained_on_as_they_are(train, tmp_path, size):
    assert train(root=make(tmp_path / "odd", (3, 1, 1), size=size))[0] == 0


def test_one_patch_and_a_patch_folder_beneath_are_enough(train, tmp_path):
    make(tmp_path / "one" / "Patch", (1, 1, 0))
    status, out, _ = train(root=tmp_path / "one")
    assert status == 0 and "train 1, validation 1" in out and "test      none" in out


def test_a_batch_of_one_that_cannot_be_normalised_is_said_before_training(train, root):
    refused(train, root, "--batch_size 1", "--batch_size 2", words=["--model", "unet", "--encoder_name", "resnet18", "--batch_size", 1])


# ---------------------------------------------------------------- what a batch holds


def loader_of(root, seed=None, **settings):
    """A Loader of the training patches, not normalised (what is missing becomes 7), and its Source."""
    workers, strengths, batch_size = (settings.pop(name, usual) for name, usual in (("workers", 0), ("strengths", None), ("batch_size", 2)))
    options = config(root, root.parent / "out", **settings)
    splits, source = open_splits(options, QUIET)
    count = len(source.bands.names)
    plain = Normalizer("none", (0.0,) * count, (1.0,) * count, (7.0,) * count)
    size = options.patch_size if seed is not None else None
    patches = data.Patches(splits["train"], source.fetch, size, tiles.tile_size(options.model_name, size or source.largest), seed)
    return data.Loader(patches, batch_size, plain, torch.device("cpu"), workers, strengths), source


def test_chosen_bands_come_in_their_order(tmp_path):
    root = make(tmp_path / "data", (2, 1, 0), bands=4)
    (root / "patch_metadata.json").write_text(json.dumps({"bands": {"names": ["blue", "red", "nir", "vv"], "source_bands": [1, 3, 7, 8], "source_count": 9}}))
    loader, source = loader_of(root, bands=["nir", "1"])
    assert source.bands.to_dict() | {"names": ["nir", "blue"], "of_scene": [7, 1], "scene_count": 9} == source.bands.to_dict()
    image, *_ = next(loader.epoch())
    with rasterio.open(root / "train/images/p0.tif") as src:
        assert np.array_equal(image[0].numpy(), src.read([3, 1]))


def test_statistics_come_from_valid_training_pixels_of_the_chosen_bands(tmp_path):
    root = make(tmp_path / "data", (2, 1, 0), nodata=0)
    for path in root.glob("train/images/*"):
        change(path, lambda image: np.where(np.arange(32) < 8, 0, image))
    for path in root.glob("validation/images/*"):
        change(path, lambda image: image + 5000)
    splits, source = open_splits(config(root, "out", bands=["3", "2"]), QUIET)
    normalizer, statistics = fit_normalizer(splits["train"], source, "percentile", QUIET)
    for place, band in enumerate((2, 1)):
        seen = np.concatenate([rasterio.open(image).read(band + 1)[:, 8:].ravel() for image, _ in splits["train"]])
        assert statistics[place]["valid_pixels"] == seen.size and statistics[place]["max"] < 1000
        low, high = np.percentile(seen, [1, 99])
        assert normalizer.offset[place] == low and normalizer.scale[place] == pytest.approx(1 / (high - low)) and normalizer.fill[place] == np.median(seen)


def written(tmp_path, image, label, nodata=None):
    """A folder with one training patch (which also validates)."""
    for split in ("train", "validation"):
        for kind, pixels in (("images", image), ("labels", label)):
            (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
            write_raster(tmp_path / "data" / split / kind / "p.tif", pixels, nodata if kind == "images" else None)
    return tmp_path / "data"


def sample(root, number=0, **settings):
    """Image and target of one patch as the network gets them in an epoch, not normalised (what is missing becomes 7)."""
    image, target, _ = next(loader_of(root, **settings)[0].epoch(number))
    return image[0].numpy(), target[0].numpy()


@pytest.mark.parametrize("cache", ["none", "disk", "ram"])
def test_invalid_image_pixels_are_unlabelled_and_a_missing_band_is_its_median(tmp_path, cache):
    image, label = coded(32, 32, dtype="float32"), np.ones((32, 32), "uint8")
    image[:, 0, 0] = -1  # nodata in all bands: invalid
    image[1, 0, 1] = -1  # in one: valid
    image[2, 0, 2] = np.nan  # invalid
    label[0, 3] = 255
    pixels, target = sample(written(tmp_path, image, label, nodata=-1), cache=cache)
    assert target[0, :5].tolist() == [255, 1, 255, 255, 1]
    assert pixels[:, 0, 0].tolist() == [7, 7, 7] and pixels[:, 0, 1].tolist() == [10001, 7, 30001]
    assert np.isfinite(pixels).all() and pixels[2, 31, 31] == 33131


def test_padding_mirrors_the_image_and_its_holes_and_leaves_the_target_unlabelled(tmp_path):
    image = coded(40, 33)
    image[1, 39, 32] = 0
    pixels, target = sample(written(tmp_path, image, np.ones((40, 33), "uint8"), nodata=0))
    assert pixels.shape == (3, 64, 64) and target.shape == (64, 64)
    assert (target[:40, :33] == 1).all() and (target == 1).sum() == 40 * 33 and (target[40:] == 255).all()
    assert pixels[0, 39, 32] == pixels[0, 40, 33] == 13932 and pixels[0, 41, 34] == 13831
    assert pixels[1, 39, 32] == pixels[1, 40, 33] == 7 and pixels[1, 41, 34] == 23831


def test_a_larger_patch_is_seen_whole_in_evaluation_and_cut_by_lot_in_training(tmp_path):
    image = coded(60, 50)
    image[:, 30, 20] = 0  # nowhere but in this hole, which moves along
    label = (image[0] % 3).astype("uint8")  # tells whether image and target were cut alike
    root = written(tmp_path, image, label, nodata=0)
    pixels, target = sample(root, patch_size=32)
    assert np.array_equal(target[:60, :50][label != 255], np.where(image[0] == 0, 255, label).ravel()) and (target[60:] == 255).all()
    loader, _ = loader_of(root, seed=3, patch_size=32)
    corners = set()
    for epoch in range(60):
        image, target, _ = next(loader.epoch(epoch))
        pixels, target = image[0].numpy(), target[0].numpy()
        hole = pixels[0] == 7
        assert pixels.shape == (3, 32, 32) and np.array_equal(pixels[0][~hole] % 3, target[~hole]) and (target[hole] == 255).all() and hole.sum() <= 1
        corners.add(divmod(int(pixels[0, 0, 0]) - 10000, 100))
    rows, cols = zip(*corners)
    assert len(corners) > 40 and min(rows) < 4 and max(rows) > 24 and max(rows) <= 28 and max(cols) <= 18


def test_a_smaller_patch_is_padded_to_the_patch_size(tmp_path):
    pixels, target = sample(written(tmp_path, coded(20, 30), np.ones((20, 30), "uint8")), seed=1, patch_size=64)
    assert pixels.shape == (3, 64, 64) and (target == 1).sum() == 600 and pixels[0, 20, 0] == pixels[0, 19, 0]


def test_a_sample_hangs_on_seed_epoch_and_index_alone(tmp_path):
    root = written(tmp_path, coded(32, 32), (coded(32, 32)[0] % 3).astype("uint8"))
    draw = lambda seed, epoch: sample(root, epoch, seed=seed, strengths=augment.PRESETS["strong"])[0]
    assert np.array_equal(draw(1, 5), draw(1, 5))
    assert not np.array_equal(draw(1, 5), draw(1, 6)) and not np.array_equal(draw(1, 5), draw(2, 5))
    assert np.array_equal(sample(root)[0], coded(32, 32))


def taken(loader, number, skip=0):
    return [(image.clone(), target.clone(), index) for image, target, index in loader.epoch(number, skip)]


@pytest.mark.parametrize("workers, cache", [(0, "disk"), (2, "none"), (2, "ram"), (1, "disk")])
def test_loaders_give_the_same_batches_however_they_fetch_and_from_wherever_they_begin(root, workers, cache):
    plain, _ = loader_of(root, seed=9, strengths=augment.PRESETS["strong"], cache="none", batch_size=3)
    other, _ = loader_of(root, seed=9, strengths=augment.PRESETS["strong"], cache=cache, workers=workers, batch_size=3)
    for epoch, skip in ((0, 0), (1, 0), (1, 1)):
        wanted, found = taken(plain, epoch), taken(other, epoch, skip)
        assert len(wanted) == 2 and len(found) == 2 - skip
        for one, two in zip(wanted[skip:], found):
            assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and one[2] == two[2]


def test_batches_are_float32_channels_last_and_whole_numbers(root):
    image, target, index = next(loader_of(root, seed=1)[0].epoch())
    assert image.dtype == torch.float32 and image.is_contiguous(memory_format=torch.channels_last) and target.dtype == torch.int64 and len(index) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_patch_that_breaks_during_the_run_is_one_line(root, workers):
    loader, _ = loader_of(root, workers=workers, cache="none")
    path = loader.patches.pairs[2][0]
    path.write_bytes(b"II*")
    with pytest.raises(SetupError) as caught:
        list(loader.epoch())
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_patches_of_rare_classes_are_shown_more_often():
    counts = np.zeros((100, 3), int)
    counts[:, 0] = 50
    counts[:4, 1] = 1  # in 4 of 100 patches: sqrt(25) = 5 times as often
    weights, factor = data.rarity(counts)
    assert factor.tolist() == [1, 5, 1] and weights[:4].tolist() == [5] * 4 and weights[4:].tolist() == [1] * 96
    order = data.Order(100, 8, seed=3, weights=weights)
    shown = np.zeros(100)
    for order.epoch in range(200):
        keys = [key for batch in order for key in batch]
        assert len(keys) == 100 and len(set(keys)) == 100  # a patch that comes twice is changed in two ways
        for _, index, _ in keys:
            shown[index] += 1
    assert shown[:4] / 200 == pytest.approx(5 * 100 / 116, rel=0.05) and shown[4:].mean() / 200 == pytest.approx(100 / 116, rel=0.02)


def test_a_patch_shown_twice_in_an_epoch_is_changed_in_two_ways(tmp_path):
    loader, _ = loader_of(make(tmp_path / "data", (2, 1, 0)), seed=1, strengths=augment.PRESETS["basic"], batch_size=8)
    loader.order.count, loader.order._order = 6, lambda: np.zeros(6, int)
    image, _, index = next(loader.epoch())
    assert index == [0] * 6 and len({one.numpy().tobytes() for one in image}) == 6


def test_there_are_no_more_loader_processes_than_batches_or_four_a_core(root):
    pairs, cores = [None] * 80, len(os.sched_getaffinity(0))
    count = lambda workers, packed=False, patches=pairs: data.worker_count(config(root, "out", workers=workers, batch_size=8), patches, packed)
    assert count(500) == min(10, 4 * cores) and count(500, patches=pairs[:9]) == 2 and count(0) == 0 and count(1, packed=True) == 1
    assert count(None, packed=True) == 0 and count(None, patches=pairs[:60]) == 0 and count(None) == (min(8, cores - 1) if cores > 1 else 0)


def test_without_labels_no_patch_is_rare():
    assert data.rarity(np.zeros((4, 3)))[0].tolist() == [1, 1, 1, 1]


def test_strengths_are_those_of_the_preset_but_for_those_given(root):
    assert data.strengths_of(config(root, "out")) == augment.PRESETS["basic"]
    assert data.strengths_of(config(root, "out", data_augmentation=False)) is None and data.strengths_of(config(root, "out", augmentation="none")) is None
    given = {"scale": [0.9, 1.5], "rotation": 3.0, "brightness": 0.1, "contrast": 0.2, "hue": 0.3, "saturation": 0.4, "noise": 0.5, "band_dropout": 0.6}
    found = data.strengths_of(config(root, "out", augmentation="strong", **{f"augment_{name}": value for name, value in given.items()}))
    assert found._asdict() == given | {"scale": (0.9, 1.5)}
    assert data.strengths_of(config(root, "out", augment_noise=0.0, augmentation="strong")) == augment.PRESETS["strong"]._replace(noise=0.0)


def test_every_patch_comes_once_an_epoch_and_a_last_one_is_not_alone():
    order = data.Order(9, 4, seed=1)
    first, second = [list(order) for order.epoch in (0, 1)]
    assert len(first) == len(order) == 3
    for batches in (first, second):
        seen = [index for batch in batches for _, index, _ in batch]
        assert sorted(seen[:9]) == list(range(9)) and seen[9:] == seen[:1]  # batch normalisation needs two
    assert [i for batch in first for _, i, _ in batch] != [i for batch in second for _, i, _ in batch]
    assert [i for batch in data.Order(9, 4) for _, i, _ in batch] == list(range(9))  # validation: in order, once
    assert [len(batch) for batch in data.Order(3, 1, seed=1)] == [1, 1, 1]


@pytest.mark.parametrize("network", ["unet", "pan", "unet-dropout"])
def test_a_network_gets_sizes_it_can_halve(network):
    assert [tiles.tile_size(network, size) for size in (1, 32, 33, 224, 250)] == ([128, 128, 128, 224, 256] if network == "pan" else [32, 32, 64, 224, 256])


def test_unlabelled_pixels_change_neither_loss_nor_metrics_nor_weights(tmp_path):
    """Two folders that differ only where nothing is labelled, or where the image holds no data, train the same network."""
    runs = []
    for name, label_there, image_there in (("a", 0, -9.0), ("b", 2, np.nan)):
        root = make(tmp_path / name, (3, 2, 1))
        for path in root.glob("*/images/*"):
            change(path, lambda image: image.astype("float32"))
            with rasterio.open(path, "r+") as dst:
                dst.nodata = -9.0
                pixels = dst.read()
                pixels[:, :8, :8] = image_there
                dst.write(pixels)
        for path in root.glob("*/labels/*"):
            change(path, lambda label: np.where(np.add.outer(np.arange(32), np.arange(32)) < 6, label_there, label).astype("uint8"))
        metrics = training.train(config(root, tmp_path / f"out_{name}", data_augmentation=False))
        state = torch.load(tmp_path / f"out_{name}" / "unet-dropout_last.pth", weights_only=True)["model_state_dict"]
        del metrics["history"]["epoch_time"]
        runs.append((state, metrics["history"], metrics["test"]))
    (one, *scores), (two, *others) = runs
    assert scores == others
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_patch_without_a_label_adds_nothing_to_loss_or_metrics(tmp_path):
    root = make(tmp_path / "data", (2, 2, 0))
    evaluated = []
    for spoil in (False, True):
        if spoil:
            make(tmp_path / "more", (1, 0, 0), seed=8)
            for kind in ("images", "labels"):
                (tmp_path / "more/train" / kind / "p0.tif").rename(root / "validation" / kind / "p9.tif")
            change(root / "validation/labels/p9.tif", lambda label: label * 0 + 255)
        run, loaders = training.prepare(*prepared(root, tmp_path / "out", loss_type="ce"))
        loss, tally = training.evaluate(run, loaders[1])
        evaluated.append((loss, files.without_nan(tally.scores(run.names))))
    assert evaluated[0][0] == pytest.approx(evaluated[1][0], rel=1e-6) and evaluated[0][1] == evaluated[1][1]


def test_every_problem_of_the_patches_is_found_before_the_folder_is_made(tmp_path, root):
    change(root / "train" / "labels" / "p0.tif", spot(9))
    with pytest.raises(SetupError, match="p0.tif"):
        training.train(config(root, tmp_path / "deep" / "out"))
    assert not (tmp_path / "deep" / "out").exists()
