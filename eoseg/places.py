"""Where patches lie on the ground: which show the same place, which touch, and which split each place gets."""

import numpy as np
import pyproj
import shapely

from eoseg.errors import SetupError
from eoseg.georef import METRES_PER_DEGREE
from eoseg.splits import SPLITS, by_draw

LOST = 0.51  # pixels: snapping moves a window by up to half a pixel, so that two neighbours may seem to overlap by one
EXACT = 1e-3  # pixels: what rounding may do to a window that was not snapped


def divide(rows, plans, options):
    """Give every patch its split, and leave out those that would carry one split's ground into another.

    Args:
        rows: dicts as in patches.csv, scene after scene. plans: dict scene name (of the pair) -> plan.Plan. options: ExtractionConfig.
    Returns:
        rows with `split` and `place`; dict reason -> rows left out; how many validation and test patches touch a training patch.
    """
    ground = Ground(rows, plans)
    pairs = ground.overlaps()
    if options.split_strategy != "column":
        units = {
            "random": lambda: settled(ground.scene, joined(len(rows), pairs[ground.scene[pairs[:, 0]] == ground.scene[pairs[:, 1]]]), pairs),
            "scene": lambda: settled(ground.scene, ground.scene, pairs),
            "block": lambda: ground.blocks(options.block),
        }[options.split_strategy]()
        for row, index in zip(rows, drawn(rows, units, ground, options).tolist()):
            row["split"] = SPLITS[index]
    keep = ground.apart(np.array([row["split"] for row in rows]), options.buffer)
    reason = f"less than {options.buffer} patches from another split (--buffer)" if options.buffer else "overlaps another split"
    for row, first in zip(rows, joined(len(rows), pairs[keep[pairs].all(1)]).tolist()):
        row["place"] = rows[first]["patch"].removesuffix(".tif")  # folds go by it: whatever shares ground, over any number of steps
    kept, left_out = [row for row, stays in zip(rows, keep) if stays], [row for row, stays in zip(rows, keep) if not stays]
    return kept, {reason: left_out} if left_out else {}, Ground(kept, plans).touching(np.array([row["split"] for row in kept]))


def check(plans, options):
    """Refuse, before anything is cut, a grid that lies in one block or scene as a whole."""
    if options.split_strategy not in ("block", "scene"):
        return
    rows = [{"pair": name, **dict(zip(("row", "col", "height", "width"), cell.window)), "shift_rows": 0, "shift_cols": 0, "rotation": 0} for name, plan in plans.items() for cell in plan.cells]
    if rows:
        refuse_one(len(plans) if options.split_strategy == "scene" else len(np.unique(Ground(rows, plans).blocks(options.block))), options)


def refuse_one(count, options):
    """Raises SetupError where blocks or scenes are to be divided and there is one of them."""
    if options.split_strategy in ("block", "scene") and count < 2:
        raise SetupError(f"--split_strategy {options.split_strategy}: all patches lie in one {options.split_strategy}; "
                         + ("give a smaller --block_size." if options.split_strategy == "block" else "give more scenes, or --split_strategy block."))


def settled(scene, own, pairs):
    """Join what `pairs` say shares ground, so that a later scene never joins what was apart before it came.

    A group of patches of one scene that meets patches of earlier scenes belongs to the place of the first of these.

    Args:
        scene: (N,) int, in order. own: (N,) int, the group of each patch within its scene. pairs: (P, 2) rows that share ground.
    Returns:
        (N,) int, for each patch the first row of its place.
    """
    _, first, group = np.unique(own, return_index=True, return_inverse=True)
    early, late = np.sort(pairs, 1)[scene[pairs[:, 0]] != scene[pairs[:, 1]]].T
    met = np.full(len(first), len(scene))
    np.minimum.at(met, group[late], early)
    place = first.copy()
    for index in np.argsort(first, kind="stable").tolist():  # earlier groups first: theirs is known by then
        if met[index] < len(scene):
            place[index] = place[group[met[index]]]
    return place[group]


def joined(count, pairs):
    """The first of each of `count` rows' group, where `pairs` join rows to groups over any number of steps: (count,) int."""
    one, other = pairs.T
    if (one == other).all():  # the usual case
        return np.arange(count)
    from scipy.sparse import coo_array  # not before they are needed: 10 MB and a tenth of a second
    from scipy.sparse.csgraph import connected_components

    group = connected_components(coo_array((np.ones(len(one)), (one, other)), shape=(count, count)), directed=False)[1]
    return np.unique(group, return_index=True)[1][group]


def drawn(rows, units, ground, options):
    """The split of each row, as an index into SPLITS: units are divided, and each belongs to the first scene that shows it."""
    _, first, units = np.unique(units, return_index=True, return_inverse=True)
    refuse_one(len(first), options)
    owner = ground.scene[first]
    own = owner[units] == ground.scene  # later dates of a place have no say, or adding one would move it
    classes = sorted({int(c) for row in rows for c in row["classes"]})
    pixels = np.array([[row["classes"].get(str(c), 0) for c in classes] for row in rows], float).reshape(len(rows), -1)
    sizes = np.bincount(units[own], minlength=len(first))
    counts = np.stack([np.bincount(units[own], pixels[own, c], len(first)) for c in range(len(classes))], 1) if classes else np.zeros((len(first), 0))
    where = ground.window[first]
    order = np.lexsort((where[:, 1], where[:, 0], owner))  # a scene's units by where they lie, not by how they are called
    split = np.empty(len(first), int)
    split[order] = by_draw(owner[order], sizes[order], counts[order], (options.train_ratio, options.val_ratio, options.test_ratio), options.random_seed)
    return split[units]


class Ground:
    """The outlines of patches, in the CRS of their scenes.

    Scenes without a place on Earth are kept apart: nobody knows what ground they share.
    """

    def __init__(self, rows, plans):
        self.plans, self.members = plans, {}
        for index, row in enumerate(rows):
            self.members.setdefault(row["pair"], []).append(index)
        self.window = np.array([[row[key] for key in ("row", "col", "height", "width")] for row in rows], float).reshape(-1, 4)
        exact = np.array([max(abs(row["shift_rows"]), abs(row["shift_cols"]), abs(row["rotation"])) < EXACT for row in rows], bool)
        self.slack = np.where(exact, EXACT, np.minimum(LOST, self.window[:, 2:].min(1, initial=np.inf) / 4))
        self.scene, self.system = np.empty(len(rows), int), np.empty(len(rows), int)  # of each row, as numbers
        self.centres, self.systems = np.empty((len(rows), 2)), {}
        pixel = np.empty((len(rows), 2))
        for number, (name, here) in enumerate(self.members.items()):
            plan, middle = plans[name], self.window[here][:, 1::-1] + self.window[here][:, :1:-1] / 2
            self.scene[here] = number
            self.system[here] = self.systems.setdefault(plan.crs_text or (f"scene {name}" if plan.transform.is_identity else ""), len(self.systems))
            self.centres[here] = np.stack(plan.transform * tuple(middle.T), 1)
            pixel[here] = np.hypot(plan.transform.a, plan.transform.d), np.hypot(plan.transform.b, plan.transform.e)
        self.site = np.column_stack([self.system, (self.centres / pixel).round(2), self.window[:, 2:], pixel])  # equal rows show the very same ground

    def outlines(self, grown=0):
        """Polygons of the patches in the CRS of each, each side moved outwards by `grown` (N,) pixels of its scene."""
        found = np.empty(len(self.window), object)
        top, left, height, width = self.window.T
        boxes = shapely.box(left - grown, top - grown, left + width + grown, top + height + grown)
        for name, here in self.members.items():
            found[here] = placed(boxes[here], self.plans[name].transform)
        return found

    def shown(self):
        """Polygons in one CRS for all, and that CRS: the scenes' own, or degrees where they have several; None for scenes without."""
        codes, shapes = self._codes(), self.outlines()
        if len(codes) > 1:
            for code in codes:
                here = self.system == self.systems[code]
                shapes[here] = carried(shapes[here], code, 4326)
            west, _, east, _ = shapely.bounds(shapes).T
            around = east - west > 180  # across the 180th meridian: beyond it, not around the Earth
            shapes[around] = shapely.transform(shapes[around], lambda xy: np.column_stack([np.where(xy[:, 0] < 0, xy[:, 0] + 360, xy[:, 0]), xy[:, 1]]))
        return shapes, "EPSG:4326" if len(codes) > 1 else next(iter(codes), None)

    def meeting(self, mine, theirs):
        """Pairs (i, j) of patches where the outline of i in `mine` meets that of j in `theirs` (polygons of all patches): (P, 2) int."""
        found, ends = [], np.flatnonzero(np.diff(np.sort(self.system), append=-1)) + 1
        rows = dict(zip(self.systems, np.split(np.argsort(self.system, kind="stable"), ends[:-1])))
        codes = self._codes() if len(self._codes()) > 1 else ()
        for code, here in rows.items():
            tree = shapely.STRtree(theirs[here])
            found.append(here[tree.query(mine[here], predicate="intersects").T])
            for other in codes if code in codes else ():
                if other != code and neighbours(extent(mine[rows[other]], other), extent(theirs[here], code)):
                    one, two = tree.query(carried(mine[rows[other]], other, code), predicate="intersects")
                    found.append(np.stack([rows[other][one], here[two]], 1))
        return np.concatenate(found)

    def _codes(self):
        """The CRSs of scenes that have one."""
        return sorted({self.plans[name].crs_text for name in self.members} - {""})

    def overlaps(self):
        """Pairs (i, j) that join all patches which share more ground than snapping explains; each also with itself."""
        _, first, same = np.unique(self.site, axis=0, return_index=True, return_inverse=True)
        alike = np.stack([first[same.ravel()], np.arange(len(same))], 1)  # dates of one place: no need to compare each with each
        shapes = np.full(len(same), None, object)
        shapes[first] = self.outlines(-self.slack)[first]
        return np.concatenate([self.meeting(shapes, shapes), alike])

    def apart(self, split, buffer):
        """Which patches stay: none that overlaps one of another split, or lies less than `buffer` patches from it.

        What comes later gives way: a later scene to an earlier one, and within a scene training to validation, and both to test.
        """
        key = np.column_stack([self.site, np.unique(split, return_inverse=True)[1]])
        _, first, site = np.unique(key, axis=0, return_index=True, return_inverse=True)
        shapes, wide = (np.full(len(split), None, object) for _ in range(2))
        shapes[first] = self.outlines(-self.slack)[first]
        wide[first] = self.outlines(buffer * self.window[:, 2:].max(1, initial=0) - self.slack)[first] if buffer else shapes[first]
        rank = self.scene * 3 + np.select([split == "test", split == "validation"], [0, 1], 2)
        pairs = self.meeting(shapes, wide)
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
        weak, strong = pairs[(split[pairs[:, 0]] != split[pairs[:, 1]]) & (rank[pairs[:, 0]] > rank[pairs[:, 1]])].T
        keep = np.ones(len(split), bool)
        order = np.argsort(rank[weak], kind="stable")
        for one, other in zip(weak[order].tolist(), strong[order].tolist()):  # the strong one's fate is decided by then
            keep[one] &= not keep[other]
        return keep[first][site.ravel()]

    def touching(self, split):
        """How many validation and test patches touch, or nearly touch, a training patch."""
        train = split == "train"
        wide = self.outlines(self.slack)
        one, _ = self.meeting(np.where(train, None, wide), np.where(train, wide, None)).T
        return len(np.unique(one))

    def blocks(self, size):
        """The block each patch's centre lies in, as numbers; the lattice begins at the grid of the first scene of its CRS.

        Args:
            size: (number, "cells" or "m").
        """
        corner = {}
        for name, here in self.members.items():
            corner.setdefault(self.system[here[0]], lattice(self.plans[name], *size))
        x, y, width, height = np.array([corner[system] for system in self.system]).T
        steps = np.floor((self.centres - np.stack([x, y], 1)) / np.stack([width, height], 1) + 1e-6)
        return np.unique(np.column_stack([self.system, steps]), axis=0, return_inverse=True)[1].ravel()


def placed(shapes, t):
    """Shapes in pixels (column, row), moved by a geotransform."""
    return shapely.transform(shapes, lambda xy: xy @ np.array([[t.a, t.d], [t.b, t.e]]) + (t.c, t.f))


def carried(shapes, source, target):
    """Shapes in another CRS, their sides bent as they are there; None where they cannot be expressed."""
    way = pyproj.Transformer.from_crs(source, target, always_xy=True)
    sides = np.sqrt(np.nan_to_num(shapely.area(shapes), nan=1.0))
    bent = shapely.transform(shapely.segmentize(shapes, np.maximum(sides, 1e-9) / 8), lambda xy: np.stack(way.transform(*xy.T), 1))
    return np.where(np.isfinite(shapely.bounds(bent)).all(1), bent, None)


def extent(shapes, code):
    """West, south, east and north of shapes in degrees, nan where there are none."""
    return shapely.total_bounds(carried(shapes, code, 4326))


def neighbours(one, other, gap=0.1):
    """Do two extents meet, or nearly so? Never where one of them is nan."""
    return bool((one[:2] - gap <= other[2:]).all() and (other[:2] - gap <= one[2:]).all())


def lattice(plan, number, unit):
    """Corner and size (x, y, width, height) of the first block, in units of the CRS; a negative height leads down."""
    windows = np.array([cell.window for cell in plan.found], float)
    top, left = windows[:, :2].min(0)
    height, width = np.median(windows[:, 2:], 0)
    west, south, east, north = placed(shapely.box(left, top, left + width, top + height), plan.transform).bounds
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
    return np.array([1 / np.cos(np.radians(latitude)), 1]) / METRES_PER_DEGREE
