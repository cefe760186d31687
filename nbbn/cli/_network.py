"""A small classifier in NumPy with :class:`nbbn.BatchNorm` in it: the whole of training by hand.

A layer is called forwards, ``y = layer(x)``, and then backwards,
``grad_x = layer.backward(grad_y)``, which also leaves the gradients of the layer's own parameters
beside them.
:class:`nbbn.BatchNorm` has the same form, so it goes into the list of layers as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

import nbbn

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


class Dense:
    """A fully connected layer, ``y = x @ weight + bias``.

    Weights are drawn with variance ``2 / inputs`` (He et al. 2015, made for ReLU).
    """

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator, dtype: DTypeLike) -> None:
        deviation = np.sqrt(2.0 / inputs)
        self.weight: FloatArray = rng.normal(0.0, deviation, (inputs, outputs)).astype(dtype)
        self.bias: FloatArray = np.zeros(outputs, dtype)
        self.grad_weight: FloatArray = np.zeros_like(self.weight)
        self.grad_bias: FloatArray = np.zeros_like(self.bias)

    def __call__(self, x: FloatArray) -> FloatArray:
        self._x = x
        return x @ self.weight + self.bias

    def backward(self, grad_y: FloatArray) -> FloatArray:
        """Return the gradient for ``x``; set ``grad_weight`` and ``grad_bias``."""
        self.grad_weight = self._x.T @ grad_y
        self.grad_bias = grad_y.sum(axis=0)
        return grad_y @ self.weight.T


class ReLU:
    """The nonlinearity ``y = max(x, 0)``."""

    def __call__(self, x: FloatArray) -> FloatArray:
        self._positive = x > 0
        return np.maximum(x, 0)

    def backward(self, grad_y: FloatArray) -> FloatArray:
        """Return the gradient for ``x``: ``grad_y`` where ``x`` was positive, else 0."""
        return grad_y * self._positive


class Network:
    """Dense layers with ReLU between them and, if asked for, batch normalization before each ReLU.

    The initial weights for a seed are the same with and without it.
    """

    def __init__(self, sizes: Sequence[int], *, batch_norm: bool, seed: int, dtype: DTypeLike = np.float32) -> None:
        rng = np.random.default_rng(seed)
        self.layers: list[Dense | nbbn.BatchNorm | ReLU] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            self.layers.append(Dense(inputs, outputs, rng, dtype))
            if batch_norm:
                self.layers.append(nbbn.BatchNorm(outputs, dtype=dtype))
            self.layers.append(ReLU())
        self.layers.append(Dense(sizes[-2], sizes[-1], rng, dtype))

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
        """Normalize with the statistics of each batch, and update the running ones."""
        for layer in self.layers:
            if isinstance(layer, nbbn.BatchNorm):
                layer.train(mode)

    def eval(self) -> None:
        """Normalize with the running statistics: a sample's result depends on nothing else."""
        self.train(False)

    def parameters(self) -> list[tuple[FloatArray, FloatArray]]:
        """Return each parameter with the gradient of the last backward call, in a fixed order."""
        # Any, because a BatchNorm may lack gamma or beta; these have both.
        pairs: list[tuple[Any, Any]] = []
        for layer in self.layers:
            if isinstance(layer, Dense):
                pairs += [(layer.weight, layer.grad_weight), (layer.bias, layer.grad_bias)]
            elif isinstance(layer, nbbn.BatchNorm):
                pairs += [(layer.gamma, layer.grad_gamma), (layer.beta, layer.grad_beta)]
        return pairs

    def scale_first_layer(self, factor: float) -> None:
        """Multiply the first layer's weights and biases by ``factor``."""
        first = self.layers[0]
        assert isinstance(first, Dense)
        first.weight *= factor
        first.bias *= factor


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
    """Stochastic gradient descent with momentum, in place."""

    def __init__(self, learning_rate: float, momentum: float) -> None:
        self.learning_rate = learning_rate
        self.momentum = momentum
        self._velocities: list[FloatArray] = []

    def step(self, parameters: Sequence[tuple[FloatArray, FloatArray]]) -> None:
        """Change each parameter in place, given (parameter, gradient) in a fixed order."""
        if not self._velocities:
            self._velocities = [np.zeros_like(parameter) for parameter, _ in parameters]
        for (parameter, gradient), velocity in zip(parameters, self._velocities, strict=True):
            velocity *= self.momentum
            velocity -= self.learning_rate * gradient
            parameter += velocity


def train_one_epoch(
    network: Network, optimizer: SGD, x: FloatArray, labels: IntArray, batches: Sequence[IntArray]
) -> float:
    """Take one step a batch, in training mode; return the mean loss."""
    network.train()
    losses = []
    for batch in batches:
        loss, gradient = softmax_cross_entropy(network(x[batch]), labels[batch])
        network.backward(gradient)
        optimizer.step(network.parameters())
        losses.append(loss)
    return float(np.mean(losses))


def shuffled_batches(samples: int, batch_size: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Return the samples' indices in a random order, cut into batches for one epoch.

    The batches differ by at most one sample in size: a small last one would have poor statistics.
    """
    return np.array_split(rng.permutation(samples), -(-samples // batch_size))
