"""pytest's side of the benchmarks: options, one race a group, the summary table."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.cases import Case
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import Selection, add_options, make_selection
from benchmarks.harness.race import Race, Result
from benchmarks.harness.report import summary_lines

_RESULTS = pytest.StashKey[dict[Case, Result]]()
_VERSIONS = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `benchmarks.compare` has, too."""
    add_options(parser.getgroup("races", "nbbn's benchmarks").addoption)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect benchmarks only where they are named on the command line."""
    here = Path(__file__).resolve().parent
    start = config.invocation_params.dir
    named = ((start / argument.partition("::")[0]).resolve() for argument in config.args)
    if any(path.is_relative_to(here) for path in named):
        return None
    return collection_path.resolve().is_relative_to(here) or None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test its case and its implementation, a group's tests in a row."""
    names = ("operation", "shape", "threads", "storage", "implementation")
    if not set(names) <= set(metafunc.fixturenames):
        return
    selection = make_selection(metafunc.config.option)
    parameters = [
        pytest.param(*_case_parameters(case), implementation, id=_test_id(case, implementation))
        for case in selection.cases
        for implementation in selection.implementations
    ]
    metafunc.parametrize(names, parameters)


def _case_parameters(case: Case) -> tuple[str, str, int, str]:
    shape = "x".join(map(str, case.shape))
    storage = f"{case.dtype} {case.layout} {case.variant} {case.params}"
    return case.operation, shape, case.threads, storage


def _test_id(case: Case, implementation: str) -> str:
    operation, shape, threads, _ = _case_parameters(case)
    storage = case.storage.replace(" ", "-")
    return "-".join(filter(None, (operation, shape, f"{threads}t", storage, implementation)))


@pytest.fixture(scope="session")
def selection(pytestconfig: pytest.Config) -> Selection:
    """Return what the options ask for; with --benchmark-disable, each result is checked only."""
    selection = make_selection(pytestconfig.option)
    if pytestconfig.getoption("benchmark_disable"):
        return replace(selection, rounds=1)
    return selection


@pytest.fixture(scope="session")
def race(pytestconfig: pytest.Config, selection: Selection) -> Iterator[Race]:
    """Yield the engine, and end its processes after the last test."""
    with Race(selection.implementations, rounds=selection.rounds, seconds=selection.seconds) as race:
        pytestconfig.stash[_VERSIONS] = race.versions
        yield race


@pytest.fixture(scope="session")
def run_once(pytestconfig: pytest.Config, race: Race) -> Callable[[Case], Result]:
    """Return a function that races the first time it sees a case, and remembers the result."""
    results = pytestconfig.stash.setdefault(_RESULTS, {})

    def run(case: Case) -> Result:
        if case not in results:
            results[case] = race.run(case)
        return results[case]

    return run


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """Replace pytest-benchmark's description of the machine, which holds the host's name."""
    return describe_machine()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the ratios after pytest-benchmark's own tables."""
    results = config.stash.get(_RESULTS, {})
    if results:
        terminalreporter.section("peers beside nbbn")
        for line in summary_lines(list(results.values()), config.stash.get(_VERSIONS, {})):
            terminalreporter.write_line(line)
