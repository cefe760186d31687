"""
A frozen ResNet block
=====================

The end of a residual block is ``relu(batch_norm(x) + shortcut)``. NumPy goes through memory for each
step. A frozen layer does all of them in one pass. Both run on one thread here.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

import nbbn

rng = np.random.default_rng(0)
state = {
    "bn2.weight": rng.uniform(0.5, 2, 64).astype(np.float32),
    "bn2.bias": rng.uniform(-1, 1, 64).astype(np.float32),
    "bn2.running_mean": rng.uniform(-1, 1, 64).astype(np.float32),
    "bn2.running_var": rng.uniform(0.1, 2, 64).astype(np.float32),
}
x, shortcut = rng.normal(size=(2, 8, 64, 56, 56)).astype(np.float32)

bn = nbbn.interop.from_torch(state, prefix="bn2")
bn.activation = "relu"
frozen = bn.freeze()
scale = bn.gamma / np.sqrt(bn.running_var + bn.eps)
shift = bn.beta - bn.running_mean * scale


def with_numpy(x, shortcut):
    """Scale, shift, add, and take the maximum: four passes."""
    y = x * scale[:, None, None]
    y += shift[:, None, None]
    y += shortcut
    return np.maximum(y, 0, out=y)


def with_nbbn(x, shortcut):
    """Compute the same in one pass."""
    return frozen(x, residual=shortcut)


print("largest difference:", np.abs(with_numpy(x, shortcut) - with_nbbn(x, shortcut)).max())

milliseconds = {}
with nbbn.num_threads(1):
    for name, function in (("nbbn", with_nbbn), ("NumPy", with_numpy)):
        rounds = []
        for _ in range(20):
            started = time.perf_counter()
            function(x, shortcut)
            rounds.append(1e3 * (time.perf_counter() - started))
        milliseconds[name] = min(rounds)

figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
axes.bar_label(axes.barh(list(milliseconds), list(milliseconds.values())), fmt=" %.1f ms")
axes.set(xlabel="milliseconds for (8, 64, 56, 56) float32")
axes.margins(x=0.15)
