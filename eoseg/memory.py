"""How much memory there is, and how much this process holds."""

import math
import os
import re
from argparse import ArgumentTypeError
from pathlib import Path

NAMES = ("bytes", "kB", "MB", "GB", "TB")
UNITS = {None: 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
LIMITS = (("/sys/fs/cgroup", "memory.max", "memory.current", ""),  # of a container or a cluster's job, cgroup 2 and 1
          ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))


def size(text):
    """A flag's type: bytes, of `8GB`, `500 MB`, `1.5g`, or of a plain number of at least a million."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*(?:([kmgt])i?b?)?", text.strip().lower())
    count = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if count < 10**6:
        raise ArgumentTypeError(f"{text.strip()} is no size; write e.g. 8GB or 500MB")
    return count


def shown(count):
    """A number of bytes as people read it."""
    power = min(int(math.log(max(count, 1), 1024)), 4)
    value = count / 1024**power
    return f"{value:,.0f} {NAMES[power]}" if value >= 100 or power == 0 else f"{value:.1f} {NAMES[power]}"


def told(key, file="/proc/self/status"):
    """The bytes that the kernel tells under `key` (VmRSS: held now, VmHWM: held at most); None where it does not."""
    try:
        return int(re.search(rf"^{key}:\s+(\d+)", Path(file).read_text(), re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return None


def available():
    """Bytes that this process may still take without pushing others out; 4 GiB where the system does not tell."""
    found = [told("MemAvailable", "/proc/meminfo")]
    for root, *names, prefix in LIMITS:
        for folder in groups_of(root, "memory" if prefix else ""):
            try:
                found.append(left_in(folder, *names, prefix))
            except (OSError, ValueError):  # not there, or "max": no limit
                continue
    if found == [None] and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    return max(0, min((some for some in found if some is not None), default=4 * 2**30))


def groups_of(root, controller):
    """The folders of this process's control group and of those around it: any of them may set a limit, as a cluster does for a job."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        lines = []
    inside = next((path for _, names, path in lines if controller in names.split(",")), "/").lstrip("/")
    return [Path(root), *(Path(root) / part for part in (Path(inside), *Path(inside).parents) if str(part) != ".")]


def left_in(folder, limit, used, prefix):
    """Bytes that a control group has left; pages of files it has read give way, so they are free."""
    holds = lambda name: (Path(folder) / name).read_text()
    pages = re.findall(rf"^{prefix}(?:in)?active_file (\d+)", holds("memory.stat"), re.MULTILINE)
    return int(holds(limit)) - int(holds(used)) + sum(map(int, pages))


def forget_peak():
    """Have the peak counted from now on, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
