"""The harness itself: it has to reject wrong results, and to report what was measured."""

import argparse
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.harness.cases import (
    ALL_OPERATIONS,
    DTYPES,
    FUSED,
    LAYOUTS,
    OPERATIONS,
    PIECES,
    STANDARDIZER,
    STATISTICS,
    STORED,
    VARIANTS,
    Case,
    list_cases,
)
from benchmarks.harness.implementations import AUTOGRAD, FROZEN, IMPLEMENTATIONS, LIMITS, UNADORNED
from benchmarks.harness.implementations.yardsticks import _Trips
from benchmarks.harness.options import USUAL_FUSED, add_options, make_selection
from benchmarks.harness.problem import (
    TOLERANCE,
    Problem,
    WrongResultError,
    check_outputs,
    make_problem,
)
from benchmarks.harness.race import Outcome, Race, Result
from benchmarks.harness.report import as_json, condensed, from_json, summary_lines
from benchmarks.harness.shapes import expand_shapes, parse_shape
from benchmarks.test_batch_norm import Replay
from nbbn.cli._bench_report import format_seconds

CASES = list_cases(
    operations=ALL_OPERATIONS,
    shapes=[(8, 20, 3, 5), (40, 6)],
    threads=[1],
    dtypes=STORED,
    layouts=LAYOUTS,
    variants=VARIANTS,
)
SEQUENCES = list_cases(operations=STATISTICS, shapes=[(8, 6, 9)], threads=[1], dtypes=DTYPES, layouts=LAYOUTS)
OTHERWISE = UNADORNED, FROZEN, AUTOGRAD  # what is measured already, called otherwise
YARDSTICKS = [n for n, known in IMPLEMENTATIONS.items() if known.is_yardstick and n not in OTHERWISE]
CASE = Case("inference", (4, 3, 2), 1)


def needs_bfloat16(case: Case) -> None:
    if case.dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="it has bfloat16")


def numpy_outputs(problem: Problem) -> dict[str, np.ndarray]:
    implementation = IMPLEMENTATIONS["numpy"]
    implementation.load(1)
    prepared = implementation.prepare(problem)
    return prepared.outputs(prepared.call())


@pytest.mark.parametrize("case", [*CASES, *SEQUENCES], ids=lambda case: case.label)
def test_right_outputs_pass_and_any_wrong_value_fails(case: Case) -> None:
    needs_bfloat16(case)
    problem = make_problem(case)
    outputs = numpy_outputs(problem)
    check_outputs(problem, outputs)
    for name, array in outputs.items():
        # Twice what is allowed for the largest value, which is below 25.
        for wrong in (50 * TOLERANCE[case.dtype], np.nan):
            changed = array.copy()
            changed.flat[-1] += wrong
            with pytest.raises(WrongResultError, match=name):
                check_outputs(problem, outputs | {name: changed})


def test_missing_superfluous_and_misshapen_outputs_fail() -> None:
    problem = make_problem(CASE)
    y = numpy_outputs(problem)["y"]
    with pytest.raises(WrongResultError, match="y is missing"):
        check_outputs(problem, {})
    with pytest.raises(WrongResultError, match="extra"):
        check_outputs(problem, {"y": y, "extra": y})
    with pytest.raises(WrongResultError, match="float64"):
        check_outputs(problem, {"y": y.astype(np.float64)})
    with pytest.raises(WrongResultError, match="float32"):
        check_outputs(problem, {"y": y.reshape(4, 2, 3)})


def test_a_race_times_every_round_and_checks() -> None:
    cases = [replace(CASE, operation=operation) for operation in OPERATIONS]
    with Race(["numpy"], rounds=3, seconds=0.0) as race:
        results = [race.run(case) for case in cases]
    assert race.versions["numpy"] == np.__version__
    for result in results:
        outcome = result.outcomes["numpy"]
        assert (outcome.status, outcome.reason) == ("timed", "")
        assert len(outcome.durations) == 3
        assert 0.0 < outcome.minimum <= outcome.median
        assert outcome.loops > 1


def test_a_worker_that_dies_fails_its_case_only() -> None:
    with Race(["nobody", "numpy"], rounds=1, seconds=0.0) as race:
        outcomes = race.run(CASE).outcomes
    assert outcomes["nobody"].status == "failed"
    assert outcomes["nobody"].cause == "KeyError: 'nobody'"
    assert outcomes["numpy"].status == "timed"


def test_the_summary_flags_where_nbbn_is_not_ahead() -> None:
    outcomes = {
        "nbbn": Outcome(durations=[2.0, 3.0, 2.0]),
        "numpy": Outcome(durations=[4.0, 4.0, 1.0]),
        "torch": Outcome(durations=[1.0, 1.5, 1.0]),
        "other": Outcome("failed", "a traceback\nwrong result: y"),
    }
    result = Result(CASE, outcomes)
    text = "\n".join(summary_lines([result], {"numpy": "2"}))
    assert "nbbn is not ahead in 1 of 2 comparisons" in text
    assert "torch/nbbn 0.50 (minima 0.50)" in text
    assert "numpy/nbbn 2.00" in text
    assert "1 of 3 medians are over 1.5 times the minimum" in text
    assert "other failed" in text
    entries = {
        entry["implementation"]: entry for entry in as_json([result], Race(outcomes, rounds=3, seconds=1.0))["results"]
    }
    assert entries["nbbn"]["median"] == entries["nbbn"]["minimum"] == 2.0
    assert entries["numpy"]["minimum"] == 1.0
    assert entries["other"]["reason"] == "wrong result: y"


def test_replay_shows_the_recorded_durations() -> None:
    replay = Replay()
    replay.load([0.1, 0.7])
    readings = [replay() for _ in range(4)]
    assert [readings[1] - readings[0], readings[3] - readings[2]] == [0.1, 0.7]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234, "1.23 s"), (0.0999, "99.9 ms"), (4.5e-6, "4.50 us"), (2e-8, "0.0200 us")],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_shapes_are_sets_or_sizes() -> None:
    assert parse_shape("8x3x4") == (8, 3, 4)
    assert expand_shapes(("resnet50", "8x3"), (1, 8))[12] == (8, 64, 112, 112)
    for wrong in ("8", "8x", "0x3", "axb", ""):
        with pytest.raises(ValueError, match="shape"):
            expand_shapes((wrong,), (1,))


def test_one_value_a_channel_is_not_trained_with() -> None:
    cases = list_cases(operations=OPERATIONS, shapes=[(1, 64)], threads=[1])
    assert [case.operation for case in cases] == ["inference", "moments"]


def test_only_inference_is_repeated_in_place_and_moments_have_no_variants() -> None:
    cases = list_cases(operations=OPERATIONS, shapes=[(8, 3)], threads=[1], variants=VARIANTS, params=DTYPES)
    in_place = [case.operation for case in cases if case.variant == "inplace"]
    assert in_place == ["inference", "inference"]
    assert [case.operation for case in cases].count("moments") == 1


def test_half_types_and_bytes_are_for_inference() -> None:
    cases = list_cases(
        operations=(*OPERATIONS, *FUSED),
        shapes=[(8, 3)],
        threads=[1],
        dtypes=["float16", "uint8"],
        variants=["out", "inplace"],
    )
    assert [(case.operation, case.dtype, case.variant) for case in cases] == [
        ("inference", "float16", "out"),
        ("inference", "float16", "inplace"),
        ("inference", "uint8", "out"),
        *((name, "float16", "out") for name in FUSED if name.startswith("inference")),
    ]
    assert {case.params for case in cases} == {"float32"}
    assert cases[0].storage == "float16 out"
    problem = make_problem(cases[2])
    assert (problem.x.dtype, problem.result_dtype) == (np.uint8, np.float32)


def test_a_step_that_is_left_out_is_a_wrong_result() -> None:
    for operation in FUSED:
        problem = make_problem(Case(operation, (40, 6), 1))
        plain = make_problem(Case(operation.partition("+")[0], (40, 6), 1))
        with pytest.raises(WrongResultError, match=r"(y|grad_x) is off"):
            check_outputs(problem, numpy_outputs(plain))


@pytest.mark.parametrize("name", [n for n in IMPLEMENTATIONS if not IMPLEMENTATIONS[n].is_yardstick])
def test_fused_steps_and_small_types_are_right_everywhere(name: str) -> None:
    cases = [
        case
        for case in CASES
        if (case.steps or case.dtype not in DTYPES) and case.dtype != "float64" and case.variant == "out"
    ]
    with Race([name], rounds=1, seconds=0.0) as race:
        outcomes = [race.run(case).outcomes[name] for case in cases]
    assert [outcome.reason for outcome in outcomes if outcome.status == "failed"] == []


def test_parameters_have_the_data_type_of_x_unless_told() -> None:
    assert Case("training", (8, 3), 1, "float64").params == "float64"
    mixed = replace(CASE, params="float64")
    assert mixed.storage == "float64 parameters"
    assert Case.from_dict(mixed.to_dict()) == mixed
    problem = make_problem(mixed)
    assert (problem.x.dtype, problem.gamma.dtype) == (np.float32, np.float64)


def test_in_place_the_values_stay_where_they_are() -> None:
    problem = make_problem(Case("inference", (64, 3), 1, variant="inplace"))
    implementation = IMPLEMENTATIONS["numpy"]
    implementation.load(1)
    prepared = implementation.prepare(problem)
    for _ in range(1000):
        y = prepared.call()
    assert np.abs(y - problem.x).max() < 1e-3  # an even number of reflections
    assert y is not problem.x


@pytest.mark.parametrize("name", YARDSTICKS)
@pytest.mark.parametrize("case", [*CASES, Case("inference", (40, 3), 1, variant="inplace")])
def test_yardsticks_do_what_they_say(name: str, case: Case) -> None:
    implementation = IMPLEMENTATIONS[name]
    needs_bfloat16(case)
    if implementation.declines(case):
        return
    problem = make_problem(case)
    implementation.load(1)
    prepared = implementation.prepare(problem)
    implementation.verify(problem, prepared, prepared.call())
    for array in prepared.outputs(None).values():
        array.flat[0] += 1
    with pytest.raises(WrongResultError):
        implementation.verify(problem, prepared, None)


def test_every_operation_has_a_yardstick() -> None:
    for operation in ALL_OPERATIONS:
        limit = IMPLEMENTATIONS[LIMITS[operation]]
        assert limit.is_yardstick and not limit.declines(replace(CASE, operation=operation))


def test_a_yardstick_without_its_loop_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="_make"):
        _Trips()


def test_data_sets_are_tables_with_new_results() -> None:
    cases = list_cases(
        operations=STANDARDIZER,
        shapes=[(8, 3), (8, 3, 4)],
        threads=[1],
        dtypes=STORED,
        layouts=LAYOUTS,
        variants=VARIANTS,
        params=DTYPES,
    )
    assert [(case.operation, case.dtype) for case in cases] == list(itertools.product(STANDARDIZER, DTYPES))
    assert {(case.shape, case.variant) for case in cases} == {((8, 3), "fresh")}


@pytest.mark.parametrize("name", ["nbbn", "numpy", "sklearn"])
def test_data_sets_are_right_everywhere(name: str) -> None:
    with Race([name], rounds=2, seconds=0.0) as race:
        for shape in ((1, 5), (40, 6)):
            for operation in STANDARDIZER:
                outcome = race.run(Case(operation, shape, 1)).outcomes[name]
                assert (outcome.status, outcome.reason) == ("timed", "")


def test_masks_and_weights_are_no_activations() -> None:
    masked, weighted = (Case(f"moments+{name}", (8, 3), 1) for name in ("mask", "weights"))
    assert (masked.base, masked.steps, masked.activation) == ("moments", (), None)
    assert (masked.weighting, weighted.weighting) == ("mask", "weights")
    assert (masked.method, replace(masked, operation="moments").method) == (
        "weighted_moments",
        "moments",
    )
    assert (CASE.weighting, make_problem(CASE).weights.size) == ("", 0)
    assert Case.from_dict(masked.to_dict()) == masked


def test_what_is_collected_has_new_results() -> None:
    cases = list_cases(
        operations=STATISTICS,
        shapes=[(40, 3), (PIECES - 1, 3), (8, 3, 4), (1, 3)],
        threads=[1],
        dtypes=STORED,
        variants=VARIANTS,
        params=DTYPES,
    )
    assert {case.variant for case in cases} == {"fresh"}
    assert {(case.dtype, case.params) for case in cases} == {(name, name) for name in DTYPES}
    shapes = {case.shape for case in cases}
    assert shapes == {(40, 3), (PIECES - 1, 3), (8, 3, 4)}  # one value has no variance
    assert {c.shape for c in cases if c.operation == "from_batches"} == {(40, 3)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_is_that_of_padding_or_of_places(layout: str) -> None:
    padded = make_problem(Case("moments+mask", (400, 3, 50), 1, layout=layout))
    lengths = padded.weights.sum(axis=1)
    assert padded.weights.shape == (400, 50)
    assert np.array_equal(padded.weights, np.arange(50) < lengths[:, None])
    assert lengths.min() < 15 and lengths.max() > 45
    places = make_problem(Case("backward+mask", (20, 3, 30, 30), 1, layout=layout))
    assert places.weights.shape == (20, 30, 30)
    for problem in (padded, places):
        assert problem.weights.dtype == np.bool_
        assert abs(problem.weights.mean() - 0.6) < 0.03
        assert problem.count == np.count_nonzero(problem.weights)
        rows = np.moveaxis(problem.x, problem.case.axis, -1)
        assert not rows[~problem.weights].any() and rows[problem.weights].all()


def test_weights_are_between_0_and_1_and_move_nothing() -> None:
    for dtype in DTYPES:
        problem = make_problem(Case("moments+weights", (1000, 3), 1, dtype))
        assert problem.weights.dtype == dtype and problem.weights.shape == (1000,)
        assert 0 < problem.weights.min() < 0.1 and 0.9 < problem.weights.max() < 1
        plain = make_problem(Case("moments", (1000, 3), 1, dtype))
        assert np.array_equal(problem.x, plain.x)


def test_pieces_are_uneven_and_all_of_the_table() -> None:
    for rows in (PIECES, 40, 1000):
        problem = make_problem(Case("from_batches", (rows, 3), 1))
        sizes = [len(piece) for piece in problem.pieces]
        assert len(sizes) == PIECES and min(sizes) > 0
        assert len(set(sizes)) > 2 or rows == PIECES
        assert np.array_equal(np.concatenate(problem.pieces), problem.x)


def test_without_what_it_adds_an_operation_is_a_wrong_result() -> None:
    for operation, plain in STATISTICS.items():
        if operation == "from_batches":  # nothing but another way to the same
            continue
        problem = make_problem(Case(operation, (40, 6), 1))
        changed = replace(problem, case=replace(problem.case, operation=plain), weights=np.empty(0))
        with pytest.raises(WrongResultError, match=r"is off|outputs are"):
            check_outputs(problem, numpy_outputs(changed))


@pytest.mark.parametrize("name", ["nbbn", UNADORNED, "numpy", "torch", "sklearn"])
def test_statistics_are_right_everywhere(name: str) -> None:
    absent = IMPLEMENTATIONS[name].missing()
    if absent:
        pytest.skip(absent)
    lacks = {"torch": {"backward+mask", "from_batches"}, "sklearn": set(STATISTICS)}
    lacks["sklearn"].remove("from_batches")
    cases = [*SEQUENCES, *(case for case in CASES if case.operation in STATISTICS)]
    with Race([name], rounds=1, seconds=0.0) as race:
        for case in cases:
            outcome = race.run(case).outcomes[name]
            skipped = case.operation in lacks.get(name, ())
            assert (outcome.status == "skipped") == skipped, case.label
            assert outcome.status != "failed", f"{case.label}: {outcome.reason}"


def test_plain_is_the_same_without() -> None:
    plain = IMPLEMENTATIONS[UNADORNED]
    assert plain.declines(replace(CASE, operation="moments")) == "moments is plain"
    plain.load(1)
    assert UNADORNED not in plain.versions()
    for operation, without in STATISTICS.items():
        problem = make_problem(Case(operation, (40, 6), 1))
        prepared = plain.prepare(problem)
        result = prepared.call()
        plain.verify(problem, prepared, result)
        bare = replace(problem, case=replace(problem.case, operation=without), weights=np.empty(0))
        check_outputs(bare, prepared.outputs(result))
        if operation.endswith("+mask"):
            masked = IMPLEMENTATIONS["numpy"].prepare(problem)
            with pytest.raises(WrongResultError):
                plain.verify(problem, masked, masked.call())


def test_frozen_layers_are_timed_in_small_calls_alone() -> None:
    frozen = IMPLEMENTATIONS[FROZEN]
    frozen.load(1)
    case = Case("inference", (32, 64), 1)
    for variant in ("fresh", "out"):
        problem = make_problem(replace(case, variant=variant))
        prepared = frozen.prepare(problem)
        result = prepared.call()
        frozen.verify(problem, prepared, result)
        result[0, 0] += 1
        with pytest.raises(WrongResultError):
            frozen.verify(problem, prepared, result)
    for other in ({"shape": (1024, 1024)}, {"shape": (4, 8, 8, 8)}, {"operation": "training"}):
        assert frozen.declines(replace(case, **other))


def test_what_cannot_do_a_case_is_not_started() -> None:
    pytest.importorskip("openvino", reason="it has inference alone")
    case = replace(CASE, operation="backward")
    with Race(["openvino", "read", "nobody"], rounds=1, seconds=0.0) as race:
        outcomes = race.run(case).outcomes
        assert race.versions == {}
    assert outcomes["openvino"].reason == "openvino has no backward"
    assert outcomes["read"].status == "skipped"


def test_importing_nbbn_does_not_import_the_harness() -> None:
    code = "import nbbn, sys; sys.exit(any(m.startswith('nbbn._bench') for m in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ratios_come_back_from_json() -> None:
    outcomes = {
        "nbbn": Outcome(durations=[2.0, 3.0]),
        "copy-affine": Outcome(durations=[1.0], note="plain stores, serial"),
        "torch": Outcome("skipped", "absent"),
    }
    result = Result(CASE, outcomes)
    assert result.ratio_to_limit("nbbn") == 2.5
    assert result.ratio("nbbn", "minimum", to="copy-affine") == 2.0
    assert result.ratio("torch") is None
    lines = summary_lines([result], {})
    assert any("2.50" in line and "plain stores, serial" in line for line in lines)
    assert from_json(as_json([result], Race(outcomes, rounds=1, seconds=0.0))) == [result]


TRAINING = Case("training", (32, 64, 56, 56), 2)


def _result(case: Case, times: dict[str, float], **others: Outcome) -> Result:
    timed = {name: Outcome(durations=[time] * 3) for name, time in times.items()}
    return Result(case, timed | others)


def test_a_condensed_record_has_the_same_ratios() -> None:
    mixed = Case("inference", (8, 3), 1, variant="out", params="float64")
    results = [
        _result(
            TRAINING,
            {"nbbn": 2.0, "torch": 3.0, "two-trip": 1.0},
            numpy=Outcome("failed", "x\nwrong"),
        ),
        _result(mixed, {"nbbn": 2.0, "copy-affine": 1.5}, torch=Outcome("skipped", "no")),
    ]
    results[0].outcomes["nbbn"] = Outcome(durations=[1.0, 2.0, 9.0], note="serial")
    kept = from_json(json.loads(json.dumps(condensed(as_json(results, Race((), rounds=1, seconds=0))))))
    assert [r.case for r in kept] == [TRAINING, mixed]
    assert kept[0].ratio("torch") == 1.5
    assert kept[0].ratio("torch", "minimum") == 3.0
    assert kept[0].ratio_to_limit("nbbn") == 2.0
    assert kept[0].outcomes["nbbn"].note == "serial"
    assert kept[0].outcomes["numpy"].reason == "wrong"
    assert "torch" not in kept[1].outcomes


def test_named_operations_are_measured_on_all_shapes() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument)
    options = ["--quick", "--operations", f"{USUAL_FUSED},moments", "--dtypes", "bfloat16,float32"]
    cases = make_selection(parser.parse_args(options)).cases
    fused, moments = ([case for case in cases if case.operation == name] for name in (USUAL_FUSED, "moments"))
    assert {case.shape for case in fused} == {case.shape for case in moments}
    assert {case.dtype for case in fused} == {"bfloat16", "float32"}
    assert {case.dtype for case in moments} == {"float32"}


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
def test_bad_options_are_told(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert expected in capsys.readouterr().err
