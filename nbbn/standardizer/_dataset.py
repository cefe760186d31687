"""What a data set taught (`Fitted`), and a data set as it is looked at (`Dense`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._checks import Array, Vector
from nbbn._engine import steps
from nbbn._engine.known import Memory, met_with_target
from nbbn._engine.views import Reading
from nbbn._kernels import table as rows
from nbbn._kernels.steps_of_columns import infer_columns
from nbbn.standardizer import _estimator
from nbbn.standardizer._blocks import Place, cut, for_each, samples_axis
from nbbn.standardizer._features import (
    BLOCK,
    FeatureMoments,
    check_not_infinite,
    infinite,
    is_read_as_it_is,
    look,
    moments_of,
    result_dtype,
    widened,
)

_FLOAT64 = np.dtype(np.float64)
_FLOAT32 = np.dtype(np.float32)
# Beyond, float32 holds 1 / std with fewer digits or as infinity, and differences as infinity.
_WIDE = 2.0**100
# Values of a chunk that is kept, of all that are (fewer than threads are started for), and their number: partial_fit
# of (8, 4) float64 takes 3 us instead of 105. And how many of their moments are merged at once.
_CHUNK, _KEPT, _CHUNKS, _TOGETHER = 1 << 12, (1 << 17) - 1, 128, 16


class Fitted:
    """What fitting found. It never changes: a call that begins with it ends with it."""

    __slots__ = ("_form", "_forms", "axis", "features", "known", "moments", "names", "with_mean", "with_std")

    def __init__(
        self,
        moments: FeatureMoments,
        axis: int,
        with_mean: bool,
        with_std: bool,
        names: tuple[str, ...] | None,
        known: Memory | None = None,
        form: Array | None = None,
    ) -> None:
        self.known = Memory() if known is None else known  # arrays of other statistics, too
        self.moments = moments
        self.features = moments.mean.size
        self.axis = axis
        self.with_mean = with_mean
        self.with_std = with_std
        self.names = names
        # Made when first asked for; two threads that make one at a time make the same.
        self._forms: dict[tuple[bool, bool], Array | None] = {}
        self._form = form  # what the moments make, each feature with its own

    def arrays(self) -> tuple[Any, ...]:
        """Return what a pickle holds: numbers, arrays and strings."""
        return tuple(self.moments), self.axis, self.with_mean, self.with_std, self.names

    def merged(self, moments: FeatureMoments) -> Fitted:
        """Return what was found with more data."""
        together = self.moments.merge(moments)
        options = self.axis, self.with_mean, self.with_std, self.names
        return Fitted(together, *options, self.known)

    def _variances(self) -> tuple[Vector, bool]:
        """Return the variances, 1 for a constant feature, and for all where they are not wanted; whether one is."""
        return self.moments.variances_to_divide_by() if self.with_std else (np.ones(self.features), True)

    def divisors(self) -> Vector:
        """Return what each feature is divided by."""
        found: Vector = np.sqrt(self._variances()[0])
        return found

    def form(self, inverse: bool, dtype: np.dtype[Any]) -> Array | None:
        """Return the coefficients to compute with in ``dtype``; None where float32 has not the range."""
        key = inverse, dtype == _FLOAT64
        try:
            return self._forms[key]
        except KeyError:
            pass
        (variances, others), form = self._variances(), self._form
        wanted = _FLOAT64 if key[1] else _FLOAT32
        if not key[1] and _is_wide(self.moments.means(), variances):
            form = None
        elif form is None or form.dtype != wanted or inverse or others or not self.with_mean:
            make = self._inverse if inverse else self._forward
            form = steps.coefficients(make(variances, key[1]), 0.0, wanted)
        self._forms[key] = form
        return form

    def usable_form(self, inverse: bool, dtype: np.dtype[Any]) -> Array:
        """Return the coefficients, in float64 where float32 has not the range."""
        form = self.form(inverse, dtype)
        if form is None:
            form = self.form(inverse, _FLOAT64)
            assert form is not None
        return form

    def _forward(self, variances: Vector, _: bool) -> Array:
        table = np.zeros((rows.PAIR_ROWS, self.features))
        table[rows.VAR], table[rows.GAMMA] = variances, 1.0
        if self.with_mean:
            table[rows.MEAN], table[rows.MEAN_LOW] = self.moments.means(), self.moments.mean_low
        return table

    def _inverse(self, variances: Vector, double: bool) -> Array:
        table = np.zeros((rows.PAIR_ROWS, self.features))
        table[rows.VAR] = 1.0
        table[rows.GAMMA] = scale = np.sqrt(variances)
        if self.with_mean:
            # y * scale + mean = (y + rest / scale) * scale + rounded: the large term is exact.
            mean, low = self.moments.means(), self.moments.mean_low
            with np.errstate(all="ignore"):  # as the kernels: infinite or NaN, no warning
                rounded = mean if double else mean.astype(np.float32).astype(np.float64)
                rest = (mean - rounded) + low
                table[rows.MEAN] = np.where(np.isfinite(rest), -rest / scale, 0.0)
            table[rows.BETA] = rounded
        return table


def _is_wide(mean: Vector, variances: Vector) -> bool:
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

    values: Any

    def __init__(self, X: Any, axis: Any) -> None:
        self.values = _checks.numbers("X", X)
        self.names = None if type(X) is np.ndarray else _estimator.feature_names(X)
        self.is_seen = False  # whether it is known that there is no infinite value
        self.form: Array | None = None  # what `moments` found besides
        self._look(axis)

    def _look(self, axis: Any) -> None:
        shape = self.values.shape
        if len(shape) < 2:
            raise ValueError(
                f"X: expected two dimensions or more, got shape {shape} (Expected 2D array, got "
                f"{len(shape)}D array instead. Reshape your data: X[:, None] for one feature, X[None] for one sample)"
            )
        self.axis = _checks.integer("axis", axis)
        self.index = _checks.axis(axis, len(shape))
        if not shape[self.index]:
            raise ValueError(
                f"X: expected at least one feature, got shape {shape} (Found array with 0 feature(s) "
                f"(shape={shape}) while a minimum of 1 is required.)"
            )

    def check_mean(self, with_mean: bool) -> None:
        """Check that a mean may be subtracted."""

    def has_samples(self, found: FeatureMoments) -> bool:
        return 0 not in self.values.shape

    def check_fits(self, owner: Any, fitted: Fitted) -> None:
        """Check the features against those of earlier data."""
        _estimator.check_names("X", self.names, fitted.names, type(owner).__name__)
        found = self.values.shape
        if found[self.index] != fitted.features:
            raise ValueError(
                f"X: expected {fitted.features} features along axis {self.index}, got shape {found} "
                f"(X has {found[self.index]} features, but {type(owner).__name__} is expecting "
                f"{fitted.features} features as input)"
            )

    def weights(self, given: Any) -> Vector | None:
        if given is None:
            return None
        number = self.values.shape[samples_axis(self.index)]
        found = np.asarray(given)
        if found.ndim == 0:
            found = np.full(number, found)
        if found.shape != (number,):
            raise ValueError(f"sample_weight: expected shape {(number,)}, one a sample, or a number, got {found.shape}")
        weights = _checks.weights(found, (number, 1), 1, "sample_weight")
        if number and not weights.any():
            raise ValueError(
                "sample_weight: expected one above 0 at least, got zeros alone (Sample weights must contain at "
                "least one non-zero number.)"
            )
        return weights

    def target(self, out: Any, copy: bool) -> Array | None:
        """Return ``out`` as an array to write to, or X itself where that may be and is to be written to."""
        if out is not None:
            return _checks.out("out", out, self.values, self._result)
        values = self.values
        in_place = not copy and values.dtype == self._result and values.flags.writeable
        return values if in_place else None

    @property
    def _result(self) -> np.dtype[Any]:
        return result_dtype(self.values.dtype)

    def moments(self, weights: Vector | None) -> FeatureMoments:
        found, self.form = look(self.values, self.index, weights)
        self.is_seen = weights is None  # of weight 0 there may be any
        return found

    def check_frames(self, library: str) -> None:
        if not (self.values.ndim == 2 and self.index == 1):
            raise ValueError(
                "X: expected two dimensions, the features last, for a data frame as set_output asked, "
                f"got shape {self.values.shape} with the features along axis {self.index}"
            )

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Any:
        """Return the standardized values, or those that they were made of, in ``out`` if given."""
        values, form, dtype = self.values, self._form(fitted, inverse), self._result
        if out is not None and not self.is_seen:
            check_not_infinite(values, self.index)
        if is_read_as_it_is(values.dtype):
            y = apply_form(values, self.index, form, dtype, out)
        else:
            y = np.empty_like(values, dtype, subok=False) if out is None else out

            def work(place: Place) -> None:
                apply_form(widened(values[place]), self.index, form, dtype, y[place])

            for_each(cut(values.shape, self.index, BLOCK), work, lambda _, __: None)
        return y

    def _form(self, fitted: Fitted, inverse: bool) -> Array:
        return fitted.usable_form(inverse, self._result)


class Chunks:
    """Small chunks of a stream of samples, kept until they are worth summing."""

    __slots__ = ("_block", "_copy", "_form", "_most", "_noted", "_rows", "_wide", "filled", "found")

    def __init__(self, like: Array) -> None:
        self._most = max(1, min(_CHUNKS, _KEPT // like.size)) * len(like)  # samples
        self._rows = np.empty((1, self._most, like.shape[1]), like.dtype)
        self.filled, self.found = 0, list[FeatureMoments]()
        self._wide = self._rows[0] if like.dtype == _FLOAT64 else np.empty(self._rows.shape[1:])
        # The step that writes (x - 0) * 1 + 0 copies, and notes whether x has an infinite value.
        self._copy = infer_columns.variant(steps.variant_of(like, noted=True))
        self._noted = np.zeros(1, np.uint8)
        self._form = np.zeros((rows.FORM_ROWS, like.shape[1]), like.dtype)
        self._form[rows.SCALE] = 1.0
        self._block = np.array([[0, 0, 0, 0, like.shape[1]]], np.int64)  # all of a chunk, whatever its length

    @staticmethod
    def are_made_of(X: Any, features: int) -> bool:
        """Whether ``X`` is such a chunk: floats of this number of features."""
        if type(X) is not np.ndarray or X.dtype not in _checks.PLAIN_DTYPES:
            return False
        flags, shape = X.flags, X.shape
        return flags.c_contiguous and flags.aligned and shape[1:] == (features,) and 0 < X.size <= _CHUNK

    def keep(self, X: Array) -> bool:
        """Keep a chunk if it is of this dtype, there is room, and nothing in it is infinite."""
        begin, size = self.filled, len(X)
        if begin + size > self._most:
            self._sum()
            begin = 0
        if X.dtype != self._rows.dtype or size > self._most:
            return False
        self._block[0, 2] = size
        place = self._rows[:, begin : begin + size]
        self._copy(X[None], place, None, self._form, (), 0, self._noted, self._block)
        if self._noted[0]:
            self._noted[0] = 0
            return False
        self.filled = begin + size
        return True

    def _sum(self) -> None:
        if self.filled:
            # As float64, sums are taken near the mean: a digit more where that is large.
            wide, given = self._wide[: self.filled], self._rows[0, : self.filled]
            if wide.dtype != given.dtype:
                wide[...] = given
            self.found.append(moments_of(wide, 1))
            self.filled = 0
        if len(self.found) == _TOGETHER:
            self.found = [FeatureMoments.together(self.found)]

    def take(self) -> FeatureMoments | None:
        """Return the moments of what was kept, and forget it."""
        self._sum()
        found, self.found = self.found, []
        return FeatureMoments.together(found) if found else None


def form_of(moments: FeatureMoments, dtype: np.dtype[Any]) -> Array:
    """Return the coefficients that standardize features with these moments."""
    return Fitted(moments, -1, True, True, None).usable_form(False, dtype)


def apply_form(values: Array, index: int, form: Array, dtype: np.dtype[Any], out: Array | None) -> Array:
    """Return the values that `Fitted.form` makes of others, computed in its dtype.

    An infinite value is a ValueError, once all are written.
    """
    if not values.size:
        return np.empty_like(values, dtype) if out is None else out
    noted = np.zeros(1, np.uint8)
    known, y = met_with_target(values, index, out, form.dtype == values.dtype == dtype)
    if known is not None:
        known.infer(values, y, form, steps.NOTHING, noted)
    else:
        if form.dtype == steps.computed_dtype(values):
            reading = Reading(index, values, (), out, dtype)
        else:
            reading = Reading(index, values.astype(np.float64))
        steps.write(reading.view, reading.source, reading.target, form, noted=noted)
        y = reading.result()
    if y.dtype != dtype:
        with np.errstate(all="ignore"):
            y = y.astype(dtype)
        if out is not None:
            out[...] = y
    if noted[0]:
        raise infinite(values.dtype)
    return y if out is None else out
