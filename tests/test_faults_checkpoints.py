"""Checkpoints as strangers, bad copies and other programs leave them: used and right, or refused in a line; and never run."""

import builtins
import functools
import io
import os
import pickle
import shutil
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from conftest import coded, write_raster
from faults import assert_refused, assert_worked
from tinynet import Point, identity, opened, save
from tinypatches import FLAGS, make

from eoseg import checkpoint, memory, models, network
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError

NAMES, BANDS = ["water", "crop", "tree"], ["red", "green", "nir"]


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return make(tmp_path_factory.mktemp("patches") / "p", (2, 1, 1))


@pytest.fixture
def scene(tmp_path):
    return write_raster(tmp_path / "s.tif", coded(20, 24), names=BANDS)


@pytest.fixture
def good(tmp_path):
    """What a checkpoint of ours holds, which every fault is a change of."""
    path = save(tmp_path / "good.pth", Point(3, 3), outputs=3, names=NAMES, band_names=BANDS, pixel_size=[10.0, 10.0, "metre"], label_map={"1": 0, "5": 1, "7": 2},
                trained_on=torch.tensor([1, 2]), calibration={"temperature": 1.5, "threshold": 0.4, "split": "validation"}, normalizer=identity(3))
    return torch.load(path, weights_only=True)


@pytest.fixture
def mapped(fate, tmp_path, scene, point_models):
    """Map the scene by a checkpoint: a Fate."""
    return lambda path, *words, **may: fate("Predict_large_image_v2", "--model", path, "--input", scene, "--output", tmp_path / "map.tif", *words, **may)


@pytest.fixture
def entries(fate, tmp_path, scene, patches, point_models):
    """Every way into the programs that a stranger's checkpoint has: flag -> what runs them with it."""
    training = ["main_v2", *FLAGS, "--dataset_root", patches, "--save_dir", tmp_path / "run", "--epochs", 1, "--cache", "none"]

    def resumed(path):
        (tmp_path / "run").mkdir()
        for name in ("last", "previous"):
            shutil.copy(path, tmp_path / f"run/unet-dropout_{name}.pth")
        return fate(*training, "--resume")

    return {"--model": lambda path: fate("Predict_large_image_v2", "--model", path, "--input", scene, "--output", tmp_path / "map.tif"),
            "--evaluate": lambda path: fate("main_v2", "--evaluate", path, "--dataset_root", patches, "--save_dir", tmp_path / "scores"),
            "--init_weights": lambda path: fate(*training, "--init_weights", path),
            "--encoder_weights": lambda path: fate(*training, "--encoder_weights", path),
            "--resume": resumed}


ENTRIES = ("--model", "--evaluate", "--init_weights", "--encoder_weights", "--resume")


# ---------------------------------------------------------------- files


class Payload:
    """Pickles as a call: what unpickling would run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payload(kind, folder):
    """A pickle that makes the file `ran`, were it let to."""
    mark = f"open({str(folder / 'ran')!r}, 'w').close()"
    if kind == "gadget":  # a loader that is trusted, told to trust another file
        torch.save(Payload(builtins.exec, mark), folder / "inner.pth")
        return Payload(functools.partial(torch.load, str(folder / "inner.pth"), weights_only=False))
    return {"system": Payload(os.system, f"touch {folder / 'ran'}"), "eval": Payload(builtins.eval, mark), "exec": Payload(builtins.exec, mark),
            "partial": Payload(functools.partial(builtins.exec, mark))}[kind]


def in_tar(value):
    """As torch before 0.1.10 wrote: pickles in a tar."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            part = pickle.dumps(value, 2)
            info = tarfile.TarInfo(name)
            info.size = len(part)
            archive.addfile(info, io.BytesIO(part))
    return content.getvalue()


def stored(value, form, path):
    if form in ("zip", "legacy"):
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(in_tar(value) if form == "tar" else pickle.dumps(value))
    return path


FORMS = ("zip", "legacy", "tar", "pickle")


@pytest.mark.parametrize("kind, form, entry", [*(("system", form, entry) for form in FORMS for entry in ENTRIES),
                                               *((kind, form, "--model") for kind in ("eval", "exec", "partial", "gadget") for form in FORMS)])
def test_a_checkpoint_never_runs_code(entries, tmp_path, good, kind, form, entry):
    where = {"system": lambda p: p, "eval": lambda p: good | {"model_state_dict": {"w": p}}, "exec": lambda p: good | {"config": {"model_name": p}}}.get(kind, lambda p: good | {"extra": [p]})
    path = stored(where(payload(kind, tmp_path)), form, tmp_path / "evil.pth")
    if form == "zip" or form == "legacy" and entry == "--encoder_weights":
        words = "holds more than tensors and plain values"
    else:
        words = "older than 1.6" if form == "legacy" else "is no checkpoint"
    fate = entries[entry](path)
    assert_refused(fate, left="run") if entry == "--resume" else assert_refused(fate, "evil.pth: ", words)
    assert words in fate.out + fate.err and not (tmp_path / "ran").exists()


def records(path, change=lambda name, content: content, more=(), compress=zipfile.ZIP_STORED):
    """Write a zip anew, its records changed and some added: [(name, content)]."""
    with zipfile.ZipFile(path) as archive:
        kept = [(info.filename, change(info.filename, archive.read(info))) for info in archive.infolist()]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compress) as archive:
        warnings.simplefilter("ignore")  # of names given twice
        for name, content in (*kept, *more):
            if content is not None:
                archive.writestr(name, content)


def of_weights(function):
    return lambda name, content: function(content) if name.endswith("data/0") else content


def overlapping(path):
    """Two entries of the directory lead to one record."""
    content = bytearray(path.read_bytes())
    places = [at for at in range(len(content) - 4) if content[at : at + 4] == b"PK\1\2"]
    content[places[1] + 42 : places[1] + 46] = content[places[0] + 42 : places[0] + 46]
    path.write_bytes(content)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index(Point(3, 3).conv.weight.detach().numpy().tobytes())] ^= 4
    path.write_bytes(content)


def safetensors(path):
    from safetensors.torch import save_file

    save_file(Point(3, 3).state_dict(), path)


FILES = {  # fault -> what makes it of a good file, what is said
    "zero bytes": (lambda path: path.write_bytes(b""), "is no checkpoint, or is damaged or truncated; copy it again"),
    "half of it": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged or truncated"),
    "a byte short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged or truncated"),
    "a page of a login": (lambda path: path.write_text("<!DOCTYPE html><html>Sign in</html>"), "is no checkpoint"),
    "a page before it": (lambda path: path.write_bytes(b"<html>" + path.read_bytes()), "is no checkpoint"),
    "a pickle before it": (lambda path: path.write_bytes(pickle.dumps({}) + path.read_bytes()), "is no checkpoint"),
    "a flipped byte": (flipped, "fails its checksum"),
    "a bomb": (lambda path: records(path, of_weights(lambda content: bytes(10**7)), compress=zipfile.ZIP_DEFLATED), "holds compressed records"),
    "a bomb beside": (lambda path: records(path, more=[("x/data/9", bytes(10**7))], compress=zipfile.ZIP_DEFLATED), "holds compressed records"),
    "overlapping records": (overlapping, "is damaged"),
    "weights twice": (lambda path: records(path, more=[(".good.pth/data/0", bytes(36))]), "damaged"),
    "a path upwards": (lambda path: records(path, more=[("../../ran", b"x")]), "damaged"),
    "an absolute path": (lambda path: records(path, more=[("/tmp/ran", b"x")]), "damaged"),
    "weights too short": (lambda path: records(path, of_weights(lambda content: content[:8])), "damaged"),
    "weights too long": (lambda path: records(path, of_weights(lambda content: content + bytes(99))), "damaged"),
    "weights lost": (lambda path: records(path, of_weights(lambda content: None)), "damaged"),
    "an unknown order of bytes": (lambda path: records(path, lambda name, content: b"middle" if name.endswith("byteorder") else content), "damaged"),
    "a plain zip": (lambda path: records(path, lambda name, content: None, [("word/document.xml", b"<w/>")]), "is no checkpoint"),
    "an empty zip": (lambda path: records(path, lambda name, content: None), "is no checkpoint"),
    "ONNX": (lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x052.0.1"), "is no checkpoint"),
    "safetensors": (safetensors, "is no checkpoint"),
    "a pickle of bytes without end": (lambda path: records(path, lambda name, content: b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (2**46).to_bytes(6, "little") + b"\x85R."
                                                           if name.endswith("data.pkl") else content), "is not loaded"),
}


@pytest.mark.parametrize("fault, entry", [*((fault, entry) for fault in FILES for entry in ENTRIES[:2]),
                                          *((fault, entry) for fault in ("zero bytes", "half of it", "a flipped byte", "a bomb") for entry in ENTRIES[2:])])
def test_a_file_that_is_no_checkpoint_or_a_damaged_one_is_refused(entries, tmp_path, good, fault, entry):
    spoil, words = FILES[fault]
    path = shutil.copy(tmp_path / "good.pth", tmp_path / "bad.pth")
    spoil(path)
    fate = entries[entry](path)
    assert_refused(fate, "neither", "--overwrite", left="run") if entry == "--resume" else assert_refused(fate, "bad.pth: ", words)
    assert words in fate.out + fate.err


@pytest.mark.slow
def test_a_bomb_of_one_and_a_half_gigabytes_takes_no_memory(entries, tmp_path, good):
    path = shutil.copy(tmp_path / "good.pth", tmp_path / "bad.pth")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("good/data/9", "w", force_zip64=True) as record:
        for _ in range(1500):
            record.write(bytes(10**6))
    assert path.stat().st_size < 2 * 10**6
    memory.forget_peak()
    before = memory.told("VmRSS")
    assert_refused(entries["--model"](path), "bad.pth: holds compressed records")
    assert memory.told("VmHWM") < before + 200 * 2**20


# ---------------------------------------------------------------- weights


def weights(**changes):
    return lambda good: good | {"model_state_dict": good["model_state_dict"] | {name.replace("_", "."): value for name, value in changes.items()}}


def renamed(prefix):
    return lambda good: good | {"model_state_dict": {prefix + name: value for name, value in good["model_state_dict"].items()}}


def as_type(dtype):
    return lambda good: weights(conv_weight=good["model_state_dict"]["conv.weight"].to(dtype))(good)


def quantised(good):
    return weights(conv_weight=torch.quantize_per_tensor(good["model_state_dict"]["conv.weight"], 0.1, 0, torch.qint8))(good)


def nested(depth):
    found = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def laughs(good):
    """A list that names another twice, which names another twice, ...: a few bytes, without end for whoever follows it."""
    found = ["ha"]
    for _ in range(60):
        found = [found, found]
    return good | {"extra": found}


def circular(good):
    good["extra"] = good
    return good


STATES = {  # fault -> how the good checkpoint is changed, what is said
    "of whole numbers": (as_type(torch.int64), "numbers of another kind in conv.weight"),
    "of truth values": (as_type(torch.bool), "numbers of another kind in conv.weight"),
    "complex": (as_type(torch.complex64), "numbers of another kind in conv.weight"),
    "of 8 bits": (as_type(torch.float8_e4m3fn), "numbers of another kind in conv.weight"),
    "too large for float32": (lambda good: weights(conv_bias=torch.tensor([1e300, 0, 0], dtype=torch.float64))(good), "not finite (conv.bias)"),
    "NaN": (weights(conv_bias=torch.tensor([0, float("nan"), 0])), "not finite (conv.bias)"),
    "infinite": (weights(conv_bias=torch.tensor([0, 0, float("-inf")])), "not finite (conv.bias)"),
    "sparse": (weights(conv_bias=torch.ones(3).to_sparse()), "no plain arrays"),
    "quantised": (quantised, "no plain arrays"),
    "without a content": (weights(conv_bias=torch.ones(3, device="meta")), "no plain arrays"),
    "one number, said to be 2^40": (weights(conv_bias=torch.ones(1).expand(2**40)), "no plain arrays"),
    "a number more": (weights(conv_bias=torch.ones(4)), "other shapes of conv.bias"),
    "a single number": (weights(conv_bias=torch.tensor(1.0)), "other shapes of conv.bias"),
    "nothing, 10^9 wide": (weights(conv_bias=torch.zeros(0, 10**9)), "other shapes of conv.bias"),
    "a list": (weights(conv_bias=[1.0, 2.0, 3.0]), "holds no weights"),
    "half of them": (lambda good: good | {"model_state_dict": {"conv.weight": good["model_state_dict"]["conv.weight"]}}, "lacks conv.bias"),
    "one more": (weights(other=torch.ones(3)), "holds, beyond this network, other"),
    "a name of 10^6 letters": (weights(**{"k" * 10**6: torch.ones(3)}), "kkk ...;"),
    "named by numbers": (lambda good: good | {"model_state_dict": {5: torch.ones(3)}}, "holds no weights"),
    "of another network": (lambda good: good | {"model_state_dict": torch.nn.Linear(3, 3).state_dict()}, "lacks conv.bias, conv.weight"),
    "none": (lambda good: good | {"model_state_dict": {}}, "holds no weights"),
    "one tensor": (lambda good: good | {"model_state_dict": torch.ones(3)}, "holds no weights"),
    "twice": (lambda good: good | {"model_state_dict": good["model_state_dict"] | renamed("module.")(good)["model_state_dict"]}, "holds weights twice"),
    "a newer format": (lambda good: good | {"format": 4}, "newer version (format 4, this one reads 3); update"),
    "format true": (lambda good: good | {"format": True}, "no known format (True)"),
    "format 3.0": (lambda good: good | {"format": 3.0}, "no known format (3.0)"),
    "format 2^70": (lambda good: good | {"format": 2**70}, "no known format"),
    "format 3 as text": (lambda good: good | {"format": "3"}, "no known format ('3')"),
    "no format": (lambda good: {key: value for key, value in good.items() if key != "format"}, "lacks its format"),
    "no config": (lambda good: {key: value for key, value in good.items() if key != "config"}, "lacks config"),
    "no normalisation": (lambda good: {key: value for key, value in good.items() if key != "normalization"}, "lacks normalization"),
    "nested deep": (lambda good: good | {"extra": nested(400)}, "values without end"),
    "without end": (laughs, "values without end"),
    "circular": (circular, "values without end"),
    "a list of all": (lambda good: [good], "holds a list"),
    "arrays of numpy": (lambda good: good | {"extra": np.zeros(3)}, "more than tensors"),
    "arrays of objects": (lambda good: good | {"extra": np.array([{}, None], object)}, "more than tensors"),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of how such tensors are made
@pytest.mark.parametrize("fault, entry", [*((fault, "--model") for fault in STATES), *((fault, entry) for fault in ("sparse", "a list", "format 3 as text", "circular") for entry in ENTRIES[1:3])])
def test_weights_that_are_no_networks_are_refused(entries, tmp_path, good, fault, entry):
    change, words = STATES[fault]
    torch.save(change(good), tmp_path / "bad.pth")
    assert_refused(entries[entry](tmp_path / "bad.pth"), "bad.pth: ", words)


@pytest.mark.parametrize("change, words", [(lambda weight: weight.long(), "another kind"), (lambda weight: weight.to(torch.complex64), "another kind"), (lambda weight: weight > 0, "another kind"),
                                           (lambda weight: weight * float("nan"), "not finite"), (lambda weight: weight.double() * 1e300, "not finite")])
def test_a_network_does_not_begin_with_weights_that_are_none(fate, tmp_path, patches, narrow, change, words):
    state = models.build_model("unet-dropout", 3, 3).state_dict()
    first = next(iter(state))
    torch.save({"model_state_dict": state | {first: change(state[first])}}, tmp_path / "bad.pth")
    fate = fate("main_v2", *FLAGS, "--dataset_root", patches, "--save_dir", tmp_path / "run", "--epochs", 1, "--cache", "none", "--init_weights", tmp_path / "bad.pth")
    assert_refused(fate, "bad.pth: ", words, first)


CONFIG = {"model_name": "unet-dropout", "in_channels": 3, "num_classes": 3, "mode": "multiclass", "class_names": "auto"}
OLDER = {"V2": lambda state: {"model_state_dict": state, "config": CONFIG, "performance_metrics": {"best_val_iou": np.float64(0.5)}, "epoch": np.float64(3)},
         "V2, one name of three": lambda state: {"model_state_dict": state, "config": CONFIG | {"class_names": ["x"]}}, "V2, a name thrice": lambda state: {"model_state_dict": state, "config": CONFIG | {"class_names": ["x"] * 3}},
         "V1": lambda state: {"model_state_dict": state, "metadata": {"model": "unet-dropout", "n_channels": 3, "n_classes": 3}}, "bare": lambda state: state}
TOLD = ["--model_name", "unet-dropout", "--in_channels", 3, "--num_classes", 3]


@pytest.mark.parametrize("kind", OLDER)
def test_older_checkpoints_are_normalised_as_they_were_trained(mapped, tmp_path, good, kind):
    """Each tile by its own 99th percentile; the network here is the same for all, and so is the map."""
    torch.save(OLDER[kind](good["model_state_dict"]), tmp_path / "old.pth")
    assert_worked(mapped(tmp_path / "old.pth", *TOLD), "holds no statistics: each tile is divided by its own 99th percentile")
    tile = coded(20, 24).astype("float32")
    tile = np.clip(tile / np.percentile(tile, 99), 0, 1)
    net = Point(3, 3)
    net.load_state_dict(good["model_state_dict"])
    assert (opened(tmp_path / "map.tif") == net(torch.from_numpy(tile)[None]).argmax(1)[0].numpy()).all()


@pytest.mark.parametrize("words, says", [([], "--model_name, --in_channels, --num_classes: "), (TOLD[:4], "--num_classes: "), ([*TOLD, "--in_channels", 4], "no weight is of 4 bands"),
                                         ([*TOLD, "--num_classes", 2], "other shapes of conv.bias"), (["--model_name", "nix", *TOLD[2:]], "--model_name nix")])
def test_what_a_bare_state_dict_does_not_say_must_be_told_and_fit(mapped, tmp_path, good, words, says):
    torch.save(good["model_state_dict"], tmp_path / "old.pth")
    assert_refused(mapped(tmp_path / "old.pth", *words), says)


@pytest.mark.parametrize("change", [renamed("module."), renamed("module.module."), renamed("_orig_mod."), renamed("module._orig_mod."), as_type(torch.float64),
                                    lambda good: good | {"extra": "y" * 10**6, 5: nested(20)},
                                    lambda good: good | {"model_state_dict": {name: torch.nn.Parameter(value) for name, value in good["model_state_dict"].items()}}])
def test_what_others_put_around_the_weights_changes_nothing(mapped, tmp_path, good, change):
    assert_worked(mapped(tmp_path / "good.pth"))
    torch.save(change(good), tmp_path / "other.pth")
    wanted = opened(tmp_path / "map.tif")
    assert_worked(mapped(tmp_path / "other.pth", "--overwrite", may_change="map"))
    assert (opened(tmp_path / "map.tif") == wanted).all()


# ---------------------------------------------------------------- what it says of its network

HOSTILE = [None, True, -1, 0, 10**9, 2**70, -1.5, float("nan"), float("inf"), 1e308, "", "x\0y", "\ud800", "z" * 2000, b"x", [], [None], [-1] * 3, [2**70] * 3, [float("nan")] * 3, ["a", "a", "a"],
           [[], [], []], [0, 0, 0], [1, 2], [1.0] * 4, {}, {"a": 1}, {1: 2}, torch.zeros(3), torch.tensor([]), complex(1, 2), {1, 2}]
MAY = {  # what of that a field may hold: it is true of some checkpoint, or nothing hangs on it
    "class_names": [None], "normalization": [None], "input": [None], "pixel_size": [None], "label_map": [None, {}, {"a": 1}], "calibration": [None, {}],
    "config.mode": [None], "normalization.offset": [[-1] * 3, [0, 0, 0], [2**70] * 3], "normalization.fill": [[-1] * 3, [0, 0, 0], [2**70] * 3],
    "normalization.scale": [[2**70] * 3], "normalization.per_band": [True],
    "normalization.offset.0": [-1, 0, 10**9, 2**70, -1.5], "normalization.fill.0": [-1, 0, 10**9, 2**70, -1.5], "normalization.scale.0": [10**9, 2**70],
    "normalization.low": [-1, 0, 10**9, -1.5], "normalization.high": [0, 10**9, -1, -1.5, float("inf")], "pixel_size.0": [10**9, 2**70],
    "calibration.threshold": [0], "input.of_patch": [[0, 0, 0]], "input.names": [["a", "a", "a"]], "input.names.0": ["", "x\0y", "\ud800"], "label_map.5": [0],
}
FIELDS = ["format", "config", "class_names", "normalization", "input", "pixel_size", "label_map", "trained_on", "calibration",
          *(f"config.{key}" for key in ("model_name", "mode", "in_channels", "num_classes")),
          *(f"normalization.{key}" for key in ("kind", "offset", "scale", "fill", "low", "high", "percent", "per_band", "offset.0", "scale.0", "fill.0")),
          *(f"input.{key}" for key in ("names", "of_scene", "scene_count", "of_patch", "names.0", "of_scene.0")),
          *(f"calibration.{key}" for key in ("temperature", "threshold", "split")), "class_names.0", "pixel_size.0", "pixel_size.2", "label_map.5"]


def alike(one, two):
    return type(one) is type(two) and repr(one) == repr(two)


def put(whole, field, value):
    """The same with another value in a field such as `normalization.scale.0`."""
    key, _, rest = field.partition(".")
    key = int(key) if isinstance(whole, list) else key
    copy = list(whole) if isinstance(whole, list) else dict(whole)
    copy[key] = put(copy[key], rest, value) if rest else value
    return copy


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_held_against_what_it_may_say(tmp_path, monkeypatch, good, point_models, field):
    wrong = []
    for value in HOSTILE:
        monkeypatch.setattr(checkpoint, "open_file", lambda *told, value=value: put(good, field, value))
        try:
            network.load(tmp_path / "good.pth", PredictionConfig(device="cpu"), say=lambda line: None)
        except SetupError as error:
            refused, text = True, str(error)
            assert "good.pth" in text and "\n" not in text and len(text) < 900 and ("; " in text or ". " in text), text
        else:
            refused = False
        if refused == any(alike(value, one) for one in MAY.get(field, [])):
            wrong.append((value, refused))
    assert not wrong
