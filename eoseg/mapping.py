"""Many scenes, one after the other: while one is computed, the next is being read and the one before it written."""

import dataclasses as dc
import time
from contextlib import closing
from itertools import chain

from eoseg import files
from eoseg.errors import SetupError, describe
from eoseg.mapfile import beside
from eoseg.mapjob import Job
from eoseg.parallel import Behind, ahead
from eoseg.predict import fill
from eoseg.quickening import quicken
from eoseg.scenes import Index

MENDABLE = (SetupError, OSError, MemoryError)  # what one scene can suffer while others are well


def map_all(network, maps, folder, options, say=print, bar=lambda items, **settings: items):
    """Map many scenes; those that are mapped already are skipped, one that was begun is gone on with, one that fails is named and the others go on.

    Args:
        network: network.Network; it is made quicker in place. maps: dict scene -> its map's path. folder: where the index goes.
        options: PredictionConfig. say, bar: as `predict.predict` takes them.
    Returns:
        scenes.Index.
    """
    quicken(network, options.compile, say)
    index, options = Index(folder, maps), dc.replace(options, resume=not options.overwrite)
    with Behind(most=1) as behind, closing(ahead(begun(network, maps, options, say))) as coming:
        for scene, job, error in coming:
            if error is not None:
                fail(index, scene, error, say)
            elif job.canvas is None:
                job.held.close()
                skip(index, scene, job.output, say)
            else:
                begin = time.perf_counter()
                try:
                    fill(job, bar)
                except MENDABLE as failure:
                    job.held.close()
                    fail(index, scene, failure, say)
                except BaseException:
                    job.held.close()
                    raise
                else:
                    behind(finish, index, scene, job, begin, say)
        behind.wait()
    return index


def begun(network, maps, options, say):
    """Open one scene after the other and read its first rows: (scene, mapjob.Job or None, error or None)."""
    for scene, output in maps.items():
        job = None
        try:
            job = Job(network, scene, output, options, say)
            if job.begin(lenient=True):
                first = next(job.coming, None)
                job.coming = chain([] if first is None else [first], job.coming)
        except MENDABLE as error:
            if job:
                job.held.close()
            yield scene, None, error
        else:
            try:
                yield scene, job, None
            except GeneratorExit:  # nobody will take it
                job.held.close()
                raise


def finish(index, scene, job, begin, say):
    """Write the map whose rows are all there."""
    try:
        with job:
            summary = job.finish()
    except MENDABLE as error:
        return fail(index, scene, error, say)
    seconds = time.perf_counter() - begin
    index.put(scene, "mapped", seconds, {name: part["share"] for name, part in summary["classes"].items()})
    say(f"mapped    {scene} -> {job.output} ({seconds:.1f} s)" + ("" if summary["valid_pixels"] else "; warning: it holds no valid pixel, the map is all nodata"))


def skip(index, scene, output, say):
    """Note a map that was there already, with the shares that lie beside it."""
    card = beside(output, ".json")
    shares = {name: part["share"] for name, part in files.read_json(card)["classes"].items()} if card.exists() else {}
    index.put(scene, "skipped", shares=shares)
    say(f"skipped   {scene}: {output} is complete already")


def fail(index, scene, error, say):
    text = describe(error) or str(error)
    index.put(scene, "failed", error=text)
    say(f"failed    {scene}: {text}")
