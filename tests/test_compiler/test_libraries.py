"""Compiled code is optimized once: see nbbn/_compiler/libraries.py."""

import pytest
from processes import WORK, run
from rooms import needs_jit

_SCRIPT = """
from numba.core.codegen import CPUCodeLibrary
from rooms import all_steps

optimized = []

def noted(self, original=CPUCodeLibrary._optimize_final_module):
    optimized.append(self.name)
    original(self)

CPUCodeLibrary._optimize_final_module = noted
bn = nbbn.BatchNorm(12)
y = bn(large)  # parallel: its loops are functions of their own
bn.backward(y)
steps = all_steps().values()
made = [one for step in steps for one in step.made]
ours = [name for name in optimized if name != "nrt"]
print(len(made), len(ours), sum(name.endswith(("_serial", "_parallel")) for name in ours))
"""


@needs_jit
@pytest.mark.long
def test_only_whole_steps_are_optimized():
    words = run(WORK + _SCRIPT, env={"NBBN_CACHE_DIR": ""}, timeout=600)
    steps, optimized, named = map(int, words)
    assert steps == optimized == named > 2
