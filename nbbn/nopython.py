r"""Functions to call from your own compiled code.

The functions of `nbbn` take any array, start threads and raise errors: nothing to call from inside a function compiled
by numba's ``@njit``, and still less from a ``prange`` loop. These two do one sample, or as much as one thread is to do,
with the same formulas and vectors. They run in the calling thread and start none, release no lock, and raise nothing:
an exception that leaves a ``prange`` loop is lost, and the arrays stay unwritten. So what is wrong with types is an
error when your function is compiled, and what is wrong with shapes makes the results NaN.

Arrays are C-contiguous and of three dimensions, ``(outer, C, inner)``. Of images ``(N, C, H, W)``, say
``x.reshape(N, C, H * W)``; of channels that come last, ``(..., C)``, say ``x.reshape(-1, C, 1)``.

They may be called from Python, too, to try them out: not with misaligned arrays or in foreign byte order,
which numba does not tell from others there.

Compiled code keeps a copy of what it calls: where your functions are compiled with ``cache=True``, remove
the files of that cache (in ``__pycache__``) after an upgrade of nbbn, as numba does not notice it.

Examples
--------
A function with a loop of its own over the samples, on all threads:

>>> import numpy as np
>>> from numba import njit, prange
>>> from nbbn import nopython
>>> @njit(parallel=True)
... def normalize_samples(x, center, scale, shift, y):
...     for n in prange(x.shape[0]):
...         nopython.normalize(x[n : n + 1], center, scale, shift, y[n : n + 1])
>>> x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # 2 samples, 3 channels, 2 pixels
>>> center = np.array([0, 2, 4], np.float32)
>>> scale, shift = np.full(3, 0.5, np.float32), np.ones(3, np.float32)
>>> y = np.empty_like(x)
>>> normalize_samples(x, center, scale, shift, y)
>>> y.reshape(2, 6)
array([[1. , 1.5, 1. , 1.5, 1. , 1.5],
       [4. , 4.5, 4. , 4.5, 4. , 4.5]], dtype=float32)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import typeof, types
from numba.extending import overload

from nbbn._compiler.jit import entry
from nbbn._kernels.samples import moments_of_sample, normalize_sample

__all__ = ["moments", "normalize"]


def _check_array(name: str, given: types.Type, ndim: int, dtypes: str, written: bool) -> None:
    """Raise TypeError, while numba compiles, unless ``given`` is the type of such an array."""
    right = isinstance(given, types.Array) and given.ndim == ndim and given.layout == "C"
    right = right and given.dtype.name in dtypes.split(" or ") and given.aligned
    if not right or (written and not given.mutable):
        kind = "a writable" if written else "a"
        raise TypeError(
            f"{name}: expected {kind} C-contiguous array of {dtypes} and of {ndim} dimension"
            f"{'s' if ndim > 1 else ''}, got {given}"
        )


def _of_types(check: Callable[..., None]) -> Callable[..., None]:
    """Let compiled code call a check of types: it is made while numba compiles. From Python, when it is called."""

    def called(*given: Any) -> None:
        check(*map(typeof, given))

    def compiled(*given: Any) -> Any:
        check(*given)
        return lambda *given: None

    overload(called, strict=False)(compiled)  # annotations may differ
    return called


@_of_types
def _check_normalize(x3: Any, center: Any, scale: Any, shift: Any, out3: Any) -> None:
    _check_array("x3", x3, 3, "float32 or float64", False)
    for name, given in (("center", center), ("scale", scale), ("shift", shift)):
        _check_array(name, given, 1, "float32 or float64", False)
    _check_array("out3", out3, 3, x3.dtype.name, True)


@_of_types
def _check_moments(x3: Any, mean: Any, m2: Any) -> None:
    _check_array("x3", x3, 3, "float32 or float64", False)
    for name, given in (("mean", mean), ("m2", m2)):
        _check_array(name, given, 1, "float64", True)


@entry
def normalize(x3: Any, center: Any, scale: Any, shift: Any, out3: Any) -> None:
    r"""Write ``out3 = (x3 - center) * scale + shift``, with each channel's own numbers.

    .. math:: y_{ocj} = (x_{ocj} - \mathrm{center}_c)\,\mathrm{scale}_c + \mathrm{shift}_c

    With ``center = mean``, ``scale = gamma / sqrt(var + eps)`` and ``shift = beta``: batch normalization in inference.

    Parameters
    ----------
    x3 : C-contiguous array of float32 or float64, shape (outer, C, inner)
        The values.
    center, scale, shift : C-contiguous array of float32 or float64, shape (C,)
        One number a channel. Of float32 ``x3``, they may be float64: what the rounding of
        ``center`` leaves is added to ``shift``.
    out3 : C-contiguous array of the shape and dtype of ``x3``
        Where to write: ``x3`` itself, or memory that overlaps none of the arguments.

    Raises
    ------
    TypeError
        When your function is compiled, for any other type of an argument. Shapes that do not fit
        raise nothing, and fill ``out3`` with NaN.

    Notes
    -----
    ``y = fma(x - center, scale, shift)``: the bits of `nbbn.normalize` with the same center, scale and shift.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbn import nopython
    >>> x = np.array([[[2.0, 0.0], [20.0, 0.0]]])
    >>> nopython.normalize(x, np.array([1.0, 10.0]), np.array([1.0, 0.1]), np.zeros(2), x)
    >>> x
    array([[[ 1., -1.],
            [ 1., -1.]]])
    """
    _check_normalize(x3, center, scale, shift, out3)
    channels = x3.shape[1]
    fits = center.size == channels and scale.size == channels and shift.size == channels
    if not fits or out3.shape != x3.shape:
        out3.fill(math.nan)
    elif x3.size > 0:
        normalize_sample(x3, center, scale, shift, out3)


@entry
def moments(x3: Any, mean: Any, m2: Any) -> float:
    r"""Write the mean and the sum of squared deviations of each channel; return the count.

    .. math:: n = \mathrm{outer} \cdot \mathrm{inner}, \qquad
              \bar x_c = \frac{1}{n} \sum_{o,j} x_{ocj}, \qquad M_{2,c} = \sum_{o,j} (x_{ocj} - \bar x_c)^2

    Parameters
    ----------
    x3 : C-contiguous array of float32 or float64, shape (outer, C, inner)
        The values.
    mean, m2 : C-contiguous array of float64, shape (C,)
        Where to write; memory that overlaps none of the arguments.

    Returns
    -------
    float
        The number of values per channel, as in `nbbn.Moments`; of no values 0, and ``mean`` and ``m2`` are 0 then.

    Raises
    ------
    TypeError
        When your function is compiled, for any other type of an argument. Shapes that do not fit
        raise nothing: the count, ``mean`` and ``m2`` are NaN then.

    Notes
    -----
    In one pass over ``x3``, as `nbbn.batch_moments` and as exact: sums in float64, about a value of
    the data, and about the mean where that value was too far from it.

    References
    ----------
    Chan, Golub, LeVeque (1983), see `nbbn.Moments`.

    Examples
    --------
    Statistics of each sample and channel (instance normalization) in a loop on all threads:

    >>> import numpy as np
    >>> from numba import njit, prange
    >>> from nbbn import nopython
    >>> @njit(parallel=True)
    ... def variances(x):
    ...     mean, var = np.empty(x.shape[:2]), np.empty(x.shape[:2])
    ...     for n in prange(x.shape[0]):
    ...         count = nopython.moments(x[n : n + 1], mean[n], var[n])
    ...         var[n] /= count
    ...     return var
    >>> variances(np.array([[[2.0, 0.0], [4.0, 4.0]], [[9.0, 5.0], [7.0, 1.0]]]))
    array([[1., 0.],
           [4., 9.]])
    """
    _check_moments(x3, mean, m2)
    outer, channels, inner = x3.shape
    fits = mean.size == channels and m2.size == channels
    count = float(outer * inner) if fits else math.nan
    if count > 0.0:
        moments_of_sample(x3, mean, m2)
    else:
        mean.fill(count)
        m2.fill(count)
    return count
