"""Shapes, dtypes, axes, memory layouts and options as plain data, for tests and benchmarks alike.

`LAYOUTS` maps a name to a function that takes an array and returns another of the same shape and dtype, laid out
differently in memory. All keep the values, except those in `REPEATING`, whose strides of 0 repeat some of them.
"""

import numpy as np

DTYPES = (np.float32, np.float64)

# SIMD registers hold 16 float32 values: sizes on both sides of one and of two registers, and around 24.
INNER_SIZES = tuple(range(1, 66))
CHANNEL_COUNTS = (1, 2, 3, 15, 16, 17, 64, 100)

# (shape, axis): every number of dimensions from 1 to 5, every axis, size-1 axes, odd and even sizes.
SHAPES = (
    ((5,), 0),
    ((40, 1), 1),
    ((33, 3), 1),
    ((33, 3), -1),
    ((5, 37), 0),
    ((37, 16), 1),
    ((129, 100), 1),
    ((4, 15, 9), 1),
    ((4, 9, 17), -1),
    ((2, 3, 24), 1),
    ((6, 4, 25), 0),
    ((1, 64, 7), 1),
    ((16, 1, 1, 3), 0),
    ((16, 5, 1, 1), 1),
    ((3, 8, 7, 7), 1),
    ((3, 7, 7, 8), 3),
    ((2, 5, 6, 11), -2),
    ((3, 4, 5, 6), 0),
    ((2, 2, 31, 33), 1),
    ((2, 3, 4, 5, 6), 1),
    ((2, 3, 4, 5, 6), 2),
    ((2, 3, 1, 5, 6), -1),
)


def fortran(x):
    """Column-major memory."""
    return np.asfortranarray(x)


def channels_last_memory(x):
    """Axis 1 innermost in memory (an NHWC buffer seen as NCHW)."""
    k = min(1, x.ndim - 1)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, k, -1)), -1, k)


def shuffled_axes(x):
    """Memory order of the axes that is neither C nor Fortran nor channels-last: the first axis in the middle."""
    k = x.ndim // 2
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, k)), k, 0)


def _inside(x, index, shape):
    buffer = np.full(shape, 1e30 if x.itemsize > 2 else 77, dtype=x.dtype)
    buffer[index] = x
    return buffer[index]


def strided(x):
    """Every second entry of every axis of a larger array."""
    return _inside(x, (slice(None, None, 2),) * x.ndim, [2 * n for n in x.shape])


def strided_last(x):
    """Every third entry of the last axis of a larger array."""
    return _inside(x, (..., slice(1, None, 3)), [*x.shape[:-1], 3 * x.shape[-1]])


def channel_slice(x):
    """A slice of axis 1 (axis 0 of a vector) of a larger array."""
    k = min(1, x.ndim - 1)
    shape = [n + 3 if a == k else n for a, n in enumerate(x.shape)]
    return _inside(x, tuple(slice(1, -2) if a == k else slice(None) for a in range(x.ndim)), shape)


def row_slice(x):
    """A slice of the last axis of a larger array: rows with gaps between them."""
    return _inside(x, (..., slice(2, -3)), [*x.shape[:-1], x.shape[-1] + 5])


def batch_step(x):
    """Every second entry of the first axis of a larger array."""
    return _inside(x, (slice(1, None, 2),), [2 * x.shape[0] + 1, *x.shape[1:]])


def reversed_all(x):
    """Negative strides on every axis."""
    index = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[index])[index]


def reversed_last(x):
    """A negative stride on the last axis."""
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


def reversed_first(x):
    """A negative stride on the first axis."""
    return np.ascontiguousarray(x[::-1])[::-1]


def read_only(x):
    """C-contiguous and not writable."""
    y = np.array(x, order="C")
    y.flags.writeable = False
    return y


def read_only_strided(x):
    """Strided and not writable."""
    y = strided_last(x)
    y.flags.writeable = False
    return y


def unaligned(x):
    """C-contiguous, one byte away from the alignment of the dtype."""
    raw = np.zeros(x.nbytes + x.itemsize, dtype=np.uint8)[1 : 1 + x.nbytes]
    y = raw.view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def broadcast_first(x):
    """Stride 0 on the first axis: its first entry repeated."""
    return np.broadcast_to(x[:1], x.shape)


def broadcast_last(x):
    """Stride 0 on the last axis: its first entry repeated."""
    return np.broadcast_to(x[..., :1], x.shape)


LAYOUTS = {
    "c": np.ascontiguousarray,
    "fortran": fortran,
    "channels_last_memory": channels_last_memory,
    "shuffled_axes": shuffled_axes,
    "strided": strided,
    "strided_last": strided_last,
    "channel_slice": channel_slice,
    "row_slice": row_slice,
    "batch_step": batch_step,
    "reversed_all": reversed_all,
    "reversed_last": reversed_last,
    "reversed_first": reversed_first,
    "read_only": read_only,
    "read_only_strided": read_only_strided,
    "unaligned": unaligned,
    "broadcast_first": broadcast_first,
    "broadcast_last": broadcast_last,
}
REPEATING = ("broadcast_first", "broadcast_last")
KEEPING = tuple(name for name in LAYOUTS if name not in REPEATING)
WRITABLE = tuple(name for name in KEEPING if not name.startswith("read_only"))

# Keyword arguments of the layer; the functions take the same ones without those of the layer's state.
LAYER_OPTIONS = (
    {},
    {"eps": 1e-3, "momentum": 0.25},
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"scale": False},
    {"center": False},
    {"scale": False, "center": False},
    {"correction": 1},
    {"running_correction": 0},
    {"correction": 1, "running_correction": 0, "eps": 0.0},
    {"track_running_stats": False},
    {"dtype": np.float64},
    {"dtype": np.float64, "momentum": None, "scale": False},
)

# The batch-normalization shapes of ResNet-50 on 224 x 224 images, batch size left to the caller.
RESNET50_CHANNELS_AND_SIZES = (
    (64, 112),
    (64, 56),
    (256, 56),
    (128, 56),
    (128, 28),
    (512, 28),
    (256, 28),
    (256, 14),
    (1024, 14),
    (512, 14),
    (512, 7),
    (2048, 7),
)
DENSE_SHAPES = ((128, 256), (256, 1024), (1024, 4096), (65536, 64), (1_000_000, 16))


def resnet50_shapes(batch):
    """The shapes (batch, C, H, W) that one training step of ResNet-50 normalizes."""
    return tuple((batch, c, size, size) for c, size in RESNET50_CHANNELS_AND_SIZES)


def values(shape, dtype=np.float32, *, loc=0.7, scale=1.5, seed=0):
    """Normal values of the given shape and dtype, the same on every call."""
    return np.random.default_rng(seed).normal(loc, scale, shape).astype(dtype)


def parameters(count, dtype=np.float32, *, seed=1):
    """gamma (both signs), beta, a running mean and a positive running variance, all of shape (count,)."""
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.5, 2.0, count) * rng.choice([-1.0, 1.0], count)
    drawn = gamma, rng.normal(0, 1, count), rng.normal(0.5, 1, count), rng.uniform(0.3, 3.0, count)
    return tuple(v.astype(dtype) for v in drawn)


def case_id(case):
    """A short test id: float32 for a dtype, 2x3x4@1 for (shape, axis), a=1,b=2 for options."""
    if isinstance(case, type):
        return case.__name__
    if isinstance(case, dict):
        return ",".join(f"{k}={case_id(v) if isinstance(v, type) else v}" for k, v in case.items()) or "defaults"
    if isinstance(case, tuple) and len(case) == 2 and isinstance(case[0], tuple):
        return f"{'x'.join(map(str, case[0]))}@{case[1]}"
    return str(case)
