"""Arguments of nbbn's functions for hypothesis: drawn as the contract accepts them, or spoiled on purpose."""

import cases
import numpy as np
from hypothesis import strategies as st


class Hostile:
    """No array, and angry when asked for one."""

    def __array__(self, *arguments, **keywords):
        raise RuntimeError("no array")


# What no function takes for an array of real numbers, made of a good one.
NO_NUMBERS = (
    lambda a: a.astype(np.longdouble),
    lambda a: a.astype(np.complex64),
    lambda a: a.astype(object),
    lambda a: a.astype("U8"),
    lambda a: a.astype("S8"),
    lambda a: np.zeros(a.shape, "datetime64[s]"),
    lambda a: np.zeros(a.shape, [("value", a.dtype)]),
    lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
    lambda a: "text",
    lambda a: b"bytes",
    lambda a: {"a": 1.0},
    lambda a: [[1.0], [1.0, 2.0]],
    lambda a: Hostile(),
    lambda a: object(),
)
# What is taken for numbers a channel, but not for an array to normalize.
NO_ARRAYS = (
    *NO_NUMBERS,
    lambda a: a.astype(np.int64),
    lambda a: a.astype(np.uint16),
    lambda a: a > 0,
    lambda a: a.astype(a.dtype.newbyteorder()),
)
OTHER_SHAPES = (
    lambda a: np.float32(1.0),
    lambda a: np.ones((*a.shape, 2), a.dtype),
    lambda a: np.ones((*a.shape[:-1], a.shape[-1] + 1), a.dtype),
    lambda a: np.ones((1, *a.shape), a.dtype),
)
NO_REALS = (
    *("1", b"1", None, True, np.True_, 1j, [1e-3], (), np.nan, np.inf, -np.inf, 10**400),
    *(np.complex64(1), np.ones(1), np.ones(2), object()),
)
NO_INTEGERS = (1.0, "1", None, True, [1], (0, 1), np.float32(1), object())
NO_FLAGS = (0, 1, "True", 1.0, [], np.ones(2, bool), object())
NO_OUTS = (
    lambda a: np.zeros(a.shape, np.float64 if a.dtype == np.float32 else np.float32),
    lambda a: np.zeros(a.shape, a.dtype.newbyteorder()),
    lambda a: np.zeros((*a.shape, 1), a.dtype),
    lambda a: np.zeros(a.shape, np.int32),
    lambda a: np.zeros(a.shape, object),
    lambda a: np.ma.zeros(a.shape, a.dtype),
    lambda a: cases.read_only(a),
    lambda a: np.broadcast_to(a.dtype.type(0), (*a.shape, 2)),
    lambda a: a.tolist(),
    lambda a: "text",
    lambda a: True,
)

dtypes = st.sampled_from(cases.DTYPES)
no_dtypes = st.sampled_from((None, "junk", np.int8, np.float16, complex, object, ">f4", 3, []))
seeds = st.integers(0, 1000)


@st.composite
def shapes(draw):
    """(shape, axis) of 1 to 6 dimensions, with sizes of 0 and 1."""
    ndim = draw(st.integers(1, 6))
    longest = {1: 200, 2: 40, 3: 12, 4: 6, 5: 4, 6: 3}[ndim]
    sizes = st.sampled_from([1, 2]) | st.integers(2, longest)
    shape = draw(st.lists(sizes, min_size=ndim, max_size=ndim))
    if draw(st.sampled_from([False] * 9 + [True])):
        shape[draw(st.integers(0, ndim - 1))] = 0
    return tuple(shape), draw(st.integers(-ndim, ndim - 1))


@st.composite
def laid_out(draw, shape, dtype, layouts=tuple(cases.LAYOUTS)):
    """An array with the strides, the alignment and the flags of one of the layouts."""
    values = cases.values(shape, dtype, loc=draw(st.sampled_from([0.0, 7.0])), seed=draw(seeds))
    if 0 in shape:
        return values
    return cases.LAYOUTS[draw(st.sampled_from(layouts))](values)


@st.composite
def inputs(draw, shape, spoil, others=(), wrong=NO_ARRAYS):
    """x of the shape, sometimes as a list; spoiled, anything else."""
    good = draw(laid_out(shape, draw(dtypes)))
    if spoil:
        return draw(st.sampled_from(wrong + others))(good)
    as_list = good.size > 0 and draw(st.sampled_from([False] * 7 + [True]))
    return good.astype(np.float64).tolist() if as_list else good


@st.composite
def vectors(draw, count, spoil, *, positive=False, optional=False, dtype=None):
    """One value a channel; None among them where it is optional."""
    if optional and not spoil and draw(st.booleans()):
        return None
    good = draw(laid_out((count,), dtype or draw(dtypes)))
    if positive:
        good = cases.LAYOUTS[draw(st.sampled_from(cases.KEEPING))](np.abs(good) + 0.5)
    if spoil:
        return draw(st.sampled_from(NO_NUMBERS + OTHER_SHAPES[1:]))(good)
    whole = draw(st.sampled_from([False] * 4 + [True]))
    return np.rint(3 * good).astype(np.int64) + positive if whole else good


@st.composite
def outs(draw, x, spoil):
    """None, an array to write to, or x itself where that can be written to."""
    like = np.asarray(x)
    if spoil:
        return draw(st.sampled_from(NO_OUTS))(np.zeros(like.shape, like.dtype))
    writable = isinstance(x, np.ndarray) and x.flags.writeable and like.size
    kinds = ["none", "fresh", "itself"] if writable else ["none", "fresh"]
    kind = draw(st.sampled_from(kinds))
    if kind == "fresh":
        return draw(laid_out(like.shape, like.dtype.type, cases.WRITABLE))
    return x if kind == "itself" else None


@st.composite
def reals(draw, spoil, *good, negative=False):
    """A finite number; spoiled, what is none, or a negative one where that is not allowed."""
    if spoil:
        return draw(st.sampled_from(NO_REALS + (() if negative else (-1e-3, -1))))
    return draw(st.sampled_from(good))


def axes(axis, ndim, spoil):
    return st.sampled_from((ndim, -ndim - 1, 10**30, *NO_INTEGERS)) if spoil else st.just(axis)


def flags(spoil):
    return st.sampled_from(NO_FLAGS) if spoil else st.sampled_from((True, False, np.True_))


OPTIONS = ("momentum", "eps", "correction", "running_correction")


def options(draw, bad, *more_momenta):
    return {
        "momentum": draw(reals("momentum" in bad, 0.0, 0.1, 1, -0.5, *more_momenta, negative=True)),
        "eps": draw(reals("eps" in bad, 1e-5, 0.5, 1)),
        "correction": draw(reals("correction" in bad, 0, 1, 0.5)),
        "running_correction": draw(reals("running_correction" in bad, 0, 1, 1.5)),
    }


@st.composite
def running(draw, count, spoil, training, positive=False):
    """Running statistics: in training to be written to, or None."""
    if not training:
        return draw(vectors(count, spoil, positive=positive))
    if spoil:
        read_only = (lambda a: cases.read_only(a), lambda a: a.tolist())
        return draw(st.sampled_from(NO_ARRAYS + OTHER_SHAPES + read_only))(np.ones(count))
    if draw(st.sampled_from((False, False, False, True))):
        return None
    good = draw(laid_out((count,), draw(dtypes), cases.WRITABLE))
    good[...] = np.abs(good) + 0.5
    return good
