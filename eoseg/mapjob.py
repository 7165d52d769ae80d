"""One scene on its way to a map: what is settled before its first row is read, and what is made when its last one is there."""

import hashlib
import json
import os
import re
from contextlib import ExitStack, closing
from pathlib import Path

from eoseg import budget, files, legends, memory, plots, polygons, raster
from eoseg.committee import answers_of
from eoseg.errors import DataError, SetupError, listing
from eoseg.fitting import open_scene
from eoseg.georef import pixel_size
from eoseg.labels import open_area
from eoseg.mapfile import SETTINGS, MapFile, beside, check_settings, drop_other, in_the_making, journal_of, layers_of, parts_of, settings_begun, strips_begun
from eoseg.network import network_size
from eoseg.parallel import ahead
from eoseg.reading import RowReader
from eoseg.tiles import Window
from eoseg.tiling import Axis, strips_of


class Job:
    """One scene on its way to a map by one network. Making it settles all that can be settled before a row is read.

    As a context it holds its files, and closes the scene in the end.

    Args:
        network: network.Network, quickened. path: the scene. output: Path of the map. options: PredictionConfig. say: takes a line of report.
        means: budget.Means; None: they are looked up.
    """

    def __init__(self, network, path, output, options, say, means=None):
        if network.binary and options.background_value:
            network = network._replace(class_names=network.class_names[::-1])  # a number keeps its meaning: names and colours swap with it
        check_options(network, options)
        self.network, self.path, self.output, self.say, self.means, self.held = network, path, output, say, means, ExitStack()
        self.scene, self.options = open_scene(network, path, options, say)
        self.held.enter_context(self.scene)
        self.area = open_area(self.scene, self.options, say)
        if self.area and not len(self.area.hits(Window(0, 0, self.scene.height, self.scene.width))):
            raise DataError(f"{options.aoi}: lies beside {path}; check that it shows the same place, or name its true CRS with --vector_crs.")
        fit = lambda length: network_size(network, length)
        self.rows, self.cols = Axis(self.scene.height, options, fit), Axis(self.scene.width, options, fit)
        self.settings = settings_of(network, path, self.scene, self.options)
        self.look = {"height": self.scene.height, "width": self.scene.width, "crs": self.scene.crs, "transform": self.scene.transform, "nodata": options.output_nodata}
        self.numbers = list(network.codes if options.original_codes else range(len(network.class_names)))
        self.palette = legends.palette_of(network.class_names, options.palette, self.numbers, say)
        self.legend = by_number(network.class_names, self.numbers, ""), by_number(self.palette, self.numbers, (0, 0, 0))
        self.layers = layers_of(output, network.class_names, *self.legend, self.options, answers_of(network, options.tta))
        self.ramps = [layer for layer in self.layers if layer.path and layer.kind in ("confidence", "uncertainty")]
        self.polygons = polygons.target_of(options, output) if options.polygons is not None else None
        if self.polygons:
            polygons.check(self.polygons, self.look, options)
        self.canvas, self.coming, self.reader, self.jobs = None, (), None, []
        say(f"scene     {path}: {self.scene.height} x {self.scene.width} pixels, {len(self.rows.starts) * len(self.cols.starts):,} tiles of {self.rows.size} x {self.cols.size}")

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.held.close()

    def plan(self):
        """Say what the map will cost, and what will keep it from being made; nothing is written."""
        with self:
            for line in budget.report(self.output, self.scene, self.rows, self.cols, self.area, self.options, self.layers, self.costs()):
                self.say(line)
            refuse_existing(self)
            budget.check_disk(self.output, self.scene.height * self.scene.width, self.layers)
            self.say("dry run   nothing was written")

    def written(self):
        """Paths of all that the job will write."""
        endings = [".qml", ".json", *["_patches"] * self.options.save_patches, *["_quicklook.png"] * self.options.quicklook]
        return [self.output, *(layer.path for layer in self.layers if layer.path), *(layer.path.with_suffix(".qml") for layer in self.ramps),
                *(beside(self.output, ending) for ending in endings), *[self.polygons] * bool(self.polygons)]

    def begin(self, lenient=False):
        """Hold the files, and begin to read; False when the map is finished already.

        Args:
            lenient: what was begun with other settings is begun anew, not refused.
        """
        self.held.enter_context(files.lock(self.output.parent, f".{self.output.name}.lock"))
        refuse_existing(self)
        if lenient:
            drop_other(self.output, settings_begun(self.settings, self.layers))
        if self.options.resume and self.is_finished():
            return False
        start(self, self.open_map(self.costs(strips_begun(self.output) if self.options.resume else None)))
        self.held.enter_context(closing(self.coming))
        return True

    def is_finished(self):
        """Is there a whole map of these settings, with all that is asked for, and none in the making?

        Raises:
            SetupError: there is a whole map, of other settings.
        """
        if not self.output.exists() or in_the_making(self.output):
            return False
        check_settings(self.output, {key: value for key, value in self.settings.items() if key != "scene_time"}, settings_told(self.output))
        return not (self.options.save_patches and not beside(self.output, "_patches").exists())

    def costs(self, strips=None):
        """budget.Costs; with `strips` of a run that is gone on with."""
        strips = strips if strips and strips <= len(self.cols.starts) else None
        costs = budget.costs_of(self.network, self.scene, self.rows, self.cols, self.options, self.layers, strips, self.means)
        if costs.memory > costs.limit:
            self.say(f"note: --max_memory {memory.shown(costs.limit)}: the map was begun in {strips} strip{'s' * (strips > 1)}, which take about {memory.shown(costs.memory)}")
        elif costs.strips > 1 and not self.options.dry_run:
            self.say(f"memory    {costs.strips} strips of columns, one after the other: about {memory.shown(costs.memory)} of {memory.shown(costs.limit)}")
        return costs

    def open_map(self, costs):
        """The map in the making."""
        scene, options, output = self.scene, self.options, self.output
        held = sum(getattr(part.stat(), "st_blocks", 0) * 512 for part in parts_of(output) if part.exists())
        budget.check_disk(output, scene.height * scene.width, self.layers, held)
        if in_the_making(output) and not (options.resume or options.overwrite):
            self.say("note: what an earlier run has begun of this map is made anew; --resume would have gone on with it")
        canvas = MapFile(output, self.look, self.network.class_names, self.layers, self.settings, costs.strips, options.resume)
        for old in beside(output, "_patches").glob("patch_*.tif") if options.save_patches and not (canvas.strip or canvas.row) else ():
            if re.fullmatch(r"patch_\d+_\d+", old.stem):  # of other tiles, perhaps
                old.unlink()
        if canvas.strip or canvas.row:
            self.say(f"resumed   after row {canvas.row}" + (f" of strip {canvas.strip + 1} of {canvas.strips}" if canvas.strips > 1 else ""))
        return canvas

    def finish(self):
        """Make the GeoTIFFs, and what is drawn from them. Any thread may.

        Returns:
            the summary; None when the map was finished already.
        """
        summary = None
        if self.canvas:
            self.canvas.finish()
            summary = self.canvas.summary()
            self.describe(summary)
        for path, make in ((self.polygons, self.draw_polygons), (beside(self.output, "_quicklook.png") if self.options.quicklook else None, self.draw_quicklook)):
            if path and (summary or not path.exists()):
                make(path)
                if not summary:
                    self.say(f"wrote     {path}")
            elif path:
                self.say(f"note: {path}: is there already and stays; --overwrite makes it anew")
        if self.canvas:
            self.canvas.discard()
        return summary

    def draw_polygons(self, path):
        """The finished map's areas as polygons."""
        try:
            polygons.write(path, *self.drawn(), self.look, self.network.class_names, self.numbers, self.options, self.say)
        except SetupError as error:
            raise SetupError(f"{error} The map {self.output} itself is complete; --resume goes on with the polygons.") from None

    def draw_quicklook(self, path):
        """Scene and map side by side."""
        names = self.network.input["names"] if self.network.input else self.scene.names
        plots.draw_quicklook(self.scene, names, self.output, *self.legend, path)

    def describe(self, summary):
        """Put styles for QGIS and a card of what the map holds beside it."""
        legends.write_qml(beside(self.output, ".qml"), self.network.class_names, self.palette, self.numbers)
        for layer in self.ramps:
            legends.write_qml_ramp(layer.path.with_suffix(".qml"), layer.bands[0])
        scene, size = self.scene, pixel_size(self.scene)
        models = [{"path": one.path, "name": one.name, "sha256": sha} for one, sha in zip(self.network.members, self.settings["model"].split())]
        legends.write_card(beside(self.output, ".json"), summary, {
            "numbers": self.numbers, "palette": self.palette, "models": models, "settings": {key: value for key, value in self.settings.items() if key not in ("model", "scene", "scene_time")},
            "scene": {"name": Path(self.path).name, "size": [scene.height, scene.width], "crs": scene.crs.to_string() if scene.crs else None, "pixel_size": size[:2] if size else None}})

    def drawn(self):
        """Classes (H, W) and confidence (H, W; None where unknown) of the finished map."""
        if self.canvas:
            return self.canvas.rows("classes")[0], self.canvas.rows("confidence")[0]
        sure = beside(self.output, "_confidence.tif")
        return raster.stored(self.output).pixels[0], raster.stored(sure).pixels[0] if self.options.save_confidence and sure.exists() else None


def settings_told(path):
    """The settings that the tag of a finished map tells; {} where it is another program's."""
    try:
        found = json.loads(raster.tags(path).get(SETTINGS, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def by_number(values, numbers, otherwise):
    """A value for every number of the map from 0 to the highest; those that stand for no class get another."""
    of = dict(zip(numbers, values))
    return [of.get(number, otherwise) for number in range(max(numbers) + 1)]


def refuse_existing(job):
    """Inputs are never overwritten, existing maps and what lies beside them only when told."""
    refuse_in_the_way(job)
    there, options = [file for file in dict.fromkeys(job.written()) if os.path.lexists(file)], job.options
    for source in filter(None, [job.path, options.aoi and options.aoi.split("|layername=")[0], options.palette, *(one.path for one in job.network.members)]):
        for file in there:
            if Path(source).exists() and file.exists() and file.samefile(source):
                raise SetupError(f"--output {job.output}: {file} is the input itself; name another file." if source == job.path
                                 else f"{file}: is read and would be written; name another file.")
    going_on = options.resume and (job.output.exists() or in_the_making(job.output) or legends.is_card(beside(job.output, ".json")))
    if there and not (options.overwrite or going_on):
        raise SetupError(f"--output {job.output}: {listing(file.name for file in there)} there already; "
                         "give --overwrite to replace it, --resume to go on with a map that was cut off, or another name.")


def refuse_in_the_way(job):
    """Said now, not when all is computed: a folder where a file is to be written, even for a while, or a file where a folder is."""
    patches = beside(job.output, "_patches")
    if job.options.save_patches and patches.exists() and not patches.is_dir():
        raise SetupError(f"{patches}: is a file, and a folder of this name is to be made; move it away, or choose another --output.")
    written = [path for path in job.written() if path != patches]
    written += [path.with_name(f"{path.name}.aux.xml") for path in written if path.suffix.lower() in (".tif", ".tiff")]
    for path in (*written, *map(files.part_of, written), *parts_of(job.output), journal_of(job.output)):
        if path.is_dir():
            raise SetupError(f"{path}: is a folder, and a file of this name is to be written; move it away, or choose another --output.")


def settings_of(network, path, scene, options):
    """What decides a map's pixels; a run that is resumed must share it."""
    source, area = Path(path), Path(options.aoi) if options.aoi else None
    cooled = [one.temperature for one in network.members]
    return {
        "model": " ".join(hashlib.sha256(Path(one.path).read_bytes()).hexdigest() for one in network.members),
        **({"temperature": cooled} if set(cooled) != {1.0} else {}),
        "scene": [source.name, source.stat().st_size] if source.exists() else [str(path)],
        "scene_time": source.stat().st_mtime if source.exists() else None,
        "bands": scene.bands,
        "aoi": [area.name, hashlib.sha256(area.read_bytes()).hexdigest(), options.vector_crs] if area and area.is_file() else options.aoi,
        **{key: getattr(options, key) for key in ("patch_size", "overlap", "blend", "threshold", "background_value", "input_nodata", "require_all_bands",
                                                  "resample_to_training", "output_nodata", "original_codes", "tta", "save_confidence", "save_probabilities", "probability_dtype",
                                                  "save_uncertainty", "use_amp", "normalization_percentile", "normalize_per_channel")},
    }


def check_options(network, options):
    """Raises SetupError for options that contradict the network."""
    if not network.binary and (options.threshold not in (None, 0.5) or options.background_value):
        raise SetupError(f"--threshold, --background_value: {network.path} has {len(network.class_names)} classes; they are for binary networks, leave them out.")
    if options.original_codes and not network.codes:
        raise SetupError(f"--original_codes: {network.path} does not know a code for each of its classes; leave the flag out.")
    if options.original_codes and options.background_value:
        raise SetupError("--original_codes, --background_value: both number the classes anew; give one of them.")
    if options.original_codes and max(network.codes) > 65535:
        raise SetupError(f"--original_codes: {network.path} knows the code {max(network.codes)}, and a map holds numbers up to 65535; leave the flag out.")
    numbers = network.codes if options.original_codes else range(len(network.class_names))
    if options.output_nodata in numbers:
        name, free = network.class_names[list(numbers).index(options.output_nodata)], next(number for number in (255, 0, *range(256, 65536)) if number not in numbers)
        raise SetupError(f"--output_nodata {options.output_nodata}: is a class ({name}); give {free}.")


def jobs_of(canvas, rows, strips):
    """What is left to do: [(number of a strip, strip, index of a block row)], from the first block row that reaches beyond what is finished."""
    found = []
    for number in range(canvas.strip, canvas.strips):
        done = canvas.row if number == canvas.strip else 0
        found += [(number, strips[number], index) for index, start in enumerate(rows.starts) if start + rows.size > done]
    return found


def spans_of(jobs, rows):
    """The Window that each job has to read: its block row, but for what the one before it has read."""
    read = {}
    for _, strip, index in jobs:
        first, after = read.get(strip, rows.starts[index]), rows.starts[index] + rows.size
        read[strip] = after
        yield Window(first, strip.begin, after - first, strip.end - strip.begin)


def start(job, canvas):
    """Begin to read what is left to do."""
    job.canvas, job.jobs = canvas, jobs_of(canvas, job.rows, strips_of(job.cols, canvas.strips))
    job.reader = RowReader(job.scene, job.rows.size, job.area)
    job.coming = ahead(job.reader.read(spans_of(job.jobs, job.rows)))
