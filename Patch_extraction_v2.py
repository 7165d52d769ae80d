#!/usr/bin/env python
"""Cut training patches out of scenes with labels.

    python Patch_extraction_v2.py single --image scene.tif --label label.tif --grid grid.gpkg --output patches --dry_run
    python Patch_extraction_v2.py single --image scene.tif --label label.tif --grid grid.gpkg --output patches
    python Patch_extraction_v2.py batch --data_dir folder --output patches --use_per_image_grid
    python Patch_extraction_v2.py grid --image scene.tif --output grid.gpkg --patch_size 256
    python Patch_extraction_v2.py info --output patches
    python Patch_extraction_v2.py visualize --output patches --split train --sample_index 3 --rgb 4 3 2

Each grid cell becomes one image and one label of exactly --patch_size pixels under
OUTPUT/train|validation|test/images|labels; patches.csv, patches.gpkg and patch_metadata.json say what they hold.
"""

import sys
from pathlib import Path

from eoseg import config, errors, flags
from eoseg.splits import SPLITS

IMAGES = r"^[Ii]mage[_-]?(\d+)\.tif{1,2}$"


def main(argv=None):
    args = parse(argv)
    {"single": single, "extract": single, "batch": batch, "grid": grid, "visualize": visualize, "info": info}[args.command](args)


def parse(argv):
    parser = flags.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{single,batch,grid,visualize,info}")
    one = commands.add_parser("single", aliases=["extract"], help="cut one scene")
    one.add_argument("--image", required=True, type=flags.filled, help="scene, any raster GDAL reads")
    one.add_argument("--label", required=True, type=flags.filled, help="label raster of class codes, or polygons (with --label_field or --label_burn)")
    many = commands.add_parser("batch", help="cut every pair of scene and label in a folder")
    many.add_argument("--data_dir", required=True, type=flags.filled, help="folder with scenes and labels")
    many.add_argument("--recursive", action="store_true", help="look into its folders too")
    many.add_argument("--use_per_image_grid", action="store_true", help="grid_ID.shp|gpkg|geojson beside each scene")
    many.add_argument("--image_pattern", default=IMAGES, help="scene names; the group is the pair's id; with a / it is matched with the path under --data_dir (default: image_1.tif ...)")
    many.add_argument("--label_pattern", default=r"^[Ll]abel[_-]?(\d+)\.tif{1,2}$", help="label names (default: label_1.tif ...)")
    many.add_argument("--modality", nargs="+", default=[], metavar="NAME=PATTERN", help="several sensors or dates of each place, in place of --image_pattern: patches go to images_NAME/, on the grid of the first")
    for sub in (one, many):
        sub.add_argument("--grid", type=flags.filled, help="cells to cut: polygons in any CRS (default: a regular grid over the scene)")
        sub.add_argument("--output", required=True, type=flags.filled, help="folder for the patches")
        flags.add_options(sub, config.ExtractionConfig)
    lay = commands.add_parser("grid", help="write the automatic grid of a scene as polygons, to look at and to edit")
    lay.add_argument("--image", required=True, type=flags.filled, help="scene, any raster GDAL reads")
    lay.add_argument("--output", required=True, type=flags.filled, help="file.gpkg, .geojson or .fgb")
    lay.add_argument("--overwrite", action="store_true", help="replace --output")
    flags.add_options(lay, config.ExtractionConfig, only=("patch_size", "stride", "aoi", "vector_crs"))
    for name, text in (("visualize", "draw one patch with its label, and many on a sheet"), ("info", "count what a patch folder holds, and draw where its splits lie")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--output", required=True, type=flags.filled, help="folder that holds the patches")
        if name == "visualize":
            sub.add_argument("--split", default="train", choices=SPLITS, help="which part (default: train)")
            sub.add_argument("--sample_index", default=0, type=flags.at_least(0), help="which patch, from 0 (default: 0)")
            sub.add_argument("--count", default=16, type=flags.at_least(1), help="patches on the contact sheet (default: 16)")
            sub.add_argument("--rgb", nargs="+", metavar="BAND", help="bands to show as red, green and blue, by number from 1 or by name; one for grey (default: by their names, else the first three)")
            sub.add_argument("--modality", metavar="NAME", help="which images, where there are several (default: the first)")
    for sub in dict.fromkeys(commands.choices.values()):
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def single(args):
    from eoseg.pairing import Pair

    run([Pair("", args.image, args.label, args.grid)], args)


def batch(args):
    from eoseg.pairing import find_pairs, modality_patterns

    if args.grid and args.use_per_image_grid:
        raise errors.SetupError("--grid and --use_per_image_grid: one grid for all, or each its own; give one.")
    if args.modality and args.image_pattern != IMAGES:
        raise errors.SetupError("--modality and --image_pattern: both say which images there are; give one of them.")
    patterns = modality_patterns(args.modality) or {"--image_pattern": args.image_pattern}
    pairs, lonely = find_pairs(args.data_dir, patterns, args.label_pattern, args.grid, args.use_per_image_grid, args.recursive)
    print(f"{len(pairs)} pairs in {args.data_dir}")
    run(pairs, args, lonely)


def run(pairs, args, lonely=()):
    """Extract, print what came of it, and fail when something is missing."""
    options = flags.take(config.ExtractionConfig, args)
    from eoseg.extract import extract
    from eoseg.tracking import bar

    metadata = extract(pairs, options, args.output, bar=bar)
    problems = [f"{name}: has no partner" for name in lonely]
    if metadata is not None:
        print_result(metadata, options, args.output)
        problems = [f"{name}: {why}" for name, why in metadata["failed"].items()] + problems
    for problem in problems:
        print(f"failed   {problem}", file=sys.stderr)
    if problems:
        raise errors.PartialFailure(f"{args.output}: {len(problems)} inputs could not be used ({errors.listing([p.split(':')[0] for p in problems])}); the others are written.")


def print_result(metadata, options, folder):
    """What was written, what was left out, and what that means for training."""
    patches, strategy = metadata["patches"], options.split_strategy
    print("patches  " + ", ".join(f"{split} {count}" for split, count in patches.items()) + f"  -> {folder}")
    if not patches["validation"]:
        chained = strategy == "random" and metadata["places"] == 1 < sum(patches.values())
        remedy = "all patches overlap one another in one chain; --split_strategy block parts them" if chained else "give a larger --val_ratio or more cells"
        print(f"note: validation is empty, and training needs it; {remedy}")
    if not patches["train"]:
        print("note: no training patch is left; give a smaller --buffer, a larger --train_ratio, or more cells")
    evaluated = patches["validation"] + patches["test"]
    if metadata["touching"]:
        remedy = "--buffer 1 leaves such training patches out" if strategy != "random" else "--split_strategy block keeps neighbours together, --buffer 1 leaves such training patches out"
        print(f"note: {metadata['touching']} of {evaluated} validation and test patches touch a training patch, and neighbours resemble each other; {remedy}")
    if options.verbose:
        print_cells(folder)
    for reason, left_out in metadata["skipped"].items():
        print(f"left out {left_out['count']}: {reason}" + (f" ({', '.join(left_out['cells'])})" if options.verbose else ""))
    print_classes(metadata)


def grid(args):
    """Write the cells that extraction would lay over a scene."""
    from eoseg.plan import write_grid

    options = config.ExtractionConfig(**{name: getattr(args, name) for name in ("patch_size", "stride", "aoi", "vector_crs")})
    print(f"{write_grid(args.image, args.output, options, args.overwrite):,} cells of {args.patch_size} pixels -> {args.output}")


def print_cells(folder):
    """One line per patch that was written."""
    from eoseg.patchset import read_rows

    for row in read_rows(folder):
        print(f"cell {row['id']:<12}{row['split']:<12}{row['patch']}  row {row['row']}  column {row['col']}")


def print_classes(metadata):
    """Pixels of each class in each split, and its share of the split's labelled pixels."""
    names, pixels = metadata["class_names"] or [], metadata["class_pixels"]
    totals = {split: max(1, sum(pixels[split].values())) for split in SPLITS}
    for number in pixels["train"]:
        name = names[int(number)] if int(number) < len(names) else ""
        print(f"class {number:>3} {name:<14}" + "".join(f"{split} {pixels[split][number]:>12,} {pixels[split][number] / totals[split]:6.1%}   " for split in SPLITS) + "pixels")


def info(args):
    """Counts per split, bands, classes and statistics, from the metadata; and a map of the splits."""
    from eoseg.patchplots import draw_split_map
    from eoseg.patchset import load_metadata, read_rows

    metadata = load_metadata(args.output)
    if not {"patches", "bands", "statistics", "class_pixels", "skipped", "settings"} <= metadata.keys():
        raise errors.SetupError(f"{args.output}/patch_metadata.json: was written by another program, or an older one; extract the patches again.")
    print(f"{args.output}: patches of {metadata['settings']['patch_size']} pixels")
    total = max(1, sum(metadata["patches"].values()))
    rows = read_rows(args.output, ["split", "nodata_share"])
    for split, count in metadata["patches"].items():
        shares = [float(row["nodata_share"]) for row in rows if row["split"] == split]
        print(f"  {split:<12}{count:>8,}  {count / total:6.1%}" + (f"  nodata {sum(shares) / len(shares):.1%}" if shares else ""))
    for folder, part in metadata.get("modalities", {"images": metadata}).items():
        print(f"{folder}: {part['bands']['dtype']}, {len(part['bands']['names'])} bands; statistics of the training patches:")
        for band in part["statistics"]:
            print(f"  {band['band']:<12}" + "  ".join(f"{key} {band[key]:.6g}" for key in ("min", "p1", "mean", "std", "p50", "p99", "max") if band[key] is not None))
    print_classes(metadata)
    for reason, left_out in metadata["skipped"].items():
        print(f"left out {left_out['count']}: {reason}")
    if (Path(args.output) / "patches.gpkg").exists():
        print(f"wrote {draw_split_map(args.output)}")
    else:
        print("note: no map of the splits, as there is no patches.gpkg; extractions of an older version lack it")


def visualize(args):
    """Write one patch, and a contact sheet of many, as PNGs into the patch folder."""
    from eoseg.patchplots import draw_contact_sheet, draw_sample
    from eoseg.patchset import image_folder

    images = image_folder(args.output, args.split, args.modality)
    print(f"wrote {draw_sample(args.output, args.split, args.sample_index, args.rgb, images)}")
    print(f"wrote {draw_contact_sheet(args.output, args.split, args.count, args.rgb, images)}")


if __name__ == "__main__":
    errors.run(main)
