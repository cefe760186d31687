"""One implementation in a process of its own, which times itself when it is told to.

Requests and answers are JSON lines, on standard input and what was standard output. Between two requests the process
is blocked on the pipe and none of its threads runs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from nbbn._bench.libraries import Implementation
from nbbn._bench.problem import WrongResultError
from nbbn._bench.timer import Timer

SETTLE_LIMIT_SECONDS = 0.5
Answer = dict[str, Any]  # fields of an outcome


def settle() -> None:
    """Wait until the threads of this process have stopped spinning, so that others can run."""
    deadline = time.perf_counter() + SETTLE_LIMIT_SECONDS
    while time.perf_counter() < deadline:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(0.001)
        if time.process_time() - used < 0.2 * (time.perf_counter() - start):
            return


class Worker:
    """Answers requests, which are its methods."""

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.timer: Any = None  # of the case

    def answer(self, do: str, **arguments: Any) -> Answer:
        """Do what a request says; whatever goes wrong is part of the answer."""
        try:
            found: Answer = getattr(self, do)(**arguments)
        except NotImplementedError as error:
            found = {"status": "skipped", "reason": str(error)}
        except WrongResultError as error:
            found = {"status": "failed", "reason": f"wrong result: {error}"}
        except Exception:
            found = {"status": "failed", "reason": traceback.format_exc().rstrip()}
        if "status" in found:
            self.release()
        settle()
        return found

    def load(self, threads: int) -> Answer:
        self.implementation.load(threads)
        # The libraries stay: collecting them again for each case took longer than many a race.
        gc.collect()
        gc.freeze()
        return {}

    def prepare(self, case: dict[str, Any]) -> Answer:
        """Make the input, check the first result, calibrate."""
        prepared = self.implementation.ready(case)
        self.timer = Timer(prepared.call)
        gc.collect()
        gc.disable()
        return {"loops": self.timer.loops, "note": prepared.note, "versions": self.implementation.versions()}

    def measure(self) -> Answer:
        return {"durations": [self.timer.measure()]}

    def release(self) -> Answer:
        """Forget the case and its arrays."""
        self.timer = None
        gc.enable()
        gc.collect()
        return {}


def main(registry: str, name: str, threads: str) -> None:
    # A library that prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker(importlib.import_module(registry).IMPLEMENTATIONS[name])
    loaded = worker.answer("load", threads=int(threads))
    with answers:
        for line in sys.stdin:
            answer = loaded or worker.answer(**json.loads(line))
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
