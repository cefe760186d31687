"""A sparse matrix of SciPy's, as fitting and transforming look at it; its sums are scikit-learn's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._checks import Array, Vector
from nbbn.standardizer._dataset import Dense, Fitted
from nbbn.standardizer._features import BLOCK, FeatureMoments, check_not_infinite, widened


def is_sparse(X: Any) -> bool:
    return hasattr(X, "nnz") and hasattr(X, "tocsr")


class Sparse(Dense):
    """A matrix in CSR or CSC form, of which what is not stored is 0; other forms become CSR."""

    def __init__(self, X: Any, axis: Any) -> None:
        self.matrix = X if X.format in ("csr", "csc") else X.tocsr()
        self.values, self.names, self.is_seen, self.form = X, None, False, None
        self._look(axis)
        if self.index != 1:
            raise ValueError(f"axis: expected -1 for a sparse matrix, got {axis}")
        self._stored = widened(_checks.numbers("X", self.matrix.data))

    def check_mean(self, with_mean: bool) -> None:
        """Check that zeros may stay zeros."""
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
        matrix = self._with(self._stored.astype(np.float64, copy=False), self.matrix, copy=False)
        if not matrix.shape[0]:
            return FeatureMoments.of((0.0, *np.zeros((4, matrix.shape[1]))))
        options = {"weights": weights, "return_sum_weights": True}
        with np.errstate(all="ignore"):
            mean, var, count = sums.mean_variance_axis(matrix, axis=0, **options)
            some, m2 = count > 0.0, var * count
        if not np.isfinite(mean[some] + m2[some]).all():
            check_not_infinite(self._stored[:, None], 1)
        self.is_seen = True
        low = np.zeros(some.size)
        mean, m2 = np.where(some, mean, 0.0), np.where(some, m2, 0.0)
        return FeatureMoments.of((np.maximum(count, 0.0), mean, low, m2, low))

    def target(self, out: Any, copy: bool) -> Array | None:
        """Return the stored values, where they may be and are to be written to."""
        if out is not None:
            raise ValueError(
                f"out: expected None for a sparse matrix, got {type(out).__name__} (copy=False works in place)"
            )
        stored = self._stored
        in_place = not copy and stored is self.values.data and self.matrix.format == "csr"
        return stored if in_place and stored.flags.writeable else None

    def check_frames(self, library: str) -> None:
        """A data frame holds its zeros."""
        raise ValueError(
            f"X: expected a dense array for a data frame of {library}, as set_output asked, got a sparse matrix "
            f"({library.capitalize()} output does not support sparse data)"
        )

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Any:
        """Return the matrix in CSR form with its stored values divided, or multiplied."""
        if not self.is_seen:
            check_not_infinite(self._stored[:, None], 1)
        matrix = self.matrix
        if out is None:
            matrix = self._with(self._stored, matrix, copy=matrix.format == "csr").tocsr()
        if fitted.with_std:
            scale = fitted.divisors()
            factors = scale if inverse else 1.0 / scale
            for start in range(0, matrix.data.size, BLOCK):
                part = matrix.data[start : start + BLOCK]
                those = factors.take(matrix.indices[start : start + BLOCK], mode="clip")
                with np.errstate(all="ignore"):  # infinite, as of dense arrays
                    np.multiply(part, those, out=part, casting="same_kind")
        return self.values if out is not None else matrix

    @staticmethod
    def _with(stored: Array, like: Any, copy: bool) -> Any:
        """Return a matrix of these stored values at the places of another's."""
        return type(like)((stored, like.indices, like.indptr), shape=like.shape, copy=copy)
