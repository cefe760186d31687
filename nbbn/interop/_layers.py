"""What the formats share: arrays by name -> a checked layer."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from nbbn._checks import Array
from nbbn.layer.batch_norm import BatchNorm

COUNTER = "num_batches_tracked"
_RUNNING = ("running_mean", "running_var")
# what is in a state dict -> the layer's attribute
TORCH_NAMES = {"weight": "gamma", "bias": "beta", **{name: name for name in (*_RUNNING, COUNTER)}}
NBBN_NAMES = {name: name for name in TORCH_NAMES.values()}
_MOST_SHOWN = 8  # keys in a message

Keys = Collection[str]
Tables = tuple[Mapping[str, str], ...]
Read = Callable[[str], Any]


def required(module: str) -> Any:
    """Return a module of a library; the extras of nbbn are named like theirs, torch is none."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        how = "pip install torch" if library == "torch" else f"in a checkout of nbbn: pip install '.[{library}]'"
        raise ImportError(f"{library}: expected it to be installed ({how}), got: {error}") from error


@contextlib.contextmanager
def reading(argument: str, kind: str, source: Any) -> Iterator[None]:
    """Turn whatever is wrong with the contents of a file into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{argument}: expected {kind}, got {source!s}: {reason}") from error


def instance(bn: Any) -> BatchNorm:
    if not isinstance(bn, BatchNorm):
        raise TypeError(f"bn: expected a BatchNorm, got {type(bn).__name__}")
    return bn


def plain(name: str, value: Any) -> Array:
    """Return an array, a torch tensor or a Keras variable as an ndarray."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked array")
    is_tensor = hasattr(value, "detach")
    if is_tensor and value.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor in the CPU's memory, got one on {value.device}")
    try:
        if is_tensor:
            value = value.detach()
            if str(value.dtype) == "torch.bfloat16":  # which NumPy does not know
                value = value.float()
        elif not hasattr(value, "__array__") and hasattr(value, "numpy"):
            value = value.numpy()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name}: expected an array, got {kind} ({str(error).partition('. ')[0]})") from error


def widened(name: str, value: Any) -> Array:
    """Return ``value`` as float32 or float64; float16 and bfloat16 widen without loss."""
    array = plain(name, value)
    if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {array.dtype.name}")
    return array.astype(np.float64 if array.dtype.name == "float64" else np.float32)


def from_bfloat16(bits: Array) -> Array:
    """Return float32 values of bfloat16 bits: they are the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_layer(values: Mapping[str, tuple[str, Any]], *, num_features: int | None = None, **options: Any) -> BatchNorm:
    """Return a layer that has what ``values`` has, in inference mode.

    ``values`` maps attributes of the layer to the source's name for the array, and the array;
    ``num_features`` is needed where there may be none.
    """
    _, number = values.get(COUNTER, (COUNTER, 0))
    arrays = {key: widened(name, value) for key, (name, value) in values.items() if key != COUNTER}
    if num_features is None:
        first = next(iter(arrays.values()))
        num_features = first.size if first.ndim == 1 and first.size else None
    for key, array in arrays.items():
        if array.shape != (num_features,):
            count = num_features or "C"
            raise ValueError(f"{values[key][0]}: expected shape ({count},), one value a channel, got {array.shape}")
    bn = BatchNorm(
        num_features,
        scale="gamma" in arrays,
        center="beta" in arrays,
        track_running_stats="running_mean" in arrays,
        dtype=np.result_type(np.float32, *arrays.values()),
        **options,
    )
    state = {key: array.astype(bn.dtype) for key, array in arrays.items()}
    bn.load_state_dict({**state, COUNTER: plain(COUNTER, number)})
    return bn.eval()


def from_arrays(
    keys: Keys, prefix: str, tables: Tables, read: Read, **options: Any
) -> BatchNorm | dict[str, BatchNorm]:
    """Return the layer under ``prefix``; without one those of a network, by their prefixes.

    ``read`` returns the array of a key. Nothing else is read.
    """
    groups: dict[str, list[str]] = {}
    if not prefix and _RUNNING[0] not in keys:
        for key in keys:
            groups.setdefault(key.rpartition(".")[0], []).append(key)
    network = {start: own for start, own in groups.items() if f"{start}.{_RUNNING[0]}" in own}
    if not network:
        return _under(prefix, keys, tables, read, options)
    return {start: _under(start, own, tables, read, options) for start, own in network.items()}


def _under(prefix: str, keys: Keys, tables: Tables, read: Read, options: dict[str, Any]) -> BatchNorm:
    """Return the layer under ``prefix``: the names there have to be those of one of the ``tables``, and complete."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {type(prefix).__name__}")
    start = f"{prefix.removesuffix('.')}." if prefix else ""
    own = [key for key in keys if key.startswith(start)]
    names = {key.removeprefix(start) for key in own}
    if not names:
        raise ValueError(f"prefix: expected keys under {prefix!r}, got {shown(keys)}")
    table = max(tables, key=lambda each: len(names & each.keys()))
    extra = sorted(names - table.keys())
    if extra:
        known, last = ", ".join(map(repr, table)), f".{_RUNNING[0]}"
        layers = [key.removesuffix(last) for key in keys if key.endswith(last)]  # for who forgot the prefix
        advice = f"; prefixes of layers: {shown(layers)}" if layers else ""
        raise ValueError(f"{start}{extra[0]}: expected no key but {known} under {prefix!r}, got {shown(own)}{advice}")
    needed = [name for name in _RUNNING if names & {*_RUNNING}]
    if "bias" in names or names == {COUNTER}:  # PyTorch has layers without a bias, none without a weight
        needed.append("weight")
    for name in needed:
        if name not in names:
            raise ValueError(f"{start}{name}: expected this key, got {shown(own)}")
    values = {table[name]: (f"{start}{name}", read(f"{start}{name}")) for name in table if name in names}
    return make_layer(values, **options)


def shown(names: Keys) -> str:
    """Return some of the names, for a message."""
    chosen = sorted(names)[:_MOST_SHOWN]
    more = f" and {len(names) - len(chosen)} more" if len(names) > len(chosen) else ""
    return (", ".join(map(repr, chosen)) or "none") + more


def complement(weight: float) -> float:
    """Return ``1 - weight``: Keras and ONNX weigh the old value, nbbn the new one.

    0.99 becomes 0.01, and not 0.010000000000000009: what is left of 1 is 0.99 to the last bit.
    """
    short = round(1.0 - weight, 15)
    return short if 1.0 - short == weight else 1.0 - weight
