"""`nbbn normalize` and `nbbn moments` on tables, .csv and .parquet, and on .npz files."""

import csv
import datetime
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from compare import assert_same_bits

import nbbn
from nbbn.cli import main
from nbbn.standardizer import _stream

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
import pyarrow as pa
from pyarrow import parquet

from nbbn.standardizer import _tables

TEXT = "\n".join(
    [
        'id,height,name,"a ""b"", c",empty,note',
        '007,1.5,abc,"x,y",,é',
        '8,,x y,"he said ""hi""",,2020-01-01',
        '9,NaN,007,"l1\nl2",,',
        "10,3e2,NA,plain,,true",
        "",
    ]
)
HEIGHTS = np.array([[1.5], [np.nan], [np.nan], [300.0]])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text(TEXT, encoding="utf-8")
    return tmp_path


def rows_of(path, delimiter=","):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter))


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def fail(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def a_table(rows=1000, seed=0):
    rng = np.random.default_rng(seed)
    gap = rng.random(rows) < 0.1
    return pa.table(
        {
            "i": pa.array(rng.integers(-9, 9, rows).astype(np.int16)),
            "f": pa.array(rng.normal(3, 2, rows).astype(np.float32), mask=gap),
            "word": pa.array(rng.choice(["a", "b,c", 'd"e', ""], rows)),
            "d": pa.array(rng.normal(1e6, 1, rows)),
            "day": pa.array([datetime.date(2020, 1, 1)] * rows),
            "b": pa.array(rng.random(rows) < 0.5),
            "n": pa.array(rng.integers(0, 9, rows), mask=gap),
        }
    )


NUMERIC = ["i", "f", "d", "n"]


def expected_of(table, names=NUMERIC):
    """What Standardizer makes of the columns, as float64."""
    columns = [table[name].cast(pa.float64(), safe=False).to_numpy() for name in names]
    return nbbn.Standardizer().fit_transform(np.column_stack(columns))


def floats(table, names):
    columns = [table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return np.column_stack(columns)


def test_text(folder):
    run("normalize", "in.csv", "out.csv")
    given, found = rows_of(folder / "in.csv"), rows_of(folder / "out.csv")
    assert found[0] == given[0]
    for column in (2, 3, 4, 5):
        assert [row[column] for row in found] == [row[column] for row in given]
    expected = nbbn.Standardizer().fit_transform(HEIGHTS)[:, 0]
    assert (
        [row[1] for row in found[1:]]
        == ["-1", "", "", "1"]
        == ["" if np.isnan(value) else f"{value:g}" for value in expected]
    )
    ids = nbbn.Standardizer().fit_transform(np.array([[7.0], [8], [9], [10]]))[:, 0]
    assert [float(row[0]) for row in found[1:]] == ids.tolist()
    quoted = (folder / "out.csv").read_text(encoding="utf-8")
    assert quoted.count('"') == TEXT.count('"')  # none that nothing needs


def test_text_of_another_encoding_stays_as_it_is(folder):
    (folder / "in.csv").write_bytes(b"a,b\n1,\xe4\xff\n2,x\n")
    run("normalize", "in.csv", "out.csv")
    assert (folder / "out.csv").read_bytes() == b"a,b\n-1,\xe4\xff\n1,x\n"


def test_a_column_of_missing_cells_alone_keeps_its_text(folder):
    (folder / "in.csv").write_text("a,b\n1,NA\n2,\n3,NaN\n")
    run("normalize", "in.csv", "out.csv")
    assert [row[1] for row in rows_of(folder / "out.csv")] == ["b", "NA", "", "NaN"]


def test_one_column_with_gaps_keeps_its_rows(folder):
    (folder / "in.csv").write_text('a\n1\n""\n3\n')
    run("normalize", "in.csv", "out.csv")
    assert (folder / "out.csv").read_text() == 'a\n-1\n""\n1\n'


@pytest.mark.parametrize("late", ["word", "1.5x", "2020-01-01", "true"])
def test_a_column_is_numeric_if_every_cell_is(folder, monkeypatch, capsys, late):
    """However late the cell that is not."""
    monkeypatch.setattr(_tables, "_BLOCK", 1 << 10)
    lines = [f"{k},{k % 7},{k % 5}" for k in range(2000)]
    lines[1900] = f"1900,{late},3"
    (folder / "in.csv").write_text("a,b,c\n" + "\n".join(lines) + "\n")
    run("normalize", "in.csv", "out.csv")
    found = rows_of(folder / "out.csv")
    assert [row[1] for row in found] == [row[1] for row in rows_of(folder / "in.csv")]
    y = nbbn.Standardizer().fit_transform([[k % 5] for k in range(1900)] + [[3]] + [
        [k % 5] for k in range(1901, 2000)
    ])  # fmt: skip
    np.testing.assert_allclose([float(row[2]) for row in found[1:]], y[:, 0], rtol=1e-13)
    line = fail(capsys, "normalize", "in.csv", "out.csv", "--columns", "a,b")
    assert "in.csv: expected numbers in column 'b'" in line and late in line


def test_numbers_after_a_block_of_empty_cells_are_numbers(folder, monkeypatch):
    monkeypatch.setattr(_tables, "_BLOCK", 1 << 10)
    lines = [f"{k}," for k in range(1000)] + ["1000,2.5", "1001,3.5"]
    (folder / "in.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    run("normalize", "in.csv", "out.csv")
    assert [row[1] for row in rows_of(folder / "out.csv")[-3:]] == ["", "-1", "1"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("to", ["csv", "tsv", "parquet"])
def test_every_format_to_every_other(folder, suffix, to):
    table = a_table()
    parquet.write_table(table, folder / "in.parquet")
    if suffix != "parquet":
        run("normalize", "in.parquet", f"plain.{suffix}", "--stats", identity(folder))
    source = f"in.{suffix}" if suffix == "parquet" else f"plain.{suffix}"
    run("normalize", source, f"out.{to}")
    if to == "parquet":
        found = parquet.read_table(folder / "out.parquet")
        assert found.schema.names == table.schema.names
        y = floats(found, NUMERIC)
        words = found["word"].to_pylist()
    else:
        rows = rows_of(folder / f"out.{to}", "\t" if to == "tsv" else ",")
        assert rows[0] == table.schema.names
        place = [rows[0].index(name) for name in NUMERIC]
        y = np.array([[float(row[k] or "nan") for k in place] for row in rows[1:]])
        words = [row[2] for row in rows[1:]]
    assert words == table["word"].to_pylist()
    np.testing.assert_allclose(y, expected_of(table), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "uint8"])
@pytest.mark.parametrize("to", ["csv", "tsv", "parquet"])
def test_an_array_becomes_a_table_and_the_table_an_array(folder, monkeypatch, to, dtype, order):
    monkeypatch.setattr(_tables, "_VALUES", 100)  # several pieces
    x = np.random.default_rng(0).integers(0, 99, (90, 3)).astype(dtype, order)
    if dtype != "uint8":
        x[5, 1] = np.nan
    np.save("x.npy", x)
    run("normalize", "x.npy", f"y.{to}")
    run("normalize", "x.npy", "y.npy")
    y = np.load("y.npy")
    wide = y.astype(np.float64 if dtype == ">f8" else np.float32)
    if to == "parquet":
        found = parquet.read_table("y.parquet")
        assert [str(kind) for kind in found.schema.types] == [{8: "double", 4: "float"}[wide.itemsize]] * 3
        assert found["x1"].null_count == np.isnan(x).sum()
        names = found.schema.names
        assert_same_bits(floats(found, names), wide.astype(np.float64))
    else:
        names, *rows = rows_of(folder / f"y.{to}", "\t" if to == "tsv" else ",")
        assert_same_bits(np.array([[cell or "nan" for cell in row] for row in rows]).astype(wide.dtype), wide)
    assert names == ["x0", "x1", "x2"]
    kept = folder / "kept.npz"
    np.savez(kept, mean=np.zeros(3), var=np.ones(3))
    for name in ("z.npy", "z.npz"):
        run("normalize", f"y.{to}", name, "--stats", kept)
        z = np.load(name) if name == "z.npy" else np.load(name)["arr_0"]
        assert z.dtype == (wide.dtype if to == "parquet" else np.float64)
        assert_same_bits(z.astype(wide.dtype), wide)


def test_a_table_of_an_array_takes_its_names_from_the_statistics(folder):
    (folder / "a.csv").write_text("left,right\n1,2\n3,5\n")
    run("moments", "a.csv", "--save-stats", "s.npz")
    np.save("x.npy", np.array([[1.0, 2.0], [np.nan, 5.0]]))
    run("normalize", "x.npy", "y.csv", "--stats", "s.npz", "--delimiter", ";")
    assert (folder / "y.csv").read_text() == "left;right\n-1;-1\n;1\n"
    np.save("x.npy", np.zeros((0, 2)))
    run("normalize", "x.npy", "y.csv", "--stats", "s.npz")
    run("normalize", "y.csv", "y.npy", "--stats", "s.npz")
    assert np.load("y.npy").shape == (0, 2)


def identity(folder):
    """Statistics that change nothing."""
    path = folder / "identity.npz"
    np.savez(path, mean=np.zeros(4), var=np.ones(4), names=np.array(NUMERIC))
    return path


def test_types_and_missing_values_of_parquet(folder):
    table = a_table().replace_schema_metadata({"who": "we"})
    parquet.write_table(table, folder / "in.parquet")
    run("normalize", "in.parquet", "out.parquet")
    found = parquet.read_table(folder / "out.parquet")
    kinds = dict(zip(found.schema.names, map(str, found.schema.types), strict=True))
    assert kinds == {
        "i": "double", "f": "float", "word": "string", "d": "double", "day": "date32[day]", "b": "bool",
        "n": "double",
    }  # fmt: skip
    assert found.schema.metadata[b"who"] == b"we"
    for name in ("word", "day", "b"):
        assert found[name].equals(table[name])
    for name in ("f", "n"):
        assert found[name].is_null().equals(table[name].is_null())
    np.testing.assert_allclose(floats(found, NUMERIC), expected_of(table), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_any_batches_agree_with_the_whole(folder, monkeypatch, suffix):
    table = a_table(5000)
    parquet.write_table(table, folder / "in.parquet")
    run("normalize", "in.parquet", "in.csv", "--stats", identity(folder))
    run("normalize", f"in.{suffix}", f"whole.{suffix}")
    monkeypatch.setattr(_tables, "_BLOCK", 1 << 12)
    monkeypatch.setattr(_tables, "_VALUES", 1 << 10)
    run("normalize", f"in.{suffix}", f"out.{suffix}")
    read = parquet.read_table if suffix == "parquet" else read_csv
    one, other = (floats(read(folder / f"{name}.{suffix}"), NUMERIC) for name in ("whole", "out"))
    np.testing.assert_allclose(one, other, rtol=1e-12)


def read_csv(path):
    from pyarrow import csv as reader

    return reader.read_csv(path)


def test_columns_that_are_asked_for(folder, capsys):
    run("normalize", "in.csv", "out.csv", "--columns", "height")
    found, given = rows_of(folder / "out.csv"), rows_of(folder / "in.csv")
    assert [row[0] for row in found] == [row[0] for row in given]
    assert [row[1] for row in found[1:]] == ["-1", "", "", "1"]
    line = fail(capsys, "normalize", "in.csv", "out.csv", "--columns", "height,weight")
    assert "--columns: expected some of id, height, name, " in line and "got 'weight'" in line
    assert "expected each name once" in fail(capsys, "moments", "in.csv", "--columns", "id,id")
    assert "expected numbers in column 'name'" in fail(capsys, "moments", "in.csv", "--columns", "name")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_statistics_of_one_table_serve_another(folder, capsys, suffix):
    table, other = a_table(), a_table(300, seed=1)
    parquet.write_table(table, folder / "in.parquet")
    # the columns in another order
    parquet.write_table(other.select(other.schema.names[::-1]), folder / "other.parquet")
    run("normalize", "other.parquet", "other.csv", "--stats", identity(folder))
    run("normalize", "in.parquet", "out.parquet", "--save-stats", "s.npz")
    run("moments", "in.parquet", "--save-stats", "m.npz")
    assert (folder / "s.npz").read_bytes() == (folder / "m.npz").read_bytes()
    run("normalize", f"other.{suffix}", f"out.{suffix}", "--stats", "s.npz")
    read = parquet.read_table if suffix == "parquet" else read_csv
    y = floats(read(folder / f"out.{suffix}"), NUMERIC)
    columns = (np.column_stack([t[n].cast(pa.float64(), safe=False).to_numpy() for n in NUMERIC])
               for t in (table, other))  # fmt: skip
    scaler = nbbn.Standardizer().fit(next(columns))
    np.testing.assert_allclose(y, scaler.transform(next(columns)), rtol=1e-6, atol=1e-6)

    line = fail(capsys, "normalize", "in.csv", "out.csv", "--stats", "s.npz")
    assert line.rstrip().endswith("--stats: expected the columns of s.npz in in.csv, which has no 'i'")
    line = fail(capsys, "normalize", "other.csv", "out.csv", "--stats", "s.npz", "--columns", "i,f")
    assert "--columns: expected those of s.npz, i, f, d, n, got i, f" in line
    np.savez("unnamed.npz", mean=np.zeros(3), var=np.ones(3))
    line = fail(capsys, "normalize", "in.parquet", "out.csv", "--stats", "unnamed.npz")
    assert "--stats: expected statistics of 4 columns, i, f, d, n, got 3 in unnamed.npz" in line


def test_statistics_of_a_table_serve_an_array(folder):
    table = a_table()
    parquet.write_table(table, folder / "in.parquet")
    run("moments", "in.parquet", "--save-stats", "s.npz")
    x = np.column_stack([table[n].cast(pa.float64(), safe=False).to_numpy() for n in NUMERIC])
    np.save("x.npy", x)
    run("normalize", "x.npy", "y.npy", "--stats", "s.npz")
    np.testing.assert_allclose(np.load("y.npy"), expected_of(table), rtol=1e-12, atol=1e-12)


def test_what_moments_prints(folder, capsys):
    run("moments", "in.csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["column", "count", "mean", "var"]
    assert [line.split() for line in lines[1:]] == [
        ["id", "4", "8.5", "1.25"],
        ["height", "2", "150.75", "22275.5625"],
    ]
    run("moments", "in.csv", "--json", "--columns", "height")
    assert json.loads(capsys.readouterr().out) == [{"channel": "height", "count": 2, "mean": 150.75, "var": 22275.5625}]
    np.save("x.npy", np.array([[1.0, np.nan], [3.0, np.nan]]))
    run("moments", "x.npy", "--json")
    assert json.loads(capsys.readouterr().out) == [
        {"channel": 0, "count": 2, "mean": 2.0, "var": 1.0},
        {"channel": 1, "count": 0, "mean": None, "var": None},
    ]
    run("moments", "x.npy")
    assert capsys.readouterr().out.splitlines()[2].split() == ["1", "0", "nan", "nan"]


BAD = {
    "in.txt out.csv": "IN: the suffix must be one of .npy, .npz, .csv, .tsv, .parquet, got 'in.txt'",
    "in.csv.gz out.csv": "IN: the suffix must be one of .npy",
    "in.csv out": "OUT: the suffix must be one of",
    "in.csv out.npy": "OUT: expected a table (.csv, .tsv, .parquet), as column 'name' of in.csv is not",
    "two.csv out.npz --columns a": "OUT: expected a table (.csv, .tsv, .parquet), as column 'b' of two.csv is not",
    "late.csv out.npy": "OUT: expected a table (.csv, .tsv, .parquet), as column 'b' of late.csv is not",
    "cube.npy out.csv": "OUT: expected two dimensions, and a column at least, for a table, got shape (2, 3, 4)",
    "row.npy out.parquet": "OUT: expected two dimensions, and a column at least, for a table, got shape (4,)",
    "none.npy out.tsv": "OUT: expected two dimensions, and a column at least, for a table, got shape (3, 0)",
    "x.npy out.csv --axis 0": "--axis: expected -1 for a table",
    "x.npy out.csv --delimiter ab": "--delimiter: expected one character that is no quote, got 'ab'",
    "x.npy out.csv --columns a": "--columns: expected a table (.csv, .tsv, .parquet), got x.npy",
    "in.csv out.csv --axis 0": "--axis: expected -1 for a table",
    "in.csv out.csv --key k": "--key: expected an .npz file, got in.csv",
    "x.npy y.npy --key k": "--key: expected an .npz file, got x.npy",
    "x.npy y.npy --columns a": "--columns: expected a table (.csv, .tsv, .parquet), got x.npy",
    "x.npy y.npy --delimiter ;": "--delimiter: expected a table",
    "in.csv out.csv --delimiter ab": "--delimiter: expected one character that is no quote, got 'ab'",
    "none.csv out.csv": "cannot read none.csv: No such file",
    "empty.csv out.csv": "empty.csv: expected a .csv file (Empty CSV file)",
    "header.csv out.csv": "header.csv: expected at least one row, got none",
    "words.csv out.csv": "words.csv: expected a column of numbers, got a, b",
    "semi.csv out.csv": "semi.csv: expected a column of numbers, got a;b (--delimiter says what separates cells)",
    "latin.csv out.csv": "latin.csv: expected a .csv file ('utf-8' codec can't decode byte",
    "in.csv out.csv --colums id": "unrecognized arguments: --colums id (see nbbn normalize --help)",
    "twice.csv out.csv": "twice.csv: expected a different name for each column, got 'a' twice",
    "ragged.csv out.csv": "ragged.csv: expected a .csv file (CSV parse error: Expected 2 columns, got 1",
    "inf.csv out.csv": "inf.csv: expected finite values, or NaN where one is missing",
    "in.csv in.csv/out.csv": "OUT: cannot write",
    "in.csv out.csv --save-stats out.csv": "--save-stats: expected a file of its own, got out.csv",
    "text.parquet out.csv": "text.parquet: expected a .parquet file (",
    "lists.parquet out.csv": "OUT: out.csv cannot hold a column of lists.parquet",
    "two.npz out.npz": "--key: expected one of the arrays in two.npz (a, b), got None",
    "two.npz out.npz --key c": "--key: expected one of the arrays in two.npz (a, b), got c",
    "text.npz out.npz": "text.npz: expected an .npz file (",
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), BAD.items(), ids=BAD)
def test_what_is_wrong_is_told_in_a_line_and_nothing_is_written(folder, capsys, arguments, expected):
    texts = {"empty": "", "header": "a,b\n", "words": "a,b\nx,y\n", "twice": "a,a\n1,2\n",
             "ragged": "a,b\n1,2\n3\n", "inf": "a\n1\ninf\n", "two": "a,b\n1,2\n",
             "late": "a,b\n" + "1,2\n" * 1_100_000 + "3,x\n"}  # fmt: skip
    for name, text in texts.items():
        if name in arguments:
            (folder / f"{name}.csv").write_text(text)
    (folder / "semi.csv").write_text("a;b\n1;2\n")
    (folder / "latin.csv").write_bytes(b"gr\xf6\xdfe\n1\n")
    for name in ("text.parquet", "text.npz", "in.txt", "in.csv.gz"):
        (folder / name).write_text("no such thing")
    parquet.write_table(pa.table({"a": [1, 2], "l": [[1], [2]]}), folder / "lists.parquet")
    for name, shape in {"x": (3, 2), "cube": (2, 3, 4), "row": 4, "none": (3, 0)}.items():
        np.save(f"{name}.npy", np.ones(shape))
    np.savez("two.npz", a=np.ones(3), b=np.ones(3))
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    line = fail(capsys, "normalize", *arguments.split())
    assert line.startswith(f"nbbn normalize: error: {expected}"), line
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_that_changes_while_it_is_read_is_refused(folder, capsys, monkeypatch, suffix):
    parquet.write_table(a_table(), folder / "in.parquet")
    path = folder / f"in.{suffix}"
    os.utime(path, ns=(0, 0))
    monkeypatch.setattr(
        _tables,
        "moments_of",
        lambda *given, real=_tables.moments_of: os.utime(path) or real(*given),
    )
    line = fail(capsys, "normalize", path, f"out.{suffix}")
    assert line.endswith("it was changed while it was read\n")
    assert not (folder / f"out.{suffix}").exists()


def test_the_table_itself_is_replaced(folder):
    run("normalize", "in.csv", "out.csv")
    run("normalize", "in.csv", "in.csv")
    assert (folder / "in.csv").read_bytes() == (folder / "out.csv").read_bytes()
    assert sorted(entry.name for entry in folder.iterdir()) == ["in.csv", "out.csv"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_npz_files(folder, save):
    x = np.random.default_rng(0).normal(5, 2, (300, 4)).astype(np.float32)
    save("in.npz", x=x, other=np.ones(3))
    np.save("in.npy", x)
    run("normalize", "in.npz", "out.npz", "--key", "x", "--save-stats", "s.npz")
    run("normalize", "in.npz", "out.npy", "--key", "x", "--stats", "s.npz")
    run("normalize", "in.npy", "again.npz")
    expected = nbbn.Standardizer().fit_transform(x)
    with np.load("out.npz") as found, np.load("again.npz") as again:
        assert list(found) == ["x"] and list(again) == ["arr_0"]
        np.testing.assert_allclose(found["x"], expected, rtol=1e-6, atol=1e-6)
        assert_same_bits(again["arr_0"], found["x"])
        assert_same_bits(np.load("out.npy"), found["x"])
    np.savez("one.npz", whatever=x)
    run("moments", "one.npz", "--save-stats", "t.npz")
    assert all(map(np.array_equal, _stream.load("t.npz")[0], _stream.load("s.npz")[0]))


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_last_line_on_a_terminal_says_what_was_written(folder, monkeypatch):
    np.save("x.npy", np.ones((3, 2)))
    for arguments, line in (
        (("in.csv", "out.csv"), "out.csv: 4 rows, standardized: id, height"),
        (("x.npy", "y.npy"), "y.npy: 3 x 2 float64, 4.8e-05 MB"),
    ):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        run("normalize", *arguments)
        assert terminal.text.endswith(f"\r{line}\n")


def test_what_is_said_where_pyarrow_is_missing(folder, capsys, monkeypatch):
    for package, module in ((nbbn.standardizer, "nbbn.standardizer._tables"), (nbbn.cli, "nbbn.cli._tables")):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.delattr(package, "_tables", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    line = fail(capsys, "moments", "in.csv")
    assert 'IN: .csv needs pyarrow: pip install ".[tables]" in a checkout of nbbn' in line


def test_pyarrow_is_not_loaded_for_arrays(folder):
    np.save("x.npy", np.ones((3, 2)))
    code = "import sys; from nbbn.cli import main; main(['moments', 'x.npy']); sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_file(folder, suffix):
    peaks = []
    for rows in (60_000, 600_000):
        x = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32).astype(np.float64)
        table = pa.table({f"c{k}": x[:, k] for k in range(8)})
        parquet.write_table(table, folder / "in.parquet", row_group_size=20_000)
        if suffix == "csv":
            from pyarrow import csv as writer

            writer.write_csv(table, folder / "in.csv")
        code = f"""
import re
from nbbn.cli import main
from nbbn.standardizer import _tables
_tables._BLOCK, _tables._VALUES = 1 << 18, 1 << 15
assert main(["normalize", "in.{suffix}", "out.{suffix}"]) == 0
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
        found = subprocess.run([sys.executable, "-c", code], check=True, timeout=600, capture_output=True)
        peaks.append(int(found.stdout))
    assert peaks[1] - peaks[0] < 30_000, peaks  # kB; the values alone are 38 MB


def test_readers_of_one_text_do_not_move_each_other(folder, monkeypatch):
    """One that was left in its midst still reads ahead, when and how far nobody knows."""
    monkeypatch.setattr(_tables, "_BLOCK", 1 << 12)
    (folder / "in.csv").write_text("a,b\n" + "1.5,2\n" * 50_000)
    with _tables.opened("in.csv", "in.csv", ".csv", ",") as table:
        first = table.batches(["a"], ["a"], lambda read: None)
        rows = next(first).num_rows
        for _ in range(20):
            next(table.batches(["a", "b"], ["a", "b"], lambda read: None))
        assert rows + sum(batch.num_rows for batch in first) == 50_000
        assert sum(batch.num_rows for batch in table.batches(["b"], ["b"], lambda read: None)) == 50_000


def test_floats_that_hardly_repeat_have_no_dictionary_in_parquet(folder):
    """pyarrow would try one, which takes longer than all else; of values that repeat it saves room."""
    rng = np.random.default_rng(0)
    columns = {"many": rng.normal(size=9000), "few": rng.integers(0, 9, 9000)}
    columns |= {"text": [str(i) for i in range(9000)], "floats": columns["few"] / 2}
    parquet.write_table(pa.table(columns), folder / "in.parquet")
    run("normalize", "in.parquet", "out.parquet")
    group = parquet.ParquetFile(folder / "out.parquet").metadata.row_group(0)
    found = [group.column(k).has_dictionary_page for k in range(4)]
    assert found == [False, True, True, True]


def test_batches_are_written_in_order(folder, monkeypatch):
    """Whichever thread is done first."""
    monkeypatch.setattr(_tables, "_BLOCK", 1 << 12)
    values = np.arange(20_000.0)
    text = "x,name\n" + "".join(f"{value},n{value:.0f}\n" for value in values)
    (folder / "in.csv").write_text(text, encoding="utf-8")
    run("normalize", "in.csv", "out.csv")
    rows = rows_of(folder / "out.csv")[1:]
    assert [name for _, name in rows] == [f"n{value:.0f}" for value in values]
    found = np.array([float(value) for value, _ in rows])
    np.testing.assert_allclose(found, (values - values.mean()) / values.std(), rtol=1e-12)
