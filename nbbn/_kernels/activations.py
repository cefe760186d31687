"""The activations: of each its formula, its derivative, and its row in one table.

Formulas take a vector, the argument ``v``, and return one; a derivative takes what reaches ``y`` of the gradient,
and returns what reaches ``v`` of it. NaN stays NaN. Where there is no derivative it is PyTorch's: that of the left at
0, and 0 at 6 (relu6) and at -3 (hard swish). At NaN too: relu lets the gradient through, relu6 does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbbn._compiler.jit import by_length, inlined
from nbbn._compiler.vectors import (
    constant,
    constant_of,
    exponential_series,
    fma,
    not_above,
    not_below,
    times_power_of_two,
    where_at_most,
    where_below,
)


class Activation(NamedTuple):
    """What is applied to the argument: the length of ``kind`` says which, and is a constant of the variant.

    Decided within the loop, relu took seven times as long in cache.
    """

    kind: Any
    slope: Any  # below 0: a vector


def _nothing(v: Any, a: Activation) -> Any:
    return v


def _through_nothing(grad: Any, v: Any, a: Activation) -> Any:
    return grad


def _relu(v: Any, a: Activation) -> Any:
    """``max(v, 0)``."""
    return not_below(v, constant(v, 0.0))


def _through_relu(grad: Any, v: Any, a: Activation) -> Any:
    zero = constant(v, 0.0)
    return where_at_most(v, zero, zero, grad)


def _relu6(v: Any, a: Activation) -> Any:
    """``min(max(v, 0), 6)``."""
    return not_above(not_below(v, constant(v, 0.0)), constant(v, 6.0))


def _through_relu6(grad: Any, v: Any, a: Activation) -> Any:
    zero = constant(v, 0.0)
    return where_below(v, constant(v, 6.0), where_below(zero, v, grad, zero), zero)


def _leaky_relu(v: Any, a: Activation) -> Any:
    """``v`` or, below 0, ``v * slope``."""
    return where_below(v, constant(v, 0.0), v * a.slope, v)


def _through_leaky_relu(grad: Any, v: Any, a: Activation) -> Any:
    return where_below(constant(v, 0.0), v, grad, grad * a.slope)


def _hard_swish(v: Any, a: Activation) -> Any:
    """``v * min(max(v + 3, 0), 6) / 6``, which is v itself from 3 on."""
    part = not_below(v + constant(v, 3.0), constant(v, 0.0))
    return v * (not_above(part, constant(v, 6.0)) * constant(v, 1.0 / 6.0))


def _through_hard_swish(grad: Any, v: Any, a: Activation) -> Any:
    inner = grad * fma(v, constant(v, 1.0 / 3.0), constant(v, 0.5))
    inner = where_below(v, constant(v, 3.0), inner, grad)
    return where_at_most(v, constant(v, -3.0), constant(v, 0.0), inner)


@inlined
def _clamped(v: Any) -> Any:
    """Return ``v``, or the nearest argument that `_exponential` takes: beyond, sigmoid is 0 or 1 to the last bit."""
    return not_above(not_below(v, constant_of(v, -105.0, -746.0)), constant_of(v, 20.0, 45.0))


@inlined
def _exponential(v: Any) -> tuple[Any, Any]:
    """Return ``unit * exp(v)`` of a clamped argument, and ``unit``, a power of 2 that keeps it from underflowing.

    ``exp(v) = 2**k * exp(r)`` with ``v = k log(2) + r``, where k is an integer and ``|r| <= log(2) / 2``. Adding k to a
    number whose last digit is worth 1 rounds it, and its last bits are then those of k.
    """
    large = constant_of(v, 1.5 * 2.0**23 + 32, 1.5 * 2.0**52 + 64)
    sum_ = fma(v, constant(v, 1.4426950408889634), large)
    k = sum_ - large
    r = fma(k, constant(v, -0.6931471805599453), v)
    r = fma(k, constant_of(v, 1.904654299957768e-09, -2.3190468138462996e-17), r)
    return times_power_of_two(exponential_series(r), sum_), constant_of(v, 2.0**32, 2.0**64)


def _silu(v: Any, a: Activation) -> Any:
    """``v * sigmoid(v)``."""
    e, unit = _exponential(_clamped(v))
    return v * (e / (unit + e))


def _through_silu(grad: Any, v: Any, a: Activation) -> Any:
    """With ``s = sigmoid(v)``: ``s * (1 + v * (1 - s))``."""
    v = _clamped(v)
    e, unit = _exponential(v)
    one = constant(v, 1.0)
    part = one / (unit + e)
    return grad * (e * part * fma(v, unit * part, one))


def _mish(v: Any, a: Activation) -> Any:
    """``v * tanh(log(1 + exp(v)))``; with ``n = exp(v) * (exp(v) + 2)`` that is ``v * n / (n + 2)``."""
    e, unit = _exponential(_clamped(v))
    n = fma(e, e, (unit + unit) * e)
    return v * (n / (n + (unit * unit + unit * unit)))


def _through_mish(grad: Any, v: Any, a: Activation) -> Any:
    """``n / (n + 2) + v * 4 exp(v) * (1 + exp(v)) / (n + 2)**2``."""
    v = _clamped(v)
    e, unit = _exponential(v)
    n = fma(e, e, (unit + unit) * e)
    whole = n + (unit * unit + unit * unit)
    part = constant(v, 1.0) / whole
    steep = v * ((e * (unit + e) * part) * (unit * (unit * part)))
    return grad * fma(constant(v, 4.0), steep, n / whole)  # not n * part, which misses 1 at the end


@inlined
def through_slope(grad: Any, v: Any) -> Any:
    """Return ``grad`` times the derivative of a leaky relu with respect to its slope."""
    zero = constant(v, 0.0)
    return where_below(v, zero, grad * v, zero)


class Formulas(NamedTuple):
    """Of an activation."""

    value: Any
    through: Any  # times the derivative


TABLE: dict[str | None, Formulas] = {
    None: Formulas(_nothing, _through_nothing),
    "relu": Formulas(_relu, _through_relu),
    "relu6": Formulas(_relu6, _through_relu6),
    "leaky_relu": Formulas(_leaky_relu, _through_leaky_relu),
    "hard_swish": Formulas(_hard_swish, _through_hard_swish),
    "silu": Formulas(_silu, _through_silu),
    "mish": Formulas(_mish, _through_mish),
    "prelu": Formulas(_leaky_relu, _through_leaky_relu),
}
LEARNED = tuple(TABLE).index(
    "prelu"
)  # the one whose slope is a parameter, with a gradient of its own

# ``activated(v, a)`` and ``through_activation(grad, v, a)``
activated = by_length([row.value for row in TABLE.values()])
through_activation = by_length([row.through for row in TABLE.values()])
