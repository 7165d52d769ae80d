"""Many scenes, one after the other: while one is computed, the next is being read and the one before it written."""

import dataclasses as dc
import time
from contextlib import ExitStack, closing
from itertools import chain

from eoseg import budget, files
from eoseg.errors import SetupError, describe
from eoseg.legends import palette_of
from eoseg.mapfile import beside
from eoseg.mapjob import Job, check_options
from eoseg.network import network_size
from eoseg.parallel import Behind, ahead
from eoseg.predict import fill
from eoseg.quickening import quicken
from eoseg.scenes import INDEX, Index, check_sides


def map_all(network, maps, folder, options, say=print, bar=lambda items, **settings: items):
    """Map many scenes; those that are mapped already are skipped, one that was begun is gone on with, one that fails is named and the others go on.

    Args:
        network: network.Network; it is made quicker in place. maps: dict scene -> its map's path. folder: where the index goes.
        options: PredictionConfig. say, bar: as `predict.predict` takes them.
    Returns:
        scenes.Index.
    Raises:
        SetupError: options that no scene could be mapped with.
    """
    check_options(network, options)
    check_sides(maps, options)
    palette_of(network.class_names, options.palette, say=say)
    quicken(network, options.compile, say)
    size = network_size(network, options.patch_size)
    means = budget.means_of(network, options)._replace(tried=budget.tried(network, (size, size), budget.batch_of(network, options), options.tta))
    options = dc.replace(options, resume=not options.overwrite)
    with ExitStack() as held:
        held.enter_context(files.lock(folder, f".{INDEX}.lock"))
        index, behind = held.enter_context(closing(Index(folder, maps))), held.enter_context(Behind(most=1))
        coming = held.enter_context(closing(ahead(begun(network, maps, options, say, means))))
        for scene, job, error in coming:
            if error is not None:
                fail(index, scene, error, say)
                continue
            begin = time.perf_counter()
            try:
                if job.canvas:
                    fill(job, bar)
                behind(finish, index, scene, job, begin, say)
            except BaseException as failure:
                job.held.close()
                if not mendable(failure):
                    raise
                fail(index, scene, failure, say)
        behind.wait()
    return index


def mendable(error):
    """Is it something that one scene can suffer while others are well?"""
    return isinstance(error, Exception) and describe(error) is not None


def begun(network, maps, options, say, means):
    """Open one scene after the other and read its first rows: (scene, mapjob.Job or None, error or None)."""
    for scene, output in maps.items():
        job = None
        try:
            job = Job(network, scene, output, options, say, means)
            if job.begin(lenient=True):
                first = next(job.coming, None)
                job.coming = chain([] if first is None else [first], job.coming)
        except Exception as error:
            if job:
                job.held.close()
            if not mendable(error):
                raise
            yield scene, None, error
        else:
            try:
                yield scene, job, None
            except GeneratorExit:  # nobody will take it
                job.held.close()
                raise


def finish(index, scene, job, begin, say):
    """Write the map whose rows are all there, or what is asked for beside one that was finished before."""
    try:
        with job:
            summary = job.finish()
    except Exception as error:
        if not mendable(error):
            raise
        return fail(index, scene, error, say)
    if summary is None:
        return skip(index, scene, job.output, say)
    seconds = time.perf_counter() - begin
    index.put(scene, "mapped", seconds, {name: part["share"] for name, part in summary["classes"].items()})
    say(f"mapped    {scene} -> {job.output} ({seconds:.1f} s)" + ("" if summary["valid_pixels"] else "; warning: it holds no valid pixel, the map is all nodata"))


def skip(index, scene, output, say):
    """Note a map that was there already, with the shares that lie beside it."""
    try:
        shares = {name: part["share"] for name, part in files.read_json(beside(output, ".json"))["classes"].items()}
    except (SetupError, OSError, KeyError, TypeError, AttributeError):  # not there, or another's
        shares = {}
    index.put(scene, "skipped", shares=shares)
    say(f"skipped   {scene}: {output} is complete already")


def fail(index, scene, error, say):
    text = describe(error) or str(error)
    index.put(scene, "failed", error=text)
    say(f"failed    {scene}: {text.removeprefix(f'{scene}: ')}")
