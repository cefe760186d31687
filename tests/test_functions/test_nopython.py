"""What users call from their own compiled code: exact, safe in prange, and of one result however compiled."""

import functools
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import cases
import numba
import numpy as np
import pytest
import reference
from compare import (
    assert_same_bits,
    assert_within,
    float32_first,
    forward_bound,
    mean_error,
    var_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit, prange

import nbbn
from nbbn import nopython

PACKAGE = Path(nbbn.__file__).parent

# Long and short runs, columns wide and narrow, few rows and many, one channel, more than a piece of each.
SHAPES = (
    (1, 1, 1),
    (1, 1, 40_000),
    (300, 1, 1),
    (1, 64, 1),
    (1, 5, 9),
    (4, 64, 1),
    (5, 70, 1),
    (9, 64, 1),
    (200, 64, 1),
    (1200, 70, 1),
    (1000, 3, 1),
    (777, 3, 4),
    (7, 20, 3),
    (2, 3000, 1),
    (70, 1100, 1),
    (3, 5, 16),
    (6, 4, 37),
    (2, 3, 20_000),
)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
by_dtype = float32_first


def coefficients(count, dtype):
    gamma, beta, mean, _ = cases.parameters(count, np.float64)
    return [v.astype(dtype) for v in (mean, gamma, beta)]


def general(x, center, scale, shift):
    """The same from `nbbn.normalize`: its variance is 1, its eps 0."""
    return nbbn.normalize(x, center, np.ones_like(center), scale, shift, eps=0.0)


def moments_of(x):
    mean, m2 = np.full(x.shape[1], 777.0), np.full(x.shape[1], 777.0)
    return nopython.moments(x, mean, m2), mean, m2


@by_shape
@by_dtype
def test_normalize_has_the_bits_of_the_general_function(dtype, shape):
    x = cases.values(shape, dtype)
    numbers = coefficients(shape[1], dtype)
    out = np.full_like(x, 777)
    assert nopython.normalize(x, *numbers, out) is None
    assert_same_bits(out, general(x, *numbers))


@by_shape
def test_float64_coefficients_of_float32_values_lose_nothing(shape):
    x = cases.values(shape, loc=1e6, scale=1.0)
    center, scale, shift = coefficients(shape[1], np.float64)
    center += 1e6
    out = np.full_like(x, 777)
    nopython.normalize(x, center, scale, shift, out)
    assert_same_bits(out, general(x, center, scale, shift))
    expected = reference.inference(x, center, np.ones_like(center), scale, shift, eps=0.0)
    assert_within(out, expected.y, forward_bound(x, expected, scale, shift))


@by_shape
def test_normalize_works_in_place_and_writes_nothing_else(shape):
    numbers = coefficients(shape[1], np.float32)
    memory = np.full(int(np.prod(shape)) + 32, 777, np.float32)
    x = memory[16:-16].reshape(shape)
    x[:] = cases.values(shape)
    expected = general(x.copy(), *numbers)
    nopython.normalize(x, *numbers, x)
    assert_same_bits(x, expected)
    np.testing.assert_array_equal(memory[:16], 777)
    np.testing.assert_array_equal(memory[-16:], 777)


@pytest.mark.parametrize("loc", [0.0, 1e4, 1e6])
@by_shape
@by_dtype
def test_moments_are_as_exact_as_the_general_function(dtype, shape, loc):
    x = cases.values(shape, dtype, loc=loc, scale=1.0)
    count, mean, m2 = moments_of(x)
    exact_count, exact_mean, exact_m2 = reference.moments(x)
    assert type(count) is float
    assert count == exact_count
    assert_within(mean, exact_mean, mean_error(x))
    assert_within(m2, exact_m2, var_error(x, exact_m2))


@pytest.mark.parametrize("outlier", [0, 1, -1])
@pytest.mark.parametrize("shape", [(6, 20, 1), (500, 20, 1), (50, 3, 1), (3, 4, 50)])
@pytest.mark.long
def test_a_far_outlier_costs_no_digits(shape, outlier):
    x = cases.values(shape, np.float64, loc=0.0, scale=1e-3)
    x[outlier, :, 0] = 1e3
    _, mean, m2 = moments_of(x)
    _, exact_mean, exact_m2 = reference.moments(x)
    assert_within(mean, exact_mean, mean_error(x))
    assert_within(m2, exact_m2, 1e-12 * exact_m2)


@by_dtype
@settings(max_examples=min(100, settings.default.max_examples))
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, -1.0, 1e3]),
    st.integers(0, 2**32 - 1),
)
def test_any_shape(dtype, shape, loc, seed):
    x = cases.values(shape, dtype, loc=loc, scale=1.0, seed=seed)
    numbers = coefficients(shape[1], dtype)
    out = np.full_like(x, 777)
    nopython.normalize(x, *numbers, out)
    assert_same_bits(out, general(x, *numbers))
    count, mean, m2 = moments_of(x)
    exact_count, exact_mean, exact_m2 = reference.moments(x)
    assert count == exact_count
    assert_within(mean, exact_mean, mean_error(x))
    assert_within(m2, exact_m2, var_error(x, exact_m2) + count * mean_error(x) ** 2)


def test_the_usual_float32_loop_loses_the_variance():
    @njit
    def by_hand(x, c):
        s = q = np.float32(0)
        for o in range(x.shape[0]):
            for i in range(x.shape[2]):
                s += x[o, c, i]
                q += x[o, c, i] * x[o, c, i]
        n = np.float32(x.shape[0] * x.shape[2])
        return q / n - (s / n) * (s / n)

    x = cases.values((8, 2, 500), loc=1e4, scale=1.0)
    count, _, m2 = moments_of(x)
    _, _, exact = reference.moments(x)
    assert_within(m2 / count, exact / count, 1e-12)
    assert abs(by_hand(x, 0) - exact[0] / count) > 0.5


@by_dtype
def test_nan_and_infinity_stay_in_their_channel(dtype):
    for shape in ((3, 4, 40), (3, 20, 1), (50, 20, 1), (1, 20, 1)):
        x = cases.values(shape, dtype)
        x[0, 1, 0], x[-1, 2, -1] = np.nan, np.inf
        numbers, out = coefficients(shape[1], dtype), np.empty_like(x)
        nopython.normalize(x, *numbers, out)
        assert_same_bits(out, general(x, *numbers))
        _, mean, m2 = moments_of(x)
        whole = np.arange(shape[1]) != 1
        assert np.isnan(mean[1])
        assert mean[2] == np.inf
        assert np.isnan(m2[1:3]).all()
        assert np.isfinite(mean[whole & np.isfinite(mean)]).sum() == shape[1] - 2
        assert np.isfinite(m2).sum() == shape[1] - 2


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0), (2, 0, 3)])
def test_no_values(shape):
    x, numbers = np.empty(shape, np.float32), coefficients(shape[1], np.float32)
    nopython.normalize(x, *numbers, np.empty_like(x))
    count, mean, m2 = moments_of(x)
    assert count == shape[0] * shape[2]
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(m2, 0)


@njit(parallel=True)
def each_sample(x, center, scale, shift, y, mean, m2, counts):
    for n in prange(x.shape[0]):
        nopython.normalize(x[n : n + 1], center, scale, shift, y[n : n + 1])
        counts[n] = nopython.moments(x[n : n + 1], mean[n], m2[n])


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("shape", [(40, 64, 1), (40, 6, 9), (40, 3, 500)])
def test_in_a_parallel_loop_of_the_user(shape, threads):
    x = cases.values(shape)
    numbers = coefficients(shape[1], np.float32)
    y, mean, m2 = np.empty_like(x), np.empty(shape[:2]), np.empty(shape[:2])
    counts = np.empty(shape[0])
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        each_sample(x, *numbers, y, mean, m2, counts)
    finally:
        numba.set_num_threads(before)
    assert_same_bits(y, general(x, *numbers))
    np.testing.assert_array_equal(counts, shape[2])
    for n in range(shape[0]):
        _, expected_mean, expected_m2 = moments_of(x[n : n + 1])
        assert_same_bits(mean[n], expected_mean)
        assert_same_bits(m2[n], expected_m2)


@pytest.mark.parametrize("wrong", ["center", "scale", "shift", "out3"])
@pytest.mark.parametrize("size", [2, 4])
def test_shapes_that_do_not_fit_make_the_result_nan(wrong, size):
    arguments = dict(zip(("center", "scale", "shift"), coefficients(3, np.float32), strict=True))
    memory = np.full(64, 777, np.float32)
    arguments["out3"] = memory[20:44].reshape(2, 3, 4)
    if wrong == "out3":
        arguments["out3"] = memory[20 : 20 + 8 * size].reshape(2, size, 4)
    else:
        arguments[wrong] = np.ones(size, np.float32)
    nopython.normalize(cases.values((2, 3, 4)), *arguments.values())
    assert np.isnan(arguments["out3"]).all()
    assert np.count_nonzero(memory == 777) == 64 - arguments["out3"].size


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2), (4, 3), (3, 4)])
def test_moments_without_a_place_are_nan(sizes):
    mean, m2 = np.full(sizes[0], 777.0), np.full(sizes[1], 777.0)
    count = nopython.moments(cases.values((2, 3, 4)), mean, m2)
    assert np.isnan([count, *mean, *m2]).all()


@by_dtype
def test_other_types_are_refused_by_name(dtype):
    x, (center, scale, shift) = cases.values((4, 6, 5), dtype), coefficients(6, dtype)
    out, other = np.empty_like(x), np.float64 if dtype is np.float32 else np.float32
    frozen = out.copy()
    frozen.flags.writeable = False
    for name, arguments in {
        "x3": (x[:, :, ::2], center, scale, shift, out),
        "center": (x, center.astype(np.int64), scale, shift, out),
        "scale": (x, center, scale[::2], shift, out),
        "shift": (x, center, scale, 1.0, out),
        "out3": (x, center, scale, shift, out.astype(other)),
    }.items():
        with pytest.raises(TypeError, match=f"{name}: expected a .*C-contiguous array of .*, got"):
            nopython.normalize(*arguments)
    with pytest.raises(TypeError, match="out3: expected a writable C-contiguous array"):
        nopython.normalize(x, center, scale, shift, frozen)
    with pytest.raises(TypeError, match=r"x3: .* of 3 dimensions, got array"):
        nopython.moments(x[0], np.empty(6), np.empty(6))
    with pytest.raises(TypeError, match=r"x3: .* of float32 or float64 .*, got array"):
        nopython.moments(x.astype(np.int32), np.empty(6), np.empty(6))
    for name, pair in (
        ("mean", (np.empty(6, np.float32), np.empty(6))),
        ("m2", (np.empty(6), np.empty(12)[::2])),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected a writable .* of float64 .*, got"):
            nopython.moments(x, *pair)


def run(script, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_compiles_nothing_and_calls_start_no_threads():
    state = run("""
        import numba, numpy as np
        from nbbn import nopython
        print(nopython.normalize.signatures + nopython.moments.signatures)
        nopython.moments(np.ones((50, 64, 64), np.float32), np.empty(64), np.empty(64))
        try:
            print(numba.threading_layer())
        except ValueError:
            print("none")
    """)
    assert state.split("\n") == ["[]", "none"]


BITS = """
    import hashlib, numpy as np
    from numba import njit, prange
    from nbbn import nopython

    @njit(OPTIONS)
    def both(x, center, scale, shift, y, mean, m2):
        for n in prange(1):
            nopython.normalize(x, center, scale, shift, y)
            nopython.moments(x, mean, m2)

    rng, digest = np.random.default_rng(0), hashlib.sha256()
    for shape in ((7, 5, 20), (4, 33, 1), (60, 33, 1), (300, 3, 1), (20, 4, 3), (2, 3, 5)):
        x = (rng.standard_normal(shape) * 2 + 50).astype(np.float32)
        x[0, 0, 0] = np.inf
        x[1, 1, 0] = np.nan
        x[0, 2, 0] *= 10000
        y = np.empty_like(x)
        sums = np.empty((2, shape[1]))
        both(x, *rng.standard_normal((3, shape[1])).astype(np.float32), y, *sums)
        for result in (y, sums):
            digest.update(np.where(np.isnan(result), 777, result).tobytes())
    print(digest.hexdigest())
"""


@pytest.mark.parametrize(
    ("decorator", "environment"),
    [
        # No cache: what the caller's option would change must be compiled for this caller.
        ("njit(fastmath=True)", {"NBBN_CACHE_DIR": "", "NUMBA_BOUNDSCHECK": "1"}),
        ("njit", {"NUMBA_DISABLE_JIT": "1"}),
    ],
    ids=["fastmath and bounds checked", "not compiled"],
)
@pytest.mark.long
def test_the_same_bits_however_the_caller_is_compiled(decorator, environment):
    """As from Python; of a parallel caller, see above."""
    assert run(BITS.replace("njit(OPTIONS)", decorator), **environment) == of_python()


@functools.cache
def of_python():
    return run(BITS.replace("@njit(OPTIONS)", ""))


USER = """
import sys
import numpy as np
from numba import njit
from nbbn import nopython

@njit(cache=True)
def count(x):
    return nopython.moments(x, np.empty(x.shape[1]), np.empty(x.shape[1]))

if __name__ == "__main__":
    print(nopython.moments(np.ones((2, 3, 4)), np.empty(3), np.empty(3)), count(np.ones((2, 3, 4))))
    print(sum(nopython.moments.stats.cache_hits.values()), sum(count.stats.cache_hits.values()))
"""


@pytest.mark.long
def test_caches_hit_and_an_edit_of_nbbn_is_noticed(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(USER)
    edited = tmp_path / "edited" / "nbbn"
    shutil.copytree(PACKAGE, edited, ignore=shutil.ignore_patterns("__pycache__"))
    source = (edited / "nopython.py").read_text()
    assert source.count("    return count\n") == 1
    (edited / "nopython.py").write_text(source.replace("    return count\n", "    return count + 1\n"))
    folders = {"NBBN_CACHE_DIR": str(tmp_path / "a"), "NUMBA_CACHE_DIR": str(tmp_path / "b")}
    start = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    assert run(start, **folders) == "8.0 8.0\n0 0"
    assert run(start, **folders) == "8.0 8.0\n1 1"
    # The caller may run its old code, from numba's cache: that is documented. nbbn's own is new.
    found = run(f"import sys; sys.path.insert(0, {str(edited.parent)!r}); {start}", **folders)
    assert found.startswith(("9.0 8.0\n0 1", "9.0 9.0\n0 "))
