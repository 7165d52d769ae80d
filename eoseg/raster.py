"""The only room that opens image files: scenes, patches, and the maps made from them.

Bands count from 1 here, as in GDAL. Windows are `tiles.Window`, rows before columns.
"""

import os
import warnings
from typing import NamedTuple, Optional

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from eoseg import files, gdalenv, gdallog  # noqa: F401 (gdalenv acts by being imported)
from eoseg.bands import band_names, choose_bands
from eoseg.errors import DataError, ReadError, SetupError
from eoseg.tiles import same_grid, strips
from eoseg.validity import called_alpha, held, is_alpha, mask_kind, missing_and_valid
from eoseg.vetting import MOST_SHRUNK, check_file, check_header
from eoseg.vrt import vrt_of

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # said in our own words where it matters
STRIP = 2**24  # bytes of pixels that are read at once, where what was decoded for them stays in GDAL's cache
CACHE = 48 * 2**20  # bytes that GDAL's cache holds at most, unless the user set another size
WRITING = 4 * 2**20  # bytes of it while a map is written: more is filled by a long scene, and no quicker
KEPT = 40 * 2**20  # bytes that GDAL's cache holds for certain
THREADS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
GDAL_NODATA = 42113  # TIFF tag
PLACE = (33550, 33922, 34264, 34735, 34736, 34737)  # TIFF tags: pixel scale, tie points, matrix; keys of the CRS, their numbers and texts


# ---------------------------------------------------------------- opening


def open_raster(path, threads=1):
    """Open a raster to read, or say in one line why it cannot be used.

    Args:
        threads: that decode the blocks of one read; GeoTIFFs only.
    Raises:
        DataError: missing, empty, damaged, complex, placed by control points only, or not what its name says.
    """
    check_file(path)
    with gdallog.listening() as heard:
        try:
            src = rasterio.open(path, **({"num_threads": threads} if threads > 1 and str(path).lower().endswith((".tif", ".tiff")) else {}))
        except (RasterioError, UnicodeDecodeError) as error:  # rasterio takes GDAL's messages for UTF-8, though they may quote bytes of the file
            raise DataError(f"{path}: cannot be opened as a raster ({error}); check the file with gdalinfo.") from None
        try:
            if gdallog.damage(heard):
                raise DataError(f"{path}: is damaged or truncated ({gdallog.damage(heard)}); copy, download or extract it again.")
            check_header(src, path)
        except DataError:
            src.close()
            raise
    for text in heard:
        gdallog.say(text, path)
    return src


# ---------------------------------------------------------------- pixels and which of them count


class Scene:
    """An open scene: the bands in use, and one answer to which of its pixels count.

    Args:
        bands: numbers or names; all bands when None, except an alpha band, which is a mask unless it is named here.
        nodata: value to use in place of the file's tag.
        like: a Scene whose grid this one is brought onto. resampling: how, a name of rasterio's Resampling.
        threads: that decode its blocks.
    """

    def __init__(self, path, bands=None, nodata=None, require_all_bands=False, like=None, resampling="bilinear", threads=THREADS // 2):
        self.path, self.file, self.require_all_bands = path, open_raster(path, threads), require_all_bands
        names = band_names(self.file)
        colour = [number for number in self.file.indexes if not is_alpha(self.file, number)]
        self.bands = choose_bands(names, bands, path) if bands else colour or [1]
        self.names = [names[band - 1] for band in self.bands]
        self.dtype = np.result_type(*(self.file.dtypes[band - 1] for band in self.bands))
        if nodata is not None and held(nodata, self.dtype) is None:
            raise SetupError(f"--input_nodata {nodata:g}: no pixel of {path} can hold it, its type is {self.dtype}; give a value that occurs.")
        tags = [self.file.nodatavals[band - 1] for band in self.bands]
        self.nodata = [held(value, self.dtype) for value in ([nodata] * len(tags) if nodata is not None else tags)]
        spare = [number for number in self.file.indexes if number not in colour and number not in self.bands]
        self.alpha = spare[0] if spare else None  # the band that is a mask; GDAL itself heeds it in files of 2 and 4 bands alone
        self.masked = self.alpha is not None or mask_kind(self.file) == "mask"
        self.moved = like is not None and not same_grid(self.file, like)
        self.onto = like, resampling, self.alpha
        self.src = self._onto(*self.onto) if self.moved else self.file
        self.height, self.width = self.src.height, self.src.width
        self.crs, self.transform = self.src.crs, self.src.transform

    def _onto(self, like, resampling, alpha):
        """This scene on the grid of another one; an alpha band tells where it has no pixels."""
        if not self.file.crs or not like.crs:
            raise DataError(f"{self.path}: lies on another grid than {like.path} and one of them has no CRS; set it with gdal_edit.py -a_srs.")
        nodata = self.fill if self.fill is not None or self.dtype.kind != "f" else np.nan
        view = aligned(self.file, like, resampling, nodata, alpha)
        self.alpha, self.masked = alpha or view.count, True
        return view

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def close(self):
        if self.moved:
            self.src.close()
        self.file.close()

    def reading_order(self, windows):
        """Indices of `windows` in the order in which each block is decoded once: down columns so narrow that a row of blocks stays in GDAL's cache."""
        rows, cols = self.file.block_shapes[0]
        touched = (-(-self._tallest(windows) // rows) + 1) * rows  # of the blocks that a row of windows needs
        wide = self.width if cols >= self.width else max(1, min(KEPT // touched, STRIP // self._tallest(windows)) // self.pixel_bytes)
        return sorted(range(len(windows)), key=lambda i: (windows[i].col // wide, windows[i].row, windows[i].col))

    def strips(self, windows, pixel_bytes=None):
        """`windows`, in reading order, in groups that are best read at once: [(strip, [index, ...])].

        Args:
            pixel_bytes: of all images that are read together.
        """
        striped = self.file.block_shapes[0][1] >= self.width
        lost = striped and self._tallest(windows) * self.width * self.pixel_bytes > KEPT  # decoded anew for each part of a row
        return strips(windows, (16 if lost else 1 if striped else 2) * STRIP // (pixel_bytes or self.pixel_bytes))

    @staticmethod
    def _tallest(windows):
        return max((window.height for window in windows), default=1)

    @property
    def fill(self):
        """The one value that a patch's nodata tag can hold; None when the scene has none."""
        return next((value for value in self.nodata if value is not None), None)

    @property
    def block_height(self):
        """Rows of a block of the file, or of the view of it."""
        return self.src.block_shapes[0][0]

    @property
    def pixel_bytes(self):
        return len(self.bands) * self.dtype.itemsize

    def read(self, window):
        """Read a window that lies inside the image.

        Returns:
            pixels (B, H, W) in the file's own type and unit; missing (B, H, W) bool; valid (H, W) bool.
        """
        pixels, mask = self.raw(window)
        return pixels, *self.judged(pixels, mask)

    def raw(self, window):
        """What the file holds in a window: pixels (B, H, W), and the mask (H, W) of files that have one, else True."""
        where = grid_window(window)
        try:
            with gdallog.listening() as heard:
                pixels = self.src.read(self.bands, window=where, out_dtype=self.dtype)
                mask = (self.src.read(self.alpha, window=where) if self.alpha else self.src.dataset_mask(window=where)) > 0 if self.masked else True
            lost = gdallog.damage(heard)
        except RasterioError as error:
            lost = deepest(error)
        if lost:
            self._forget()
            raise ReadError(f"{self.path}: rows {window.row} to {window.row + window.height - 1} cannot be read ({lost}); "
                            "the file is truncated or damaged, copy or download it again.")
        return pixels, mask

    def _forget(self):
        """Open the file anew, for one thread: GDAL's cache may hold zeros for a block that could not be decoded, and the next read would take them for pixels."""
        self.close()
        self.file = open_raster(self.path)
        self.src = self._onto(*self.onto) if self.moved else self.file

    def judged(self, pixels, mask):
        """Which of the pixels that `raw` read count: missing (B, H, W), valid (H, W)."""
        missing, valid = missing_and_valid(pixels, self.nodata, self.require_all_bands)
        return missing, valid & mask

    def placed(self, window, scale=(1.0, 1.0)):
        """The geotransform of a window; `scale` is the size of its pixels (rows, columns) in pixels of the scene."""
        return self.transform * Affine.translation(window.col, window.row) * Affine.scale(scale[1], scale[0])


def deepest(error):
    """GDAL's own words; rasterio's outer message often says only that a read failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).rstrip(".") or type(error).__name__


def grid_window(window):
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)


def aligned(src, scene, resampling="nearest", nodata=None, alpha=None):
    """A view of the open raster `src` on the grid of `scene`, with an alpha band last.

    The alpha band is 0 where the view leaves `src` or meets its mask. By nearest neighbour, values pass unchanged; other
    ways mix no pixel of the value `nodata` into its neighbours. With None, the value of the nodata tag is one like any other.

    Args:
        alpha: number of the band that is the mask of `src`, and of the view then; None: it has none.
    """
    if [number for number in src.indexes if called_alpha(src, number)] not in ([], [alpha]):
        raise DataError(f"{src.name}: lies on another grid than {scene.path} and has a band that GDAL calls alpha; bring it onto that grid with gdalwarp first.")
    empty = {} if nodata is None else {"init_dest_nodata": False, "INIT_DEST": str(nodata)}  # of each band by itself
    try:
        return WarpedVRT(src, crs=scene.crs, transform=scene.transform, width=scene.width, height=scene.height, resampling=Resampling[resampling],
                         src_nodata=nodata, nodata=nodata, add_alpha=alpha is None, tolerance=1e-6,  # pixels; rasterio fails on a tolerance of 0
                         UNIFIED_SRC_NODATA="PARTIAL", **empty)  # each band by itself, but no pixel grows where no band holds data
    except (RasterioError, CPLE_BaseError):
        raise DataError(f"{src.name}: nothing leads from its CRS to that of {scene.path}; give both the same with gdal_edit.py -a_srs.") from None


def bounds_in(src, crs):
    """West, south, east and north of an open raster, in another CRS."""
    return transform_bounds(src.crs, crs, *src.bounds)


# ---------------------------------------------------------------- patches


class Stored(NamedTuple):
    """What a patch file holds."""

    pixels: np.ndarray  # (B, H, W) in its own type
    nodata: Optional[float]
    mask: object = True  # (H, W) bool, True where pixels are; True where the file has no mask
    place: Optional[dict] = None  # GeoTIFF tags by number; None where GDAL must be asked

    def judged(self, bands=None, require_all_bands=False):
        """Pixels, missing and valid, as `read_patch` gives them."""
        pixels = self.pixels if bands is None else self.pixels[bands]
        missing, valid = missing_and_valid(pixels, [self.nodata] * len(pixels), require_all_bands)
        return pixels, missing, valid & self.mask


def stored(path, label=False):
    """A patch file as Stored; the axis of the bands is taken from the TIFF's planar configuration, never guessed from the shape.

    Raises:
        DataError: missing, damaged, several images in one file, or a `label` of several bands.
    """
    found = os.path.isfile(path) and read_with_tifffile(path) or read_with_gdal(path)  # a pipe would never end
    if label and len(found.pixels) != 1:
        raise DataError(f"{path}: has {len(found.pixels)} bands; a label is one band of class codes.")
    if label and found.mask is not True:  # what a mask hides is unlabelled, as NaN is
        found = found._replace(pixels=np.where(found.mask, found.pixels.astype(np.float64), np.nan), mask=True)
    return found


def read_patch(path, bands=None, require_all_bands=False):
    """Read a patch: pixels (B, H, W) in its own type, missing (B, H, W) and valid (H, W) as `Scene.read` gives them.

    Args:
        bands: which, counted from 0; all when None. Only they decide what is valid, as in a scene.
    """
    return stored(path).judged(bands, require_all_bands)


def read_label(path):
    """Read a label patch: its codes (H, W) and the value of its nodata tag (None: it has none)."""
    found = stored(path, label=True)
    return found.pixels[0], found.nodata


def read_with_tifffile(path):
    """A file as Stored; None where GDAL must try: no TIFF, a codec tifffile lacks, or damage."""
    import tifffile

    if any(os.path.exists(f"{path}{ending}") for ending in (".msk", ".aux.xml")):  # GDAL heeds them
        return None
    try:
        with gdallog.listening() as heard, tifffile.TiffFile(path) as tif:
            pages = [tif.pages[i] for i in range(len(tif.pages))]  # to go through them by themselves takes for ever where the last leads to the first
            if max(page.nbytes for page in pages) > MOST_SHRUNK * tif.filehandle.size:
                return None  # GDAL's header check has words for it
            images = [page for page in pages if not page.subfiletype and page.dtype.kind != "c"]  # overviews and masks have a type; GDAL refuses complex ones
            masks = [page.asarray() > 0 for page in pages if page.subfiletype == 4]
            page = images[0]
            if page.dtype in (np.bool_, np.float16):  # which GDAL reads as uint8 and float32
                return None
            pixels, tag = page.asarray(maxworkers=1), page.tags.get(GDAL_NODATA)  # whoever reads many patches has threads already
            rows, cols, bands = page.imagelength, page.imagewidth, page.samplesperpixel
            nodata = float(tag.value.strip(" \0")) if tag else None
            place = {number: page.tags[number].value for number in PLACE if number in page.tags}
    except Exception:
        return None
    if gdallog.damage(heard):
        return None
    if len(images) > 1:
        raise DataError(f"{path}: holds {len(images)} images, not one image of several bands; "
                        "write the bands into one image (rasterio, or tifffile with planarconfig='separate').")
    if page.planarconfig == 1:
        pixels = np.moveaxis(pixels.reshape(rows, cols, bands), 2, 0)
    return Stored(pixels.reshape(bands, rows, cols), nodata, masks[0] if masks else True, place)


def read_with_gdal(path):
    with open_raster(path) as src, gdallog.listening() as heard:
        try:
            masked = mask_kind(src) == "mask"  # an alpha band is read as a band, as tifffile does
            found = Stored(src.read(), src.nodata, src.dataset_mask() > 0 if masked else True)
            lost = gdallog.damage(heard)
        except RasterioError as error:
            lost = deepest(error)
    if lost:
        raise DataError(f"{path}: cannot be read ({lost}); it is damaged, extract it again.")
    return found


# ---------------------------------------------------------------- maps

def raw_to_cog(raw, target, look):
    """Copy rows of raw pixels into a Cloud-Optimized GeoTIFF at `target`; it appears whole or not at all.

    Args:
        raw: file of height x width pixels, row after row, band after band, in the machine's byte order.
        look: dict of height, width, dtype, crs, transform, nodata, `bands` (their descriptions), `overview` (how GDAL thins
            them: MODE for classes, AVERAGE for measurements), perhaps `scale`, and `tags`, a dict of text; for classes `colours` [(r, g, b)] and `names`.
    """
    vrt, part_names = (files.fresh(files.part_of(target, kind)) for kind in ("part.vrt", "part.aux.xml"))
    names = target.with_name(target.name + ".aux.xml")

    def complete(part):
        lost = [text for text in heard if "Unable to save" in text]  # for GDAL, a map without the names of its classes will do
        if lost:
            raise SetupError(f"{target}: could not be written whole ({lost[0]}); is the disk full?")
        check_map(part, look)
        if part_names.exists():  # class names: first the names, then the map, so that no map stands there without
            files.put(part_names, names)
        else:
            names.unlink(missing_ok=True)  # GDAL's notes on the map that stood here before

    try:
        vrt.write_text(vrt_of(raw, look), encoding="utf-8")
        with gdallog.listening() as heard, files.replacing(target, check=complete) as part, rasterio.Env(GDAL_CACHEMAX=WRITING):
            rasterio.shutil.copy(vrt, part, driver="COG", compress="DEFLATE", bigtiff="IF_SAFER",
                                 overview_resampling=look["overview"], predictor="YES", num_threads="2")
    except (RasterioError, CPLE_BaseError, SystemError) as error:  # whatever rasterio makes of GDAL's words
        raise SetupError(f"{target}: could not be written ({deepest(error)}); is the disk full?") from None
    finally:
        vrt.unlink(missing_ok=True)
        part_names.unlink(missing_ok=True)


def check_map(path, look):
    """Re-open what GDAL wrote: it does not report every full disk, and the last writes not at all. Where a block is missing, there would be nodata."""
    with rasterio.open(path) as src:
        if (src.height, src.width, src.count, src.dtypes[0]) != (look["height"], look["width"], len(look["bands"]), look["dtype"]):
            raise SetupError(f"{path}: was not written whole; is the disk full?")
        for level in (None, *range(len(src.overviews(1)))):
            with rasterio.open(path, **({} if level is None else {"overview_level": level})) as view:
                for (row, col), window in view.block_windows(1):
                    view.read(window=window)  # every block decodes
                    if any(src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band, ovr=level) is None for band in src.indexes):
                        raise SetupError(f"{path}: was not written whole; is the disk full?")


def thumbnail(path, longest=1200, bands=None, nodata=None):
    """A reduced view by nearest pixel: (B, h, w) masked array, and how many pixels of the file one of its pixels spans.

    Masked as the file says, and where no finite number stands or, in each band, its value in `nodata`.
    """
    with open_raster(path) as src:
        step = max(1.0, max(src.height, src.width) / longest)
        shape = max(1, round(src.height / step)), max(1, round(src.width / step))
        bands = bands or src.indexes
        found = src.read(bands, out_shape=(len(bands), *shape), masked=True, resampling=Resampling.nearest)
    missing, _ = missing_and_valid(found.data, nodata or [None] * len(bands))
    return np.ma.array(found.data, mask=np.ma.getmaskarray(found) | missing), step


def tags(path):
    """The texts a raster carries, a dict."""
    with open_raster(path) as src:
        return src.tags()


class Header(NamedTuple):
    """Size and place of a raster that is there, or is wanted by what `path` tells."""

    height: int
    width: int
    crs: object
    transform: Affine
    nodata: object = None
    path: str = ""


def header(path):
    """Open a raster just to see where it lies."""
    with open_raster(path) as src:
        return Header(src.height, src.width, src.crs, src.transform, src.nodata, str(path))
