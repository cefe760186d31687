"""What ``nbbn demo`` measures: a small classifier in NumPy, trained by hand with and without :class:`nbbn.BatchNorm`.

Layers have the form of :class:`nbbn.BatchNorm`: ``y = layer(x)``, and then ``grad_x = layer.backward(grad_y)``, which
also leaves the gradient of each of its parameters beside it, as ``grad_NAME``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

import nbbn

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

SIZES = (64, 100, 100, 100, 10)
LEARNING_RATES = (0.01, 0.1, 1.0)
MOMENTUM = 0.9
BATCH_SIZE = 64
SCALE = 100.0
GOAL = 0.95
TEST_IMAGES = 500


class Dense:
    """A fully connected layer, ``y = x @ weight + bias``.

    Weights are drawn with variance ``2 / inputs`` (He et al. 2015, made for ReLU).
    """

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, dtype: DTypeLike) -> None:
        self.weight: FloatArray = rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs)).astype(dtype)
        self.bias: FloatArray = np.zeros(outputs, dtype)
        self.grad_weight, self.grad_bias = np.zeros_like(self.weight), np.zeros_like(self.bias)

    def __call__(self, x: FloatArray) -> FloatArray:
        self._x = x
        return x @ self.weight + self.bias

    def backward(self, grad_y: FloatArray) -> FloatArray:
        self.grad_weight = self._x.T @ grad_y
        self.grad_bias = grad_y.sum(axis=0)
        return grad_y @ self.weight.T


class ReLU:
    """The nonlinearity ``y = max(x, 0)``."""

    def __call__(self, x: FloatArray) -> FloatArray:
        self._positive = x > 0
        return np.maximum(x, 0)

    def backward(self, grad_y: FloatArray) -> FloatArray:
        return grad_y * self._positive


class Network:
    """Dense layers with ReLU between them and, if asked for, batch normalization before each ReLU.

    The initial weights for a seed are the same with and without it; ``scale`` multiplies those of the first layer.
    """

    def __init__(
        self, sizes: Sequence[int], *, batch_norm: bool, seed: int, scale: float = 1.0, dtype: DTypeLike = np.float32
    ) -> None:
        rng = np.random.default_rng(seed)
        *hidden, last = (Dense(inputs, outputs, rng, dtype) for inputs, outputs in itertools.pairwise(sizes))
        hidden[0].weight *= scale
        self.layers: list[Any] = []
        for dense in hidden:
            norms = [nbbn.BatchNorm(dense.bias.size, dtype=dtype)] if batch_norm else []
            self.layers += [dense, *norms, ReLU()]
        self.layers.append(last)

    def __call__(self, x: FloatArray) -> FloatArray:
        """Return the logits, shape (samples, classes)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, grad_logits: FloatArray) -> FloatArray:
        """Return the gradient for the network's input; set those of all parameters."""
        for layer in reversed(self.layers):
            grad_logits = layer.backward(grad_logits)
        return grad_logits

    def train(self, mode: bool = True) -> None:
        """Normalize with the statistics of each batch, and update the running ones; or with these, if not ``mode``."""
        for layer in self.layers:
            if isinstance(layer, nbbn.BatchNorm):
                layer.train(mode)

    def parameters(self) -> list[tuple[FloatArray, FloatArray]]:
        """Return each parameter with the gradient of the last backward call, in a fixed order."""
        return [
            (getattr(layer, name), getattr(layer, f"grad_{name}"))
            for layer in self.layers
            for name in ("weight", "bias", "gamma", "beta")
            if hasattr(layer, name)
        ]


def softmax_cross_entropy(logits: FloatArray, labels: IntArray) -> tuple[float, FloatArray]:
    """Return the mean loss ``-log softmax(logits)[label]`` and its gradient for the logits."""
    samples = np.arange(len(labels))
    # Subtracting the maximum changes nothing in the result and keeps exp from overflowing.
    logits = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits)
    total = exponentials.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - logits[samples, labels])
    gradient = exponentials / total
    gradient[samples, labels] -= 1
    return float(loss), gradient / len(labels)


class SGD:
    """Stochastic gradient descent with momentum."""

    def __init__(self, learning_rate: float, momentum: float) -> None:
        self.learning_rate, self.momentum = learning_rate, momentum
        self._velocities: list[FloatArray] = []

    def step(self, parameters: Sequence[tuple[FloatArray, FloatArray]]) -> None:
        """Change each parameter in place, given (parameter, gradient) in a fixed order."""
        self._velocities = self._velocities or [np.zeros_like(parameter) for parameter, _ in parameters]
        for (parameter, gradient), velocity in zip(parameters, self._velocities, strict=True):
            velocity *= self.momentum
            velocity -= self.learning_rate * gradient
            parameter += velocity


def train_one_epoch(network: Network, sgd: SGD, x: FloatArray, labels: IntArray, batches: Sequence[IntArray]) -> float:
    """Take one step a batch, in training mode; return the mean loss."""
    network.train()
    losses = []
    for batch in batches:
        loss, gradient = softmax_cross_entropy(network(x[batch]), labels[batch])
        network.backward(gradient)
        sgd.step(network.parameters())
        losses.append(loss)
    return float(np.mean(losses))


def shuffled_batches(samples: int, batch_size: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Return the samples' indices in a random order, cut into batches for one epoch.

    The batches differ by at most one sample in size: a small last one would have poor statistics.
    """
    return np.array_split(rng.permutation(samples), -(-samples // batch_size))


class Digits(NamedTuple):
    """Handwritten digits, split into those to learn from and those to test on."""

    x_train: FloatArray  # pixels from 0 to 1, shape (images, 64), float32
    y_train: IntArray
    x_test: FloatArray
    y_test: IntArray


def load_digits() -> Digits:
    """Load scikit-learn's 1,797 images and split them, always in the same way."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32)
    # The file is ordered by writer, so the split is random, but the same for every seed.
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(x[train], labels[train], x[test], labels[test])


class Setting(NamedTuple):
    """One way to train the network."""

    learning_rate: float
    batch_norm: bool  # whether there are such layers
    scaled: bool  # whether the first layer's weights are multiplied by 100 before training


SETTINGS = tuple(itertools.starmap(Setting, itertools.product(LEARNING_RATES, (True, False), (False, True))))


class Outcome(NamedTuple):
    """How one training went."""

    accuracies: tuple[float, ...]  # of the test images: untrained, after each epoch until it diverged
    diverged: bool  # whether the numbers stopped being finite

    @property
    def epochs_to_goal(self) -> int | None:
        """The first epoch that ended with an accuracy of 95 % or more; None if none did."""
        return next((epoch for epoch, accuracy in enumerate(self.accuracies) if epoch and accuracy >= GOAL), None)


def train(setting: Setting, digits: Digits, *, epochs: int, seed: int, after_epoch: Callable[[], None]) -> Outcome:
    """Train one network and test it after each epoch.

    Settings differ in nothing else: a seed stands for initial weights (but for their scale) and an order of the images.
    """
    # A dependency of scikit-learn, so it is there where the digits are.
    from threadpoolctl import threadpool_limits

    network = Network(SIZES, batch_norm=setting.batch_norm, seed=seed, scale=SCALE if setting.scaled else 1.0)
    sgd, shuffler = SGD(setting.learning_rate, MOMENTUM), np.random.default_rng(seed)
    # A diverging network overflows; that is found below, by looking for it. The matrices are so small that a second
    # BLAS thread gains nothing, and on a busy machine waiting for it made the training six times slower.
    with np.errstate(all="ignore"), threadpool_limits(limits=1, user_api="blas"):
        accuracies = [_test(network, digits)]
        for _ in range(epochs):
            batches = shuffled_batches(len(digits.x_train), BATCH_SIZE, shuffler)
            loss = train_one_epoch(network, sgd, digits.x_train, digits.y_train, batches)
            accuracy = _test(network, digits)
            after_epoch()
            if not np.isfinite(loss + accuracy):
                return Outcome(tuple(accuracies), diverged=True)
            accuracies.append(accuracy)
    return Outcome(tuple(accuracies), diverged=False)


def _test(network: Network, digits: Digits) -> float:
    """Return the accuracy on the test images, in inference mode; NaN if the logits overflowed."""
    network.train(False)
    logits = network(digits.x_test)
    return float(np.mean(logits.argmax(axis=1) == digits.y_test)) if np.isfinite(logits).all() else float("nan")


def logit_change(digits: Digits, *, batch_norm: bool, seed: int) -> float:
    """Return the largest change of a logit of a training batch, as a share of the largest one.

    What changes is the first layer of the untrained network: it is multiplied by 100.
    """
    networks = (Network(SIZES, batch_norm=batch_norm, seed=seed, scale=scale) for scale in (1.0, SCALE))
    before, after = (network(digits.x_train[:BATCH_SIZE]) for network in networks)
    return float(np.abs(after - before).max() / np.abs(before).max())
