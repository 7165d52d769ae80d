"""A folder of patches on disk: where its splits lie, and which label belongs to which image."""

import csv
from pathlib import Path

from eoseg import files
from eoseg.errors import SetupError, listing

SUFFIXES = (".tif", ".tiff")


def find_root(dataset_root, subdir="Patch"):
    """The folder that holds the splits: `dataset_root/subdir` where that is one, else `dataset_root`.

    Raises:
        SetupError: neither holds a folder train/images.
    """
    root = Path(dataset_root)
    for folder in (root / subdir, root):
        if (folder / "train" / "images").is_dir():
            return folder
    raise SetupError(f"--dataset_root {root}: holds neither {subdir}/train/images nor train/images; "
                     "name the --output folder of Patch_extraction_v2.py.")


def find_pairs(root, split, images="images"):
    """Images and labels of one split, in order of name; empty when the split has no folder.

    Args:
        images: the folder of images beside `labels`; several sensors have one each.
    Returns:
        list of (image path, label path).
    Raises:
        SetupError: an image without a label, or the other way round.
    """
    folder = Path(root) / split
    if not (folder / images).is_dir():
        return []
    if not (folder / "labels").is_dir():
        raise SetupError(f"{folder / 'labels'}: no such folder; the labels of {folder / images} belong there, under the images' names.")
    shown, labels = (
        {path.name: path for path in sorted((folder / kind).glob("*")) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")}
        for kind in (images, "labels")
    )
    lonely = sorted(shown.keys() ^ labels.keys())
    if lonely:
        raise SetupError(f"{folder}: {listing(lonely)}: image without a label of the same name, or label without an image; complete or remove them.")
    return [(shown[name], labels[name]) for name in shown]


def image_folder(root, split, name=None):
    """The folder of images beside labels/ in a split: images, or of several sensors images_NAME (the first one's where no name is given).

    Raises:
        SetupError: no such sensor.
    """
    folders = list(load_metadata(root, required=False).get("modalities", {})) or ["images"]
    wanted = f"images_{name}" if name else folders[0]
    if wanted not in folders and not (Path(root) / split / wanted).is_dir():
        raise SetupError(f"--modality {name}: {root} holds {listing(folders)}; name one of them without images_.")
    return wanted


def read_rows(root):
    """The lines of patches.csv as dicts of text; [] where there is none."""
    path = Path(root) / "patches.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def read_places(root):
    """Which place each patch shows: patch name -> place, from patches.csv; {} where there is none."""
    return {row["patch"]: row["place"] for row in read_rows(root) if row.get("patch") and row.get("place")}


def load_metadata(root, required=True):
    """What Patch_extraction_v2.py wrote about the patches; {} when it is missing and not `required`."""
    path = Path(root) / "patch_metadata.json"
    if not path.exists() and required:
        raise SetupError(f"{path}: no such file; name the --output folder of an extraction.")
    metadata = files.read_json(path) if path.exists() else {}
    metadata = metadata if isinstance(metadata, dict) else {}
    return metadata | {key: {} for key in ("bands", "settings") if not isinstance(metadata.get(key, {}), dict)}  # another program's
