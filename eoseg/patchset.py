"""A folder of patches on disk: where its splits lie, which label belongs to which image, and what is known of files that have not changed."""

import contextlib
import csv
import functools
import hashlib
import json
import os
from pathlib import Path

from eoseg import files
from eoseg.errors import SetupError, listing

SUFFIXES = (".tif", ".tiff")


def find_root(dataset_root, subdir="Patch", split="train", flag="--dataset_root"):
    """The folder that holds the splits: `dataset_root/subdir` where that is one, else `dataset_root`.

    Args:
        split: that it must hold. flag: to be named where neither does.
    Raises:
        SetupError: neither holds a folder <split>/images.
    """
    root = Path(dataset_root)
    for folder in (root / subdir, root):
        if (folder / split / "images").is_dir():
            return folder
    if flag == "--split" and root.is_dir():
        there = sorted({path.parent.name for folder in (root / subdir, root) for path in folder.glob("*/images")})
        raise SetupError(f"--split {split}: {root} holds no {split}/images; " + (f"there is {listing(there, 12)}." if there else "name the --output folder of Patch_extraction_v2.py with --dataset_root."))
    raise SetupError(f"--dataset_root {root}: holds neither {subdir}/{split}/images nor {split}/images; "
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
    pairs, lonely = match_pairs(root, split, images)
    if lonely:
        names = listing(sorted({path.name for path in lonely}))
        raise SetupError(f"{Path(root) / split}: {names}: image without a label of the same name, or label without an image; complete or remove them.")
    return pairs


def match_splits(root, splits, images="images"):
    """Pairs of several splits, a dict split -> list, and a line for each file that lacks its partner."""
    found = {split: match_pairs(root, split, images) for split in splits}
    lonely = [path for _, paths in found.values() for path in paths]
    return {split: pairs for split, (pairs, _) in found.items()}, [lonely_line(path, images) for path in lonely]


def lonely_line(path, images="images"):
    """What is to be said of a file without its partner."""
    kind, lacks, place = ("label", "an image", images) if path.parent.name == "labels" else ("image", "a label", "labels")
    return f"{path}: {kind} without {lacks} of the same name in {place}/; add that, or remove this {kind}."


def match_pairs(root, split, images="images"):
    """What `find_pairs` finds, and the paths of the files that lack their partner.

    Raises:
        SetupError: images, but no folder of labels.
    """
    folder = Path(root) / split
    shown, labels = folder / images, folder / "labels"
    if not shown.is_dir():
        return [], []
    if not labels.is_dir():
        raise SetupError(f"{labels}: no such folder; the labels of {shown} belong there, under the images' names.")
    named, labelled = rasters_in(shown), rasters_in(labels)
    lonely = [shown / name for name in sorted(named - labelled)] + [labels / name for name in sorted(labelled - named)]
    return [(shown / name, labels / name) for name in sorted(named & labelled)], lonely


def rasters_in(folder):
    """The names of the rasters in a folder, a set."""
    return {name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and not name.startswith(".")}


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


def read_rows(root, columns=()):
    """The lines of patches.csv as dicts of text; [] where there is none.

    Args:
        columns: that it must have.
    Raises:
        SetupError: it is no such table, or was cut short.
    """
    path = Path(root) / "patches.csv"
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
    except (ValueError, csv.Error) as error:
        raise SetupError(f"{path}: is not readable as a table ({error}); restore it, or extract the patches again.") from None
    if any(None in row or None in row.values() or not row.keys() >= set(columns) for row in rows):
        raise SetupError(f"{path}: lacks columns in some of its lines; it is truncated or another program's, restore it or extract the patches again.")
    return rows


def load_metadata(root, required=True):
    """What Patch_extraction_v2.py wrote about the patches; {} when it is missing and not `required`."""
    path = Path(root) / "patch_metadata.json"
    if not path.exists() and required:
        raise SetupError(f"{path}: no such file; name the --output folder of an extraction.")
    metadata = files.read_json(path) if path.exists() else {}
    metadata = metadata if isinstance(metadata, dict) else {}
    return metadata | {key: {} for key in ("bands", "settings") if not isinstance(metadata.get(key, {}), dict)}  # another program's


class Memory:
    """Facts about pairs, kept in a file; a pair is forgotten when the size or the time of change of one of its files is another.

    Args:
        folder: that holds the file, and to which names are relative: both may move together; None: nothing is remembered.
        key: of all that the facts hang on.
    """

    def __init__(self, folder, pairs, key):
        self.path = None if folder is None else Path(folder) / f"facts-{key}.json"
        self.root, self.stamps, self.names, self.entries = None, {}, {}, {}
        if not self.path:
            return
        self.root, self.stamps = self.path.parent, stamps_of(pairs)
        self.names = {image: name_within(image, self.root) for image, _ in pairs if image in self.stamps}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # absent, damaged, or another program's
            text = self.path.read_text(encoding="utf-8")
            found = json.loads(text)["pairs"]
            self.entries = found if text_of(found) == text else {}

    def recall(self):
        """image -> list of facts, of pairs that are as they were."""
        known = {image: self.entries[name] for image, name in self.names.items() if name in self.entries}
        return {image: entry[4:] for image, entry in known.items() if entry[:4] == self.stamps[image]}

    def keep(self, facts):
        """Remember these, image -> plain values, and what is known of other pairs that still exist. A folder that cannot be written is not used."""
        if not self.path:
            return
        ours = set(self.names.values())
        entries = {name: entry for name, entry in self.entries.items() if name not in ours and (self.root / name).exists()}
        entries |= {self.names[image]: [*self.stamps[image], *found] for image, found in facts.items() if image in self.names}
        if entries != self.entries:
            with contextlib.suppress(OSError):
                files.write_text(self.path, text_of(entries))


def name_within(path, folder):
    """A file as seen from `folder`, so that both may move together."""
    parent, name = os.path.split(path)
    return f"{way(parent or '.', str(folder))}/{name}"


@functools.cache
def way(parent, folder):
    try:
        return Path(os.path.relpath(parent, folder)).as_posix()
    except ValueError:  # another drive, on Windows
        return Path(os.path.abspath(parent)).as_posix()


def text_of(entries):
    """A file of facts: a checksum, and name -> sizes, times and facts of each pair."""
    body = json.dumps(entries, separators=(",", ":"))
    return f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "pairs": {body}}}\n'


def stamps_of(pairs):
    """Size and time of change (ns) of image and label: image -> four numbers; no entry where one of them is not there."""
    seen = {}
    for folder in {os.path.dirname(path) for pair in pairs for path in pair}:  # twice as quick as asking for each file by its path
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                try:
                    state = entry.stat()
                except OSError:  # a link to nowhere
                    continue
                seen[entry.path if folder else entry.name] = [state.st_size, state.st_mtime_ns]
    both = [(image, seen.get(os.fspath(image)), seen.get(os.fspath(label))) for image, label in pairs]
    return {image: one + two for image, one, two in both if one and two}
