"""A dask array, as fitting and transforming look at it: computed to fit, and transformed lazily."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._engine.threads import num_threads
from nbbn.distributed import dask as dask_arrays
from nbbn.moments import Moments
from nbbn.standardizer._dataset import Array, Dense, Fitted, apply_form


def as_dataset(X: Any, axis: Any, accepted: str = _checks.STORED) -> Dense:
    """Return ``X``, in memory or of dask, as fitting and transforming look at it."""
    return Lazy(X, axis, accepted) if dask_arrays.is_dask(X) else Dense(X, axis, accepted)


class Lazy(Dense):
    """Blocks of a dask array, of any chunks; the number of samples may be unknown."""

    def __init__(self, X: Any, axis: Any, accepted: str) -> None:
        _checks.array("X", X._meta, accepted)
        self.values = X
        self.names = None
        self._look(axis)
        if math.isnan(X.shape[self.index]):
            raise ValueError(
                f"X: expected known chunk sizes along axis {self.index}, that of the features, got "
                f"{X.chunks[self.index]} (compute_chunk_sizes finds them)"
            )

    def target(self, out: Any) -> Array | None:
        """There is nothing to write to before blocks are computed."""
        if out is not None:
            raise ValueError(f"out: expected None for a dask array, got {type(out).__name__}")
        return None

    def check_frames(self) -> None:
        """A data frame holds its values."""
        raise ValueError(
            "X: expected an array in memory for a data frame as set_output asked, got a dask array"
        )

    def moments(self) -> Moments:
        """Return the moments of each feature, with the scheduler that dask is set to."""
        return dask_arrays.dask_moments(self.values, axis=self.index)

    def mapped(self, fitted: Fitted, inverse: bool, out: Array | None) -> Any:
        """Return a dask array of what `Dense.mapped` makes of the blocks."""
        import dask.array as da
        from dask.base import tokenize

        x: Any = self.values
        index, dtype = self.index, self._result
        rows = da.from_array(self._form(fitted, inverse), chunks=(-1, x.chunks[index]))
        dims = tuple(range(x.ndim))
        pairs: list[Any] = [x, dims, rows, (x.ndim, index)]
        options: dict[str, Any] = {"index": index, "dtype": dtype}
        return da.blockwise(
            functools.partial(_mapped_block, **options),
            dims,
            *pairs,
            name=f"nbbn-standardize-{tokenize(*pairs, options)}",
            concatenate=True,
            align_arrays=False,
            dtype=dtype,
            meta=np.empty((0,) * x.ndim, dtype),
        )


def _mapped_block(values: Array, form: Array, *, index: int, dtype: np.dtype[Any]) -> Array:
    with num_threads(1):
        return apply_form(values, index, np.ascontiguousarray(form), dtype, None)
