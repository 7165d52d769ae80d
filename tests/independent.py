"""What must come of a file, computed another way than the product does: by plain numpy in double precision from what rasterio reads."""

import contextlib
import csv
import json
import logging
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags

STEP = 2**-12  # of the product's probabilities
SURE = 4 * STEP  # classes this much more probable than the next are no matter of rounding


class Heard(logging.Handler):
    """Keeps what GDAL says while a block runs."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())

    @contextlib.contextmanager
    def listening(self):
        loggers = [logging.getLogger(name) for name in ("rasterio._env", "rasterio._err", "rasterio._io", "pyogrio._io", "pyogrio")]
        before = [one.level for one in loggers]
        for one in loggers:
            one.addHandler(self)
            one.setLevel(logging.INFO)
        try:
            yield self
        finally:
            for one, level in zip(loggers, before):
                one.removeHandler(self)
                one.setLevel(level)


def about(path):
    """What the header of a raster tells, and what GDAL complains of in it."""
    with Heard().listening() as heard, rasterio.Env(GDAL_VRT_ENABLE_PYTHON="NO"), rasterio.open(path) as src:
        mask = MaskFlags.per_dataset in src.mask_flag_enums[0]
        told = {"CRS": src.crs, "place": None if src.transform.is_identity else src.transform, "nodata": src.nodata, "mask": mask or None,
                "names": src.descriptions if any(src.descriptions) else None, "bands": src.count}
    return told, [line for line in heard.said if "CPLE_" in line]


def lost_in_silence(path, before, said):
    """What a raster had `before` it was spoilt (as `about` tells) and has lost now, where GDAL complains and the run `said` nothing of it; "" for nothing."""
    now, complaints = about(path)
    lost = [key for key, value in before.items() if value is not None and (now[key] is None or key == "bands" and now[key] < value)]
    if not lost or not complaints or any(word in said for word in ("damaged", "GDAL")):
        return ""
    return f"lost in silence: {', '.join(lost)}; GDAL says: {complaints[0]}"


class Scene(NamedTuple):
    """What a raster holds."""

    pixels: np.ndarray  # (B, H, W)
    missing: np.ndarray  # (B, H, W) bool: where a band holds no data
    valid: np.ndarray  # (H, W) bool: where a pixel counts
    torn: np.ndarray  # (H, W) bool: what cannot be read
    vague: np.ndarray  # (H, W) bool: what GDAL reads without a complaint, but each time otherwise
    crs: object
    transform: object


def scene(path, bands=None):
    """A raster as rasterio reads it; of `bands` bands, alpha left out where there is one more."""
    with rasterio.Env(GDAL_VRT_ENABLE_PYTHON="NO"), rasterio.open(path) as src:
        colour = [n for n in src.indexes if src.colorinterp[n - 1] != ColorInterp.alpha]
        use = next((one for one in (list(src.indexes), colour) if len(one) == (bands or len(one))), None)
        assert use, f"was read, although it has {src.count} bands in place of {bands}"
        alpha = [n for n in src.indexes if n not in colour and n not in use]
        (pixels, torn), flags = whole(src, lambda window: src.read(use, window=window)), src.mask_flag_enums[0]
        missing = np.stack([same(band, src.nodatavals[n - 1]) for band, n in zip(pixels, use)])
        valid = ~missing.all(0)
        if alpha:
            valid &= src.read(alpha[0]) > 0
        elif MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            masks, lost = whole(src, lambda window: src.dataset_mask(window=window)[None])
            valid, torn = valid & (masks[0] > 0), torn | lost
        if pixels.dtype.kind == "f":
            finite = np.abs(pixels) <= np.finfo(np.float32).max if pixels.itemsize > 4 else np.isfinite(pixels)
            missing |= ~finite
            valid &= finite.all(0)
        return Scene(pixels, missing, valid, torn, damaged_blocks(path, torn.shape), src.crs, src.transform)


def whole(src, read):
    """What `read` gives of a raster (B, H, W), and where it gives nothing (H, W)."""
    torn = np.zeros((src.height, src.width), bool)
    with contextlib.suppress(rasterio.errors.RasterioError):
        return read(None), torn
    found = np.zeros((len(read_any(src, read)), *torn.shape), src.dtypes[0])
    for _, window in src.block_windows(1):
        here = window.toslices()
        try:
            found[:, *here] = read(window)
        except rasterio.errors.RasterioError:
            torn[here] = True
    return found, torn


def damaged_blocks(path, shape):
    """Pixels (H, W) of a TIFF's deflated blocks that are damaged: where enough comes out of one, libtiff takes what it gets, some of it memory that nobody has filled."""
    import tifffile

    found = np.zeros(shape, bool)
    with contextlib.suppress(Exception), tifffile.TiffFile(path) as tif:  # what is no TIFF has none
        for page in (page for page in tif.pages if page.compression in (8, 32946) and (page.imagelength, page.imagewidth) == shape):
            for index, (place, length) in enumerate(zip(page.dataoffsets, page.databytecounts)):
                tif.filehandle.seek(place)
                try:
                    zlib.decompress(tif.filehandle.read(length))
                except zlib.error:
                    _, (*_, row, col, _), (_, height, width, _) = page.decode(None, index)
                    found[row : row + height, col : col + width] = True
    return found


def read_any(src, read):
    """Bands of one block that can be read."""
    for _, window in src.block_windows(1):
        with contextlib.suppress(rasterio.errors.RasterioError):
            return read(window)
    raise AssertionError("was read, although no block of it can be")


def alike(one, other):
    """Is a CRS another one, as far as a GeoTIFF can hold that?"""
    if one == other:
        return True
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8", crs=other, transform=rasterio.Affine(1, 0, 1, 0, -1, 1)):
            pass
        with memory.open() as src:
            return one == src.crs


def same(band, nodata):
    """Where a band holds the value of its nodata tag."""
    if nodata is None:
        return np.zeros(band.shape, bool)
    if nodata != nodata:
        return np.isnan(band) if band.dtype.kind == "f" else np.zeros(band.shape, bool)
    with np.errstate(all="ignore"):
        held = band.dtype.type(nodata) if band.dtype.kind == "f" else nodata
    return band == held if band.dtype.kind == "f" or float(nodata).is_integer() else np.zeros(band.shape, bool)


def answer(path, pixels, missing):
    """Probabilities (C, H, W) of the 1x1 convolution in a checkpoint, and its class names."""
    import torch

    saved = torch.load(path, map_location="cpu", weights_only=True)
    weight, bias = (saved["model_state_dict"][f"conv.{name}"].double().numpy() for name in ("weight", "bias"))
    told = saved["normalization"]
    offset, scale, fill = (np.array(told[key], np.float32).astype(float)[:, None, None] for key in ("offset", "scale", "fill"))
    values = np.clip((np.where(missing, fill, pixels.astype(np.float32).astype(float)) - offset) * scale, told["low"], told["high"])
    logits = np.einsum("cb,bhw->chw", weight[:, :, 0, 0], values) + bias[:, None, None]
    chance = np.exp(logits - logits.max(0))
    return chance / chance.sum(0), saved["class_names"]


def assert_same_map(seed, status):
    """map.tif holds the classes that the scene's pixels have by the checkpoint, on the scene's place."""
    import torch

    saved = torch.load("model.pth", map_location="cpu", weights_only=True)
    pixels, missing, valid, torn, vague, crs, transform = scene(seed.words[-1], saved["model_state_dict"]["conv.weight"].shape[1])
    assert not torn.any(), "was mapped, although some blocks cannot be read"
    chance, names = answer("model.pth", pixels, missing)
    with rasterio.open("map.tif") as src:
        found, tags = src.read(1), src.tags()
        assert alike(src.crs, crs) and np.allclose(src.transform[:6], transform[:6], equal_nan=True), f"on another place: {src.crs} {src.transform[:6]}"
    second, first = np.sort(chance, 0)[-2:]
    sure = valid & (first - second > SURE) & ~vague
    assert found.shape == valid.shape and (found[~valid & ~vague] == 255).all(), "other pixels are nodata"
    assert (found == chance.argmax(0))[sure].all(), f"{(found != chance.argmax(0))[sure].sum()} of {sure.sum()} pixels are of another class"
    assert [tags.get(f"CLASS_{i}") for i in range(len(names))] == [str(name) for name in names] or not isinstance(names, list), "other names of classes"


# ---------------------------------------------------------------- patches


def assert_patches(seed, status):
    """Every patch is its window of scene and label; what was not cut lacks a label or valid pixels, or is named."""
    pixels, _, valid, torn, vague, crs, transform = scene("scene.tif")
    torn |= vague
    mapping = {0: 0, 1: 1, 2: 2, 3: 255} if "--label_map" in seed.words else {i: i for i in range(255)}
    classes, doubtful = classes_on("label.tif", mapping, valid.shape, crs, transform)
    classes, doubtful = np.where(valid, classes, 255), doubtful | torn
    with open("out/patches.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert rows, "no patches"
    for row in rows:
        top, left, height, width = (int(row[key]) for key in ("row", "col", "height", "width"))
        rows_in, cols_in = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
        inside = slice(max(-top, 0), min(height, valid.shape[0] - top)), slice(max(-left, 0), min(width, valid.shape[1] - left))
        with rasterio.open(f"out/{row['split']}/images/{row['patch']}") as image, rasterio.open(f"out/{row['split']}/labels/{row['patch']}") as label:
            assert alike(image.crs, crs) and np.allclose(image.transform[:6], (transform * transform.translation(left, top))[:6]), f"{row['patch']}: on another place"
            got, wanted, known = image.read()[:, *inside], pixels[:, rows_in, cols_in], (valid & ~torn)[rows_in, cols_in]
            assert np.array_equal(got[:, known], wanted[:, known], equal_nan=got.dtype.kind == "f"), f"{row['patch']}: other pixels"
            target = label.read(1)[inside]
            wrong = (target != classes[rows_in, cols_in]) & ~doubtful[rows_in, cols_in]
            assert not wrong.any(), f"{row['patch']}: {wrong.sum()} labels are others"
    if seed.kind == "grid":
        return assert_cells(seed, rows, transform, crs)
    cut = {(int(row["row"]), int(row["col"])) for row in rows}
    for top in range(0, valid.shape[0], 16):
        for left in range(0, valid.shape[1], 16):
            here = slice(top, top + 16), slice(left, left + 16)
            assert (top, left) in cut or status == 1 or (classes[here][~doubtful[here]] == 255).all(), f"the patch at {top}, {left} is not there"


def classes_on(path, mapping, shape, crs, transform):
    """Classes (H, W) of a label raster on another grid by nearest neighbour, and where rounding may decide."""
    from pyproj import Transformer

    with rasterio.open(path) as src:
        (codes, torn), tag, other, place = whole(src, lambda window: src.read([1], window=window)), src.nodata, src.crs, src.transform
        torn = torn | damaged_blocks(path, torn.shape)
        codes, there = codes[0], np.ones(torn.shape, bool)
        if MaskFlags.per_dataset in src.mask_flag_enums[0] and MaskFlags.alpha not in src.mask_flag_enums[0]:
            masks, lost = whole(src, lambda window: src.read_masks([1], window=window))
            there, torn = masks[0] > 0, torn | lost
    lut = np.full(codes.shape, 255)
    for value in np.unique(codes[np.isfinite(codes) & there & ~same(codes, tag) & ~torn]).tolist():
        assert value in mapping or value == 255, f"label value {value} was taken for a class"
        lut[(codes == value) & there] = mapping.get(value, 255)
    lut[same(codes, tag)] = 255
    row, col = np.indices(shape) + 0.5
    x, y = transform * (col, row)
    if crs != other and crs and other:
        x, y = Transformer.from_crs(crs.to_wkt(), other.to_wkt(), always_xy=True).transform(x, y)
    if place == transform and crs == other and codes.shape == shape:
        return lut, torn
    with np.errstate(all="ignore"):
        col, row = ~place * (x, y)
    near = np.minimum(abs(row - np.rint(row)), abs(col - np.rint(col))) < (0.01 if crs == other else 0.2)
    inside = np.isfinite(row) & np.isfinite(col) & (row >= 0) & (col >= 0) & (row < codes.shape[0]) & (col < codes.shape[1])
    found = np.full(shape, 255)
    found[inside] = lut[row[inside].astype(int), col[inside].astype(int)]
    near[inside] |= torn[row[inside].astype(int), col[inside].astype(int)]
    return found, near | ~np.isfinite(row)


def assert_cells(seed, rows, transform, crs):
    """Patches lie where the cells of their ids do, as far as these are upright squares."""
    import geopandas

    frame = geopandas.read_file(seed.words[-1])
    frame = frame.to_crs(crs.to_wkt()) if frame.crs is not None and frame.crs != crs.to_wkt() else frame
    names = {name.lower(): name for name in frame.columns}
    ids = [str(value) for value in frame[names["patch_id"]]] if "patch_id" in names else [str(i) for i in range(len(frame))]
    known = dict(zip(ids, frame.geometry))
    for row in rows:
        shape = known.get(row["id"]) if len(known) == len(ids) and row["id"].startswith("c") else None
        if shape is None or not np.isclose(shape.area, shape.envelope.area):
            continue
        west, south, east, north = shape.bounds
        col, line = ~transform * ((west + east) / 2, (south + north) / 2)
        assert max(abs(int(row["row"]) + 8 - line), abs(int(row["col"]) + 8 - col)) <= 0.51, f"cell {row['id']} lies elsewhere"


def assert_scores(seed, status):
    """The confusion matrix is that of the patches as rasterio reads them."""
    (path,) = Path("scores").glob("*/metrics.json")
    found, matrix = json.loads(path.read_text())["scores"]["confusion_matrix"], np.zeros((4, 4), int)
    doubtful = 0
    for image in sorted(Path("data/test/images").iterdir()):
        pixels, missing, valid, _, vague, *_ = scene(image, 3)
        chance, _ = answer("model.pth", pixels, missing | ~valid)
        second, first = np.sort(chance, 0)[-2:]
        with rasterio.open(image.parents[1] / "labels" / image.name) as src:
            codes = src.read(1)
            known = valid & (codes != 255) & ~same(codes, src.nodata)
        vague |= damaged_blocks(image.parents[1] / "labels" / image.name, codes.shape)
        known &= ~vague
        assert (codes[known] < 4).all(), "label values were taken for classes"
        doubtful += int((known & (first - second <= SURE)).sum() + vague.sum())
        np.add.at(matrix, (codes[known].astype(int), chance.argmax(0)[known]), 1)
    assert abs(np.array(found) - matrix).sum() <= 2 * doubtful, f"scores of other pixels: {np.array(found).sum()} counted, {matrix.sum()} are there"
