"""The caches of this machine."""

from __future__ import annotations

import functools
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
