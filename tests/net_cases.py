"""The cases of `net`: operations on layouts, dtypes, options and modes, as a table and what reads it.

Only the public interface is used, so that the net outlives a move of everything behind it; but for `stream_anything`.
"""

import contextlib
import functools
import importlib
import re
import zlib
from dataclasses import dataclass
from itertools import product

import ml_dtypes
import numba
import numpy as np

import nbbn
import nbbn.distributed
import nbbn.nopython

KINDS = ("inference", "moments", "training", "gradients")
RAISED = "raised"  # and no result
TINY = 1300  # values: the arrays that are not too large for the interpreter

# name: (shape of the memory, channel axis, what of it is given)
LAYOUTS = {
    "nchw": ((2, 7, 3, 17), 1, np.asarray),
    "nchw 4x5": ((2, 32, 4, 5), 1, np.asarray),
    "nchw 3x3": ((5, 6, 3, 3), 1, np.asarray),
    "nhwc": ((3, 3, 5, 20), -1, np.asarray),
    "nc": ((37, 21), 1, np.asarray),
    "nc narrow": ((397, 3), -1, np.asarray),
    "nct": ((3, 6, 41), 1, np.asarray),
    "one channel": ((9, 1, 33), 1, np.asarray),
    "one channel nc": ((40, 1), 1, np.asarray),
    "many channels": ((2, 180, 3), 1, np.asarray),
    "fortran": ((3, 5, 5, 11), 1, np.asfortranarray),
    "fortran nc": ((37, 21), 1, np.asfortranarray),
    "nhwc memory": ((3, 5, 3, 20), 1, lambda x: np.moveaxis(x, -1, 1)),
    "some samples": ((5, 5, 5, 11), 1, lambda x: x[1::2]),
    "some channels": ((2, 8, 5, 11), 1, lambda x: x[:, 1:-2]),
    "some pixels": ((2, 5, 5, 24), 1, lambda x: x[:, :, 1:-1, 2:-3]),
    "some time steps": ((2, 6, 80), 1, lambda x: x[:, :, 1::3]),
    "some channels nhwc": ((3, 3, 5, 20), -1, lambda x: x[..., 1:-2]),
    "long rows, some": ((2, 2, 300), 1, lambda x: x[..., 2:-3]),
    "some rows nc": ((37, 21), 1, lambda x: x[1::2]),
    "reversed": ((2, 5, 5, 11), 1, lambda x: x[::-1, :, ::-1, ::-1]),
    "broadcast samples": ((1, 5, 5, 11), 1, lambda x: np.broadcast_to(x, (3, 5, 5, 11))),
    "broadcast pixels": ((4, 5, 1, 1), 1, lambda x: np.broadcast_to(x, (4, 5, 5, 11))),
    # too large for the interpreter: several pieces of a channel, several tiles of columns
    "nchw 7x7": ((3, 40, 7, 7), 1, np.asarray),
    "long rows": ((2, 3, 20_001), 1, np.asarray),
    "many samples": ((700, 2, 51), 1, np.asarray),
    "many pixels": ((3, 17, 1301), 1, np.asarray),
    "nc long": ((3001, 37), 1, np.asarray),
    "nc wide": ((70, 1601), 1, np.asarray),
    "many pixels, some": ((3, 13, 1400), 1, lambda x: x[..., 2:-3]),
    "nc wide, some": ((70, 1601), 1, lambda x: x[:, 3:-4]),
    # and large enough for threads
    "large nchw": ((4, 33, 33, 33), 1, np.asarray),
    "large nchw 7x7": ((25, 112, 7, 7), 1, np.asarray),
    "large nhwc": ((4, 7, 9, 601), -1, np.asarray),
    "large nc": ((2051, 67), 1, np.asarray),
    "large few channels": ((11, 3, 71, 70), 1, np.asarray),
    "large nchw, some": ((3, 24, 2001), 1, lambda x: x[..., 1:-30]),
    "large nc, some": ((131, 1100), 1, lambda x: x[:, 5:-6]),
    "large nhwc, some": ((16, 27, 27, 14), -1, lambda x: x[..., 1:-1]),
    "past the cache": ((40, 64, 70, 70), 1, np.asarray),  # with its y 100 MB of float32
}
LARGE = [name for name in LAYOUTS if name.startswith("large")]
SMALL = [name for name in LAYOUTS if name not in (*LARGE, "past the cache")]
FEW = ["nchw", "nchw 4x5", "nchw 3x3", "nhwc", "nc", "some pixels", "some channels nhwc"]
GAPS = ["long rows, some", "many pixels, some", "nc wide, some"]
STREAMED = [*LARGE[:3], *LARGE[4:7]]  # in runs long enough

FLOATS = ("float32", "float64", "float16", "bfloat16")
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish", "prelu")

OPTIONS = {
    "plain": {},
    **{name: {"activation": name} for name in ACTIVATIONS},
    "steep leaky_relu": {"activation": "leaky_relu", "negative_slope": 0.3},
    "residual": {"residual": True},
    **{f"residual {name}": {"activation": name, "residual": True} for name in ACTIVATIONS},
    "mask": {"mask": "each place"},
    "mask of samples": {"mask": "samples"},
    "mask residual relu": {"mask": "each place", "activation": "relu", "residual": True},
    "weights": {"weights": "each place"},
    "weights of samples": {"weights": "samples"},
    "float64 parameters": {"dtype": np.float64},
    "no gamma, no beta": {"scale": False, "center": False},
    "other options": {"correction": 1, "running_correction": 0, "momentum": None, "eps": 1e-3},
    "in place": {"out": True},
    "virtual batches": {"virtual_batch_size": 2},
}
CALLS = ("residual", "mask", "weights", "out")  # options of calls, not of layers
FUSED = [name for name in OPTIONS if any(one in name for one in (*ACTIVATIONS, "residual"))]
MASKS = ["mask", "mask of samples", "weights", "weights of samples"]
OTHERS = [name for name in OPTIONS if name not in (*FUSED, *MASKS)]
FUNCTIONS = ("moments", "inference", "train")

# (layouts, dtypes, options, operations, modes): every combination
TABLE = (
    (SMALL, FLOATS, ["plain"], (*FUNCTIONS, "standardizer"), ["serial"]),
    (SMALL, ["uint8"], ["plain"], ("moments", "normalize"), ["serial"]),
    (["nchw", "nc"], ["float32"], ["plain"], ["sums"], ["serial"]),
    (FEW, ["float32"], [*FUSED, *OTHERS[1:]], FUNCTIONS[1:], ["serial"]),
    (FEW, FLOATS, MASKS, FUNCTIONS, ["serial"]),
    (["nchw", "nhwc"], FLOATS[1:], ["residual hard_swish", "leaky_relu"], FUNCTIONS, ["serial"]),
    (["many samples", "nc long", "long rows"], ["float32"], MASKS, FUNCTIONS, ["serial"]),
    (LARGE, ["float32"], ["plain"], FUNCTIONS, ["parallel"]),
    (
        STREAMED,
        ["float32"],
        ["plain", "residual relu", "mask"],
        FUNCTIONS,
        ["parallel", "streamed"],
    ),
    (STREAMED[:4], FLOATS[1:], ["plain"], FUNCTIONS, ["parallel", "streamed"]),
    (STREAMED, ["uint8"], ["plain"], ("moments", "normalize"), ["parallel", "streamed"]),
    (GAPS, ["float32"], ["plain", "residual relu", "mask"], FUNCTIONS[1:], ["streamed"]),
    (GAPS, FLOATS[1:], ["plain"], FUNCTIONS[1:], ["streamed"]),
    (["past the cache"], ["float32"], ["plain"], FUNCTIONS, ["parallel"]),
    (FEW, FLOATS[:2], ["plain", "mask", "residual relu"], ["sync"], ["serial"]),
    (
        [*SMALL[:10], *SMALL[22:], "large nchw"],
        FLOATS[:2],
        ["plain"],
        ["nopython"],
        ["serial"],
    ),
)


@functools.lru_cache(maxsize=32)
def memory(layout, dtype, salt, unusual):
    """Normal values; of sixteen channels, those before ``unusual`` may have a large mean, a far first
    value, one value only, or values that are not finite."""
    shape, axis, _ = LAYOUTS[layout]
    rng = np.random.default_rng(zlib.crc32(f"{layout} {salt}".encode()))
    if dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    size = min(np.prod(shape), 1 << 20)  # more would take its time, and be no other
    values = np.resize(rng.normal(0.3, 1.5, size), shape)
    for c, channel in enumerate(np.moveaxis(values, axis, 0)):
        first, middle = (0,) * channel.ndim, tuple(n // 2 for n in channel.shape)
        match c % 16 if c % 16 < unusual else None:
            case 2 | 12:
                channel += 1000.0 if "16" in dtype else 1e5
            case 3 | 13:
                channel[first] = 1e4
            case 6:
                channel[...] = 0.1
            case 7:
                channel[first] = np.nan
            case 8:
                channel[middle] = np.nan
            case 9:
                channel[first] = np.inf
            case 10:
                channel[middle] = -np.inf
    return values.astype(dtype_of(dtype))


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@dataclass
class Case:
    """What operations are given."""

    layout: str
    dtype: str
    option: str

    def __post_init__(self):
        given = OPTIONS[self.option]
        self.layer = {name: value for name, value in given.items() if name not in CALLS}
        self.call = {name: value for name, value in given.items() if name in CALLS}
        self.fused = {k: v for k, v in self.layer.items() if k in ("activation", "negative_slope")}
        self.x = self.array("x", 16)
        self.axis = LAYOUTS[self.layout][1] % self.x.ndim
        self.channels = self.x.shape[self.axis]
        rng = np.random.default_rng(self.channels)
        drawn = rng.normal(size=(4, self.channels)).astype(self.layer.get("dtype", np.float32))
        self.mean, self.var, self.gamma, self.beta = drawn
        self.var, self.gamma = self.var**2 + 0.1, self.gamma + 0.2
        self.first = 0 if self.axis else 1  # an axis of samples

    def array(self, salt, unusual=0):
        """An array of its own, in the layout."""
        return LAYOUTS[self.layout][2](memory(self.layout, self.dtype, salt, unusual).copy())

    def chosen(self, what):
        """A mask or weights, of the places or of the samples."""
        shape = [1 if axis == self.axis else n for axis, n in enumerate(self.x.shape)]
        if self.call[what] == "samples":
            shape = [n if axis == self.first else 1 for axis, n in enumerate(shape)]
        rng = np.random.default_rng(len(self.call[what]))
        kept = rng.random(shape) < 0.6
        kept.flat[1] = True
        return kept if what == "mask" else np.where(kept, rng.random(shape), 0.0)

    def forward(self, *unwanted):
        """Arguments of a forward."""
        found = {"residual": self.array("residual")} if "residual" in self.call else {}
        if "mask" in self.call and "mask" not in unwanted:
            found["mask"] = self.chosen("mask")
        return found

    def run(self, function, *given, **options):
        """Call ``function`` with x, in place or not."""
        x = self.array("x", 16)
        return function(x, *given, **options, **({"out": x} if "out" in self.call else {}))

    def made(self, make=nbbn.BatchNorm, **more):
        """A layer with numbers of its own."""
        bn = make(self.channels, axis=self.axis, **self.layer, **more)
        state = bn.state_dict()
        names = ("running_mean", "running_var", "gamma", "beta")
        drawn = zip(names, (self.mean, self.var, self.gamma, self.beta), strict=True)
        bn.load_state_dict({**state, **{k: v for k, v in drawn if k in state}})
        return bn

    def halves(self, x):
        """Two parts of the samples."""
        return np.split(x, [x.shape[self.first] // 2], axis=self.first)


def gradients_of(case, bn, name):
    """What a backward leaves."""
    grad = case.array("grad")
    yield "gradients", f"{name} grad_x", bn.backward(grad, out=grad if "out" in case.call else None)
    for what in ("grad_gamma", "grad_beta", "grad_residual", "grad_slope"):
        if getattr(bn, what, None) is not None:
            yield "gradients", f"{name} {what}", getattr(bn, what)


def state_of(bn, name):
    for what in ("batch_mean", "batch_var", "batch_inv_std", "running_mean", "running_var"):
        yield "training", f"{name} {what}", getattr(bn, what)


def normalize(case):
    yield (
        "inference",
        "normalize",
        nbbn.normalize(case.x, case.mean, case.var, case.gamma, case.beta, axis=case.axis, dtype=np.float32),
    )


def inference(case):
    call, axis = case.forward("mask"), {"axis": case.axis}
    vectors = case.mean, case.var, case.gamma, case.beta
    bn = case.made().eval()
    yield "inference", "layer", case.run(bn, **call)
    yield "inference", "frozen", case.run(bn.freeze(), **call)
    for function in (nbbn.normalize, nbbn.batch_norm):
        found = case.run(function, *vectors, **axis, **case.fused, **call)
        yield "inference", function.__name__, found
    bn(case.x, **call)
    yield from gradients_of(case, bn, "layer")


def train(case):
    call, bn = case.forward(), case.made()
    yield "training", "layer y", case.run(bn, **call)
    yield from state_of(bn, "layer")
    bn(case.x, **call)
    yield from gradients_of(case, bn, "layer")
    running = case.mean.copy(), case.var.copy()
    vectors, rest = (case.gamma, case.beta), {"axis": case.axis, "training": True}
    y = case.run(nbbn.batch_norm, *running, *vectors, **rest, **case.fused, **call)
    yield "training", "function y", y
    yield "training", "function running", np.array(running)
    mean, inv_std = bn.batch_mean, bn.batch_inv_std
    of_mask = {"mask": call["mask"]} if "mask" in call else {}
    for training in (True, False):
        rest["training"], grad = training, case.array("grad")
        found = nbbn.batch_norm_backward(grad, case.x, mean, inv_std, case.gamma, **rest, **of_mask)
        for what, array in zip(("grad_x", "grad_gamma", "grad_beta"), found, strict=True):
            yield "gradients", f"function {what}, training={training}", array


def all_of(moments, name):
    for what, value in (("count", moments.count), ("mean", moments.mean), ("m2", moments.m2)):
        yield "moments", f"{name} {what}", value


def moments(case):
    rest = {what: case.chosen(what) for what in ("mask", "weights") if what in case.call}
    axis = {"axis": case.axis}
    whole = nbbn.batch_moments(case.x, **axis, **rest)
    yield from all_of(whole, "batch_moments")
    yield "moments", "var and std", np.array([whole.var(), whole.var(1), whole.std()])
    if not rest:
        a, b = (nbbn.batch_moments(part, **axis) for part in case.halves(case.x))
        yield from all_of(a + b, "merge")
        yield from all_of(a.update(case.halves(case.x)[1], **axis), "update")
        yield from all_of(nbbn.Moments.from_batches(case.halves(case.x), **axis), "from_batches")


def sums(case):
    parts = [nbbn.batch_moments(part, axis=case.axis) for part in case.halves(case.x)]
    yield from all_of(sum(parts), "sum")


def standardizer(case):
    x = case.array("x", 7)  # finite, as it asks for
    scaler, parts = nbbn.Standardizer(axis=case.axis).fit(x), nbbn.Standardizer(axis=case.axis)
    for part in case.halves(x):
        parts.partial_fit(part)
    for name, found in (("fit", scaler), ("partial_fit", parts)):
        for what in ("mean_", "var_", "scale_"):
            yield "moments", f"{name} {what}", getattr(found, what)
    y = scaler.transform(x)
    yield "inference", "transform", y
    yield "inference", "inverse_transform", scaler.inverse_transform(y)


@functools.cache
def compiled():
    """A user's functions."""

    def normalize_all(x3, center, scale, shift, y):
        nbbn.nopython.normalize(x3, center, scale, shift, y)

    def moments_of(x3, mean, m2):
        return nbbn.nopython.moments(x3, mean, m2)

    return numba.njit(normalize_all), numba.njit(moments_of)


def nopython(case):
    inner = int(np.prod(case.x.shape[case.axis + 1 :]))
    x3 = np.ascontiguousarray(case.x).reshape(-1, case.channels, inner)
    y, vectors = np.empty_like(x3), (case.mean, case.gamma, case.beta)
    for kind in FLOATS[:2]:
        compiled()[0](x3, *(v.astype(kind) for v in vectors), y)
        yield "inference", f"normalize with {kind}", y
    for rows in (len(x3), 1, min(3, len(x3))):
        mean, m2 = np.empty(case.channels), np.empty(case.channels)
        count = compiled()[1](x3[:rows], mean, m2)
        yield "moments", f"moments of {rows}", np.array([np.full(case.channels, count), mean, m2])


def sync(case):
    import workers  # of this folder, known where `net` itself is found

    call, grad = case.forward(), case.array("grad")
    parts = {name: case.halves(array) for name, array in call.items()}

    def work(comm):
        bn = case.made(nbbn.distributed.SyncBatchNorm, comm=comm)
        mine = {name: both[comm.rank] for name, both in parts.items()}
        y = bn(case.halves(case.x)[comm.rank], **mine)
        return y, bn, bn.backward(case.halves(grad)[comm.rank])

    for rank, (y, bn, grad_x) in enumerate(workers.results(2, work)):
        yield "training", f"worker {rank} y", y
        yield from state_of(bn, f"worker {rank}")
        yield "gradients", f"worker {rank} grad_x", grad_x
        yield "gradients", f"worker {rank} grad_gamma", bn.grad_gamma
        yield "gradients", f"worker {rank} grad_beta", bn.grad_beta


OPERATIONS = (normalize, inference, train, moments, sums, standardizer, nopython, sync)


@contextlib.contextmanager
def stream_anything():
    """Results of any size are written past the cache: the one look behind the public interface."""
    machine = known_room("nbbn._engine.machine", "nbbn._machine")
    changed = [(machine, "last_level_cache", lambda: 0)]
    with contextlib.suppress(ImportError):  # where small arrays are not even asked
        changed.append((importlib.import_module("nbbn._engine.plan"), "PARALLEL_FROM", 0))
    before = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changed, before, strict=True):
            setattr(module, name, value)


def known_room(*names):
    for name in names:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise SystemExit("net: nobody knows the size of the cache; tell `stream_anything` where it is")


def corpus(pattern="", tiny=False):
    """The results of this process's nbbn: (name, kind, array), in the order of the table."""
    operations, seen = {function.__name__: function for function in OPERATIONS}, set()
    for layouts, dtypes, options, names, modes in TABLE:
        for layout, dtype, option, name, mode in product(layouts, dtypes, options, names, modes):
            place = f" | {dtype} | {layout} | {option} | {mode}"
            unfit = option.startswith("weights") and name != "moments"
            unfit = unfit or (tiny and np.prod(LAYOUTS[layout][0]) > TINY) or name + place in seen
            if unfit or not re.search(pattern, name + place):
                continue
            seen.add(name + place)
            try:
                with stream_anything() if mode == "streamed" else contextlib.nullcontext():
                    for kind, what, array in operations[name](Case(layout, dtype, option)):
                        yield f"{name}.{what}{place}", kind, array
            except Exception as error:  # of an operation that a revision does not know, say
                yield f"{name}{place}", RAISED, error
