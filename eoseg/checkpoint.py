"""Checkpoints: whole or absent, plain values only, never code. The only room that writes or opens them.

A checkpoint of this project is a dict: format, model_state_dict, config (every TrainingConfig field), performance_metrics,
normalization (`Normalizer.to_dict`), statistics (of the training bands), class_names, label_map, input (which bands of a
scene the network takes), and, in <model>_last.pth, the state of the run.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from eoseg import claims, files
from eoseg.errors import SetupError, listing

FORMAT = 3
FOLDER = 0x10  # attribute of a zip record; torch would leave the weights of such a one as memory happened to be
ZIP = b"PK\3\4"  # how files begin that torch writes
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # how files begin that torch wrote before 1.6: a bare pickle, no zip
KEYS = {"model_state_dict", "config", "performance_metrics", "normalization", "class_names", "input"}  # every checkpoint of ours has these
PARTS, DEEPEST = 10**6, 100  # values in a checkpoint, and dicts and lists around one: more is no checkpoint, and would hold us up
RECORDS = 10**5  # of the zip
FLOATS, WHOLES = (torch.float32, torch.float64, torch.float16, torch.bfloat16), (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # of weights
WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")  # what DataParallel and torch.compile put before a weight's name
OLD_NAMES = {"model": "model_name", "encoder": "encoder_name", "classes": "num_classes", "n_classes": "num_classes", "n_channels": "in_channels"}


def save(path, keep=None, **parts):
    """Write `parts` (tensors, numbers, text, lists, dicts) so that `path` is never half a file.

    Args:
        keep: where the checkpoint that stands at `path` moves to.
    Raises:
        SetupError: a weight is not finite: such a network is never saved.
    """
    broken = [name for state in (parts["model_state_dict"], parts.get("run", {}).get("live") or {}) for name, value in state.items() if not finite(value)]
    if broken:
        raise SetupError(f"{path}: not written, because weights are not finite ({listing(broken, 3)}): the run has diverged; lower --learning_rate.")
    with files.replacing(path, check=check_records, keep=keep) as part:
        try:
            torch.save({"format": FORMAT, **parts}, part)
        except RuntimeError as error:  # torch's own writer, over a full disk
            raise SetupError(f"{path}: cannot be written ({' '.join(str(error).split())[:80]}); is the disk full? Free some space and run again.") from None


def finite(value):
    return not (torch.is_tensor(value) and value.is_floating_point()) or bool(torch.isfinite(value).all())


def load(path, device="cpu"):
    """Read what `save` wrote, or a checkpoint of the older system, as a dict with this project's keys.

    Raises:
        SetupError: as `open_file`; or it is no segmentation network, or of a newer format.
    """
    saved = open_file(path, device)
    ours = "format" in saved
    if ours:
        check_format(saved, path)
    saved = plain(saved) if ours else converted(saved, path)
    saved["model_state_dict"] = unwrapped(saved["model_state_dict"], path)
    claims.check(saved, path)
    return saved


def check_format(saved, path):
    """Is it a whole checkpoint of a format that this version knows?"""
    number = saved["format"]
    if not claims.whole(number, 1, 10**6):
        raise SetupError(f"{path}: is of no known format ({claims.shown(number)}); get it again from where it was trained.")
    if number > FORMAT:
        raise SetupError(f"{path}: was written by a newer version (format {number}, this one reads {FORMAT}); update the program.")
    lacking = sorted(KEYS - saved.keys())
    if lacking:
        raise SetupError(f"{path}: lacks {listing(lacking)}, and is no whole checkpoint; get it again from where it was trained.")


def unwrapped(state, path):
    """Weights under the names that their network gave them.

    Raises:
        SetupError: it is no dict of tensors, or holds a weight twice.
    """
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) and torch.is_tensor(value) for name, value in state.items()):
        raise SetupError(f"{path}: holds no weights (model_state_dict); name a checkpoint of a segmentation network.")
    found = {WRAPPED.sub("", name): value for name, value in state.items()}
    if len(found) < len(state):
        raise SetupError(f"{path}: holds weights twice, with and without `module.` before their names; save those of one network.")
    return found


def load_state(path):
    """The weights in any file of tensors: a bare state dict, or one within a checkpoint; published ones may be of before torch 1.6."""
    saved = open_file(path, legacy=True)
    found = next((saved[key] for key in ("model_state_dict", "state_dict", "model") if isinstance(saved.get(key), dict)), saved)
    return {name: value for name, value in found.items() if torch.is_tensor(value)}


def open_file(path, device="cpu", legacy=False):
    """Open a file of torch's. One from a stranger cannot run code here: only plain values are taken.

    Args:
        legacy: take files without checksums too, as torch wrote them before 1.6.
    Raises:
        SetupError: missing, damaged, compressed, or holding anything but plain values and tensors.
    """
    path = Path(path)
    if not path.exists():
        raise SetupError(f"{path}: no such checkpoint; train one with main_v2.py, or check the path.")
    if not path.is_file():
        raise SetupError(f"{path}: is not a file; name one checkpoint.")
    old = begins_with(path, LEGACY)
    if old and not legacy:
        raise SetupError(f"{path}: was written by a torch older than 1.6; open it with weights_only=True and torch.save it anew.")
    if not old:
        check_records(path)
    try:
        with torch.serialization.safe_globals(numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch's own message advises unsafe loading: it is not shown
        kind = "holds more than tensors and plain values" if isinstance(error, pickle.UnpicklingError) else "is no checkpoint, or is damaged"
        raise SetupError(f"{path}: {kind}, and is not loaded; get it again from where it was trained.") from None
    if not isinstance(saved, dict):
        raise SetupError(f"{path}: is no checkpoint (it holds a {type(saved).__name__}); name a .pth written by main_v2.py.")
    if not few_and_plain(saved, path.stat().st_size):
        raise SetupError(f"{path}: holds what no checkpoint does (values without end, or tensors that are no plain arrays); it is not used.")
    return saved


def few_and_plain(saved, size):
    """Are the values few, not nested too deep, and every tensor a dense array that takes no more bytes than the file (`size`)?

    A few bytes of pickle can name one list twice in the next, and that twice again: whoever followed it would never come back.
    """
    todo, count = [(saved, 0)], 0
    while todo:
        value, depth = todo.pop()
        if torch.is_tensor(value) and (value.layout != torch.strided or value.is_quantized or value.is_meta or value.numel() * value.element_size() > size):
            return False
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        count += len(parts)
        if depth > DEEPEST or count > PARTS:
            return False
        todo += [(part, depth + 1) for part in parts]
    return True


def begins_with(path, start):
    with open(path, "rb") as f:
        return f.read(len(start)) == start


def check_records(path):
    """Before anything is unpickled: a zip, of uncompressed records no larger than the file, each with its checksum.

    torch checks none of this: a flipped byte would load in silence.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if len(records) > RECORDS or len(set(archive.namelist())) < len(records) or not begins_with(path, ZIP):
                raise zipfile.BadZipFile  # of two of one name, torch would read the one that is not looked at
            if any(record.compress_type != zipfile.ZIP_STORED for record in records) or sum(r.file_size for r in records) > Path(path).stat().st_size:
                raise SetupError(f"{path}: holds compressed records, which no checkpoint does; it is not opened.")
            bad = next((r.filename for r in records if r.external_attr & FOLDER), None) or archive.testzip()
    except PermissionError:
        raise
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError):  # what zipfile raises over a damaged directory
        raise SetupError(f"{path}: is no checkpoint, or is damaged or truncated; copy it again.") from None
    if bad:
        raise SetupError(f"{path}: is damaged (record {bad} fails its checksum); copy it again.")


def numpy_scalars():
    """What older checkpoints hold beside plain values: numpy.float64 numbers, under numpy 2's and numpy 1's names."""
    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar
    return [(scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]


def plain(value):
    """The same with numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def converted(saved, path):
    """An older checkpoint (V2: config; V1: metadata; or bare weights) under this project's keys.

    `normalization` is None: such networks were trained on patches divided by their own 99th percentile.
    """
    if {"normalization", "input"} & saved.keys():
        raise SetupError(f"{path}: lacks its format, and is no whole checkpoint; get it again from where it was trained.")
    state = saved.get("model_state_dict", saved)
    told = saved.get("config") or saved.get("metadata")
    config = plain(told) if isinstance(told, dict) else {}
    for old, new in OLD_NAMES.items():
        if old in config:
            config.setdefault(new, config[old])
    names = config.get("class_names")
    return {
        "format": 0,
        "model_state_dict": state,
        "config": config,
        "performance_metrics": plain(saved.get("performance_metrics", {})),
        "normalization": None,
        "class_names": list(dict.fromkeys(map(str, names))) if isinstance(names, list) else None,  # may say "auto"
        "input": None,
    }


def load_weights(net, state, path):
    """Put `state` into `net`, every key of it.

    Raises:
        SetupError: as `check_fit`; or a weight is not finite.
    """
    own = net.state_dict()
    check_fit(own, state, path)
    broken = [name for name, value in state.items() if not finite(value.to(own[name].dtype))]
    if broken:
        raise SetupError(f"{path}: holds weights that are not finite ({listing(broken, 3)}); the run that made it had diverged, train it again.")
    net.load_state_dict(state, strict=True)


def check_fit(own, state, path):
    """Raises SetupError when keys of `state` are missing, left over, or of another shape or kind of number than those of `own`, a network's."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shared = sorted(own.keys() & state.keys())
    shapes = [name for name in shared if own[name].shape != getattr(state[name], "shape", None)]
    kinds = [name for name in shared if getattr(state[name], "dtype", None) not in (FLOATS if own[name].is_floating_point() else WHOLES)]
    for names, what in ((missing, "lacks"), (extra, "holds, beyond this network,"), (shapes, "has other shapes of"), (kinds, "has numbers of another kind in")):
        if names:
            raise SetupError(f"{path}: does not fit the network: {what} {listing(map(claims.brief, names), 3)}; check --model_name, --encoder_name, --in_channels and --num_classes.")


def find(path):
    """The checkpoint a path means: itself, `DIR/model_<kind>.pth` of older READMEs, or DIR alone (its final one).

    Returns:
        the path, and a line that says what was chosen (None when the path was exact).
    """
    path = Path(path)
    if path.is_file():
        return path, None
    kind, folder = ("final", path) if path.is_dir() else (path.stem.removeprefix("model_"), path.parent)
    if path.is_dir() or path.name.startswith("model_"):
        found = sorted(folder.glob(f"*_{kind}.pth"))
        if len(found) == 1:
            return found[0], f"note: --model {path}: using {found[0]}"
        if found:
            raise SetupError(f"--model {path}: could be {listing([f.name for f in found])}; name one of them.")
    return path, None
