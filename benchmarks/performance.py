"""The pages of performance and their pictures, from a recorded run: ``python -m benchmarks.performance [FILE]``.

Record with ``python -m benchmarks.compare --record --json FILE`` and, for the first calls of a
process, ``python -m benchmarks.startup --json benchmarks/startup.json``. With ``FILE`` its medians and
minima are kept in ``benchmarks/recorded.json`` first. Every number of the pages is computed here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.cases import ALL_OPERATIONS, Case
from benchmarks.harness.implementations import BASELINE
from benchmarks.harness.machine import describe_run
from benchmarks.harness.race import Result
from benchmarks.harness.shapes import Shape
from benchmarks.runs import (
    Run,
    failures,
    header,
    noise,
    not_fastest,
    peer_tables,
    row,
    run_of,
    threads_text,
)
from benchmarks.table import ROOT, keep, write_readme
from benchmarks.targets import compiling_table, missed_lines, startup_table, target_table, targets_of_sets

STARTUP = ROOT / "benchmarks" / "startup.json"
DOCS = ROOT / "docs"
PICTURE = "performance.svg"
PICTURE_SHAPES: tuple[Shape, ...] = (
    (32, 64, 56, 56),
    (32, 1024, 14, 14),
    (8, 2048, 7, 7),
    (65536, 256),
)
NAMES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "jax": "JAX",
    "openvino": "OpenVINO",
    "sklearn": "scikit-learn",
}
LEADS = 12  # cases shown of those in which another library is ahead


def pages(record: dict[str, Any], startup: dict[str, Any] | None, sets: dict[str, Any]) -> dict[str, str]:
    """Return the text of each page by its name in docs/; ``sets`` are the records of other pages."""
    run, others = run_of(record), {name: run_of(each) for name, each in sets.items()}
    counts = sorted({result.case.threads for result in run.results})
    made = {
        "performance.md": _answers(record, run, startup),
        "performance_losses.md": [
            "# Where nbbn is not the fastest",
            "\n".join(not_fastest(run) + failures(run)),
        ],
        "performance_tables.md": [
            "# Other layouts, types and arrays",
            _TABLES.format(threads=threads_text(counts, " / ")),
            "\n".join(peer_tables(r for r in run.results if r.case.storage)),
        ],
        "performance_limits.md": [
            "# How far from the memory's limit",
            _LIMITS,
            _TARGETS.format(cache=run.cache >> 20),
            "\n".join(target_table(run, others)),
            "## Where a target is missed",
            "\n".join(missed_lines(run, others)),
            "## Why",
            _WHY,
            "## The picture",
            _PICTURE.format(threads=threads_text(counts[-1:])),
        ],
    }
    if startup is not None:
        made["performance_limits.md"] += [
            "## A new process",
            _NEW_PROCESS,
            "\n".join(startup_table(startup)),
            "## What a first call compiles",
            _COMPILES,
            "\n".join(compiling_table(startup)),
        ]
    return {
        name: "\n\n".join([_NOTICE, *(section.strip() for section in sections)]) + "\n"
        for name, sections in made.items()
    }


def _answers(record: dict[str, Any], run: Run, startup: dict[str, Any] | None) -> list[str]:
    counts = sorted({result.case.threads for result in run.results})
    settings, machine = record["settings"], record["machine"]
    memory = f" {machine['memory_gib']} GB of memory." if machine["memory_gib"] else ""
    plain = [result for result in run.results if not result.case.storage]
    tables = {
        "### Images, (N, C, H, W)": [r for r in plain if len(r.case.shape) > 2],
        "### Tables, (N, C)": [r for r in plain if len(r.case.shape) == 2],
    }
    sections = [_INTRODUCTION]
    for heading, results in tables.items():
        if results:
            sections += [heading, "\n".join(_overview(results, run.peers))]
    sections += [
        "## Where nbbn is not the fastest",
        "\n".join(_leads(run)),
        "## Which shapes",
        _SHAPES.format(threads=threads_text(counts, " / ")),
        "\n".join(peer_tables(plain, limit=False, level="###")),
    ]
    if startup is not None:
        sections += ["## The first call", _FIRST_CALL, "\n".join(_first_calls(startup))]
    return [
        *sections,
        "## Measured on",
        f"{describe_run(machine, record['versions'])}.{memory}",
        f"{record['date'][:10]}; {threads_text(counts, ' and ')}; {len(run.results)} races "
        f"of at most {settings['rounds']} rounds, each ended after five rounds and {settings['seconds']} seconds. "
        f"{noise(run)} [Benchmarks](benchmarks.md#the-recorded-run) says how to record it again.",
        _TOCTREE,
    ]


def _overview(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    """Return the geometric mean and the range of each library's time over nbbn's, an operation a line."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case.operation, result.case.threads), []).append(result)
    found = [peer for peer in peers if any(r.ratio(peer) is not None for r in results)]
    lines = header("", "threads", *(NAMES.get(peer, peer) for peer in found))
    for operation, threads in sorted(groups, key=lambda key: (ALL_OPERATIONS.index(key[0]), key[1])):
        group = groups[operation, threads]
        cells = []
        for peer in found:
            ratios = [ratio for r in group if (ratio := r.ratio(peer)) is not None]
            cells.append(_mean_and_range(ratios))
        lines.append(row(operation, str(threads), *cells))
    return lines


def _mean_and_range(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    text = f"**{mean:.2f}**" if mean < 1 else f"{mean:.1f}"
    return f"{text}\u00a0({min(ratios):.2g}\u2013{max(ratios):.2g})"  # in one piece


def _leads(run: Run) -> list[str]:
    """Return how often each library is ahead, and the cases in which one is farthest ahead."""
    lines = [
        _LEADS,
        "",
        *header("", "comparisons", "the library is faster", "also by the fastest rounds"),
    ]
    leads: list[tuple[float, str, Case]] = []
    for peer in run.peers:
        ratios = [(r, ratio) for r in run.results if (ratio := r.ratio(peer)) is not None]
        ahead = [(r, ratio) for r, ratio in ratios if ratio < 1]
        confirmed = [(r, ratio) for r, ratio in ahead if (r.ratio(peer, "minimum") or 0) < 1]
        leads += [(ratio, peer, r.case) for r, ratio in confirmed]
        lines.append(row(NAMES.get(peer, peer), str(len(ratios)), str(len(ahead)), str(len(confirmed))))
    if not leads:
        return lines
    farthest: dict[str, tuple[float, str]] = {}  # of each case the fastest library
    for ratio, peer, case in sorted(leads, key=lambda lead: lead[0]):
        farthest.setdefault(case.label, (ratio, peer))
    shown = list(farthest.items())[:LEADS]
    lines += [
        "",
        "They are farthest ahead here:",
        "",
        *header("case", "library", "its time / nbbn's"),
    ]
    lines += [row(label, NAMES.get(peer, peer), f"{ratio:.2f}") for label, (ratio, peer) in shown]
    return [*lines, "", "[All cases](performance_losses.md) are on a page of their own."]


def _first_calls(startup: dict[str, Any]) -> list[str]:
    """Return what the first calls of a process take, by what is on disk."""
    rows = {(r["operation"], r["case"], r["cache"]): r["seconds"] for r in startup["rows"]}
    seconds = {key: statistics.median(found) for key, found in rows.items()}
    lines = header("", "compiled before", "nothing compiled yet")
    for operation, name in dict.fromkeys((o, n) for o, n, cache in seconds if cache == "warm"):
        cells = (seconds.get((operation, name, cache)) for cache in ("warm", "cold"))
        lines.append(row(f"{operation}, {name}", *("-" if s is None else f"{s:.2f} s" for s in cells)))
    imports = [seconds["import", name, ""] for name in ("numba", BASELINE)]
    return [
        *lines,
        "",
        "`import nbbn` takes {1:.2f} s, of which numba takes {0:.2f}.".format(*imports),
    ]


_NOTICE = "<!-- Written by benchmarks/performance.py from benchmarks/recorded.json: edit those. -->"

_INTRODUCTION = """
# Performance

```{image} images/speed-light.svg
:class: only-light
:alt: How many times faster nbbn is than PyTorch and NumPy
```

```{image} images/speed-dark.svg
:class: only-dark
:alt: How many times faster nbbn is than PyTorch and NumPy
```

How fast nbbn was on [one machine](#measured-on). Yours differs: measure it with `nbbn bench --quick`, in 1 to 3
minutes.

## How many times faster

The time of the library divided by nbbn's: 2 means that nbbn takes half the time. The first number is the geometric
mean over all shapes, the range stands in parentheses, and **bold** means that the library is faster. All are plain
calls: float32, channels on axis 1, new results.
"""

_LEADS = """
These are all comparisons, also with `out=`, other types and channels that come last. A lead that the fastest rounds
do not confirm is one in which the machine was disturbed.
""".strip()

_SHAPES = """
The time of nbbn, then how many times as long each library takes, on {threads}. **Bold** means that the library is
faster. See also [other layouts, types and arrays](performance_tables.md), [activations, half types and
bytes](benchmarks_fused.md), [tables and `Standardizer`](benchmarks_standardizer.md), [data
sets](benchmarks_data_sets.md), [masks, weights and calibration](benchmarks_statistics.md), and [how far nbbn is from
the memory's limit](performance_limits.md).
"""

_FIRST_CALL = """
What the first call of its kind takes in a process that has just started, as the median over fresh processes. Later
calls take none of it.
"""

_TOCTREE = """
```{toctree}
:hidden:

Where it is slower <performance_losses>
Other layouts and types <performance_tables>
Activations, half types <benchmarks_fused>
Standardizer <benchmarks_standardizer>
Data sets <benchmarks_data_sets>
Masks, calibration <benchmarks_statistics>
Limits <performance_limits>
```
"""

_TABLES = """
How many times nbbn's time each library takes, on {threads}: 2 means that nbbn is twice as fast; **bold** that the
library is faster. "Of the limit" is nbbn's time over that of a loop that only moves as much memory
([more](benchmarks.md#the-yardsticks)). Plain calls are on the page [Performance](performance.md).
"""

_LIMITS = """
This page is for those who work on nbbn. It compares nbbn with loops that only move memory, `copy-affine`, `read`
and `two-trip`, with the compiled function alone, `bare-kernel`, and with a frozen layer, `frozen` ([how they are
made](benchmarks.md#the-yardsticks)).

## The targets
"""

_TARGETS = """
Each number is nbbn's time over the yardstick's in the same race, medians, with the worst case and the median over
all cases; float32 unless said. "In the cache" means that all arrays of the call together fit the largest cache,
{cache} MB. Training and backward write into arrays that are kept, as the yardstick does. "Holds" says in how many
of the cases, and `-` is what was not recorded.
"""

_WHY = """
Line by line, what the compiled loops and the profiles of calls show (AVX2, Zen 3):

- **Sums in the cache** (moments, training, backward) wait for arithmetic. They are taken in float64, which keeps them
  exact. The loop has 4 conversions, 4 additions and 4 fused multiply-adds for 16 values, that of a backward 8
  conversions, 4 subtractions, 4 additions and 4 fused multiply-adds for 16 pairs, and next to nothing else. A core
  does that at 39 GB/s, where it reads its cache at 110; with sums in float32 it would be 80. So moments take 2.8 times
  `read` at least. Tried: additions as fused multiply-adds, which use other pipes and give the same bits (no gain
  was seen, beside other work). A first look at runs of float32 no longer subtracts: 1.2 to 1.5 times as fast, the
  same bits.
- **Few values a channel, and (8, 100000)**: each channel costs 6 divisions or roots, which no loop over values hides,
  and 110 bytes of tables where x has 32.
- **Inference in the cache**: 2 loads that subtract, 2 fused multiply-adds and 2 stores for 16 values, as many accesses
  as the yardstick has. What is left is the call, which the layer begins with a comparison of its table (a frozen layer
  does not), and the coefficients. These begin at a line of the cache: where they began 16 bytes further on, as malloc
  has it, rows took 1.2 times as long. Tried: strips of eight rows, which share coefficients; rows take 0.9 to 1.05 of
  their time, and compile a fifth faster.
- **Inference past the cache**: a run keeps its coefficients in registers and takes 1.06 to 1.1 of the yardstick. Rows
  load three coefficients with each value, 1.12 to 1.25; a bare loop of these instructions takes 1.07 to 1.15. Short
  rows are joined to 4 KB; with 8 KB, float64 took 1.1 to 1.4 times as long, as coefficients fill most of the cache next
  to the core.
  Tried: two, four and eight rows at a time, which share coefficients; stores past the cache to several rows in turn
  take 1.3 to 5 times as long.
- **Past the cache**: training and backward read their arrays twice, and their sums wait for arithmetic as above. All
  lines of the next rows are asked for ahead of time, unless rows are no longer than two lines: with rows of 64 to 128
  columns that took 0.3 to 0.6 of the time.
  Tried: one group of channels after the other, in place of two passes, which took up to 2.3 times as long where runs
  have 49 to 784 values.
- **Small calls** are Python: of a frozen layer's 2.7 us on (32, 64) the compiled function takes 0.5. A layer in
  inference keeps what backward needs, 2.4 us more. Training also makes a table, counts the batch and moves averages,
  each under the layer's lock: 10 us, of which the compiled functions take 3. The functions check all that they are
  given in every call; what follows from a shape they remember (`batch_norm_backward` of (32, 64) 41 us -> 19).
- **Masks**: on AVX2 a run takes 38 instructions for 16 values where it takes 25 without a mask, as bytes are widened to
  the width of float64; rows take 2.4 to 3 instructions a value for 1.5, as the weight of a row is spread over a vector
  and half as many columns fit the registers.
- **Half types and bytes**: float16 takes as many instructions as float32, 44 for 64 values, and half the memory.
  bfloat16 has no instructions on AVX2: 60 for 32 values, for rounding and NaN. Bytes and their float32 results are 5
  of 8 bytes a value, so 0.63 at best, and 128 photos, which fit no cache, take 0.60 of float32 (0.67 by the fastest
  rounds). Of the 32 photos recorded, the 19 MB of float32 stay in the cache from call to call, so that reading them
  costs next to nothing, and the results are as many bytes for both. Those of the bytes also go through the cache, as
  all arrays together (23 MB) fit three quarters of it. Past the cache they take 1.04 ms for 1.26, but who reads them
  next then waits: two layers in turn, each on the other's result, take 0.9 of the time past the cache where the arrays
  are 24 MB, and 1.7 to 2.4 times the time where they are 8 to 15 MB; on two threads 1.9 times at 24 MB.
- **float64, and float64 parameters**: a sum of float64 takes as many additions a value as one of float32, so half as
  many a byte; in the cache it waits for them, too. Parameters of float64 go through the same loops, with coefficients
  of float32.
- **The quickest library**: of the 129 cases that lose more than 5 %, 41 are arrays of up to 128 KB, where a call is
  Python: NumPy's two operations on (1, 64) take 1.7 us in all. 14 are (8, 100000). 39 are in the cache on one thread,
  and 34 on two: JAX's moments, whose sums are in float32; training of few values a channel; inference of rows, where
  each value takes three coefficients from the cache besides. Past the cache one loses, rows of 256 in arrays that do
  not begin at a line of the cache, so that each row ends with parts of two; since then four of them are written as one
  row (0.42 -> 0.33 ns a value).
- **Two threads**: the yardstick takes one thread where that is faster; nbbn takes two from 131,072 values on. On some
  days the two cores of this machine are like two threads of one (a loop took 1.8 times as long while the other one
  worked), and what waits for arithmetic gains little from the second; on others two processes did 1.7 to 2.3 times the
  work of one, in moments, in a frozen layer and in a loop of square roots alike. What is made of many channels
  (8, 100000) is the work of both since each part may finish its own: moments 1.03 -> 0.6 ms, training 1.8 -> 1.0.
  A round that waits for a core that is taken waits for a time slice of the scheduler: inference of (1024, 1024) with
  `out=` takes 0.23 ms by the fastest round, and 4.2 by the median, so read the fastest rounds there.
"""

_PICTURE = """
![Times of nbbn and other libraries as multiples of the limit, four shapes an operation](images/performance.svg)

Plain calls with new results, {threads}. The axis is logarithmic, and the dashed line is the yardstick. Less
than 1 is possible in training and backward, whose yardstick reads everything twice from memory.
"""

_NEW_PROCESS = """
Seconds in a process that has just started, medians over fresh processes, where everything was compiled before.
"""

_COMPILES = """
CPU seconds of a first call with an empty cache, over those of numba's own first parallel loop,
`y[i, j] = x[i, j] * a[j] + b[j]`, in a process of its own just before: medians of the ratios, and the least.
"""


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture of the limits: the larger thread count, plain calls, a few shapes."""
    # Only where it is drawn: the test of the pages does without matplotlib.
    import matplotlib

    from nbbn.cli._bench_report import make_figure

    results = run_of(record).results
    threads = max(result.case.threads for result in results)
    chosen = [
        result
        for result in results
        if result.case.threads == threads and result.case.shape in PICTURE_SHAPES and not result.case.storage
    ]
    path.parent.mkdir(exist_ok=True)
    # The same file for the same numbers; text as text takes a sixth of the bytes of its outlines.
    with matplotlib.rc_context({"svg.hashsalt": "nbbn", "svg.fonttype": "none"}):
        make_figure(chosen).savefig(path, metadata={"Date": None})


def read_startup() -> dict[str, Any] | None:
    """Return the recorded first calls, if there are any."""
    return json.loads(STARTUP.read_text("utf-8")) if STARTUP.is_file() else None


def read_sets() -> dict[str, Any]:
    """Return the other records that have lines in the table of targets, by the name of their set."""
    files = {name: ROOT / "benchmarks" / f"{name}.json" for name in targets_of_sets()}
    return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite pages, pictures and the README's table from the recorded run, or from a new one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", nargs="?", type=Path, help="what benchmarks.compare --json wrote")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where to write the pages")
    options = parser.parse_args(arguments)
    record = keep(options.file)
    try:
        draw(record, options.folder / "images" / PICTURE)
    except ValueError as error:  # a run without the shapes of the picture or without yardsticks
        parser.error(f"{error} (record with benchmarks.compare --record)")
    if options.folder == DOCS:
        from benchmarks import picture

        write_readme(record)
        picture.main()
    for name, text in pages(record, read_startup(), read_sets()).items():
        (options.folder / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
