"""Which label and which grid belong to which scene."""

import re
from pathlib import Path
from typing import NamedTuple, Optional

from eoseg.errors import SetupError, listing

GRID_PATTERN = r"^[Gg]rid[_-]?(\d+)\.(shp|gpkg|geojson)$"


class Pair(NamedTuple):
    """A scene, its label, and the grid that cuts them; `name` is empty for a single scene."""

    name: str
    image: str
    label: str
    grid: Optional[str]

    def patch_name(self, cell):
        return f"img{self.name}_patch_{cell.id}.tif" if self.name else f"patch_{cell.id}.tif"

    def place(self, cell):
        """Where a patch lies: scenes that one grid cuts share its places, so that all dates of one go to one split."""
        return f"{Path(self.grid).name if self.grid else self.name or 'scene'}/{cell.id}"


def find_pairs(folder, image_pattern, label_pattern, grid=None, own_grids=False, recursive=False):
    """Pair the scenes and labels of a folder by the id that their names hold.

    Args:
        image_pattern, label_pattern: regular expressions on the file name; their one group is the id.
        grid: one for all. own_grids: each pair has a `grid_ID.shp|gpkg|geojson` beside it.
    Returns:
        pairs in order of id, and the names of scenes without a label (or label without a scene).
    Raises:
        SetupError: nothing matches, an id twice or empty, or a grid is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SetupError(f"--data_dir {folder}: no such folder; check the path.")
    files = sorted(path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file())
    images = matching(files, image_pattern, "--image_pattern")
    labels = matching(files, label_pattern, "--label_pattern")
    grids = matching(files, GRID_PATTERN, "--use_per_image_grid") if own_grids else {}
    lonely = [images[key].name for key in images.keys() - labels.keys()] + [labels[key].name for key in labels.keys() - images.keys()]
    both = sorted(images.keys() & labels.keys(), key=lambda key: (len(key.lstrip("0")), key.lstrip("0"), key))
    if not both:
        raise SetupError(f"--data_dir {folder}: no pair of scene and label; {len(images)} names match --image_pattern {image_pattern} "
                         f"and {len(labels)} match --label_pattern {label_pattern}.")
    gridless = [images[key].name for key in both if own_grids and key not in grids]
    if gridless:
        raise SetupError(f"--use_per_image_grid: no grid for {listing(gridless)}; name it grid_ID.gpkg beside the scene.")
    return [Pair(key, str(images[key]), str(labels[key]), str(grids[key]) if own_grids else grid) for key in both], sorted(lonely)


def matching(files, pattern, flag):
    """dict id -> path of the files whose name matches."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SetupError(f"{flag} {pattern}: is no regular expression ({error}); one group (...) holds the id.") from None
    if not expression.groups:
        raise SetupError(f"{flag} {pattern}: has no group; put the id in parentheses, as in image_(\\d+).tif.")
    found = {}
    for path in files:
        match = expression.match(path.name)
        if match and not match[1]:
            raise SetupError(f"{flag} {pattern}: finds no id in {path.name}; its group must hold at least one character.")
        if match and found.setdefault(match[1], path) is not path:
            raise SetupError(f"{flag}: {found[match[1]]} and {path} both have the id {match[1]}; rename or move one of them.")
    return found
