#!/usr/bin/env python
"""Cut training patches out of scenes with labels.

    python Patch_extraction_v2.py single --image scene.tif --label label.tif --grid grid.gpkg --output patches
    python Patch_extraction_v2.py batch --data_dir folder --output patches --use_per_image_grid
    python Patch_extraction_v2.py info --output patches
    python Patch_extraction_v2.py visualize --output patches --split train --sample_index 3

Each grid cell becomes one image and one label of exactly --patch_size pixels under
OUTPUT/train|validation|test/images|labels; patches.csv and patch_metadata.json say what they hold.
"""

import csv
import sys
from pathlib import Path

from eoseg import config, errors
from eoseg.splits import SPLITS


def main(argv=None):
    args = parse(argv)
    {"single": single, "extract": single, "batch": batch, "visualize": visualize, "info": info}[args.command](args)


def parse(argv):
    parser = config.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{single,batch,visualize,info}")
    one = commands.add_parser("single", aliases=["extract"], help="cut one scene")
    one.add_argument("--image", required=True, help="scene, any raster GDAL reads")
    one.add_argument("--label", required=True, help="label raster of class codes, or polygons (with --label_field or --label_burn)")
    many = commands.add_parser("batch", help="cut every pair of scene and label in a folder")
    many.add_argument("--data_dir", required=True, help="folder with scenes and labels")
    many.add_argument("--recursive", action="store_true", help="look into its folders too")
    many.add_argument("--use_per_image_grid", action="store_true", help="grid_ID.shp|gpkg|geojson beside each scene")
    many.add_argument("--image_pattern", default=r"^[Ii]mage[_-]?(\d+)\.tif{1,2}$", help="scene names; the group is the pair's id (default: image_1.tif ...)")
    many.add_argument("--label_pattern", default=r"^[Ll]abel[_-]?(\d+)\.tif{1,2}$", help="label names (default: label_1.tif ...)")
    for sub in (one, many):
        sub.add_argument("--grid", help="cells to cut: polygons in any CRS (default: a regular grid over the scene)")
        sub.add_argument("--output", required=True, help="folder for the patches")
        config.add_options(sub, config.ExtractionConfig)
    for name, text in (("visualize", "draw one patch with its label"), ("info", "count what a patch folder holds")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--output", required=True, help="folder that holds the patches")
        if name == "visualize":
            sub.add_argument("--split", default="train", choices=SPLITS, help="which part (default: train)")
            sub.add_argument("--sample_index", default=0, type=config.at_least(0), help="which patch, from 0 (default: 0)")
    for sub in dict.fromkeys(commands.choices.values()):
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def single(args):
    from eoseg.pairing import Pair

    run([Pair("", args.image, args.label, args.grid)], args)


def batch(args):
    from eoseg.pairing import find_pairs

    if args.grid and args.use_per_image_grid:
        raise errors.SetupError("--grid and --use_per_image_grid: one grid for all, or each its own; give one.")
    pairs, lonely = find_pairs(args.data_dir, args.image_pattern, args.label_pattern, args.grid, args.use_per_image_grid, args.recursive)
    print(f"{len(pairs)} pairs in {args.data_dir}")
    run(pairs, args, lonely)


def run(pairs, args, lonely=()):
    """Extract, print what came of it, and fail when something is missing."""
    options = config.take(config.ExtractionConfig, args)
    from eoseg.extract import extract
    from eoseg.tracking import bar

    metadata = extract(pairs, options, args.output, bar=bar)
    print("patches  " + ", ".join(f"{split} {count}" for split, count in metadata["patches"].items()) + f"  -> {args.output}")
    if not metadata["patches"]["validation"]:
        print("note: validation is empty, and training needs it; give a larger --val_ratio or more cells")
    if options.verbose:
        print_cells(args.output)
    for reason, left_out in metadata["skipped"].items():
        print(f"left out {left_out['count']}: {reason}" + (f" ({', '.join(left_out['cells'])})" if options.verbose else ""))
    print_classes(metadata)
    problems = [f"{name}: {why}" for name, why in metadata["failed"].items()] + [f"{name}: has no partner" for name in lonely]
    for problem in problems:
        print(f"failed   {problem}", file=sys.stderr)
    if problems:
        raise errors.PartialFailure(f"{args.output}: {len(problems)} inputs could not be used ({errors.listing([p.split(':')[0] for p in problems])}); the others are written.")


def print_cells(folder):
    """One line per patch that was written."""
    with open(Path(folder) / "patches.csv", newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            print(f"cell {row['id']:<12}{row['split']:<12}{row['patch']}  row {row['row']}  column {row['col']}")


def print_classes(metadata):
    """Pixels of each class in each split."""
    names, pixels = metadata["class_names"] or [], metadata["class_pixels"]
    for number in pixels["train"]:
        name = names[int(number)] if int(number) < len(names) else ""
        print(f"class {number:>3} {name:<14}" + "".join(f"{split} {pixels[split][number]:>10,}   " for split in SPLITS) + "pixels")


def info(args):
    """Counts per split, bands, classes and statistics, from the metadata."""
    from eoseg.patchset import load_metadata

    metadata = load_metadata(args.output)
    if not {"patches", "bands", "statistics", "class_pixels", "skipped", "settings"} <= metadata.keys():
        raise errors.SetupError(f"{args.output}/patch_metadata.json: was written by another program, or an older one; extract the patches again.")
    print(f"{args.output}: patches of {metadata['settings']['patch_size']} pixels")
    for split, count in metadata["patches"].items():
        print(f"  {split:<12}{count}")
    print(f"{metadata['bands']['dtype']}, {len(metadata['bands']['names'])} bands; statistics of the training patches:")
    for band in metadata["statistics"]:
        print(f"  {band['band']:<12}" + "  ".join(f"{key} {band[key]:.6g}" for key in ("min", "p1", "mean", "std", "p50", "p99", "max") if band[key] is not None))
    print_classes(metadata)
    for reason, left_out in metadata["skipped"].items():
        print(f"left out {left_out['count']}: {reason}")


def visualize(args):
    """Write one patch as a PNG into the patch folder."""
    from eoseg.plots import draw_sample

    print(f"wrote {draw_sample(args.output, args.split, args.sample_index)}")


if __name__ == "__main__":
    errors.run(main)
