"""Which kernel will run, and why: the decisions of a call, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks, _dispatch, _jit, _plain, _pool, _steps, _threads
from nbbn._layout import Layout

Array = NDArray[Any]
Line = tuple[str, str]

# operation -> the operation of the dispatch table, how many arrays besides x are read
_OPERATIONS = {
    "inference": ("normalize", 0),
    "training": ("train", 0),
    "moments": ("moments", 0),
    "backward": ("backward", 1),
}
_PARTS = {"train": ("moments", "normalize"), "backward": ("gradient sums",)}
_LAST = {"train": "normalize", "backward": "input gradient"}  # of two passes, the one that writes


def explain(x: Any, op: str = "inference", *, axis: int = 1, out: Any = None) -> str:
    """Tell which kernel a call with ``x`` would run, and why.

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
    plain:   no, as x is not C-contiguous
    read:    a copy, as strides are negative or zero, or leave gaps within a run
    layout:  channels first, 8 x 3 runs of 1024 values
    kernel:  channels first
    threads: one, as 24576 values are fewer than 131072
    stores:  through the cache: all of it fits three quarters of the last-level cache
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
    plan = _plain.make_plan(values.shape, index)
    reason = _why_not_plain(values, op, target, plan)
    if plan is not None and reason is None:
        lines = _plain_lines(values, op, target, plan)
    else:
        lines = [("plain", f"no, as {reason}"), *_general_lines(values, op, index, target)]
    if op != "moments":
        lines.append(("result", _result(values, target)))
    return "\n".join([head, *(f"{name + ':':<8} {text}" for name, text in lines)])


def _why_not_plain(x: Array, op: str, out: Array | None, plan: _plain.Plan | None) -> str | None:
    """Return why it is not one call of a kernel that looks at its arguments itself, or None."""
    if plan is None:
        return "there is no plan for it" if _jit.is_enabled() else "NUMBA_DISABLE_JIT is set"
    if x.itemsize < 4:
        return f"x is of {x.dtype.name}"
    for name, array in (("x", x), ("out", out)):
        if array is None:
            continue
        if not array.flags.c_contiguous:
            return f"{name} is not C-contiguous"
        if not array.flags.aligned:
            return f"{name} is not aligned"
    if out is not None and not _steps._apart(out, x):
        return "out overlaps x in part"
    if op in ("training", "backward") and plan.parallel and _dispatch.in_two_passes(plan.layout):
        return "it takes two passes"
    return None


def _plain_lines(x: Array, op: str, out: Array | None, plan: _plain.Plan) -> list[Line]:
    layout, (operation, more) = plan.layout, _OPERATIONS[op]
    if operation in _PARTS:
        kernel = "channel by channel" if layout.channels_first else "two passes"
    else:
        kernel = _kernel(operation, layout)
    lines = [
        ("plain", "yes: one call of a kernel that compares shapes, strides and places itself"),
        ("layout", _layout(layout)),
        ("kernel", kernel),
        ("threads", _threads_line(x.size)),
    ]
    if op != "moments":
        target = np.empty_like(x) if out is None else out
        stores = "through the cache: it is small"
        if plan.parallel:
            stores = _stores(operation, layout, target, [x] * (1 + more))
        lines.append(("stores", stores))
    return lines


def _general_lines(x: Array, op: str, index: int, out: Array | None) -> list[Line]:
    operation, more = _OPERATIONS[op]
    source, read = x, "in place"
    if _steps._layout(index, x) is None:
        source = np.empty_like(x)  # stands for the copy; its pages are never touched
        read = "a copy, as strides are negative or zero, or leave gaps within a run"
        if not x.flags.aligned:
            read = "a copy, as x is not aligned"
    inputs = [source] * (1 + more)
    target, written = _target(source, x, index, out, more)
    arrays = inputs if op == "moments" else [*inputs, target]
    layout = _steps._certain(index, *arrays)
    lines = [
        ("read", read),
        ("layout", _layout(layout)),
        ("kernel", _kernel(operation, layout)),
        ("threads", _threads_line(x.size)),
    ]
    if op != "moments":
        lines.append(("stores", _stores(_writing(operation, layout), layout, target, inputs)))
    if written:
        lines.append(("write", written))
    return lines


def _stores(operation: str, layout: Layout, target: Array, inputs: list[Array]) -> str:
    reason = _dispatch.why_through_cache(operation, layout, target, *inputs)
    return (
        "past the cache, as it does not fit" if reason is None else f"through the cache: {reason}"
    )


def _target(
    source: Array, x: Array, index: int, out: Array | None, more: int
) -> tuple[Array, str | None]:
    """Return an array that lies as what the kernel writes to, and why that is not ``out``."""
    if out is None:
        return np.empty_like(source), None
    if source is x and not _steps._apart(out, x):
        return np.empty_like(source), "to a new array, copied to out, which overlaps x"
    if _steps._layout(index, *[source] * (1 + more), out) is None:
        return np.empty_like(source), "to a new array, copied to out, which is laid out otherwise"
    return out, None


def _writing(operation: str, layout: Layout) -> str:
    """Return the step that writes."""
    if operation in _LAST and _dispatch.choose(operation, layout).name == "two passes":
        return _LAST[operation]
    return operation


def _layout(layout: Layout) -> str:
    if layout.channels_first:
        return f"channels first, {layout.outer} x {layout.channels} runs of {layout.inner} values"
    columns = layout.channels * layout.inner
    text = f"columns, a matrix of {layout.count // layout.inner} rows and {columns} columns"
    if layout.inner > 1:
        text += f", {layout.inner} a channel"
    if layout.repeats > 1:
        text += f", {layout.repeats} rows read as one"
    return text


def _kernel(operation: str, layout: Layout) -> str:
    *declined, taken = _dispatch.explain(operation, layout)
    if taken == "two passes":
        parts = (f"{part} {_kernel(part, layout)}" for part in _PARTS[operation])
        taken = f"two passes ({', then '.join(parts)})"
    return "; ".join([taken, *declined])


def _threads_line(size: int) -> str:
    if not _dispatch.is_large(size):
        return f"one, as {size} values are fewer than {_dispatch.PARALLEL_FROM}"
    threads = _threads.get_num_threads()
    reason = _threads.why_serial(threads) or _threads.problem_of_layer()
    if reason is not None:
        return f"one, as {reason}"
    layer = _threads.loaded_threading_layer()
    where = "the threading layer that numba will load" if layer is None else layer
    return f"{threads} on {where}, unless another call is in a parallel region"


def _result(x: Array, out: Array | None) -> str:
    if out is not None:
        return "x itself" if _steps._same_view(out, x) else "out"
    if _pool.is_pooled(x.nbytes):
        return f"a new array of {x.nbytes} bytes with memory from the pool"
    return "a new array"
