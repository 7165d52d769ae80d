"""Checkpoints: whole or absent, never code, and older ones too."""

import builtins
import functools
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from tinypatches import REAL

from eoseg import checkpoint, encoders, models, network
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError

BANDS = {"of_patch": [0, 1], "names": ["red", "nir"], "of_scene": [1, 4], "scene_count": 4}
PARTS = {"config": {"model_name": "linknet", "learning_rate": 5e-4, "bands": None}, "performance_metrics": {"best_val_iou": 0.5, "per_class_iou": {"water": float("nan")}},
         "normalization": {"kind": "none"}, "class_names": ["water", "land"], "input": BANDS}
CONFIG = {"model_name": REAL["model_name"], "encoder_name": REAL["encoder_name"], "in_channels": 2, "num_classes": 3, "mode": "multiclass"}
TORCH_ADVICE = ("weights_only=False", "weights_only` to", "safe_globals", "trusted", "Unpickl")


def weights(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).state_dict()


def refused(path, match=None):
    """The one line `path` is refused with."""
    with pytest.raises(SetupError, match=match) as caught:
        checkpoint.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and not any(advice in text for advice in TORCH_ADVICE)
    return text


def rewritten(source, target, record, function, compress=zipfile.ZIP_STORED):
    """Copy a zip with the bytes of the records that end in `record` changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compress) as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, function(content) if info.filename.endswith(record) else content)
    return target


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "net.pth", model_state_dict=weights(), **PARTS)
    return tmp_path / "net.pth"


def test_what_is_saved_comes_back_and_opens_with_weights_only(saved):
    assert torch.load(saved, weights_only=True)["config"] == PARTS["config"]
    found = checkpoint.load(saved)
    assert found["input"] == BANDS and found["class_names"] == ["water", "land"]
    assert all(torch.equal(value, weights()[name]) for name, value in found["model_state_dict"].items())
    assert [path.name for path in saved.parent.iterdir()] == ["net.pth"]


def test_a_network_that_diverged_is_never_saved_and_the_older_file_stays(saved):
    before = saved.read_bytes()
    for name in ("0.weight", "1.running_var"):
        broken = weights()
        broken[name][0] = float("inf")
        with pytest.raises(SetupError, match=f"{name}.*--learning_rate"):
            checkpoint.save(saved, model_state_dict=broken, **PARTS)
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


# ---------------------------------------------------------------- strangers' files


class Payload:
    """Pickles as a call: what unpickling would run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(victim):
    mark = f"open({str(victim)!r}, 'w').close()"
    yield "system", Payload(os.system, f"touch {victim}")
    yield "eval", Payload(builtins.eval, mark)
    yield "exec", Payload(builtins.exec, mark)
    yield "popen", Payload(subprocess.Popen, ["touch", str(victim)])
    yield "output", Payload(subprocess.check_output, ["touch", str(victim)])
    yield "partial", Payload(functools.partial(os.system, f"touch {victim}"))
    nested = victim.with_name("nested.pth")
    torch.save(Payload(os.system, f"touch {victim}"), nested)
    yield "nested", Payload(functools.partial(torch.load, str(nested), weights_only=False))


@pytest.mark.parametrize("kind", ["system", "eval", "exec", "popen", "output", "partial", "nested"])
@pytest.mark.parametrize("place", ["whole", "weights", "config", "legacy"])
def test_a_pickle_that_runs_code_does_not_run(tmp_path, kind, place):
    victim = tmp_path / "ran"
    payload = dict(payloads(victim))[kind]
    whole = {"whole": payload, "weights": {"model_state_dict": {"a": payload}}, "config": {"model_state_dict": weights(), "config": {"model_name": payload}}}
    path = tmp_path / "evil.pth"
    torch.save(whole.get(place, payload), path, _use_new_zipfile_serialization=place != "legacy")
    refused(path, "older than 1.6" if place == "legacy" else "more than tensors and plain values")
    with pytest.raises(SetupError):
        encoders.file_state(path)  # --encoder_weights takes the older format, but no code either
    assert not victim.exists()


def test_plain_pickles_and_arrays_are_refused(tmp_path):
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(os.system, f"touch {tmp_path / 'ran'}")))
    refused(tmp_path / "plain.pth", "no checkpoint")
    torch.save({"model_state_dict": {"a": np.zeros(3)}}, tmp_path / "array.pth")
    refused(tmp_path / "array.pth", "more than tensors")
    assert not (tmp_path / "ran").exists()


def test_compressed_records_are_not_even_opened(saved, tmp_path, monkeypatch):
    bomb = rewritten(saved, tmp_path / "bomb.pth", "data/0", lambda content: bytes(10**7), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**5
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    refused(bomb, "compressed")


# ---------------------------------------------------------------- damage


def damaged(path, good, start, step):
    """What loading says of `path` with one byte flipped, for every `step`-th byte: it loads the very same, or is refused."""
    whole, outcomes = checkpoint.load(path), {"same": 0, "refused": 0}
    for place in range(start, len(good), step):
        bad = bytearray(good)
        bad[place] ^= (0x01, 0x10, 0x80, 0xFF)[place // step % 4]
        path.write_bytes(bad)
        try:
            found = checkpoint.load(path)
        except SetupError as error:
            assert str(error).startswith(f"{path}: ")
            outcomes["refused"] += 1
            continue
        assert str(found) == str(whole), f"byte {place} changed what was loaded"
        outcomes["same"] += 1  # paddings, dates
    return outcomes


def test_a_flipped_byte_is_refused_or_changes_nothing(saved):
    good = saved.read_bytes()
    assert damaged(saved, good, 0, 11)["refused"] > 100


@pytest.mark.slow
def test_every_byte_of_the_zip_directory_is_safe_to_flip_in_any_bit(saved):
    good = saved.read_bytes()
    whole = str(checkpoint.load(saved))
    for place in range(good.index(b"PK\1\2"), len(good)):
        for bit in range(0, 8, 2) if place % 2 else range(1, 8, 2):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            saved.write_bytes(bad)
            try:
                assert str(checkpoint.load(saved)) == whole, (place, bit)
            except SetupError:
                pass


def test_a_flipped_weight_names_the_record(saved):
    good = bytearray(saved.read_bytes())
    good[good.index(weights()["0.weight"].numpy().tobytes())] ^= 1
    saved.write_bytes(good)
    assert "data/0 fails its checksum" in refused(saved)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_one_line(saved, share):
    saved.write_bytes(saved.read_bytes()[: int(saved.stat().st_size * share)])
    refused(saved, "damaged or truncated")


def test_files_that_are_none_are_named_with_what_to_do(tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Sign in</html>")
    refused(tmp_path / "page.pth", "is no checkpoint")
    refused(tmp_path / "absent.pth", "no such checkpoint; train one")
    refused(tmp_path, "is not a file")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds a list")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "holds no weights")
    torch.save({"model_state_dict": {"a": "text"}}, tmp_path / "text.pth")
    refused(tmp_path / "text.pth", "holds no weights")
    with zipfile.ZipFile(tmp_path / "office.pth", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    refused(tmp_path / "office.pth", "is damaged")


def test_a_newer_format_and_an_incomplete_one_are_said(tmp_path):
    torch.save({"format": 99, "model_state_dict": weights(), **PARTS}, tmp_path / "new.pth")
    refused(tmp_path / "new.pth", "newer version .format 99, this one reads 3.; update")
    torch.save({"format": 3, "model_state_dict": weights(), "config": {}}, tmp_path / "half.pth")
    refused(tmp_path / "half.pth", "lacks class_names, input, normalization")  # never taken for the older normalisation


# ---------------------------------------------------------------- fitting the network


@pytest.mark.parametrize("change, words", [
    (lambda state: state.pop("0.bias"), "lacks 0.bias"),
    (lambda state: state.update(extra=torch.zeros(1)), "holds, beyond this network, extra"),
    (lambda state: state.update({"0.weight": torch.zeros(5, 2, 3, 3)}), "has other shapes of 0.weight"),
    (lambda state: state.update({"0.weight": "text"}), "has other shapes of 0.weight"),
    (lambda state: state["1.bias"].fill_(float("nan")), "not finite (1.bias)"),
])
def test_weights_that_do_not_fit_change_nothing_and_name_what_is_wrong(change, words):
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, weights(1)
    change(state)
    with pytest.raises(SetupError, match=re.escape(words)):
        checkpoint.load_weights(net, state, "net.pth")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---------------------------------------------------------------- the older system's


@pytest.fixture(scope="module")
def trained():
    """A network with 2 bands and 3 classes, in eval mode."""
    torch.manual_seed(1)
    return models.build_model(REAL["model_name"], 2, 3, REAL["encoder_name"]).eval()


def logits(path, **flags):
    found = network.load(path, PredictionConfig(device="cpu", **flags), say=lambda line: None)
    with torch.no_grad():
        return found, found.net(PIXELS)


PIXELS = torch.linspace(0, 1, 2 * 32 * 32).view(1, 2, 32, 32)


@pytest.mark.parametrize("module", ["", "module."])
@pytest.mark.parametrize("kind", ["ours", "v2", "v1", "bare"])
def test_every_kind_of_checkpoint_gives_the_same_network(tmp_path, trained, kind, module):
    state, path = {module + name: value for name, value in trained.state_dict().items()}, tmp_path / "net.pth"
    scores = {"best_val_iou": np.float64(0.625), "per_class_iou": {"a": np.float64(0.5)}}
    whole = {
        "ours": {"format": 3, "model_state_dict": state, **PARTS, "config": CONFIG, "normalization": None, "input": None},
        "v2": {"model_state_dict": state, "config": CONFIG, "performance_metrics": scores, "epoch": np.float64(3)},
        "v1": {"model_state_dict": state, "metadata": {"model": "linknet", "encoder": REAL["encoder_name"], "n_channels": 2, "n_classes": 3}},
        "bare": state,
    }
    torch.save(whole[kind], path)
    flags = {"model_name": "linknet", "encoder_name": REAL["encoder_name"], "in_channels": 2, "num_classes": 3} if kind == "bare" else {}
    found, out = logits(path, **flags)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in found.net.state_dict().items())
    torch.testing.assert_close(out, trained(PIXELS).detach(), atol=1e-4, rtol=0)
    assert found.normalizer.kind == "patch_percentile" and found.normalizer.percent == 99
    if kind == "v2":
        kept = checkpoint.load(path)["performance_metrics"]
        assert kept["best_val_iou"] == 0.625 and type(kept["per_class_iou"]["a"]) is float


def test_scores_as_numpy_1_wrote_them_are_read(tmp_path):
    torch.save({"model_state_dict": weights(), "performance_metrics": {"best_val_iou": np.float64(0.625)}}, tmp_path / "two.pth")
    assert b"numpy._core.multiarray" in zipfile.ZipFile(tmp_path / "two.pth").read("two/data.pkl")
    older = rewritten(tmp_path / "two.pth", tmp_path / "one.pth", "data.pkl", lambda code: code.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert checkpoint.load(older)["performance_metrics"] == {"best_val_iou": 0.625}


def test_a_checkpoint_of_another_architecture_is_one_line(script, tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "net.pth")
    words = ["--model", tmp_path / "net.pth", "--input", "scene.tif", "--output", tmp_path / "map.tif", "--encoder_name", REAL["encoder_name"], "--num_classes", 3]
    status, _, said = script("Predict_large_image_v2", *words, "--model_name", "fpn", "--in_channels", 2)
    assert status == 2 and said.splitlines()[-1].startswith(f"error: {tmp_path / 'net.pth'}: does not fit the network: lacks decoder.")
    status, _, said = script("Predict_large_image_v2", *words, "--model_name", "linknet", "--in_channels", 4)
    assert status == 2 and "has other shapes of encoder.model.conv_stem.weight" in said.splitlines()[-1]


@pytest.mark.slow
def test_no_code_runs_through_the_prediction_script(tmp_path):
    torch.save({"model_state_dict": Payload(os.system, f"touch {tmp_path / 'ran'}")}, tmp_path / "evil.pth")
    words = ["--model", tmp_path / "evil.pth", "--input", "scene.tif", "--output", tmp_path / "map.tif", "--model_name", "unet"]
    done = subprocess.run([sys.executable, "Predict_large_image_v2.py", *words], capture_output=True, text=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- which file is meant


def test_a_folder_or_the_older_name_means_the_one_checkpoint_of_that_kind(tmp_path):
    for name in ("unet_final.pth", "unet_best_iou.pth", "fpn_best_iou.pth"):
        (tmp_path / name).touch()
    assert checkpoint.find(tmp_path / "unet_best_iou.pth") == (tmp_path / "unet_best_iou.pth", None)
    for wish in (tmp_path, tmp_path / "model_final.pth"):
        path, note = checkpoint.find(wish)
        assert path == tmp_path / "unet_final.pth" and str(path) in note
    with pytest.raises(SetupError, match="could be fpn_best_iou.pth, unet_best_iou.pth; name one"):
        checkpoint.find(tmp_path / "model_best_iou.pth")
    assert checkpoint.find(tmp_path / "model_best_loss.pth") == (tmp_path / "model_best_loss.pth", None)


def test_a_full_disk_under_torchs_writer_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SetupError, match="a.pth: cannot be written .*is the disk full"):
        checkpoint.save(tmp_path / "a.pth", model_state_dict={})
    assert not list(tmp_path.iterdir())
