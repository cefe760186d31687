"""What the measurements were made on; nothing that tells one machine of a kind from another."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import nbbn
from nbbn.cli.bench import usable_cores

_SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_SYSTEM_CPUS = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, Any]:
    """Return CPU model, cores, caches, memory, operating system and Python."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "caches": _caches(),
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def print_setting() -> dict[str, Any]:
    """Print machine and versions of a benchmark that runs in this process; return both, as reports hold them."""
    machine = describe_machine()
    kept = ("nbbn", "python", "numpy", "numba", "num_threads", "cpu")
    versions = {name: value for name, value in nbbn.config().items() if name in kept}
    print(f"{machine['cpu']}, {machine['usable_cores']} usable cores")
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    return {"machine": machine, "versions": versions}


def _cpu_model() -> str:
    if _SYSTEM_CPUS.is_file():
        for line in _SYSTEM_CPUS.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _caches() -> list[dict[str, str]]:
    """Return the caches of the first core: level, type, size, and the cores that share one."""
    caches = []
    for folder in sorted(_SYSTEM_CACHES.glob("index*")):
        try:
            names = {"level": "level", "type": "type", "size": "size", "cores": "shared_cpu_list"}
            caches.append({key: (folder / f).read_text().strip() for key, f in names.items()})
        except OSError:
            continue
    return caches


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return round(total / 2**30, 1)


def describe_run(machine: dict[str, Any], versions: dict[str, str]) -> str:
    """Return processor, cores, caches and versions in one sentence."""
    data = [c for c in machine["caches"] if c["type"] != "Instruction"]
    caches = ", ".join(f"L{c['level']} {_short_size(c['size'])}" for c in data)
    cores = f"{machine['usable_cores']} of {machine['cores']} cores"
    parts = [machine["cpu"], cores, caches, f"{machine['system']} {machine['architecture']}"]
    software = describe_versions(versions)
    return f"{', '.join(filter(None, parts))}; {machine['python']}, {software}"


def describe_versions(versions: dict[str, str]) -> str:
    # OpenVINO's goes on with the build, after a hyphen.
    return ", ".join(f"{name} {version.partition('-')[0]}" for name, version in sorted(versions.items()))


def _short_size(size: str) -> str:
    kib = int(size.rstrip("K")) if size.endswith("K") else None
    return size if kib is None else f"{kib // 1024} MB" if kib >= 1024 else f"{kib} KB"
