"""Every implementation on every case; a group's first test runs the race, all replay their part.

A slow implementation does not fail, one with a wrong result does.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.harness.cases import Case
from benchmarks.harness.race import Outcome, Race, Result
from benchmarks.harness.shapes import parse_shape


class Replay:
    """A clock for pytest-benchmark whose pairs of readings are recorded durations apart."""

    __name__ = "replay"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, durations: Iterable[float]) -> None:
        """Set the durations that the next pairs of readings are to show."""
        self._readings = chain.from_iterable((0.0, duration) for duration in durations)

    def __call__(self) -> float:
        """Return the next reading in seconds."""
        return next(self._readings)


REPLAY = Replay()


@pytest.fixture
def case(operation: str, shape: str, threads: int, storage: str) -> Case:
    """Return the case that the parameters, plain ones for pytest-benchmark's files, describe."""
    return Case(operation, parse_shape(shape), threads, *storage.split(" "))


@pytest.fixture
def outcome(case: Case, implementation: str, run_once: Callable[[Case], Result]) -> Outcome:
    """Return what the implementation did in the race, which has timed it.

    A fixture, since pytest-benchmark warns of a test that fails before it has used ``benchmark``.
    """
    outcome = run_once(case).outcomes[implementation]
    if outcome.status == "skipped":
        pytest.skip(outcome.reason)
    if outcome.status == "failed":
        pytest.fail(outcome.reason, pytrace=False)
    return outcome


@pytest.mark.benchmark(timer=REPLAY)
def test_batch_norm(outcome: Outcome, benchmark: BenchmarkFixture, race: Race, case: Case, implementation: str) -> None:
    """Report one implementation's part of a race."""
    benchmark.group = case.label
    benchmark.extra_info.update(
        case.to_dict(),
        implementation=implementation,
        loops=outcome.loops,
        median=outcome.median,
        versions=race.versions,
    )
    REPLAY.load(outcome.durations)
    replay: Callable[..., None] = benchmark.pedantic
    replay(_nothing, rounds=len(outcome.durations))


def _nothing() -> None:
    """Stand in for the call, which was timed in its own process."""
