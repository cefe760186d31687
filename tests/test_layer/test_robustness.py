"""What users, other threads and other files may do to a layer without harm."""

import contextlib
import copy
import gc
import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import zipfile

import cases
import numpy as np
import pytest
import reference
from compare import assert_same_bits, same_bits
from rooms import jit, machine, needs_jit

import nbbn
from nbbn.distributed import SyncBatchNorm


def data(shape=(8, 4), seed=0):
    return cases.values(shape, seed=seed)


@pytest.mark.filterwarnings("ignore:.*shape:DeprecationWarning")
def test_an_input_reshaped_after_the_forward_is_still_the_one_of_backward():
    bn, x, grad = nbbn.BatchNorm(4), data(), data(seed=1)
    bn(x)
    expected = bn.backward(grad)
    x.shape = (4, 8)
    np.testing.assert_array_equal(bn.backward(grad), expected)
    with pytest.raises(ValueError, match="grad_y: expected shape"):
        bn.backward(grad.reshape(4, 8))


@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
def test_the_arrays_of_a_layer_cannot_be_resized(name):
    bn = nbbn.BatchNorm(3)
    with pytest.raises(ValueError, match="resize"):
        getattr(bn, name).resize(10**6)
    assert bn(data((5, 3))).shape == (5, 3)


def test_flags_of_the_views_do_not_tear_an_update():
    bn, fresh, x = nbbn.BatchNorm(3), nbbn.BatchNorm(3), data((5, 3))
    bn.running_var.flags.writeable = False
    bn(x)
    fresh(x)
    np.testing.assert_array_equal(bn.running_var, fresh.running_var)
    bn.load_state_dict(nbbn.BatchNorm(3).state_dict())
    np.testing.assert_array_equal(bn.running_var, 1)


def test_loading_a_state_made_of_its_own_arrays_swaps_them():
    bn = nbbn.BatchNorm(2)
    state = bn.state_dict() | {"gamma": bn.beta, "beta": bn.gamma}
    bn.load_state_dict(state)
    np.testing.assert_array_equal(bn.gamma, 0)
    np.testing.assert_array_equal(bn.beta, 1)


def test_a_masked_array_in_a_state_is_refused():
    bn = nbbn.BatchNorm(2)
    state = bn.state_dict() | {"gamma": np.ma.masked_array(np.ones(2, np.float32), [True, False])}
    with pytest.raises(TypeError, match="gamma: expected a plain array, got a masked array"):
        bn.load_state_dict(state)


def test_eps_of_the_forward_is_that_of_its_backward():
    bn, x, grad = nbbn.BatchNorm(4).eval(), data(), data(seed=1)
    bn(x)
    expected = bn.backward(grad)
    bn.eps = 3.0
    np.testing.assert_array_equal(bn.backward(grad), expected)


def test_batch_statistics_are_the_users_own():
    bn, x, grad = nbbn.BatchNorm(4), data(), data(seed=1)
    bn(x)
    expected = bn.backward(grad)
    bn.batch_inv_std[:], bn.batch_mean[:] = 0, 0
    np.testing.assert_array_equal(bn.backward(grad), expected)


class Named(nbbn.BatchNorm):
    """A subclass with a constructor of its own."""

    def __init__(self, name):
        super().__init__(3, eps=0.5)
        self.name = name


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_subclasses_and_their_attributes_are_copied(clone):
    bn = Named("first")
    bn(data((5, 3)))
    other = clone(bn)
    assert (type(other), other.name, other.eps) == (Named, "first", 0.5)
    np.testing.assert_array_equal(other.running_mean, bn.running_mean)
    assert not np.shares_memory(other.running_mean, bn.running_mean)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("training", "no", TypeError),
        ("num_batches_tracked", -1, ValueError),
        ("num_batches_tracked", 2**64 - 1, ValueError),
        ("num_batches_tracked", 1.5, TypeError),
        ("eps", 1j, TypeError),
        ("eps", np.complex128(1), TypeError),
        ("momentum", np.nan, ValueError),
        ("activation", "gelu", ValueError),
        ("negative_slope", np.inf, ValueError),
    ],
)
def test_attributes_are_checked(name, value, error):
    bn = nbbn.BatchNorm(2)
    before = getattr(bn, name)
    with pytest.raises(error, match=name):
        setattr(bn, name, value)
    assert getattr(bn, name) == before


def test_a_numpy_bool_is_a_mode_that_can_be_saved(tmp_path):
    bn = nbbn.BatchNorm(2)
    bn.training = np.bool_(False)
    bn.save(tmp_path / "bn.npz")
    assert nbbn.BatchNorm.load(tmp_path / "bn.npz").training is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_layer_does_not_hang_the_child():
    bn, x = nbbn.BatchNorm(4), data()
    expected = bn.eval()(x)
    with bn._lock:  # as in the middle of an update
        child = os.fork()
        if child == 0:
            signal.alarm(240)
            os._exit(0 if np.array_equal(bn(x), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_inference_in_other_threads_leaves_the_backward_of_this_one_alone():
    bn, x, grad = nbbn.BatchNorm(4), data(), data(seed=1)
    bn(x)
    expected = bn.backward(grad)
    other = threading.Thread(target=bn, args=(data(seed=3),), kwargs={"training": False})
    other.start()
    other.join()
    np.testing.assert_array_equal(bn.backward(grad), expected)


def test_a_thread_without_a_forward_of_its_own_differentiates_the_last_one():
    bn, x, grad, found = nbbn.BatchNorm(4), data(), data(seed=1), []
    bn(x)
    other = threading.Thread(target=lambda: found.append(bn.backward(grad)))
    other.start()
    other.join()
    np.testing.assert_array_equal(found[0], bn.backward(grad))


def test_layers_are_not_kept_alive():
    import weakref

    bn = nbbn.BatchNorm(4)
    alive = weakref.ref(bn)
    del bn
    gc.collect()
    assert alive() is None


def test_sizes_that_an_archive_claims_are_not_believed(tmp_path):
    path = tmp_path / "bn.npz"
    bn = nbbn.BatchNorm(2)
    bn.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    claim = 50_000_000
    text = np.array(json.dumps({"num_features": claim}))
    np.save(tmp_path / "options.npy", text)
    members["options.npy"] = (tmp_path / "options.npy").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    whole = bytearray(path.read_bytes())
    at = whole.rindex(b"gamma.npy") - 46  # the entry in the central directory
    struct.pack_into("<II", whole, at + 20, claim, claim)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="num_features: expected what the file can hold"):
        nbbn.BatchNorm.load(path)


def test_windows_that_overlap_themselves_are_read():
    base = data((60,))
    x = np.lib.stride_tricks.sliding_window_view(base, 5)
    for values in (x, np.lib.stride_tricks.sliding_window_view(data((4, 30)), 5, axis=1)):
        bn, plain = nbbn.BatchNorm(5, axis=-1), nbbn.BatchNorm(5, axis=-1)
        np.testing.assert_array_equal(bn(values), plain(values.copy()))
        grad = np.ones(values.shape, np.float32)
        np.testing.assert_array_equal(bn.backward(grad), plain.backward(grad))


def test_an_out_that_overlaps_itself_is_refused():
    out = np.lib.stride_tricks.as_strided(np.zeros(60, np.float32), (46, 5), (4, 4))
    with pytest.raises(ValueError, match="out: expected memory of its own for each value"):
        nbbn.normalize(data((46, 5)), np.zeros(5), np.ones(5), out=out)


def test_channels_of_one_buffer_do_not_overlap():
    buffer = data((4, 6, 5, 5))
    x, out = buffer[:, :3], buffer[:, 3:]
    expected = nbbn.BatchNorm(3)(x.copy())
    bn = nbbn.BatchNorm(3)
    np.testing.assert_array_equal(bn(x, out=out), expected)
    assert bn.backward(np.ones_like(expected)).shape == x.shape


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_apart_from_out(name):
    buffer = np.ones(12, np.float32)
    running = {"running_mean": np.zeros(3, np.float32), "running_var": np.ones(3, np.float32)}
    running[name] = buffer[:3]
    x, before = data((4, 3)), buffer.copy()
    with pytest.raises(ValueError, match=f"{name}: expected memory apart from out"):
        nbbn.batch_norm(x, **running, training=True, out=buffer.reshape(4, 3))
    np.testing.assert_array_equal(buffer, before)


def test_the_two_running_statistics_are_two_arrays():
    both = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="running_mean: expected memory apart from running_var"):
        nbbn.batch_norm(data((4, 3)), both, both, training=True)


def test_out_may_overlap_gamma():
    x, buffer = data((4, 3)), np.full(12, 2, np.float32)
    expected = nbbn.batch_norm(x, None, None, buffer[:3].copy(), training=True)
    found = nbbn.batch_norm(x, None, None, buffer[:3], training=True, out=buffer.reshape(4, 3))
    np.testing.assert_array_equal(found, expected)


def test_out_is_what_is_returned(tmp_path):
    out = np.memmap(tmp_path / "y", np.float32, "w+", shape=(8, 4))
    assert nbbn.BatchNorm(4)(data(), out=out) is out
    assert nbbn.normalize(data(), np.zeros(4), np.ones(4), out=out) is out
    bn = nbbn.BatchNorm(4)
    bn(data())
    assert bn.backward(data(), out=out) is out


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_outlier_in_the_first_place_costs_no_digits(dtype, channels):
    x = np.random.default_rng(170).normal(size=(50001, channels)).astype(dtype)
    x[0] = 1e4
    exact = reference.training(x)
    y = nbbn.BatchNorm(channels, dtype=dtype)(x)
    eps = np.finfo(dtype).eps
    # float64 has no digits to spare for values next to the mean: there an absolute bound
    bound = 8 * eps * np.abs(exact.xhat) + (0 if dtype == np.float32 else 8 * eps)
    assert np.all(np.abs(y - exact.y) <= bound)


@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1e9, 1e25, 1e30])
def test_gradients_scale_with_the_input(scale):
    x, grad = data((16, 2)).astype(np.float64), data((16, 2), seed=1)
    found = []
    for factor in (1.0, scale):
        bn = nbbn.BatchNorm(2, eps=0.0)
        bn((x * factor).astype(np.float32))
        found.append(bn.backward(grad).astype(np.float64) * factor)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_mean_of_infinities_is_infinite_whatever_stands_beside_it(order):
    x = np.array([[1, 0], [2, 1], [3, 1], [np.inf, 1]], order=order)
    moments = nbbn.batch_moments(x)
    np.testing.assert_array_equal(moments.mean, [np.inf, 0.75])
    assert np.isnan(moments.m2[0])
    assert moments.m2[1] == 0.75


@pytest.mark.parametrize("value", ["junk", None])
def test_dtypes_that_are_none(value):
    with pytest.raises(TypeError, match="dtype: expected float32 or float64"):
        nbbn.BatchNorm(3, dtype=value)


def test_foreign_byte_order_is_named():
    with pytest.raises(TypeError, match="float32 in foreign byte order"):
        nbbn.batch_moments(np.ones((2, 2), ">f4"))


def test_types_are_shipped():
    from importlib.resources import files

    assert files("nbbn").joinpath("py.typed").is_file()


def test_a_misaligned_out_past_the_cache(monkeypatch):
    """Streaming stores to an address that is no multiple of the item's size end the process."""
    monkeypatch.setattr(machine, "last_level_cache", lambda: 0)
    x = cases.values((600, 256), np.float32)
    bn = nbbn.BatchNorm(256)
    expected = bn(x), bn.backward(x), bn(x, training=False)  # aligned: kernels are compiled for it
    for array in (x, *expected):
        assert array.flags.aligned
    moved = [np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape) for _ in "123"]
    bn.reset_running_stats()
    bn(x, out=moved[0])
    bn.backward(x, out=moved[1])
    bn(x, training=False, out=moved[2])
    for got, wanted in zip(moved, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@needs_jit
def test_two_threads_that_ask_for_a_step_compile_it_once(monkeypatch):
    compiled, asked, threads = [], threading.Event(), []

    class Ready(dict):
        def get(self, key):
            if threads:
                asked.set()
            return super().get(key)

    def compile_slowly(*_):
        compiled.append(object())
        if not threads:
            threads.append(threading.Thread(target=step.variant, args=(wanted,)))
            threads[0].start()
            assert asked.wait(60)  # it found nothing that is ready, and waits for the lock
        return compiled[-1]

    def identity(x: jit.Float) -> None:
        """What nobody compiles."""

    monkeypatch.setattr(jit, "_compiled", compile_slowly)
    monkeypatch.setattr(jit.internals, "entry_of", lambda made: made)
    step, wanted = jit.Step(identity), jit.Variant()
    step._ready = Ready()
    first = step.variant(wanted)
    threads[0].join(60)
    assert [first] == compiled == step.made


def test_calls_go_on_while_another_thread_compiles():
    """A dispatcher that is open to compile makes calls in other threads compile, too, or fail."""
    script = """
        import threading, numpy as np, nbbn
        bn = nbbn.BatchNorm(8).eval()
        x = np.ones((4, 8), np.float32)
        bn(x)
        errors, stop = [], threading.Event()

        def serve():
            while not stop.is_set():
                try:
                    bn(x)
                except BaseException as error:
                    errors.append(repr(error))
                    return

        threads = [threading.Thread(target=serve) for _ in range(3)]
        for thread in threads:
            thread.start()
        nbbn.BatchNorm(8, dtype=np.float64).eval()(x.astype(np.float64))
        nbbn.BatchNorm(8).eval()(np.ones((2, 8, 6, 6), np.float32))
        nbbn.BatchNorm(8)(x)
        stop.set()
        for thread in threads:
            thread.join()
        print(errors)
    """
    code = "\n".join(line[8:] for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_pickles_hold_no_plans():
    bn = nbbn.BatchNorm(3)
    empty = len(pickle.dumps(bn))
    bn(np.ones((4, 3), np.float32))
    assert b"Plan" not in pickle.dumps(bn)
    assert len(pickle.dumps(bn)) < empty + 400  # the batch's statistics


def test_a_constant_overwritten_by_another_is_noticed():
    """A checksum that only weighs values by their place misses constants of 4,096 values."""
    for constant in range(1, 60):
        x = np.zeros((64, 64), np.float32)
        bn = nbbn.BatchNorm(64)
        bn(x)
        x[:] = constant
        with pytest.raises(RuntimeError, match="overwritten"):
            bn.backward(x)


def test_large_object_arrays_get_the_usual_sentence():
    with pytest.raises(TypeError, match="x: expected dtype float32, float64, float16 or bfloat16, got object"):
        nbbn.BatchNorm(8)(np.ones((200_000, 8), object))


def unpickled(array):
    """What a data loader hands over: its dtype is equal to NumPy's own, but not that object."""
    found = pickle.loads(pickle.dumps(array))
    assert found.dtype == array.dtype and found.dtype is not array.dtype
    return found


@needs_jit
@pytest.mark.parametrize("shape", [(12, 5), (3, 5, 4, 6)])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)
def test_arrays_from_a_pickle_take_the_same_way_as_others(dtype, shape, monkeypatch):
    arrays = cases.values(shape, dtype), cases.values(shape, dtype, seed=1)
    vectors = cases.parameters(5, dtype)

    def everything(x, grad_y, gamma, beta, mean, var):
        bn = nbbn.BatchNorm(5, dtype=dtype)
        bn.gamma, bn.beta = gamma, beta
        found = [bn(x), bn.backward(grad_y, out=grad_y.copy()), bn.grad_gamma, bn.running_var]
        found += [bn.eval()(x), bn(x, out=x.copy())]
        bn.activation = "relu"
        found += [bn(x, residual=grad_y), bn.freeze()(x, residual=grad_y)]
        found += [nbbn.normalize(x, mean, var, gamma, beta), nbbn.batch_norm(x, mean, var)]
        found += [nbbn.batch_norm(x, mean.copy(), var.copy(), gamma, beta, training=True)]
        found += nbbn.batch_norm_backward(grad_y, x, mean, var, gamma)
        return [*found, nbbn.batch_moments(x).m2]

    expected = everything(*arrays, *vectors)

    def compile_nothing(*arguments):
        raise AssertionError("another variant")

    monkeypatch.setattr(jit, "_compiled", compile_nothing)
    found = everything(*map(unpickled, arrays), *map(unpickled, vectors))
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)
    bn = pickle.loads(pickle.dumps(nbbn.BatchNorm(5, dtype=dtype)))
    assert bn.dtype is np.dtype(dtype)
    bn(arrays[0])
    bn.backward(arrays[1])


HARD = {
    "tiny": (1e-38, 1e-38),
    "small": (1e-20, 1e-25),
    "huge": (1e38, 1e30),
    "not finite": (1.0, np.nan),
}
LAYERS = (
    {},
    {"momentum": None, "eps": 0.0, "on_nonfinite": "skip"},
    {"activation": "hard_swish", "on_nonfinite": "raise"},
    {"dtype": np.float64, "correction": 1},
    {"track_running_stats": False},
)


class Alone:
    def allgather(self, array):
        return [array]


def every_call(dtype, scale, odd):
    """Yield results of about every public entry; what they are given underflows, overflows or is NaN on the way."""
    with np.errstate(all="ignore"):
        x = cases.values((6, 3), dtype) * dtype(scale)
        x[0, 1] = odd
        grad_y = cases.values((6, 3), dtype, seed=1) * dtype(scale)
        batches = [x * dtype(10.0**-k) for k in range(3)]
        wide = np.array([1e-300, 1e300, -1e-310])
        narrow = wide.astype(dtype)
    zeros, positive, var = np.zeros(3), np.abs(wide), np.array([1e-300, 1e300, np.nan])
    mask = np.array([True] * 4 + [False] * 2)
    for options in LAYERS:
        for bn in (nbbn.BatchNorm(3, **options), SyncBatchNorm(3, comm=Alone(), **options)):
            names = ("gamma", "beta", "running_mean", "running_var")
            for name, value in zip(names, (wide, wide, wide, var), strict=True):
                if getattr(bn, name) is not None:
                    setattr(bn, name, value)
                    yield getattr(bn, name)
            yield from forwards(bn, x, grad_y, mask)
            if bn.track_running_stats:
                frozen = bn.freeze()
                yield from (frozen.scale, frozen(x), frozen(x, residual=grad_y))
                with contextlib.suppress(FloatingPointError), nbbn.calibrate(bn):
                    for batch in batches:
                        bn(batch)
                yield from bn.state_dict().values()
    moments = [nbbn.batch_moments(batch, mask=mask) for batch in batches]
    moments += [nbbn.batch_moments(x, weights=[1.0, 1e-50, 1e-100, 1e-150, 1e-200, 1e-310])]
    moments += [
        nbbn.Moments(3, wide, [1e-320, 1e308, 0.0]),
        nbbn.Moments(5, wide, [0, 1e308, np.inf]),
    ]
    for one, other in itertools.product(moments, moments):
        both = one + other
        yield from (both.mean, both.m2, both.var(1), both.std())
    yield nbbn.normalize(x, wide, var, wide, var, activation="relu")
    yield nbbn.batch_norm(x, wide, var, wide)
    mean, var = wide.copy(), var.copy()
    yield nbbn.batch_norm(x, mean, var, wide, training=True, mask=mask)
    yield from (mean, var)
    yield from nbbn.batch_norm_backward(grad_y, x, wide, wide, wide, training=False)
    yield from nbbn.batch_norm_backward(grad_y, x, wide, wide, narrow)
    frozen = nbbn.FrozenBatchNorm.from_stats(wide, positive, wide, eps=0.0)
    yield from (frozen.scale, frozen(x))
    yield from nbbn.fold_linear(x[:3, :2], None, nbbn.FrozenBatchNorm(wide, zeros, zeros))
    yield nbbn.interop.from_keras([wide, wide, wide, positive]).running_var
    scaler = nbbn.Standardizer().partial_fit(batches[0][1:]).partial_fit(batches[1][1:])
    yield from (scaler.scale_, scaler.transform(x[1:]), scaler.inverse_transform(x[1:]))


def forwards(bn, x, grad_y, mask):
    """Each kind of forward and its backward; those that are refused are refused for what x is."""
    given = {"mask": mask}, {"residual": grad_y}, {"training": False}, {"out": np.empty_like(x)}
    for options in ({}, *given):
        try:
            yield bn(x, **options)
            yield bn.backward(grad_y)
        except FloatingPointError as error:
            assert bn.on_nonfinite == "raise" and str(error).startswith("x: expected finite")
            yield None
        yield from (bn.grad_gamma, bn.grad_beta, bn.batch_var, bn.batch_inv_std)
        yield from bn.state_dict().values()


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)
def test_numpys_errors_are_no_business_of_ours(dtype, hard):
    """Who makes NumPy raise or warn gets the results of who does not."""
    results = []
    for setting in ("ignore", "raise"):
        with np.errstate(all=setting):
            found = every_call(dtype, *HARD[hard])
            results.append([None if value is None else np.array(value) for value in found])
    for one, other in zip(*results, strict=True):
        assert same_bits(one, other)
