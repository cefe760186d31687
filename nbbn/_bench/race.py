"""The engine: implementations in processes of their own, timed in turn, round by round."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

BASELINE = "nbbn"  # what every other one is compared with
MIN_ROUNDS = 5
ANSWER_LIMIT_SECONDS = 600.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Outcome:
    """What one implementation did in one race: ``durations`` are seconds per call, by round."""

    status: str = "timed"  # or skipped, or failed
    reason: str = ""
    loops: int = 1
    durations: list[float] = field(default_factory=list)
    note: str = ""  # which of its ways it took, where it has several

    @property
    def median(self) -> float:
        return statistics.median(self.durations)

    @property
    def minimum(self) -> float:
        return min(self.durations)

    @property
    def cause(self) -> str:
        """The last line of the reason: a whole traceback would carry this machine's paths."""
        return self.reason.strip().rpartition("\n")[2]


@dataclass
class Result:
    """One race: what each implementation did, in the order of the registry."""

    case: Any
    outcomes: dict[str, Outcome]

    @property
    def timed(self) -> dict[str, Outcome]:
        return {name: outcome for name, outcome in self.outcomes.items() if outcome.status == "timed"}

    def ratio(self, name: str, statistic: str = "median", *, to: str = BASELINE) -> float | None:
        """Return the time of ``name`` over that of another one, or None where one has none."""
        first, second = self.timed.get(name), self.timed.get(to)
        return float(getattr(first, statistic) / getattr(second, statistic)) if first and second else None

    def ratio_to_limit(self, name: str, statistic: str = "median") -> float | None:
        """Return the time of ``name`` over that of the operation's yardstick."""
        return self.ratio(name, statistic, to=self.case.limit)


class Worker:
    """The parent's end of `nbbn._bench.worker`; its library loads while others are started."""

    def __init__(self, registry: str, implementation: str, threads: int) -> None:
        # The nbbn that runs here, and not one in the current folder (-P).
        modules = [sys.modules[name.partition(".")[0]] for name in (__name__, registry)]
        paths = [str(Path(str(module.__file__)).parents[1]) for module in modules]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        command = [sys.executable, "-P", *(f"-W{option}" for option in sys.warnoptions), "-m", "nbbn._bench.worker"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [*command, registry, implementation, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict.fromkeys(_THREADS, str(threads)),
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return its answer: fields of an outcome, which has failed where there is no answer."""
        pipes: Any = self.process
        with suppress(BrokenPipeError):
            pipes.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            pipes.stdin.flush()
        watchdog = threading.Timer(ANSWER_LIMIT_SECONDS, self.process.kill)
        watchdog.start()
        line = pipes.stdout.readline()
        watchdog.cancel()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        self._errors.seek(0)
        last_words = self._errors.read()[-2000:].decode(errors="replace").strip()
        return {"status": "failed", "reason": f"the worker ended with status {status}\n{last_words}".strip()}

    def close(self) -> None:
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self._errors.close()


class Race(AbstractContextManager["Race"]):
    """Runs races, and keeps workers from one to the next while the thread count stays.

    A race makes up to ``rounds`` rounds; after the fifth it ends once ``seconds`` have passed.
    """

    registry: ClassVar[str] = "nbbn._bench.libraries"

    def __init__(self, implementations: Iterable[str], *, rounds: int, seconds: float) -> None:
        self.known = importlib.import_module(self.registry).IMPLEMENTATIONS
        self.implementations = tuple(implementations)
        self.rounds, self.seconds = rounds, seconds
        self.versions: dict[str, str] = {}
        self._threads = 0
        self._workers: dict[str, Worker] = {}

    def close(self, *error: object) -> None:
        while self._workers:
            self._workers.popitem()[1].close()

    __exit__ = close

    def run(self, case: Any) -> Result:
        """Check and time every implementation on ``case``."""
        if case.threads != self._threads:
            self.close()
            self._threads = case.threads
        result = Result(case, {name: Outcome() for name in self.implementations})
        for name, outcome in result.outcomes.items():
            known = self.known.get(name)
            if reason := known and (known.missing() or known.declines(case)):
                outcome.status, outcome.reason = "skipped", reason
        new = [name for name in result.timed if name not in self._workers]
        # all at a time: loading takes seconds
        self._workers |= {name: Worker(self.registry, name, self._threads) for name in new}
        for name in result.timed:
            self._ask(result, name, "prepare", case=vars(case))
        start = time.monotonic()
        for number in range(self.rounds):
            racers = list(result.timed)
            if not racers or (number >= MIN_ROUNDS and time.monotonic() - start > self.seconds):
                break
            # Whoever always ran after the same neighbour would always find the same caches.
            first = number % len(racers)
            for name in racers[first:] + racers[:first]:
                self._ask(result, name, "measure")
        for name in result.timed:
            self._ask(result, name, "release")
        return result

    def _ask(self, result: Result, name: str, do: str, **arguments: Any) -> None:
        """Have a worker do something, and keep what it answers."""
        answer, outcome = self._workers[name].ask(do, **arguments), result.outcomes[name]
        self.versions |= answer.pop("versions", {})
        outcome.durations += answer.pop("durations", [])
        vars(outcome).update(answer)
        if self._workers[name].process.returncode is not None:  # it has ended
            self._workers.pop(name).close()
