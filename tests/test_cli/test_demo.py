"""``nbbn demo``: the network learns, the table and the drawing are right, errors are clear."""

import contextlib
import errno
import io
import os
import re
import sys

import numpy as np
import pytest

import nbbn
import nbbn.cli
from nbbn.cli import _experiment, _files, demo, main
from nbbn.cli._experiment import (
    SGD,
    Network,
    Outcome,
    Setting,
    shuffled_batches,
    softmax_cross_entropy,
    train_one_epoch,
)

ROW = re.compile(
    r"^ +([\d.]+)  (with|without) +  +([\d.]+ %|diverged)  +(\d+|never)  +([\d.]+ %|diverged)$",
    re.MULTILINE,
)


def load_digits():
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    return _experiment.load_digits()


def import_plot():
    pytest.importorskip("matplotlib", reason="it draws the learning curves")
    return demo


@pytest.fixture
def no_training(monkeypatch):
    """Fail where anything is trained or compiled."""

    def fail(*args, **kwargs):
        pytest.fail("the check came too late")

    monkeypatch.setattr(_experiment, "train", fail)


# The network


def numeric_gradient(loss, array, step=1e-6):
    """Return d loss() / d array by central differences; `array` is changed and put back."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = loss()
        array[index] = kept - step
        below = loss()
        array[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_gradients_are_those_of_finite_differences(batch_norm, training):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(9, 5)), rng.integers(0, 3, 9)
    network = Network((5, 7, 6, 3), batch_norm=batch_norm, seed=2, dtype=np.float64)
    for parameter, _ in network.parameters():
        parameter += 0.1 * rng.normal(size=parameter.shape)
    network.train()
    network(3 * x + 1)  # so that the running statistics are not the initial ones
    network.train(training)

    def loss():
        return softmax_cross_entropy(network(x), labels)[0]

    _, gradient = softmax_cross_entropy(network(x), labels)
    grad_x = network.backward(gradient)
    pairs = [(x, grad_x), *network.parameters()]
    assert len(pairs) == 1 + (10 if batch_norm else 6)
    for array, computed in pairs:
        assert computed.dtype == np.float64
        np.testing.assert_allclose(computed, numeric_gradient(loss, array), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_has_the_dtype_asked_for(dtype):
    network = Network((5, 7, 3), batch_norm=True, seed=0, dtype=dtype)
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(dtype)
    logits = network(x)
    _, gradient = softmax_cross_entropy(logits, np.zeros(8, int))
    assert logits.dtype == gradient.dtype == network.backward(gradient).dtype == dtype
    arrays = [array for pair in network.parameters() for array in pair]
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_layers_stand_in_the_order_of_the_paper():
    def names(batch_norm):
        network = Network((5, 7, 6, 3), batch_norm=batch_norm, seed=0)
        return [type(layer).__name__ for layer in network.layers]

    assert names(batch_norm=True) == ["Dense", "BatchNorm", "ReLU"] * 2 + ["Dense"]
    assert names(batch_norm=False) == ["Dense", "ReLU"] * 2 + ["Dense"]


def test_initial_weights_are_the_same_with_and_without_the_layer():
    weights = [
        [layer.weight for layer in network.layers if hasattr(layer, "weight")]
        for network in (Network((5, 7, 6, 3), batch_norm=b, seed=3) for b in (True, False))
    ]
    assert len(weights[0]) == 3
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_train_and_eval_reach_every_normalization():
    network = Network((5, 7, 6, 3), batch_norm=True, seed=0)
    normalizations = [layer for layer in network.layers if isinstance(layer, nbbn.BatchNorm)]
    network.train(False)
    assert [layer.training for layer in normalizations] == [False, False]
    network.train()
    assert [layer.training for layer in normalizations] == [True, True]


def test_in_inference_a_sample_depends_on_no_other():
    network = Network((5, 7, 3), batch_norm=True, seed=0, dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(8, 5))
    network(x)
    network.train(False)
    np.testing.assert_allclose(network(x[:1]), network(x)[:1], rtol=1e-12)


def test_softmax_cross_entropy():
    logits = np.array([[0.0, np.log(3.0)], [1e4, -1e4]])
    loss, gradient = softmax_cross_entropy(logits, np.array([1, 0]))
    assert loss == pytest.approx(-np.log(3 / 4) / 2)
    np.testing.assert_allclose(gradient, [[1 / 8, -1 / 8], [0, 0]], atol=1e-16)
    np.testing.assert_array_equal(logits, [[0.0, np.log(3.0)], [1e4, -1e4]])


def test_sgd_keeps_its_momentum():
    parameter, gradient = np.array([1.0]), np.array([2.0])
    optimizer = SGD(learning_rate=0.1, momentum=0.5)
    optimizer.step([(parameter, gradient)])
    assert parameter == pytest.approx(0.8)
    optimizer.step([(parameter, gradient)])
    assert parameter == pytest.approx(0.8 - 0.1 - 0.2)


def test_batches_hold_every_sample_once():
    batches = shuffled_batches(1297, 64, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(1297))
    assert {len(batch) for batch in batches} == {61, 62}
    assert not np.array_equal(batches[0], np.arange(62))


def test_one_epoch_changes_every_parameter():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 3, 40)
    network = Network((5, 7, 3), batch_norm=True, seed=0)
    before = [parameter.copy() for parameter, _ in network.parameters()]
    network.train(False)
    train_one_epoch(network, SGD(0.1, 0.9), x, labels, shuffled_batches(40, 10, rng))
    after = [parameter for parameter, _ in network.parameters()]
    assert len(after) == 6
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    (normalization,) = (layer for layer in network.layers if isinstance(layer, nbbn.BatchNorm))
    assert normalization.training
    assert normalization.num_batches_tracked == 4


# The experiment


def test_digits_are_split_once_and_for_all():
    digits = load_digits()
    assert digits.x_train.shape == (1297, 64)
    assert digits.x_test.shape == (500, 64)
    assert digits.x_train.dtype == np.float32
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)
    assert set(digits.y_train) == set(digits.y_test) == set(range(10))
    together = np.concatenate([digits.x_train, digits.x_test])
    assert len(np.unique(together, axis=0)) == len(together)
    assert np.array_equal(load_digits().x_test, digits.x_test)


def test_the_layer_cancels_the_scale_of_the_weights_before_it():
    digits = load_digits()
    assert _experiment.logit_change(digits, batch_norm=True, seed=0) < 1e-3
    assert _experiment.logit_change(digits, batch_norm=False, seed=0) == pytest.approx(99, rel=1e-3)


def test_the_test_images_are_only_looked_at():
    digits = load_digits()
    network = Network(_experiment.SIZES, batch_norm=True, seed=0)
    network(digits.x_train[:64])
    normalizations = [layer for layer in network.layers if isinstance(layer, nbbn.BatchNorm)]
    before = [layer.running_mean.copy() for layer in normalizations]
    network.train()
    accuracy = _experiment._test(network, digits)
    assert accuracy == np.mean(network(digits.x_test).argmax(axis=1) == digits.y_test)
    assert len(before) == 3
    for layer, mean in zip(normalizations, before, strict=True):
        assert not layer.training
        np.testing.assert_array_equal(layer.running_mean, mean)


def test_the_seed_decides():
    digits = load_digits()
    setting = Setting(0.1, batch_norm=True, scaled=False)
    outcomes = [_experiment.train(setting, digits, epochs=1, seed=seed, after_epoch=int) for seed in (1, 1, 2)]
    assert outcomes[0] == outcomes[1] != outcomes[2]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_overflow_is_reported_and_warns_of_nothing(batch_norm):
    calls = []
    outcome = _experiment.train(
        Setting(1e30, batch_norm, scaled=False),
        load_digits(),
        epochs=5,
        seed=0,
        after_epoch=lambda: calls.append(None),
    )
    assert outcome.diverged
    assert outcome.epochs_to_goal is None
    assert len(outcome.accuracies) == len(calls) == 1


def test_epochs_to_goal_counts_from_one():
    assert Outcome((0.1, 0.95, 0.9), diverged=False).epochs_to_goal == 1
    assert Outcome((0.1, 0.5, 0.96), diverged=False).epochs_to_goal == 2
    assert Outcome((0.99, 0.5), diverged=False).epochs_to_goal is None


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the demo once as users do, with a drawing: (standard output, standard error, path)."""
    load_digits()
    import_plot()
    path = tmp_path_factory.mktemp("demo") / "curves.png"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["demo", "--plot", str(path)]) == 0
    return out.getvalue(), err.getvalue(), path


def test_table(run):
    rows = ROW.findall(run[0])
    assert [row[:2] for row in rows] == [
        (rate, layer) for rate in ("0.01", "0.1", "1") for layer in ("with", "without")
    ]
    table = {row[:2]: row[2:] for row in rows}

    def percent(text):
        return 0.0 if text == "diverged" else float(text.removesuffix(" %"))

    for (rate, layer), (accuracy, epochs, scaled) in table.items():
        if layer == "with":
            assert percent(accuracy) > 90
            assert 1 <= int(epochs) <= 15
            assert percent(scaled) > 85
        else:
            assert percent(scaled) < 30
            assert (percent(accuracy) > 90) == (epochs != "never") == (rate != "1")


def test_what_is_said_is_what_was_measured(run):
    text = " ".join(run[0].split())
    assert "1,797 handwritten digits" in text
    assert "1,297 to learn from, 500 to test on" in text
    assert "epochs: 20, seed: 0" in text
    assert "95 % was reached at 3 of 3 learning rates with batch normalization and at 2" in text
    assert "multiplied by 100 before training, at 3 with and at 0 without" in text
    assert re.search(r"by 0\.00\d % of the largest", text)
    assert "9,900 %" in text


def test_lines_fit_a_terminal(run):
    lines = [line for line in run[0].splitlines() if str(run[2]) not in line]
    assert max(map(len, lines)) <= 79
    assert run[0].isascii()


def test_nothing_on_standard_error_without_a_terminal(run):
    assert run[1] == ""


def test_drawing_is_written_whole(run):
    assert run[2].read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in run[2].parent.iterdir()] == ["curves.png"]
    assert str(run[2]) in run[0]


@pytest.fixture
def small_experiment(monkeypatch):
    """Replace the training by something that takes no time."""
    load_digits()

    def train(setting, digits, *, epochs, seed, after_epoch):
        for _ in range(epochs):
            after_epoch()
        return Outcome((0.1,) + (0.96,) * epochs, diverged=False)

    monkeypatch.setattr(_experiment, "train", train)


def test_bar_on_a_terminal(small_experiment, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["demo", "--epochs", "2", "--seed", "5"]) == 0
    assert "Compiling [" in terminal.getvalue()
    assert "Training [" in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-1] == ""
    printed = capsys.readouterr().out
    assert "epochs: 2, seed: 5" in printed
    assert "[" not in printed


def test_without_scikit_learn(no_training, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["demo"]) == 2
    check_error(capsys, "scikit-learn", 'pip install ".[demo]"')


def test_without_matplotlib(no_training, capsys, monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo", "--plot", str(tmp_path / "curves.png")]) == 2
    check_error(capsys, "matplotlib", 'pip install ".[demo]"')


def check_error(capsys, *expected):
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("nbbn demo: error: ")
    for text in expected:
        assert text in printed.err


# The drawing


@pytest.mark.parametrize("name", ["curves.xyz", "curves", ".png"])
def test_unknown_format(name, no_training, capsys, tmp_path):
    import_plot()
    assert main(["demo", "--plot", str(tmp_path / name)]) == 2
    check_error(capsys, "--plot", ".png, .svg, .pdf", repr(name))


def test_unwritable_path(no_training, capsys, tmp_path):
    import_plot()
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    cases = {
        tmp_path / "none" / "curves.png": os.strerror(errno.ENOENT),
        tmp_path / "folder.png": "is a folder",
    }
    if os.name == "posix":
        cases[tmp_path / "file" / "curves.png"] = os.strerror(errno.ENOTDIR)
    for path, reason in cases.items():
        assert main(["demo", "--plot", str(path)]) == 2
        check_error(capsys, "--plot", str(path), reason)


@pytest.mark.skipif(
    os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0),
    reason="root may write everywhere, and Windows has other permissions",
)
def test_folder_without_permission(no_training, capsys, tmp_path):
    import_plot()
    tmp_path.chmod(0o500)
    assert main(["demo", "--plot", str(tmp_path / "curves.png")]) == 2
    check_error(capsys, "--plot", os.strerror(errno.EACCES))


def test_full_disk_leaves_the_old_drawing(small_experiment, capsys, monkeypatch, tmp_path):
    import_plot()
    path = tmp_path / "curves.svg"
    path.write_text("old")

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(["demo", "--epochs", "1", "--plot", str(path)]) == 2
    error = capsys.readouterr().err
    assert error == f"nbbn demo: error: --plot: cannot write {path}: {os.strerror(errno.ENOSPC)}\n"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "start"), [("a.PNG", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_formats(name, start, tmp_path):
    plot = import_plot()
    path = tmp_path / name
    _files.check_figure(path)
    assert list(tmp_path.iterdir()) == []
    _files.write_figure(path, plot.make_figure(some_outcomes()))
    assert path.read_bytes().startswith(start)


def some_outcomes():
    outcomes = {setting: Outcome((0.1, 0.9, 0.96, 0.97), diverged=False) for setting in _experiment.SETTINGS}
    outcomes[Setting(1.0, batch_norm=False, scaled=True)] = Outcome((0.1,), diverged=True)
    return outcomes


def test_drawing_is_readable_in_black_and_white():
    figure = import_plot().make_figure(some_outcomes())
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_xlabel() == "epoch"
        curves = [line for line in axes.lines if "learning rate" in line.get_label()]
        looks = {(line.get_linestyle(), line.get_marker(), line.get_markerfacecolor() == "white") for line in curves}
        assert len(looks) == len(curves) == 6
        assert figure.legends[0].get_window_extent().y1 < axes.get_window_extent().y0
    assert figure.axes[0].get_ylabel() == "test accuracy (%)"
    assert [text.get_text() for text in figure.axes[0].texts] == []
    diverged = "diverged: without, learning rate 1"
    assert [text.get_text() for text in figure.axes[1].texts] == [diverged]
