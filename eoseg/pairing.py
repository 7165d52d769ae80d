"""Which images, which label and which grid belong together."""

import re
from pathlib import Path
from typing import NamedTuple, Optional

from eoseg.errors import SetupError, listing

LONGEST = 100  # bytes of an id: with that of a cell it must fit a file name
GRID_PATTERN = r"^[Gg]rid[_-]?(\d+)\.(shp|gpkg|geojson)$"


class Pair(NamedTuple):
    """A scene, its label, and the grid that cuts them; `name` is empty for a single scene.

    modalities: (name, path) of every image, where several sensors or dates show the place; `image` is the first of them.
    """

    name: str
    image: str
    label: str
    grid: Optional[str]
    modalities: tuple = ()

    def patch_name(self, cell):
        return f"img{self.name}_patch_{cell.id}.tif" if self.name else f"patch_{cell.id}.tif"

    def images(self):
        """dict of the folder for its patches -> path of the image."""
        return {f"images_{name}": path for name, path in self.modalities} or {"images": self.image}

    def inputs(self):
        """Paths of all that is read for this pair."""
        return [*self.images().values(), self.label, *([self.grid] if self.grid else [])]


def find_pairs(folder, patterns, label_pattern, grid=None, own_grids=False, recursive=False):
    """Pair the images and labels of a folder by the id that their names hold.

    Args:
        patterns: dict of a flag or `--modality NAME` -> regular expression for images; the first one's lead.
        label_pattern: that of the labels. A pattern's one group is the id; one that holds a `/` is matched with the path
            under `folder`, others with the file name.
        grid: one for all. own_grids: each pair has a `grid_ID.shp|gpkg|geojson` beside it.
    Returns:
        pairs in order of id, and the names of files without a partner.
    Raises:
        SetupError: nothing matches, an id twice or empty, or a grid is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SetupError(f"--data_dir {folder}: no such folder; check the path.")
    recursive = recursive or any("/" in pattern for pattern in (*patterns.values(), label_pattern))
    files = sorted(path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file())
    images = {flag: matching(files, folder, pattern, flag) for flag, pattern in patterns.items()}
    labels = matching(files, folder, label_pattern, "--label_pattern")
    grids = matching(files, folder, GRID_PATTERN, "--use_per_image_grid") if own_grids else {}
    groups = [*images.values(), labels]
    whole = set.intersection(*map(set, groups))
    lonely = [path.name for group in groups for key, path in group.items() if key not in whole]
    ids = sorted(whole, key=lambda key: (len(key.lstrip("0")), key.lstrip("0"), key))
    if not ids:
        counts = "; ".join(f"{len(images[flag])} names match {flag} {pattern}" for flag, pattern in patterns.items())
        raise SetupError(f"--data_dir {folder}: no pair of scene and label; {counts}; and {len(labels)} match --label_pattern {label_pattern}.")
    first, names = next(iter(images.values())), [flag.rpartition(" ")[2] for flag in patterns]
    gridless = [first[key].name for key in ids if own_grids and key not in grids]
    if gridless:
        raise SetupError(f"--use_per_image_grid: no grid for {listing(gridless)}; name it grid_ID.gpkg beside the scene.")
    several = "--image_pattern" not in patterns

    def pair(key):
        modalities = tuple((name, str(group[key])) for name, group in zip(names, images.values())) if several else ()
        return Pair(key, str(first[key]), str(labels[key]), str(grids[key]) if own_grids else grid, modalities)

    return [pair(key) for key in ids], sorted(lonely)


def modality_patterns(words):
    """`s1=PATTERN s2=PATTERN` as dict `--modality s1` -> PATTERN.

    Raises:
        SetupError: no `=`, a name that is no plain word, or one given twice.
    """
    found = {}
    for word in words:
        name, equals, pattern = word.partition("=")
        if not equals or not re.fullmatch(r"\w+", name) or not pattern:
            raise SetupError(f"--modality {word}: write NAME=PATTERN, e.g. s1=^s1_(\\d+)\\.tif$; the name becomes the folder images_NAME.")
        if f"--modality {name}" in found:
            raise SetupError(f"--modality {name}: is given twice; give each its own name.")
        found[f"--modality {name}"] = pattern
    return found


def matching(files, folder, pattern, flag):
    """dict id -> path of the files whose name (or path under `folder`) matches."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SetupError(f"{flag} {pattern}: is no regular expression ({error}); one group (...) holds the id.") from None
    if not expression.groups:
        raise SetupError(f"{flag} {pattern}: has no group; put the id in parentheses, as in image_(\\d+).tif.")
    found = {}
    for path in files:
        match = expression.match(path.relative_to(folder).as_posix() if "/" in pattern else path.name)
        if match and not match[1]:
            raise SetupError(f"{flag} {pattern}: finds no id in {path.name}; its group must hold at least one character.")
        if match and (len(match[1].encode()) > LONGEST or not all(c.isalnum() or c in "-_." for c in match[1])):
            raise SetupError(f"{flag} {pattern}: the id {match[1]!r} of {path.name} cannot be part of a file name; use up to {LONGEST} letters, digits, - _ and .")
        if match and found.setdefault(match[1], path) is not path:
            raise SetupError(f"{flag}: {found[match[1]]} and {path} both have the id {match[1]}; rename or move one of them.")
    return found
