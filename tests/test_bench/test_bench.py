"""``nbbn bench``: what it prints is what was measured, its files are whole, errors are clear."""

import io
import json
import os
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

import nbbn
from nbbn._bench.libraries import IMPLEMENTATIONS
from nbbn._bench.problem import (
    FUSED,
    OPERATIONS,
    Case,
    WrongResultError,
    check_outputs,
    formula,
    make_problem,
)
from nbbn._bench.race import Outcome, Race, Result
from nbbn.cli import _bench_report as table
from nbbn.cli import bench, main

NAMES = ("nbbn", "numpy", "limit")
SMALL = [Case("inference", shape, 1) for shape in ((8, 3), (4, 2, 3))]
CASE = Case("training", (32, 64, 56, 56), 2)


@pytest.fixture
def no_race(monkeypatch):
    """Fail where anything is measured."""

    def fail(*args, **kwargs):
        pytest.fail("the check came too late")

    monkeypatch.setattr(Race, "run", fail)


@pytest.fixture
def small(monkeypatch):
    """Let the command measure two small cases, briefly, with what is always there."""
    monkeypatch.setattr(bench, "list_cases", lambda quick, cores: SMALL)
    monkeypatch.setattr(bench, "IMPLEMENTATIONS", NAMES)
    monkeypatch.setattr(bench, "_THOROUGH", (2, 0.0))


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


@pytest.mark.usefixtures("small")
def test_table_and_files(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the bars")
    record, drawing = tmp_path / "bench.json", tmp_path / "bench.svg"
    assert main(["bench", "--json", str(record), "--plot", str(drawing)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"nbbn {nbbn.__version__}" in printed.out
    assert "inference, 1 thread\n" in printed.out
    entries = {
        (tuple(entry["shape"]), entry["implementation"]): entry
        for entry in json.loads(record.read_text("utf-8"))["results"]
    }
    assert len(entries) == 6
    for shape, name in (((8, 3), "8x3"), ((4, 2, 3), "4x2x3")):
        medians = {n: entries[shape, n]["median"] for n in NAMES}
        assert all(len(entries[shape, n]["durations"]) == 2 for n in medians)
        row = re.search(rf"^{name} +[\d.]+ us +([\d.]+) +([\d.]+)( <)?$", printed.out, re.MULTILINE)
        ratios = medians["nbbn"] / medians["limit"], medians["numpy"] / medians["nbbn"]
        assert row.groups() == (
            *map(table.format_ratio, ratios),
            " <" if ratios[1] < 1 else None,
        )
    assert drawing.read_text("utf-8").startswith("<?xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench.json", "bench.svg"]
    assert str(record) in printed.out and str(drawing) in printed.out


@pytest.mark.usefixtures("small")
def test_bar_on_a_terminal(capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(Race, "run", lambda race, case: result({"nbbn": 1.0, "numpy": 2.0}, case))
    assert main(["bench"]) == 0
    assert "Measuring [" in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-1] == ""
    assert "[" not in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_library_that_fails_is_told_and_nbbn_that_fails_is_an_error(capsys, monkeypatch):
    failed = Outcome("failed", "a traceback\nwrong result: y is off by 1")
    monkeypatch.setattr(Race, "run", lambda race, case: result({"nbbn": 1.0}, case, numpy=failed))
    assert main(["bench"]) == 0
    printed = capsys.readouterr()
    assert "numpy failed (inference 8x3 1 thread): wrong result: y is off by 1" in printed.out
    monkeypatch.setattr(Race, "run", lambda race, case: result({"numpy": 1.0}, case, nbbn=failed))
    assert main(["bench"]) == 2
    assert "wrong result: y is off by 1" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_compiling_is_told(capsys, monkeypatch, tmp_path):
    config = nbbn.config() | {"cache_directory": str(tmp_path)}
    monkeypatch.setattr(nbbn, "config", lambda: config)

    def run(race, case):
        (tmp_path / f"{len(case.shape)}").touch()
        return result({"nbbn": 1.0, "numpy": 2.0}, case)

    monkeypatch.setattr(Race, "run", run)
    assert main(["bench"]) == 0
    assert "2 kernels were compiled" in capsys.readouterr().out
    assert main(["bench"]) == 0
    assert "All kernels were compiled before." in capsys.readouterr().out


def test_quick_is_a_part_of_all():
    quick, full = (bench.list_cases(quick, 2) for quick in (True, False))
    assert len(quick) < len(full)
    assert {case.threads for case in quick} == {2}
    assert {case.threads for case in full} == {1, 2}
    operations = {*OPERATIONS, FUSED}
    assert {case.operation for case in quick} == {case.operation for case in full} == operations
    fused = [case.shape for case in quick if case.operation == FUSED]
    assert sorted(map(len, fused)) == [2, 4]  # a table and images
    assert {case.threads for case in bench.list_cases(False, 1)} == {1}
    assert Case("training", (1, 64), 1) not in full  # it has no variance
    assert Case("inference", (1, 64), 1) in full


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_library_is_right_in_all_it_has(name):
    lacks = {"onnxruntime": {"moments", "backward"}, "sklearn": {"training", "backward", FUSED}}
    if reason := IMPLEMENTATIONS[name].missing():
        pytest.skip(reason)
    with Race([name], rounds=1, seconds=0.0) as race:
        for operation in (*OPERATIONS, FUSED):
            outcome = race.run(Case(operation, (40, 6), 1)).outcomes[name]
            expected = "skipped" if operation in lacks.get(name, ()) else "timed"
            assert outcome.status == expected, outcome.reason
            if name not in lacks:
                outcome = race.run(Case(operation, (8, 6, 4, 5), 1)).outcomes[name]
                assert outcome.status == "timed", outcome.reason


@pytest.mark.parametrize("operation", [*OPERATIONS, FUSED])
def test_a_wrong_value_is_no_result(operation):
    for shape in ((40, 30), (8, 20, 3, 5)):
        problem = make_problem(Case(operation, shape, 1))
        outputs = formula(problem)()
        check_outputs(problem, outputs)
        for number, array in enumerate(outputs):
            for wrong in (0.01, np.nan):
                changed = array.copy()
                changed.flat[-1] += wrong
                wrongs = (*outputs[:number], changed, *outputs[number + 1 :])
                with pytest.raises(WrongResultError, match=f"result {number + 1} is off"):
                    check_outputs(problem, wrongs)
        with pytest.raises(WrongResultError, match="shape"):
            check_outputs(problem, (outputs[0][:-1], *outputs[1:]))


def test_the_formulas_are_those_of_batch_normalization():
    x = np.random.default_rng(0).normal(1, 2, (8, 3, 5))
    problem = make_problem(Case("training", x.shape, 1)).block(slice(None))
    problem = replace(problem, x=x)
    y, _, running_var = formula(problem)()
    mean, var = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    gamma, beta = (v[:, None] for v in (problem.gamma, problem.beta))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * gamma + beta, rtol=1e-6)
    moved = problem.running_var * 0.875 + var.ravel() * 40 / 39 * 0.125
    np.testing.assert_allclose(running_var, moved, rtol=1e-6)


# Errors


def test_bad_usage_is_one_line(no_race, capsys):
    assert main(["bench", "--plot"]) == 2
    check_error(capsys, "--plot", "--help")


def test_unwritable_files(no_race, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the bars")
    missing = tmp_path / "none" / "file.svg"
    for option in ("--json", "--plot"):
        assert main(["bench", option, str(missing)]) == 2
        check_error(capsys, option, str(missing), "No such file")
    assert main(["bench", "--json", str(tmp_path)]) == 2
    check_error(capsys, "--json", "is a folder")
    assert main(["bench", "--plot", str(tmp_path / "bars.xyz")]) == 2
    check_error(capsys, "--plot", ".png, .svg, .pdf", "bars.xyz")


def test_without_matplotlib(no_race, capsys, monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["bench", "--plot", str(tmp_path / "bars.svg")]) == 2
    check_error(capsys, "matplotlib", 'pip install ".[demo]"')


@pytest.mark.usefixtures("small")
def test_full_disk_leaves_the_old_file(capsys, monkeypatch, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text("old")

    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Race, "run", lambda race, case: result({"nbbn": 1.0, "numpy": 2.0}, case))
    assert main(["bench", "--json", str(path)]) == 2
    message = f"nbbn bench: error: --json: cannot write {path}: No space left on device\n"
    assert capsys.readouterr().err == message
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# The text


def test_lines_fit_a_hundred_columns():
    libraries = ["numpy", "torch", "onnxruntime", "jax", "openvino", "sklearn"]
    times = {name: 1000.0 * number for number, name in enumerate(libraries, 1)}
    cases = [Case(operation, (128, 2048, 112, 112), 16) for operation in ("inference", "training")]
    results = [result({"nbbn": 1500.0, "limit": 1.0} | times, case) for case in cases]
    results[0].outcomes["jax"] = Outcome("failed", "x " * 200)
    lines = table.overview_lines(results, dict.fromkeys(libraries, "2026.4.1-22982-e213a147257"))
    assert max(map(len, lines)) <= 100
    assert "\n".join(lines).isascii()


def test_where_nbbn_is_behind_is_said():
    results = [
        result({"nbbn": 2.0, "numpy": 3.0, "torch": 1.0, "limit": 1.0}),
        result({"nbbn": 2.0, "numpy": 2.0}, Case("moments", (8, 3), 1)),
    ]
    text = "\n".join(table.overview_lines(results, {}))
    assert re.search(r"^32x64x56x56 +2\.00 s +2\.00 +1\.50 +0\.50 <$", text, re.MULTILINE)
    assert "not the fastest in 1 of 3 comparisons" in text
    assert "training 32x64x56x56 2 threads: torch 0.50" in text
    text = "\n".join(table.overview_lines(results[1:], {}))
    assert "fastest in all 1 comparisons" in text


def test_noise_and_absence_are_said():
    noisy = Outcome(durations=[1.0, 2.0, 2.0])
    absent = Outcome("skipped", "torch is not installed")
    declined = Outcome("skipped", "sklearn has no training")
    results = [result({"nbbn": 2.0}, numpy=noisy, torch=absent, sklearn=declined)]
    text = "\n".join(table.overview_lines(results, {}))
    assert "1 of 2 medians are over 1.5 times" in text
    assert "torch left out: torch is not installed" in text
    assert "sklearn" not in text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(None, "-"), (0.456, "0.46"), (9.999, "10.0"), (99.96, "100"), (1234, "1234")],
)
def test_ratios_have_three_digits(ratio, text):
    assert table.format_ratio(ratio) == text


# The drawing


def test_bars_are_the_ratios():
    pytest.importorskip("matplotlib", reason="it draws the bars")
    from nbbn.cli._bench_report import make_figure

    results = [
        result({"nbbn": 1.2, "numpy": 30.0, "jax": 0.8, "limit": 1.0}),
        result({"nbbn": 1.2, "numpy": 30.0}, Case("training", (8, 3), 2)),
        result({"nbbn": 3.0, "limit": 2.0}, Case("moments", (8, 3), 2)),
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
    from nbbn.cli._bench_report import make_figure

    times = {"numpy": 9e4, "torch": 0.9, "onnxruntime": 1e5, "openvino": 1.1, "sklearn": 900.0}
    shape = (1_000_000, 32)
    cases = [Case("inference", shape, 1), Case("inference", shape, 2)]
    results = [result({"nbbn": 0.3, "limit": 1.0} | times, case) for case in cases]
    figure = make_figure(results)
    figure.savefig(tmp_path / "bars.png")  # lays it out
    (axes,) = figure.axes
    inside = figure.bbox
    boxes = [text.get_window_extent() for text in [*axes.texts, *axes.get_yticklabels()]]
    assert all(box.x0 >= inside.x0 and box.x1 <= inside.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_command_is_listed(capsys):
    assert main(["--help"]) == 0
    assert "bench" in capsys.readouterr().out
    assert bench.__doc__.startswith("``nbbn bench``")


def test_one_long_round_changes_no_median():
    assert Outcome(durations=[1.0, 9.0, 2.0, 1.0, 2.0]).median == 2.0
    assert Outcome(durations=[4.0, 3.0]).minimum == 3.0
