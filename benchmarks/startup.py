"""How long a new process waits: for its imports, and for its first calls with a warm and a cold cache.

``python -m benchmarks.startup [--json FILE]``: each figure is the median over fresh processes, the
cases interleaved. The cold cache is an empty folder for each process; the warm one is filled before.
Before each first call with a cold cache, a process compiles numba's own loop, the unit of its CPU seconds:
a machine may run at half its speed a minute later.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import describe_machine

_IMPORT = """
import time
started = time.perf_counter(), time.process_time()
import {module}
print("import", time.perf_counter() - started[0], time.process_time() - started[1])
"""

_TIMED = """
import time
import numpy as np
import nbbn
def timed(operation, call):
    started = time.perf_counter(), time.process_time()
    call()
    print(operation, time.perf_counter() - started[0], time.process_time() - started[1])
x = np.ones({shape}, np.float32)
"""

_INFERENCE = """
bn = nbbn.BatchNorm(x.shape[1]).eval()
timed("inference", lambda: bn(x))
"""

_FROZEN = """
bn = nbbn.BatchNorm(x.shape[1]).freeze()
timed("frozen inference", lambda: bn(x))
"""

_TRAINING = """
bn = nbbn.BatchNorm(x.shape[1])
timed("training forward", lambda: bn(x))
timed("backward", lambda: bn.backward(x))
"""

_STANDARDIZER = """
scaler, table = nbbn.Standardizer(), x.astype(np.float64)
timed("fit_transform, float64", lambda: scaler.fit_transform(table))
"""

# What numba takes to compile next to nothing.
_LOOP = """
import numba
@numba.njit(parallel=True)
def scale(x, a, b, y):
    for i in numba.prange(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = x[i, j] * a[j] + b[j]
timed("numba's loop", lambda: scale(x, x[0], x[0], x))
"""

# of each kind of kernel: serial over columns, parallel over runs
SHAPES = ((32, 64), (32, 64, 56, 56))


@dataclass(frozen=True)
class Case:
    """What one process does; it prints a line for each thing that it times: its name, seconds, CPU seconds."""

    name: str
    code: str
    cache: str  # "warm", "cold", or "" where it does not matter


def cases() -> list[Case]:
    """Return all cases, in the order of the table."""
    found = [Case(name, _IMPORT.format(module=name), "") for name in ("numba", "nbbn")]
    for cache in ("warm", "cold"):
        for code in (_INFERENCE, _FROZEN, _TRAINING):
            found += [_case(code, shape, cache) for shape in SHAPES]
        found.append(_case(_STANDARDIZER, (1000, 4), cache))
    return found


def _case(code: str, shape: tuple[int, ...], cache: str) -> Case:
    return Case(str(shape), _TIMED.format(shape=shape) + code, cache)


def run(case: Case, folder: Path) -> dict[str, tuple[float, float]]:
    """Return the seconds, and CPU seconds, of each operation of ``case`` in a new process."""
    environment = {**os.environ, "NBBN_CACHE_DIR": str(folder)}
    # An installed package has its bytecode beside it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", case.code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{case.name} {case.cache}: {done.stderr.strip().splitlines()[-1]}")
    lines = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    return {operation: (float(seconds), float(cpu)) for operation, seconds, cpu in lines}


def measure(rounds: int, cold_rounds: int) -> list[dict[str, Any]]:
    """Return a row for each operation of each case: its name, cache, and all times in seconds.

    Beside those of a cold cache stand the CPU seconds of the loop before each.
    """
    times: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    loop = _case(_LOOP, SHAPES[0], "cold")
    with tempfile.TemporaryDirectory() as temporary:
        warm = Path(temporary) / "warm"
        for case in cases():
            if case.cache != "cold":
                run(case, warm)
        for number in range(rounds):
            for case in cases():
                cold = case.cache == "cold"
                if cold and number >= cold_rounds:
                    continue
                with tempfile.TemporaryDirectory(dir=temporary) as empty:
                    unit = run(loop, warm)["numba's loop"][1] if cold else 0.0
                    for operation, taken in run(case, Path(empty) if cold else warm).items():
                        times.setdefault((operation, case.name, case.cache), []).append((*taken, unit))
    names = "operation", "case", "cache"
    return [
        {
            **dict(zip(names, key, strict=True)),
            "seconds": [seconds for seconds, _, _ in taken],
            "cpu": [cpu for _, cpu, _ in taken],
            **({"loop_cpu": [unit for _, _, unit in taken]} if key[2] == "cold" else {}),
        }
        for key, taken in times.items()
    ]


def versions() -> dict[str, Any]:
    """Return what `nbbn.config` tells of a new process."""
    code = "import json, nbbn; print(json.dumps(nbbn.config()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept = ("nbbn", "python", "numpy", "numba", "llvmlite", "num_threads", "cpu")
    return {name: value for name, value in json.loads(done.stdout).items() if name in kept}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the medians and the range as text, a line a row."""
    lines = [f"{'':<24}{'':<18}{'cache':<7}{'median':>8}{'least':>8}{'most':>8}{'runs':>6}   (ms)"]
    for row in rows:
        ms = [1e3 * seconds for seconds in row["seconds"]]
        numbers = "".join(f"{v:8.0f}" for v in (statistics.median(ms), min(ms), max(ms)))
        head = f"{row['operation']:<24}{row['case']:<18}{row['cache']:<7}"
        lines.append(f"{head}{numbers}{len(ms):6d}")
    imports = {row["case"]: statistics.median(row["seconds"]) for row in rows if not row["cache"]}
    lines.append(f"nbbn adds {1e3 * (imports['nbbn'] - imports['numba']):.0f} ms to import numba")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times to FILE")
    parser.add_argument("--rounds", type=int, default=9, help="processes a case (default 9)")
    parser.add_argument("--cold-rounds", type=int, default=7, help="of a cold cache (default 7)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.cold_rounds) < 1:
        parser.error("expected at least 1 round")
    machine, software = describe_machine(), versions()
    rows = measure(max(arguments.rounds, arguments.cold_rounds), arguments.cold_rounds)
    print(f"{machine['cpu']}, {machine['usable_cores']} usable cores")
    print(", ".join(f"{name} {value}" for name, value in software.items()))
    print(table(rows))
    if arguments.json is not None:
        report = {"machine": machine, "versions": software, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
