"""The elementwise steps: the one place for the formulas that write ``y`` and ``grad_x``, and sum what these need.

``y = activation(fma(x - center, scale, shift) + residual)`` where ``center`` is the mean rounded to the dtype
of ``x`` and ``shift`` holds the rest: ``x - center`` is exact next to the mean, so nothing cancels. The same
fma is used in whole and in partial vectors: one value has one result, wherever it stands.

An operation takes what it reads (`Forward`, `Backward`), a place (row, k, count) and the coefficients of that
place, as vectors; functions in ``_of`` and ``_at`` say where those come from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbbn._compiler.jit import inlined
from nbbn._compiler.memory import at, at_any, keep, load_upto, note_largest
from nbbn._compiler.vectors import fma, plus, splat, where_finite, widen
from nbbn._compiler.weights import all_count, weight_at, weight_of_row, where_counted
from nbbn._kernels.activations import LEARNED, Activation, activated, through_activation, through_slope
from nbbn._kernels.table import CENTER, FORM_SLOPE, SCALE, SHIFT


class Forward(NamedTuple):
    """What `forward` reads."""

    x: Any
    residual: Any
    kind: Any  # of the activation
    largest: Any  # room for the largest sizes of x, NaN none; or None


class Backward(NamedTuple):
    """What `backward` and `add_products` read, and what these keep: rows, whose values may be None."""

    grad_y: Any
    x: Any
    mask: Any
    residual: Any
    kept: Any
    kind: Any  # of the activation


class Forms(NamedTuple):
    """The coefficients of a backward, and those of the forward: None without an activation."""

    grad_x: Any
    y: Any


class Target(NamedTuple):
    """What a forward writes, and with what."""

    y: Any
    residual: Any
    form: Any  # coefficients, one a column; of runs, a column a channel
    kind: Any  # of the activation
    streaming: int
    noted: Any  # whether x has an infinite value, or None


class GradientTarget(NamedTuple):
    """What a backward writes, and with what."""

    grad_x: Any
    mask: Any
    forms: Forms
    kind: Any  # of the activation
    streaming: int


class Fused(NamedTuple):
    """An activation on the way back: of none, an empty tuple and None."""

    kind: Any
    form: Any  # coefficients of the forward, as in `Target`
    residual: Any
    kept: Any  # where to write what reaches the activation's argument


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
    of_y: Any  # Coefficients, or None


class About(NamedTuple):
    """What the sums of a backward are taken with, as vectors."""

    mean: Any
    of_y: Any  # Coefficients, or None


@inlined
def forward(read: Forward, row: int, k: int, count: int, c: Coefficients) -> Any:
    """Return ``activation(fma(x - center, scale, shift) + residual)``."""
    x = at(read.x, row, k, count)
    note_largest(read.largest, x)
    value = fma(x - c.center, c.scale, c.shift)
    value = plus(value, at(read.residual, row, k, count))
    return activated(value, Activation(read.kind, c.slope))


@inlined
def argument(read: Backward, row: int, k: int, count: int, x: Any, c: Coefficients) -> Any:
    value = fma(x - c.center, c.scale, c.shift)
    return plus(value, at_any(read.residual, row, k, count))


@inlined
def before_activation(read: Backward, row: int, k: int, count: int, x: Any, c: Any) -> Any:
    """Return what reaches the activation's argument of ``grad_y``; and keep it, where that is asked for."""
    grad_y = at(read.grad_y, row, k, count)
    if c is None:
        return grad_y
    value = argument(read, row, k, count, x, c)
    found = through_activation(grad_y, value, Activation(read.kind, c.slope))
    keep(read.kept, row, k, count, found)
    return found


@inlined
def input_gradient(grad_y: Any, x: Any, c: GradientCoefficients) -> Any:
    """Return ``(grad_y - grad_center) * scale + (x - center) * inv_std * slope + rest``.

    ``x - center`` meets ``inv_std`` first: their product is of the order of 1, where
    ``inv_std * slope`` alone may leave the range of float32.
    """
    centred = x - center_of(c.center, c.of_y)
    return fma(grad_y - c.grad_center, c.scale, fma(centred * c.inv_std, c.slope, c.rest))


@inlined
def center_of(center: Any, of_y: Any) -> Any:
    """Return the center, of two that are the same that of the forward: so ``x - center`` is one difference."""
    if of_y is None:
        return center
    return of_y.center


@inlined
def backward(read: Backward, row: int, k: int, count: int, c: GradientCoefficients) -> Any:
    """Return the gradient with respect to x."""
    x = at(read.x, row, k, count)
    grad = before_activation(read, row, k, count, x, c.of_y)
    found = input_gradient(grad, x, c)
    return where_counted(weight_at(read.mask, row, k, count), found, grad * c.scale)


@inlined
def backward_of_row(read: Backward, row: int, k: int, count: int, c: GradientCoefficients) -> Any:
    """`backward` where the values of a row, of different channels, share their place in a mask."""
    x = at(read.x, row, k, count)
    grad = before_activation(read, row, k, count, x, c.of_y)
    found = input_gradient(grad, x, c)
    return where_counted(weight_of_row(read.mask, row), found, grad * c.scale)


@inlined
def add_products(read: Backward, row: int, k: int, count: int, about: About, sums: Any) -> Any:
    """Return ``sum(g)`` and ``sum(g * (x - mean))`` with those of a place in a run.

    ``g`` is what reaches the activation's argument; and where a slope is learned, ``sum(grad_y * dy/dslope)``.
    """
    weight = weight_at(read.mask, row, k, count)
    return products(read, row, k, count, about, sums, weight)


@inlined
def add_products_of_row(read: Backward, row: int, k: int, count: int, about: About, sums: Any) -> Any:
    """`add_products` where the values of a row, of different channels, share their place in a mask."""
    return products(read, row, k, count, about, sums, weight_of_row(read.mask, row))


@inlined
def harmless(grad_y: Any, deviation: Any, weight: Any) -> tuple[Any, Any]:
    """Return both, or zeros where a masked value is not finite: its output is no one's result."""
    zero = splat(0.0)
    if not all_count(weight):
        grad_y = where_counted(weight, grad_y, where_finite(deviation, grad_y, zero))
        deviation = where_counted(weight, deviation, where_finite(deviation, deviation, zero))
    return grad_y, deviation


@inlined
def products(read: Backward, row: int, k: int, count: int, about: About, sums: Any, weight: Any) -> Any:
    """Return the sums of `add_products`."""
    x = at(read.x, row, k, count)
    g, d = widen(before_activation(read, row, k, count, x, about.of_y)), widen(x) - about.mean
    g, finite = harmless(g, d, weight)
    found = sums[0] + g, fma(g, finite, sums[1])
    if len(sums) == 2:
        return found
    of_slope = through_slope(at(read.grad_y, row, k, count), argument(read, row, k, count, x, about.of_y))
    of_slope, _ = harmless(widen(of_slope), d, weight)
    return found[0], found[1], sums[2] + of_slope


@inlined
def no_sums(kind: Any) -> Any:
    """Return zeros for the sums of `add_products`, three where a slope is learned."""
    zero = splat(0.0)
    if len(kind) == LEARNED:
        return zero, zero, zero
    return zero, zero


@inlined
def coefficients_of(form: Any, c: int) -> Any:
    """Return the coefficients of a channel; None of None."""
    if form is None:
        return None
    center, scale, shift = splat(form[CENTER, c]), splat(form[SCALE, c]), splat(form[SHIFT, c])
    return Coefficients(center, scale, shift, splat(form[FORM_SLOPE, c]))


@inlined
def coefficients_at(form: Any, j: int, count: int) -> Any:
    """Return the coefficients of columns ``j`` to ``j + count``, at most sixteen; None of None."""
    if form is None:
        return None
    width = form.shape[1]
    return Coefficients(
        load_upto(form, j, count),
        load_upto(form, j + width, count),
        load_upto(form, j + 2 * width, count),
        load_upto(form, j + 3 * width, count),
    )


@inlined
def gradient_coefficients_of(forms: Forms, c: int) -> GradientCoefficients:
    """Return the coefficients of a channel."""
    form = forms.grad_x
    return GradientCoefficients(
        splat(form[0, c]),
        splat(form[1, c]),
        splat(form[2, c]),
        splat(form[3, c]),
        splat(form[4, c]),
        splat(form[5, c]),
        coefficients_of(forms.y, c),
    )


@inlined
def gradient_coefficients_at(forms: Forms, j: int, count: int) -> GradientCoefficients:
    """Return the coefficients of columns ``j`` to ``j + count``, at most sixteen."""
    form, width = forms.grad_x, forms.grad_x.shape[1]
    return GradientCoefficients(
        load_upto(form, j, count),
        load_upto(form, j + width, count),
        load_upto(form, j + 2 * width, count),
        load_upto(form, j + 3 * width, count),
        load_upto(form, j + 4 * width, count),
        load_upto(form, j + 5 * width, count),
        coefficients_at(forms.y, j, count),
    )
