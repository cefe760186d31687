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
    exponential_series,
    fma,
    not_above,
    not_below,
    power_of_two,
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
def _limited(v: Any, least: float, of_float64: float) -> Any:
    """Return ``v``, or the nearest number up to where sigmoid is 1 to the last bit, from ``least`` on."""
    return not_above(not_below(v, constant(v, least, of_float64)), constant(v, 20.0, 45.0))


@inlined
def _exponential(v: Any, more: float, of_float64: float) -> tuple[Any, Any]:
    """Return two vectors whose product is ``2**more * exp(v)``: one near 1, and a power of 2, 0 or infinity.

    ``exp(v) = 2**k * exp(r)`` with ``v = k log(2) + r``, where k is an integer and ``|r| <= log(2) / 2``. Adding k to a
    number whose last digit is worth 1 rounds it, and its last bits are then those of the power. They hold no less
    than 0 and no more than infinity: ``v`` is limited to where these are reached.
    """
    large = constant(v, 1.5 * 2.0**23 + 127.0 + more, 1.5 * 2.0**52 + 1023.0 + of_float64)
    sum_ = fma(v, constant(v, 1.4426950408889634), large)
    k = sum_ - large
    r = fma(k, constant(v, -0.693359375, -0.6931471803691238), v)
    r = fma(k, constant(v, 2.1219444005469057e-04, -1.9082149292705877e-10), r)
    return exponential_series(r), power_of_two(sum_)


def _silu(v: Any, a: Activation) -> Any:
    """``v / (1 + exp(-v))``, both divided by 512: so the power is infinite where y is next to nothing."""
    part = constant(v, 2.0**-9)
    near, power = _exponential(constant(v, -0.0) - _limited(v, -94.96, -716.02), -9.0, -9.0)
    return v * part / fma(near, power, part)


def _through_silu(grad: Any, v: Any, a: Activation) -> Any:
    """With ``s = sigmoid(v) = exp(v) * (1 - s)``: ``s * (1 + v * (1 - s))``."""
    v = _limited(v, -88.03, -709.09)
    near, power = _exponential(v, 0.0, 0.0)
    one = constant(v, 1.0)
    rest = one / fma(near, power, one)
    return grad * (near * power * rest * fma(v, rest, one))


def _mish(v: Any, a: Activation) -> Any:
    """``v * tanh(log(1 + exp(v)))``; with ``n = exp(v) * (exp(v) + 2)`` that is ``v * n / (n + 2)``."""
    near, power = _exponential(_limited(v, -110.21, -753.45), 32.0, 64.0)
    e = near * power
    n = fma(e, e, constant(v, 2.0**33, 2.0**65) * e)
    return v * (n / (n + constant(v, 2.0**65, 2.0**129)))


def _through_mish(grad: Any, v: Any, a: Activation) -> Any:
    """With ``g = exp(v) * (exp(v) + 1)`` and ``q = 2 / (n + 2)``: ``1 - q + v * g * q**2``."""
    v = _limited(v, -88.03, -709.09)
    near, power = _exponential(v, 0.0, 0.0)
    e, two = near * power, constant(v, 2.0)
    g = fma(e, e, e)
    q = two / (g + (e + two))
    return grad * fma(v * g * q, q, constant(v, 1.0) - q)


@inlined
def through_slope(grad: Any, v: Any) -> Any:
    """Return ``grad`` times the derivative of a leaky relu with respect to its slope."""
    zero = constant(v, 0.0)
    return where_below(v, zero, grad * v, zero)


# name -> the formula, and what is taken on the way back: the gradient times the derivative
TABLE: dict[str | None, tuple[Any, Any]] = {
    None: (_nothing, _through_nothing),
    "relu": (_relu, _through_relu),
    "relu6": (_relu6, _through_relu6),
    "leaky_relu": (_leaky_relu, _through_leaky_relu),
    "hard_swish": (_hard_swish, _through_hard_swish),
    "silu": (_silu, _through_silu),
    "mish": (_mish, _through_mish),
    "prelu": (_leaky_relu, _through_leaky_relu),
}
LEARNED = tuple(TABLE).index("prelu")  # its slope is a parameter, with a gradient of its own
# Of these a backward of runs keeps the gradient that reaches the argument: to find it twice takes 1.3 times as long.
KEPT = tuple(map(tuple(TABLE).index, ("silu", "mish")))

# ``activated(v, a)`` and ``through_activation(grad, v, a)``
activated = by_length([formula for formula, _ in TABLE.values()])
through_activation = by_length([through for _, through in TABLE.values()])
