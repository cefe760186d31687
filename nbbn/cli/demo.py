"""``nbbn demo``: train a classifier on real images with and without batch normalization."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from pathlib import Path

from nbbn.cli import _experiment as experiment
from nbbn.cli import _files
from nbbn.cli._experiment import Digits, Outcome, Setting
from nbbn.cli._files import INSTALL
from nbbn.cli._progress import Progress

_EPOCHS = 20
_LINE = "{:>8}  {:13}  {:>8}  {:>7}  {:>17}"
_WIDTH = 79


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser(
        "demo",
        help="train a classifier on handwritten digits, with and without batch normalization",
        description=(
            "Train a small classifier on scikit-learn's 1,797 handwritten digits with and without "
            "batch normalization, at several learning rates, and print what happened."
        ),
        epilog=f"example: nbbn demo --plot curves.png (needs scikit-learn, and matplotlib for --plot: {INSTALL})",
    )
    parser.add_argument(
        "--epochs",
        type=_positive,
        default=_EPOCHS,
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
    parser.set_defaults(run=run)


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
    if arguments.plot is not None:
        # Before training, because a mistyped path should not cost a minute.
        _files.check_figure(arguments.plot)
    try:
        digits = experiment.load_digits()
    except ImportError as error:
        raise _files.missing("scikit-learn", error) from None

    _print_header(digits, arguments.epochs, arguments.seed)
    outcomes = _train_all(digits, arguments.epochs, arguments.seed)
    _print_table(outcomes)
    _print_explanation(outcomes, digits, arguments.seed)
    if arguments.plot is not None:
        from nbbn.cli import _plot

        _plot.draw(arguments.plot, outcomes)
        print(f"\nThe learning curves are in {arguments.plot}")


def _train_all(digits: Digits, epochs: int, seed: int) -> dict[Setting, Outcome]:
    with Progress(1, "Compiling") as progress:
        experiment.compile_layer(digits)
        progress.advance()
    settings = experiment.settings()
    outcomes = {}
    with Progress(len(settings) * epochs, "Training") as progress:
        for number, setting in enumerate(settings, start=1):
            outcomes[setting] = experiment.train(
                setting, digits, epochs=epochs, seed=seed, after_epoch=progress.advance
            )
            # One that diverged stopped early.
            progress.advance(number * epochs - progress.done)
    return outcomes


def _print_header(digits: Digits, epochs: int, seed: int) -> None:
    train, test = len(digits.x_train), len(digits.x_test)
    sizes = "-".join(str(size) for size in experiment.SIZES)
    print(
        f"{train + test:,} handwritten digits of 8x8 pixels: {train:,} to learn from, "
        f"{test} to test on.\n"
        f"Dense network {sizes} with ReLU, float32; SGD with momentum {experiment.MOMENTUM},\n"
        f"batches of at most {experiment.BATCH_SIZE}, epochs: {epochs}, seed: {seed}. "
        "Tested in inference mode.\n",
        flush=True,
    )


def _print_table(outcomes: Mapping[Setting, Outcome]) -> None:
    print(_LINE.format("learning", "batch", "test", "epochs", "test accuracy if"))
    print(_LINE.format("rate", "normalization", "accuracy", "to 95 %", "first layer x 100"))
    print(_LINE.format("-" * 8, "-" * 13, "-" * 8, "-" * 7, "-" * 17))
    for setting, outcome in outcomes.items():
        if setting.scaled:
            continue
        scaled = outcomes[Setting(setting.learning_rate, setting.batch_norm, scaled=True)]
        print(
            _LINE.format(
                f"{setting.learning_rate:g}",
                "with" if setting.batch_norm else "without",
                _accuracy(outcome),
                outcome.epochs_to_goal or "never",
                _accuracy(scaled),
            )
        )


def _accuracy(outcome: Outcome) -> str:
    accuracy = outcome.final_accuracy
    return "diverged" if accuracy is None else f"{accuracy:.1%}".replace("%", " %")


def _print_explanation(outcomes: Mapping[Setting, Outcome], digits: Digits, seed: int) -> None:
    with_layer = experiment.logit_change(digits, batch_norm=True, seed=seed)
    without = experiment.logit_change(digits, batch_norm=False, seed=seed)
    rates = len(experiment.LEARNING_RATES)
    _print_paragraph(
        f"What happened: 95 % was reached at {_reached(outcomes, True, False)} of {rates} "
        f"learning rates with batch normalization and at {_reached(outcomes, False, False)} "
        "without; when the first layer's weights were multiplied by 100 before training, at "
        f"{_reached(outcomes, True, True)} with and at {_reached(outcomes, False, True)} without. "
        "About 10 % is guessing; 'diverged' means that the numbers overflowed."
    )
    _print_paragraph(
        "Why: the layer subtracts the mean of each feature over the batch and divides by its "
        "standard deviation, so a factor on the weights before it cancels: 100 times the first "
        f"layer changes the logits of a training batch by {100 * with_layer:.1g} % of the largest "
        f"one (which is due to eps). Without batch normalization it changes them by "
        f"{100 * without:,.0f} %, and with them the gradients, so that the first steps are far too "
        "long."
    )


def _reached(outcomes: Mapping[Setting, Outcome], batch_norm: bool, scaled: bool) -> int:
    return sum(
        outcome.epochs_to_goal is not None
        for setting, outcome in outcomes.items()
        if (setting.batch_norm, setting.scaled) == (batch_norm, scaled)
    )


def _print_paragraph(text: str) -> None:
    print()
    print(textwrap.fill(text, _WIDTH))
