"""The elementwise steps: the one place for the formulas that write ``y`` and ``grad_x``.

``y = activation(fma(x - center, scale, shift) + residual)`` where ``center`` is the mean rounded to the dtype
of ``x`` and ``shift`` holds the rest: ``x - center`` is exact next to the mean, so nothing cancels. The same
fma is used in whole and in partial vectors: one value has one result, wherever it stands.

An operation takes what it reads (`Forward`, `Backward`), a place (row, k, count) and the coefficients of that
place, as vectors; `of_channel` and `of_columns` say where those come from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbbn._compiler.jit import inlined
from nbbn._compiler.memory import at, load_upto
from nbbn._compiler.vectors import (
    fma,
    narrow,
    not_above,
    not_below,
    plus,
    splat,
    where_at_most,
    where_below,
)
from nbbn._compiler.weights import weight_at, weight_of_row, where_counted

# how long the tuple is that stands for an activation
NONE = 0
RELU = 1
RELU6 = 2
LEAKY_RELU = 3
HARD_SWISH = 4


class Activation(NamedTuple):
    """What follows the affine map: the length of ``kind`` says which, and is a constant of the variant.

    Decided within the loop, relu took seven times as long in cache.
    """

    kind: Any
    slope: float


class Forward(NamedTuple):
    """What `forward` and `before_activation` read."""

    x: Any
    residual: Any
    grad: Any
    activation: Activation


class Backward(NamedTuple):
    """What `backward` reads."""

    grad_y: Any
    x: Any
    mask: Any


class Coefficients(NamedTuple):
    """Of `forward`, as vectors."""

    center: Any
    scale: Any
    shift: Any


class GradientCoefficients(NamedTuple):
    """Of `backward`, as vectors: see `input_gradient`."""

    grad_center: Any
    scale: Any
    center: Any
    inv_std: Any
    slope: Any
    rest: Any


@inlined
def activated(value: Any, like: Any, activation: Activation) -> Any:
    """Return the activation of a vector; ``like`` is an array of its dtype. NaN stays NaN.

    relu: ``max(v, 0)``; relu6: ``min(max(v, 0), 6)``; leaky relu: ``v`` or, below 0, ``v * slope``;
    hard swish: ``v * min(max(v + 3, 0), 6) / 6``, which is v itself from 3 on.
    """
    zero, six = narrow(like, splat(0.0)), narrow(like, splat(6.0))
    kind = len(activation.kind)
    if kind == RELU:
        return not_below(value, zero)
    if kind == RELU6:
        return not_above(not_below(value, zero), six)
    if kind == LEAKY_RELU:
        return where_below(value, zero, value * narrow(like, splat(activation.slope)), value)
    if kind == HARD_SWISH:
        part = not_above(not_below(value + narrow(like, splat(3.0)), zero), six)
        return value * (part * narrow(like, splat(1.0 / 6.0)))
    return value


@inlined
def through_activation(grad: Any, value: Any, like: Any, activation: Activation) -> Any:
    """Return ``grad`` times the derivative of `activated` at ``value``.

    Where there is none: that of the left at 0, and 0 at 6 (relu6) and at -3 (hard swish). At NaN as in
    PyTorch: ``grad`` goes through relu, times the slope through leaky relu, and not through relu6.
    """
    zero, six = narrow(like, splat(0.0)), narrow(like, splat(6.0))
    kind = len(activation.kind)
    if kind == RELU:
        return where_at_most(value, zero, zero, grad)
    if kind == RELU6:
        return where_below(value, six, where_below(zero, value, grad, zero), zero)
    if kind == LEAKY_RELU:
        return where_below(zero, value, grad, grad * narrow(like, splat(activation.slope)))
    if kind == HARD_SWISH:
        three = narrow(like, splat(3.0))
        inner = grad * fma(value, narrow(like, splat(1.0 / 3.0)), narrow(like, splat(0.5)))
        inner = where_below(value, three, inner, grad)
        return where_at_most(value, zero - three, zero, inner)
    return grad


@inlined
def forward(read: Forward, row: int, k: int, count: int, c: Coefficients) -> Any:
    """Return ``activation(fma(x - center, scale, shift) + residual)``."""
    value = fma(at(read.x, row, k, count) - c.center, c.scale, c.shift)
    value = plus(value, at(read.residual, row, k, count))
    return activated(value, read.x.values, read.activation)


@inlined
def before_activation(read: Forward, row: int, k: int, count: int, c: Coefficients) -> Any:
    """Return what reaches the activation's argument of the gradient with respect to y."""
    value = fma(at(read.x, row, k, count) - c.center, c.scale, c.shift)
    value = plus(value, at(read.residual, row, k, count))
    grad = at(read.grad, row, k, count)
    return through_activation(grad, value, read.x.values, read.activation)


@inlined
def input_gradient(grad_y: Any, x: Any, c: GradientCoefficients) -> Any:
    """Return ``(grad_y - grad_center) * scale + (x - center) * inv_std * slope + rest``.

    ``x - center`` meets ``inv_std`` first: their product is of the order of 1, where
    ``inv_std * slope`` alone may leave the range of float32.
    """
    return fma(grad_y - c.grad_center, c.scale, fma((x - c.center) * c.inv_std, c.slope, c.rest))


@inlined
def backward(read: Backward, row: int, k: int, count: int, c: GradientCoefficients) -> Any:
    """Return the gradient with respect to x."""
    grad_y = at(read.grad_y, row, k, count)
    found = input_gradient(grad_y, at(read.x, row, k, count), c)
    return where_counted(weight_at(read.mask, row, k, count), found, grad_y * c.scale)


@inlined
def backward_of_row(read: Backward, row: int, k: int, count: int, c: GradientCoefficients) -> Any:
    """`backward` where the values of a row, of different channels, share their place in a mask."""
    grad_y = at(read.grad_y, row, k, count)
    found = input_gradient(grad_y, at(read.x, row, k, count), c)
    return where_counted(weight_of_row(read.mask, row), found, grad_y * c.scale)


@inlined
def coefficients_of(form: Any, c: int) -> Coefficients:
    """Return the coefficients of a channel."""
    return Coefficients(splat(form[0, c]), splat(form[1, c]), splat(form[2, c]))


@inlined
def coefficients_at(form: Any, j: int, count: int) -> Coefficients:
    """Return the coefficients of columns ``j`` to ``j + count``, at most sixteen."""
    width = form.shape[1]
    return Coefficients(
        load_upto(form, j, count),
        load_upto(form, j + width, count),
        load_upto(form, j + 2 * width, count),
    )


@inlined
def gradient_coefficients_of(form: Any, c: int) -> GradientCoefficients:
    """Return the coefficients of a channel."""
    return GradientCoefficients(
        splat(form[0, c]),
        splat(form[1, c]),
        splat(form[2, c]),
        splat(form[3, c]),
        splat(form[4, c]),
        splat(form[5, c]),
    )


@inlined
def gradient_coefficients_at(form: Any, j: int, count: int) -> GradientCoefficients:
    """Return the coefficients of columns ``j`` to ``j + count``, at most sixteen."""
    width = form.shape[1]
    return GradientCoefficients(
        load_upto(form, j, count),
        load_upto(form, j + width, count),
        load_upto(form, j + 2 * width, count),
        load_upto(form, j + 3 * width, count),
        load_upto(form, j + 4 * width, count),
        load_upto(form, j + 5 * width, count),
    )
