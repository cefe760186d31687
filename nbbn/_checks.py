"""Every check of an argument: one sentence with its name, what was expected and what came."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Vector = NDArray[np.float64]  # of numbers a channel
DType = TypeVar("DType", bound=np.generic)  # what comes out is what went in
Activation = Literal["relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish", "prelu"]
OnNonfinite = Literal["propagate", "raise", "skip"]


# For type checkers: options of calls.
class Written(TypedDict, total=False):  # where a result goes
    out: Array | None


class Inferred(Written, total=False):  # what is added on the way
    residual: ArrayLike | None


class Called(Inferred, total=False):  # a layer
    training: bool | None
    mask: ArrayLike | None


class Normalized(Inferred, total=False):  # `nbbn.normalize`
    eps: float
    axis: int
    activation: Activation | None
    negative_slope: float


class Trained(Normalized, total=False):  # `nbbn.batch_norm`
    training: bool
    mask: ArrayLike | None
    momentum: float
    correction: float
    running_correction: float


class Differentiated(Written, total=False):  # `nbbn.batch_norm_backward`
    axis: int
    training: bool
    mask: ArrayLike | None
    correction: float


_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
# Of an array, it is nearly always one of these very objects, which is fast to see. In arrays that come
# from a pickle or a deep copy, as those of data loaders do, it is an equal one; of foreign byte order, none.
PLAIN_DTYPES = _FLOAT32, _FLOAT64
FLOATS = "float32 or float64"

_TooHardError = getattr(np, "exceptions", np).TooHardError  # in np itself before 1.25
_WORK = 10_000  # candidates that numpy may look at before an overlap is taken for granted
_MOST = 1 << 40
_LARGEST = 1.7976931348623157e308  # of float64
_SMALLEST = 2.2250738585072014e-308  # of float64 with all its digits
HALVES = "float32, float64, float16 or bfloat16"  # what is normalized, and its gradients
STORED = "float32, float64, float16, bfloat16 or uint8"  # what is only read
_COUNTED = "float32, float64, float16, bfloat16, integers or bool"  # what statistics are taken of
_REALS = "float32, float64, float16, bfloat16 or integers"  # parameters and statistics
REAL = STORED + ", other integers or bool"  # tables
_NUMBERS = "float64, float32, float16, integer or bool"  # weights


def _is_among(dtype: np.dtype[Any], accepted: str) -> bool:
    # bfloat16 is a type of the package ml_dtypes, which is not needed to see that this is it.
    return dtype.isnative and dtype.name in _names(accepted)


@functools.cache
def _names(accepted: str) -> frozenset[str]:
    return frozenset(accepted.replace(",", "").split())


def array(name: str, value: Any, accepted: str = FLOATS) -> Array:
    """Return ``value`` as an ndarray of such a dtype, without a copy where there is a buffer."""
    found: Array = value if type(value) is np.ndarray else _as_ndarray(name, value, accepted)
    dtype = found.dtype
    if dtype is _FLOAT32 or dtype is _FLOAT64 or dtype in PLAIN_DTYPES or _is_among(dtype, accepted):
        return found
    advice = f" ({name}.astype(np.float32) makes floats of it)" if dtype.kind in "biu" else ""
    raise TypeError(f"{name}: expected dtype {accepted}, got {_name(dtype)}{advice}")


def counted(name: str, value: Any) -> Array:
    """Return data to take statistics of; integers and booleans, but for bytes, as float64."""
    found: Array = value if type(value) is np.ndarray else _as_ndarray(name, value, _COUNTED)
    if found.dtype.kind in "biu":
        return found if found.dtype == np.uint8 else found.astype(_FLOAT64)
    return array(name, found, _COUNTED)


def reals(name: str, value: Any) -> Array:
    """Return real numbers as float32 or float64."""
    found: Array = value if type(value) is np.ndarray else _as_ndarray(name, value, _REALS)
    if found.dtype in PLAIN_DTYPES:
        return found
    if found.dtype.name != "bfloat16" and (found.dtype.kind not in "fiu" or found.dtype.itemsize > 8):
        raise TypeError(f"{name}: expected dtype {_REALS}, got {_name(found.dtype)}")
    return found.astype(_FLOAT64)


class ComplexError(TypeError, ValueError):
    """A table of complex numbers: a wrong type here, a wrong value to scikit-learn."""


def numbers(name: str, value: Any) -> Array:
    """Return ``value`` as an ndarray of real numbers of any type; of objects, as float64."""
    found: Array = value if type(value) is np.ndarray else _as_ndarray(name, value, REAL)
    dtype = found.dtype
    if dtype.kind == "O" and found.ndim:
        return _of_objects(name, value, found)
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return found
    if dtype.kind == "c":
        raise ComplexError(
            f"{name}: expected dtype {REAL}, got {dtype.name} (Complex data not supported: take .real, .imag "
            "or abs of it)"
        )
    if not _is_among(dtype, STORED):
        raise TypeError(f"{name}: expected dtype {REAL}, got {_name(dtype)}")
    return found


def _of_objects(name: str, value: Any, found: Array) -> Array:
    try:
        if hasattr(value, "to_numpy") and hasattr(value, "columns") and hasattr(value, "index"):
            # Columns of pandas's own types: what is missing is no number that NumPy knows.
            return np.asarray(value.to_numpy(dtype=np.float64, na_value=np.nan))
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected numbers, got an object that is none ({error}); leave out such columns") from None


def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.isnative else f"{dtype.name} in foreign byte order"


def _as_ndarray(name: str, value: Any, accepted: str) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected a plain array of {accepted}, got a masked array "
            f"of {value.dtype.name} (its mask would be lost)"
        )
    if type(value).__module__.partition(".")[0] == "dask":
        raise TypeError(
            f"{name}: expected an array in memory, got one of dask (nbbn.distributed.dask_normalize and "
            f"dask_moments take it; {name}.compute() loads it)"
        )
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except Exception as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name}: expected an array of {accepted} in the CPU's memory, got {kind} ({error})") from error


def axis(value: Any, ndim: int) -> int:
    """Return the channel axis, counted from the front."""
    index = integer("axis", value)
    if not -ndim <= index < ndim:
        limits = f"from {-ndim} to {ndim - 1}" if ndim else "a dimension to stand for the channels"
        advice = " (x[None] for one sample, x[:, None] for one channel)" if ndim == 1 else ""
        raise ValueError(f"axis: expected {limits} for {ndim}-d x, got {index}{advice}")
    return index % ndim


def channels(x: Array, index: int, expected: int) -> None:
    if x.shape[index] != expected:
        found = [axis for axis, size in enumerate(x.shape) if size == expected]
        advice = f" (axis={-1 if found[-1] == x.ndim - 1 else found[-1]} has {expected})" if found else ""
        raise ValueError(f"x: expected {expected} channels along axis {index}, got shape {x.shape}{advice}")


def per_position(name: str, value: Any, shape: tuple[int, ...], index: int, accepted: str) -> Array:
    """Return what is given for each place in x, whatever the channel: of x's axes without the channel's.

    Sizes may be 1. With as many dimensions as x it has size 1 along the channel axis. With fewer it
    stands for the last of the other axes.
    """
    found: Array = value if type(value) is np.ndarray else _as_ndarray(name, value, accepted)
    others = shape[:index] + shape[index + 1 :]
    own = found.shape
    if found.ndim == len(shape) and own[index] == 1:
        own = own[:index] + own[index + 1 :]
    from_the_last = zip(own[::-1], others[::-1], strict=False)
    if len(own) <= len(others) and all(size in (1, wanted) for size, wanted in from_the_last):
        return found.reshape((1,) * (len(others) - len(own)) + own)
    raise ValueError(
        f"{name}: expected a shape that broadcasts to {others}, the axes of x other than the channel "
        f"axis, or of {len(shape)} dimensions to {shape} with size 1 along axis {index}, got {found.shape}"
    )


def mask(value: Any, shape: tuple[int, ...], index: int) -> Array:
    """Return a mask, booleans as in `per_position`."""
    found = per_position("mask", value, shape, index, "bool")
    if found.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {_name(found.dtype)}")
    return found


def weights(value: Any, shape: tuple[int, ...], index: int, name: str = "weights") -> Array:
    """Return weights, float64 as in `per_position`; 0 for those so small that 1 / weight overflows."""
    found = per_position(name, value, shape, index, _NUMBERS)
    if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected dtype {_NUMBERS}, got {_name(found.dtype)}")
    exact = found.astype(np.float64)
    right = np.isfinite(exact) & (exact >= 0.0)
    if not right.all():
        raise ValueError(f"{name}: expected finite numbers >= 0, got {exact[~right].flat[0]:g}")
    return np.where(exact < _SMALLEST, 0.0, exact)


def per_channel(name: str, value: Any, count: int, scalar: bool = False) -> Array:
    """Return real numbers as an array of shape ``(count,)`` to read from; a ``scalar`` counts for all."""
    found = reals(name, value)
    if scalar and found.ndim == 0:
        return np.full(count, found)
    if found.shape != (count,):
        raise ValueError(f"{name}: expected shape {(count,)}, one value a channel, got {found.shape}")
    return found if found.flags.c_contiguous and found.flags.aligned else found.copy()


def variances(name: str, value: Any, count: int, scalar: bool = False) -> Array:
    """Return ``value`` as `per_channel` does, where no variance in it is negative."""
    found = per_channel(name, value, count, scalar)
    not_negative(name, found)
    return found


def not_negative(name: str, variances: Array) -> None:
    """Check that none is below 0; NaN is not.

    By the place of the least one, or of a NaN: that takes a fifth of the time of a minimum.
    """
    if variances.size and not variances.item(variances.argmin()) >= 0.0:
        least = min((v for v in variances.tolist() if v < 0.0), default=0.0)
        if least < 0.0:
            raise ValueError(f"{name}: expected no variance below 0, got {least:g}")


def running(name: str, value: Any, count: int) -> Array | None:
    """Return running statistics that are to be updated in place, or None."""
    if value is None:
        return None
    found = array(name, value)
    if not isinstance(value, np.ndarray) and not _shares(found, value):
        raise TypeError(f"{name}: expected a writable array to update in place, got {type(value).__name__}")
    if found.shape != (count,):
        raise ValueError(f"{name}: expected shape {(count,)}, one value a channel, got {found.shape}")
    if not found.flags.writeable:
        raise ValueError(f"{name}: expected a writable array to update in place, got a read-only one")
    return found


def out(name: str, value: Any, like: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return ``value`` as an array of the shape and dtype of ``like`` to write to."""
    wanted = like.dtype if dtype is None else dtype
    found = value if type(value) is np.ndarray else _as_ndarray(name, value, wanted.name)
    if not isinstance(value, np.ndarray) and not _shares(found, value):
        raise ValueError(f"{name}: expected an array to write to, got {type(value).__name__}")
    if found.shape != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, got {found.shape}")
    if found.dtype != wanted:
        raise ValueError(f"{name}: expected dtype {wanted.name}, got {_name(found.dtype)}")
    if not found.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if found.size > 1 and not found.flags.forc and overlaps_itself(found):
        raise ValueError(f"{name}: expected memory of its own for each value, got strides {found.strides}")
    return found


def gradient(name: str, value: Any, like: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return ``value`` as an array of the shape and dtype of ``like`` to read from."""
    found = array(name, value, HALVES)
    wanted = like.dtype if dtype is None else dtype
    if found.shape != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, that of x, got {found.shape}")
    if found.dtype is not wanted and found.dtype != wanted:
        whose = "that of x" if dtype is None or dtype == like.dtype else "that of the result"
        raise TypeError(
            f"{name}: expected dtype {wanted.name}, {whose}, got {found.dtype.name} "
            f"({name}.astype({'x.dtype' if wanted == like.dtype else 'np.' + wanted.name}) makes it that)"
        )
    return found


def _shares(found: Array, value: Any) -> bool:
    """Whether ``found`` is the memory of ``value`` and not a copy made on the way."""
    if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
        return True  # from_dlpack makes no copy
    return bool(np.asarray(value).ctypes.data == found.ctypes.data)


def real(name: str, value: Any, least: float | None = None) -> float:
    """Return a finite number, not below ``least``."""
    # not math.isfinite, which fails for integers beyond float64
    if type(value) in (float, int) and -_LARGEST <= value <= _LARGEST and (least is None or value >= least):
        return float(value)
    bound = "" if least is None else f" >= {least:g}"
    if isinstance(value, (bool, np.bool_, str, bytes, complex, np.complexfloating)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a finite number{bound}, got {type(value).__name__}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: expected a finite number{bound}, got {value!r}") from error
    if not math.isfinite(number) or (least is not None and number < least):
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return number


def integer(name: str, value: Any, bound: str = "") -> int:
    if type(value) is int:
        return value
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name}: expected an integer{bound}, got {type(value).__name__}")


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, accepted: tuple[str, ...]) -> str:
    if type(value) is str and value in accepted:
        return value
    words = ", ".join(map(repr, accepted[:-1])) + f" or {accepted[-1]!r}"
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name}: expected {words}, got {value!r}")


def positive_integer(name: str, value: Any) -> int:
    number = integer(name, value, " >= 1")
    if number < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {number}")
    if number > _MOST:
        raise ValueError(f"{name}: expected an integer from 1 to {_MOST}, got {number}")
    return number


def _named(value: Any) -> tuple[np.dtype[Any] | None, str]:
    """Return the dtype that ``value`` names, or None, and in words what came."""
    if value is not None:
        with contextlib.suppress(TypeError):
            found = np.dtype(value)
            return found, _name(found)
    return None, repr(value)


def dtype(name: str, value: Any) -> np.dtype[Any]:
    """Return float32 or float64."""
    found, came = _named(value)
    if found is None or found not in PLAIN_DTYPES:
        raise TypeError(f"{name}: expected {FLOATS}, got {came}")
    return found


def stored_dtype(name: str, value: Any) -> str:
    """Return the name of a dtype that ``x`` may have."""
    found, came = _named(value)
    if value == "bfloat16":  # a name for NumPy only once ml_dtypes is loaded
        return "bfloat16"
    if found is None or found.name not in _names(STORED):
        raise TypeError(f"{name}: expected {STORED}, got {came if found is None else found.name}")
    return found.name


def result_dtype(value: Any, of_x: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of what is made of ``x``: its own, or float32 of bytes."""
    of_bytes = of_x == np.uint8
    if value is None and not of_bytes:
        return of_x
    found, came = _named(value)
    if of_bytes:
        if value is None or dtype("dtype", value) != _FLOAT32:
            raise ValueError(f"dtype: expected float32 for an x of uint8, got {came}")
        return _FLOAT32
    if found is None or found != of_x:
        kind = ValueError if found is not None and _is_among(found, HALVES) else TypeError
        raise kind(f"dtype: expected {of_x.name}, that of x, or None, got {came}")
    return of_x


def apart(name: str, value: Array | None, others: dict[str, Array | None]) -> None:
    """Check that an array to be updated shares no memory with others to be written."""
    for other, written in others.items():
        if value is not None and written is not None and overlap(value, written):
            raise ValueError(f"{name}: expected memory apart from {other}, got an overlap")


def overlap(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether the arrays share memory; interleaved ones (channels of one buffer) do not."""
    # Two arrays that own their memory are apart: 0.05 us to see, where a look at addresses takes 0.3.
    if (a.flags.owndata and b.flags.owndata and a is not b) or not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=_WORK))  # type: ignore[arg-type]
    except _TooHardError:
        return True


def overlaps_itself(array: NDArray[Any]) -> bool:
    """Whether two values of ``array`` may share memory (certain for any array but exotic ones)."""
    reach = array.itemsize
    steps = zip(map(abs, array.strides), array.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in steps if size > 1):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def enough_values(count: float, correction: float, running_correction: float, name: str = "x") -> None:
    """Check that the variances of ``count`` values a channel are defined."""
    most = max(correction, running_correction)
    if count <= most or (count == 1 and most > 0):
        raise ValueError(
            f"{name}: expected at least {max(1, math.floor(most)) + 1} values per channel to train with (a variance "
            f"is over n - {most:g}), got {count:g} (bn.eval() for one sample, or training=False)"
        )
