"""A program as users write it, for `mypy --strict`; test_types.py runs both. Each reveal is the type on its line."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nbbn

if not TYPE_CHECKING:

    def reveal_type(value: object) -> None:
        """At run time there is nothing to reveal."""


Float32 = NDArray[np.float32]


def train(x: Float32, target: Float32, rate: float = 0.1) -> nbbn.BatchNorm:
    """A training loop."""
    bn = nbbn.BatchNorm(x.shape[1], activation="relu", on_nonfinite="raise", dtype=np.float32)
    for _ in range(3):
        y = bn(x)
        reveal_type(y)  # NDArray[float32]
        grad_y: Float32 = y - target
        grad_x = bn.backward(grad_y)
        reveal_type(grad_x)  # NDArray[float32]
        bn.gamma -= rate * bn.grad_gamma
        bn.beta -= rate * bn.grad_beta
        bn.running_mean[:] = bn.batch_mean
    bn.gamma = [1, 2, 3]
    bn.momentum = None
    return bn.eval()


def infer(bn: nbbn.BatchNorm, x: Float32, doubles: NDArray[np.float64]) -> Float32:
    """Inference, by the layer, a frozen one and the functions."""
    frozen: nbbn.FrozenBatchNorm = bn.freeze()
    reveal_type(frozen(x, residual=x))  # NDArray[float32]
    reveal_type(bn([[1.0, 2.0, 3.0]]))  # NDArray[Any]
    y = nbbn.normalize(doubles, bn.running_mean, 1, gamma=bn.gamma, eps=1e-3, activation="relu6")
    reveal_type(y)  # NDArray[float64]
    images = np.zeros((2, 3, 4), np.uint8)
    reveal_type(nbbn.normalize(images, 0, 1, dtype=np.float32))  # NDArray[float32]
    reveal_type(nbbn.batch_norm(x, None, None, training=True))  # NDArray[float32]
    moments = nbbn.batch_moments(x, mask=np.ones(len(x), bool)) + nbbn.Moments.empty(3)
    inv_std = 1 / moments.std()
    grad_x, grad_gamma, _ = nbbn.batch_norm_backward(x, x, moments.mean, inv_std, correction=1)
    reveal_type(grad_x)  # NDArray[float32]
    bn.gamma += grad_gamma
    plain = nbbn.FrozenBatchNorm(frozen.center, frozen.scale, frozen.shift)
    weight, bias = nbbn.fold_linear(np.ones((3, 2), np.float32), None, plain)
    print(weight.shape, bias.shape, nbbn.explain(x, "training"))
    return frozen(x, out=np.empty_like(x))


def standardize(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """A data set."""
    scaler = nbbn.Standardizer()
    z: NDArray[np.float64] = scaler.fit_transform(table)
    return z


def exchange(state: dict[str, Any]) -> dict[str, nbbn.BatchNorm]:
    """A network of another library."""
    layers: dict[str, nbbn.BatchNorm] = nbbn.interop.from_torch(state, eps=1e-3)
    return layers


def main() -> None:
    """All of it."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    bn = train(x, x + 1)
    assert infer(bn, x, x.astype(np.float64)).dtype == np.float32
    assert standardize(x.astype(np.float64)).shape == x.shape
    names = ("weight", "bias", "running_mean", "running_var")
    assert exchange({f"bn.{name}": np.ones(3, np.float32) for name in names})["bn"].eps == 1e-3
    lazy = nbbn.BatchNorm(virtual_batch_size=4).build(3)
    print(lazy.num_features + 1, nbbn.config()["nbbn"])


if __name__ == "__main__":
    main()
