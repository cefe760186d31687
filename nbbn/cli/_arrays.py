"""The commands on arrays, in .npy and .npz files."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nbbn import _checks
from nbbn._files import npy
from nbbn.cli._files import CommandError, Statistics, load_statistics, values_of
from nbbn.cli._progress import Progress
from nbbn.standardizer import _stream


@contextlib.contextmanager
def opened(arguments: argparse.Namespace, tables: Any) -> Iterator[ArrayInput]:
    """Open the input; ``tables`` is the module for them, where the output is one."""
    path, key = arguments.input, arguments.key
    is_npz = path.suffix.lower() == ".npz"
    with npy.opened_member(path, "IN", key) if is_npz else npy.opened(path, "IN") as source:
        yield ArrayInput(arguments, source, tables)


class ArrayInput:
    """An array that is normalized, or has moments."""

    def __init__(self, arguments: argparse.Namespace, source: npy.NpyFile, tables: Any) -> None:
        self.arguments, self.axis, self.source, self.tables = arguments, arguments.axis, source, tables
        header = source.header
        _checks.numbers(source.path, np.empty(0, header.dtype))
        _, self.channels, _ = _stream.view(header, self.axis)
        if tables is not None and (len(header.shape) != 2 or not header.shape[1]):
            raise CommandError(
                f"OUT: expected two dimensions, and a column at least, for a table, got shape {header.shape} "
                f"in {source.path}"
            )
        self.result = _stream.normalized(header)
        self.size = self.result.nbytes  # of what is written

    def moments(self, label: str) -> Statistics:
        """Return the moments of the channels, with a progress bar."""
        header = self.source.header
        if not header.size:
            raise CommandError(f"{self.source.path}: expected at least one value, got shape {header.shape}")
        with Progress(header.nbytes, label, in_bytes=True) as progress:
            return _stream.moments(self.source, self.axis, progress.advance), ()

    def fitting(self, path: Path) -> Statistics:
        """Return the statistics in a file, which must be of as many channels."""
        statistics, names = load_statistics(path)
        if statistics.mean.size != self.channels:
            raise CommandError(
                f"--stats: expected {self.channels} channels, as along axis {self.axis} of {self.source.path}, "
                f"got {statistics.mean.size} in {path}"
            )
        return statistics, names

    def normalize(self, file: BinaryIO, given: Statistics | None) -> tuple[Statistics | None, str]:
        """Write the array, normalized; return the statistics, where there are values, and what was written."""
        arguments, header, result = self.arguments, self.source.header, self.result
        label = "1/1 normalizing" if given else "2/2 normalizing"
        if self.tables is None:
            values = values_of(arguments.output, file, self.source.key)
        else:
            values = self.tables.rows_of(arguments, file, given[1] if given else ())
        with values as own:
            target = npy.NpyOutput(own, result)  # a limit on the size of files is met here, before the work
            if given is None and (header.size or arguments.save_stats is not None):
                given = self.moments("1/2 statistics")
            if given is not None and header.size:
                with Progress(header.nbytes, label, in_bytes=True) as progress:
                    _stream.normalize(self.source, self.axis, given[0], target, progress.advance)
        shape = " x ".join(map(str, result.shape))
        return given, f"{shape} {result.dtype.name}, {result.nbytes / 1e6:.3g} MB"
