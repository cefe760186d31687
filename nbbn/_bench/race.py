"""The engine: implementations in processes of their own, timed in turn, round by round."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nbbn._bench.cases import Case
from nbbn._bench.implementations import BASELINE, IMPLEMENTATIONS, LIMITS

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
MIN_ROUNDS = 5
ANSWER_LIMIT_SECONDS = 600.0


class WorkerDiedError(Exception):
    """A worker ended, or was ended because it did not answer."""


@dataclass
class Outcome:
    """What one implementation did in one race: ``durations`` are seconds per call, by round.

    ``note`` says which of its ways it took, where it has several. ``kept`` has what a condensed
    record keeps of the durations, median and minimum.
    """

    status: str = "timed"
    reason: str = ""
    loops: int = 1
    durations: list[float] = field(default_factory=list)
    note: str = ""
    kept: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median of the durations."""
        return statistics.median(self.durations) if self.durations else self.kept["median"]

    @property
    def minimum(self) -> float:
        """The least of the durations."""
        return min(self.durations) if self.durations else self.kept["minimum"]


@dataclass
class Result:
    """One race: what each implementation did, in the order of the registry."""

    case: Case
    outcomes: dict[str, Outcome]

    def ratio_to(self, name: str, reference: str, statistic: str = "median") -> float | None:
        """Return the time of ``name`` over that of ``reference``, or None where one has none."""
        pair = [self.outcomes.get(each) for each in (name, reference)]
        times = [getattr(o, statistic) for o in pair if o is not None and o.status == "timed"]
        return float(times[0] / times[1]) if len(times) == 2 else None

    def ratio(self, peer: str, statistic: str = "median") -> float | None:
        """Return the time of ``peer`` over that of nbbn: above 1, nbbn is faster."""
        return self.ratio_to(peer, BASELINE, statistic)

    def ratio_to_limit(self, name: str, statistic: str = "median") -> float | None:
        """Return the time of ``name`` over that of the operation's yardstick."""
        return self.ratio_to(name, LIMITS[self.case.operation], statistic)


class Worker:
    """The parent's end of `nbbn._bench.worker`; its library loads while others are started."""

    def __init__(self, implementation: str, threads: int) -> None:
        # The nbbn that runs here, and not one in the current folder (-P).
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        warnings = [f"-W{option}" for option in sys.warnoptions]
        command = [sys.executable, "-P", *warnings, "-m", "nbbn._bench.worker"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [*command, implementation, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )

    def greet(self) -> dict[str, Any]:
        """Wait until the library is loaded; return its versions, or why there are none.

        Raises
        ------
        WorkerDiedError
            If the process ended instead.
        """
        return self._receive()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises
        ------
        WorkerDiedError
            If there is none.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watchdog = threading.Timer(ANSWER_LIMIT_SECONDS, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = self._process.wait()
        self._errors.seek(0)
        last_words = self._errors.read()[-2000:].decode(errors="replace").strip()
        self.close()
        raise WorkerDiedError(f"the worker ended with status {status}\n{last_words}".strip())

    def close(self) -> None:
        """End the process; closing twice is allowed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Race:
    """Runs races, and keeps workers from one to the next while the thread count stays.

    A race makes up to ``rounds`` rounds; after the fifth it ends once ``seconds`` have passed.
    """

    def __init__(self, implementations: Iterable[str], *, rounds: int, seconds: float) -> None:
        self.implementations = tuple(implementations)
        self.rounds = rounds
        self.seconds = seconds
        self.versions: dict[str, str] = {}
        self._threads = 0
        self._workers: dict[str, Worker] = {}
        self._absent: dict[str, Outcome] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        while self._workers:
            self._workers.popitem()[1].close()
        self._absent.clear()

    def run(self, case: Case) -> Result:
        """Check and time every implementation on ``case``."""
        if case.threads != self._threads:
            self.close()
            self._threads = case.threads
        result = Result(case, {name: Outcome() for name in self.implementations})
        declined = {name: self._decline(name, case) for name in self.implementations}
        self._start([name for name, answer in declined.items() if answer is None])
        for name, outcome in result.outcomes.items():
            answer = declined[name] or self._is_absent(name)
            answer = answer or self._ask(name, "prepare", case=case.to_dict())
            self._note(outcome, answer)
            outcome.loops, outcome.note = answer.get("loops", 1), answer.get("note", "")
        self._run_rounds(result)
        for name, outcome in result.outcomes.items():
            if outcome.status == "timed":
                self._ask(name, "release")
        return result

    def _run_rounds(self, result: Result) -> None:
        start = time.monotonic()
        least = min(MIN_ROUNDS, self.rounds)
        for number in range(self.rounds):
            racers = [name for name, o in result.outcomes.items() if o.status == "timed"]
            if not racers or (number >= least and time.monotonic() - start > self.seconds):
                return
            # Whoever always ran after the same neighbour would always find the same caches.
            first = number % len(racers)
            for name in racers[first:] + racers[:first]:
                outcome = result.outcomes[name]
                answer = self._ask(name, "measure")
                self._note(outcome, answer)
                if outcome.status == "timed":
                    outcome.durations.append(answer["seconds"])

    @staticmethod
    def _note(outcome: Outcome, answer: dict[str, Any]) -> None:
        for status in ("skipped", "failed"):
            if status in answer:
                outcome.status, outcome.reason = status, answer[status]

    def _decline(self, name: str, case: Case) -> dict[str, Any] | None:
        known = IMPLEMENTATIONS.get(name)
        reason = known.declines(case) if known is not None else None
        return {"skipped": reason} if reason is not None else None

    def _start(self, names: Iterable[str]) -> None:
        """Start the workers of ``names`` that do not run, all at a time: loading takes seconds."""
        new = [name for name in names if name not in self._workers and name not in self._absent]
        for name in new:
            self._workers[name] = Worker(name, self._threads)
        for name in new:
            try:
                greeting = self._workers[name].greet()
            except WorkerDiedError as error:
                greeting = {"failed": str(error)}
            if "versions" in greeting:
                self.versions |= greeting["versions"]
                continue
            self._workers.pop(name).close()
            self._absent[name] = Outcome()
            self._note(self._absent[name], greeting)

    def _is_absent(self, name: str) -> dict[str, Any] | None:
        """Return why the implementation could not be started, or None."""
        outcome = self._absent.get(name)
        return None if outcome is None else {outcome.status: outcome.reason}

    def _ask(self, name: str, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self._workers[name].ask(do, **arguments)
        except WorkerDiedError as error:
            del self._workers[name]
            return {"failed": str(error)}
