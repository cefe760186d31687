"""What ``nbbn demo`` measures: the same network trained with and without batch normalization."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nbbn.cli import _network as networks
from nbbn.cli._network import FloatArray, IntArray, Network

SIZES = (64, 100, 100, 100, 10)
LEARNING_RATES = (0.01, 0.1, 1.0)
MOMENTUM = 0.9
BATCH_SIZE = 64
SCALE = 100.0
GOAL = 0.95
TEST_IMAGES = 500


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, split into those to learn from and those to test on."""

    x_train: FloatArray  # pixels from 0 to 1, shape (images, 64), float32
    y_train: IntArray
    x_test: FloatArray
    y_test: IntArray


@dataclass(frozen=True)
class Setting:
    """One way to train the network."""

    learning_rate: float
    batch_norm: bool  # whether there are such layers
    scaled: bool  # whether the first layer's weights are multiplied by 100 before training


@dataclass(frozen=True)
class Outcome:
    """How one training went."""

    accuracies: tuple[float, ...]  # of the test images: untrained, after each epoch until it diverged
    diverged: bool  # whether the numbers stopped being finite

    @property
    def final_accuracy(self) -> float | None:
        """Accuracy after the last epoch; None where the network diverged."""
        return None if self.diverged else self.accuracies[-1]

    @property
    def epochs_to_goal(self) -> int | None:
        """The first epoch that ended with an accuracy of 95 % or more; None if none did."""
        return next((epoch for epoch, accuracy in enumerate(self.accuracies) if epoch and accuracy >= GOAL), None)


def load_digits() -> Digits:
    """Load scikit-learn's 1,797 images and split them, always in the same way."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32)
    # The file is ordered by writer, so the split is random, but the same for every seed.
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(x[train], labels[train], x[test], labels[test])


def settings() -> list[Setting]:
    """Return everything that is to be compared."""
    return [Setting(*each) for each in itertools.product(LEARNING_RATES, (True, False), (False, True))]


def train(
    setting: Setting, digits: Digits, *, epochs: int, seed: int, after_epoch: Callable[[], None] = lambda: None
) -> Outcome:
    """Train one network and test it after each epoch.

    Settings differ in nothing else: the initial weights (but for their scale) and the order of
    the images are the same for the same seed.
    """
    # A dependency of scikit-learn, so it is there where the digits are.
    from threadpoolctl import threadpool_limits

    network = Network(SIZES, batch_norm=setting.batch_norm, seed=seed)
    if setting.scaled:
        network.scale_first_layer(SCALE)
    optimizer = networks.SGD(setting.learning_rate, MOMENTUM)
    shuffler = np.random.default_rng(seed)
    # A diverging network overflows; that is found below, by looking for it. The matrices are so
    # small that a second BLAS thread gains nothing, and on a busy machine waiting for it made the
    # training six times slower.
    with np.errstate(all="ignore"), threadpool_limits(limits=1, user_api="blas"):
        accuracies = [_test(network, digits)]
        for _ in range(epochs):
            batches = networks.shuffled_batches(len(digits.x_train), BATCH_SIZE, shuffler)
            loss = networks.train_one_epoch(network, optimizer, digits.x_train, digits.y_train, batches)
            accuracy = _test(network, digits)
            after_epoch()
            if not np.isfinite(loss + accuracy):
                return Outcome(tuple(accuracies), diverged=True)
            accuracies.append(accuracy)
    return Outcome(tuple(accuracies), diverged=False)


def _test(network: Network, digits: Digits) -> float:
    """Return the accuracy on the test images, in inference mode; NaN if the logits overflowed."""
    network.eval()
    logits = network(digits.x_test)
    if not np.isfinite(logits).all():
        return float("nan")
    return float(np.mean(logits.argmax(axis=1) == digits.y_test))


def logit_change(digits: Digits, *, batch_norm: bool, seed: int) -> float:
    """Return how much the logits of a training batch change with the first layer's scale.

    That is the largest change of a logit, as a share of the largest logit, when the first layer
    of the untrained network is multiplied by 100.
    """
    network = Network(SIZES, batch_norm=batch_norm, seed=seed)
    network.train()
    before = network(digits.x_train[:BATCH_SIZE])
    network.scale_first_layer(SCALE)
    after = network(digits.x_train[:BATCH_SIZE])
    return float(np.abs(after - before).max() / np.abs(before).max())


def compile_layer(digits: Digits) -> None:
    """Run each thing that training does once, so that it is compiled before the clock starts."""
    network = Network(SIZES, batch_norm=True, seed=0)
    network.train()
    _, gradient = networks.softmax_cross_entropy(network(digits.x_train[:BATCH_SIZE]), digits.y_train[:BATCH_SIZE])
    network.backward(gradient)
    network.eval()
    network(digits.x_test)
