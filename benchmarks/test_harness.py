"""The harness itself: it has to reject wrong results, and to report what was measured."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.test_batch_norm import Replay
from nbbn._bench.cases import (
    DTYPES,
    FUSED,
    LAYOUTS,
    OPERATIONS,
    STANDARDIZER,
    STORED,
    VARIANTS,
    Case,
    list_cases,
)
from nbbn._bench.implementations import IMPLEMENTATIONS, LIMITS
from nbbn._bench.problem import (
    TOLERANCE,
    Problem,
    WrongResultError,
    check_outputs,
    make_problem,
)
from nbbn._bench.race import Outcome, Race, Result, Worker, WorkerDiedError
from nbbn._bench.report import as_json, format_seconds, from_json, summary_lines
from nbbn._bench.shapes import expand_shapes, parse_shape

CASES = list_cases(
    operations=(*OPERATIONS, *FUSED, *STANDARDIZER),
    shapes=[(8, 20, 3, 5), (40, 6)],
    threads=[1],
    dtypes=STORED,
    layouts=LAYOUTS,
    variants=VARIANTS,
)
CASE = Case("inference", (4, 3, 2), 1)


def needs_bfloat16(case: Case) -> None:
    if case.dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="it has bfloat16")


def numpy_outputs(problem: Problem) -> dict[str, np.ndarray]:
    implementation = IMPLEMENTATIONS["numpy"]
    implementation.load(1)
    prepared = implementation.prepare(problem)
    return prepared.outputs(prepared.call())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
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
    with pytest.raises(WorkerDiedError, match="KeyError: 'nobody'"):
        Worker("nobody", 1).greet()
    with Race(["nobody", "numpy"], rounds=1, seconds=0.0) as race:
        outcomes = race.run(CASE).outcomes
    assert outcomes["nobody"].status == "failed"
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
        entry["implementation"]: entry
        for entry in as_json([result], Race(outcomes, rounds=3, seconds=1.0))["results"]
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
    cases = list_cases(
        operations=OPERATIONS, shapes=[(8, 3)], threads=[1], variants=VARIANTS, params=DTYPES
    )
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
        ("inference+relu", "float16", "out"),
        ("inference+residual+relu", "float16", "out"),
        ("inference+hard_swish", "float16", "out"),
    ]
    assert {case.params for case in cases} == {"float32"}
    assert cases[0].storage == "float16 out"
    problem = make_problem(cases[2])
    assert (problem.x.dtype, problem.result_dtype) == (np.uint8, np.float32)


def test_a_step_that_is_left_out_is_a_wrong_result() -> None:
    for operation in FUSED:
        problem = make_problem(Case(operation, (40, 6), 1))
        plain = make_problem(Case(operation.partition("+")[0], (40, 6), 1))
        with pytest.raises(WrongResultError, match="y is off"):
            check_outputs(problem, numpy_outputs(plain))


@pytest.mark.parametrize(
    "name", [n for n in IMPLEMENTATIONS if not IMPLEMENTATIONS[n].is_yardstick]
)
def test_fused_steps_and_small_types_are_right_everywhere(name: str) -> None:
    cases = [
        case
        for case in CASES
        if (case.steps or case.dtype not in DTYPES)
        and case.dtype != "float64"
        and case.variant == "out"
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


@pytest.mark.parametrize("name", [n for n in IMPLEMENTATIONS if IMPLEMENTATIONS[n].is_yardstick])
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
    for operation in (*OPERATIONS, *FUSED, *STANDARDIZER):
        limit = IMPLEMENTATIONS[LIMITS[operation]]
        assert limit.is_yardstick and not limit.declines(replace(CASE, operation=operation))


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
    assert [(case.operation, case.dtype) for case in cases] == list(
        itertools.product(STANDARDIZER, DTYPES)
    )
    assert {(case.shape, case.variant) for case in cases} == {((8, 3), "fresh")}


@pytest.mark.parametrize("name", ["nbbn", "numpy", "sklearn"])
def test_data_sets_are_right_everywhere(name: str) -> None:
    with Race([name], rounds=2, seconds=0.0) as race:
        for shape in ((1, 5), (40, 6)):
            for operation in STANDARDIZER:
                outcome = race.run(Case(operation, shape, 1)).outcomes[name]
                assert (outcome.status, outcome.reason) == ("timed", "")


def test_what_cannot_do_a_case_is_not_started() -> None:
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
    assert result.ratio_to("nbbn", "copy-affine", "minimum") == 2.0
    assert result.ratio("torch") is None
    lines = summary_lines([result], {})
    assert any("2.50" in line and "plain stores, serial" in line for line in lines)
    assert from_json(as_json([result], Race(outcomes, rounds=1, seconds=0.0))) == [result]
