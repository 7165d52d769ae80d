"""What an extraction writes before it is complete, so that a run that is killed can be taken up again."""

import dataclasses as dc
import json
import os
import zlib
from pathlib import Path

from eoseg import files
from eoseg.errors import SetupError, listing
from eoseg.splits import SPLITS

STAGING, COMPLETE = ".unfinished", "complete"
RESULTS = (*SPLITS, "patches.csv", "patches.gpkg", "patch_metadata.json")
PASSING = ("resume", "overwrite", "verbose", "dry_run", "save_metadata")  # options that leave no trace in the patches


def settings_of(options):
    """The options that decide what the patches are; of files the bare names, which are the same on every machine."""
    settings = {key: value for key, value in dc.asdict(options).items() if key not in PASSING}
    return {**settings, "aoi": options.aoi and Path(options.aoi).name}


def fingerprint(pairs, options):
    """What decides the patches' bytes: every option, and each input's name, size and time of change."""
    settings = settings_of(options)
    for pair in pairs:
        for path in [*pair.inputs(), *([options.aoi] if options.aoi else [])]:
            file = file_of(path)
            stat = file.stat() if file.exists() else None
            settings[f"{pair.name}:{path}"] = [stat.st_size, stat.st_mtime] if stat else None
    return json.loads(json.dumps(settings))


def file_of(path):
    """The file of `file|layername=one`."""
    return Path(path.split("|layername=")[0])


def inputs_of(pairs, options):
    """Every file that is read for the pairs, once."""
    return dict.fromkeys(file_of(path) for pair in pairs for path in [*pair.inputs(), *([options.aoi] if options.aoi else [])])


def refuse_existing(output, options, pairs=()):
    """Existing patches are never touched without being told, and inputs that lie among them not at all."""
    if output.exists() and not output.is_dir():
        raise SetupError(f"--output {output}: is a file; name a folder.")
    if {*"\t\r\n"} & {*str(output)}:
        raise SetupError(f"--output {str(output)!r}: has a tab or a line break in its name, which no vector format takes; choose another folder.")
    going = {Path(os.path.realpath(output), name) for name in (*RESULTS, STAGING)}
    for path in inputs_of(pairs, options):
        true, link = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent), path.name)
        if going & {true, link, *true.parents, *link.parents}:
            raise SetupError(f"{path}: is read, and would be replaced by what is written to --output {output}; copy it elsewhere, or choose another folder.")
    there = [name for name in RESULTS if (output / name).exists()]
    if there and not options.overwrite:
        if not (options.dry_run or (output / STAGING / "settings.json").exists()):
            discard(output / STAGING)  # of a run that was killed when all was in its place
        raise SetupError(f"--output {output}: holds patches already ({listing(there)}); choose another folder, "
                         "or give --overwrite to replace them. (--resume goes on with an extraction that was cut off.)")


def refuse_changes(staging, settings):
    """A run goes on only with the very same settings and inputs."""
    before = files.read_json(staging / "settings.json")
    differ = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
    if differ:
        raise SetupError(f"--resume: the run that was cut off was begun with other {listing(differ)}; use the same settings, or leave --resume out to start again.")


def prepare(staging, settings, goes_on, folders):
    """Make the staging folder empty, or, when the run goes on, keep what it holds. `folders`: those of the images."""
    if not goes_on:
        discard(staging)
    for name in (*folders, "labels"):
        (staging / name).mkdir(parents=True, exist_ok=True)
    if goes_on:
        return disassemble(staging, folders)
    files.write_json(staging / "settings.json", settings)


def discard(staging):
    """Remove the staging folder; killed meanwhile, it leaves nothing that looks like a run to go on with. What a link leads to is left alone."""
    if staging.is_symlink():
        return files.remove(staging)
    for name in (COMPLETE, "settings.json"):
        files.remove(staging / name)
    files.remove(staging)


class Journal:
    """The cells that are done, and the statistics of their patches; whole after every `add`, whenever the run is killed.

    A line says: [name, row or reason, [place, length and checksum of each statistics], what the labels remember, [size of
    each file]].

    Args:
        folders: those of the images. sync: a files.Syncing.
    """

    def __init__(self, staging, folders, sync):
        self.done, self.staging, self.folders, self.sync = {}, staging, (*folders, "labels"), sync
        path = staging / "journal.jsonl"
        lines, read = files.unsealed(path.read_bytes() if path.exists() else b"")
        self.done |= {name: rest for name, *rest in lines}
        self.lines, self.statistics = open(path, "ab"), open(staging / "statistics.bin", "a+b")
        self.lines.truncate(read)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.lines.close()
        self.statistics.close()

    def known(self, name):
        """What an earlier run noted of a cell: (row or reason, what the labels remember); (None, None) where it must be cut (again)."""
        entry, spans, memory, sizes = self.done.get(name, (None, [], None, None))
        paths = self._paths(name, entry)
        whole = [path.stat().st_size if path.exists() else None for path in paths] == sizes
        whole = whole and [zlib.crc32(content) for content in self.statistics_of(name)] == [check for _, _, check in spans]
        if entry is None or not whole:  # a power cut may have lost them
            return None, None
        for path in paths:
            self.sync(path)
        return entry, memory

    def _paths(self, name, entry):
        return [self.staging / folder / name for folder in self.folders] if isinstance(entry, dict) else []

    def add(self, name, entry, statistics, memory):
        """Note a cell that is done: first its statistics, then the line that counts."""
        spans, paths = [], self._paths(name, entry)
        for content in statistics:
            spans.append([self.statistics.seek(0, os.SEEK_END), len(content), zlib.crc32(content)])
            self.statistics.write(content)
        self.statistics.flush()
        self.done[name] = [entry, spans, memory, [path.stat().st_size for path in paths]]
        self.lines.write(files.sealed([name, *self.done[name]]))
        self.lines.flush()
        for path in paths:
            self.sync(path)

    def statistics_of(self, name):
        """The bytes of a patch's statistics, one per image."""
        found = []
        for start, length, _ in self.done[name][1] if name in self.done else ():
            self.statistics.seek(start)
            found.append(self.statistics.read(length))
        return found


def assemble(rows, write_tables, staging, folders):
    """Bring the finished patches into the order in which they are to be found.

    Args:
        write_tables: called with the staging folder to write what describes the patches.
    """
    kinds = (*folders, "labels")
    for kind in kinds:
        for split in SPLITS:  # also an empty one has its folders
            (staging / split / kind).mkdir(parents=True, exist_ok=True)
        for row in rows:
            os.rename(staging / kind / row["patch"], staging / row["split"] / kind / row["patch"])
    write_tables(staging)
    files.write_text(staging / COMPLETE, "")


def disassemble(staging, folders):
    """Undo what a killed `assemble` had begun."""
    for split in SPLITS:
        for kind in (*folders, "labels"):
            for path in (staging / split / kind).glob("*.tif"):
                os.rename(path, staging / kind / path.name)


def finish(staging, output):
    """Move what is complete to its place, the metadata last; a killed run is finished by calling this again.

    Returns:
        the metadata.
    """
    for name in RESULTS:
        if (staging / name).exists():
            files.remove(output / name)
            os.rename(staging / name, output / name)
    files.sync_folder(output)
    discard(staging)
    return files.read_json(output / "patch_metadata.json")
