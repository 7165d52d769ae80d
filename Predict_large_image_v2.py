#!/usr/bin/env python
"""Map scenes of any size with a trained network.

    python Predict_large_image_v2.py --model trained_models/unet_final.pth --input scene.tif --output map.tif
    python Predict_large_image_v2.py --model folds --input scenes/ 'more/S2_*.tif' --output maps/

Bands, normalisation and classes come from the checkpoint. The map is a Cloud-Optimized GeoTIFF of class numbers with
colours and class names; --save_confidence adds a map of how sure the network is.
"""

import dataclasses as dc
import os
import re
from pathlib import Path

from eoseg import config, errors, flags, scenes


def main(argv=None):
    args = parse(argv)
    options = flags.take(config.PredictionConfig, args)
    found, many = scenes.scenes_of(args.input)
    if many and options.polygons and not options.polygons.startswith("."):
        raise errors.SetupError(f"--polygons {options.polygons}: several scenes need a file each; give the suffix alone, such as .gpkg.")
    maps = scenes.maps_of(found, folder_for(args.output)) if many else {found[0]: output_path(args.output, found[0])}
    with errors.at_once():
        from eoseg import (  # torch takes seconds to import: --help and typos need not wait
            mapping,
            network,
            predict,
        )
        from eoseg.tracking import bar

    trained = network.load_all(args.model, options)
    if options.dry_run:
        dry_run(trained, maps, dc.replace(options, resume=options.resume or many and not options.overwrite), predict.predict)
    elif many:
        index = mapping.map_all(trained, maps, Path(args.output), options, bar=bar)
        print(f"finished  {index.report()}; {index.path}")
        if index.failures():
            raise errors.PartialFailure(index.failures())
    else:
        ((scene, output),) = maps.items()
        print_map(output, options, predict.predict(trained, scene, output, options, bar=bar))


def parse(argv):
    parser = flags.Parser(description=__doc__)
    parser.add_argument("--model", required=True, type=flags.filled, nargs="+", action="extend", metavar="CKPT",
                        help="checkpoint, or a folder that holds one *_final.pth or fold1/ ...; several are averaged")
    parser.add_argument("--input", required=True, type=flags.filled, nargs="+", action="extend", metavar="SCENE",
                        help="scene, any raster GDAL reads; or several, folders, patterns, text files with a scene per line: --output is a folder then")
    parser.add_argument("--output", required=True, type=flags.filled, help="the map, a .tif; or a folder, for FOLDER/<input name>.tif")
    flags.add_options(parser, config.PredictionConfig)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def dry_run(network, maps, options, predict):
    """Print what each map would cost; a scene that cannot be mapped is named, and the others are looked at."""
    failed = {}
    for scene, output in maps.items():
        try:
            predict(network, scene, output, options)
        except errors.SetupError as error:
            if len(maps) == 1:
                raise
            failed[scene] = error
            print(f"failed    {error}")
    if failed:
        raise errors.PartialFailure(f"{len(failed)} of {len(maps)} scenes could not be mapped: {errors.listing(failed)}; mend them, the others are well.")


def output_path(output, scene):
    """The map's path; a folder gets a file of the scene's name."""
    refuse_virtual(output)
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)):
        path = path / f"{Path(scene).stem}.tif"
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise errors.SetupError(f"--output {output}: maps are GeoTIFFs; name a .tif file, or a folder that exists.")
    return path


def folder_for(output):
    """The folder that the maps of several scenes go to."""
    refuse_virtual(output)
    if Path(output).is_file() or Path(output).suffix.lower() in (".tif", ".tiff"):
        raise errors.SetupError(f"--output {output}: several scenes need a folder; name one, it is made.")
    return output


def refuse_virtual(output):
    """Raises SetupError for what only GDAL could write to."""
    if re.match(r"/vsi|[a-zA-Z][a-zA-Z0-9+]+://", output):
        raise errors.SetupError(f"--output {output}: maps are written to disks; name a path there, and copy the map when it is done.")


def print_map(output, options, summary):
    """What was written, and pixels and area of each class."""
    if summary is None:
        return print(f"finished  {output} is complete already")
    print_summary(summary)
    for ending, wanted in (("_confidence.tif", options.save_confidence), ("_probabilities.tif", options.save_probabilities), ("_uncertainty.tif", options.save_uncertainty),
                           ("_patches", options.save_patches), ("_quicklook.png", options.quicklook), (".qml", True), (".json", True)):
        if wanted:
            print(f"wrote     {output.with_name(output.stem + ending)}")
    if options.polygons:
        print(f"wrote     {options.polygons if not options.polygons.startswith('.') else output.with_suffix(options.polygons)}")
    print(f"wrote     {output}")


def print_summary(summary):
    """Pixels and area of each class, and how sure the network was."""
    total, valid = summary["total_pixels"], summary["valid_pixels"]
    if not valid:
        print("warning: the scene holds no valid pixel; the map is all nodata")
    print(f"  {'class':<16}{'pixels':>14}{'share':>9}{'hectares':>16}")
    for name, part in summary["classes"].items():
        area = f"{part['hectares']:>16,.2f}" if part["hectares"] is not None else f"{'unknown':>16}"
        print(f"  {name:<16}{part['pixels']:>14,}{part['share']:>9.1%}{area}")
    print(f"  {'nodata':<16}{total - valid:>14,}")
    sure = summary["confidence"]
    if valid:
        print(f"confidence  mean {sure['mean']:.3f}, median {sure['p50']:.3f}; one pixel in twenty below {sure['p5']:.3f}")


if __name__ == "__main__":
    errors.run(main)
