"""One implementation in a process of its own, which times itself when it is told to.

Requests arrive as JSON lines on standard input, answers leave as JSON lines on what was standard
output. Between two requests the process is blocked on the pipe and none of its threads runs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from typing import Any

from nbbn._bench.cases import Case
from nbbn._bench.implementations import IMPLEMENTATIONS, Implementation, UnsupportedError
from nbbn._bench.problem import WrongResultError, make_problem
from nbbn._bench.timer import Timer

SETTLE_LIMIT_SECONDS = 0.5

Answer = dict[str, Any]


def settle() -> None:
    """Wait until the threads of this process have stopped spinning, so that others can run."""
    deadline = time.perf_counter() + SETTLE_LIMIT_SECONDS
    while time.perf_counter() < deadline:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(0.001)
        if time.process_time() - used < 0.2 * (time.perf_counter() - start):
            return


class Worker:
    """Answers the requests ``prepare``, ``measure`` and ``release`` for one implementation."""

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.timer: Timer | None = None

    def answer(self, request: dict[str, Any]) -> Answer:
        """Do what ``request`` says; whatever goes wrong is part of the answer."""
        answer: Answer
        try:
            answer = getattr(self, request.pop("do"))(**request)
        except UnsupportedError as error:
            answer = {"skipped": str(error)}
        except WrongResultError as error:
            answer = {"failed": f"wrong result: {error}"}
        except Exception:
            answer = {"failed": traceback.format_exc().rstrip()}
        if "failed" in answer or "skipped" in answer:
            self.release()
        settle()
        return answer

    def prepare(self, case: dict[str, Any]) -> Answer:
        """Make the input, check the first result, calibrate."""
        problem = make_problem(Case.from_dict(case))
        prepared = self.implementation.prepare(problem)
        self.implementation.verify(problem, prepared, prepared.call())
        del problem
        self.timer = Timer(prepared.call)
        gc.collect()
        gc.disable()
        return {"loops": self.timer.loops, "note": prepared.note}

    def measure(self) -> Answer:
        """Time the call."""
        if self.timer is None:
            return {"failed": "nothing is prepared"}
        return {"seconds": self.timer.measure()}

    def release(self) -> Answer:
        """Forget the case and its arrays."""
        self.timer = None
        gc.enable()
        gc.collect()
        return {}


def load(implementation: Implementation, threads: int) -> Answer:
    """Import the library; return its versions, or why there are none."""
    reason = implementation.missing()
    if reason is not None:
        return {"skipped": reason}
    try:
        implementation.load(threads)
        actual = implementation.threads()
        if actual not in (None, threads):
            return {"failed": f"uses {actual} threads where {threads} were asked for"}
        # The libraries stay: collecting them again for each case took longer than many a race.
        gc.collect()
        gc.freeze()
        return {"versions": implementation.versions()}
    except Exception:
        return {"failed": traceback.format_exc().rstrip()}


def main() -> None:
    """Serve requests until standard input ends."""
    name, threads = sys.argv[1], int(sys.argv[2])
    # A library that prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    implementation = IMPLEMENTATIONS[name]
    worker = Worker(implementation)
    with answers:
        print(json.dumps(load(implementation, threads)), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
