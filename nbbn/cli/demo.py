"""``nbbn demo``: train a classifier on real images with and without batch normalization."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from pathlib import Path

from nbbn.cli import _experiment as experiment
from nbbn.cli import _files
from nbbn.cli._experiment import Digits, Outcome, Setting
from nbbn.cli._progress import Progress

HELP = "train a classifier on handwritten digits, with and without batch normalization"
DESCRIPTION = (
    "Train a small classifier on scikit-learn's 1,797 handwritten digits with and without "
    "batch normalization, at several learning rates, and print what happened."
)
EXAMPLE = f"nbbn demo --plot curves.png (needs scikit-learn, and matplotlib for --plot: {_files.INSTALL})"

_LINE = "{:>8}  {:13}  {:>8}  {:>7}  {:>17}"
_WIDTH = 79


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--epochs",
        type=_positive,
        default=20,
        metavar="N",
        help="passes over the training images (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_natural,
        default=0,
        metavar="N",
        help="seed of the initial weights and of the order of the images (default: %(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the learning curves, as .png, .svg or .pdf")


def _positive(text: str) -> int:
    number = _natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return number


def _natural(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def run(arguments: argparse.Namespace) -> None:
    """Train, print the table and, with ``--plot``, draw the learning curves."""
    path, epochs, seed = arguments.plot, arguments.epochs, arguments.seed
    if path is not None:
        # Before training, because a mistyped path should not cost a minute.
        _files.check_figure(path)
    try:
        digits = experiment.load_digits()
    except ImportError as error:
        raise _files.missing("scikit-learn", error) from None

    train, test = len(digits.x_train), len(digits.x_test)
    print(
        f"{train + test:,} handwritten digits of 8x8 pixels: {train:,} to learn from, {test} to test on.\n"
        f"Dense network {'-'.join(map(str, experiment.SIZES))} with ReLU, float32; "
        f"SGD with momentum {experiment.MOMENTUM},\n"
        f"batches of at most {experiment.BATCH_SIZE}, epochs: {epochs}, seed: {seed}. Tested in inference mode.\n",
        flush=True,
    )
    outcomes = _train_all(digits, epochs, seed)
    _print_table(outcomes)
    _print_explanation(outcomes, digits, seed)
    if path is not None:
        from nbbn.cli import _plot

        _files.write_figure(path, _plot.make_figure(outcomes))
        print(f"\nThe learning curves are in {path}")


def _train_all(digits: Digits, epochs: int, seed: int) -> dict[Setting, Outcome]:
    settings = experiment.SETTINGS
    with Progress(1, "Compiling") as progress:  # before the clock of the next bar starts
        experiment.train(settings[0], digits, epochs=1, seed=seed, after_epoch=progress.advance)
    outcomes = {}
    with Progress(len(settings) * epochs, "Training") as progress:
        for number, setting in enumerate(settings, start=1):
            outcomes[setting] = experiment.train(
                setting, digits, epochs=epochs, seed=seed, after_epoch=progress.advance
            )
            # One that diverged stopped early.
            progress.advance(number * epochs - progress.done)
    return outcomes


def _print_table(outcomes: Mapping[Setting, Outcome]) -> None:
    print(_LINE.format("learning", "batch", "test", "epochs", "test accuracy if"))
    print(_LINE.format("rate", "normalization", "accuracy", "to 95 %", "first layer x 100"))
    print(_LINE.format("-" * 8, "-" * 13, "-" * 8, "-" * 7, "-" * 17))
    for setting, outcome in outcomes.items():
        if not setting.scaled:
            scaled = outcomes[setting._replace(scaled=True)]
            name = "with" if setting.batch_norm else "without"
            goal = outcome.epochs_to_goal or "never"
            print(_LINE.format(f"{setting.learning_rate:g}", name, _accuracy(outcome), goal, _accuracy(scaled)))


def _accuracy(outcome: Outcome) -> str:
    return "diverged" if outcome.diverged else f"{100 * outcome.accuracies[-1]:.1f} %"


def _print_explanation(outcomes: Mapping[Setting, Outcome], digits: Digits, seed: int) -> None:
    def reached(batch_norm: bool, scaled: bool) -> int:
        settings = (Setting(rate, batch_norm, scaled) for rate in experiment.LEARNING_RATES)
        return sum(outcomes[setting].epochs_to_goal is not None for setting in settings)

    with_layer, without = (experiment.logit_change(digits, batch_norm=has, seed=seed) for has in (True, False))
    happened = (
        f"What happened: 95 % was reached at {reached(True, False)} of {len(experiment.LEARNING_RATES)} "
        f"learning rates with batch normalization and at {reached(False, False)} "
        "without; when the first layer's weights were multiplied by 100 before training, at "
        f"{reached(True, True)} with and at {reached(False, True)} without. "
        "About 10 % is guessing; 'diverged' means that the numbers overflowed."
    )
    why = (
        "Why: the layer subtracts the mean of each feature over the batch and divides by its "
        "standard deviation, so a factor on the weights before it cancels: 100 times the first "
        f"layer changes the logits of a training batch by {100 * with_layer:.1g} % of the largest "
        f"one (which is due to eps). Without batch normalization it changes them by "
        f"{100 * without:,.0f} %, and with them the gradients, so that the first steps are far too "
        "long."
    )
    for paragraph in (happened, why):
        print(f"\n{textwrap.fill(paragraph, _WIDTH)}")
