"""What this machine offers: the size of its caches, and the CPU quota of the process."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

_UNKNOWN = 32 << 20
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@functools.cache
def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size of the largest cache in bytes; 32 MB where the system does not tell."""
    sizes = []
    for file in root.glob("index*/size"):
        try:
            text = file.read_text().strip()
            sizes.append(int(text.rstrip("KMG")) * _UNITS.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return max(sizes, default=_UNKNOWN) or _UNKNOWN


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the least CPU quota among the process's control groups in cores; None where there is none.

    A group is also bound by those above it. Both versions of control groups are read:
    https://docs.kernel.org/admin-guide/cgroup-v2.html (``cpu.max``) and
    https://docs.kernel.org/scheduler/sched-bwc.html (``cpu.cfs_quota_us``).
    """
    return min((quota for group in _groups(root, membership) if (quota := _quota_of(group))), default=None)


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    yield root
    yield root / "cpu"
    try:
        lines = membership.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = root / "cpu" if controllers else root
        for name in path.split("/"):
            # Seen from inside a container, the path may be that of the host: absent here.
            if name in ("", ".."):
                continue
            group = group / name
            yield group


def _quota_of(group: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((group / name).read_text() for name in names).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # absent, or "max": no quota
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None
