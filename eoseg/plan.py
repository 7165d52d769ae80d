"""Where to cut: every window of every scene, decided from the grid and the headers before a pixel is read."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import shapely

from eoseg import raster, vector
from eoseg.coding import IGNORE
from eoseg.cutting import Source
from eoseg.errors import DataError, ReadError, SetupError, listing
from eoseg.labels import check_overlap, corners_of, open_area, open_labels
from eoseg.splits import by_column
from eoseg.tiles import Window, regular_windows
from eoseg.validity import called_colours

SMALLEST = 0.5  # pixels: what rounds to none
MOST_SHRUNK = 16  # pixels to one of a patch, along a side: more leave out nearly all, and take memory without bounds
RESAMPLING = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "cubic", "lanczos": "lanczos"}
KINDS = {  # what a cell can be, and what is done with it; each is counted as the last one that holds
    "ok": "whole, on the image's pixels",
    "snapped": "moved to whole pixels",
    "rotated": "cut upright around the centroid",
    "partly outside": "",
    "no label": "left out",
    "all nodata": "left out",
    "outside the aoi": "left out",
    "outside": "left out",
    "no geometry": "left out",
    "wrong size": "refused",
    "duplicate id": "refused",
}


class Plan(NamedTuple):
    """What becomes of the cells of one scene.

    found: every Cell of the grid. cells: those to cut, in reading order. left_out: dict reason -> ids. kinds: dict of a
    kind of KINDS -> ids. problem: the error that stops it, or None. sources: dict folder -> names, numbers and type of
    the bands. crs_text: WKT, or "". header: one line on the scene.
    """

    pair: object
    found: list
    cells: list
    left_out: dict
    kinds: dict
    problem: object
    sources: dict
    transform: object
    crs_text: str
    header: str

    @property
    def shift(self):
        """How far a cell is moved to whole pixels at most, in pixels."""
        return max((max(map(abs, cell.shift)) for cell in self.cells), default=0.0)


@contextlib.contextmanager
def opened(pair, options, say):
    """The images of a pair as a list of Source; later ones are brought onto the grid of the first."""
    with contextlib.ExitStack() as stack:
        sources = []
        for folder, path in pair.images().items():
            lead = sources[0].scene if sources else None
            scene = stack.enter_context(raster.Scene(path, chosen(options, path), options.input_nodata, options.require_all_bands, lead, RESAMPLING[options.interpolation]))
            if scene.moved:
                check_overlap(path, raster.bounds_in(scene.file, lead.crs), lead)
                say(f"note: {path}: lies on another grid than {pair.image}; resampled onto it ({options.interpolation})")
            sources.append(Source(scene, folder))
        yield sources


def chosen(options, path):
    """The bands the options choose: numbers or names; None for all."""
    if not options.image_channels:
        return options.bands
    with raster.open_raster(path) as src:
        if options.image_channels > src.count:
            raise SetupError(f"--image_channels {options.image_channels}: {path} has {src.count} bands; give {src.count} or fewer.")
    return list(range(1, options.image_channels + 1))


def plan(pair, coding, options, say, bar=None):
    """Plan one scene.

    Args:
        coding: a coding.Coding. bar: given in a dry run, which also looks which cells hold no data or no label.
    Raises:
        DataError: this scene cannot be cut. SetupError: none can.
    """
    with opened(pair, options, say) as sources:
        scene = sources[0].scene
        area = open_area(scene, options, say)
        labels = open_labels(pair.label, scene, coding, options, say, area)
        try:
            found, empty, doubtful = grid_cells(pair, scene, options, say)
            kind_of = {cell.id: kind(cell, scene, labels, area) for cell in found}
            kind_of |= dict.fromkeys(doubtful.wrong, "wrong size") | dict.fromkeys(doubtful.twice, "duplicate id")
            if bar and not doubtful.problem:
                look(found, kind_of, [source.scene for source in sources], labels, bar)
        finally:
            labels.close()
        inside, left_out, kinds = sorted_out(found, kind_of, empty, options)
        windows = [cell.window.clipped(scene.height, scene.width) for cell in inside]
        cells = inside if doubtful.problem else [inside[i] for i in scene.reading_order(windows)]
        bands = {source.folder: bands_of(source.scene) for source in sources}
        header = f"{Path(pair.image).name}: {scene.height} x {scene.width} pixels, {len(scene.bands)} bands ({listing(scene.names, 13)}), {scene.dtype}"
        if scene.alpha and not scene.moved:
            header += "\n  note: the alpha band is used as the mask, not as a band; --bands takes it as one"
        if called_colours(scene.file):
            header += "\n  warning: its numbers stand for the colours of a table, they measure nothing; to cut colours, expand them first: gdal_translate -expand rgb"
        return Plan(pair, found, cells, left_out, kinds, doubtful.problem, bands, scene.transform, scene.crs.to_wkt() if scene.crs else "", header)


def sorted_out(found, kind_of, empty, options):
    """Cells to cut; dict reason -> ids of the others; dict kind -> ids of all."""
    reasons = {"outside": "outside the image", "outside the aoi": "outside the --aoi", "all nodata": "no valid pixel"}
    reasons |= {} if options.keep_unlabelled else {"no label": "no labelled pixel"}
    reasons |= {"partly outside": "partly outside the image"} if options.edge == "skip" else {}
    left_out, kinds = {"no geometry": empty} if empty else {}, {"no geometry": empty}
    for cell in found:
        kinds.setdefault(kind_of[cell.id], []).append(cell.id)
        if kind_of[cell.id] in reasons:
            left_out.setdefault(reasons[kind_of[cell.id]], []).append(cell.id)
    return [cell for cell in found if kind_of[cell.id] not in reasons], left_out, kinds


class Doubtful(NamedTuple):
    """Ids of cells that cannot be as they are, and the error to raise for them."""

    wrong: list = []
    twice: list = []
    problem: object = None


def grid_cells(pair, scene, options, say):
    """The cells of the grid as windows of the scene, each with the split its column names.

    Returns:
        list of Cell; ids of those without a geometry; Doubtful.
    """
    if pair.grid is None:
        if options.split_column:
            raise SetupError(f"--split_column {options.split_column}: needs a --grid that has this column.")
        return regular_cells(scene, options.patch_size, options.stride), [], Doubtful()
    if options.stride:
        raise SetupError(f"--stride {options.stride}: spaces the cells of the automatic grid; leave --grid out, or --stride.")
    raw = vector.read_layer(pair.grid, options.vector_crs)
    if raw.empty:
        raise DataError(f"{pair.grid}: holds no cell; choose another grid, or leave --grid out for a regular one.")
    if scene.transform.is_identity:
        raise DataError(f"{pair.image}: has no geotransform, so a grid cannot be laid over it; georeference it, or leave --grid out.")
    frame = vector.onto(raw, scene.crs, pair.grid, say)
    refuse_elsewhere(pair, scene, raw, frame)
    ids, twice = vector.cell_ids(frame, options.id_column, say)
    found, empty = vector.cells(frame, ids, scene.transform, options.patch_size, options.resample)
    if options.split_column:
        words = vector.column(frame, options.split_column, "--split_column", pair.grid)
        of = dict(zip(ids, by_column(words, options.split_column)))
        found = [cell._replace(split=of[cell.id]) for cell in found]
    return found, empty, doubts(pair, found, twice, options, raw.crs is not None and raw.crs != frame.crs)


def doubts(pair, found, twice, options, other_crs):
    """Doubtful: cells of another size than --patch_size, or that no --resample can make sense of, and ids that repeat."""
    size, problem = options.patch_size, None
    if options.resample:
        wrong = [cell for cell in found if min(cell.size) < SMALLEST or max(cell.size) > MOST_SHRUNK * size]
        what, remedy = f"smaller than a pixel or over {MOST_SHRUNK} times as large as a patch", "check the grid's CRS, or give a --patch_size nearer to them."
    else:
        wrong = vector.wrong_sizes(found, size, other_crs)
        what, remedy = "of another size", "give the cells' size, or --resample to scale them."
    if wrong:
        some = listing((f"{cell.id}: {cell.size[1]:.1f} x {cell.size[0]:.1f}" for cell in wrong[:4]), 4)
        problem = DataError(f"--patch_size {size}: {len(wrong)} of {len(found)} cells of {pair.grid} are {what} in pixels ({some}); {remedy}")
    if twice:
        problem = SetupError(f"--id_column {options.id_column}: {listing(twice)} stand there more than once; choose a unique column, or leave it at AUTO.")
    return Doubtful([cell.id for cell in wrong], twice, problem)


def regular_cells(scene, size, stride=None):
    """Cells of `size` pixels that cover a scene, numbered row by row."""
    return [vector.Cell(str(i), window, size=(size, size)) for i, window in enumerate(regular_windows(scene.height, scene.width, size, stride))]


def refuse_elsewhere(pair, scene, raw, frame):
    """A grid that lies beside the image altogether is no grid for it.

    Args:
        raw, frame: the grid in its own CRS and in the image's.
    """
    corners = [scene.transform * corner for corner in corners_of(Window(0, 0, scene.height, scene.width))]
    if not frame.intersects(shapely.Polygon(corners)).any():
        west, south, east, north = raw.total_bounds
        (left, *_, right), (bottom, *_, top) = map(sorted, zip(*corners))
        raise DataError(f"--grid {pair.grid}: no cell overlaps {pair.image}. Grid: {raw.crs.to_string() if raw.crs else 'no CRS'}, {west:.6g} {south:.6g} to "
                        f"{east:.6g} {north:.6g}; image: {scene.crs.to_string() if scene.crs else 'no CRS'}, {left:.6g} {bottom:.6g} to {right:.6g} {top:.6g}; "
                        "check that they show the same place, or name the grid's true CRS with --vector_crs.")


def kind(cell, scene, labels, area):
    """What a cell is, as far as headers and outlines tell."""
    part = cell.window.clipped(scene.height, scene.width)
    if part is None:
        return "outside"
    if area is not None and not len(area.hits(part)):
        return "outside the aoi"
    if not labels.meets(part):
        return "no label"
    if part != cell.window:
        return "partly outside"
    return "rotated" if cell.rotation else "snapped" if max(map(abs, cell.shift)) > 1e-3 else "ok"


def look(found, kind_of, scenes, labels, bar):
    """Which of the cells hold no data, or no label: in a dry run, by reading the labels and as little of the image as will tell."""
    cells = [cell for cell in found if kind_of[cell.id] not in ("outside", "outside the aoi", "no label")]
    parts = [cell.window.clipped(scenes[0].height, scenes[0].width) for cell in cells]
    for index in bar(scenes[0].reading_order(parts), desc="looking", unit="cell"):
        try:
            if not any(has_data(scene, parts[index]) for scene in scenes):
                kind_of[cells[index].id] = "all nodata"
            elif (labels.read(parts[index]) == IGNORE).all():
                kind_of[cells[index].id] = "no label"
        except ReadError:
            continue  # the extraction will name it


def has_data(scene, part):
    """Is a pixel of the window valid? Mostly the one in the middle is."""
    if not (scene.masked or scene.dtype.kind == "f" or any(value is not None for value in scene.nodata)):
        return True
    middle = Window(part.row + part.height // 2, part.col + part.width // 2, 1, 1)
    return bool(scene.read(middle)[2].any() or scene.read(part)[2].any())


def bands_of(scene):
    """Names, source numbers and type of the bands of a scene."""
    if len(set(map(str, scene.nodata))) > 1:
        raise DataError(f"{scene.path}: its bands have different nodata values ({listing(scene.nodata, 13)}), and a patch can hold one; make them one with gdalwarp -dstnodata.")
    return {"names": scene.names, "source_bands": scene.bands, "source_count": scene.file.count, "dtype": str(scene.dtype)}


def write_grid(image, path, options, overwrite, say=print):
    """Write the automatic grid of a scene as polygons in its CRS (id, row, col); returns how many cells it has.

    Raises:
        SetupError: the image has no place on Earth, or the file exists.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gpkg", ".geojson", ".fgb"):
        raise SetupError(f"--output {path}: is no format that grids are written in; name a .gpkg, .geojson or .fgb file.")
    if path.exists() and any(Path(read).exists() and path.samefile(read) for read in (image, (options.aoi or "").split("|layername=")[0])):
        raise SetupError(f"--output {path}: is read itself; name another file.")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise SetupError(f"--output {path}: exists; choose another name, or give --overwrite to replace it.")
    with raster.Scene(image) as scene:
        if scene.transform.is_identity:
            raise DataError(f"{image}: has no geotransform, so its grid has no place; georeference it, or extract without --grid.")
        cells, area = regular_cells(scene, options.patch_size, options.stride), open_area(scene, options, say)
        if area is not None:
            cells = [cell for cell in cells if len(area.hits(cell.window.clipped(scene.height, scene.width)))]
        shapes = [shapely.Polygon([scene.transform * corner for corner in corners_of(cell.window)]) for cell in cells]
        table = {"id": [int(cell.id) for cell in cells], "row": [cell.window.row for cell in cells], "col": [cell.window.col for cell in cells]}
        vector.write_layer(vector.frame_of(table, shapes, scene.crs.to_wkt() if scene.crs else None), path)
    return len(cells)


# ---------------------------------------------------------------- all scenes


def plan_all(pairs, coding, options, say, bar=None):
    """Plan every scene, print the table, and refuse what cannot be.

    Returns:
        dict name of a pair -> Plan; dict name -> why it failed, where there are others to go on with.
    """
    plans, failed = {}, {}
    for pair in pairs:
        try:
            found = plan(pair, coding, options, say, bar)
            same_bands(next(iter(plans.values()), found), found)
            plans[pair.name] = found
        except DataError as error:
            if len(pairs) == 1:
                raise
            failed[pair.name] = bare(str(error), pair, options)
    report(plans, options, say, looked=bar is not None)
    refuse_together(plans, options)
    for name, found in list(plans.items()):
        if found.problem and (len(pairs) == 1 or not isinstance(found.problem, DataError)):
            raise found.problem
        if found.problem:
            failed[name] = bare(str(plans.pop(name).problem), found.pair, options)
    return plans, failed


def refuse_together(plans, options):
    """What only all scenes together can tell: an area of interest that lies elsewhere, and patches of one name."""
    if options.aoi and plans and not any(set(found.kinds) - {"outside the aoi", "outside", "no geometry"} for found in plans.values()):
        raise DataError(f"{options.aoi}: lies beside every cell; check that it shows the same place, or name its true CRS with --vector_crs.")
    names = [found.pair.patch_name(cell) for found in plans.values() if not found.problem for cell in found.cells]
    if len(set(names)) < len(names):
        twice = vector.repeated(names)
        raise SetupError(f"--id_column: {listing(twice)} would be written twice, by cells of different scenes; choose other ids.")


def same_bands(known, mine):
    """Names and type of the bands must be equal in every scene."""
    for folder, bands in mine.sources.items():
        first = known.sources[folder]
        if (first["names"], first["dtype"]) != (bands["names"], bands["dtype"]):
            raise DataError(f"{mine.pair.images()[folder]}: its bands ({len(bands['names'])} {bands['dtype']}: {listing(bands['names'], 13)}) differ from those of the first scene "
                            f"({len(first['names'])} {first['dtype']}: {listing(first['names'], 13)}); choose equal ones with --bands.")


def report(plans, options, say, looked):
    """One table: what becomes of the cells of all scenes. Each cell is counted once, as the last of KINDS that holds."""
    for found in list(plans.values())[: None if options.verbose else 10]:
        say(found.header)
    if len(plans) > 10 and not options.verbose:
        say(f"... and {len(plans) - 10} more scenes (--verbose lists all)")
    say(f"  {'cells':<16}{sum(len(found.found) + len(found.kinds['no geometry']) for found in plans.values()):>7,}")
    for kind, what in KINDS.items():
        ids = [f"{name}/{cell}" if name else cell for name, found in plans.items() for cell in found.kinds.get(kind, [])]
        if kind == "partly outside":
            what = "left out (--edge skip)" if options.edge == "skip" else "padded with nodata (--edge pad)"
        if kind == "snapped":
            what += f", by {max((found.shift for found in plans.values()), default=0):.3f} px at most"
        if kind == "no label" and options.keep_unlabelled:
            what = "kept (--keep_unlabelled)"
        text = f"  {kind:<16}{len(ids):>7,}"
        text += f"  {what}" + ("" if kind == "ok" else f": {listing(ids, 10**9 if options.verbose else 5)}") if ids else ""
        say(text + ("  (the pixels may tell of more)" if kind in ("no label", "all nodata") and not looked else ""))


def bare(text, pair, options):
    """A message without the folders, which differ from machine to machine."""
    for path in filter(None, [*pair.inputs(), options.aoi]):
        text = text.replace(str(path), Path(path).name)
    return text
