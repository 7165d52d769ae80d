"""Scenes, labels and a grid become training patches.

Everything is cut into a staging folder first. Only when all is done are the patches divided among the splits, counted,
and moved to their places: a run that fails or is killed leaves the output folder as it was.
"""

import dataclasses as dc
import json
import os
import re
from pathlib import Path

from shapely import Polygon

from eoseg import files, raster, vector
from eoseg.coding import Coding, names_of, parse_map
from eoseg.cutting import cut
from eoseg.errors import DataError, ReadError, SetupError, listing
from eoseg.labels import open_labels, outside_of
from eoseg.normalize import BandStatistics
from eoseg.splits import SPLITS, by_column, by_ratio
from eoseg.tiles import regular_windows

STAGING, COMPLETE = ".unfinished", "complete"
RESULTS = (*SPLITS, "patches.csv", "patch_metadata.json")


def extract(pairs, options, output, say=print, bar=lambda items, **kw: items):
    """Cut all cells of all pairs into patches under `output`.

    Args:
        pairs: list of Pair. options: ExtractionConfig.
        say: takes a line of report. bar: wraps an iterable to show progress.
    Returns:
        the metadata that was written; its "failed" names what could not be cut.
    Raises:
        SetupError: nothing can be cut, or an input is wrong; nothing was written then.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise SetupError(f"--output {output}: is a file; name a folder.")
    with files.lock(output):
        staging = output / STAGING
        goes_on = options.resume and (staging / "settings.json").exists()
        settings = fingerprint(pairs, options)
        if goes_on:
            refuse_changes(staging, settings)
        if goes_on and (staging / COMPLETE).exists():
            return finish(staging, output)
        if not goes_on:
            refuse_existing(output, options)
        prepare(staging, settings, goes_on)
        try:
            coding = Coding(parse_map(options.label_map), options.label_nodata)
            rows, bands, skipped, failed = cut_pairs(pairs, coding, options, staging, say, bar)
            if not rows:
                raise SetupError(f"--output {output}: no patch could be cut ({reasons(skipped, failed)}); nothing was written.")
            rows = divide(rows, options)
            assemble(rows, describe(rows, options, bands, coding, skipped, failed, staging), staging)
        except SetupError:
            files.remove(staging)
            raise
        return finish(staging, output)


def cut_pairs(pairs, coding, options, staging, say, bar):
    """Cut every pair; with several, one that does not fit is named and the others go on.

    Returns:
        rows of the patches kept; the bands; dict reason -> cells left out; dict name -> why it failed.
    """
    done = read_journal(staging)
    rows, bands, skipped, failed = [], None, {}, {}
    for pair in pairs:
        try:
            with raster.Scene(pair.image, chosen(options, pair.image), options.input_nodata, options.require_all_bands) as scene:
                bands = same_bands(bands, scene)
                found, left_out = plan(pair, scene, options, say)
                labels = open_labels(pair.label, scene, coding, options, say)
                try:
                    mine = cut_all(pair, scene, labels, found, options, staging, done, left_out, failed, bar)
                finally:
                    labels.close()
                look_back(pair, mine, found, left_out, say)
                rows += mine
        except DataError as error:
            if len(pairs) == 1:
                raise
            failed[pair.name] = bare(str(error), pair)
            continue
        for reason, ids in left_out.items():
            skipped.setdefault(reason, []).extend(f"{pair.name}/{cell}" if pair.name else cell for cell in ids)
    return rows, bands, skipped, failed


def look_back(pair, rows, found, left_out, say):
    """What only the pixels could tell: those that are no numbers, or that none of them counts."""
    if found and len(left_out.get("no valid pixel", ())) == len(found):
        raise DataError(f"{pair.image}: holds no valid pixel in any of {len(found)} cells; check the image and its nodata value (--input_nodata).")
    broken = sum(row["not_finite_pixels"] for row in rows)
    if broken:
        say(f"note: {pair.image}: {broken} pixels of the patches hold NaN or Inf; taken as nodata")


def bare(text, pair):
    """A message without the folders, which differ from machine to machine."""
    for path in filter(None, pair[1:]):
        text = text.replace(str(path), Path(path).name)
    return text


def chosen(options, path):
    """The bands the options choose: numbers or names; None for all."""
    if not options.image_channels:
        return options.bands
    with raster.open_raster(path) as src:
        if options.image_channels > src.count:
            raise SetupError(f"--image_channels {options.image_channels}: {path} has {src.count} bands; give {src.count} or fewer.")
    return list(range(1, options.image_channels + 1))


def refuse_existing(output, options):
    """Existing patches are never touched without being told."""
    there = [name for name in RESULTS if (output / name).exists()]
    if there and not options.overwrite:
        raise SetupError(f"--output {output}: holds patches already ({listing(there)}); choose another folder, "
                         "or give --overwrite to replace them. (--resume goes on with an extraction that was cut off.)")


def refuse_changes(staging, settings):
    """A run goes on only with the very same settings and inputs."""
    before = files.read_json(staging / "settings.json")
    differ = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
    if differ:
        raise SetupError(f"--resume: the run that was cut off was begun with other {listing(differ)}; use the same settings, or leave --resume out to start again.")


def prepare(staging, settings, goes_on):
    """Make the staging folder empty, or, when the run goes on, keep what it holds."""
    if goes_on:
        return disassemble(staging)
    files.remove(staging)
    for name in ("images", "labels"):
        (staging / name).mkdir(parents=True)
    files.write_json(staging / "settings.json", settings)


def fingerprint(pairs, options):
    """What decides the patches' bytes: every option, and each input's name, size and time of change."""
    settings = {key: value for key, value in dc.asdict(options).items() if key not in ("resume", "overwrite", "verbose")}
    for pair in pairs:
        for path in filter(None, pair[1:]):
            file = Path(path.split("|layername=")[0])
            stat = file.stat() if file.exists() else None
            settings[f"{pair.name}:{path}"] = [stat.st_size, stat.st_mtime] if stat else None
    return json.loads(json.dumps(settings))


def same_bands(known, scene):
    """Names, source numbers and type of the bands, equal in every scene."""
    if len(set(map(str, scene.nodata))) > 1:
        raise DataError(f"{scene.path}: its bands have different nodata values ({listing(scene.nodata, 13)}), and a patch can hold one; make them one with gdalwarp -dstnodata.")
    mine = {"names": scene.names, "source_bands": scene.bands, "source_count": scene.src.count, "dtype": str(scene.dtype)}
    if known and (known["names"], known["dtype"]) != (mine["names"], mine["dtype"]):
        raise DataError(f"{scene.path}: its bands ({len(scene.bands)} {scene.dtype}: {listing(scene.names, 13)}) differ from those of the first scene "
                        f"({len(known['names'])} {known['dtype']}: {listing(known['names'], 13)}); choose equal ones with --bands.")
    return known or mine


# ---------------------------------------------------------------- where to cut


def plan(pair, scene, options, say):
    """All windows of a scene.

    Returns:
        cells to cut, in reading order; dict reason -> ids of those left out.
    """
    if pair.grid is None:
        found = [vector.Cell(str(i), window) for i, window in enumerate(regular_windows(scene.height, scene.width, options.patch_size))]
        left_out = {}
        if options.split_column:
            raise SetupError(f"--split_column {options.split_column}: needs a --grid that has this column.")
    else:
        found, left_out = planned_by_grid(pair, scene, options, say)
    inside = []
    for cell in found:
        part = cell.window.clipped(scene.height, scene.width)
        if part is None:
            left_out.setdefault("outside the image", []).append(cell.id)
        elif part != cell.window and options.edge == "skip":
            left_out.setdefault("partly outside the image", []).append(cell.id)
        else:
            inside.append(cell)
    report_plan(pair, scene, found, inside, left_out, say)
    return sorted(inside, key=lambda cell: (cell.window.row, cell.window.col)), left_out


def planned_by_grid(pair, scene, options, say):
    """The grid's cells as windows, each with the split its column names."""
    raw = vector.read_layer(pair.grid, options.vector_crs)
    if raw.empty:
        raise DataError(f"{pair.grid}: holds no cell; choose another grid, or leave --grid out for a regular one.")
    if scene.transform.is_identity:
        raise DataError(f"{pair.image}: has no geotransform, so a grid cannot be laid over it; georeference it, or leave --grid out.")
    frame = vector.onto(raw, scene.crs, pair.grid, say)
    refuse_elsewhere(pair, scene, raw, frame)
    ids = vector.cell_ids(frame, options.id_column)
    found, empty = vector.cells(frame, ids, scene.transform, options.patch_size, options.resample)
    wrong = vector.wrong_sizes(found, options.patch_size, raw.crs is not None and raw.crs != frame.crs)
    if wrong and not options.resample:
        some = listing((f"{cell.id}: {cell.size[1]:.1f} x {cell.size[0]:.1f}" for cell in wrong[:4]), 4)
        raise DataError(f"--patch_size {options.patch_size}: {len(wrong)} of {len(found)} cells of {pair.grid} are of another size in pixels "
                         f"({some}); give the cells' size, or --resample to scale them.")
    if options.split_column:
        if options.split_column not in frame.columns:
            raise SetupError(f"--split_column {options.split_column}: {pair.grid} has no such column; it has {listing(frame.columns.drop(frame.geometry.name), 12)}.")
        of = dict(zip(ids, by_column(frame[options.split_column], options.split_column)))
        found = [cell._replace(split=of[cell.id]) for cell in found]
    return found, {"no geometry": empty} if empty else {}


def refuse_elsewhere(pair, scene, raw, frame):
    """A grid that lies beside the image altogether is no grid for it.

    Args:
        raw, frame: the grid in its own CRS and in the image's.
    """
    corners = [scene.transform * corner for corner in ((0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height))]
    if not frame.intersects(Polygon(corners)).any():
        west, south, east, north = raw.total_bounds
        (left, *_, right), (bottom, *_, top) = map(sorted, zip(*corners))
        raise DataError(f"--grid {pair.grid}: no cell overlaps {pair.image}. Grid: {raw.crs.to_string() if raw.crs else 'no CRS'}, {west:.6g} {south:.6g} to "
                        f"{east:.6g} {north:.6g}; image: {scene.crs.to_string() if scene.crs else 'no CRS'}, {left:.6g} {bottom:.6g} to {right:.6g} {top:.6g}; "
                        "check that they show the same place, or name the grid's true CRS with --vector_crs.")


def report_plan(pair, scene, found, inside, left_out, say):
    """One table: what becomes of the cells, before a pixel is read."""
    shift = max((max(map(abs, cell.shift)) for cell in inside), default=0.0)
    lines = [
        ("cells in the grid", len(found) + len(left_out.get("no geometry", []))),
        ("inside the image", sum(cell.window.clipped(scene.height, scene.width) == cell.window for cell in inside)),
        ("padded at the edge", sum(cell.window.clipped(scene.height, scene.width) != cell.window for cell in inside)),
        ("moved to whole pixels", f"{sum(max(map(abs, cell.shift)) > 1e-3 for cell in inside)}, by {shift:.3f} px at most"),
        ("turned against the image", sum(cell.rotation != 0 for cell in inside)),
        *((reason, f"{len(ids)}: {listing(ids)}") for reason, ids in left_out.items()),
    ]
    say(f"{Path(pair.image).name}: {scene.height} x {scene.width} pixels, {len(scene.bands)} bands ({listing(scene.names, 13)}), {scene.dtype}")
    for name, value in lines:
        if value not in (0, "0, by 0.000 px at most"):
            say(f"  {name:<26}{value}")
    if scene.alpha:
        say("  note: the alpha band is used as the mask, not as a band; --bands takes it as one")


# ---------------------------------------------------------------- cutting


def cut_all(pair, scene, labels, found, options, staging, done, left_out, failed, bar):
    """Cut the cells of one scene into the staging folder.

    Returns:
        one row (a dict, as in patches.csv) per patch that is kept. Cells left out are added to `left_out`, those that
        could not be read to `failed`.
    """
    rows = []
    scene.expect([cell.window.clipped(scene.height, scene.width) for cell in found if pair.patch_name(cell) not in done])
    with open(staging / "journal.jsonl", "a", encoding="utf-8") as journal:
        for cell in bar(found, desc=pair.name or "cutting", unit="patch"):
            name = pair.patch_name(cell)
            entry = done.get(name)
            if entry is None:
                try:
                    entry = cut(pair, scene, labels, cell, options, staging)
                except ReadError as error:
                    failed[name] = bare(str(error), pair)
                    continue
                journal.write(json.dumps({name: entry}) + "\n")
                journal.flush()
            if isinstance(entry, str):
                left_out.setdefault(entry, []).append(cell.id)
            else:
                rows.append({**entry, "place": pair.place(cell)})
    return rows


def read_journal(staging):
    """Cells an earlier run has finished: name -> row, or the reason it was left out. A torn last line does not count."""
    done = {}
    path = staging / "journal.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            done.update(json.loads(line))
        except ValueError:
            break
    return done


# ---------------------------------------------------------------- splits, statistics, publishing


def divide(rows, options):
    """Give every row its split; rows in order of name.

    Raises:
        SetupError: the grid's own column leaves train or validation empty.
    """
    rows = sorted(rows, key=lambda row: natural(row["patch"]))
    if options.split_column:
        used = {row["split"] for row in rows}
        if not {"train", "validation"} <= used:
            raise SetupError(f"--split_column {options.split_column}: no usable patch is left for {listing({'train', 'validation'} - used)}; mark more cells so.")
    else:
        ratios = options.train_ratio, options.val_ratio, options.test_ratio
        of = by_ratio([row["place"] for row in rows], ratios, options.random_seed)
        rows = [{**row, "split": of[row["place"]]} for row in rows]
    return rows


def natural(text):
    """Sort patch_9 before patch_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def describe(rows, options, bands, coding, skipped, failed, staging):
    """The metadata: what was asked, what came of it, and the statistics of the training patches."""
    statistics = BandStatistics(len(bands["names"]))
    for row in rows:
        if row["split"] == "train":
            pixels, missing, valid = raster.read_patch(staging / "images" / row["patch"], require_all_bands=options.require_all_bands)
            statistics.add(pixels, ~missing & valid)
    count = lambda split: {c: sum(row["classes"].get(c, 0) for row in rows if row["split"] == split) for c in classes_of(rows)}
    settings = {key: value for key, value in dc.asdict(options).items() if key not in ("resume", "overwrite", "verbose", "save_metadata")}
    vector_labels = options.label_field is not None or options.label_burn is not None
    return {
        "patches": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "bands": bands,
        "class_names": names_of(coding.mapping),
        "label_map": coding.mapping,
        "label_outside": outside_of(options) if vector_labels else None,
        "class_pixels": {split: count(split) for split in SPLITS},
        "statistics": [{"band": name, **values} for name, values in zip(bands["names"], statistics.result())],
        "skipped": {reason: {"count": len(ids), "cells": ids} for reason, ids in sorted(skipped.items())},
        "failed": failed,
        "settings": settings,
    }


def classes_of(rows):
    """Every class that occurs, as text, in order of number."""
    return [str(c) for c in sorted({int(c) for row in rows for c in row["classes"]})]


def reasons(skipped, failed):
    """Why nothing is left, in words."""
    parts = [f"{len(ids)} cells: {reason}" for reason, ids in skipped.items()] + [f"{name}: {why}" for name, why in failed.items()]
    return listing(parts, 3) or "the grid is empty"


def assemble(rows, metadata, staging):
    """Bring the finished patches into the order in which they are to be found."""
    files.sync_all(staging / kind / row["patch"] for row in rows for kind in ("images", "labels"))
    for kind in ("images", "labels"):
        for split in SPLITS:  # also an empty one has its folders
            (staging / split / kind).mkdir(parents=True, exist_ok=True)
        for row in rows:
            os.rename(staging / kind / row["patch"], staging / row["split"] / kind / row["patch"])
    names = classes_of(rows)
    table = [{**{k: v for k, v in row.items() if k != "classes"}, **{f"class_{c}": row["classes"].get(c, 0) for c in names}} for row in rows]
    files.write_csv(staging / "patches.csv", table)
    files.write_json(staging / "patch_metadata.json", metadata)
    files.write_text(staging / COMPLETE, "")


def disassemble(staging):
    """Undo what a killed `assemble` had begun."""
    for split in SPLITS:
        for kind in ("images", "labels"):
            for path in (staging / split / kind).glob("*.tif"):
                os.rename(path, staging / kind / path.name)


def finish(staging, output):
    """Move what is complete to its place, the metadata last; a killed run is finished by calling this again.

    Returns:
        the metadata.
    """
    for name in RESULTS:
        if (staging / name).exists():
            files.remove(output / name)
            os.rename(staging / name, output / name)
    files.sync_folder(output)
    files.remove(staging)
    return files.read_json(output / "patch_metadata.json")
