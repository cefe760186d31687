"""The registry: everything that is measured, and how it does each operation.

To add a peer, write a subclass of `Implementation` in a file of its own and put it into
`IMPLEMENTATIONS`. Libraries are imported in `Implementation.load` only, which runs in the
implementation's own process after the thread count is in the environment.
"""

from __future__ import annotations

from benchmarks.harness.cases import LIMITS
from benchmarks.harness.implementations.base import Implementation, Prepared, UnsupportedError
from benchmarks.harness.implementations.with_jax import Jax
from benchmarks.harness.implementations.with_nbbn import Frozen, Nbbn, Plain
from benchmarks.harness.implementations.with_numpy import NumPy
from benchmarks.harness.implementations.with_onnxruntime import OnnxRuntime
from benchmarks.harness.implementations.with_openvino import OpenVino
from benchmarks.harness.implementations.with_sklearn import ScikitLearn
from benchmarks.harness.implementations.with_torch import Autograd, Torch
from benchmarks.harness.implementations.yardsticks import (
    AddAffine,
    BareKernel,
    CopyAffine,
    OneTrip,
    Read,
    TwoTrip,
)

__all__ = [
    "AUTOGRAD",
    "BASELINE",
    "FROZEN",
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

FROZEN = Frozen.name
"""A frozen layer, where calls are small."""

AUTOGRAD = Autograd.name
"""torch with its recording of gradients, where calls are small."""

UNADORNED = Plain.name
"""The same without a mask, weights or several batches, where the operation has them."""

IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation
    for implementation in (
        Nbbn(),
        Plain(),
        Frozen(),
        NumPy(),
        Torch(),
        Autograd(),
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
