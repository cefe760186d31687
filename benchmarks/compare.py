"""The races without pytest: ``python -m benchmarks.compare --help``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import recording
from benchmarks.harness.options import DEST_PREFIX, Selection, add_options, make_selection
from benchmarks.harness.race import Race, Result
from benchmarks.harness.report import as_json, summary_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Race, print the table, write the JSON; return 1 if an implementation failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Time nbbn beside its peers and print the ratios of medians.",
    )
    add_options(parser.add_argument)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers here")
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"the cases of docs/performance.md; about {recording.PAGE.minutes} minutes on two cores",
    )
    parser.add_argument(
        "--set",
        choices=tuple(recording.SETS),
        help="what docs/benchmarks.md shows: fused steps, half types and bytes; Standardizer; masks, "
        "weights and calibration; " + ", ".join(f"{name}: {p.minutes} minutes" for name, p in recording.SETS.items()),
    )
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"argument --json: there is no directory {options.json.parent}")
    recorded = options.record or options.set is not None
    selection = _recording(parser, options) if recorded else make_selection(options)
    results: list[Result] = []
    with Race(selection.implementations, rounds=selection.rounds, seconds=selection.seconds) as race:
        for number, case in enumerate(selection.cases, 1):
            if sys.stderr.isatty():
                print(f"[{number}/{len(selection.cases)}] {case.label}", file=sys.stderr)
            results.append(race.run(case))
    print("\n".join(summary_lines(results, race.versions)))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results, race), indent=1) + "\n")
    failed = any(o.status == "failed" for r in results for o in r.outcomes.values())
    return 1 if failed else 0


def _recording(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Selection:
    """Return the cases of a page; other options may make them quicker, not other ones."""
    if options.record and options.set is not None:
        parser.error(f"argument --record: not together with --set {options.set}")
    option = "--record" if options.record else "--set"
    allowed = {f"{DEST_PREFIX}{name}" for name in ("threads", "implementations", "rounds", "seconds")}
    given = vars(options)
    for name, value in given.items():
        if name.startswith(DEST_PREFIX) and name not in allowed and value:
            parser.error(f"argument {option}: not together with --{name.removeprefix(DEST_PREFIX)}")
    chosen = make_selection(options)
    preset = recording.PAGE if options.record else recording.SETS[options.set]
    cases = preset.cases(given[f"{DEST_PREFIX}threads"] or recording.THREADS)
    rounds, seconds = given[f"{DEST_PREFIX}rounds"], given[f"{DEST_PREFIX}seconds"]
    print(f"{len(cases)} races, about {preset.minutes} minutes on two cores", file=sys.stderr)
    return Selection(
        cases,
        chosen.implementations,
        preset.rounds if rounds is None else rounds,
        preset.seconds if seconds is None else seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
