"""Decoded patches, kept where they are fetched faster than from their files: --cache."""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from eoseg import files, raster
from eoseg.coding import IGNORE
from eoseg.errors import DataError, SetupError
from eoseg.parallel import in_order
from eoseg.patchset import name_within

VERSION = 3  # of packs, and of what counts as data in them
END = struct.Struct("<QI8s")  # of a pack: length and checksum of the index before it, and a word to know it by
WORD = b"EOPATCH1"


class Patch(NamedTuple):
    """A patch as it is learned from, before normalisation."""

    pixels: np.ndarray  # (B, H, W), the bands in use, in their own type
    holes: Optional[np.ndarray]  # (B, H, W) bool, where no data is; None: nowhere
    target: np.ndarray  # (H, W) uint8


class Reading:
    """Reads a pair's files, each time anew."""

    def __init__(self, bands, coding):
        self.bands, self.coding = bands, coding

    def __call__(self, pair):
        image, label = pair
        pixels, missing, valid = raster.read_patch(image, self.bands.of_patch, self.bands.require_all_bands)
        codes, tag = raster.read_label(label)
        if codes.shape != valid.shape:
            raise DataError(f"{image}: is {valid.shape[0]} x {valid.shape[1]} pixels, its label {codes.shape[0]} x {codes.shape[1]}; extract them again.")
        holes = missing | ~valid
        return Patch(pixels, holes if holes.any() else None, np.where(valid, self.coding.decode(codes, tag, label), IGNORE).astype(np.uint8))


class Remembering:
    """Keeps every pair in memory."""

    def __init__(self, read, pairs, progress):
        self.held = dict(zip((str(image) for image, _ in pairs), progress(in_threads(read, pairs), desc="into memory", total=len(pairs), unit="patch")))

    def __call__(self, pair):
        return self.held[str(pair[0])]


class Mapped:
    """Fetches pairs from a pack: one file, mapped into memory, that all processes share.

    A record is the pixels, the holes as bits where there are any, and the target. The index at the end says where each begins,
    and holds its checksum.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._open()

    def _open(self):
        with open(self.path, "rb") as f:
            self.bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        length, checksum, word = END.unpack(self.bytes[-END.size :])
        index = self.bytes[-END.size - length : -END.size]
        if word != WORD or zlib.crc32(index) != checksum:
            raise ValueError("no pack, or a damaged one")
        about = json.loads(index)
        self.bands, self.dtype, self.records = about["bands"], np.dtype(about["dtype"]), about["records"]

    def __getstate__(self):
        return {"path": self.path}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._open()

    def __call__(self, pair):
        place, rows, cols, holed, checksum = self.records[name_within(pair[0], self.path.parent)]
        area = rows * cols
        parts = self.bands * area * self.dtype.itemsize, -(-self.bands * area // 8) if holed else 0, area
        record = self._copy(place, sum(parts))
        if zlib.crc32(record) != checksum:
            raise DataError(f"{self.path}: is damaged; delete it, it is made anew by the next run.")
        pixels, holes, target = np.split(np.frombuffer(record, np.uint8), np.cumsum(parts[:2]))
        holes = np.unpackbits(holes, count=self.bands * area).view(bool).reshape(self.bands, rows, cols) if holed else None
        return Patch(pixels.view(self.dtype).reshape(self.bands, rows, cols), holes, target.reshape(rows, cols))

    def _copy(self, place, length):
        """Bytes of the pack; the pages they lay on do not stay in this process, whose memory would seem to grow with the pack."""
        found = self.bytes[place : place + length]
        if hasattr(mmap, "MADV_DONTNEED"):
            begin = place // mmap.PAGESIZE * mmap.PAGESIZE
            self.bytes.madvise(mmap.MADV_DONTNEED, begin, place + length - begin)
        return found


def in_threads(read, pairs):
    return in_order(read, pairs, min(8, os.cpu_count() or 1), 16)


def write_pack(path, read, pairs, progress):
    """Read every pair once and write the pack; it appears whole or not at all."""
    records, place, first = {}, 0, None
    with files.replacing(path) as part, open(part, "wb") as out, contextlib.closing(in_threads(read, pairs)) as patches:
        for pair, patch in zip(pairs, progress(patches, desc="packing", total=len(pairs), unit="patch")):
            first = first or patch
            holes = b"" if patch.holes is None else np.packbits(patch.holes).tobytes()
            record = patch.pixels.tobytes() + holes + patch.target.tobytes()
            records[name_within(pair[0], path.parent)] = [place, *patch.target.shape, patch.holes is not None, zlib.crc32(record)]
            place += out.write(record)
            place += out.write(bytes(-place % 64))  # so that every record begins where its type may
        index = json.dumps({"bands": len(first.pixels), "dtype": first.pixels.dtype.str, "records": records}).encode()
        out.write(index + END.pack(len(index), zlib.crc32(index), WORD))


def open_patches(mode, read, pairs, size, folder, key, progress):
    """The way to fetch decoded patches that --cache asks for.

    Args:
        mode: auto, none, disk or ram. read: a Reading. size: bytes of all decoded patches.
        folder: where packs are kept; None where nothing can be written. key: (text, text): what the patches are read as, and their content.
    Returns:
        a function from a pair to a Patch, and a line that says which; None when there is nothing to say.
    Raises:
        SetupError: a pack was asked for and cannot be written.
    """
    if mode == "ram":
        return Remembering(read, pairs, progress), f"cache     {len(pairs)} patches in memory, {megabytes(size)}"
    if mode == "none":
        return read, None
    if folder is None:
        if mode == "disk":
            raise SetupError("--cache disk: neither --dataset_root nor --save_dir can be written to; give --cache ram or none.")
        return read, None
    settings, content = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (f"{VERSION} {key[0]}", key[1]))
    path = folder / f"patches-{settings}-{content}.pack"
    with contextlib.suppress(OSError, ValueError, KeyError, struct.error):
        return Mapped(path), f"cache     {path}"
    for part in folder.glob(".patches-*.part"):  # of a run that was killed; the folder's lock is ours
        files.remove(part)
    room = shutil.disk_usage(folder).free
    if mode == "auto" and room < 2 * size:
        return read, f"cache     none: packing the patches takes {megabytes(size)}, {folder} has {megabytes(room)} left (--cache disk packs them all the same)"
    try:
        write_pack(path, read, pairs, progress)
    except OSError as error:
        if mode == "disk":
            raise SetupError(f"--cache disk: {path} cannot be written ({error.strerror}); free some space, or give --cache ram or none.") from None
        return read, f"cache     none: {path} cannot be written ({error.strerror})"
    for old in folder.glob(f"patches-{settings}-*.pack"):  # of patches as they were before
        if old != path:
            with contextlib.suppress(OSError):  # Windows keeps a file that another run has open
                old.unlink()
    return Mapped(path), f"cache     {path}, {megabytes(size)} (--cache none does without; it may be deleted at any time)"


def megabytes(size):
    return f"{size / 2**30:.1f} GB" if size > 2**30 else f"{size / 2**20:.0f} MB"


def cache_folder(*parents):
    """The first of `parents`/.cache that can be written to, made if need be; None when there is none."""
    for parent in parents:
        folder = Path(parent) / ".cache"
        try:
            folder.mkdir(exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None
