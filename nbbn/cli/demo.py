"""``nbbn demo``: train a classifier on real images with and without batch normalization."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nbbn.cli import _experiment as experiment
from nbbn.cli import _files
from nbbn.cli._experiment import Digits, Outcome, Setting
from nbbn.cli._progress import Progress

HELP = "train a classifier on handwritten digits, with and without batch normalization"
EXAMPLE = f"nbbn demo --plot curves.png (needs scikit-learn, and matplotlib for --plot: {_files.INSTALL})"

_LINE = "{:>8}  {:13}  {:>8}  {:>7}  {:>17}"
_WIDTH = 79

# Blue and vermilion of Okabe and Ito's palette, which colour-blind readers can tell apart; in black
# and white the line (solid or dashed) and the marker (full or hollow) say the same.
_LOOKS: dict[str, dict[str, Any]] = {
    "with": {"color": "#0072B2", "linestyle": "-"},
    "without": {"color": "#D55E00", "linestyle": "--", "markerfacecolor": "white"},
}
_MARKERS = "os^"  # of the learning rates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--epochs", type=partial(_number, least=1), default=20, metavar="N",
        help="passes over the training images (default: %(default)s)")  # fmt: skip
    add("--seed", type=_number, default=0, metavar="N",
        help="seed of the initial weights and of the order of the images (default: %(default)s)")  # fmt: skip
    add("--plot", type=Path, metavar="FILE", help="draw the learning curves, as .png, .svg or .pdf")


def _number(text: str, least: int = 0) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if number < least:
        expected = f"be at least {least}" if least else "not be negative"
        raise argparse.ArgumentTypeError(f"must {expected}, got {number}")
    return number


def run(arguments: argparse.Namespace) -> None:
    """Train a small classifier on scikit-learn's 1,797 handwritten digits with and without batch normalization.

    It is trained at several learning rates, and what happened is printed.
    """
    path, epochs, seed = arguments.plot, arguments.epochs, arguments.seed
    # Before training, because a mistyped path should not cost a minute.
    _files.check_figure(path)
    _files.imported("sklearn", "scikit-learn")
    digits = experiment.load_digits()
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
        _files.write_figure(path, make_figure(outcomes))
        print(f"\nThe learning curves are in {path}")


def _train_all(digits: Digits, epochs: int, seed: int) -> dict[Setting, Outcome]:
    settings, train = experiment.SETTINGS, partial(experiment.train, digits=digits, seed=seed)
    with Progress(1, "Compiling") as progress:  # before the clock of the next bar starts
        train(settings[0], epochs=1, after_epoch=progress.advance)
    outcomes = {}
    with Progress(len(settings) * epochs, "Training") as progress:
        for number, setting in enumerate(settings, start=1):
            outcomes[setting] = train(setting, epochs=epochs, after_epoch=progress.advance)
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
        f"What happened: 95 % was reached at {reached(True, False)} of {len(experiment.LEARNING_RATES)} learning rates "
        f"with batch normalization and at {reached(False, False)} without; when the first layer's weights were "
        f"multiplied by 100 before training, at {reached(True, True)} with and at {reached(False, True)} without. "
        "About 10 % is guessing; 'diverged' means that the numbers overflowed."
    )
    why = (
        "Why: the layer subtracts the mean of each feature over the batch and divides by its standard deviation, so a "
        "factor on the weights before it cancels: 100 times the first layer changes the logits of a training batch by "
        f"{100 * with_layer:.1g} % of the largest one (which is due to eps). Without batch normalization it changes "
        f"them by {100 * without:,.0f} %, and with them the gradients, so that the first steps are far too long."
    )
    for paragraph in (happened, why):
        print(f"\n{textwrap.fill(paragraph, _WIDTH)}")


def make_figure(outcomes: Mapping[Setting, Outcome]) -> Any:
    """Return the learning curves: usual initial weights on the left, scaled ones on the right."""
    figure = _files.new_figure(9, 5)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.set(title="usual initial weights", ylabel="test accuracy (%)")
    right.set(title="first layer's initial weights x 100")
    for axes, scaled in ((left, False), (right, True)):
        axes.set(xlabel="epoch", ylim=(0, 102), yticks=(0, 20, 40, 60, 80, 100 * experiment.GOAL, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="0.9")
        axes.axhline(100 * experiment.GOAL, color="0.5", linestyle=":", linewidth=1)
        for name, look in _LOOKS.items():
            for number, (rate, marker) in enumerate(zip(experiment.LEARNING_RATES, _MARKERS, strict=True)):
                outcome = outcomes[Setting(rate, name == "with", scaled)]
                percent = [100 * accuracy for accuracy in outcome.accuracies]
                # Markers of curves that lie on each other should not.
                every = number, len(experiment.LEARNING_RATES)
                label = f"{name} batch normalization, learning rate {rate:g}"
                axes.plot(percent, marker=marker, markevery=every, markersize=6, linewidth=1.5, label=label, **look)
                if outcome.diverged:
                    end, text = (len(percent) - 1, percent[-1]), f"diverged: {name}, learning rate {rate:g}"
                    axes.plot(*end, marker="x", color="black", markersize=10)
                    axes.annotate(text, end, xytext=(8, 8 + 14 * number), textcoords="offset points")
    # Below the axes, where it covers no curve.
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
