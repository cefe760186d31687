"""``nbbn bench``: how fast this machine is with nbbn, beside other libraries and its own limit."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbbn
from nbbn._bench.libraries import IMPLEMENTATIONS
from nbbn._bench.problem import FUSED, OPERATIONS, Case, Shape
from nbbn._bench.race import BASELINE, Outcome, Race, Result
from nbbn._engine.threads import affinity as usable_cores
from nbbn.cli import _files
from nbbn.cli._bench_report import make_figure, overview_lines
from nbbn.cli._files import CommandError
from nbbn.cli._progress import Progress

HELP = "measure nbbn on this machine, beside other libraries and the limit of the memory"
EXAMPLE = f"nbbn bench --quick --plot bars.png (--plot needs matplotlib: {_files.INSTALL})"

BATCH = 32
_CHANNELS = {112: (64,), 56: (64, 256, 128), 28: (128, 512, 256), 14: (256, 1024, 512), 7: (512, 2048)}  # by height
RESNET50_IMAGES: tuple[Shape, ...] = tuple((c, size, size) for size, counts in _CHANNELS.items() for c in counts)
"""(channels, height, width) of every distinct batch normalization in ResNet-50, in order."""

FEATURES: tuple[Shape, ...] = ((1, 64), (32, 256), (128, 256), (1024, 1024), (65536, 256), (1_000_000, 32))
"""(samples, features): dense layers and tables, from the smallest call upwards."""

QUICK: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (32, 2048, 7, 7), (128, 256))
"""A sample of the others for ``--quick``: larger than a core's cache, inside it, 7x7, a table."""

QUICK_FUSED: tuple[Shape, ...] = ((32, 256, 14, 14), (128, 256))
"""Of these the ones that a fused operation is measured on, too: images and a table."""

# rounds of a race at most, and the seconds after which it ends
_THOROUGH = (15, 1.5)
_BRIEF = (7, 0.5)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write all numbers to a file")
    add("--plot", type=Path, metavar="FILE", help="draw bars beside the limit, as .png, .svg or .pdf")
    add("--quick", action="store_true", help="fewer shapes and rounds, one thread count: 1 to 3 minutes")


def run(arguments: argparse.Namespace) -> None:
    """Time nbbn in float32, beside other libraries and loops that only move memory.

    The libraries are NumPy, torch, onnxruntime and scikit-learn, as far as they are installed.
    """
    record, drawing = arguments.json, arguments.plot
    # Before the work: a mistyped path should not cost minutes.
    _files.check_file(record, "--json")
    _files.check_figure(drawing)
    compiled, started = _count_compiled(), time.monotonic()
    rounds, seconds = _BRIEF if arguments.quick else _THOROUGH
    cases, results = list_cases(arguments.quick, usable_cores()), []
    with Race(IMPLEMENTATIONS, rounds=rounds, seconds=seconds) as race, Progress(len(cases), "Measuring") as progress:
        for case in cases:
            results.append(race.run(case))
            progress.advance()
    print("\n".join(overview_lines(results, race.versions)))
    _print_duration(time.monotonic() - started, _count_compiled() - compiled)
    if record is not None:
        with _files.writing(record, "--json") as file:
            file.write(f"{json.dumps(_as_json(results, race), indent=1)}\n".encode())
        print(f"All numbers are in {record}")
    if drawing is not None:
        try:
            figure = make_figure(results)
        except ValueError as error:
            raise CommandError(f"--plot: {error}") from None
        _files.write_figure(drawing, figure)
        print(f"The bars are in {drawing}")
    # A result of nbbn that is wrong, or missing, must not look like success.
    for result in results:
        outcome = result.outcomes[BASELINE]
        if outcome.status == "failed":
            raise CommandError(f"{BASELINE} failed in {result.case.label}: {outcome.cause}")


def list_cases(quick: bool, cores: int) -> tuple[Case, ...]:
    """Return what ``nbbn bench`` measures; threads vary slowest, so that workers are kept long."""
    shapes = QUICK if quick else (*((BATCH, *image) for image in RESNET50_IMAGES), *FEATURES)
    counts = [count for count in (1, 2) if count <= cores]
    return tuple(
        Case(operation, shape, count)
        # the same libraries loaded again for another count would take half of the time
        for count in (counts[-1:] if quick else counts)
        for operation in (*OPERATIONS, FUSED)
        for shape in (QUICK_FUSED if quick and operation == FUSED else shapes)
        # one value a channel has no variance to train with
        if shape != (1, 64) or operation in ("inference", "moments", FUSED)
    )


def _as_json(results: Sequence[Result], race: Race) -> dict[str, Any]:
    """Return everything that was measured, where and with what; no path, and no name of the machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": {k: v for k, v in nbbn.config().items() if k not in ("cache_directory", "cache_problem")},
        "versions": dict(sorted(race.versions.items())),
        "settings": {"rounds": race.rounds, "seconds": race.seconds},
        "results": [
            vars(result.case) | {"implementation": name} | _as_dict(outcome)
            for result in results
            for name, outcome in result.outcomes.items()
        ],
    }


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    if outcome.status != "timed":
        return {"status": outcome.status, "reason": outcome.cause}
    return vars(outcome) | {"median": outcome.median, "minimum": outcome.minimum}


def _count_compiled() -> int:
    """Return how many pieces of compiled code are on disk."""
    folder = nbbn.config()["cache_directory"]
    return sum(1 for _ in Path(folder).glob("*")) if folder is not None else 0


def _print_duration(seconds: float, compiled: int) -> None:
    print(f"\nIt took {seconds:.0f} s with all preparations.", end=" ")
    if nbbn.config()["cache_directory"] is None:
        print("Compiled code is not kept here (see NBBN_CACHE_DIR), so each run compiles.")
    elif compiled > 0:
        print(f"In these, {compiled} kernels were compiled;")
        print("that is not part of the times above, and the next run finds them on disk.")
    else:
        print("All kernels were compiled before.")
