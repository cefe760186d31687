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
from nbbn._compiler.vectors import fma, plus, splat
from nbbn._compiler.weights import weight_at, weight_of_row, where_counted
from nbbn._kernels.activations import Activation, activated, through_activation
from nbbn._kernels.table import CENTER, FORM_SLOPE, SCALE, SHIFT


class Forward(NamedTuple):
    """What `forward` and `before_activation` read."""

    x: Any
    residual: Any
    grad: Any
    kind: Any  # of the activation


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
    slope: Any


class GradientCoefficients(NamedTuple):
    """Of `backward`, as vectors: see `input_gradient`."""

    grad_center: Any
    scale: Any
    center: Any
    inv_std: Any
    slope: Any
    rest: Any


@inlined
def forward(read: Forward, row: int, k: int, count: int, c: Coefficients) -> Any:
    """Return ``activation(fma(x - center, scale, shift) + residual)``."""
    value = fma(at(read.x, row, k, count) - c.center, c.scale, c.shift)
    value = plus(value, at(read.residual, row, k, count))
    return activated(value, Activation(read.kind, c.slope))


@inlined
def before_activation(read: Forward, row: int, k: int, count: int, c: Coefficients) -> Any:
    """Return what reaches the activation's argument of the gradient with respect to y."""
    value = fma(at(read.x, row, k, count) - c.center, c.scale, c.shift)
    value = plus(value, at(read.residual, row, k, count))
    grad = at(read.grad, row, k, count)
    return through_activation(grad, value, Activation(read.kind, c.slope))


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
    center, scale, shift = splat(form[CENTER, c]), splat(form[SCALE, c]), splat(form[SHIFT, c])
    return Coefficients(center, scale, shift, splat(form[FORM_SLOPE, c]))


@inlined
def coefficients_at(form: Any, j: int, count: int) -> Coefficients:
    """Return the coefficients of columns ``j`` to ``j + count``, at most sixteen."""
    width = form.shape[1]
    return Coefficients(
        load_upto(form, j, count),
        load_upto(form, j + width, count),
        load_upto(form, j + 2 * width, count),
        load_upto(form, j + 3 * width, count),
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
