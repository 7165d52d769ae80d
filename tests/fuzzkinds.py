"""What the fuzzer spoils: small files of every kind the scripts read, the run that reads each, and an independent reading of what must come of it."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import rasterio
from conftest import write_raster
from fuzzruns import Cut, cut_after, leave, narrow, point
from independent import assert_patches, assert_same_map, assert_scores
from tinynet import Point, save

from eoseg.normalize import Normalizer

SIZE = 40, 48  # of the scenes, in pixels: several blocks either way
PREDICT = ("Predict_large_image_v2", "--model", "model.pth", "--output", "map.tif", "--patch_size", 32, "--overlap", 8, "--device", "cpu", "--input")
EXTRACT = ("Patch_extraction_v2", "single", "--image", "scene.tif", "--output", "out", "--patch_size", 16, "--train_ratio", 0.5, "--val_ratio", 0.3, "--test_ratio", 0.2, "--label")
TRAIN = ("main_v2", "--model", "unet-dropout", "--dataset_root", "data", "--classes", 3, "--batch_size", 2, "--workers", 0, "--device", "cpu", "--save_dir")
EVALUATE = ("main_v2", "--evaluate", "model.pth", "--dataset_root", "data", "--workers", 0, "--device", "cpu", "--save_dir", "scores")
SCENES = {  # how a GeoTIFF may be written; pixels are of dtype, below `top`
    "striped": {"dtype": "uint8", "bands": 1, "top": 250},
    "tiled": {"dtype": "uint16", "bands": 3, "nodata": 0, "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate", "predictor": 2, "interleave": "band"},
    "lzw": {"dtype": "int16", "bands": 2, "nodata": -999, "compress": "lzw", "blockysize": 8},
    "floats": {"dtype": "float32", "bands": 2, "nodata": float("nan"), "compress": "deflate", "predictor": 3},
    "doubles": {"dtype": "float64", "bands": 1, "nodata": -9999},
    "packbits": {"dtype": "int8", "bands": 1, "top": 120, "compress": "packbits"},
    "wide": {"dtype": "uint32", "bands": 1, "compress": "zstd"},
    "jpeg": {"dtype": "uint8", "bands": 3, "top": 250, "compress": "jpeg", "photometric": "ycbcr", "tiled": True, "blockxsize": 16, "blockysize": 16},
    "bigtiff": {"dtype": "uint16", "bands": 1, "nodata": 7, "bigtiff": "yes", "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "lzw"},
    "bigstrips": {"dtype": "float32", "bands": 1, "bigtiff": "yes", "blockysize": 4},
    "masked": {"dtype": "uint8", "bands": 3, "top": 250, "compress": "deflate", "mask": True},
    "overviews": {"dtype": "uint16", "bands": 1, "compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16, "overviews": True},
    "alpha": {"dtype": "uint8", "bands": 4, "top": 250, "photometric": "rgb", "alpha": "yes"},
    "palette": {"dtype": "uint8", "bands": 1, "top": 250, "photometric": "palette"},
    "bits": {"dtype": "uint8", "bands": 1, "top": 2, "nbits": 1},
    "twelve": {"dtype": "uint16", "bands": 1, "top": 4000, "nbits": 12, "compress": "deflate"},
    "motorola": {"dtype": "uint16", "bands": 2, "endianness": "big", "nodata": 5},
}
LABELS = {
    "bytes": {"dtype": "uint8", "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
    "signed": {"dtype": "int16", "nodata": -1, "compress": "lzw"},
    "floats": {"dtype": "float32", "nodata": float("nan")},
    "masked": {"dtype": "uint8", "mask": True},
}


class Seed(NamedTuple):
    """A whole file of some kind, in a folder with all that its run needs."""

    kind: str
    name: str
    folder: Path
    target: str  # the file that is spoilt
    words: tuple  # script and flags; the run is in a copy of the folder
    check: Callable  # (seed, status) in that copy: raises AssertionError where what was made is wrong
    patch: Callable  # called before the run
    want: Any = None  # what an unspoilt run makes

    @property
    def content(self):
        return (self.folder / self.target).read_bytes()


def pixels_of(rng, dtype="uint16", bands=1, top=1000, **options):
    """Smooth pixels, so that files stay small, with some noise and some nodata."""
    row, col = np.indices(SIZE)
    pixels = np.stack([(row * 7 + col * (3 + band) + rng.integers(0, 9, SIZE)) % top for band in range(bands)]).astype(dtype)
    if options.get("nodata") is not None:
        pixels[:, 20:25, 5:30] = np.array(options["nodata"]).astype(dtype)
        pixels[0, :3] = np.array(options["nodata"]).astype(dtype)
    return pixels


def write(path, pixels, mask=False, overviews=False, dtype=None, bands=None, top=None, **options):
    write_raster(path, pixels, **options)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mask != "beside"), rasterio.open(path, "r+") as dst:
        if mask:
            dst.write_mask(np.indices(SIZE).sum(0) % 17 > 3)
        if overviews:
            dst.build_overviews([2], rasterio.enums.Resampling.nearest)
    return path


def model(folder, bands, top=1000, nodata=None):
    """model.pth: a 1x1 convolution that all tests know by hand."""
    net = Point(bands, 4)
    net.conv.weight.data *= 20
    save(folder / "model.pth", net, bands, 4, ["water", "wood", "wheat", "walls"], normalizer=Normalizer("percentile", (0.0,) * bands, (1 / top,) * bands, (top / 2,) * bands, 0.0, 1.0))


# ---------------------------------------------------------------- seeds, kind by kind: each yields Seeds


def scenes(root, rng):
    for name, options in SCENES.items():
        folder = made(root / name)
        write(folder / "scene.tif", pixels_of(rng, **options), **options)
        model(folder, options["bands"], options.get("top", 1000))
        yield Seed("scene", name, folder, "scene.tif", (*PREDICT, "scene.tif"), assert_same_map, point)


def beside(root, rng):
    """Files beside a scene: its .aux.xml, its .msk, a VRT."""
    for name, target in (("notes", "scene.tif.aux.xml"), ("mask", "scene.tif.msk"), ("vrt", "scene.vrt")):
        folder, options = made(root / name), {"dtype": "uint16", "bands": 2, "compress": "deflate"}
        write(folder / "scene.tif", pixels_of(rng, **options), mask="beside" if name == "mask" else False, **options)
        model(folder, 2)
        if name == "notes":
            bands = "".join(f'<PAMRasterBand band="{i}"><Description>red {i}</Description><NoDataValue>{7 * i}</NoDataValue></PAMRasterBand>' for i in (1, 2))
            (folder / target).write_text(f'<PAMDataset>\n  <SRS>EPSG:32630</SRS>\n  <GeoTransform>5.0e5, 10, 0, 4.8e6, 0, -10</GeoTransform>\n  {bands}\n</PAMDataset>\n')
        if name == "vrt":
            rasterio.shutil.copy(folder / "scene.tif", folder / target, driver="VRT")
            text = (folder / target).read_text()
            (folder / target).write_text(text.replace(str(folder / "scene.tif"), "scene.tif").replace('relativeToVRT="0"', 'relativeToVRT="1"'))
        yield Seed(name, name, folder, target, (*PREDICT, "scene.vrt" if name == "vrt" else "scene.tif"), assert_same_map, point)


def cuts(root, rng):
    """Scenes, labels and grids that are cut into patches."""
    for name, options in SCENES.items():
        if name in ("tiled", "lzw", "floats", "masked", "bigtiff", "motorola"):
            folder = made(root / f"image-{name}")
            write(folder / "scene.tif", pixels_of(rng, **options), **options)
            label(folder, rng)
            yield Seed("image", name, folder, "scene.tif", (*EXTRACT, "label.tif"), assert_patches, None)
    for name, options in LABELS.items():
        folder = made(root / f"label-{name}")
        write(folder / "scene.tif", pixels_of(rng, bands=2), tiled=True, blockxsize=16, blockysize=16)
        label(folder, rng, **options)
        yield Seed("label", name, folder, "label.tif", (*EXTRACT, "label.tif", "--label_map", "0=0", "1=1", "2=2", "3=ignore"), assert_patches, None)
    for target in ("grid.gpkg", "grid.geojson", "grid.fgb", "grid.shp", "grid.shp:grid.dbf", "grid.shp:grid.shx", "grid.shp:grid.prj"):
        folder, (grid, _, part) = made(root / target.replace(":", "-")), target.partition(":")
        write(folder / "scene.tif", pixels_of(rng, bands=2))
        label(folder, rng)
        cells(folder / grid)
        yield Seed("grid", part or grid, folder, part or grid, (*EXTRACT, "label.tif", "--grid", grid), assert_patches, None)


def label(folder, rng, dtype="uint8", **options):
    codes = (np.indices(SIZE).sum(0) // 7 % 4).astype(dtype)
    codes[:4, :20] = np.array(options.get("nodata", 3)).astype(dtype)
    write(folder / "label.tif", codes[None], **options)


def cells(path):
    from cutouts import square, write_vector

    write_vector(path, [square(row, col, 16) for row in (0, 16, 24) for col in (0, 16, 32)], patch_id=[f"c{i}" for i in range(9)])
    path.with_suffix(".cpg").unlink(missing_ok=True)


def checkpoints(root, rng):
    for name in ("whole", "inside"):
        folder = made(root / name)
        write(folder / "scene.tif", pixels_of(rng, bands=2))
        model(folder, 2)
        yield Seed("model" if name == "whole" else "pickle", name, folder, "model.pth", (*PREDICT, "scene.tif"), assert_same_map, point)


def patches(root, rng):
    """Patches that a network is judged on, as this suite and as others write them."""
    import tifffile

    for name in ("image", "label", "foreign", "masked"):
        folder = made(root / name)
        model(folder, 3)
        for i in range(2):
            options = {"dtype": "uint16", "bands": 3, "nodata": None if name == "masked" else 0}
            image, codes = pixels_of(rng, **options), rng.integers(0, 4, (1, *SIZE)).astype("uint8")
            codes[:, :5] = 255
            for kind in ("images", "labels"):
                made(folder / f"data/test/{kind}")
            if name == "foreign":
                tifffile.imwrite(folder / f"data/test/images/p{i}.tif", image, planarconfig="separate", photometric="minisblack", compression="zlib")
            else:
                write(folder / f"data/test/images/p{i}.tif", image, mask=name == "masked", nodata=options["nodata"], compress="deflate", interleave="band")
            write(folder / f"data/test/labels/p{i}.tif", codes, nodata=255, compress="deflate", **({"crs": None, "transform": rasterio.Affine.identity()} if name == "foreign" else {}))
        yield Seed("patch", name, folder, f"data/test/{'labels' if name == 'label' else 'images'}/p0.tif", EVALUATE, assert_scores, point)


def trained(root, rng):
    """What training reads beside patches: metadata, tables, caches, and the state of a run that goes on."""
    from tinypatches import make

    folder = made(root / "first")
    make(folder / "data", (3, 2, 1))
    about = {"bands": {"names": ["red", "green", "nir"], "source_bands": [1, 2, 4], "source_count": 4}, "class_names": ["a", "b", "c"], "settings": {"input_nodata": 0}, "patches": {}}
    (folder / "data/patch_metadata.json").write_text(json.dumps(about, indent=1))
    (folder / "data/patches.csv").write_text("patch,split,scene,place\n" + "".join(f"p{i}.tif,{split},s{i}.tif,p{i}\n" for split, n in (("train", 3), ("validation", 2)) for i in range(n)))
    run = (*TRAIN, "run", "--epochs", 1)
    assert quietly(folder, run, narrow) == 0
    want = weights(folder / "run")
    for name, words in (("metadata", run), ("table", (*TRAIN, "folds", "--epochs", 1, "--val_strategy", "kfold", "--n_splits", 2, "--fold_by", "random", "--subdirectories", "train", "validation"))):
        target = {"metadata": "data/patch_metadata.json", "table": "data/patches.csv"}[name]
        yield Seed(name, name, copied(folder, root / name, "run", "data/.cache"), target, words, assert_described, narrow)
    for cache in sorted((folder / "data/.cache").iterdir()):
        name = cache.name.partition("-")[0]
        yield Seed("cache", name, copied(folder, root / name, "run"), str(cache.relative_to(folder)), run, assert_same_weights, narrow, want)
    words = (*TRAIN, "run", "--epochs", 2, "--resume")
    assert quietly(copied(folder, root / "further"), words, narrow) == 0
    yield Seed("resume", "last", copied(folder, root / "last"), "run/unet-dropout_last.pth", words, assert_same_weights, narrow, weights(root / "further/run"))


def unfinished(root, rng):
    """What a map or an extraction that was cut off has left to go on from."""
    options = {"dtype": "uint16", "bands": 2}
    for job, words in (("map", (*PREDICT, "scene.tif", "--resume", "--save_confidence")), ("patches", (*EXTRACT, "label.tif", "--resume"))):
        folder = made(root / job)
        write(folder / "scene.tif", pixels_of(rng, **options))
        model(folder, 2)
        label(folder, rng)
        assert quietly(copied(folder, root / f"{job}-whole"), words, point) == 0
        want = contents(root / f"{job}-whole")
        with cut_after(1 if job == "map" else 3):
            assert quietly(folder, words, point) is None
        there = [".map.tif.journal.part", ".map.tif.classes.part"] if job == "map" else ["out/.unfinished/" + name for name in ("journal.jsonl", "settings.json", "statistics.bin")]
        for target in there[: 1 if job == "map" else None]:
            yield Seed("journal", f"{job} {Path(target).name}", folder, target, words, assert_same_files, point, want)


KINDS = [scenes, beside, cuts, checkpoints, patches, trained, unfinished]
MAKES = {"scenes": ["scene"], "beside": ["notes", "mask", "vrt"], "cuts": ["image", "label", "grid"], "checkpoints": ["model", "pickle"], "patches": ["patch"],
         "trained": ["metadata", "table", "cache", "resume"], "unfinished": ["journal"]}
MAY_CHANGE = r"\.lock$|/\.[^/]*\.part|\.unfinished|/\.cache/|/run/|/folds/|/scores/"  # what a run keeps of its own, to go on from
SHARE = {"scene": 150, "notes": 20, "mask": 15, "vrt": 30, "image": 40, "label": 40, "grid": 60, "model": 25, "pickle": 30, "patch": 40, "metadata": 12, "table": 8, "cache": 10, "resume": 6, "journal": 24}


def made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def copied(folder, target, *without):
    """A copy of a folder, with its times; `without` are parts that are left out."""
    shutil.copytree(folder, target)
    for name in without:
        shutil.rmtree(target / name)
    return target


def quietly(folder, words, patch):
    """Run a script in a folder; its exit status, or None where it was cut off."""
    os.chdir(folder)
    patch()
    with open(os.devnull, "w") as nowhere:
        there, sys.stdout = sys.stdout, nowhere
        try:
            return leave(*words)
        except Cut:
            return None
        finally:
            sys.stdout = there


# ---------------------------------------------------------------- what must be the same


def contents(folder):
    """What a run has made, but for the inputs."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name not in ("scene.tif", "label.tif", "model.pth")}
    return {name: content for name, content in found.items() if not name.endswith(".json") or "map" not in name}


def weights(folder):
    import torch

    saved = torch.load(next(Path(folder).glob("*_final.pth")), weights_only=True)
    return {name: value.numpy().tobytes() for name, value in saved["model_state_dict"].items()}


def assert_same_weights(seed, status):
    assert weights("run") == seed.want, "the weights are not those of a run that met no damage"


def assert_same_files(seed, status):
    found = contents(".")
    differ = sorted(name for name in seed.want.keys() | found.keys() if seed.want.get(name) != found.get(name))
    assert not differ, f"not as a run that was never cut off makes them: {differ}"


def assert_described(seed, status):
    """A checkpoint says of bands and classes what the metadata say."""
    import torch

    about = json.loads(Path("data/patch_metadata.json").read_text(encoding="utf-8"))
    saved = torch.load(next(Path(".").glob("run/*_final.pth" if seed.kind == "metadata" else "folds/fold1/*_final.pth")), weights_only=True)
    about = about if isinstance(about, dict) else {}
    assert saved["class_names"] == (about.get("class_names") or [f"class_{i}" for i in range(3)]), "other classes than the metadata name"
    names = about["bands"].get("names") if isinstance(about.get("bands"), dict) else None
    assert saved["input"]["names"] == (names if isinstance(names, list) and len(names) == 3 else [f"band_{i}" for i in (1, 2, 3)]), "other bands than the metadata name"
    if seed.kind == "table":
        with open("data/patches.csv", newline="", encoding="utf-8") as f:
            list(csv.DictReader(f))
        division = json.loads(Path("folds/unet-dropout_kfold_metrics.json").read_text())["division"]
        assert sum(validate for _, validate in division["patches"]) == 5, "not every patch validates once"

