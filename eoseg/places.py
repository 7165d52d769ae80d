"""Where patches lie on the ground: which show the same place, which touch, and which split each place gets."""

import numpy as np
import pyproj
import shapely

from eoseg.errors import SetupError
from eoseg.splits import SPLITS, by_draw

LOST = 0.51  # pixels: snapping moves a window by up to half a pixel, so that two neighbours may seem to overlap by one


def divide(rows, plans, options):
    """Give every patch its split, and leave out those that would carry one split's ground into another.

    Args:
        rows: dicts as in patches.csv, scene after scene. plans: dict scene name (of the pair) -> plan.Plan. options: ExtractionConfig.
    Returns:
        rows with `split` and `place`; dict reason -> rows left out; how many validation and test patches touch a training patch.
    """
    ground = Ground(rows, plans)
    parts = components(len(rows), ground.overlaps())
    first = {}
    for row, part in zip(rows, parts):
        first.setdefault(part, row["patch"].removesuffix(".tif"))
    rows = [{**row, "place": first[part]} for row, part in zip(rows, parts)]
    if options.split_strategy != "column":
        units = {"random": lambda: parts, "scene": lambda: by_scene(rows, parts), "block": lambda: ground.blocks(options.block)}[options.split_strategy]()
        split = drawn(rows, units, ground, options)
        rows = [{**row, "split": SPLITS[index]} for row, index in zip(rows, split)]
    kept, left_out = ground.apart(rows, options.buffer)
    reason = f"less than {options.buffer} patches from another split (--buffer)" if options.buffer else "overlaps another split"
    return [rows[i] for i in kept], {reason: [rows[i] for i in left_out]} if len(left_out) else {}, ground.touching(rows, kept)


def by_scene(rows, parts):
    """Scenes, as numbers; those that share ground are one."""
    names = {name: number for number, name in enumerate(dict.fromkeys(row["pair"] for row in rows))}
    scene = np.array([names[row["pair"]] for row in rows])
    first = dict(zip(parts[::-1], scene[::-1]))
    return components(len(names), [(first[part], own) for part, own in zip(parts, scene)])[scene]


def drawn(rows, units, ground, options):
    """The split of each row, as an index into SPLITS: units are divided, and each belongs to the first scene that shows it."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(row["pair"] for row in rows))}
    scene = np.array([numbers[row["pair"]] for row in rows])
    _, first, units = np.unique(units, return_index=True, return_inverse=True)
    owner = scene[first]
    own = owner[units] == scene  # later dates of a place have no say, or adding one would move it
    if options.split_strategy != "random" and len(first) < 2:
        raise SetupError(f"--split_strategy {options.split_strategy}: all patches lie in one {options.split_strategy}; "
                         + ("give a smaller --block_size." if options.split_strategy == "block" else "give more scenes, or --split_strategy block."))
    classes = sorted({int(c) for row in rows for c in row["classes"]})
    pixels = np.array([[row["classes"].get(str(c), 0) for c in classes] for row in rows], float).reshape(len(rows), -1)
    sizes = np.bincount(units[own], minlength=len(first))
    counts = np.stack([np.bincount(units[own], pixels[own, c], len(first)) for c in range(len(classes))], 1) if classes else np.zeros((len(first), 0))
    order = np.lexsort((*ground.centres[first].round(3).T, owner))  # a scene's units by where they lie, not by how they are called
    split = np.empty(len(first), int)
    split[order] = by_draw(owner[order], sizes[order], counts[order], (options.train_ratio, options.val_ratio, options.test_ratio), options.random_seed)
    return split[units]


def components(count, pairs):
    """Number the groups that `pairs` of 0 .. count - 1 join: (count,) int."""
    one, other = np.array(pairs, int).reshape(-1, 2).T
    if (one == other).all():  # the usual case
        return np.arange(count)
    from scipy.sparse import coo_array  # not before they are needed: 10 MB and a tenth of a second
    from scipy.sparse.csgraph import connected_components

    return connected_components(coo_array((np.ones(len(one)), (one, other)), shape=(count, count)), directed=False)[1]


class Ground:
    """The outlines of patches in a frame that they share: their CRS, or degrees where scenes have several.

    Scenes without a place on Earth are kept apart: nobody knows what ground they share.
    """

    def __init__(self, rows, plans):
        codes = {plans[row["pair"]].crs_text for row in rows} - {""}
        self.plans, self.mixed = plans, len(codes) > 1
        self.crs = "EPSG:4326" if self.mixed else next(iter(codes), None)
        self.members = {}
        for index, row in enumerate(rows):
            self.members.setdefault(row["pair"], []).append(index)
        self.window = np.array([[row[key] for key in ("row", "col", "height", "width")] for row in rows], float).reshape(-1, 4)
        exact = np.array([max(abs(row["shift_rows"]), abs(row["shift_cols"]), abs(row["rotation"])) < 1e-3 for row in rows], bool)
        self.slack = np.where(exact, 1e-3, np.minimum(LOST, self.window[:, 2:].min(1, initial=np.inf) / 4))
        systems = {}
        self.system = np.empty(len(rows), int)  # the CRS of each row, as a number
        for name, here in self.members.items():
            plan = plans[name]
            self.system[here] = systems.setdefault(plan.crs_text or (f"scene {name}" if plan.transform.is_identity else ""), len(systems))
        self.centres = np.empty((len(rows), 2))  # each in the CRS of its own scene, whatever the others have
        for name, here in self.members.items():
            middle = self.window[here][:, 1::-1] + self.window[here][:, :1:-1] / 2
            self.centres[here] = np.stack(plans[name].transform * tuple(middle.T), 1)

    def outlines(self, grown=0, parted=False):
        """Polygons of the patches, each side moved outwards by `grown` (N,) pixels of its scene.

        Args:
            parted: scenes that share no frame are moved far from each other.
        """
        found = np.empty(len(self.window), object)
        top, left, height, width = self.window.T
        boxes = shapely.box(left - grown, top - grown, left + width + grown, top + height + grown)
        for name, here in self.members.items():
            plan = self.plans[name]
            shapes = self.placed(boxes[here], plan, plan.crs_text and self.mixed)
            if parted and not (plan.crs_text and self.mixed):
                shapes = shapely.transform(shapes, lambda xy, away=1e9 * self.system[here[0]]: xy + (away, 0))
            found[here] = shapes
        return found

    def placed(self, shapes, plan, degrees=False):
        """Shapes in pixels of a scene, in its CRS or in degrees."""
        t = plan.transform
        shapes = shapely.transform(shapes, lambda xy: xy @ np.array([[t.a, t.d], [t.b, t.e]]) + (t.c, t.f))
        if not degrees:
            return shapes
        way = pyproj.Transformer.from_crs(plan.crs_text, 4326, always_xy=True)
        return shapely.transform(shapes, lambda xy: np.stack(way.transform(*xy.T), 1))

    def overlaps(self):
        """Pairs (i, j) that join all patches which share more ground than snapping explains."""
        _, first, same = np.unique(np.column_stack([self.system, self.centres.round(6), self.window[:, 2:]]), axis=0, return_index=True, return_inverse=True)
        shapes = self.outlines(-self.slack, parted=True)[first]
        pairs = shapely.STRtree(shapes).query(shapes, predicate="intersects").T
        return np.concatenate([first[pairs], np.stack([first[same.ravel()], np.arange(len(same))], 1)])  # dates of one place: no need to compare each with each

    def near(self, mine, theirs, grown, own):
        """Which of the patches `mine` (indices) meet one of `theirs`, these grown by `grown` and those by `own` (N,) pixels: (len(mine),) bool."""
        found = np.zeros(len(mine), bool)
        tree = shapely.STRtree(self.outlines(grown, parted=True)[theirs])
        found[tree.query(self.outlines(own, parted=True)[mine], predicate="intersects")[0]] = True
        return found

    def apart(self, rows, buffer):
        """Indices of rows to keep, and of those that overlap a patch of another split or lie less than `buffer` patches from it.

        Test patches stay, validation gives way to them, training to both.
        """
        split, grown = np.array([row["split"] for row in rows]), buffer * self.window[:, 2:].max(1, initial=0) - self.slack
        keep = np.ones(len(rows), bool)
        for weaker, stronger in (("validation", ("test",)), ("train", ("test", "validation"))):
            mine, theirs = np.flatnonzero(split == weaker), np.flatnonzero(np.isin(split, stronger) & keep)
            keep[mine] = ~self.near(mine, theirs, grown, -self.slack)
        return np.flatnonzero(keep), np.flatnonzero(~keep)

    def touching(self, rows, kept):
        """How many validation and test patches touch, or nearly touch, a training patch."""
        split = np.array([row["split"] for row in rows])[kept]
        return int(self.near(kept[split != "train"], kept[split == "train"], self.slack, self.slack).sum())

    def blocks(self, size):
        """The block each patch's centre lies in, as numbers; the lattice begins at the grid of the first scene of its CRS.

        Args:
            size: (number, "cells" or "m").
        """
        corner = {}
        for name, here in self.members.items():
            corner.setdefault(self.system[here[0]], self._lattice(self.plans[name], *size))
        x, y, width, height = np.array([corner[system] for system in self.system]).T
        steps = np.floor((self.centres - np.stack([x, y], 1)) / np.stack([width, height], 1) + 1e-6)
        return np.unique(np.column_stack([self.system, steps]), axis=0, return_inverse=True)[1].ravel()

    def _lattice(self, plan, number, unit):
        """Corner and size (x, y, width, height) of the first block, in units of the CRS; a negative height leads down."""
        windows = np.array([cell.window for cell in plan.found], float)
        top, left = windows[:, :2].min(0)
        height, width = np.median(windows[:, 2:], 0)
        west, south, east, north = self.placed(shapely.box(left, top, left + width, top + height), plan).bounds
        if unit == "cells":
            width, height = number * (east - west), number * (north - south)
        else:
            width, height = number * metre_of(plan.crs_text, (south + north) / 2)
        return (west, north, width, -height) if plan.transform.e < 0 else (west, south, width, height)


def metre_of(crs_text, latitude):
    """A metre along x and y in units of a CRS; of an unknown one ("") the unit itself."""
    if not crs_text:
        return np.ones(2)
    crs = pyproj.CRS(crs_text)
    if crs.is_projected:
        return np.ones(2) / crs.axis_info[0].unit_conversion_factor
    return np.array([1 / np.cos(np.radians(latitude)), 1]) / 111_320
