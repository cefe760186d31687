"""How far running statistics are from those of the whole data set while the network of `nbbn demo` learns.

    python -m benchmarks.drift FILE

draws the figure of docs/statistics.md (the suffix names the format) and prints its numbers. Three layers see
the same batches behind the same weights: a moving average, a cumulative one, and one that is calibrated at
the end of each epoch. What they are compared with is the mean of the layer's inputs over all training
images, in float64, by NumPy.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import nbbn
from nbbn.cli._experiment import (
    BATCH_SIZE,
    MOMENTUM,
    SGD,
    SIZES,
    Digits,
    Network,
    load_digits,
    shuffled_batches,
    softmax_cross_entropy,
)

EPOCHS = 10
LEARNING_RATE = 0.1
# Okabe and Ito's palette, with markers and line styles that say the same in black and white
STYLES = {
    "moving average (momentum 0.1)": {"color": "#0072B2", "linestyle": "-"},
    "cumulative average (momentum None)": {"color": "#D55E00", "linestyle": "--"},
    "calibrated": {"color": "#009E73", "linestyle": "", "marker": "o"},
}
MOVING, CUMULATIVE, CALIBRATED = STYLES


def distance(bn: nbbn.BatchNorm, inputs: np.ndarray) -> float:
    """Root mean square over the channels of |running_mean - mean| / std."""
    exact = inputs.astype(np.float64)
    apart = (bn.running_mean - exact.mean(axis=0)) / exact.std(axis=0)
    return float(np.sqrt(np.mean(np.square(apart))))


def measure(digits: Digits, epochs: int = EPOCHS) -> dict[str, list[tuple[int, float]]]:
    """Train; return for each way (step, distance) after each step, or each epoch."""
    network = Network(SIZES, batch_norm=True, seed=0)
    network.train()
    dense, moving = network.layers[:2]
    cumulative = nbbn.BatchNorm(SIZES[1], momentum=None)
    calibrated = nbbn.BatchNorm(SIZES[1])
    optimizer, shuffler = SGD(LEARNING_RATE, MOMENTUM), np.random.default_rng(0)
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in STYLES}
    step = 0
    for _ in range(epochs):
        for batch in shuffled_batches(len(digits.x_train), BATCH_SIZE, shuffler):
            cumulative(dense(digits.x_train[batch]))
            logits = network(digits.x_train[batch])
            network.backward(softmax_cross_entropy(logits, digits.y_train[batch])[1])
            optimizer.step(network.parameters())
            step += 1
            inputs = dense(digits.x_train)
            found[MOVING].append((step, distance(moving, inputs)))
            found[CUMULATIVE].append((step, distance(cumulative, inputs)))
        with nbbn.calibrate(calibrated):
            for start in range(0, len(inputs), BATCH_SIZE):
                calibrated(inputs[start : start + BATCH_SIZE])
        found[CALIBRATED].append((step, distance(calibrated, inputs)))
    return found


def draw(found: dict[str, list[tuple[int, float]]], path: Path) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes: Axes = figure.subplots()
    for name, points in found.items():
        axes.plot(*zip(*points, strict=True), label=name, **STYLES[name])
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("distance from the mean of all data\n(standard deviations)")
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, metavar="FILE", help="the figure; .svg, .png or .pdf")
    path = parser.parse_args().path
    found = measure(load_digits())
    draw(found, path)
    for name, points in found.items():
        distances = [value for _, value in points]
        print(f"{name:36} median {np.median(distances):.1e}, last {distances[-1]:.1e}")


if __name__ == "__main__":
    main()
