"""Scenes, labels and a grid become training patches.

First everything is planned. Then all is cut into a staging folder. Only when that is done are the patches divided among
the splits, counted, and moved to their places: a run that fails or is killed leaves the output folder as it was.
"""

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

from eoseg import files, places, vector
from eoseg.coding import Coding, names_of, parse_map
from eoseg.cutting import cut_cells
from eoseg.errors import DataError, ReadError, SetupError, listing
from eoseg.labels import open_area, open_labels, outside_of
from eoseg.normalize import BandStatistics
from eoseg.parallel import give_back_memory
from eoseg.plan import bare, opened, plan_all
from eoseg.splits import SPLITS
from eoseg.staging import COMPLETE, STAGING, Journal, assemble, discard, fingerprint, finish, prepare, refuse_changes, refuse_existing, settings_of


def quiet(line):
    """A report nobody wants to hear twice."""


def no_bar(items, **settings):
    """A progress bar that shows nothing."""
    return items


def extract(pairs, options, output, say=print, bar=no_bar):
    """Cut all cells of all pairs into patches under `output`.

    Args:
        pairs: list of Pair. options: ExtractionConfig.
        say: takes a line of report. bar: wraps an iterable to show progress.
    Returns:
        the metadata that was written; its "failed" names what could not be cut. None after a dry run.
    Raises:
        SetupError: nothing can be cut, or an input is wrong; nothing was written then.
    """
    output = Path(output)
    coding = Coding(parse_map(options.label_map), options.label_nodata)
    if options.dry_run:
        if not options.resume:
            refuse_existing(output, options, pairs)
        return rehearse(pairs, coding, options, say, bar)
    if output.exists() and not output.is_dir():
        refuse_existing(output, options, pairs)
    with files.lock(output):
        staging = output / STAGING
        goes_on = options.resume and (staging / "settings.json").exists()
        settings, folders = fingerprint(pairs, options), list(pairs[0].images())
        if goes_on:
            refuse_changes(staging, settings)
        if goes_on and (staging / COMPLETE).exists():
            return finish(staging, output)
        if not goes_on:
            refuse_existing(output, options, pairs)
        plans, failed = plan_all(pairs, coding, options, say)
        places.check(plans, options)
        prepare(staging, settings, goes_on, folders)
        try:
            with files.Syncing() as sync, Journal(staging, folders, sync) as journal:
                build(plans, failed, Run(coding, options, staging, journal, say, bar))
        except SetupError:
            discard(staging)
            raise
        return finish(staging, output)


def rehearse(pairs, coding, options, say, bar):
    """A dry run: the table, with a look at which cells hold nothing."""
    plans, failed = plan_all(pairs, coding, options, say, bar)
    places.check(plans, options)
    for name, why in failed.items():
        say(f"would fail: {name}: {why}")
    limits = ", less those that --max_nodata and --min_labelled leave out" if options.max_nodata is not None or options.min_labelled is not None else ""
    say(f"{sum(len(plan.cells) for plan in plans.values()):,} patches of {options.patch_size} pixels would be cut{limits}; nothing was written (--dry_run)")


class Run(NamedTuple):
    """What all scenes of an extraction share."""

    coding: Coding
    options: object
    staging: Path
    journal: Journal
    say: object
    bar: object


def build(plans, failed, run):
    """Cut, divide, count and arrange everything in the staging folder."""
    rows, skipped = cut_pairs(plans, failed, run)
    run.journal.sync.wait()
    give_back_memory()
    if not rows:
        raise SetupError(f"--output {run.staging.parent}: no patch could be cut ({reasons(skipped, failed)}); nothing was written.")
    rows, parted, touching = places.divide(rows, plans, run.options)
    for reason, some in parted.items():
        skipped[reason] = [f"{row['pair']}/{row['id']}" if row["pair"] else row["id"] for row in some]
    rows = sorted(rows, key=lambda row: natural(row["patch"]))
    require_both(rows, run.options)
    sources = next(iter(plans.values())).sources
    metadata = {**describe(rows, sources, run), "places": len({row["place"] for row in rows}), "touching": touching, "failed": failed,
                "skipped": {reason: {"count": len(ids), "cells": ids} for reason, ids in sorted(skipped.items())}}
    assemble(rows, lambda folder: write_tables(rows, plans, metadata, folder), run.staging, list(sources))


# ---------------------------------------------------------------- cutting


def cut_pairs(plans, failed, run):
    """Cut every pair; with several, one that proves unusable is added to `failed` and the others go on.

    Returns:
        rows of the patches kept; dict reason -> cells left out.
    """
    rows, skipped = [], {}
    for name, plan in plans.items():
        try:
            mine, left_out = cut_pair(plan, failed, run)
        except DataError as error:
            if len(plans) + len(failed) == 1:
                raise
            failed[name] = bare(str(error), plan.pair, run.options)
            continue
        rows += mine
        for reason, ids in left_out.items():
            skipped.setdefault(reason, []).extend(f"{name}/{cell}" if name else cell for cell in ids)
    return rows, skipped


def cut_pair(plan, failed, run):
    """Cut the cells of one scene that no earlier run has cut.

    Returns:
        one row (a dict, as in patches.csv) per patch that is kept; dict reason -> ids left out. Cells that could not be
        read are added to `failed`.
    """
    pair, entries = plan.pair, {}
    with opened(pair, run.options, quiet) as sources:
        scene = sources[0].scene
        labels = open_labels(pair.label, scene, run.coding, run.options, quiet, open_area(scene, run.options, quiet))
        with contextlib.closing(labels), contextlib.ExitStack() as stack:
            todo = []
            for cell in plan.cells:
                entries[cell.id], memory = run.journal.known(pair.patch_name(cell))
                labels.recall(memory)
                todo += [cell] if entries[cell.id] is None else []
            outcomes = stack.enter_context(contextlib.closing(cut_cells(pair, sources, labels, todo, run.options, run.staging)))  # its thread must end before the files are closed
            for outcome in run.bar(outcomes, desc=pair.name or "cutting", total=len(todo), unit="patch"):
                name, entries[outcome.cell.id] = pair.patch_name(outcome.cell), outcome.entry
                if isinstance(outcome.entry, ReadError):
                    failed[name] = bare(str(outcome.entry), pair, run.options)
                    continue
                run.journal.add(name, outcome.entry, outcome.statistics, outcome.memory)
    left_out = {reason: list(ids) for reason, ids in plan.left_out.items()}
    for cell in plan.cells:
        if isinstance(entries[cell.id], str):
            left_out.setdefault(entries[cell.id], []).append(cell.id)
    look_back(plan, entries, run.say)
    return [{**entry, "pair": pair.name} for entry in entries.values() if isinstance(entry, dict)], left_out


def look_back(plan, entries, say):
    """What only the pixels could tell: those that are no numbers, or that none of them counts."""
    image = plan.pair.image
    if entries and all(entry == "no valid pixel" for entry in entries.values()):
        raise DataError(f"{image}: holds no valid pixel in any of {len(entries)} cells; check the image and its nodata value (--input_nodata).")
    broken = sum(entry["not_finite_pixels"] for entry in entries.values() if isinstance(entry, dict))
    if broken:
        say(f"note: {image}: {broken} pixels of the patches hold NaN or Inf; taken as nodata")


# ---------------------------------------------------------------- splits, statistics, tables


def require_both(rows, options):
    """The grid's own column must leave something to train and something to validate."""
    missing = {"train", "validation"} - {row["split"] for row in rows}
    if options.split_column and missing:
        raise SetupError(f"--split_column {options.split_column}: no usable patch is left for {listing(missing)}; mark more cells so.")


def natural(text):
    """Sort patch_9 before patch_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def describe(rows, sources, run):
    """The metadata: what was asked, what came of it, and the statistics of the training patches."""
    options, mapping = run.options, run.coding.mapping
    statistics = [BandStatistics(len(bands["names"])) for bands in sources.values()]
    for row in rows:
        if row["split"] == "train":
            for total, content in zip(statistics, run.journal.statistics_of(row["patch"])):
                total.merge(BandStatistics.from_bytes(content))
    images = {
        folder: {"bands": bands, "statistics": [{"band": name, **values} for name, values in zip(bands["names"], total.result())]}
        for (folder, bands), total in zip(sources.items(), statistics)
    }
    count = lambda split: {c: sum(row["classes"].get(c, 0) for row in rows if row["split"] == split) for c in classes_of(rows)}
    vector_labels = options.label_field is not None or options.label_burn is not None
    return {
        "patches": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        **next(iter(images.values())),
        **({} if list(images) == ["images"] else {"modalities": images}),
        "class_names": names_of(mapping),
        "label_map": mapping,
        "label_outside": outside_of(options) if vector_labels else None,
        "class_pixels": {split: count(split) for split in SPLITS},
        "settings": settings_of(options),
    }


def classes_of(rows):
    """Every class that occurs, as text, in order of number."""
    return [str(c) for c in sorted({int(c) for row in rows for c in row["classes"]})]


def reasons(skipped, failed):
    """Why nothing is left, in words."""
    parts = [f"{len(ids)} cells: {reason}" for reason, ids in skipped.items()] + [f"{name}: {why}" for name, why in failed.items()]
    return listing(parts, 3) or "the grid is empty"


def write_tables(rows, plans, metadata, folder):
    """patches.csv, patches.gpkg and patch_metadata.json."""
    names = classes_of(rows)
    table = [{**{k: v for k, v in row.items() if k not in ("classes", "pair")}, **{f"class_{c}": row["classes"].get(c, 0) for c in names}} for row in rows]
    files.write_csv(folder / "patches.csv", table)
    outlines, crs = places.Ground(rows, plans).shown()
    columns = "patch", "id", "scene", "split", "nodata_share", "labelled_pixels", *(f"class_{c}" for c in names)
    frame = vector.frame_of({key: [row[key] for row in table] for key in columns}, outlines, crs)
    vector.write_layer(frame, folder / "patches.gpkg")
    files.write_json(folder / "patch_metadata.json", metadata)
