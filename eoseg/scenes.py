"""Which scenes `--input` means, where their maps go, and the table of how they fared."""

import csv
import glob
import re
from pathlib import Path
from threading import Lock

from eoseg import files
from eoseg.errors import SetupError, listing

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".jpg", ".jpeg", ".png", ".bil", ".dat", ".ecw", ".nc", ".hdf")  # of rasters that are looked for in folders
LISTS = (".txt", ".lst")  # of files that hold a scene per line
INDEX = "index.csv"


def scenes_of(words):
    """The scenes that the words of `--input` name, in their order, none twice; and whether more than a plain file was named.

    A word is a raster (a .vrt, a URL or /vsi path too), a folder of rasters, a pattern such as 'S2_*.tif', or a text file with one of these per line.

    Raises:
        SetupError: a folder, pattern or list without a scene.
    """
    found = [scene for word in words for scene in of_word(word)]
    return list(dict.fromkeys(found)), len(words) > 1 or found != list(words)


def of_word(word):
    path = Path(word)
    if re.match(r"/vsi|[a-z0-9+]+://", word):
        return [word]
    if path.is_dir():
        scenes = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith("."))
        remedy = f"it holds no raster ({', '.join(SUFFIXES[:4])} ...)"
    elif path.suffix.lower() in LISTS and path.is_file():
        scenes = [scene for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip() and not line.startswith("#") for scene in of_word(found_from(path.parent, line.strip()))]
        remedy = "it names no scene"
    elif not path.exists() and re.search(r"[*?\[]", word):
        scenes, remedy = sorted(glob.glob(word, recursive=True)), "nothing has such a name"
    else:
        return [word]
    if not scenes:
        raise SetupError(f"--input {word}: {remedy}; check the path.")
    return scenes


def found_from(folder, line):
    """A line of a list: a path from where the list lies, where there is such a file, else as it is written."""
    near = folder / line
    return str(near) if near.exists() or re.search(r"[*?\[]", line) and glob.glob(str(near)) else line


def maps_of(scenes, folder):
    """Where the map of each scene goes: dict scene -> FOLDER/<name of the scene>.tif.

    Raises:
        SetupError: two scenes would have the same map.
    """
    found = {}
    for scene in scenes:
        target = Path(folder) / f"{Path(scene).stem}.tif"
        same = next((other for other, taken in found.items() if taken.name.lower() == target.name.lower()), None)
        if same is not None:
            raise SetupError(f"--input: {same} and {scene} would both be mapped to {target}; map them in two runs, into different folders.")
        if Path(scene).exists() and target.exists() and target.samefile(scene):
            raise SetupError(f"--output {folder}: {scene} lies there, and its map would have the same name; choose another folder.")
        found[scene] = target
    return found


class Index:
    """The table of a run over many scenes, `index.csv`: a row per scene, rewritten whenever one is done. Any thread may add to it.

    Args:
        folder: where it lies; what an earlier run noted there of other scenes is kept. maps: dict scene -> map.
    Raises:
        SetupError: another's index.csv lies there.
    """

    def __init__(self, folder, maps):
        self.path, self.lock = Path(folder) / INDEX, Lock()
        self.scenes, self.rows = list(maps), {row["scene"]: row for row in self._earlier()}
        self.rows |= {scene: {"scene": scene, "map": target.name, "status": "waiting", "seconds": "", "error": ""} for scene, target in maps.items()}

    def _earlier(self):
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as f:
            table = csv.DictReader(f)
            if (table.fieldnames or [])[:3] != ["scene", "map", "status"]:
                raise SetupError(f"--output {self.path.parent}: its {INDEX} is none of ours and would be lost; move it, or choose another folder.")
            return list(table)

    def put(self, scene, status, seconds=None, shares=None, error=""):
        """Note how a scene fared.

        Args:
            status: mapped, skipped (it was there already) or failed. seconds: it took. shares: dict class name -> part of the valid pixels.
        """
        with self.lock:
            self.rows[scene] |= {"status": status, "seconds": "" if seconds is None else round(seconds, 1), "error": error,
                                 **{f"share_{name}": round(share, 6) for name, share in (shares or {}).items()}}
            files.write_csv(self.path, list(self.rows.values()))

    def of(self, status):
        """The scenes that fared so."""
        return [scene for scene in self.scenes if self.rows[scene]["status"] == status]

    def report(self):
        """How many scenes fared how, in words."""
        return ", ".join(f"{len(self.of(status))} {status}" for status in ("mapped", "skipped", "failed") if self.of(status))

    def failures(self):
        """One line that names the failed scenes; empty when there are none."""
        failed = self.of("failed")
        return f"{len(failed)} of {len(self.scenes)} scenes failed: {listing(failed)}; {self.path} says why. Mend them and run again: those that are mapped are skipped." if failed else ""
