"""``nbbn bench``: how fast this machine is with nbbn, beside other libraries and its own limit."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import nbbn
from nbbn._bench.implementations import BASELINE, LIMITS
from nbbn._bench.options import Selection, add_options, make_selection
from nbbn._bench.overview import overview_lines
from nbbn._bench.race import Race, Result
from nbbn._bench.report import as_json
from nbbn.cli import _files
from nbbn.cli._errors import CommandError
from nbbn.cli._progress import Progress

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_INSTALL = 'pip install "nbbn[demo]"'


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments.

    Parameters
    ----------
    commands
        What :meth:`argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "bench",
        help="measure this machine: nbbn beside other libraries and the memory's limit",
        description=(
            "Time nbbn beside NumPy, whichever of torch, onnxruntime, jax, openvino and "
            "scikit-learn is installed, and loops that only move the memory. --quick takes less "
            "than a minute."
        ),
        epilog=f"--plot needs matplotlib: {_INSTALL}",
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw bars beside the limit; the suffix says how: .png, .svg or .pdf",
    )
    add_options(parser.add_argument)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables and write what was asked for.

    Parameters
    ----------
    arguments
        The parsed command line: ``json``, ``plot``, and what ``add_options`` declares.

    Raises
    ------
    CommandError
        Where matplotlib is missing, a file cannot be written, the options leave nothing to
        measure or to draw, or nbbn itself failed.
    """
    selection = make_selection(arguments)
    # Before the work: a mistyped path should not cost minutes.
    _check(selection, arguments)
    compiled, started = _count_compiled(), time.monotonic()
    with Race(
        selection.implementations, rounds=selection.rounds, seconds=selection.seconds
    ) as race:
        results = _run_all(race, selection)
    print("\n".join(overview_lines(results, race.versions)))
    _print_duration(time.monotonic() - started, _count_compiled() - compiled)
    if arguments.json is not None:
        text = json.dumps(as_json(results, race), indent=1) + "\n"
        _files.write_text(arguments.json, text, "--json")
        print(f"All numbers are in {arguments.json}")
    if arguments.plot is not None:
        _write_plot(arguments.plot, results)
    _fail_with(results)


def _check(selection: Selection, arguments: argparse.Namespace) -> None:
    if not selection.cases:
        raise CommandError("the options leave nothing to measure")
    if arguments.json is not None:
        _files.check_file(arguments.json, "--json")
    if arguments.plot is None:
        return
    _load_plot()
    _files.check_figure(arguments.plot)
    wanted = dict.fromkeys([BASELINE, *(LIMITS[case.operation] for case in selection.cases)])
    missing = [name for name in wanted if name not in selection.implementations]
    if missing:
        raise CommandError(f"--plot: --implementations has to name {', '.join(missing)}, too")


def _load_plot() -> ModuleType:
    try:
        from nbbn._bench import plot
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise CommandError(f"matplotlib is needed ({reason}); {_INSTALL}") from None
    return plot


def _run_all(race: Race, selection: Selection) -> list[Result]:
    results = []
    with Progress(len(selection.cases), "Measuring") as progress:
        for case in selection.cases:
            results.append(race.run(case))
            progress.advance()
    return results


def _count_compiled() -> int:
    """Return how many pieces of compiled code are on disk."""
    folder = nbbn.config()["cache_directory"]
    return sum(1 for _ in Path(folder).glob("*")) if folder is not None else 0


def _print_duration(seconds: float, compiled: int) -> None:
    print(f"\nIt took {seconds:.0f} s with all preparations.", end=" ")
    if nbbn.config()["cache_directory"] is None:
        print("Compiled code is not kept here (see NBBN_CACHE_DIR), so each run compiles.")
    elif compiled > 0:
        print(
            f"In these, {compiled} kernels were compiled;\nthat is not part of the times above, and "
            "the next run finds them on disk."
        )
    else:
        print("All kernels were compiled before.")


def _write_plot(path: Path, results: list[Result]) -> None:
    try:
        figure = _load_plot().make_figure(results)
    except ValueError as error:
        raise CommandError(f"--plot: {error}") from None
    _files.write_figure(path, figure)
    print(f"The bars are in {path}")


def _fail_with(results: list[Result]) -> None:
    """A result of nbbn that is wrong, or missing, must not look like success."""
    for result in results:
        outcome = result.outcomes.get(BASELINE)
        if outcome is not None and outcome.status == "failed":
            reason = outcome.reason.strip().rpartition("\n")[2]
            raise CommandError(f"{BASELINE} failed in {result.case.label}: {reason}")
