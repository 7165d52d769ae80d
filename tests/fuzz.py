#!/usr/bin/env python
"""Spoil small files and see what the scripts make of them: right, refused in one line, or wrong.

    python tests/fuzz.py --mutants 500
    python tests/fuzz.py --mutants 5000 --seed 7 --only scene --keep mutants

Every mutant is read by the script it is meant for, in a process of its own that may take 10 s and 1 GB. Leaves with
status 1 when one of them was wrong: a crash, a hang, a traceback, too much memory, a changed input, or a wrong result.
"""

import argparse
import contextlib
import gc
import importlib
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import faults
import fuzzkinds
import independent
import mutants
import numpy as np
from fuzzruns import hasten, leave

LONGEST, LATEST, LARGEST = 10, 60, 1024  # seconds of work, seconds by the clock (the machine may be busy), and MB that a run may take
BEYOND = 2**31  # bytes of address space a run may ask for on top of what it begins with


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=500, help="how many, of all kinds together (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="another number makes other mutants (default: 0)")
    parser.add_argument("--only", nargs="+", choices=fuzzkinds.SHARE, metavar="KIND", help=f"these kinds alone: {', '.join(fuzzkinds.SHARE)}")
    parser.add_argument("--keep", metavar="DIR", default="fuzz_failures", help="where mutants that were met with something wrong are kept (default: fuzz_failures)")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (default: 2)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        seeds = sow(Path(folder) / "seeds", args.only, args.processes)
        cases, runs = list(draw(seeds, args.mutants, args.seed, args.only)), Path(folder) / "runs"
        outcomes = at_once([partial(life, seed, content) for seed, content, _ in cases], runs, args.processes, LATEST)
        return report(cases, outcomes, runs, Path(args.keep))


# ---------------------------------------------------------------- seeds and mutants


def sow(folder, only, processes):
    """Make the seeds, see that an unspoilt run of each is right, and load here what it loaded: later runs are forks of this process."""
    load([f"eoseg.{path.stem}" for path in (Path(__file__).parents[1] / "eoseg").glob("*.py")] + ["main_v2", "Predict_large_image_v2", "Patch_extraction_v2", "model_training_v2", "geopandas", "scipy.ndimage"])
    wanted = [make for make in fuzzkinds.KINDS if not only or set(only) & set(fuzzkinds.MAKES[make.__name__])]
    made = at_once([partial(grow, make, folder / make.__name__) for make in wanted], folder / "growing", processes, 300)
    for make, grown in zip(wanted, made):
        assert isinstance(grown, list), f"{make.__name__}: {grown}"
    seeds = [seed for grown in made for seed in grown if not only or seed.kind in only]
    for seed, outcome in zip(seeds, at_once([partial(life, seed, seed.content) for seed in seeds], folder / "first", processes, 60)):
        assert outcome["verdict"] == "right", f"{seed.kind} {seed.name}, unspoilt: {outcome}"
        load(outcome["modules"])
    gc.freeze()
    return seeds


def grow(make, folder):
    folder.mkdir(parents=True)
    return list(make(folder, np.random.default_rng(0)))


def load(names):
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def draw(seeds, total, number, only):
    """(Seed, content, what was done to it) of each mutant: as many of each kind as its share says, one at least."""
    share = {kind: part for kind, part in fuzzkinds.SHARE.items() if not only or kind in only}
    for kind, part in share.items():
        own = [seed for seed in seeds if seed.kind == kind]
        contents = [seed.content for seed in own]
        for i in range(max(1, round(total * part / sum(share.values())))):
            which = i % len(own)
            rng = np.random.default_rng([number, zlib.crc32(kind.encode()), i])
            content, done = (mutants.inside if kind == "pickle" else mutants.spoilt)(contents[which], contents, rng)
            yield own[which], content, f"{i}: {done}"


# ---------------------------------------------------------------- runs


def at_once(jobs, folder, processes, longest):
    """What each of some functions returns, in a process of its own and an empty folder; how the process ended, where it returns nothing."""
    found, running, waiting = [None] * len(jobs), {}, list(enumerate(jobs))[::-1]
    while waiting or running:
        while waiting and len(running) < processes:
            index, job = waiting.pop()
            home = folder / str(index)
            home.mkdir(parents=True)
            running[begin(job, home)] = index, home, time.monotonic()
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            index, home, since = running.pop(pid)
            found[index] = ended(home, status, time.monotonic() - since)
        elif not pid:
            time.sleep(0.002)
        for late in [one for one, (_, _, since) in running.items() if time.monotonic() - since > longest]:
            os.kill(late, signal.SIGKILL)
    return found


def begin(job, home):
    """Call a function in a fork of this process; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(home)
        for stream, name in ((1, "said"), (2, "complained")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
        result = job()
        Path(home, "result").write_bytes(pickle.dumps(result))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def ended(home, status, seconds):
    if (home / "result").exists():
        return pickle.loads((home / "result").read_bytes())
    told = (home / "complained").read_text(errors="replace").strip()
    why = f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"{told.splitlines()[-1]} ({told[-1500:]})"
    return {"verdict": "wrong", "why": f"{why} after {seconds:.1f} s", "seconds": seconds, "mb": 0}


def life(seed, content):
    """One run on a copy of a seed whose target has another content: dict of verdict, why, seconds, mb and the modules that were loaded."""
    loaded, before = set(sys.modules), independent.about(seed.folder / seed.target)[0] if seed.target.endswith(".tif") and seed.kind != "patch" else None
    home = Path("case").absolute()
    shutil.copytree(seed.folder, home)
    os.chdir(home)
    times = os.stat(seed.target)
    Path(seed.target).write_bytes(content)
    os.utime(seed.target, ns=(times.st_atime_ns, times.st_mtime_ns))
    (seed.patch or hasten)()
    files, since = faults.files_under(home), time.process_time()
    with limits():
        status = leave(*seed.words)
    spent, most = time.process_time() - since, peak()
    sys.stdout.flush()
    sys.stderr.flush()
    said, complained = (Path("..", name).read_text(errors="replace") for name in ("said", "complained"))
    outcome = {"verdict": "refused" if status else "right", "why": complained[-300:], "seconds": spent, "mb": most, "modules": sorted(set(sys.modules) - loaded)}
    try:
        judge(seed, status, said, complained, files, faults.files_under(home), before)
    except AssertionError as error:
        outcome |= {"verdict": "wrong", "why": str(error)[:1000]}
    except Exception:
        outcome |= {"verdict": "wrong", "why": f"status {status}, and what was made cannot be checked: {traceback.format_exc()[-1500:]}"}
    if most > LARGEST or spent > LONGEST:
        outcome |= {"verdict": "wrong", "why": f"took {most:.0f} MB and {spent:.1f} s; {outcome['why']}"}
    return outcome


def judge(seed, status, said, complained, files, after, before):
    """Raises AssertionError where a run is neither right nor refused as it should be."""
    complained = re.sub(r"(?m)^_tiff\w+: .*\n", "", complained)  # libtiff's own, where a BigTIFF points beyond 2^63: nobody can catch it
    fate = faults.judged(status, said, complained, files, after, fuzzkinds.MAY_CHANGE)
    assert "memory: not enough" not in fate.line, f"asked for more than {BEYOND / 2**30:.0f} GB: {fate.line}"
    if status == 2:
        faults.assert_refused(fate, left=fuzzkinds.MAY_CHANGE)
    assert status in (0, 1, 2), status
    if status < 2:
        seed.check(seed, status)
        silent = before and independent.lost_in_silence(seed.target, before, said + complained)
        assert not silent, silent


@contextlib.contextmanager
def limits():
    """The address space that a run may ask for; its peak of memory counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BEYOND, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def peak():
    """The most memory this process has held, in MB."""
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


# ---------------------------------------------------------------- what came of it


def report(cases, outcomes, runs, keep):
    """Print the table; keep what was wrong. The exit status."""
    print(f"{'kind':<10}{'mutants':>8}{'refused':>9}{'right':>7}{'wrong':>7}{'slowest s':>11}{'most MB':>9}")
    for kind in [*dict.fromkeys(seed.kind for seed, *_ in cases), "all"]:
        own = [outcome for (seed, *_), outcome in zip(cases, outcomes) if kind in (seed.kind, "all")]
        times = Counter(outcome["verdict"] for outcome in own)
        print(f"{kind:<10}{len(own):>8}{times['refused']:>9}{times['right']:>7}{times['wrong']:>7}{max(one['seconds'] for one in own):>11.1f}{max(one['mb'] for one in own):>9.0f}")
    wrong = [index for index, outcome in enumerate(outcomes) if outcome["verdict"] == "wrong"]
    for index in wrong:
        seed, _, done = cases[index]
        kept = keep / f"{seed.kind}-{seed.name.replace(' ', '-')}-{done.partition(':')[0]}"
        shutil.copytree(runs / str(index), kept, dirs_exist_ok=True)
        (kept / "why.txt").write_text(f"{seed.target} {done}\n{' '.join(map(str, seed.words))}\n{outcomes[index]['why']}\n")
        print(f"wrong     {kept}/case/{seed.target}: {' '.join(outcomes[index]['why'].split())[:300]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # what torch has loaded complains of its own end
