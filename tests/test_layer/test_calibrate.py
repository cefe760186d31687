"""nbbn.calibrate: running statistics of all the data seen, all or nothing."""

import copy
import pickle
import threading

import cases
import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of, snapshot

import nbbn


def batches(*sizes, channels=3, seed=0):
    """Batches whose means differ, so that the way they are averaged matters."""
    drift = np.random.default_rng(seed).normal(0, 3, (len(sizes), channels))
    return [cases.values((size, channels), seed=k) + np.float32(drift[k]) for k, size in enumerate(sizes)]


def calibrated(data, **options):
    bn = nbbn.BatchNorm(data[0].shape[1], **options)
    with nbbn.calibrate(bn):
        for batch in data:
            bn(batch)
    return bn


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)
@pytest.mark.parametrize("correction", [0, 1])
def test_statistics_of_all_the_data(dtype, correction):
    data = batches(4, 100, 7)
    bn = calibrated(data, dtype=dtype, running_correction=correction)
    count, mean, m2 = reference.moments(np.concatenate(data))
    for got, exact in ((bn.running_mean, mean), (bn.running_var, m2 / (count - correction))):
        assert_within(got, exact, eps_of(dtype) * np.abs(exact) * 8)
    assert bn.num_batches_tracked == 3


def test_where_the_cumulative_average_of_torch_is_wrong():
    torch = pytest.importorskip("torch")
    data = batches(4, 100)
    theirs = torch.nn.BatchNorm1d(3, momentum=None)
    cumulative = nbbn.BatchNorm(3, momentum=None)
    for batch in data:
        theirs(torch.from_numpy(batch))
        cumulative(batch)
    np.testing.assert_allclose(cumulative.running_mean, theirs.running_mean, rtol=1e-6)
    bn = calibrated(data)
    _, mean, m2 = reference.moments(np.concatenate(data))
    exact = np.stack([mean, m2 / 103])
    wrong = np.stack([theirs.running_mean.numpy(), theirs.running_var.numpy()])
    right = np.stack([bn.running_mean, bn.running_var])
    assert np.abs(right / exact - 1).max() < 1e-6
    assert (np.abs(wrong / exact - 1).max(axis=1) > 0.2).all()


def test_forwards_inside_normalize_as_ever_and_leave_the_average_alone():
    data = batches(5, 9)
    bn, plain = nbbn.BatchNorm(3), nbbn.BatchNorm(3)
    with nbbn.calibrate(bn) as nothing:
        assert nothing is None
        for batch in data:
            before = snapshot(bn)
            assert_same_bits(bn(batch), plain(batch))
            after = snapshot(bn)
            names = "running_mean", "running_var", "num_batches_tracked"
            assert all(before[name] == after[name] for name in names)
            assert after["batch_mean"] == snapshot(plain)["batch_mean"]
            assert_same_bits(bn.backward(batch), plain.backward(batch))
    bn(data[0])  # behind it, the average moves on
    assert bn.num_batches_tracked == 3


def test_every_way_through_the_layer_is_collected():
    x = cases.values((6, 3, 8), loc=5.0)
    mask = np.arange(8) < 5
    bn = nbbn.BatchNorm(3, running_correction=0, activation="relu")
    with nbbn.calibrate(bn):
        bn(x)
        bn(np.asfortranarray(x) + 1)
        bn(x - 1, mask=np.broadcast_to(mask, (6, 8)))
        bn(x, residual=x, out=np.empty_like(x))
        bn(x * 50, training=False)  # not this one
        bn(x[:0])
        bn(x, mask=np.zeros((6, 8), bool))
    seen = np.concatenate([x, x + 1, (x - 1)[..., mask], x], axis=-1)
    _, mean, m2 = reference.moments(seen)
    np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(bn.running_var, m2 / (seen.size // 3), rtol=1e-6)
    assert bn.num_batches_tracked == 4


def test_several_layers_and_one_twice():
    first, second, unused = nbbn.BatchNorm(3), nbbn.BatchNorm(3), nbbn.BatchNorm(2)
    data = batches(8, 20)
    before = snapshot(unused)
    with nbbn.calibrate(first, second, unused, first):
        outputs = [second(first(batch)) for batch in data]
    alone = nbbn.BatchNorm(3)
    middle = [alone(batch) for batch in data]
    for bn, seen in ((first, data), (second, middle)):
        _, mean, m2 = reference.moments(np.concatenate(seen))
        np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(bn.running_var, m2 / 27, rtol=1e-5)
    assert len(outputs) == 2
    assert snapshot(unused) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_changes_on_an_exception(error):
    layers = [nbbn.BatchNorm(3), nbbn.BatchNorm(3)]
    data = batches(8, 20)
    for bn in layers:
        bn(data[1])
    names = "running_mean", "running_var", "num_batches_tracked"
    before = [{name: snapshot(bn)[name] for name in names} for bn in layers]

    def run():
        with nbbn.calibrate(*layers):
            for bn in layers:
                bn(data[0])
            raise error("stop")

    with pytest.raises(error):
        run()
    assert [{name: snapshot(bn)[name] for name in names} for bn in layers] == before
    with nbbn.calibrate(*layers):  # and it can be done again, from nothing
        for bn in layers:
            bn(data[0])
    _, mean, _ = reference.moments(data[0])
    np.testing.assert_allclose(layers[0].running_mean, mean, rtol=1e-6)


def test_a_layer_is_calibrated_once_at_a_time():
    bn, other = nbbn.BatchNorm(3), nbbn.BatchNorm(3)
    data = batches(8)[0]
    with nbbn.calibrate(bn):
        bn(data)
        with (
            pytest.raises(ValueError, match="layers: expected none twice at a time"),
            nbbn.calibrate(other, bn),
        ):
            pass
        other(data)
        assert other.num_batches_tracked == 1  # the one that came first is free again
    assert bn.num_batches_tracked == 1


def test_threads_add_to_one_calibration():
    bn, data = nbbn.BatchNorm(3), batches(*range(2, 34))
    with nbbn.calibrate(bn):
        threads = [
            threading.Thread(target=lambda part: [bn(batch) for batch in part], args=(data[k::4],)) for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    _, mean, _ = reference.moments(np.concatenate(data))
    np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-6)
    assert bn.num_batches_tracked == 32


def test_copies_inside_are_not_calibrated():
    bn, data = nbbn.BatchNorm(3), batches(8)[0]
    with nbbn.calibrate(bn):
        for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
            other(data)
            assert other.num_batches_tracked == 1
        bn(data)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("option", ["raise", "skip", "propagate"])
def test_on_nonfinite(option):
    data = batches(8, 9)
    data[1][0, 0] = np.nan
    bn = nbbn.BatchNorm(3, on_nonfinite=option)
    before = snapshot(bn)["running_mean"]

    def run():
        with nbbn.calibrate(bn):
            for batch in data:
                bn(batch)

    if option == "raise":
        with pytest.raises(FloatingPointError, match="channel 0"):
            run()
        assert snapshot(bn)["running_mean"] == before
        return
    run()
    seen = data[:1] if option == "skip" else data
    _, mean, _ = reference.moments(np.concatenate(seen))
    np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-6)
    assert bn.num_batches_tracked == len(seen)


def test_errors():
    with pytest.raises(ValueError, match="layers: expected at least one BatchNorm, got none"):
        nbbn.calibrate().__enter__()
    frozen = nbbn.BatchNorm(3).freeze()
    for wrong in (frozen, None, [nbbn.BatchNorm(3)]):
        with pytest.raises(TypeError, match="layers: expected BatchNorm, got"):
            nbbn.calibrate(wrong).__enter__()
    untracked = nbbn.BatchNorm(3, track_running_stats=False)
    with pytest.raises(ValueError, match="layers: expected layers with running statistics, got"):
        nbbn.calibrate(nbbn.BatchNorm(3), untracked).__enter__()
