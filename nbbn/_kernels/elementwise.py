"""The elementwise steps: the one place for the formulas that write ``y`` and ``grad_x``, and sum what these need.

``y = activation(fma(x - center, scale, shift) + residual)`` where ``center`` is the mean rounded to the dtype
of ``x`` and ``shift`` holds the rest: ``x - center`` is exact next to the mean, so nothing cancels. The same
fma is used in whole and in partial vectors: one value has one result, wherever it stands.

An operation takes what it reads (`Given`), a place (row, k, count) and the coefficients of that place, as vectors:
`form_of` a channel, or `form_at` columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbbn._compiler.jit import inlined
from nbbn._compiler.memory import ZERO, at, at_any, keep, load_rows, note_largest, splat_rows
from nbbn._compiler.vectors import fma, plus, splat, where_finite, widen
from nbbn._compiler.weights import all_count, weight_at, where_counted
from nbbn._kernels.activations import LEARNED, Activation, activated, through_activation, through_slope


class Given(NamedTuple):
    """What operations read and keep: arrays or, in an operation, rows of them; what is not there is None."""

    grad_y: Any  # of a backward
    x: Any
    mask: Any
    residual: Any
    kept: Any  # where to write what reaches the activation's argument
    kind: Any  # of the activation
    noted: Any  # where to note that x has an infinite value or, with rows, room for the largest sizes


class Forms(NamedTuple):
    """The coefficients of a backward, and those of the forward: a column a channel of runs, else one a column."""

    grad_x: Any  # None of a forward
    y: Any  # None of a backward without an activation


class Target(NamedTuple):
    """Where y or grad_x is written, and with what."""

    values: Any
    form: Forms
    streaming: int


class Coefficients(NamedTuple):
    """Of `forward`, as vectors, in the order of their rows."""

    center: Any
    scale: Any
    shift: Any
    slope: Any


class GradientCoefficients(NamedTuple):
    """Of `backward`, as vectors, in the order of their rows: see `input_gradient`."""

    grad_center: Any
    scale: Any
    center: Any
    inv_std: Any
    slope: Any
    rest: Any


class About(NamedTuple):
    """What the sums of a backward are taken with, as vectors."""

    mean: Any
    of_y: Any  # Coefficients, or None


@inlined
def forward(read: Given, row: int, k: int, count: int, c: Forms) -> Any:
    """Return ``activation(fma(x - center, scale, shift) + residual)``."""
    x = at(read.x, row, k, count)
    note_largest(read.noted, x)
    value = fma(x - c.y.center, c.y.scale, c.y.shift)
    value = plus(value, at(read.residual, row, k, count))
    return activated(value, Activation(read.kind, c.y.slope))


@inlined
def argument(read: Given, row: int, k: int, count: int, x: Any, c: Coefficients) -> Any:
    value = fma(x - c.center, c.scale, c.shift)
    return plus(value, at_any(read.residual, row, k, count))


@inlined
def before_activation(read: Given, row: int, k: int, count: int, x: Any, c: Any) -> Any:
    """Return what reaches the activation's argument of ``grad_y``; and keep it, where that is asked for."""
    grad_y = at(read.grad_y, row, k, count)
    if c is None:
        return grad_y
    value = argument(read, row, k, count, x, c)
    found = through_activation(grad_y, value, Activation(read.kind, c.slope))
    keep(read.kept, row, k, count, found)
    return found


@inlined
def input_gradient(grad_y: Any, x: Any, c: GradientCoefficients, of_y: Any) -> Any:
    """Return ``(grad_y - grad_center) * scale + (x - center) * inv_std * slope + rest``.

    ``x - center`` meets ``inv_std`` first: their product is of the order of 1, where
    ``inv_std * slope`` alone may leave the range of float32.
    """
    # of two centers that are the same that of the forward: so ``x - center`` is one difference
    center = c.center if of_y is None else of_y.center
    return fma(grad_y - c.grad_center, c.scale, fma((x - center) * c.inv_std, c.slope, c.rest))


@inlined
def backward(read: Given, row: int, k: int, count: int, c: Forms) -> Any:
    """Return the gradient with respect to x."""
    x = at(read.x, row, k, count)
    grad = before_activation(read, row, k, count, x, c.y)
    found = input_gradient(grad, x, c.grad_x, c.y)
    return where_counted(weight_at(read.mask, row, k, count), found, grad * c.grad_x.scale)


@inlined
def harmless(grad_y: Any, deviation: Any, weight: Any) -> tuple[Any, Any]:
    """Return both, or zeros where a masked value is not finite: its output is no one's result."""
    zero = splat(0.0)
    if not all_count(weight):
        grad_y = where_counted(weight, grad_y, where_finite(deviation, grad_y, zero))
        deviation = where_counted(weight, deviation, where_finite(deviation, deviation, zero))
    return grad_y, deviation


@inlined
def add_products(read: Given, row: int, k: int, count: int, about: About, sums: Any) -> Any:
    """Return ``sum(g)`` and ``sum(g * (x - mean))`` with those of a place.

    ``g`` is what reaches the activation's argument; and where a slope is learned, ``sum(grad_y * dy/dslope)``.
    """
    weight = weight_at(read.mask, row, k, count)
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
def form_of(forms: Forms, c: int) -> Forms:
    """Return the coefficients of a channel."""
    return Forms(splat_rows(GradientCoefficients, forms.grad_x, ZERO, c), splat_rows(Coefficients, forms.y, ZERO, c))


@inlined
def form_at(forms: Forms, j: int, count: int) -> Forms:
    """Return the coefficients of columns ``j`` to ``j + count``, at most sixteen."""
    grad_x = load_rows(GradientCoefficients, forms.grad_x, ZERO, j, count)
    return Forms(grad_x, load_rows(Coefficients, forms.y, ZERO, j, count))
