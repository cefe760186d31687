"""The decisions of a call, in words."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from nbbn import _checks
from nbbn._checks import Array
from nbbn._engine import memory, threads
from nbbn._engine.plan import PARALLEL_FROM, Plan, make_plan
from nbbn._engine.views import View, apart, same_memory, view_of

# operation -> how many arrays besides x are read, and how often
_OPERATIONS = {"inference": (0, 1), "training": (0, 2), "moments": (0, 1), "backward": (1, 2)}


def explain(
    x: ArrayLike,
    op: Literal["inference", "training", "moments", "backward"] = "inference",
    *,
    axis: int = 1,
    out: Array | None = None,
) -> str:
    """Explain how a call with ``x`` would run, and why.

    Nothing is computed, compiled or changed: the decisions are those of a call of a `BatchNorm`
    made now, with arrays that lie in memory as ``x`` does.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16
        The input. Only its shape, dtype and place in memory matter.
    op : {"inference", "training", "moments", "backward"}, default "inference"
        The operation; "moments" is that of `batch_moments`, and "backward" the gradient of a
        training forward with a ``grad_y`` that lies in memory as ``x`` does.
    axis : int, default 1
        The channel axis; may be negative.
    out : ndarray, optional
        Where the call would write, of the shape and dtype of ``x``; may be ``x`` itself.

    Returns
    -------
    str
        Several lines, for reading: their wording may change.

    Raises
    ------
    TypeError
        For any other dtype, and for masked arrays.
    ValueError
        For an unknown ``op``, a wrong axis or ``out``, and for ``out`` with "moments".

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> print(nbbn.explain(np.ones((8, 3, 32, 32), np.float32)[:, ::-1]))
    inference of float32 (8, 3, 32, 32), channels along axis 1
    read:    a copy, as strides are negative or zero, or leave gaps within a run
    view:    8 x 3 runs of 1024 values
    order:   one pass
    threads: one, as 24576 values are fewer than 131072
    stores:  through the cache: 24576 values are fewer than 131072
    result:  a new array
    """
    if not isinstance(op, str) or op not in _OPERATIONS:
        names = ", ".join(map(repr, _OPERATIONS))
        raise ValueError(f"op: expected one of {names}, got {op!r}")
    values = _checks.array("x", x, _checks.HALVES)
    index = _checks.axis(axis, values.ndim)
    target = None if out is None else _checks.out("out", out, values)
    if op == "moments" and target is not None:
        raise ValueError("out: expected None for op='moments', got an array")
    head = f"{op} of {values.dtype.name} {values.shape}, channels along axis {index}"
    if values.size == 0:
        return f"{head}\nnothing runs: there are no values"
    lines = _lines(values, op, index, target)
    return "\n".join([head, *(f"{name + ':':<8} {text}" for name, text in lines.items())])


def _lines(x: Array, op: str, index: int, out: Array | None) -> dict[str, str]:
    more, passes = _OPERATIONS[op]
    source, read = x, "in place"
    if view_of(index, False, x) is None:
        source = np.empty_like(x)  # stands for the copy; its pages are never touched
        read = "a copy, as strides are negative or zero, or leave gaps within a run"
        if not x.flags.aligned:
            read = "a copy, as x is not aligned"
    inputs = [source] * (1 + more)
    target, why_new = (None, None) if op == "moments" else _target(source, x, index, out, inputs)
    view = view_of(index, False, *inputs, *([] if target is None else [target]))
    assert view is not None, f"no view of {source.shape} with strides {source.strides}"
    plan = make_plan(view, inputs, target, passes)
    lines = {"read": read, "view": _view(view), "order": _order(plan, passes), "threads": _threads_line(view.size)}
    if target is not None:
        way = "past the cache, as " if plan.streaming else "through the cache: "
        lines["stores"] = way + plan.stores
        if why_new:
            lines["write"] = why_new
        lines["result"] = _result(x, out)
    return lines


def _order(plan: Plan, passes: int) -> str:
    if plan.by_channel:
        return f"one channel after the other: {plan.order}"
    return "one pass" if passes < 2 else f"two passes: {plan.order}"


def _target(source: Array, x: Array, index: int, out: Array | None, inputs: list[Array]) -> tuple[Array, str | None]:
    """Return an array that lies as what the kernel writes to, and why that is not ``out``."""
    if out is None:
        return np.empty_like(source), None
    if source is x and not apart(out, x):
        return np.empty_like(source), "to a new array, copied to out, which overlaps x"
    if view_of(index, False, *inputs, out) is None:
        return np.empty_like(source), "to a new array, copied to out, which is laid out otherwise"
    return out, None


def _view(view: View) -> str:
    outer, rows, row = view.shape
    if view.runs:
        return f"{outer} x {rows} runs of {row} values"
    text = f"a matrix of {outer * rows} rows and {row} columns"
    return text if view.inner == 1 else f"{text}, {view.inner} a channel"


def _threads_line(size: int) -> str:
    if size < PARALLEL_FROM:
        return f"one, as {size} values are fewer than {PARALLEL_FROM}"
    number = threads.get_num_threads()
    reason = threads.why_serial(number) or threads.problem_of_layer()
    if reason is not None:
        return f"one, as {reason}"
    layer = threads.loaded_threading_layer()
    where = "the threading layer that numba will load" if layer is None else layer
    return f"{number} on {where}, unless another call is in a parallel region"


def _result(x: Array, out: Array | None) -> str:
    if out is not None:
        return "x itself" if same_memory(out, x) else "out"
    if memory.is_pooled(x.nbytes):
        return f"a new array of {x.nbytes} bytes with memory from the pool"
    return "a new array"
