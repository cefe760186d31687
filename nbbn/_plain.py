"""Steps on plain arrays: a plan remembered by shape, and one call of a kernel that checks the rest.

Every function here returns `REFUSED` (or None) where its arguments are not for this way: then
nothing has been written, and the general way (`nbbn._steps`) does it or says what is wrong.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _dispatch, _threads
from nbbn._checks import PLAIN_DTYPES
from nbbn._jit import PLAIN, Fused, PlainKernel, is_enabled
from nbbn._layout import Layout, describe
from nbbn.kernels import plain
from nbbn.kernels.table import STATISTICS_ROWS

Array = NDArray[Any]
View = tuple[int | None, ...]

REFUSED = plain.REFUSED
OVERWRITTEN = plain.OVERWRITTEN  # as a token: x was, by its own y
ANY = -1  # as a token: x need not be looked at
_MOST_PLANS = 64  # shapes that a layer remembers
_ALL = 4096  # values up to which a checksum is taken of all of them
_SAMPLES = 256  # ... and of how many of more, about
_FLOATS = (np.float32, np.float64)
_FLOAT32, _FLOAT64 = PLAIN_DTYPES


@dataclass(frozen=True, slots=True)
class Plan:
    """How contiguous arrays of one shape are read."""

    shape: tuple[int, ...]
    channels: int
    layout: Layout
    step: int  # of the values that a checksum is taken of
    parallel: bool  # whether it is large enough
    direct: bool  # whether it is neither that, nor of other than two dimensions
    views: tuple[View, View]  # what the serial and the parallel kernels take: see there


@functools.lru_cache(maxsize=1024)
def make_plan(shape: tuple[int, ...], index: int) -> Plan | None:
    """Return the plan for ``shape``; None where there is nothing to do, or nothing compiled."""
    size = math.prod(shape)
    if size == 0 or not is_enabled():
        return None
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    layout = describe(shape, index, 1, strides, strides, strides)
    if layout is None:
        return None
    view: View = layout.outer, layout.channels, layout.inner
    if layout.channels_first:
        view = 1, *view, None, None
    else:
        view = None, *view, layout.repeats, layout.tail
    views = (1, None, *view), (None, 1, *view)
    parallel = _dispatch.is_large(size)
    direct = len(shape) == 2 and not parallel
    return Plan(shape, layout.channels, layout, sample_step(size), parallel, direct, views)


class Plans(dict[tuple[int, ...], Plan | None]):
    """How a layer reads contiguous arrays, by their shape: made when first asked for."""

    def __init__(self, num_features: int, axis: int) -> None:
        super().__init__()
        self._num_features, self._axis = num_features, axis

    def __missing__(self, shape: tuple[int, ...]) -> Plan | None:
        """Remember the plan for ``shape``; None for a wrong one."""
        index = self._axis % len(shape) if shape else 0
        if not -len(shape) <= self._axis < len(shape) or shape[index] != self._num_features:
            return None
        if len(self) >= _MOST_PLANS:
            self.clear()
        plan = self[shape] = make_plan(shape, index)
        return plan


@functools.lru_cache(maxsize=1024)
def sample_step(size: int) -> int:
    """Return 1 for few values, else a step coprime to the size: it falls in step with no axis."""
    if size <= _ALL:
        return 1
    step = size // _SAMPLES
    while math.gcd(step, size) > 1:
        step += 1
    return step


def infer(
    x: Array,
    y: Array,
    table: Array,
    eps: float,
    plan: Plan,
    residual: Array | None = None,
    tag: tuple[float, ...] = (),
    slope: float = 0.0,
) -> int:
    """Write y; see `nbbn.kernels.plain.infer`."""
    if not _are_floats(x.dtype, y, residual):
        return REFUSED
    if plan.direct:
        rest = residual, tag, slope
        try:
            token: int = plain.infer.call(x, y, table, eps, 0, plan.step, *rest, *plan.views[0])
        except TypeError:
            return _run(plain.infer, plan, (x, y), table, eps, 0, plan.step, *rest)
        return token
    streaming = 0
    read = (x,) if residual is None else (x, residual)
    if plan.parallel:
        streaming = _dispatch.is_streamed("normalize", plan.layout, y, *read)
    if residual is not None and len(plan.shape) != 2:
        flattened = as_matrices(plan.shape, residual)
        if flattened is None:
            return REFUSED
        residual = flattened[0]
    rest = residual, tag, slope
    return _run(plain.infer, plan, (x, y), table, eps, streaming, plan.step, *rest)


def train(
    x: Array, y: Array, params: Array, freedom: float, eps: float, plan: Plan
) -> tuple[int, Array]:
    """Write y; return its token and the table of statistics."""
    table = np.empty((STATISTICS_ROWS, plan.channels))
    streaming = 0
    if plan.parallel:
        if _dispatch.in_two_passes(plan.layout):
            return REFUSED, table
        streaming = _dispatch.is_streamed("train", plan.layout, y, x)
    rest = params, table, freedom, eps, streaming, plan.step
    return _run(plain.train, plan, (x, y), *rest), table


def moments(x: Array, plan: Plan) -> Array | None:
    """Return the table of statistics of x."""
    table = np.empty((STATISTICS_ROWS, plan.channels))
    count = float(plan.layout.count)
    return None if _run(plain.collect_moments, plan, (x,), table, count) else table


def differentiate(
    grad_y: Array,
    x: Array,
    grad_x: Array,
    table: Array,
    gradients: Array,
    freedom: float,
    token: int,
    plan: Plan,
) -> int:
    """Write grad_x and the rows of ``gradients``; see `nbbn.kernels.plain.differentiate`."""
    streaming = 0
    if plan.parallel:
        if _dispatch.in_two_passes(plan.layout):
            return REFUSED
        streaming = _dispatch.is_streamed("backward", plan.layout, grad_x, x, grad_y)
    rest = gradients, table, freedom, token, streaming, plan.step
    return _run(plain.differentiate, plan, (grad_y, x, grad_x), *rest)


def checksum(x: Array) -> int:
    """Return the number that `infer` and `train` return of contiguous x."""
    found = plain.check_overwritten.variant(x.dtype.type, None, False)
    token: int = found(x.reshape(-1), sample_step(x.size))
    return token


def as_matrices(shape: tuple[int, ...], *arrays: Array) -> list[Array] | None:
    """Return contiguous arrays of ``shape`` as matrices of one row; None where they are not that."""
    for array in arrays:
        if array.shape != shape or not array.flags.c_contiguous:
            return None
    return [array.reshape(1, -1) for array in arrays]


def _are_floats(kind: np.dtype[Any], *others: Array | None) -> bool:
    """Whether the dtype is float32 or float64, in native byte order, and that of the others.

    numba would not always tell. It looks a variant up by a fingerprint of the arguments that knows
    neither byte order nor alignment: once it has seen a misaligned array, it takes one in foreign byte
    order for it. And its search in vain takes 130 us, for each array of a half type.
    """
    if kind is not _FLOAT32 and kind is not _FLOAT64 and kind not in PLAIN_DTYPES:
        return False
    return all(array is None or array.dtype == kind for array in others)


def _run(kernel: PlainKernel, plan: Plan, arrays: tuple[Array, ...], *rest: Any) -> int:
    """Call the parallel variant where it pays and may be started now, else the serial one."""
    if not _are_floats(arrays[0].dtype, *arrays):
        return REFUSED
    given: Any = arrays
    if len(plan.shape) != 2:
        given = as_matrices(plan.shape, *arrays)
        if given is None:
            return REFUSED
    claim = _threads.enter_region() if plan.parallel else None
    try:
        return _call(kernel, plan.views[claim is not None], given, rest)
    finally:
        if claim is not None:
            _threads.leave_region(claim)


def _call(kernel: PlainKernel, view: View, given: Any, rest: Any) -> int:
    try:
        status: int = kernel.call(*given, *rest, *view)
    except TypeError:
        if not _is_prepared(kernel, view, given, rest):
            return REFUSED
        try:
            status = kernel.call(*given, *rest, *view)
        except TypeError:  # as before: the general way will say what is wrong
            return REFUSED
    return status


def _is_prepared(
    kernel: PlainKernel, view: View, arrays: tuple[Any, ...], rest: tuple[Any, ...]
) -> bool:
    """Compile what a call needed; return whether the call is worth a second try."""
    first = arrays[0]
    dtype = first.dtype.type
    fused = PLAIN
    read: tuple[Any, ...] = ()
    if kernel is plain.infer:
        *_, residual, tag, _ = rest
        fused = Fused(len(tag), residual is not None)
        read = () if residual is None else (residual,)
    for array in (*read, *arrays):
        if type(array) is not np.ndarray or array.dtype != first.dtype or array.ndim != 2:
            return False
        if not (array.flags.aligned and array.dtype.isnative):
            return False
    if dtype not in _FLOATS or not (len(arrays) == 1 or arrays[-1].flags.writeable):
        return False
    parallel, columns = view[1] is not None, view[-1] is not None
    kernel.prepare(dtype, rest[0].dtype.type, parallel, columns, fused)
    return True
