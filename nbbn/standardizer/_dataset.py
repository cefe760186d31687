"""What a data set taught (`Fitted`), and a data set as it is looked at (`Dense`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks
from nbbn._engine import steps
from nbbn._kernels import table as rows
from nbbn.moments import Moments, batch_moments
from nbbn.standardizer import _estimator

Array = NDArray[Any]
Vector = NDArray[np.float64]

_FLOAT64 = np.dtype(np.float64)
_FLOAT32 = np.dtype(np.float32)
# Beyond, float32 holds 1 / std with fewer digits or as infinity, and differences as infinity.
_WIDE = 2.0**100


class Fitted:
    """What fitting found. It never changes: a call that begins with it ends with it."""

    __slots__ = ("_forms", "axis", "features", "moments", "names", "with_mean", "with_std")

    def __init__(
        self,
        moments: Moments,
        axis: int,
        with_mean: bool,
        with_std: bool,
        names: tuple[str, ...] | None,
    ) -> None:
        self.moments = moments
        self.features = moments.mean.size
        self.axis = axis
        self.with_mean = with_mean
        self.with_std = with_std
        self.names = names
        # Made when first asked for; two threads that make one at a time make the same.
        self._forms: dict[tuple[bool, bool], Array | None] = {}

    def arrays(self) -> tuple[Any, ...]:
        """Return what a pickle holds: numbers, arrays and strings."""
        return self.moments.__getstate__(), self.axis, self.with_mean, self.with_std, self.names

    def variances(self) -> Vector:
        """Return the variances, 1 for a constant feature, and for all where they are not wanted."""
        if not self.with_std:
            return np.ones(self.features)
        return divided_by(self.moments.var())

    def divisors(self) -> Vector:
        """Return what each feature is divided by."""
        found: Vector = np.sqrt(self.variances())
        return found

    def form(self, inverse: bool, dtype: np.dtype[Any]) -> Array | None:
        """Return the coefficients to compute with in ``dtype``; None where float32 has not the range."""
        key = inverse, dtype == _FLOAT64
        try:
            return self._forms[key]
        except KeyError:
            pass
        variances, form = self.variances(), None
        if key[1] or not is_wide(self.moments.mean, variances):
            make = self._inverse if inverse else self._forward
            table = make(variances, key[1])
            form = steps.coefficients(table, 0.0, _FLOAT64 if key[1] else _FLOAT32)
        self._forms[key] = form
        return form

    def _forward(self, variances: Vector, _: bool) -> Array:
        if not self.with_mean:
            return forward_table(0.0, 0.0, variances)
        return forward_table(self.moments.mean, self.moments._mean_low, variances)

    def _inverse(self, variances: Vector, double: bool) -> Array:
        table = np.zeros((rows.PAIR_ROWS, self.features))
        table[rows.VAR] = 1.0
        table[rows.GAMMA] = scale = np.sqrt(variances)
        if self.with_mean:
            # y * scale + mean = (y + rest / scale) * scale + rounded: the large term is exact.
            mean, low = self.moments.mean, self.moments._mean_low
            with np.errstate(all="ignore"):  # as the kernels: infinite or NaN, no warning
                rounded = mean if double else mean.astype(np.float32).astype(np.float64)
                rest = (mean - rounded) + low
                table[rows.MEAN] = np.where(np.isfinite(rest), -rest / scale, 0.0)
            table[rows.BETA] = rounded
        return table


def divided_by(var: Vector) -> Vector:
    """Return the variances to divide by the roots of: 1 for a constant feature."""
    return np.where(var == 0.0, 1.0, var)


def forward_table(mean: Any, mean_low: Any, variances: Vector) -> Array:
    """Return the table of ``(x - mean - mean_low) / sqrt(variances)``, for `steps.coefficients`."""
    table = np.zeros((rows.PAIR_ROWS, variances.size))
    table[rows.MEAN], table[rows.MEAN_LOW] = mean, mean_low
    table[rows.VAR], table[rows.GAMMA] = variances, 1.0
    return table


def is_wide(mean: Vector, variances: Vector) -> bool:
    """Return whether float32 has not the range to compute with these."""
    mean = np.abs(mean)
    outside = (variances < _WIDE**-2) | (variances > _WIDE**2) | (mean > _WIDE)
    if not outside.any():
        return False
    # Where they are infinite or NaN, so is the result; other features keep their bits.
    return bool((outside & np.isfinite(variances) & np.isfinite(mean)).any())


class Dense:
    """An array in memory, as fitting and transforming look at it.

    Of another kind of data they ask no more than this: checks, `moments`, `mapped`.
    """

    def __init__(self, X: Any, axis: Any, accepted: str = _checks.STORED) -> None:
        plain = type(X) is np.ndarray
        if not plain and hasattr(X, "nnz") and hasattr(X, "toarray"):
            kind = type(X).__name__
            raise TypeError(f"X: expected a dense array of {accepted}, got a sparse {kind}")
        self.values = _checks.array("X", X, accepted)
        self.names = None if plain else _estimator.feature_names(X)
        self._look(axis)

    def _look(self, axis: Any) -> None:
        """Check shape and axis."""
        shape = self.values.shape
        if len(shape) < 2:
            raise ValueError(
                f"X: expected two dimensions or more, got shape {shape} (Reshape your data: X[:, None] "
                "for one feature, X[None] for one sample)"
            )
        self.axis = _checks.integer("axis", axis)
        self.index = _checks.axis(axis, len(shape))
        if not shape[self.index]:
            raise ValueError(f"X: expected at least one feature, got shape {shape}")

    def check_samples(self, found: Moments) -> None:
        """Check that there was a sample."""
        if not found.count:
            raise ValueError(f"X: expected at least one sample, got shape {self.values.shape}")

    def check_fits(self, fitted: Fitted) -> None:
        """Check the features against those of earlier data."""
        found = self.values.shape
        if found[self.index] != fitted.features:
            raise ValueError(
                f"X: expected {fitted.features} features along axis {self.index}, got shape {found}"
            )
        _estimator.check_names("X", self.names, fitted.names)

    def target(self, out: Any) -> Array | None:
        """Return ``out`` as an array to write to."""
        return None if out is None else _checks.out("out", out, self.values, self._result)

    @property
    def _result(self) -> np.dtype[Any]:
        dtype = self.values.dtype
        return _FLOAT32 if dtype == np.uint8 else dtype

    def moments(self) -> Moments:
        """Return the moments of each feature."""
        return batch_moments(self.values, axis=self.index)

    def check_frames(self) -> None:
        """Check that the result can be a data frame."""
        if not (self.values.ndim == 2 and self.index == 1):
            raise ValueError(
                "X: expected two dimensions, the features last, for a data frame as set_output asked, "
                f"got shape {self.values.shape} with the features along axis {self.index}"
            )

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Array:
        """Return the standardized values, or those that they were made of, in ``out`` if given."""
        form, dtype = self._form(fitted, inverse), self._result
        return apply_form(self.values, self.index, form, dtype, out)

    def _form(self, fitted: Fitted, inverse: bool) -> Array:
        """Return the coefficients, in float64 where float32 has not the range."""
        form = fitted.form(inverse, self._result)
        if form is None:
            form = fitted.form(inverse, _FLOAT64)
            assert form is not None
        return form


def apply_form(
    values: Array, index: int, form: Array, dtype: np.dtype[Any], out: Array | None
) -> Array:
    """Return the values that `Fitted.form` makes of others, computed in its dtype."""
    if form.dtype == steps.computed_dtype(values):
        return steps.infer(values, index, form, out, dtype=dtype)
    with np.errstate(all="ignore"):
        y = steps.infer(values.astype(np.float64), index, form).astype(dtype)
    if out is None:
        return y
    out[...] = y
    return out
