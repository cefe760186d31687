"""The registry: everything that is measured, and how it does each operation.

To add a peer, write a subclass of `Implementation` in a file of its own and put it into
`IMPLEMENTATIONS`. Libraries are imported in `Implementation.load` only, which runs in the
implementation's own process after the thread count is in the environment.
"""

from __future__ import annotations

from nbbn._bench.cases import STATISTICS
from nbbn._bench.implementations.base import Implementation, Prepared, UnsupportedError
from nbbn._bench.implementations.with_jax import Jax
from nbbn._bench.implementations.with_nbbn import Nbbn, Plain
from nbbn._bench.implementations.with_numpy import NumPy
from nbbn._bench.implementations.with_onnxruntime import OnnxRuntime
from nbbn._bench.implementations.with_openvino import OpenVino
from nbbn._bench.implementations.with_sklearn import ScikitLearn
from nbbn._bench.implementations.with_torch import Torch
from nbbn._bench.implementations.yardsticks import (
    AddAffine,
    BareKernel,
    CopyAffine,
    OneTrip,
    Read,
    TwoTrip,
)

__all__ = [
    "BASELINE",
    "IMPLEMENTATIONS",
    "LIMITS",
    "QUICK",
    "UNADORNED",
    "Implementation",
    "Prepared",
    "UnsupportedError",
]

BASELINE = Nbbn.name
"""The implementation that every other one is compared with."""

UNADORNED = Plain.name
"""The same without a mask, weights or several batches, where the operation has them."""

LIMITS = {
    "inference": CopyAffine.name,
    "moments": Read.name,
    "training": TwoTrip.name,
    "backward": TwoTrip.name,
    "inference+relu": CopyAffine.name,
    "inference+residual+relu": AddAffine.name,
    "inference+hard_swish": CopyAffine.name,
    "training+relu": TwoTrip.name,
    "fit": Read.name,
    "partial_fit": Read.name,
    "transform": CopyAffine.name,
    "inverse_transform": CopyAffine.name,
    "fit_transform": TwoTrip.name,
}
LIMITS |= {operation: LIMITS[plain] for operation, plain in STATISTICS.items()}
"""The yardstick of each operation, which every time is a multiple of."""

IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation
    for implementation in (
        Nbbn(),
        Plain(),
        NumPy(),
        Torch(),
        OnnxRuntime(),
        Jax(),
        OpenVino(),
        ScikitLearn(),
        CopyAffine(),
        AddAffine(),
        Read(),
        TwoTrip(),
        OneTrip(),
        BareKernel(),
    )
}

QUICK = tuple(
    name
    for name, implementation in IMPLEMENTATIONS.items()
    if not implementation.is_yardstick or name in LIMITS.values()
)
"""What ``--quick`` takes, unless it is told: nbbn, the libraries, and the limits of the operations."""
