"""Data sets as people have them: ``python -m benchmarks.data_sets [--json FILE] [--only NAME ...] [--page]``.

Each round times all of a case once, in turn, in this process, with everything compiled:

- gaps: `Standardizer` on a table with every hundredth value missing, beside the same table without;
- sparse: `Standardizer(with_mean=False)` beside scikit-learn's `StandardScaler(with_mean=False)`;
- chunks: `partial_fit` beside a running mean and variance in NumPy by Chan's formula, with one look at the mean
  after 512 chunks; and both with every chunk standardized as it comes;
- files: `nbbn normalize` and `nbbn moments` beside pyarrow, which reads the same file and writes the same result, a
  batch at a time. Both wait until their bytes are on the disk. Statistics take a pass over the input of their own: that
  is one more reading by pyarrow.

With ``--page`` nothing is timed: docs/benchmarks_data_sets.md is written from benchmarks/data_sets.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nbbn
from benchmarks.harness.machine import describe_run, print_setting
from benchmarks.runs import header, row
from benchmarks.table import ROOT, between_markers
from nbbn.cli import main as command

Steps = dict[str, Callable[[], Any]]
Pair = tuple[str, str]

DTYPES = (np.float32, np.float64)
TABLES = ((1000, 10), (10_000, 32), (65_536, 16), (400_000, 64))
SPARSE = ((20_000, 1000, 0.01), (100_000, 2000, 0.005))
CHUNKS = ((8, 4), (8, 64), (64, 4), (64, 64))
SAMPLES = 200_000  # of the files
KEPT, PAGE = ROOT / "benchmarks" / "data_sets.json", ROOT / "docs" / "benchmarks_data_sets.md"
MARKERS = "<!-- data_sets: written by benchmarks/data_sets.py -->", "<!-- data_sets: end -->"
SHORT = 0.02  # seconds; what takes less is repeated within a round


class Chan:
    """A running mean and variance, as one writes it in NumPy."""

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 0, np.zeros(1), np.zeros(1)

    def update(self, x: np.ndarray[Any, Any]) -> None:
        """Merge a chunk (Chan, Golub and LeVeque 1983)."""
        mean, m2 = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64) * len(x)
        delta, total = mean - self.mean, self.count + len(x)
        self.m2 = self.m2 + m2 + delta * delta * (self.count * len(x) / total)
        self.mean, self.count = self.mean + delta * (len(x) / total), total

    def standardized(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a chunk in the dtype that it has."""
        found: np.ndarray[Any, Any] = (x - self.mean) / np.sqrt(self.m2 / self.count)
        return found.astype(x.dtype, copy=False)


def gaps() -> Iterator[tuple[str, Steps, list[Pair]]]:
    """Yield what is timed, and the pairs whose ratios are of interest."""
    rng = np.random.default_rng(0)
    for shape in TABLES:
        for dtype in DTYPES:
            whole = rng.standard_normal(shape).astype(dtype) * 2 + 5
            some = whole.copy()
            some[rng.random(shape) < 0.01] = np.nan
            steps: Steps = {}
            for name in ("fit", "transform", "fit_transform"):
                for kind, x in (("", whole), (", gaps", some)):
                    method = getattr(nbbn.Standardizer().fit(x), name)
                    steps[name + kind] = functools.partial(method, x)
            pairs = [(f"{name}, gaps", name) for name in ("fit", "transform", "fit_transform")]
            yield f"{shape} {np.dtype(dtype).name}", steps, pairs


def sparse() -> Iterator[tuple[str, Steps, list[Pair]]]:
    """As `gaps`."""
    from scipy import sparse as matrices
    from sklearn.preprocessing import StandardScaler

    for rows, columns, density in SPARSE:
        for dtype in DTYPES:
            for form in ("csr", "csc"):
                x = matrices.random(rows, columns, density, form, dtype, random_state=0)
                steps: Steps = {}
                for kind, scaler in (("", nbbn.Standardizer), (", sklearn", StandardScaler)):
                    for name in ("fit", "transform", "fit_transform"):
                        method = getattr(scaler(with_mean=False).fit(x), name)
                        steps[name + kind] = functools.partial(method, x)
                pairs = [(n, f"{n}, sklearn") for n in ("fit", "transform", "fit_transform")]
                label = f"{form}, ({rows}, {columns}), {density:.1%}, {np.dtype(dtype).name}"
                yield label, steps, pairs


def chunks() -> Iterator[tuple[str, Steps, list[Pair]]]:
    """As `gaps`."""
    for shape in CHUNKS:
        for dtype in DTYPES:
            rng = np.random.default_rng(0)
            given = [rng.standard_normal(shape).astype(dtype) for _ in range(16)] * 32
            scaler, formula = nbbn.Standardizer(), Chan()
            in_turn, formula_in_turn = nbbn.Standardizer(), Chan()

            def ours(scaler: Any = scaler, given: Any = given) -> None:
                for x in given:
                    scaler.partial_fit(x)
                _ = scaler.mean_

            def theirs(formula: Any = formula, given: Any = given) -> None:
                for x in given:
                    formula.update(x)

            def ours_in_turn(scaler: Any = in_turn, given: Any = given) -> None:
                for x in given:
                    scaler.partial_fit(x).transform(x)

            def theirs_in_turn(formula: Any = formula_in_turn, given: Any = given) -> None:
                for x in given:
                    formula.update(x)
                    formula.standardized(x)

            steps: Steps = {"partial_fit": ours, "NumPy": theirs}
            steps |= {"partial_fit, transform": ours_in_turn, "NumPy in turn": theirs_in_turn}
            pairs = [("partial_fit", "NumPy"), ("partial_fit, transform", "NumPy in turn")]
            yield f"{shape} {np.dtype(dtype).name}", steps, pairs


def files() -> Iterator[tuple[str, Steps, list[Pair]]]:
    """As `gaps`; of a table of ten columns of floats, two of integers and one of text."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        f"f{i}": rng.normal(100, 20, SAMPLES).astype(np.float32).astype(np.float64).round(4) for i in range(10)
    }
    columns |= {f"n{i}": rng.integers(0, 1000, SAMPLES) for i in range(2)}
    columns["name"] = pa.array(rng.integers(0, 50, SAMPLES)).cast(pa.string())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        csv.write_csv(pa.table(columns), folder / "in.csv")
        parquet.write_table(pa.table(columns), folder / "in.parquet")
        for kind in ("csv", "parquet"):
            yield (
                kind,
                _of_files(folder, kind),
                [
                    ("moments", "read"),
                    ("normalize --stats", "read and write"),
                    ("normalize", "read twice and write"),
                ],
            )


def _of_files(folder: Path, kind: str) -> Steps:
    from pyarrow import csv, parquet

    source, target = str(folder / f"in.{kind}"), str(folder / f"out.{kind}")
    saved = str(folder / f"{kind}.npz")

    def run(*arguments: str) -> None:
        if command(arguments):
            raise RuntimeError(f"nbbn {' '.join(arguments)} failed")

    def batches(path: str) -> Iterator[Any]:
        if kind == "csv":
            with csv.open_csv(path, csv.ReadOptions(block_size=1 << 22)) as reader:
                yield from reader
        else:
            yield from parquet.ParquetFile(path).iter_batches(1 << 17)

    def read() -> None:
        for _ in batches(source):
            pass

    def read_and_write(more: int = 0) -> None:
        for _ in range(more):
            read()
        path = folder / "copy"
        writer = csv.CSVWriter if kind == "csv" else parquet.ParquetWriter
        reader = batches(source)
        with path.open("wb") as file:
            with writer(file, results[0].schema) as written:
                for batch in results:
                    next(reader, None)
                    written.write_batch(batch)
            for _ in reader:
                pass
            file.flush()
            os.fsync(file.fileno())

    run("moments", source, "--save-stats", saved)
    run("normalize", source, target)
    results = list(batches(target))  # in memory: that the same text is written, not that it is read
    return {
        "read": read,
        "read and write": read_and_write,
        "read twice and write": functools.partial(read_and_write, 1),
        "moments": functools.partial(run, "moments", source, "--save-stats", saved),
        "normalize --stats": functools.partial(run, "normalize", source, target, "--stats", saved),
        "normalize": functools.partial(run, "normalize", source, target),
    }


SETS = {"gaps": gaps, "sparse": sparse, "chunks": chunks, "files": files}
TITLES = {
    "gaps": ("Missing values", "A table of which every hundredth value is missing, over the same table without."),
    "sparse": ("Sparse matrices", "Over scikit-learn's `StandardScaler`."),
    "chunks": (
        "Small chunks",
        "`partial_fit` over a running mean and variance in NumPy, by Chan's formula; and each chunk standardized as it "
        "comes, by both.",
    ),
    "files": (
        "Files",
        "Over pyarrow, which reads the same file and writes the same result: with `--stats` once, without twice.",
    ),
}  # fmt: skip


def measure(steps: Steps, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each step in each round."""
    loops, found = {}, {name: list[float]() for name in steps}
    for name, work in steps.items():
        work()  # compiles, and fills caches
        started = time.perf_counter()
        work()
        loops[name] = max(1, round(SHORT / (time.perf_counter() - started)))
    for _ in range(rounds):
        for name, work in steps.items():
            started = time.perf_counter()
            for _ in range(loops[name]):
                work()
            found[name].append((time.perf_counter() - started) / loops[name])
    return found


def table(measured: dict[str, Any]) -> str:
    """Return ratios of the medians and of the minima, as text."""
    lines = [f"{measured['set']}: {measured['case']}"]
    for step, peer in measured["pairs"]:
        lines.append(f"  {step + ' / ' + peer:<40} {ratios(measured['seconds'], step, peer)}")
    return "\n".join(lines)


def ratios(seconds: dict[str, list[float]], step: str, peer: str) -> str:
    """Return the ratio of the medians, and in parentheses that of the fastest rounds."""
    found = (f(seconds[step]) / f(seconds[peer]) for f in (statistics.median, min))
    return "{:.2f} ({:.2f})".format(*found)


def block(report: dict[str, Any]) -> str:
    """Return the tables of a recorded run."""
    machine, versions = report["machine"], report["versions"]
    shown = {name: versions[name] for name in ("nbbn", "numba", "numpy")}
    threads = versions["num_threads"]
    lines = [f"{describe_run(machine, shown)}; {threads} threads; {report['date']}.", ""]
    for name, (title, text) in TITLES.items():
        measured = [each for each in report["rows"] if each["set"] == name]
        lines += [f"## {title}", "", text, "", *header("", *(p[0] for p in measured[0]["pairs"]))]
        for each in measured:
            cells = (ratios(each["seconds"], *pair) for pair in each["pairs"])
            lines.append(row(each["case"], *cells))
        lines.append("")
    return "\n".join(lines[:-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times to FILE")
    parser.add_argument("--rounds", type=int, default=5, help="of each case (default 5)")
    parser.add_argument("--only", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    parser.add_argument("--threads", type=int, help="of nbbn (default: its own)")
    parser.add_argument("--page", action="store_true", help="write the page of what was recorded")
    options = parser.parse_args(arguments)
    if options.page:
        made = block(json.loads(KEPT.read_text("utf-8")))
        text = between_markers(PAGE.read_text("utf-8"), MARKERS[0], made, MARKERS[1])
        PAGE.write_text(text, "utf-8")
        return 0
    if options.rounds < 1:
        parser.error("expected at least 1 round")
    if options.threads is not None:
        nbbn.set_num_threads(options.threads)
    setting = print_setting()
    rows = []
    for name in options.only:
        for case, steps, pairs in SETS[name]():
            measured = {"set": name, "case": case, "pairs": pairs}
            measured["seconds"] = measure(steps, options.rounds)
            rows.append(measured)
            print(table(measured), flush=True)
    if options.json is not None:
        report = {**setting, "date": time.strftime("%Y-%m-%d"), "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
