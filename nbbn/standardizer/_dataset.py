"""What a data set taught (`Fitted`), and data sets as they are looked at: in memory, sparse, of dask."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._checks import Array, Vector
from nbbn._engine import steps
from nbbn._engine.known import Memory
from nbbn._kernels import table as rows
from nbbn.distributed import dask as dask_arrays
from nbbn.standardizer import _estimator, _features
from nbbn.standardizer._blocks import Place, cut, each, samples_axis
from nbbn.standardizer._features import BLOCK, EPS, FeatureMoments

_FLOAT64 = np.dtype(np.float64)
_FLOAT32 = np.dtype(np.float32)
# Beyond, float32 holds 1 / std with fewer digits or as infinity, and differences as infinity.
_WIDE = 2.0**100


@dataclass(slots=True, eq=False)
class Fitted:
    """What fitting found. It never changes: a call that begins with it ends with it."""

    moments: FeatureMoments
    axis: int = -1
    with_mean: bool = True
    with_std: bool = True
    names: tuple[str, ...] | None = None
    known: Memory = field(default_factory=Memory)  # arrays of other statistics, too
    own_form: Array | None = None  # what the moments make, each feature with its own
    # Made when first asked for; two threads that make one at a time make the same.
    _forms: dict[tuple[bool, bool], Array] = field(default_factory=dict, init=False)
    _part: Any = field(default=False, init=False)

    @property
    def features(self) -> int:
        return self.moments.mean.size

    def of(self, moments: FeatureMoments, form: Array | None = None) -> Fitted:
        """Return what is known with other moments."""
        return Fitted(moments, self.axis, self.with_mean, self.with_std, self.names, self.known, form)

    def part(self) -> Any:
        """Return what `FeatureMoments.part` makes of the moments."""
        if self._part is False:
            self._part = self.moments.part()
        return self._part

    def _variances(self) -> Vector:
        """Return the variances, 1 for a constant feature, and for all where they are not wanted."""
        return self.moments.variances_to_divide_by() if self.with_std else np.ones(self.features)

    def divisors(self) -> Vector:
        """Return what each feature is divided by."""
        found: Vector = np.sqrt(self._variances())
        return found

    def form(self, inverse: bool, dtype: np.dtype[Any]) -> Array:
        """Return the coefficients to compute with in ``dtype``, or in float64 where float32 has not the range."""
        key = inverse, dtype == _FLOAT64
        if key in self._forms:
            return self._forms[key]
        wanted = _FLOAT64 if key[1] else _FLOAT32
        usual = _usual_variances(self.moments) if self.with_std else None
        variances = self._variances() if usual is None else usual
        form: Any = self.own_form if usual is not None and self.with_mean and not inverse else None
        if form is not None and form.dtype == _FLOAT64 != wanted:
            form = steps.narrowed(form, self.moments.mean, self.moments.mean_low)
        elif usual is None and wanted is _FLOAT32 and _is_wide(self.moments.means(), variances):
            form = self.form(inverse, _FLOAT64)
        elif form is None or form.dtype != wanted:
            form = steps.coefficients(self._table(inverse, variances, wanted), 0.0, wanted)
        self._forms[key] = form
        found: Array = form
        return found

    def _table(self, inverse: bool, variances: Vector, dtype: np.dtype[Any]) -> Array:
        """Return the statistics, and gamma and beta, whose map this is."""
        table = np.zeros((rows.PAIR_ROWS, self.features))
        mean, low = self.moments.means(), self.moments.mean_low
        if not inverse:
            table[rows.VAR], table[rows.GAMMA] = variances, 1.0
            if self.with_mean:
                table[rows.MEAN], table[rows.MEAN_LOW] = mean, low
            return table
        table[rows.VAR] = 1.0
        table[rows.GAMMA] = scale = np.sqrt(variances)
        if self.with_mean:
            # y * scale + mean = (y + rest / scale) * scale + rounded: the large term is exact.
            with np.errstate(all="ignore"):  # as the kernels: infinite or NaN, no warning
                table[rows.BETA] = rounded = mean.astype(dtype).astype(np.float64)
                rest = (mean - rounded) + low
                table[rows.MEAN] = np.where(np.isfinite(rest), -rest / scale, 0.0)
        return table


def _usual_variances(moments: FeatureMoments) -> Vector | None:
    """Return the variances, if it is plain that no feature is constant, nor beyond the range of float32.

    A few numbers bound them all: `FeatureMoments.variances_to_divide_by` and `_is_wide`, which look at each, take some
    twenty NumPy operations.
    """
    with np.errstate(all="ignore"):
        variances: Vector = moments.m2 / moments.counts
        each = math.sqrt(moments.counts.dot(moments.counts)) * EPS
        least, most = float(np.minimum.reduce(variances)), float(variances.dot(variances))
        means = float(moments.mean.dot(moments.mean))
    is_usual = least > _WIDE**-2 and most < _WIDE**4 and means < _WIDE**2 and each < 0.5
    return variances if is_usual and each * each * means < 0.25 * least else None


def _is_wide(mean: Vector, variances: Vector) -> bool:
    """Return whether float32 has not the range to compute with these."""
    mean = np.abs(mean)
    outside = (variances < _WIDE**-2) | (variances > _WIDE**2) | (mean > _WIDE)
    # Where they are infinite or NaN, so is the result; other features keep their bits.
    return bool(outside.any() and (outside & np.isfinite(variances) & np.isfinite(mean)).any())


def apply_form(values: Array, index: int, form: Array, dtype: np.dtype[Any], out: Array | None = None) -> Array:
    """Return the values that `Fitted.form` makes of others, computed in its dtype.

    An infinite value is a ValueError, once all are written.
    """
    if not values.size:
        return np.empty_like(values, dtype) if out is None else out
    form = np.ascontiguousarray(form)  # of some of the features it is not
    if not _features.is_read_as_it_is(values.dtype):
        y = np.empty_like(values, dtype, subok=False) if out is None else out

        def work(place: Place) -> None:
            apply_form(_features.widened(values[place]), index, form, dtype, y[place])

        for _ in each(cut(values.shape, index, BLOCK), work):
            pass  # it is written
        return y
    noted = np.zeros(1, np.uint8)
    if form.dtype == steps.computed_dtype(values):
        y = steps.infer(steps.Call(values, index, out), form, dtype, noted)
    else:
        y = steps.infer(steps.Call(values.astype(np.float64), index), form, noted=noted)
    if y.dtype != dtype:
        with np.errstate(all="ignore"):
            y = y.astype(dtype)
        if out is not None:
            out[...] = y
    if noted[0]:
        raise _features.infinite(values.dtype)
    return y if out is None else out


class Dense:
    """An array in memory, as fitting and transforming look at it.

    Of another kind of data they ask no more than this: checks, `moments`, `mapped`.
    """

    values: Any
    names: tuple[str, ...] | None = None
    is_seen = False  # whether it is known that there is no infinite value
    form: Array | None = None  # what `moments` found besides

    def __init__(self, X: Any, axis: Any) -> None:
        self.values = _checks.numbers("X", X)
        if type(X) is not np.ndarray:
            self.names = _estimator.feature_names(X)
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

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the result."""
        return _features.result_dtype(self.values.dtype)

    def check_mean(self, with_mean: bool) -> None:
        """Check that a mean may be subtracted."""

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

    def target(self, out: Any, copy: bool, frames: str | None) -> Array | None:
        """Return ``out`` as an array to write to, or X itself where that may be and is to be written to.

        Check also that the result can be a data frame of a library, where ``frames`` names one.
        """
        values = self.values
        in_place = not copy and values.dtype == self.dtype and values.flags.writeable
        target = _checks.out("out", out, values, self.dtype) if out is not None else values if in_place else None
        if frames is not None and not (values.ndim == 2 and self.index == 1):
            raise ValueError(
                "X: expected two dimensions, the features last, for a data frame as set_output asked, "
                f"got shape {values.shape} with the features along axis {self.index}"
            )
        return target

    def moments(self, weights: Vector | None) -> FeatureMoments:
        found, self.form = _features.look(self.values, self.index, weights)
        self.is_seen = weights is None  # of weight 0 there may be any
        return found

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Any:
        """Return the standardized values, or those that they were made of, in ``out`` if given."""
        values, form = self.values, fitted.form(inverse, self.dtype)
        if out is not None and not self.is_seen:
            _features.check_not_infinite(values, self.index)
        return apply_form(values, self.index, form, self.dtype, out)


class Sparse(Dense):
    """A matrix in CSR or CSC form, of which what is not stored is 0; other forms become CSR."""

    def __init__(self, X: Any, axis: Any) -> None:
        self.matrix = X if X.format in ("csr", "csc") else X.tocsr()
        self.values = X
        self._look(axis)
        if self.index != 1:
            raise ValueError(f"axis: expected -1 for a sparse matrix, got {axis}")
        self._stored = _features.widened(_checks.numbers("X", self.matrix.data))

    def check_mean(self, with_mean: bool) -> None:
        if with_mean:
            raise ValueError(
                "with_mean: expected False for a sparse matrix, whose zeros would not stay zeros, got True "
                "(Cannot center sparse matrices; X.toarray() makes a dense array of it)"
            )

    def moments(self, weights: Vector | None) -> FeatureMoments:
        """Return the moments of each feature, zeros included."""
        try:
            sums = import_module("sklearn.utils.sparsefuncs")
        except ImportError as error:
            raise ImportError(
                "X: expected scikit-learn to be installed for a sparse matrix, which it sums (pip install "
                f"scikit-learn), got {error}"
            ) from error
        # As float64: of float32 it would round means, variances and counts to float32.
        matrix = self._with(self._stored.astype(np.float64, copy=False), copy=False)
        if not matrix.shape[0]:
            return FeatureMoments.nothing(matrix.shape[1])
        with np.errstate(all="ignore"):
            mean, var, count = sums.mean_variance_axis(matrix, axis=0, weights=weights, return_sum_weights=True)
            mean, m2 = np.where(count > 0.0, (mean, var * count), 0.0)
        if not np.isfinite(mean + m2).all():
            _features.check_not_infinite(self._stored[:, None], 1)
        self.is_seen = True
        low = np.zeros(mean.size)
        return FeatureMoments.of((np.maximum(count, 0.0), mean, low, m2, low))

    def target(self, out: Any, copy: bool, frames: str | None) -> Array | None:
        """Return the stored values, where they may be and are to be written to."""
        if out is not None:
            raise ValueError(
                f"out: expected None for a sparse matrix, got {type(out).__name__} (copy=False works in place)"
            )
        if frames is not None:
            raise ValueError(
                f"X: expected a dense array for a data frame of {frames}, as set_output asked, got a sparse matrix "
                f"({frames.capitalize()} output does not support sparse data)"
            )
        stored = self._stored
        in_place = not copy and stored is self.values.data and self.matrix.format == "csr"
        return stored if in_place and stored.flags.writeable else None

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Any:
        """Return the matrix in CSR form with its stored values divided, or multiplied."""
        if not self.is_seen:
            _features.check_not_infinite(self._stored[:, None], 1)
        matrix = self.matrix
        if out is None:
            matrix = self._with(self._stored, copy=matrix.format == "csr").tocsr()
        if fitted.with_std:
            scale = fitted.divisors()
            factors = scale if inverse else 1.0 / scale
            for start in range(0, matrix.data.size, BLOCK):
                part = matrix.data[start : start + BLOCK]
                those = factors.take(matrix.indices[start : start + BLOCK], mode="clip")
                with np.errstate(all="ignore"):  # infinite, as of dense arrays
                    np.multiply(part, those, out=part, casting="same_kind")
        return self.values if out is not None else matrix

    def _with(self, stored: Array, copy: bool) -> Any:
        """Return a matrix of these stored values at the same places."""
        like = self.matrix
        return type(like)((stored, like.indices, like.indptr), shape=like.shape, copy=copy)


class Lazy(Dense):
    """Blocks of a dask array, of any chunks; the number of samples may be unknown."""

    def __init__(self, X: Any, axis: Any) -> None:
        self.values = X if X.dtype != object else X.astype(np.float64)
        _checks.numbers("X", self.values._meta)
        self._look(axis)
        if math.isnan(X.shape[self.index]):
            raise ValueError(
                f"X: expected known chunk sizes along axis {self.index}, that of the features, got "
                f"{X.chunks[self.index]} (compute_chunk_sizes finds them)"
            )

    def target(self, out: Any, copy: bool, frames: str | None) -> None:
        if out is not None:
            raise ValueError(f"out: expected None for a dask array, got {type(out).__name__}")
        if frames is not None:
            raise ValueError("X: expected an array in memory for a data frame as set_output asked, got a dask array")

    def moments(self, weights: Vector | None) -> FeatureMoments:
        """Return the moments of each feature, with the scheduler that dask is set to."""
        others, axis = {}, samples_axis(self.index)
        if weights is not None:
            others["weights"] = dask_arrays.in_chunks(weights, (self.values.chunks[axis],)), (axis,)
        found = dask_arrays.merged_blocks(self.values, self.index, _features.moments_of, others)
        return FeatureMoments.joined(found)

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Any:
        """Return a dask array of what `Dense.mapped` makes of the blocks."""
        x, index, dtype = self.values, self.index, self.dtype
        form = dask_arrays.in_chunks(fitted.form(inverse, dtype), (-1, x.chunks[index]))
        others = {"form": (form, (x.ndim, index))}
        return dask_arrays.by_block("standardize", apply_form, x, others, dtype, index=index, dtype=dtype)


def as_dataset(X: Any, axis: Any) -> Dense:
    """Return ``X``, in memory, sparse or of dask, as fitting and transforming look at it."""
    if type(X) is not np.ndarray:
        if dask_arrays.is_dask(X):
            return Lazy(X, axis)
        if hasattr(X, "nnz") and hasattr(X, "tocsr"):
            return Sparse(X, axis)
    return Dense(X, axis)
