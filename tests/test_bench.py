"""``nbbn bench``: what it prints is what was measured, its files are whole, errors are clear."""

import io
import json
import os
import re
import sys

import pytest

import nbbn
from nbbn._bench import overview
from nbbn._bench.cases import Case
from nbbn._bench.options import USUAL_FUSED, make_selection
from nbbn._bench.race import Outcome, Race, Result
from nbbn._bench.report import as_json, condensed, from_json
from nbbn.cli import _build_parser, bench, main

NAMES = "nbbn,numpy,copy-affine"
SMALL = ["bench", "--threads", "1", "--operations", "inference", "--shapes", "8x3,4x2x3"]
FAST = [*SMALL, "--implementations", NAMES, "--rounds", "2", "--seconds", "0"]
CASE = Case("training", (32, 64, 56, 56), 2)


@pytest.fixture
def no_race(monkeypatch):
    """Fail where anything is measured."""

    def fail(*args, **kwargs):
        pytest.fail("the check came too late")

    monkeypatch.setattr(Race, "run", fail)


def check_error(capsys, *expected):
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("nbbn bench: error: ")
    for text in expected:
        assert text in printed.err


def result(times, case=CASE, **others):
    outcomes = {name: Outcome(durations=[time] * 3) for name, time in times.items()}
    return Result(case, outcomes | others)


# The command


def test_table_and_files(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the bars")
    record, drawing = tmp_path / "bench.json", tmp_path / "bench.svg"
    assert main([*FAST, "--json", str(record), "--plot", str(drawing)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"nbbn {nbbn.__version__}" in printed.out
    assert "inference, 1 thread; limit: copy-affine" in printed.out
    entries = {
        (tuple(entry["shape"]), entry["implementation"]): entry
        for entry in json.loads(record.read_text("utf-8"))["results"]
    }
    assert len(entries) == 6
    for shape, name in (((8, 3), "8x3"), ((4, 2, 3), "4x2x3")):
        medians = {n: entries[shape, n]["median"] for n in NAMES.split(",")}
        assert all(entries[shape, n]["rounds"] == 2 for n in medians)
        row = re.search(rf"^{name} +[\d.]+ us +([\d.]+) +([\d.]+)( <)?$", printed.out, re.MULTILINE)
        ratios = medians["nbbn"] / medians["copy-affine"], medians["numpy"] / medians["nbbn"]
        assert row.groups() == (
            *map(overview.format_ratio, ratios),
            " <" if ratios[1] < 1 else None,
        )
    assert drawing.read_text("utf-8").startswith("<?xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench.json", "bench.svg"]
    assert str(record) in printed.out and str(drawing) in printed.out


def test_bar_on_a_terminal(capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(Race, "run", lambda race, case: result({"nbbn": 1.0, "numpy": 2.0}, case))
    assert main(FAST) == 0
    assert "Measuring [" in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-1] == ""
    assert "[" not in capsys.readouterr().out


def test_a_library_that_fails_is_told_and_nbbn_that_fails_is_an_error(capsys, monkeypatch):
    failed = Outcome("failed", "a traceback\nwrong result: y is off by 1")
    monkeypatch.setattr(Race, "run", lambda race, case: result({"nbbn": 1.0}, case, numpy=failed))
    assert main(FAST) == 0
    printed = capsys.readouterr()
    assert "numpy failed (inference 8x3 1 thread): wrong result: y is off by 1" in printed.out
    monkeypatch.setattr(Race, "run", lambda race, case: result({"numpy": 1.0}, case, nbbn=failed))
    assert main(FAST) == 2
    assert "wrong result: y is off by 1" in capsys.readouterr().err


def test_compiling_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(nbbn, "config", lambda: {"cache_directory": str(tmp_path)})

    def run(race, case):
        (tmp_path / f"{len(case.shape)}").touch()
        return result({"nbbn": 1.0, "numpy": 2.0}, case)

    monkeypatch.setattr(Race, "run", run)
    assert main(FAST) == 0
    assert "2 kernels were compiled" in capsys.readouterr().out
    assert main(FAST) == 0
    assert "All kernels were compiled before." in capsys.readouterr().out


def test_quick_is_a_part_of_all():
    parser = _build_parser()
    quick, full = (
        make_selection(parser.parse_args(["bench", *arguments])) for arguments in (["--quick"], [])
    )
    assert len(quick.cases) < len(full.cases)
    assert len({case.threads for case in quick.cases}) == 1
    assert {case.operation for case in quick.cases} == {case.operation for case in full.cases}
    fused = [case.shape for case in quick.cases if case.operation == USUAL_FUSED]
    assert sorted(map(len, fused)) == [2, 4]  # a table and images
    assert "add-affine" in quick.implementations
    assert set(quick.implementations) < set(full.implementations)
    assert {"nbbn", "numpy", "torch", "copy-affine", "two-trip"} <= set(quick.implementations)
    assert (quick.rounds, quick.seconds) < (full.rounds, full.seconds)


def test_named_operations_are_measured_on_all_shapes():
    options = ["--quick", "--operations", f"{USUAL_FUSED},moments", "--dtypes", "bfloat16,float32"]
    cases = make_selection(_build_parser().parse_args(["bench", *options])).cases
    fused, moments = (
        [case for case in cases if case.operation == name] for name in (USUAL_FUSED, "moments")
    )
    assert {case.shape for case in fused} == {case.shape for case in moments}
    assert {case.dtype for case in fused} == {"bfloat16", "float32"}
    assert {case.dtype for case in moments} == {"float32"}


# Errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shapes", "huge"], "'huge' (or name a set: resnet50"),
        (["--shapes", "8x0"], "at least 1"),
        (["--threads", "0"], "not a positive whole number"),
        (["--implementations", "numpi"], "'numpi' is none of nbbn"),
        (["--operations", "sleep"], "'sleep' is none of inference"),
        (["--dtypes", "float8"], "'float8' is none of float32"),
        (["--seconds", "-1"], "not a number of seconds"),
    ],
)
def test_bad_usage_is_one_line(arguments, expected, no_race, capsys):
    assert main(["bench", *arguments]) == 2
    check_error(capsys, expected, "--help")


def test_nothing_to_measure(no_race, capsys):
    assert main(["bench", "--operations", "training", "--shapes", "1x64"]) == 2
    check_error(capsys, "nothing to measure")


def test_unwritable_files(no_race, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the bars")
    missing = tmp_path / "none" / "file.svg"
    for option in ("--json", "--plot"):
        assert main([*FAST, option, str(missing)]) == 2
        check_error(capsys, option, str(missing), "No such file")
    assert main([*FAST, "--json", str(tmp_path)]) == 2
    check_error(capsys, "--json", "is a folder")
    assert main([*FAST, "--plot", str(tmp_path / "bars.xyz")]) == 2
    check_error(capsys, "--plot", ".png, .svg, .pdf", "bars.xyz")


def test_a_drawing_needs_the_limit(no_race, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the bars")
    arguments = [*SMALL, "--implementations", "nbbn,numpy", "--plot", str(tmp_path / "bars.svg")]
    assert main(arguments) == 2
    check_error(capsys, "--plot", "--implementations", "copy-affine")


def test_without_matplotlib(no_race, capsys, monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "nbbn._bench.plot", raising=False)
    monkeypatch.delattr(nbbn._bench, "plot", raising=False)
    assert main([*FAST, "--plot", str(tmp_path / "bars.svg")]) == 2
    check_error(capsys, "matplotlib", 'pip install "nbbn[demo]"')


def test_full_disk_leaves_the_old_file(capsys, monkeypatch, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text("old")

    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Race, "run", lambda race, case: result({"nbbn": 1.0, "numpy": 2.0}, case))
    assert main([*FAST, "--json", str(path)]) == 2
    message = f"nbbn bench: error: --json: cannot write {path}: No space left on device\n"
    assert capsys.readouterr().err == message
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# The text


def test_lines_fit_a_hundred_columns():
    libraries = ["numpy", "torch", "onnxruntime", "jax", "openvino", "sklearn"]
    times = {name: 1000.0 * number for number, name in enumerate(libraries, 1)}
    cases = [
        Case(operation, (128, 2048, 112, 112), 16, "float64", "channels-last", "out", "float32")
        for operation in ("inference", "training")
    ]
    results = [result({"nbbn": 1500.0, "two-trip": 1.0} | times, case) for case in cases]
    results[0].outcomes["jax"] = Outcome("failed", "x " * 200)
    lines = overview.overview_lines(results, dict.fromkeys(libraries, "2026.4.1-22982-e213a147257"))
    assert max(map(len, lines)) <= 100
    assert "\n".join(lines).isascii()


def test_where_nbbn_is_behind_is_said():
    results = [
        result({"nbbn": 2.0, "numpy": 3.0, "torch": 1.0, "two-trip": 1.0}),
        result({"nbbn": 2.0, "numpy": 2.0}, Case("moments", (8, 3), 1)),
    ]
    text = "\n".join(overview.overview_lines(results, {}))
    assert re.search(r"^32x64x56x56 +2\.00 s +2\.00 +1\.50 +0\.50 <$", text, re.MULTILINE)
    assert "not the fastest in 1 of 3 comparisons" in text
    assert "training 32x64x56x56 2 threads: torch 0.50" in text
    text = "\n".join(overview.overview_lines(results[1:], {}))
    assert "fastest in all 1 comparisons" in text


def test_noise_and_absence_are_said():
    noisy = Outcome(durations=[1.0, 2.0, 2.0])
    absent = Outcome("skipped", "torch is not installed")
    declined = Outcome("skipped", "sklearn has no training")
    results = [result({"nbbn": 2.0}, numpy=noisy, torch=absent, sklearn=declined)]
    text = "\n".join(overview.overview_lines(results, {}))
    assert "1 of 2 medians are over 1.5 times" in text
    assert "torch left out: torch is not installed" in text
    assert "sklearn" not in text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(None, "-"), (0.456, "0.46"), (9.999, "10.0"), (99.96, "100"), (1234, "1234")],
)
def test_ratios_have_three_digits(ratio, text):
    assert overview.format_ratio(ratio) == text


# The drawing


def test_bars_are_the_ratios():
    pytest.importorskip("matplotlib", reason="it draws the bars")
    from nbbn._bench.plot import make_figure

    results = [
        result({"nbbn": 1.2, "numpy": 30.0, "jax": 0.8, "two-trip": 1.0}),
        result({"nbbn": 1.2, "numpy": 30.0}, Case("training", (8, 3), 2)),
        result({"nbbn": 3.0, "read": 2.0}, Case("moments", (8, 3), 2)),
    ]
    training, moments = make_figure(results).axes
    ends = [bar.get_x() + bar.get_width() for bar in training.patches]
    assert ends == pytest.approx([1.2, 30.0, 0.8])
    texts = [text.get_text() for text in training.texts]
    assert texts == ["nbbn 1.20", "numpy 30.0", "jax 0.80", "limit"]
    assert len(moments.patches) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        make_figure(results[1:2])


def test_labels_stay_inside(tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the bars")
    from nbbn._bench.plot import make_figure

    times = {"numpy": 9e4, "torch": 0.9, "onnxruntime": 1e5, "openvino": 1.1, "sklearn": 900.0}
    shape = (1_000_000, 32)
    cases = [Case("inference", shape, 1), Case("inference", shape, 2, "float64", variant="out")]
    results = [result({"nbbn": 0.3, "copy-affine": 1.0} | times, case) for case in cases]
    figure = make_figure(results)
    figure.savefig(tmp_path / "bars.png")  # lays it out
    (axes,) = figure.axes
    inside = figure.bbox
    boxes = [text.get_window_extent() for text in [*axes.texts, *axes.get_yticklabels()]]
    assert all(box.x0 >= inside.x0 and box.x1 <= inside.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# Records


def test_a_condensed_record_has_the_same_ratios():
    mixed = Case("inference", (8, 3), 1, variant="out", params="float64")
    results = [
        result({"nbbn": 2.0, "torch": 3.0, "two-trip": 1.0}, numpy=Outcome("failed", "x\nwrong")),
        result({"nbbn": 2.0, "copy-affine": 1.5}, mixed, torch=Outcome("skipped", "no")),
    ]
    results[0].outcomes["nbbn"] = Outcome(durations=[1.0, 2.0, 9.0], note="serial")
    kept = from_json(
        json.loads(json.dumps(condensed(as_json(results, Race((), rounds=1, seconds=0)))))
    )
    assert [r.case for r in kept] == [CASE, mixed]
    assert kept[0].ratio("torch") == 1.5
    assert kept[0].ratio("torch", "minimum") == 3.0
    assert kept[0].ratio_to_limit("nbbn") == 2.0
    assert kept[0].outcomes["nbbn"].note == "serial"
    assert kept[0].outcomes["numpy"].reason == "wrong"
    assert "torch" not in kept[1].outcomes


def test_the_command_is_listed(capsys):
    assert main(["--help"]) == 0
    assert "bench" in capsys.readouterr().out
    assert bench.__doc__.startswith("``nbbn bench``")
