"""What the first call of each step compiles: how many functions, and how much processor time that takes.

``python -m benchmarks.compiled [--list]``: each call in a new process without a cache; ``--list``
names the functions too, those that others wait for after them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

_CALL = """
import sys, time
import numpy as np
import nbbn
from numba.core import event

class Names(event.Listener):
    def __init__(self):
        self.started, self.ended = [], []
    def on_start(self, found):
        self.started.append(time.process_time())
    def on_end(self, found):
        function, seconds = found.data["dispatcher"].py_func, time.process_time() - self.started.pop()
        name = f"{{function.__module__}}.{{function.__qualname__}}"
        self.ended.append(f"{{seconds:8.2f}}  {{'  ' * len(self.started)}}{{name}}")

x = np.random.default_rng(0).standard_normal({shape}).astype(np.{dtype})
bn = nbbn.BatchNorm(x.shape[1])
{before}
names, started = Names(), time.process_time()
with event.install_listener("numba:compile", names):
    {call}
print(len(names.ended), time.process_time() - started)
print("\\n".join(names.ended))
"""

_COLUMNS, _RUNS = (32, 64), (32, 64, 56, 56)
_CALLS = {
    "inference": ("", "bn.eval()(x)"),
    "training forward": ("", "bn(x)"),
    "backward after it": ("bn(x)", "bn.backward(x)"),
    "batch_moments": ("", "nbbn.batch_moments(x)"),
}
_CASES = [(name, shape, "float32", *call) for shape in (_COLUMNS, _RUNS) for name, call in _CALLS.items()]
_CASES.append(("fit_transform", (1000, 4), "float64", "", "nbbn.Standardizer().fit_transform(x)"))


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="name the functions")
    arguments = parser.parse_args()
    print(f"{'first call':<20}{'x':<28}{'functions':>9}{'CPU seconds':>13}")
    for name, shape, dtype, before, call in _CASES:
        code = _CALL.format(shape=shape, dtype=dtype, before=before, call=call)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NBBN_CACHE_DIR": ""},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        first, *functions = done.stdout.splitlines()
        count, seconds = first.split()
        print(f"{name:<20}{f'{shape} {dtype}':<28}{count:>9}{float(seconds):>13.1f}", flush=True)
        if arguments.list:
            print("\n".join(functions))


if __name__ == "__main__":
    main()
