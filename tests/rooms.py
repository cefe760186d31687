"""The private rooms that tests look into, named once; scripts of other processes import this, too."""

import contextlib
import dataclasses
import sys

import numpy as np
import pytest

import nbbn
import nbbn._kernels
from nbbn import _checks as checks
from nbbn._compiler import announce, cache, forks, internals, jit, sources, vectors
from nbbn._compiler import memory as vector_memory
from nbbn._compiler.jit import Step, Variant
from nbbn._engine import known, machine, masks, memory, plan, steps, threads, views, warmup, ways
from nbbn._files import npy, state
from nbbn._kernels import columns, runs, samples, steps_of_columns, steps_of_layers, steps_of_runs, table

__all__ = [
    "Step", "Variant", "announce", "cache", "checks", "columns", "forks", "internals", "jit", "machine", "masks",
    "memory", "npy", "plan", "runs", "samples", "sources", "state", "steps", "steps_of_columns",
    "steps_of_layers", "steps_of_runs", "table", "threads", "vector_memory", "vectors", "views", "warmup",
    "ways",
]  # fmt: skip

needs_jit = pytest.mark.skipif(not jit.is_enabled(), reason="nothing is compiled")


def all_steps():
    """Every compiled step, by its name."""
    inside = f"{nbbn._kernels.__name__}."
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(inside)]
    found = [value for module in modules for value in vars(module).values()]
    return {step.name: step for step in found if isinstance(step, Step)}


def loaded():
    """How many compiled variants this process has loaded from disk."""
    made = [made for step in all_steps().values() for made in step.made]
    return sum(sum(one._cache_hits.values()) for one in made)


# How a step may be run. Of one that has nothing to decide, some of them are the same.
WAYS = {
    "serial": {},
    "parallel": {"parallel": True},
    "streamed": {"streaming": 1},
    "by channel": {"by_channel": True},
    "in groups of one": {"group": 1},
    "in groups of three": {"group": 3},
    "by channel, streamed, parallel": {"by_channel": True, "streaming": 1, "parallel": True},
    "rows asked for": {"ahead": 1},
}


class _Poisoned:
    """numpy, whose new arrays hold no number: what is not written can't be right by what the memory held before."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype=np.float64):
        """An array of NaN, or of -1."""
        found = np.empty(shape, dtype)
        found.fill(np.nan if found.dtype.kind == "f" else -1)
        return found


@contextlib.contextmanager
def way(name):
    """Run all steps in this way, whatever pays."""
    wanted = {"parallel": False, "streaming": 0, "by_channel": False, "ahead": 0, **WAYS[name]}
    real = plan.make_plan

    def decide(view, read, written=None, passes=1, joins=True):
        found = dataclasses.replace(real(view, read, written, passes, joins), **wanted)
        by_channel = found.by_channel and view.runs and passes > 1
        return dataclasses.replace(found, by_channel=by_channel, ahead=found.ahead * (not view.runs))

    threads_used = 2 if wanted["parallel"] else 1
    with pytest.MonkeyPatch.context() as patch, nbbn.num_threads(threads_used):
        patch.setattr(plan, "make_plan", decide)
        patch.setattr(plan, "PARALLEL_FROM", 1)  # there is something to decide
        for module in (steps, ways):
            patch.setattr(module, "np", _Poisoned())
        know_nothing(patch)
        yield


_NEW_CALLS = ways._calls.__wrapped__


def know_nothing(patch):
    """Let no array be known from an earlier call: small ones go the way of all others then."""
    patch.setattr(steps, "way_of", ways.Way)
    patch.setattr(ways, "_calls", _NEW_CALLS)
    patch.setattr(steps, "known_of", lambda *_: None)
    patch.setattr(known, "known_of", lambda *_: None)


@contextlib.contextmanager
def everything_is_large():
    """Threads, one channel after the other, stores past the cache: from the smallest arrays on, where it can be."""
    with pytest.MonkeyPatch.context() as patch, nbbn.num_threads(2):
        patch.setattr(plan, "PARALLEL_FROM", 1)
        patch.setattr(plan, "_SHORTEST_STREAM", 0)
        patch.setattr(plan, "_LONG", 1)
        patch.setattr(machine, "last_level_cache", lambda: 0)
        patch.setattr(plan, "_plan", plan._plan.__wrapped__)  # what was decided before is not kept
        know_nothing(patch)
        yield
