"""Patches become batches: what is refused before training, and what a batch holds."""

import json

import numpy as np
import pytest
import rasterio
import torch
from conftest import coded, write_raster
from tinypatches import FLAGS, change, config, make

import model_training_v2 as training
from eoseg import data, patchset, tiles
from eoseg.errors import SetupError
from eoseg.normalize import Normalizer

pytestmark = pytest.mark.usefixtures("narrow")
QUIET = lambda items, **settings: items


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("eoseg.plots.save", lambda figure, path: path)


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


def test_many_bad_labels_are_counted(train, root):
    for i in range(4):
        change(root / "train" / "labels" / f"p{i}.tif", spot(9))
    change(root / "validation" / "labels" / "p1.tif", spot(9))
    refused(train, root, "p0.tif", "p1.tif", "p2.tif", "(and 2 more)")


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
    (lambda root: (root / "train/labels/p1.tif").unlink(), ["train", "p1.tif", "without a label"]),
    (lambda root: (root / "train/images/p1.tif").unlink(), ["train", "p1.tif", "label without an image"]),
    (lambda root: change(root / "train/labels/p1.tif", lambda label: label[:, :-1]), ["labels/p1.tif", "31 x 32", "32 x 32"]),
    (lambda root: change(root / "train/labels/p1.tif", lambda label: label.repeat(2, 0)), ["labels/p1.tif", "2 bands"]),
    (lambda root: change(root / "validation/images/p1.tif", lambda image: image[:2]), ["2 x uint16 (1, e.g. p1.tif)", "3 x uint16 (5"]),
    (lambda root: change(root / "train/images/p1.tif", lambda image: image.astype("float32")), ["3 x float32 (1, e.g. p1.tif)"]),
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


def test_bands_are_chosen_by_number_or_name_and_traced_to_the_scene(tmp_path):
    root = make(tmp_path / "data", (2, 1, 0), bands=4)
    (root / "patch_metadata.json").write_text(json.dumps({"bands": {"names": ["blue", "red", "nir", "vv"], "source_bands": [1, 3, 7, 8], "source_count": 9}}))
    splits, metadata = data.read_splits(config(root, tmp_path / "out"))
    choose = lambda *words: data.choose_bands(splits["train"][0][0], config(root, "out", bands=words), metadata)
    assert choose("nir", "1") == choose("3", "blue") == data.Bands([2, 0], ["nir", "blue"], [7, 1], 9)
    settings = config(root, "out", bands=["nir", "1"])
    plain = Normalizer("none", (0.0, 0.0), (1.0, 1.0), (0.0, 0.0))
    image, *_ = data.Patches(splits["train"], choose("nir", "1"), plain, settings)[0, 0]
    with rasterio.open(splits["train"][0][0]) as src:
        assert np.array_equal(image.numpy(), src.read([3, 1]))


def test_statistics_come_from_valid_training_pixels_of_the_chosen_bands(tmp_path):
    root = make(tmp_path / "data", (2, 1, 0), nodata=0)
    for path in root.glob("train/images/*"):
        change(path, lambda image: np.where(np.arange(32) < 8, 0, image))
    for path in root.glob("validation/images/*"):
        change(path, lambda image: image + 5000)
    splits, metadata = data.read_splits(config(root, "out"))
    bands = data.Bands([2, 1], ["c", "b"], [3, 2], 3)
    normalizer, statistics = data.fit_normalizer(splits["train"], bands, "percentile", QUIET)
    for place, band in enumerate(bands.of_patch):
        seen = np.concatenate([rasterio.open(image).read(band + 1)[:, 8:].ravel() for image, _ in splits["train"]])
        assert statistics[place]["valid_pixels"] == seen.size and statistics[place]["max"] < 1000
        low, high = np.percentile(seen, [1, 99])
        assert normalizer.offset[place] == low and normalizer.scale[place] == pytest.approx(1 / (high - low)) and normalizer.fill[place] == np.median(seen)


def sample(tmp_path, image, label, nodata=None, seed=None, key=(0, 0), **changes):
    """Image and target as the network gets them, from one patch, not normalised (what is missing becomes 7)."""
    for kind, pixels in (("images", image), ("labels", label)):
        (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
        write_raster(tmp_path / "train" / kind / "p.tif", pixels, nodata if kind == "images" else None)
    count = len(image)
    patches = data.Patches(patchset.find_pairs(tmp_path, "train"), data.Bands(list(range(count)), [], [], count),
                           Normalizer("none", (0.0,) * count, (1.0,) * count, (7.0,) * count), config(tmp_path, "out", **changes), seed)
    pixels, target, _ = patches[key]
    return pixels.numpy(), target.numpy()


def test_invalid_image_pixels_are_unlabelled_and_a_missing_band_is_its_median(tmp_path):
    image, label = coded(32, 32, dtype="float32"), np.ones((32, 32), "uint8")
    image[:, 0, 0] = -1  # nodata in all bands: invalid
    image[1, 0, 1] = -1  # in one: valid
    image[2, 0, 2] = np.nan  # invalid
    label[0, 3] = 255
    pixels, target = sample(tmp_path, image, label, nodata=-1)
    assert target[0, :5].tolist() == [255, 1, 255, 255, 1]
    assert pixels[:, 0, 0].tolist() == [7, 7, 7] and pixels[:, 0, 1].tolist() == [10001, 7, 30001]
    assert np.isfinite(pixels).all() and pixels[2, 31, 31] == 33131


def test_padding_mirrors_the_image_and_leaves_the_target_unlabelled(tmp_path):
    pixels, target = sample(tmp_path, coded(40, 33), np.ones((40, 33), "uint8"))
    assert pixels.shape == (3, 64, 64) and target.shape == (64, 64)
    assert (target[:40, :33] == 1).all() and (target == 1).sum() == 40 * 33 and (target[40:] == 255).all()
    assert pixels[0, 39, 32] == pixels[0, 40, 33] == 13932 and pixels[0, 41, 34] == 13831


def test_a_larger_patch_is_seen_whole_in_evaluation_and_cut_by_lot_in_training(tmp_path):
    image = coded(60, 50)
    label = (image[0] % 3).astype("uint8")  # tells whether image and target were cut alike
    pixels, target = sample(tmp_path, image, label, patch_size=32)
    assert np.array_equal(target[:60, :50], label) and (target[60:] == 255).all() and np.array_equal(pixels[0, :60, :50], image[0])
    corners = set()
    for epoch in range(60):
        pixels, target = data.cut_to(image, label, 32, [3, epoch, 0])
        assert np.array_equal(pixels[0] % 3, target)
        corners.add(divmod(int(pixels[0, 0, 0]) - 10000, 100))
    rows, cols = zip(*corners)
    assert len(corners) > 40 and min(rows) < 4 and max(rows) > 24 and max(rows) <= 28 and max(cols) <= 18


def test_a_sample_hangs_on_seed_epoch_and_index_alone(tmp_path):
    image, label = coded(32, 32), (coded(32, 32)[0] % 3).astype("uint8")
    draw = lambda seed, epoch: sample(tmp_path, image, label, seed=seed, key=(epoch, 0))[0]
    assert np.array_equal(draw(1, 5), draw(1, 5))
    assert not np.array_equal(draw(1, 5), draw(1, 6)) and not np.array_equal(draw(1, 5), draw(2, 5))
    assert np.array_equal(draw(None, 5), image)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_batches_with_any_number_of_workers(root, tmp_path, workers):
    splits, _ = data.read_splits(config(root, "out"))
    normalizer, _ = data.fit_normalizer(splits["train"], data.Bands([0, 1, 2], [], [], 3), "percentile", QUIET)
    patches = data.Patches(splits["train"], data.Bands([0, 1, 2], [], [], 3), normalizer, config(root, "out"), seed=9)
    loader = data.make_loader(patches, 3, 9, workers, torch.device("cpu"))
    for epoch in range(2):
        loader.batch_sampler.epoch = epoch
        for keys, (image, target, index) in zip(list(loader.batch_sampler), loader):
            alone = [patches[key] for key in keys]
            assert index.tolist() == [i for _, i in keys] and {e for e, _ in keys} == {epoch}
            assert torch.equal(image, torch.stack([one[0] for one in alone])) and torch.equal(target, torch.stack([one[1] for one in alone]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_patch_that_breaks_during_the_run_is_one_line(root, workers):
    splits, _ = data.read_splits(config(root, "out"))
    patches = data.Patches(splits["train"], data.Bands([0], [], [], 3), Normalizer("none", (0.0,), (1.0,), (0.0,)), config(root, "out"))
    splits["train"][2][0].write_bytes(b"II*")
    with pytest.raises(SetupError) as caught:
        list(data.batches(data.make_loader(patches, 2, None, workers, torch.device("cpu"))))
    assert str(caught.value).startswith(f"{splits['train'][2][0]}: ") and "\n" not in str(caught.value)


def test_every_patch_comes_once_an_epoch_and_a_last_one_is_not_alone():
    order = data.Order(9, 4, seed=1)
    first, second = [list(order) for order.epoch in (0, 1)]
    assert len(first) == len(order) == 3
    for batches in (first, second):
        seen = [index for batch in batches for _, index in batch]
        assert sorted(seen[:9]) == list(range(9)) and seen[9:] == seen[:1]  # batch normalisation needs two
    assert [i for batch in first for _, i in batch] != [i for batch in second for _, i in batch]
    assert [i for batch in data.Order(9, 4) for _, i in batch] == list(range(9))  # validation: in order, once
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
        settings = config(root, tmp_path / "out", loss_type="ce")
        run, loaders = training.prepare(settings, *data.read_splits(settings))
        evaluated.append(training.evaluate(run, loaders[1]))
    assert evaluated[0][0] == pytest.approx(evaluated[1][0], rel=1e-6) and evaluated[0][1] == evaluated[1][1]


def test_every_problem_of_the_patches_is_found_before_the_folder_is_made(tmp_path, root):
    change(root / "train" / "labels" / "p0.tif", spot(9))
    with pytest.raises(SetupError, match="p0.tif"):
        training.train(config(root, tmp_path / "deep" / "out"))
    assert not (tmp_path / "deep" / "out").exists()
