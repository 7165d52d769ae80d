"""What GDAL and tifffile say while they read: what tells of damage becomes our error, the rest a note, and nothing reaches the terminal in their words.

A lost CRS or nodata value is a mere warning to GDAL, which goes on without it.
"""

import contextlib
import ctypes
import logging
import re
import sys
import threading
from pathlib import Path

import rasterio

PREFIX = re.compile(r"^CPLE_\w+(?:: ?| in )(?:[^:]*\.tiff?: )?")  # rasterio's name of the error, and the file's
DAMAGE = re.compile(r'IO error|tags apparently corrupt|"GDALNoDataValue" contains|Bogus|Invalid data type|Incompatible type|tag ignored|Corrupt JPEG|Premature end|HFAEntry|no text|<Tiff(?!Pages).*(?:raised \w+Error|missing|incorrect)')
IDLE = re.compile(r'Incorrect (?:count|value).*"(?:Software|DateTime|Artist|HostComputer|Copyright|DocumentName|Make|Model|PageName|PageNumber|[XY]Resolution|Threshholding)"')
ears, said = threading.local(), set()


class Ear(logging.Handler):
    """Gives a message to whoever listens in this thread; one that nobody waits for is said, once."""

    def emit(self, record):
        text = PREFIX.sub("", record.getMessage()).strip()
        told = record.levelno >= logging.WARNING and "Unable to find driver" not in text  # of those that gdalenv would do without
        if told or DAMAGE.search(text):  # errors after which GDAL went on are mere information to rasterio
            heard(text)


def heard(text):
    if getattr(ears, "heard", None) is not None:
        ears.heard.append(text)
    else:
        say(text)


@contextlib.contextmanager
def listening():
    """Give the list of what GDAL and tifffile say in this thread until the block ends."""
    before, ears.heard = getattr(ears, "heard", None), []
    try:
        yield ears.heard
    finally:
        ears.heard = before


def damage(messages):
    """The first of the messages by which something of a file was lost; None when all of it is there."""
    return next((text for text in messages if DAMAGE.search(text) and not IDLE.search(text)), None)


def say(text, path=None):
    """A note of what GDAL said, of the first file of which it said so."""
    if text not in said:
        said.add(text)
        print(f"note: {f'{path}: ' if path else ''}GDAL: {' '.join(text.split())}", file=sys.stderr)


def hear(name, level):
    """Take over what a library would log."""
    logger = logging.getLogger(name)
    logger.addHandler(Ear())
    logger.propagate = False
    logger.setLevel(level)


def unspoken(failure, before=sys.unraisablehook):
    """rasterio fails to pass on a message that is not UTF-8, as those are that quote a damaged file; Python would print a traceback."""
    if failure.exc_type is UnicodeDecodeError and "rasterio" in str(failure.object):
        heard("a message that is no text")
    else:
        before(failure)


def hush_libtiff():
    """Some messages pass by GDAL: libtiff itself would print them. It lies beside rasterio, in its wheels."""
    for library in Path(rasterio.__file__).parents[1].glob("rasterio.libs/libtiff*"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)


def unprinted(kind, error, trace, before=sys.excepthook):
    """The same failure is printed first, as if the program ended by it."""
    if kind is not UnicodeDecodeError or trace is not None:
        before(kind, error, trace)


sys.unraisablehook, sys.excepthook = unspoken, unprinted
hush_libtiff()
hear("rasterio", logging.INFO)
hear("tifffile", logging.ERROR)  # its warnings are of odd values, such as the nodata -3.4028234663852886e+38 that many programs write
