"""Tables in CSV and Parquet files, a batch of rows at a time; pyarrow reads and writes them."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv, types

from nbbn._checks import Array
from nbbn._files import paths
from nbbn._files.npy import Header, NpyFile, write_header
from nbbn.standardizer._blocks import Advance, each
from nbbn.standardizer._dataset import Fitted, apply_form
from nbbn.standardizer._features import FeatureMoments, moments_of

_BLOCK = 1 << 22  # bytes of text that are read at once
_VALUES = 1 << 21  # values of a batch of Parquet's
_BUFFER = 1 << 16  # bytes of a column of it that are read at once
_FLOAT64 = np.dtype(np.float64)
_AS_TEXT = compute.CastOptions(pa.string(), allow_invalid_utf8=True)  # of bytes in whatever encoding
_join = compute.binary_join_element_wise


class _Table(paths.Source):
    """A file whose columns have names and types."""

    def _take(self, schema: Any) -> None:
        self.schema, self.names = schema, list(schema.names)
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise paths.FileError(f"{self.path}: expected a different name for each column, got {twice[0]!r} twice")


class CsvTable(_Table):
    """Text, a row a line, names in the first one. Cells of columns that are not numeric stay bytes."""

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO, delimiter: str) -> None:
        super().__init__(path, file)
        self._delimiter = delimiter
        with self._open(_Text(file), {}) as reader:
            self._take(reader.schema)  # of the first block

    def _open(self, text: _Text, kinds: dict[str, Any], columns: Sequence[str] = ()) -> Any:
        return csv.open_csv(
            text,
            read_options=csv.ReadOptions(block_size=_BLOCK),
            parse_options=csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=kinds, include_columns=list(columns), check_utf8=False),
        )

    def candidates(self) -> list[str]:
        """Return the columns that look numeric, or empty, in the first block."""
        return [f.name for f in self.schema if _is_numeric(f.type) or types.is_null(f.type)]

    def batches(self, numeric: Sequence[str], columns: Sequence[str], advance: Advance) -> Iterator[Any]:
        """Yield record batches of some columns; a cell that is no number is a `NotNumericError`."""
        kinds = {name: pa.float64() if name in numeric else pa.binary() for name in self.names}
        done, text = 0, _Text(self._file)
        try:
            with self._open(text, kinds, columns) as reader:
                for batch in reader:
                    yield batch
                    before, done = done, text.place
                    advance(done - before)
        except pa.ArrowInvalid as error:
            column = re.search(r"In CSV column #(\d+)", str(error))
            if column is None:
                raise
            raise NotNumericError(self.path, self.names[int(column[1])], str(error)) from error


class _Text(io.RawIOBase):
    """A file from its beginning on, at a place of its own: a reader that was closed may still be reading ahead."""

    def __init__(self, file: BinaryIO) -> None:
        self._source, self.place = file, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = os.pread(self._source.fileno(), size, self.place)
        self.place += len(found)
        return found


class NotNumericError(paths.FileError):
    def __init__(self, path: str, name: str, reason: str) -> None:
        super().__init__(f"{path}: expected numbers in column {name!r} ({' '.join(reason.split())})")
        self.name = name


class ParquetTable(_Table):
    """Columns with types. Integers, floats and decimals are numeric."""

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO) -> None:
        from pyarrow import parquet

        super().__init__(path, file)
        # By default it keeps in memory what it has read.
        self._parquet = parquet.ParquetFile(_unclosed(file), pre_buffer=False, buffer_size=_BUFFER)
        self._take(self._parquet.schema_arrow)

    def candidates(self) -> list[str]:
        return [field.name for field in self.schema if _is_numeric(field.type)]

    def batches(self, numeric: Sequence[str], columns: Sequence[str], advance: Advance) -> Iterator[Any]:
        rows, done = max(1, _VALUES // max(1, len(columns))), 0
        total = self._parquet.metadata.num_rows
        for group in range(self._parquet.num_row_groups):
            for batch in self._parquet.iter_batches(rows, [group], list(columns)):
                yield batch
                before, done = done, done + batch.num_rows
                advance(self.size * done // total - self.size * before // total)


def _unclosed(file: BinaryIO) -> Any:
    """Return the file as one that pyarrow may close as often as it likes."""
    return os.fdopen(file.fileno(), "rb", closefd=False)


def _is_numeric(kind: Any) -> bool:
    return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_decimal))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], name: str, suffix: str, delimiter: str) -> Iterator[Any]:
    """Open a table; what is wrong with it, now or later, is a FileError."""
    with paths.opened(f"{name}: expected a {suffix} file", path) as file:
        try:
            yield ParquetTable(path, file) if suffix == ".parquet" else CsvTable(path, file, delimiter)
        except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter: of names
            raise paths.FileError(f"{path}: expected a {suffix} file ({' '.join(str(error).split())})") from error


def moments(table: Any, wanted: Sequence[str] | None, advance: Advance) -> tuple[FeatureMoments, list[str]]:
    """Return the moments of the numeric columns, and their names; ``wanted`` are to be numeric."""
    names = list(table.candidates() if wanted is None else wanted)
    while names:
        try:
            found = _moments(table.batches(names, names, advance), names)
        except NotNumericError as error:
            if wanted is not None:
                raise
            names.remove(error.name)
            continue
        table.check_unchanged()
        if found is None:
            raise paths.FileError(f"{table.path}: expected at least one row, got none")
        if wanted is None:  # without a single value a column may be of anything: its cells stay as they are
            some = found.counts > 0.0
            names = list(itertools.compress(names, some))
            found = FeatureMoments.of(tuple(part[some] for part in found))
        if names:
            return found, names
    advice = " (--delimiter says what separates cells)" if isinstance(table, CsvTable) and len(table.names) == 1 else ""
    raise paths.FileError(f"{table.path}: expected a column of numbers, got {', '.join(table.names[:9])}{advice}")


def _moments(batches: Iterable[Any], names: Sequence[str]) -> FeatureMoments | None:
    found: list[FeatureMoments] = []
    some = (batch for batch in batches if batch.num_rows)
    for _, one in each(some, lambda batch: moments_of(_matrix([batch[name] for name in names]), 0)):
        found.append(one)
        if len(found) == 64:
            found = [FeatureMoments.together(found)]
    return FeatureMoments.together(found) if found else None


def _matrix(columns: Sequence[Any]) -> Array:
    """Return columns as rows of float64 numbers, NaN where one is missing."""
    matrix = np.empty((len(columns), len(columns[0])))
    for row, column in zip(matrix, columns, strict=True):
        row[:] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return matrix


def result_schema(table: Any, numeric: Sequence[str]) -> Any:
    """Return the names and types of what `normalize` writes."""
    if isinstance(table, CsvTable):
        return pa.schema((n, pa.float64() if n in numeric else pa.string()) for n in table.names)
    fields = [f.with_type(_result_type(f.type)) if f.name in numeric else f for f in table.schema]
    return pa.schema(fields, metadata=table.schema.metadata)


def _result_type(kind: Any) -> Any:
    return kind if types.is_floating(kind) else pa.float64()


def schema_of(array: NpyFile, names: Sequence[str]) -> Any:
    """Return the names and types of the columns of an array; without names, those that scikit-learn gives."""
    kind = pa.float64() if array.header.dtype == _FLOAT64 else pa.float32()
    names = names or [f"x{number}" for number in range(array.header.shape[1])]
    return pa.schema((name, kind) for name in names)


def write_array(array: NpyFile, output: Any, advance: Advance) -> None:
    """Write the rows of an array of floats to ``output``; a cell of NaN is missing."""
    rows, columns = array.header.shape
    dtype = array.header.dtype
    step = max(1, _VALUES // columns)

    def work(first: int) -> Any:
        count = min(step, rows - first)
        if array.header.fortran_order:
            values = np.empty((columns, count), dtype)
            for column, row in enumerate(values):
                array.read(column * rows + first, row)
        else:
            values = np.empty((count, columns), dtype)
            array.read(first * columns, values)
            values = values.T
        plain = values.astype(_FLOAT64 if dtype == _FLOAT64 else np.float32, order="C")
        return output.made([pa.array(row, from_pandas=True) for row in plain])

    for first, made in each(range(0, rows, step), work):
        output.write(made)
        advance(min(step, rows - first) * columns * dtype.itemsize)


def normalize(table: Any, found: FeatureMoments, names: Sequence[str], output: Any, advance: Advance) -> int:
    """Write the table with its numeric columns, ``names``, standardized to ``output``; return the rows."""
    form = Fitted(found).form(False, _FLOAT64)

    def work(batch: Any) -> Any:
        matrix = _matrix([batch[name] for name in names])
        apply_form(matrix, 0, form, _FLOAT64, matrix)
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name, values in zip(names, matrix, strict=True):
            column, kind = arrays[name], _result_type(arrays[name].type)
            missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
            arrays[name] = pa.array(values.astype(kind.to_pandas_dtype(), copy=False), kind, mask=missing)
        return output.made([arrays[name] for name in table.names])

    rows = 0
    for batch, made in each(table.batches(names, table.names, advance), work):
        output.write(made)
        rows += batch.num_rows
    table.check_unchanged()
    return rows


class _Output:
    """A file that is being written: what any thread made of some columns, in order."""

    def __init__(self, file: BinaryIO, schema: Any) -> None:
        self._file, self._schema = file, schema

    def write(self, made: Any) -> None:
        self._file.write(made)

    def close(self) -> None:
        """All is written."""


class ArrayOutput(_Output):
    """An .npy file, of columns that are all numbers."""

    def __init__(self, file: BinaryIO, schema: Any) -> None:
        super().__init__(file, schema)
        self._dtype = np.result_type(*(field.type.to_pandas_dtype() for field in schema))
        self._rows = 0
        self._begin()

    def _begin(self) -> None:
        write_header(self._file, Header((self._rows, len(self._schema)), False, self._dtype))

    def made(self, columns: list[Any]) -> Any:
        return _matrix(columns).T.astype(self._dtype, order="C")

    def write(self, made: Any) -> None:
        self._rows += len(made)
        super().write(made)

    def close(self) -> None:
        """Tell how many rows there are."""
        self._file.seek(0)
        self._begin()


class ParquetOutput(_Output):
    _writer: Any = None

    def made(self, columns: list[Any]) -> Any:
        fitting = [column.cast(field.type) for column, field in zip(columns, self._schema, strict=True)]
        return pa.Table.from_arrays(fitting, schema=self._schema)

    def write(self, made: Any) -> None:
        if self._writer is None:
            self._writer = self._open(made)
        self._writer.write_table(made)

    def _open(self, first: Any) -> Any:
        """Return a writer, without dictionaries of floats that hardly repeat: of those, a third of the time."""
        from pyarrow import parquet

        def repeats(name: str) -> bool:
            some = first[name].slice(0, 1 << 12)
            return not types.is_floating(some.type) or compute.count_distinct(some).as_py() * 2 < len(some)

        nested = any(types.is_nested(field.type) for field in self._schema)  # have names of their own
        chosen = True if nested else list(filter(repeats, self._schema.names))
        return parquet.ParquetWriter(self._file, self._schema, use_dictionary=chosen)

    def close(self) -> None:
        (self._writer or self._open(self._schema.empty_table())).close()


class CsvOutput(_Output):
    """A CSV file, with quotes around what needs them."""

    def __init__(self, file: BinaryIO, schema: Any, delimiter: str) -> None:
        super().__init__(file, schema)
        self._delimiter, self._names = delimiter.encode(), list(schema.names)
        # A line without anything is no row to who reads it.
        self._missing = b'""' if len(self._names) == 1 else b""
        self._structural = f'[{re.escape(delimiter)}"\r\n]'
        self._options = csv.WriteOptions(
            include_header=False, delimiter=delimiter, quoting_style="none", batch_size=16384
        )
        kinds = [pa.string() if types.is_dictionary(f.type) else f.type for f in schema]
        empty = pa.table([pa.nulls(1, kind) for kind in kinds], names=self._names)
        csv.write_csv(empty, io.BytesIO(), self._options)  # types that text cannot hold
        self.write(self.made([pa.array([name]) for name in self._names]))

    def made(self, columns: list[Any]) -> Any:
        """Return the text of some rows: most of the work, for any thread."""
        columns = [c.dictionary_decode() if types.is_dictionary(c.type) else c for c in columns]
        if self._missing or any(map(self._has_structure, columns)):
            *cells, last = map(self._quoted, columns)
            replaced = {"null_handling": "replace", "null_replacement": self._missing}
            lines = _join(*cells, _join(last, b"\n", b"", **replaced), self._delimiter, **replaced)
            _, offsets, text = lines.buffers()
            return memoryview(text)[: np.frombuffer(offsets, np.int32)[len(lines)]]
        fitting = [compute.cast(c, options=_AS_TEXT) if types.is_binary(c.type) else c for c in columns]
        text = pa.BufferOutputStream()
        csv.write_csv(pa.Table.from_arrays(fitting, names=self._names), text, self._options)
        return text.getvalue()

    def _has_structure(self, column: Any) -> bool:
        """Whether there may be a cell that needs quotes."""
        text = column.buffers()[2] if _is_text(column.type) else None
        found = b"" if text is None else text.to_pybytes()
        return any(mark in found for mark in (b'"', b"\n", b"\r", self._delimiter))

    def _quoted(self, column: Any) -> Any:
        """Return cells as bytes, in quotes where they need them."""
        if not _is_text(column.type):
            return column.cast(pa.string()).cast(pa.binary())
        text = column.cast(pa.binary())
        quoted = _join(b'"', compute.replace_substring(text, b'"', b'""'), b'"', b"")
        return compute.if_else(compute.match_substring_regex(text, self._structural), quoted, text)


def _is_text(kind: Any) -> bool:
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))
