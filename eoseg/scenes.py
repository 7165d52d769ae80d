"""Which scenes `--input` means, where their maps go, and the table of how they fared."""

import csv
import glob
import io
import os
import re
import time
from pathlib import Path
from threading import Lock

from eoseg import files
from eoseg.errors import SetupError, listing

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".jpg", ".jpeg", ".png", ".bil", ".dat", ".ecw", ".nc", ".hdf")  # of rasters that are looked for in folders
LISTS = (".txt", ".lst")  # of files that hold a scene per line
INDEX = "index.csv"
FEW = 1000  # rows of a table that is rewritten whenever a scene is done


def scenes_of(words):
    """The scenes that the words of `--input` name, in their order, none twice; and whether more than a plain file was named.

    A word is a raster (a .vrt, a URL or /vsi path too), a folder of rasters, a pattern such as 'S2_*.tif', or a text file with one of these per line.

    Raises:
        SetupError: a folder, pattern or list without a scene.
    """
    found = [scene for word in words for scene in of_word(word)]
    return list(dict.fromkeys(found)), len(words) > 1 or found != list(words)


def of_word(word, above=()):
    """The scenes of one word. `above`: the lists that led to it."""
    path = Path(word)
    if re.match(r"/vsi|[a-z0-9+]+://", word):
        return [word]
    if path.is_dir():
        scenes = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith("."))
        remedy = f"it holds no raster ({', '.join(SUFFIXES[:4])} ...)"
    elif path.suffix.lower() in LISTS and path.is_file():
        scenes, remedy = of_list(path, above), "it names no scene"
    elif not path.exists() and re.search(r"[*?\[]", word):
        scenes, remedy = sorted(glob.glob(word, recursive=True)), "nothing has such a name"
    else:
        return [word]
    if not scenes:
        raise SetupError(f"--input {word}: {remedy}; check the path.")
    return scenes


def of_list(path, above):
    """The scenes that the lines of a file name.

    Raises:
        SetupError: it is no text, or leads to itself.
    """
    if path.resolve() in above:
        raise SetupError(f"--input {path}: is a list that leads to itself; take that line out.")
    try:
        lines = files.read_text(path).splitlines()
    except UnicodeDecodeError:
        raise SetupError(f"--input {path}: is not text in UTF-8; save it as such, a scene per line.") from None
    return [scene for line in lines if line.strip() and not line.startswith("#") for scene in of_word(found_from(path.parent, line.strip()), (*above, path.resolve()))]


def found_from(folder, line):
    """A line of a list: a path from where the list lies, where there is such a file, else as it is written."""
    near = folder / line
    return str(near) if near.exists() or re.search(r"[*?\[]", line) and glob.glob(str(near)) else line


def maps_of(scenes, folder):
    """Where the map of each scene goes: dict scene -> FOLDER/<name of the scene>.tif.

    Raises:
        SetupError: two scenes would have the same map.
    """
    found, taken, inputs = {}, {}, {identity(scene): scene for scene in scenes}
    inputs.pop(None, None)
    for scene in scenes:
        target = Path(folder) / f"{Path(scene).stem}.tif"
        same = taken.setdefault(target.name.lower(), scene)
        if same != scene:
            raise SetupError(f"--input: {same} and {scene} would both be mapped to {target}; map them in two runs, into different folders.")
        there = inputs.get(identity(target))
        if there is not None:
            raise SetupError(f"--output {folder}: {there} lies there, and {'its map' if there == scene else f'the map of {scene}'} would have the same name; choose another folder.")
        found[scene] = target
    return found


def check_sides(maps, options):
    """Raises SetupError where a raster that `options` (PredictionConfig) ask for beside one map would be the map of another scene."""
    mapped = {target.stem.lower(): scene for scene, target in maps.items()}
    for kind in ("confidence", "probabilities", "uncertainty"):
        for scene, target in maps.items() if getattr(options, f"save_{kind}") else ():
            other = mapped.get(f"{target.stem}_{kind}".lower())
            if other is not None:
                raise SetupError(f"--save_{kind}: that of {scene} would have the name of the map of {other}; map them in two runs, into different folders.")


def identity(path):
    """What tells a file, by whatever name it is called; None where there is none."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # a URL perhaps
        return None
    return state.st_dev, state.st_ino


class Index:
    """The table of a run over many scenes, `index.csv`: a row per scene, rewritten whenever one is done (a long one: now and then, and by `close`). Any thread may add to it.

    Args:
        folder: where it lies; what an earlier run noted there of other scenes is kept. maps: dict scene -> map.
    Raises:
        SetupError: another's index.csv lies there.
    """

    def __init__(self, folder, maps):
        self.path, self.lock, self.due, self.stale = Path(folder) / INDEX, Lock(), 0.0, False
        self.scenes, self.rows = list(maps), {row["scene"]: row for row in self._earlier()}
        self.rows |= {scene: {"scene": scene, "map": target.name, "status": "waiting", "seconds": "", "error": ""} for scene, target in maps.items()}

    def _earlier(self):
        if not self.path.exists():
            return []
        try:
            table = csv.DictReader(io.StringIO(files.read_text(self.path)))
            if (table.fieldnames or [])[:3] == ["scene", "map", "status"]:
                return list(table)
        except (SetupError, UnicodeDecodeError, csv.Error):
            pass
        raise SetupError(f"--output {self.path.parent}: its {INDEX} is none of ours and would be lost; move it, or choose another folder.")

    def put(self, scene, status, seconds=None, shares=None, error=""):
        """Note how a scene fared.

        Args:
            status: mapped, skipped (it was there already) or failed. seconds: it took. shares: dict class name -> part of the valid pixels.
        """
        with self.lock:
            self.rows[scene] |= {"status": status, "seconds": "" if seconds is None else round(seconds, 1), "error": error,
                                 **{f"share_{name}": round(share, 6) for name, share in (shares or {}).items()}}
            self.stale = True
            if len(self.rows) <= FEW or time.monotonic() >= self.due:
                self._write()

    def close(self):
        """Bring the file up to date."""
        with self.lock:
            if self.stale:
                self._write()

    def _write(self):
        begun = time.monotonic()
        files.write_csv(self.path, list(self.rows.values()))
        self.stale, self.due = False, 21 * time.monotonic() - 20 * begun  # a table of many thousand rows takes no more than a twentieth of the time

    def of(self, status):
        """The scenes that fared so."""
        return [scene for scene in self.scenes if self.rows[scene]["status"] == status]

    def report(self):
        """How many scenes fared how, in words."""
        return ", ".join(f"{len(self.of(status))} {status}" for status in ("mapped", "skipped", "failed") if self.of(status))

    def failures(self):
        """One line that names the failed scenes; empty when there are none."""
        failed = self.of("failed")
        return f"{len(failed)} of {len(self.scenes)} scenes failed: {listing(failed)}; see why in {self.path}, mend them and run again: those that are mapped are skipped." if failed else ""
