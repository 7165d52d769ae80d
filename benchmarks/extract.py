#!/usr/bin/env python
"""How fast `Patch_extraction_v2.py single` is: against the physical limit, a plain rasterio loop, and installed peers.

    python benchmarks/extract.py                                      # 5490 x 5490 x 10 uint16, 576 cells, three layouts
    python benchmarks/extract.py --size 1200 --cells 5 --repeat 1     # a quick look

The limit: decode every block of scene and label once, encode every patch once (deflate level 1, predictor 2, a block per
band), write it with one fsync; on one thread, the sum divided by the cores. The loop writes LZW with GDAL's defaults. All
run in turn, each in its own process, files in the system's cache; the quickest of --repeat runs counts, and the largest
memory. Start-up (the same program with one cell, or none) is taken off, but for gdal_translate, which starts for every cell.
Exit status: 0 also when a target is missed, 1 when a peer failed, 2 when anything else did.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eoseg.errors import SetupError, run  # stdlib alone: Linux counts what this process weighs as memory of those it starts

PATCH = 224
TRANSLATED = 24  # cells that gdal_translate is timed on
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
LAYOUTS = {  # name -> creation options
    "striped": {"blockysize": 1, "interleave": "pixel"},  # GDAL's default for a scene of this width
    "tiled256": {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band"},
    "tiled512": {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel"},
}
OURS, LOOP = "Patch_extraction_v2.py", "plain rasterio loop, LZW"


def main():
    args = parse()
    if args.worker:
        return WORKERS[args.worker[0]](**json.loads(args.worker[1]))
    if args.size < PATCH or min(args.bands, args.cells, args.repeat) < 1:
        raise SetupError(f"--size must be {PATCH} or more; --bands, --cells and --repeat 1 or more.")
    with tempfile.TemporaryDirectory(prefix="extract_") as temporary:
        work = Path(args.folder or temporary).resolve() / f"{args.size}_{args.bands}_{args.cells}"
        if not (work / "complete").exists():
            print(f"making {len(LAYOUTS)} scenes in {work}", flush=True)
            work.mkdir(parents=True, exist_ok=True)
            worker("scenes", work=str(work), size=args.size, bands=args.bands, cells=args.cells)
        extraction(work, args, paths_of(work, "one"), "one.gpkg")  # the first run of a script loads slowly
        found = {"size": args.size, "bands": args.bands, "patches": args.cells**2, "cores": CORES, "layouts": {}}
        for layout in args.layouts:
            found["layouts"][layout] = rows = measure(work, layout, args)
            report(work, layout, rows, args)
        shutil.rmtree(work / "out")
    if args.json:
        Path(args.json).write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))
    sys.exit(any("failed" in row for rows in found["layouts"].values() for row in rows.values()))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default, help in (("size", 5490, "rows and columns of the scenes"), ("bands", 10, "bands of the scenes"),
                                ("cells", 24, "cells on each side of the grid"), ("repeat", 3, "runs of each program but the peers")):
        parser.add_argument(f"--{flag}", type=int, default=default, help=f"{help} (default: {default})")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="inputs to try (default: all)")
    parser.add_argument("--folder", help="keep the scenes here, for further runs (default: a temporary folder)")
    parser.add_argument("--script", default=str(ROOT / OURS), help="the extraction to time (default: that of this checkout)")
    parser.add_argument("--no_peers", action="store_true", help="leave geoai and gdal_translate out")
    parser.add_argument("--json", help="file for the figures, which are also the last line printed")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # this program in a process of its own: name, JSON of arguments
    return parser.parse_args()


def corners(size, cells):
    """First row and column of every cell, in reading order: spread evenly, the outer ones at the edges of the scene."""
    along = [round(i * (size - PATCH) / max(cells - 1, 1)) for i in range(cells)]
    return [(row, col) for row in along for col in along]


def paths_of(work, layout):
    return {"image": f"{work}/scene_{layout}.tif", "label": f"{work}/label_{layout}.tif"}


# ---------------------------------------------------------------- running and timing


def timed(command):
    """Run a command alone: its wall in s, the peak in MB of it and all it started, its last line."""
    os.sync()  # nobody pays for what an earlier run left to be written
    env = {name: value for name, value in os.environ.items() if name not in ("GDAL_CACHEMAX", "GDAL_NUM_THREADS")}
    with tempfile.TemporaryFile("w+") as said:
        together, ended, started = [0.0], threading.Event(), time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=env)
        threading.Thread(target=watch, args=(process.pid, together, ended), daemon=True).start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall, process.returncode = time.perf_counter() - started, os.waitstatus_to_exitcode(status)
        finally:
            ended.set()
            process.kill()  # where this program was stopped meanwhile
        said.seek(0)
        last = (said.read().strip().splitlines() or [""])[-1]
    if process.returncode:
        raise SetupError(f"{' '.join(command[1:4])}: failed with status {process.returncode} ({last}); --folder keeps the files.")
    return {"wall": wall, "peak": max(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024), together[0]), "last": last}


def watch(pid, together, ended):
    """Keep in `together[0]` the most MB that a process and its descendants held at once (Linux); ru_maxrss tells the largest of them."""
    while not ended.wait(0.1):
        family = [pid]
        with contextlib.suppress(OSError):  # one has just ended
            for one in family:
                family += [int(word) for path in Path(f"/proc/{one}/task").glob("*/children") for word in path.read_text().split()]
            if len(family) > 1:
                lines = [line for one in family for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()]
                held = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))  # kB; what n of them share counts 1/n in each
                together[0] = max(together[0], held / 1024)


def worker(name, **options):
    return timed([sys.executable, __file__, "--worker", name, json.dumps(options)])


def emptied(work):
    """The folder for one run's patches, without what the last run left there."""
    shutil.rmtree(work / "out", ignore_errors=True)
    (work / "out").mkdir()
    return str(work / "out")


def figures(runs, startups=(), timed_on=1, of=1):
    """Several runs of one program as a row of the table: the seconds for `of` cells, when it was timed on some of them."""
    if not timed_on:
        raise SetupError("it wrote no patch; run it by hand.")
    wall, startup = (min((one["wall"] for one in some), default=0.0) for some in (runs, startups))
    return {"seconds": (wall - startup) * of / timed_on, "startup": startup, "peak": max(one["peak"] for one in runs),
            "walls": [one["wall"] for one in runs], "share_timed": timed_on / of}


# ---------------------------------------------------------------- what is measured


def measure(work, layout, args):
    """All programs on one layout, in turn: dict name -> figures, or {"missing": why}, or {"failed": why}."""
    paths, places = paths_of(work, layout), corners(args.size, args.cells)
    starts, walls, limits, loop_starts, loops = [], [], [], [], []
    for path in paths.values():
        shutil.copyfile(path, os.devnull)  # into the system's cache
    for _ in range(args.repeat):
        starts.append(extraction(work, args, paths_of(work, "one"), "one.gpkg"))
        walls.append(extraction(work, args, paths, "grid.gpkg"))
        worker("check", **paths, folder=f"{work}/out/patches", count=len(places))
        limits.append(json.loads(worker("limit", **paths, places=places, out=emptied(work))["last"]))
        loop_starts.append(worker("loop", **paths, places=[], out=emptied(work)))
        loops.append(worker("loop", **paths, places=places, out=emptied(work)))
    parts = min(limits, key=lambda one: sum(one.values()))
    rows = {"limit": {"seconds": sum(parts.values()) / CORES, "parts": parts}, OURS: figures(walls, starts), LOOP: figures(loops, loop_starts)}
    peers = ("geoai", geoai, importlib.util.find_spec), ("gdal_translate", gdal_translate, shutil.which)
    for name, peer, find in peers if not args.no_peers else ():
        try:
            rows[name] = peer(work, paths, args) if find(name) else {"missing": "not installed"}
        except SetupError as error:
            rows[name] = {"failed": str(error)}
    for row in rows.values():
        if "seconds" in row:
            row |= {f"x {name}": row["seconds"] / rows[other]["seconds"] for name, other in (("limit", "limit"), ("ours", OURS), ("loop", LOOP))}
    return rows


def extraction(work, args, paths, grid):
    return timed([sys.executable, args.script, "single", "--image", paths["image"], "--label", paths["label"], "--grid", f"{work}/{grid}",
                  "--patch_size", str(PATCH), "--output", f"{emptied(work)}/patches"])


def geoai(work, paths, args):
    """geoai lays its own grid; the stride is chosen to give as many tiles, or nearly."""
    load, out, stride = "from geoai import export_geotiff_tiles", emptied(work), max(1, -(-(args.size - PATCH) // max(args.cells - 1, 1)))
    cut = f"{load}; export_geotiff_tiles({paths['image']!r}, {out!r}, {paths['label']!r}, tile_size={PATCH}, stride={stride}, quiet=True)"
    first, second, whole = (timed([sys.executable, "-c", code]) for code in (load, load, cut))
    return figures([whole], [first, second], len(os.listdir(f"{out}/labels")), args.cells**2)


def gdal_translate(work, paths, args):
    """One process per cell and file, on cells from all over the grid."""
    places, count, out, runs = corners(args.size, args.cells), min(TRANSLATED, args.cells**2), emptied(work), []
    for number in range(count):
        row, col = places[number * len(places) // count]
        for kind, path in paths.items():
            window = map(str, (col, row, PATCH, PATCH))
            runs.append(timed(["gdal_translate", "-q", "-co", "COMPRESS=LZW", "-srcwin", *window, path, f"{out}/{number}_{kind}.tif"]))
    return figures([{"wall": sum(one["wall"] for one in runs), "peak": max(one["peak"] for one in runs)}], (), count, len(places))


def report(work, layout, rows, args):
    """The table of one layout, and which targets it meets."""
    options, count, mine = LAYOUTS[layout], args.cells**2, rows[OURS]
    print(f"\n{layout}: {args.size} x {args.size} x {args.bands} uint16, blocks of {options.get('blockxsize', args.size)} x {options['blockysize']} px, "
          f"{options['interleave']}-interleaved, {os.path.getsize(paths_of(work, layout)['image']) / 1e6:.0f} MB; {count} cells of {PATCH} px; {CORES} cores")
    print(f"{'':<34}{'s':>8}{'start-up s':>12}{'x limit':>9}{'x ours':>8}{'x loop':>8}{'peak MB':>9}")
    for name, row in rows.items():
        if "seconds" in row:
            name += f" ({row['share_timed'] * count:.0f} cells timed)" if row.get("share_timed", 1) != 1 else ""
            startup, peak = f"{row['startup']:.2f}" if row.get("startup") else "", f"{row['peak']:.0f}" if "peak" in row else ""
            print(f"{name:<34}{row['seconds']:>8.2f}{startup:>12}{row['x limit']:>9.2f}{row['x ours']:>8.2f}{row['x loop']:>8.2f}{peak:>9}")
        else:
            print(f"{name:<34}{row.get('missing') or 'failed: ' + row['failed']}")
    print(f"limit = ({' + '.join(f'{name} {seconds:.2f}' for name, seconds in rows['limit']['parts'].items())}) / {CORES}")
    wall, faster, peak = mine["x limit"], 1 / mine["x loop"], mine["peak"]
    print(f"  at most 1.5 x the limit: {wall:.2f} {'ok' if wall <= 1.5 else 'MISSED'}")
    print(f"  at least 2.5 x faster than the loop: {faster:.2f} {'ok' if faster >= 2.5 else 'MISSED'}")
    print(f"  peak memory under 300 MB: {peak:.0f} {'ok' if peak < 300 else 'MISSED'}", flush=True)


def make_scenes(work, size, bands, cells):
    """Scenes and labels of all layouts, the grid, and for the start-up a scene of one cell."""
    import geopandas
    import numpy as np
    import rasterio
    from shapely import box

    with rasterio.open(ROOT / "sample" / "scene.tif") as src:
        texture, crs, transform = src.read(window=((500, 1300), (500, 1300))), src.crs, src.transform  # no nodata here
    look = {"driver": "GTiff", "crs": crs, "transform": transform, "compress": "deflate", "predictor": 2, "num_threads": "all_cpus"}
    looks = {name: look | {"width": size, "height": size} | options for name, options in LAYOUTS.items()}
    looks["one"] = looks["striped"] | {"width": PATCH, "height": PATCH}
    rng, mirrored = np.random.default_rng(0), np.resize(np.r_[:800, 799:-1:-1], size)
    coarse = texture[0][mirrored[::8]][:, mirrored[::8]]  # classes lie in fields, not in single pixels
    classes = np.digitize(coarse, np.quantile(coarse, [0.2, 0.4, 0.6, 0.8])).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    for name, look in looks.items():
        with rasterio.open(paths_of(work, name)["label"], "w", count=1, dtype="uint8", **look) as dst:
            dst.write(classes[None, : dst.height, : dst.width])
    mix = rng.dirichlet(np.ones(len(texture)), bands).astype(np.float32)
    with contextlib.ExitStack() as stack:
        scenes = [stack.enter_context(rasterio.open(paths_of(work, name)["image"], "w", count=bands, dtype="uint16", nodata=0, **look)) for name, look in looks.items()]
        for top in range(0, size, 512):  # whole blocks of every layout
            mixed = np.tensordot(mix, texture[:, mirrored[top : top + 512]][:, :, mirrored].astype(np.float32), 1)
            pixels = np.clip(mixed + 20 * rng.standard_normal(mixed.shape, np.float32), 1, 65535).astype(np.uint16)
            for dst in (dst for dst in scenes if dst.height > top):
                part = pixels[:, : dst.height - top, : dst.width]
                dst.write(part, window=((top, top + part.shape[1]), (0, dst.width)))
    for name, places in (("grid", corners(size, cells)), ("one", [(0, 0)])):
        boxes = [box(*(transform * (col, row + PATCH)), *(transform * (col + PATCH, row))) for row, col in places]
        geopandas.GeoDataFrame({"id": range(1, len(boxes) + 1)}, geometry=boxes, crs=crs).to_file(f"{work}/{name}.gpkg", driver="GPKG")
    Path(work, "complete").touch()


def check(image, label, folder, count):
    """Are all patches there, and are three of them their windows of the scene?"""
    import numpy as np
    import rasterio

    for kind, path in (("images", image), ("labels", label)):
        found = sorted(Path(folder).glob(f"*/{kind}/*.tif"))
        if len(found) != count:
            raise SetupError(f"{folder}: {len(found)} {kind} instead of {count}; the extraction is wrong.")
        for patch in (found[0], found[count // 2], found[-1]):
            with rasterio.open(path) as src, rasterio.open(patch) as dst:
                col, row = map(round, ~src.transform * (dst.transform.c, dst.transform.f))
                if not np.array_equal(dst.read(), src.read(window=((row, row + PATCH), (col, col + PATCH)))):
                    raise SetupError(f"{patch}: is not its window of {path}; the extraction is wrong.")


def limit(image, label, places, out):
    """Prints the seconds of one thread as JSON. A patch is read just before its turn, untimed, so that none need be kept."""
    os.environ["GDAL_CACHEMAX"] = "64"  # MB
    import rasterio

    look = {"driver": "GTiff", "height": PATCH, "width": PATCH, "interleave": "band", "blockysize": PATCH, "compress": "deflate", "predictor": 2, "zlevel": 1}
    spent = {"decode": 0.0, "encode": 0.0, "write": 0.0}
    for path in (image, label):
        with rasterio.open(path) as src:
            started = time.perf_counter()
            for _, window in src.block_windows(1):
                src.read(window=window)
            spent["decode"] += time.perf_counter() - started
            look |= {"count": src.count, "dtype": src.dtypes[0], "crs": src.crs, "nodata": src.nodata}
            for number, (row, col) in enumerate(places):
                window = rasterio.windows.Window(col, row, PATCH, PATCH)
                pixels, transform = src.read(window=window), src.window_transform(window)
                started = time.perf_counter()
                with rasterio.MemoryFile() as memory:
                    with memory.open(transform=transform, **look) as dst:
                        dst.write(pixels)
                    data = memory.read()
                ready = time.perf_counter()
                with open(f"{out}/{number}_{Path(path).name}", "wb", buffering=0) as f:
                    f.write(data)
                    os.fsync(f.fileno())
                spent["encode"] += ready - started
                spent["write"] += time.perf_counter() - ready
    print(json.dumps(spent))


def loop(image, label, places, out):
    """What anybody would write first."""
    import rasterio

    with rasterio.open(image) as scene, rasterio.open(label) as labels:
        for number, (row, col) in enumerate(places):
            window = rasterio.windows.Window(col, row, PATCH, PATCH)
            for src, kind in ((scene, "image"), (labels, "label")):
                look = {"count": src.count, "dtype": src.dtypes[0], "crs": src.crs, "transform": src.window_transform(window), "nodata": src.nodata}
                with rasterio.open(f"{out}/{number}_{kind}.tif", "w", driver="GTiff", height=PATCH, width=PATCH, compress="lzw", **look) as dst:
                    dst.write(src.read(window=window))


WORKERS = {"scenes": make_scenes, "check": check, "limit": limit, "loop": loop}

if __name__ == "__main__":
    run(main)
