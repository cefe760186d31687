"""A dask array, as fitting and transforming look at it: computed to fit, and transformed lazily."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._checks import Array, Vector
from nbbn._engine.threads import num_threads
from nbbn.distributed import dask as dask_arrays
from nbbn.standardizer import _blocks
from nbbn.standardizer._dataset import Dense, Fitted, apply_form
from nbbn.standardizer._features import FeatureMoments, moments_of, widened


class Lazy(Dense):
    """Blocks of a dask array, of any chunks; the number of samples may be unknown."""

    def __init__(self, X: Any, axis: Any) -> None:
        if X.dtype != object:
            _checks.numbers("X", X._meta)
        self.values = X if X.dtype != object else X.astype(np.float64)
        self.names, self.is_seen, self.form = None, False, None
        self._look(axis)
        if math.isnan(X.shape[self.index]):
            raise ValueError(
                f"X: expected known chunk sizes along axis {self.index}, that of the features, got "
                f"{X.chunks[self.index]} (compute_chunk_sizes finds them)"
            )

    def has_samples(self, found: FeatureMoments) -> bool:
        """Return whether there was a sample: a shape does not always tell."""
        shape = self.values.shape
        return 0 not in shape and bool(found.counts.any() or not np.isnan(shape).any())

    def target(self, out: Any, copy: bool) -> Array | None:
        """There is nothing to write to before blocks are computed."""
        if out is not None:
            raise ValueError(f"out: expected None for a dask array, got {type(out).__name__}")
        return None

    def check_frames(self, library: str) -> None:
        """A data frame holds its values."""
        raise ValueError("X: expected an array in memory for a data frame as set_output asked, got a dask array")

    def moments(self, weights: Vector | None) -> FeatureMoments:
        """Return the moments of each feature, with the scheduler that dask is set to."""
        pairs: list[Any] = []
        if weights is not None:
            import dask.array as da

            axis = _blocks.samples_axis(self.index)
            pairs = [da.from_array(weights, chunks=(self.values.chunks[axis],)), (axis,)]
        found = dask_arrays.merged_blocks(self.values, self.index, _moments_of_block, *pairs)
        return FeatureMoments.joined(found)

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Any:
        """Return a dask array of what `Dense.mapped` makes of the blocks."""
        import dask.array as da

        x, index, dtype = self.values, self.index, self._result
        rows = da.from_array(self._form(fitted, inverse), chunks=(-1, x.chunks[index]))
        pairs = rows, (x.ndim, index)
        return dask_arrays.by_block("standardize", _mapped_block, x, pairs, dtype, index=index, dtype=dtype)


def _moments_of_block(x: Any, weights: Any = None, *, axis: int) -> FeatureMoments | None:
    if not x.shape[axis]:
        return None
    with num_threads(1):
        return moments_of(dask_arrays.in_one_order(x), axis, weights)


def _mapped_block(values: Array, form: Array, *, index: int, dtype: np.dtype[Any]) -> Array:
    with num_threads(1):
        return apply_form(widened(values), index, np.ascontiguousarray(form), dtype, None)
