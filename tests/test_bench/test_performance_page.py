"""The pages of performance say what was recorded, and the targets are judged as they are written."""

import importlib
import json
import sys
from dataclasses import replace

import pytest
from processes import ROOT

sys.path.append(str(ROOT))  # benchmarks/ is no part of what is installed

from benchmarks.harness.cases import Case, is_defined
from benchmarks.harness.implementations import LIMITS
from benchmarks.harness.race import Outcome, Race, Result
from benchmarks.harness.recording import SETS, recorded_cases
from benchmarks.harness.report import as_json, condensed, from_json

IMAGE = (32, 64, 56, 56)


@pytest.fixture
def performance():
    return importlib.import_module("benchmarks.performance")


@pytest.fixture
def targets():
    return importlib.import_module("benchmarks.targets")


@pytest.fixture
def pages():
    return importlib.import_module("benchmarks.pages")


def record(*races):
    """A condensed record of pairs of a case and the seconds of each implementation."""
    results = [
        Result(case, {name: Outcome(durations=[time] * 3) for name, time in times.items()}) for case, times in races
    ]
    made = condensed(as_json(results, Race((), rounds=15, seconds=0.25)))
    made["machine"] |= {"cpu": "a processor", "memory_gib": 24.0, "cores": 2, "usable_cores": 2}
    made["machine"]["caches"] = [{"level": "3", "type": "Unified", "size": "32768K", "cores": "0-1"}]
    return made


def written(performance, made, startup=None, sets=None):
    """All pages of a run, one after the other."""
    return "\n".join(performance.pages(made, startup, sets or {}).values())


def line(text, start):
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {start}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_page_is_that_of_the_recorded_run(performance):
    recorded = performance.keep(None)
    for name, text in performance.pages(recorded, performance.read_startup(), performance.read_sets()).items():
        assert (performance.DOCS / name).read_text("utf-8") == text
    assert (performance.DOCS / "images" / performance.PICTURE).is_file()
    assert "\nperformance\n" in (performance.DOCS / "background.md").read_text("utf-8")


def test_a_new_run_is_written_without_hand_work(performance, monkeypatch, tmp_path):
    """The command that keeps a run writes all that is made of it."""
    picture, table = (importlib.import_module(f"benchmarks.{name}") for name in ("picture", "table"))
    pytest.importorskip("matplotlib", reason="it draws the bars")
    recorded, images = performance.keep(None), tmp_path / "images"
    readme = tmp_path / "README.md"
    marks = table.LEAD, table.LEAD_END, table.BEGIN, table.END
    readme.write_text("{}{}\n{}\n{}\n".format(*marks), "utf-8")
    monkeypatch.setattr(table, "README", readme)
    monkeypatch.setattr(performance, "DOCS", tmp_path)
    monkeypatch.setattr(picture, "FILES", {"light": images / "a.svg", "dark": images / "b.svg"})
    assert performance.main(["--folder", str(tmp_path)]) == 0
    for name, text in performance.pages(recorded, performance.read_startup(), performance.read_sets()).items():
        assert (tmp_path / name).read_text("utf-8") == text
    assert {path.name for path in images.iterdir()} == {"a.svg", "b.svg", performance.PICTURE}
    assert readme.read_text("utf-8") == table.with_table(readme.read_text("utf-8"), recorded)
    assert table.table(recorded) in readme.read_text("utf-8")


def test_the_first_page_says_how_many_times_faster(performance):
    case = Case("training", IMAGE, 1)
    small = replace(case, shape=(32, 1024, 14, 14))
    rows = replace(case, shape=(128, 256))
    made = record(
        (case, {"nbbn": 1.0, "two-trip": 1.0, "torch": 8.0, "numpy": 3.0}),
        (small, {"nbbn": 1.0, "two-trip": 1.0, "torch": 0.5, "numpy": 3.0}),
        (rows, {"nbbn": 1.0, "two-trip": 1.0, "torch": 0.5}),
        (replace(case, variant="out"), {"nbbn": 1.0, "two-trip": 1.0, "torch": 0.25}),
    )
    first = performance.pages(made, None, {})["performance.md"]
    images, tables = first.split("### Tables, (N, C)")
    assert line(images, "training")[1:] == ["1", "3.0\u00a0(3\u20133)", "2.0\u00a0(0.5\u20138)"]
    overview, rest = tables.split("## Where nbbn is not the fastest")
    assert line(overview, "training")[1:] == ["1", "**0.50**\u00a0(0.5\u20130.5)"]
    leads, shapes = rest.split("## Which shapes")
    assert line(leads, "PyTorch")[1:] == ["4", "3", "3"]
    assert line(leads, "training 32x64x56x56 1 thread out")[1:] == ["PyTorch", "0.25"]
    assert line(shapes, "32x64x56x56")[1:] == ["1.00 s", "3.00", "8.00"]  # no limit, no `out=`


@pytest.mark.parametrize("name", SETS)
def test_the_tables_of_a_set_are_those_of_its_recorded_run(name, pages):
    recorded = json.loads((pages.FOLDER / f"{name}.json").read_text("utf-8"))
    begin, end = pages.markers(name)
    assert f"{begin}\n{pages.block(name, recorded)}\n{end}" in pages.page(name).read_text("utf-8")
    known = set(SETS[name].cases([1, 2]))
    assert {result.case for result in from_json(recorded)} == known
    assert all(is_defined(case) for case in known)


def test_the_page_of_data_sets_is_that_of_its_recorded_run():
    data_sets = importlib.import_module("benchmarks.data_sets")
    made = data_sets.block(json.loads(data_sets.KEPT.read_text("utf-8")))
    begin, end = data_sets.MARKERS
    assert f"{begin}\n{made}\n{end}" in data_sets.PAGE.read_text("utf-8")
    for name in data_sets.SETS:
        assert f"## {data_sets.TITLES[name][0]}\n" in made
    assert data_sets.ratios({"a": [1.0, 2.0, 9.0], "b": [1.0, 4.0, 5.0]}, "a", "b") == "0.50 (1.00)"


def test_a_new_run_of_fused_steps_is_kept_and_shown(pages, monkeypatch, tmp_path):
    case = Case("inference+residual+relu", IMAGE, 1, "bfloat16", variant="out")
    made = record((case, {"nbbn": 1.1, "add-affine": 1.0, "torch": 3.3}))
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    (tmp_path / "new.json").write_text(json.dumps(made), "utf-8")
    begin, end = pages.markers("fused")
    pages.page("fused").write_text(f"before\n{begin}\nan older run\n{end}\nafter\n", "utf-8")
    assert pages.main(["fused", str(tmp_path / "new.json")]) == 0
    text = pages.page("fused").read_text("utf-8")
    assert text.startswith(f"before\n{begin}\na processor") and "older" not in text
    assert text.endswith(f"{end}\nafter\n")
    assert "## Inference + residual + relu, bfloat16, with `out=`\n" in text
    assert line(text, "32x64x56x56")[1:] == ["1.10 s", "1.10", "3.00"]
    assert json.loads((tmp_path / "fused.json").read_text("utf-8")) == made
    assert pages.main(["fused"]) == 0  # the kept run again
    assert pages.page("fused").read_text("utf-8") == text


def test_the_tables_of_the_standardizer(pages):
    made = record(
        (Case("fit", (32, 64), 1, "float64"), {"nbbn": 1.0, "read": 0.5, "sklearn": 4.0}),
        (Case("fit_transform", (32, 64), 2), {"nbbn": 2.0, "two-trip": 2.0, "sklearn": 1.0}),
    )
    text = pages.block("standardizer", made)
    assert "## Fit, float64\n" in text and "## `fit_transform`\n" in text
    assert "| 32x64 | 1.00 s | 2.00 | 4.00 |" in text
    assert "| 32x64 | 2.00 s | 1.00 | **0.50** |" in text
    assert "Results are new arrays." in text


def test_what_a_mask_costs_is_in_the_tables(pages):
    sequences = Case("training+mask", (32, 256, 128), 1, layout="channels-last")
    times = {"nbbn": 3.0, "plain": 2.0, "two-trip": 1.0, "torch": 1.5}
    unmasked = {"nbbn": 1.0, "plain": 9.0, "two-trip": 1.0}
    made = record(
        (sequences, times),
        (replace(sequences, threads=2), times | {"plain": 6.0}),
        (Case("from_batches", (128, 256), 1), {"nbbn": 1.0, "plain": 0.25, "read": 0.125}),
        (replace(sequences, operation="training"), unmasked),
    )
    text = pages.block("statistics", made)
    assert "## Training + mask, channels-last\n" in text and "## `from_batches`\n" in text
    assert line(text, "32x256x128 | 3.00 s")[2:] == [
        "3.00 / 3.00",
        "1.50 / 0.50",
        "**0.50** / **0.50**",
    ]
    assert line(text, "128x256 | 1.00 s")[2:] == ["8.00", "4.00"]
    assert line(text, "32x256x128 | 1.00 s")[2:] == ["1.00"]  # nothing that plain does without
    assert "In 2 of 2 comparisons" in text  # plain is no library


def test_the_page_copes_with_what_only_newer_runs_have(performance):
    cases = [
        Case("inference+residual+relu", IMAGE, 1, variant="out"),
        Case("training+relu", IMAGE, 2),
        Case("inference", IMAGE, 1, "bfloat16", variant="out"),
        Case("inference", (32, 3, 224, 224), 1, "uint8"),
    ]
    made = record(*((case, {"nbbn": 1.0, LIMITS[case.operation]: 1.0}) for case in cases))
    text = written(performance, made)
    for heading in ("Inference, bfloat16, with `out=`", "Inference, uint8", "Training + relu"):
        assert f"## {heading}\n" in text
    assert line(text, "inference with `out=`, past")[-1] == "-"  # targets are for float32


def test_targets_are_judged_case_by_case(performance):
    case = Case("inference", IMAGE, 1, variant="out")
    text = written(
        performance,
        record(
            (case, {"nbbn": 1.08, "copy-affine": 1.0, "torch": 3.24}),
            (replace(case, threads=2), {"nbbn": 1.3, "copy-affine": 1.0, "torch": 1.2}),
            (replace(case, variant="fresh"), {"nbbn": 1.21, "copy-affine": 1.0, "torch": 12.1}),
        ),
    )
    name = "inference with `out=`, past"
    assert line(text, name)[2:] == ["1.08 (1.08)", "1.30 (1.30)", "in 1 of 2"]
    assert "32x64x56x56 2 threads out 1.30" in text
    assert line(text, "every case recorded")[2:] == ["3.00 (6.50)", "0.92 (0.92)", "in 2 of 3"]
    assert "In 1 of 3 comparisons" in text
    assert "| inference 32x64x56x56 2 threads out | torch 0.92 (0.92) |\n" in text
    assert line(text, "32x64x56x56 | 1.08 s / 1.30 s")[2:] == ["1.08 / 1.30", "3.00 / **0.92**"]
    assert "a processor, 2 of 2 cores" in text


@pytest.mark.parametrize(
    ("operation", "shape", "layout", "start"),
    [
        ("training", (1, 64, 112, 112), "channels-first", "training in the cache, channels first"),
        ("training", (8, 2048, 7, 7), "channels-first", "training, few values a channel"),
        ("training", (8, 100_000), "channels-first", "training, few values a channel"),
        ("training", (1024, 1024), "channels-first", "training in the cache, channels last"),
        ("training", (65536, 256), "channels-first", "training past the cache, channels last"),
        ("training", IMAGE, "channels-last", "training past the cache, channels last"),
        ("backward", (1024, 1024), "channels-first", "backward in the cache"),
        ("backward", (65536, 256), "channels-first", "backward past the cache, channels last"),
        ("moments", IMAGE, "channels-first", "moments in the cache, channels first"),
        ("moments", (1024, 1024), "channels-first", "moments in the cache, channels last"),
        ("inference", (1024, 1024), "channels-first", "inference with `out=`, in the cache"),
        ("inference", (65536, 256), "channels-first", "inference with `out=`, past the cache"),
    ],
)
@pytest.mark.parametrize("ratio", [0.85, 2.6])
def test_each_case_belongs_to_one_line(performance, targets, operation, shape, layout, start, ratio):
    variant = "fresh" if operation == "moments" else "out"
    case = Case(operation, shape, 1, layout=layout, variant=variant)
    made = record((case, {"nbbn": ratio, LIMITS[operation]: 1.0}))
    run = performance.run_of(made)
    assert [t.name.startswith(start) for t in targets.targets() if t.values(run)] == [True]
    holds = "**yes**, in 1" if ratio < 1 else "in 0 of 1"
    assert line(written(performance, made), start)[-1] == holds


def test_small_calls_are_in_microseconds(performance):
    case = Case("inference", (1, 64), 1, variant="out")
    times = {"nbbn": 2.5e-6, "frozen": 1.0e-6, "bare-kernel": 0.2e-6, "numpy": 2.0e-6}
    fresh = replace(case, variant="fresh")
    text = written(performance, record((case, times), (fresh, times | {"frozen": 1.5e-6})))
    assert line(text, "a frozen layer, small")[2:] == ["0.50 (0.50)", "**yes**, in 1"]
    assert line(text, "... beyond the bare kernel")[2:] == ["0.80 us (0.80 us)", "in 0 of 1"]
    assert line(text, "... a new result")[2:] == ["0.75 (0.75)", "in 0 of 1"]
    assert line(text, "a layer in inference mode")[2:] == ["1.25 (1.25)", "in 0 of 1"]


def test_small_steps_are_compared_with_torch(performance):
    case = Case("training", (32, 64), 1)
    step = replace(case, operation="step")
    times = {"nbbn": 1.0, "torch": 3.0, "torch-autograd": 5.0, "numpy": 1.2}
    text = written(performance, record((case, times), (step, {"nbbn": 1.0, "torch-autograd": 10.0})))
    assert line(text, "training, small")[2:] == ["0.20 (0.20)", "**yes**, in 1"]
    assert line(text, "training and backward, small")[2:] == ["0.10 (0.10)", "**yes**, in 1"]
    alone = Case("moments", IMAGE, 1), {"nbbn": 2.0, "read": 1.0}
    both = Case("moments", IMAGE, 2), {"nbbn": 1.5, "read": 0.5}
    text = written(performance, record(alone, both))
    assert line(text, "on two threads")[2:] == ["-", "1.50 (1.50)", "in 0 of 1"]
    made = record((replace(case, shape=(4096, 128)), times))
    assert line(written(performance, made), "moments and training of")[2:] == [
        "1.20 (1.20)",
        "in 0 of 1",
    ]


def test_masks_and_narrow_types_are_those_of_other_sets(performance):
    case = Case("moments+mask", (32, 64, 112, 112), 1)
    small = replace(case, shape=(128, 256))
    masks = record((case, {"nbbn": 1.5, "plain": 1.0}), (small, {"nbbn": 5.0, "plain": 1.0}))
    half = Case("inference", IMAGE, 1, "float16", variant="out")
    byte = Case("inference", (32, 3, 512, 512), 1, "uint8", variant="out")
    times = {half: 0.5, replace(half, dtype="float32"): 1.0, byte: 0.8, replace(byte, dtype="float32"): 1.0}
    narrow = record(*((each, {"nbbn": time}) for each, time in times.items()))
    made = record((Case("inference", IMAGE, 1), {"nbbn": 1.0, "copy-affine": 1.0}))
    text = written(performance, made, None, {"statistics": masks, "fused": narrow})
    assert line(text, "moments and training with a mask")[2:] == ["1.50 (1.50)", "in 0 of 1"]
    assert line(text, "bfloat16 and float16: inf")[2:] == ["0.50 (0.50)", "**yes**, in 1"]
    assert line(text, "uint8 to float32: inf")[2:] == ["0.80 (0.80)", "in 0 of 1"]


def test_other_types_have_their_lines(performance):
    case = Case("training", IMAGE, 1, "float64", variant="out")
    mixed = replace(case, dtype="float32", params="float64")
    times = {"nbbn": 1.1, "two-trip": 1.0}
    text = written(performance, record((case, times), (mixed, times)))
    for start in ("float64: training", "float32 with float64 parameters: training"):
        assert line(text, start)[-1] == "**yes**, in 1"
    assert line(text, "training in the cache, channels first")[-1] == "-"


def test_the_start_is_told_where_it_was_measured(performance):
    small, large = "(32, 64)", "(32, 64, 56, 56)"
    operations = ("inference", "frozen inference", "training forward", "backward")
    calls = [(operation, case) for case in (small, large) for operation in operations]
    calls += [("fit_transform, float64", "(1000, 4)")]
    rows = [
        {"operation": "import", "case": "numba", "cache": "", "seconds": [0.30, 0.31, 0.5]},
        {"operation": "import", "case": "nbbn", "cache": "", "seconds": [0.37]},
        {"operation": "inference", "case": small, "cache": "warm", "seconds": [0.1]},
        {"operation": "backward", "case": small, "cache": "warm", "seconds": [5.0]},
    ]
    for number, (operation, case) in enumerate(calls, 1):
        seconds = [9.0 * number] * 3
        at = {"operation": operation, "case": case, "cache": "cold", "seconds": seconds}
        rows.append(at | {"cpu": [number, 2.0 * number, 3.0 * number], "loop_cpu": [10.0, 20.0, 60.0]})
    made = record((Case("moments", IMAGE, 1), {"nbbn": 1.0, "read": 1.0}))
    text = written(performance, made, {"rows": rows})
    assert line(text, "`import nbbn` beyond")[2:] == ["60 ms", "no"]
    assert line(text, "first call: inference, (32, 64)")[2:] == ["100 ms", "**yes**"]
    assert line(text, "first call: backward")[1:] == ["-", "5000 ms", "-"]
    assert line(text, "inference, (32, 64) | 0.10 s")[1:] == ["0.10 s", "9.00 s"]
    # Each beside the loop that was compiled before it: a tenth twice, once less.
    assert line(text, f"inference, {small} | 1.6")[1:] == ["1.6", "0.10", "0.05", "**yes**"]
    both = f"training forward and backward, {large}"
    assert line(text, both)[1:] == ["5", f"{(7 + 8) / 10:.2f}", f"{(7 + 8) / 20:.2f}", "**yes**"]
    assert "loop takes 20.00 CPU seconds" in text
    assert "A new process" not in written(performance, made)


def test_failures_are_on_the_page(performance):
    case = Case("moments", IMAGE, 1)
    made = record((case, {"nbbn": 1.0, "read": 1.0}))
    made["results"].append(made["results"][0] | {"implementation": "torch", "status": "failed", "reason": "wrong"})
    del made["results"][-1]["median"]
    assert "- torch, moments 32x64x56x56 1 thread: wrong" in written(performance, made)


def test_the_picture_is_the_same_for_the_same_numbers(performance, tmp_path):
    pytest.importorskip("matplotlib", reason="it draws the bars")
    made = record((Case("moments", IMAGE, 1), {"nbbn": 1.0, "read": 1.0, "torch": 30.0}))
    files = [tmp_path / name / "bars.svg" for name in ("a", "b")]
    for file in files:
        performance.draw(made, file)
    texts = [file.read_text("utf-8") for file in files]
    assert texts[0] == texts[1]
    assert ">torch 30.0<" in texts[0]


def test_every_target_has_recorded_cases(performance, targets):
    races = [
        (
            case,
            {
                "nbbn": 1.0,
                LIMITS[case.operation]: 1.0,
                "bare-kernel": 1.0,
                "frozen": 1.0,
                "numpy": 2.0,
                "torch": 2.0,
                "torch-autograd": 2.0,
            },
        )
        for case in recorded_cases()
    ]
    run = performance.run_of(record(*races))
    for target in targets.targets():
        threads = {2} if target.name.startswith("on two threads") else {1, 2}
        assert {case.threads for case, _ in target.values(run)} == threads, target.name
    for name, lines in targets.targets_of_sets().items():
        times = {"nbbn": 1.0, "plain": 1.0}
        run = performance.run_of(record(*((case, times) for case in SETS[name].cases((1, 2)))))
        for target in lines:
            assert {case.threads for case, _ in target.values(run)} == {1, 2}, target.name
    assert all(is_defined(case) for case, _ in races)
    assert set(performance.PICTURE_SHAPES) <= {case.shape for case, _ in races}
