"""The commands on .npy files beside copying the file: ``python -m benchmarks.files [--json FILE]``.

Each round times all of a case once, in turn: copies, with and without waiting for the disk
(``os.fsync``); the file read once; ``nbbn normalize`` in two passes and in one (``--stats``), which wait for the
disk; ``nbbn moments``. All in this process, with everything compiled; once more in a process of its own, as a shell
would start it. The input is in the system's cache, if that is large enough. uint8 becomes float32: there
the copy is one of as many bytes as are written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.machine import print_setting
from nbbn.cli import main as command

_BUFFER = 1 << 22  # bytes; larger and smaller ones were not faster
_BLOCK = 1 << 20  # values that are drawn at a time

# name, dtype, rows or columns (the rest follows from the size), axis
CASES = (
    ("(N, 64)", np.float32, (None, 64), -1),
    ("(64, N)", np.float32, (64, None), 0),
    ("(N, 64)", np.float64, (None, 64), -1),
    ("(N, 64)", np.float16, (None, 64), -1),
    ("(N, 64)", np.uint8, (None, 64), -1),
    ("(64, C)", np.float32, (64, None), -1),
)


def make(path: Path, dtype: Any, shape: tuple[int | None, ...], nbytes: int) -> str:
    """Write random values of about so many bytes; return the shape as text."""
    fixed = next(size for size in shape if size)
    free = max(1, nbytes // np.dtype(dtype).itemsize // fixed)
    sizes = tuple(size or free for size in shape)
    values = np.lib.format.open_memmap(path, "w+", dtype, sizes).reshape(-1)
    drawn = np.random.default_rng(0).normal(100, 20, _BLOCK).clip(0, 255).astype(dtype)
    for first in range(0, values.size, _BLOCK):
        part = values[first : first + _BLOCK]
        part[...] = drawn[: part.size]
    values.base.flush()
    return f"({', '.join(map(str, sizes))})"


def copy(source: Path, target: Path, times: int, wait: bool) -> None:
    """Copy a file so many times over, to one file, through a buffer."""
    memory = memoryview(bytearray(_BUFFER))
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        for _ in range(times):
            read.seek(0)
            while count := read.readinto(memory):
                written.write(memory[:count])
        if wait:
            os.fsync(written.fileno())


def read(source: Path) -> None:
    """Read a file once."""
    memory = memoryview(bytearray(_BUFFER))
    with source.open("rb", buffering=0) as file:
        while file.readinto(memory):
            pass


def run(*arguments: str) -> None:
    """Run a command in this process."""
    if command(arguments):
        raise RuntimeError(f"nbbn {' '.join(arguments)} failed")


def start(*arguments: str) -> None:
    """Run a command in a process of its own."""
    subprocess.run([sys.executable, "-m", "nbbn", *arguments], check=True)


def steps(folder: Path, dtype: Any, axis: int) -> dict[str, Callable[[], None]]:
    """Return what is timed for a case."""
    source, target, copied = folder / "in.npy", folder / "out.npy", folder / "copy"
    saved = str(folder / "s.npz")
    times = 4 if dtype == np.uint8 else 1
    on = str(source), "--axis", str(axis)
    to = str(source), str(target), "--axis", str(axis)
    return {
        "copy": lambda: copy(source, copied, times, wait=False),
        "copy, fsync": lambda: copy(source, copied, times, wait=True),
        "read": lambda: read(source),
        "moments": lambda: run("moments", *on, "--save-stats", saved),
        "normalize": lambda: run("normalize", *to),
        "--stats": lambda: run("normalize", *to, "--stats", saved),
        "process": lambda: start("normalize", *to),
    }


def refresh(folder: Path) -> None:
    """Give the memory of a copy back to the system, for the next step to write to.

    A virtual machine may have lost memory that was free for some seconds to its host. Taking it again was
    measured to take eight times as long as copying, and would fall on any of the steps.
    """
    copy(folder / "in.npy", folder / "copy", 1, wait=False)
    (folder / "copy").unlink()


def measure(folder: Path, case: tuple[Any, ...], nbytes: int, rounds: int) -> dict[str, Any]:
    """Return all times of a case in seconds."""
    name, dtype, shape, axis = case
    kind = np.dtype(dtype)
    sizes = make(folder / "in.npy", dtype, shape, nbytes)
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for step, work in steps(folder, dtype, axis).items():
            refresh(folder)
            started = time.perf_counter()
            work()
            elapsed = time.perf_counter() - started
            if number:  # the first round compiles, and fills the system's cache
                found.setdefault(step, []).append(elapsed)
            for written in ("out.npy", "copy"):
                (folder / written).unlink(missing_ok=True)
    megabytes = (folder / "in.npy").stat().st_size / 1e6
    return {
        "case": f"{name} {kind.name}",
        "shape": sizes,
        "axis": axis,
        "megabytes": megabytes,
        "seconds": found,
    }


_PAIRS = (
    ("moments", "read"),
    ("normalize", "copy, fsync"),
    ("normalize", "copy"),
    ("--stats", "copy, fsync"),
    ("process", "copy, fsync"),
)


def table(rows: list[dict[str, Any]]) -> str:
    """Return minima, and ratios of the minima and of the medians, as text."""
    lines = []
    for row in rows:
        seconds = row["seconds"]
        rounds = len(seconds["copy"])
        head = f"{row['case']}, {row['shape']} along axis {row['axis']}"
        lines.append(f"{head}: {row['megabytes']:.0f} MB, {rounds} rounds")
        least = ", ".join(f"{step} {min(times):.2f}" for step, times in seconds.items())
        lines.append(f"  least seconds: {least}")
        for step, peer in _PAIRS:
            minima = min(seconds[step]) / min(seconds[peer])
            medians = statistics.median(seconds[step]) / statistics.median(seconds[peer])
            lines.append(f"  {step + ' / ' + peer:<24} {minima:5.2f} of minima {medians:5.2f} of medians")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times to FILE")
    parser.add_argument("--rounds", type=int, default=7, help="of each case (default 7)")
    parser.add_argument("--megabytes", type=int, default=1024, help="of what is written (default 1024)")
    parser.add_argument("--folder", type=Path, help="where to write files (default: temporary)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.megabytes) < 1:
        parser.error("expected at least 1 round and 1 MB")
    setting = print_setting()
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            nbytes = arguments.megabytes << 20
            # four times as many are written
            size = nbytes // 4 if case[1] == np.uint8 else nbytes
            rows.append(measure(Path(folder), case, size, arguments.rounds))
        print(table(rows[-1:]), flush=True)
    if arguments.json is not None:
        report = {**setting, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
