"""The races without pytest: ``python -m benchmarks.compare --help``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import add_options, make_selection
from benchmarks.race import Race, Result
from benchmarks.report import as_json, summary_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Race, print the table, write the JSON; return 1 if an implementation failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Time nbbn beside its peers and print the ratios of medians.",
    )
    add_options(parser.add_argument)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers here")
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"argument --json: there is no directory {options.json.parent}")
    selection = make_selection(options)
    results: list[Result] = []
    with Race(
        selection.implementations, rounds=selection.rounds, seconds=selection.seconds
    ) as race:
        for number, case in enumerate(selection.cases, 1):
            if sys.stderr.isatty():
                print(f"[{number}/{len(selection.cases)}] {case.label}", file=sys.stderr)
            results.append(race.run(case))
    print("\n".join(summary_lines(results, race.versions)))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results, race), indent=1) + "\n")
    failed = any(o.status == "failed" for r in results for o in r.outcomes.values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
