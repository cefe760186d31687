"""SyncBatchNorm on threads: what one layer does with the concatenated batch, for any share of each worker."""

import copy
import pickle

import cases
import numpy as np
import pytest
import reference
from compare import (
    assert_forward,
    assert_gradients,
    assert_same_bits,
    assert_within,
    eps_of,
    layer,
    mean_error,
    snapshot,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from workers import meeting, results, together

import nbbn
from nbbn.distributed import SyncBatchNorm

SHAPE = (12, 3, 5)
SIZES = {1: (12,), 2: (7, 5), 3: (0, 12, 0), 4: (1, 0, 8, 3)}
by_workers = pytest.mark.parametrize("sizes", SIZES.values(), ids=str)


def synchronized(comm, count=3, **options):
    """As `compare.layer`, with other numbers than the initial ones."""
    bn = SyncBatchNorm(count, comm=comm, **options)
    bn.load_state_dict(layer(count, **options).state_dict())
    return bn


def shares(array, sizes):
    """The rows of each worker; None for each where there is no array."""
    if array is None:
        return [None] * len(sizes)
    return np.split(array, np.cumsum(sizes)[:-1])


def step(bn, x, grad_y, **arguments):
    """A forward and a backward; everything that they leave."""
    y = bn(x, **arguments)
    grad_x = bn.backward(grad_y)
    state = {**bn.state_dict(), "mean": bn.batch_mean, "var": bn.batch_var}
    gradients = {"gamma": bn.grad_gamma, "beta": bn.grad_beta}
    return {"y": y, "x": grad_x, "residual": bn.grad_residual, **state, "grad": gradients}


def steps_of_workers(sizes, x, grad_y, mask=None, residual=None, **options):
    """What each worker has after a step with its share."""
    given = list(zip(*[shares(array, sizes) for array in (x, grad_y, mask, residual)], strict=True))

    def work(comm):
        mine, grad, masked, added = given[comm.rank]
        bn = synchronized(comm, x.shape[options.get("axis", 1)], **options)
        return step(bn, mine, grad, mask=masked, residual=added)

    return results(len(sizes), work)


def joined(found, name):
    return np.concatenate([one[name] for one in found])


def assert_same_state(found):
    """Every worker has the same bits."""
    first = found[0]
    for other in found[1:]:
        for name in ("gamma", "beta", "running_mean", "running_var", "mean", "var"):
            if name in first:
                assert_same_bits(other[name], first[name])
        for name, gradient in first["grad"].items():
            if gradient is None:
                assert other["grad"][name] is None
            else:
                assert_same_bits(other["grad"][name], gradient)
        assert other["num_batches_tracked"] == first["num_batches_tracked"]


def assert_as_one(found, one, x, *, units=64):
    """What workers have beside what one layer has of all, within rounding of the sums."""
    assert_same_state(found)
    eps = eps_of(np.float64 if x.dtype == np.float64 else x.dtype)
    for name in ("y", "x"):
        whole = one[name].astype(np.float64)
        assert_within(joined(found, name), whole, units * eps * np.maximum(1.0, np.abs(whole)))
    for name in ("running_mean", "running_var", "mean", "var"):
        if one.get(name) is not None:
            bound = 16 * eps_of(one[name].dtype) * np.maximum(1.0, np.abs(one[name]))
            assert_within(found[0][name], one[name], bound)
    for name in ("gamma", "beta"):
        if one["grad"][name] is not None:
            scale = eps_of(one["grad"][name].dtype) * x.size
            assert_within(found[0]["grad"][name], one["grad"][name], 16 * scale)
    assert found[0]["num_batches_tracked"] == one["num_batches_tracked"]


def arrays(shape=SHAPE, dtype=np.float64):
    return cases.values(shape, dtype), cases.values(shape, dtype, seed=1)


@by_workers
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_step_is_that_of_one_layer_on_the_concatenated_batch(sizes, dtype):
    x, grad_y = arrays(dtype=dtype)
    found = steps_of_workers(sizes, x, grad_y, dtype=dtype)
    one = layer(3, dtype=dtype)
    assert_as_one(found, step(one, x, grad_y), x)
    expected = reference.training(x, one.gamma, one.beta)
    assert_forward(joined(found, "y"), x, expected, one.gamma, one.beta)
    gradients = joined(found, "x"), found[0]["grad"]["gamma"], found[0]["grad"]["beta"]
    exact = reference.backward(grad_y, x, one.gamma)
    assert_gradients(gradients, exact, grad_y, expected, one.gamma)


@pytest.mark.parametrize("sizes", [(12,), (0, 12, 0)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "scale", "mean"), [(np.float32, 1, 0), (np.float64, 1, 0), (np.float64, 1e150, 1e160)]
)
def test_one_worker_that_has_everything_finds_the_bits_of_one_layer(sizes, dtype, scale, mean):
    """The others have no mean, so no deviation from it that could overflow."""
    x, grad_y = arrays(dtype=dtype)
    x = x * dtype(scale) + dtype(mean)
    found = steps_of_workers(sizes, x, grad_y, dtype=dtype)
    one = step(layer(3, dtype=dtype), x, grad_y)
    for name in ("y", "x"):
        assert_same_bits(joined(found, name), one[name])
    for name in ("running_mean", "running_var", "mean", "var"):
        assert_same_bits(found[0][name], one[name])
    for name in ("gamma", "beta"):
        assert_same_bits(found[0]["grad"][name], one["grad"][name])


OPTIONS = (
    {"axis": -1},
    {"axis": 2, "dtype": np.float32},
    {"correction": 1, "running_correction": 0, "eps": 1e-3},
    {"momentum": None},
    {"scale": False},
    {"center": False},
    {"track_running_stats": False},
    {"activation": "relu"},
    {"activation": "leaky_relu", "negative_slope": 0.2},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_options_are_those_of_the_layer(options, with_residual):
    x, grad_y = arrays()
    residual = cases.values(SHAPE, np.float64, seed=2) if with_residual else None
    options = {"dtype": np.float64, **options}
    found = steps_of_workers((7, 0, 5), x, grad_y, residual=residual, **options)
    one = layer(x.shape[options.get("axis", 1)], **options)
    whole = step(one, x, grad_y, residual=residual)
    assert_as_one(found, whole, x)
    if with_residual:
        assert_within(joined(found, "residual"), whole["residual"], 1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x, grad_y = (a.astype(dtype) for a in arrays())
    found = steps_of_workers((7, 5), x, grad_y)
    eps = 2.0**-10 if dtype == "float16" else 2.0**-7
    one = step(layer(3), x, grad_y)
    assert_same_state(found)
    for name in ("y", "x"):
        assert joined(found, name).dtype == x.dtype
        whole = one[name].astype(np.float64)
        ours = joined(found, name).astype(np.float64)
        assert_within(ours, whole, 2 * eps * np.abs(whole) + 1e-5)
    assert_within(found[0]["mean"], one["mean"], 1e-12)


MASKS = {
    "some": lambda rng: rng.random((12, 5)) < 0.6,
    "none of the first worker": lambda rng: np.arange(12)[:, None, None] >= 7,
    "all of the first worker": lambda rng: np.arange(12)[:, None, None] < 7,
    "one value each": lambda rng: np.isin(np.arange(60).reshape(12, 5), [3, 40]),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    x, grad_y = arrays()
    mask = MASKS[name](np.random.default_rng(0))
    x[~np.broadcast_to(mask if mask.ndim == 3 else mask[:, None], SHAPE)] += 10
    found = steps_of_workers((7, 5), x, grad_y, mask=mask, dtype=np.float64)
    one = step(layer(3, dtype=np.float64), x, grad_y, mask=mask)
    assert_as_one(found, one, x, units=1 << 14)


@settings(max_examples=min(40, settings.default.max_examples))
@given(st.data())
def test_any_shares(data):
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6), label="sizes")
    far = data.draw(st.sampled_from([0.0, 1.0, 1e3, 1e6]), label="mean")
    apart = data.draw(st.booleans(), label="means far from each other")
    if sum(sizes) < 2:
        return
    x = cases.values((sum(sizes), 2, 3), np.float64, loc=far, scale=1.0)
    if apart:
        x += 100.0 * np.repeat(np.arange(len(sizes)), sizes)[:, None, None]
    grad_y = cases.values(x.shape, np.float64, seed=1)
    found = steps_of_workers(sizes, x, grad_y, dtype=np.float64)
    assert_same_state(found)
    one = layer(2, dtype=np.float64)
    expected = reference.training(x, one.gamma, one.beta)
    assert_forward(joined(found, "y"), x, expected, one.gamma, one.beta)
    count, mean, m2 = reference.moments(x)
    assert_within(found[0]["mean"], mean, mean_error(x))
    assert_within(found[0]["var"], m2 / count, 1e-13 * m2 / count)
    gradients = joined(found, "x"), found[0]["grad"]["gamma"], found[0]["grad"]["beta"]
    exact = reference.backward(grad_y, x, one.gamma)
    assert_gradients(gradients, exact, grad_y, expected, one.gamma)


def test_the_mean_keeps_its_low_part_on_the_way():
    """A value beside the mean of data far from 0 is known to float32's last digits of its own."""
    x = np.full((20_000, 1), 1e6, np.float32) + np.float32([[-1.0], [1.0]] * 10_000)
    x[0] = 1e6 - 0.9375
    x[2:6] = 1e6
    sizes = (7_001, 12_999)
    found = steps_of_workers(sizes, x, np.zeros_like(x), eps=0.0, scale=False, center=False)
    assert_forward(joined(found, "y"), x, reference.training(x, eps=0.0))


def test_out_is_written_in_place():
    x, _ = arrays()
    expected = layer(3, dtype=np.float64)(x)

    def work(comm):
        mine = shares(x, (7, 5))[comm.rank].copy()
        assert synchronized(comm, dtype=np.float64)(mine, out=mine) is mine
        return mine

    assert_within(np.concatenate(results(2, work)), expected, 1e-13)


def test_one_exchange_of_three_numbers_a_channel_each_way():
    x, grad_y = arrays()

    def work(comm):
        bn = synchronized(comm)
        bn(x), bn.backward(grad_y)
        return [message.shape for message in comm.sent]

    assert results(2, work) == [[(12,), (12,)]] * 2


def test_inference_and_its_backward_exchange_nothing():
    x, grad_y = arrays()
    one = layer(3, dtype=np.float64).eval()
    whole = step(one, x, grad_y)

    def work(comm):
        bn = synchronized(comm, dtype=np.float64).eval()
        mine, grad = (shares(a, (7, 5))[comm.rank] for a in (x, grad_y))
        found = bn(mine), bn.backward(grad), bn(mine, residual=mine)
        found = *found, bn.train()(mine, training=False)
        assert bn.backward(grad).shape == mine.shape
        assert not comm.sent
        return found

    found = results(2, work)
    assert_same_bits(np.concatenate([y for y, *_ in found]), whole["y"])
    assert_same_bits(np.concatenate([grad for _, grad, *_ in found]), whole["x"])
    assert_same_bits(np.concatenate([y for *_, y in found]), whole["y"])


def test_without_running_statistics_inference_exchanges_too():
    x, grad_y = arrays()
    options = {"track_running_stats": False, "dtype": np.float64}
    whole = step(layer(3, **options).eval(), x, grad_y)

    def work(comm):
        bn = synchronized(comm, **options).eval()
        mine, grad = (shares(a, (7, 5))[comm.rank] for a in (x, grad_y))
        return step(bn, mine, grad)

    assert_as_one(results(2, work), whole, x)


def test_no_values_anywhere_change_nothing():
    def work(comm):
        bn = synchronized(comm)
        before = snapshot(bn)
        y = bn(np.zeros((0, 3, 5), np.float32))
        assert y.shape == (0, 3, 5)
        assert snapshot(bn) == before
        assert bn.backward(y).shape == y.shape
        return len(comm.sent)

    assert results(2, work) == [1, 1]


def test_where_all_is_masked_everywhere_the_running_statistics_are_used():
    x, grad_y = arrays(dtype=np.float32)
    mask = np.zeros((12, 5), bool)
    one = layer(3)
    whole = one(x, mask=mask), one.backward(grad_y)

    def work(comm):
        bn = synchronized(comm)
        before = snapshot(bn)
        mine, grad, masked = (shares(a, (7, 5))[comm.rank] for a in (x, grad_y, mask))
        y = bn(mine, mask=masked)
        assert snapshot(bn) == before
        return y, bn.backward(grad)

    found = results(2, work)
    for k in (0, 1):
        assert_same_bits(np.concatenate([both[k] for both in found]), whole[k])


def test_one_value_each_is_enough():
    x = np.array([[1.0], [4.0]])
    found = steps_of_workers((1, 1), x, x, eps=0.0, scale=False, center=False)
    assert_same_bits(joined(found, "y"), np.array([[-1.0], [1.0]]))


def test_too_few_values_in_all_are_too_few_for_each():
    x = np.ones((1, 3))

    def work(comm):
        bn = synchronized(comm)
        before = snapshot(bn)
        with pytest.raises(ValueError, match=r"^x of all workers: expected at least 2 values"):
            bn(shares(x, (0, 1))[comm.rank])
        assert snapshot(bn) == before

    results(2, work)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("policy", ["raise", "skip", "propagate"])
def test_a_value_of_one_worker_that_is_not_finite(policy, value):
    x, _ = arrays(dtype=np.float32)
    x[9, 1, 2] = value
    one = layer(3, on_nonfinite=policy)
    before = snapshot(one)

    def work(comm):
        bn = synchronized(comm, on_nonfinite=policy)
        out = np.full_like(shares(x, (7, 5))[comm.rank], 777)
        try:
            bn(shares(x, (7, 5))[comm.rank], out=out)
        except FloatingPointError as error:
            assert "in channel 1" in str(error)
            assert snapshot(bn) == before
            assert (out == 777).all()
            return None
        return out, bn.state_dict()

    found = results(2, work)
    if policy == "raise":
        assert found == [None, None]
        return
    expected = one(x)
    y = np.concatenate([out for out, _ in found])
    assert not np.isfinite(y[:, 1]).any()
    assert_within(y[:, [0, 2]], expected[:, [0, 2]], 1e-6)
    for name in ("running_mean", "running_var"):
        for _, state in found:
            np.testing.assert_allclose(state[name], getattr(one, name), rtol=1e-6)


def wrong_dtype(bn, x):
    bn(x.astype(np.int64))


def wrong_shape(bn, x):
    bn(x[:, :2])


def wrong_out(bn, x):
    bn(x, out=np.zeros(3))


def wrong_mask(bn, x):
    bn(x, mask=np.ones((4, 5)))


def wrong_mode(bn, x):
    bn(x, training="yes")


def wrong_gradient(bn, x):
    bn(x)
    bn.backward(x[:1])


def overwritten(bn, x):
    bn(x)
    x += 1
    bn.backward(x)


def no_forward(bn, x):
    bn.backward(x)


def interrupted(bn, x):
    class Interrupting:
        def __array__(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bn(Interrupting())
    raise KeyboardInterrupt


def fine(bn, x):
    bn(x)
    bn.backward(x)


FAILURES = (
    (wrong_dtype, TypeError, "forward"),
    (wrong_shape, ValueError, "forward"),
    (wrong_out, ValueError, "forward"),
    (wrong_mask, TypeError, "forward"),
    (wrong_mode, TypeError, "forward"),
    (wrong_gradient, ValueError, "backward"),
    (overwritten, RuntimeError, "backward"),
    (interrupted, KeyboardInterrupt, "forward"),
)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(("failing", "kind", "operation"), FAILURES, ids=lambda f: getattr(f, "__name__", f))
def test_an_exception_on_one_worker_reaches_all(failing, kind, operation, rank):
    x = cases.values((4, 3, 5), np.float64)

    def work(comm):
        bn = synchronized(comm, dtype=np.float64)
        before = snapshot(bn)
        try:
            (failing if comm.rank == rank else fine)(bn, x.copy())
        except (Exception, KeyboardInterrupt) as error:
            if operation == "forward":
                assert snapshot(bn) == before
            bn(x)  # they go on together
            assert bn.num_batches_tracked == (1 if operation == "forward" else 2)
            return error, bn.running_mean
        return None, None

    found = together(3, work)
    for k, (error, mean) in enumerate(found):
        assert_same_bits(mean, found[0][1])
        if k == rank:
            assert type(error) is kind
        else:
            assert type(error) is RuntimeError
            assert f"{kind.__name__} on rank {rank}" in str(error)
            assert f"expected a {operation} on each" in str(error)


@pytest.mark.parametrize("activation", [None, pytest.param("hard_swish", marks=pytest.mark.long)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_backward_that_another_worker_stops_has_written_nothing(activation, with_residual):
    x, grad_y = arrays()

    def work(comm):
        bn = synchronized(comm, dtype=np.float64, activation=activation)
        bn(x, residual=x if with_residual else None)
        grad = grad_y.copy()
        for out in (grad, np.full_like(x, 777)):
            before = out.copy()
            with pytest.raises((RuntimeError, ValueError), match=r"^workers: |^grad_y: "):
                bn.backward(grad[:1] if comm.rank else grad, out=None if comm.rank else out)
            assert_same_bits(out, before)

    results(2, work)


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (1.7e308, 1.7e308)])
def test_gradients_that_have_no_finite_sum_are_no_warning(values):
    x, grad_y = arrays()
    grad_y[[0, 9], 1, 2] = values
    found = steps_of_workers((7, 5), x, grad_y, dtype=np.float64)
    one = step(layer(3, dtype=np.float64), x, grad_y)
    assert_same_state(found)
    for name in ("gamma", "beta"):
        for ours, whole in zip(found[0]["grad"][name], one["grad"][name], strict=True):
            assert np.isfinite(ours) == np.isfinite(whole)
    assert np.isfinite(joined(found, "x")[:, [0, 2]]).all()


def test_a_backward_before_any_forward():
    x = cases.values((4, 3, 5), np.float64)
    found = together(2, lambda comm: no_forward(synchronized(comm), x))
    assert [type(error) for error in found] == [RuntimeError] * 2
    assert all("expected a forward before it" in str(error) for error in found)


def test_workers_in_different_places():
    x = cases.values((4, 3, 5), np.float64)

    def work(comm):
        bn = synchronized(comm)
        bn(x)
        return bn.backward(x) if comm.rank else bn(x)

    found = together(2, work)
    assert "expected a forward on each, got a backward on rank 1" in str(found[0])
    assert "expected a backward on each, got a forward on rank 0" in str(found[1])


def test_population_statistics_are_those_of_all_workers():
    x, _ = arrays()
    one = layer(3, dtype=np.float64)
    with nbbn.calibrate(one):
        one(x[:8]), one(x[8:])

    def work(comm):
        bn = synchronized(comm, dtype=np.float64)
        with nbbn.calibrate(bn):
            bn(shares(x[:8], (3, 5))[comm.rank])
            bn(shares(x[8:], (4, 0))[comm.rank])
        return bn.state_dict()

    for state in results(2, work):
        assert_within(state["running_mean"], one.running_mean, 1e-14)
        assert_within(state["running_var"], one.running_var, 1e-13)
        assert state["num_batches_tracked"] == 2


@pytest.mark.parametrize("saved_by", [nbbn.BatchNorm, SyncBatchNorm])
def test_save_and_load(saved_by, tmp_path):
    (comm,) = meeting(1)
    options = {"comm": comm} if saved_by is SyncBatchNorm else {}
    bn = saved_by(3, axis=-1, eps=0.5, **options).eval()
    bn.running_mean[:] = 1, 2, 3
    bn.save(tmp_path / "bn.npz")
    again = SyncBatchNorm.load(tmp_path / "bn.npz", comm=comm)
    assert type(again) is SyncBatchNorm
    assert (again.axis, again.eps, again.training, again.comm) == (-1, 0.5, False, comm)
    assert_same_bits(again.running_mean, bn.running_mean)
    assert_same_bits(nbbn.BatchNorm.load(tmp_path / "bn.npz").running_mean, bn.running_mean)


def test_pickles_leave_the_communicator_out():
    (comm,) = meeting(1)
    x, grad_y = arrays(dtype=np.float32)
    bn = synchronized(comm)
    again = pickle.loads(pickle.dumps(bn))
    assert type(again) is SyncBatchNorm and again.comm is None
    before = snapshot(again)
    for call in (lambda: again(x), lambda: again.backward(grad_y)):
        with pytest.raises(RuntimeError, match=r"^comm: expected a communicator to train with"):
            call()
    assert snapshot(again) == before
    assert_same_bits(again(x, training=False), layer(3).eval()(x))
    again.comm = comm
    assert_same_bits(again(x), bn(x))


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy])
def test_copies_keep_the_communicator_and_nothing_else_in_common(clone):
    class Named(SyncBatchNorm):
        """A class of users may have attributes of its own."""

    (comm,) = meeting(1)
    bn = Named(3, comm=comm)
    bn.name = ["mine"]
    again = clone(bn)
    assert again.comm is comm and again.name == ["mine"]
    again(cases.values(SHAPE))
    assert again.num_batches_tracked == 1 and bn.num_batches_tracked == 0
    assert not np.shares_memory(again.running_mean, bn.running_mean)


def test_copy_shares_what_the_user_attached_as_that_of_the_layer_does():
    class Named(SyncBatchNorm):
        """A class of users may have attributes of its own."""

    (comm,) = meeting(1)
    bn = Named(3, comm=comm)
    bn.name = ["mine"]
    assert copy.copy(bn).name is bn.name
    pair = copy.deepcopy([bn, bn])
    assert pair[0] is pair[1] and pair[0].name is not bn.name


def test_it_is_a_batch_norm():
    (comm,) = meeting(1)
    bn = SyncBatchNorm(3, comm=comm, eps=0.5)
    assert isinstance(bn, nbbn.BatchNorm)
    assert repr(bn) == "SyncBatchNorm(3, eps=0.5, training)"
    assert bn.freeze().num_features == 3


class NotCallable:
    allgather = 3


@pytest.mark.parametrize("comm", [None, 3, "world", object(), NotCallable(), np.ones(3)])
def test_what_is_no_communicator(comm):
    message = r"^comm: expected an mpi4py communicator, a torch.distributed process group, or"
    with pytest.raises(TypeError, match=message):
        SyncBatchNorm(3, comm=comm)
    bn = SyncBatchNorm(3, comm=meeting(1)[0])
    with pytest.raises(TypeError, match=message):
        bn.comm = comm
    assert bn.comm is not comm


def test_options_are_checked():
    (comm,) = meeting(1)
    with pytest.raises(ValueError, match=r"^eps: "):
        SyncBatchNorm(3, comm=comm, eps=-1.0)
    with pytest.raises(TypeError, match="comm"):
        SyncBatchNorm(3)


@pytest.mark.parametrize("answer", [[], [np.zeros(3)], [np.zeros(12), np.zeros(11)]])
def test_a_communicator_that_answers_something_else(answer):
    class Odd:
        def allgather(self, array):
            return answer

    bn = SyncBatchNorm(3, comm=Odd())
    before = snapshot(bn)
    with pytest.raises(RuntimeError, match=r"^comm.allgather: expected a list of arrays of shape"):
        bn(cases.values(SHAPE))
    assert snapshot(bn) == before


def test_what_an_exchange_raises_is_raised():
    class Broken:
        def allgather(self, array):
            raise ConnectionError("gone")

    bn = SyncBatchNorm(3, comm=Broken())
    before = snapshot(bn)
    with pytest.raises(ConnectionError, match="gone"):
        bn(cases.values(SHAPE))
    with pytest.raises(TypeError, match="int64"):  # not that the others can't be told
        bn(np.ones(SHAPE, np.int64))
    assert snapshot(bn) == before
