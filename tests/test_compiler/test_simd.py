"""The vectors: compiled, and their twins in plain Python, have the same bits."""

import numpy as np
import pytest
from numba import njit
from rooms import columns as _columns
from rooms import vector_memory as _memory
from rooms import vectors as _simd


def compiled(function, *arguments):
    return njit(function)(*arguments)


ODD = (
    1.5,
    -2.25,
    1e-30,
    3e38,
    -1e20,
    0.1,
    7.0,
    np.inf,
    np.nan,
    -0.0,
    5e-324,
    1.0,
    2.0,
    3.0,
    4.0,
    1e300,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", range(1, 17))
def test_partial_vectors_touch_nothing_behind_them(dtype, count):
    source = np.arange(1, 40, dtype=dtype)
    target = np.full(39, -7, dtype)

    def copy(a, b, n):
        _memory.store_first(b, 3, n, _memory.load(a, 2, n))

    compiled(copy, source, target, count)
    expected = np.full(39, -7, dtype)
    expected[3 : 3 + count] = source[2 : 2 + count]
    np.testing.assert_array_equal(target, expected)


def test_rows_of_a_table_become_tuples_of_any_length_in_any_order():
    table = np.arange(64.0).reshape(4, 16)

    def last_of_four(table):
        _, _, _, row = _memory.load_rows(4, table, 0, 0, 16)
        return _simd.total(row)

    def last_of_three(table):
        _, _, row = _memory.load_rows(3, table, 0, 0, 16)
        return _simd.total(row)

    for _ in range(2):
        assert compiled(last_of_four, table) == table[3].sum()
        assert compiled(last_of_three, table) == table[2].sum()


@pytest.mark.parametrize(
    ("dtype", "width", "place"), [(np.uint8, 200, 128), (np.float32, 80, 1048), (np.float64, 80, 1048)]
)
def test_all_lines_of_the_next_rows_are_asked_for(dtype, width, place):
    """Those of 128 values: where the next ones begin, 1000 times the row and the column."""

    def ask(values):
        row, column = _columns.ask_for(_memory.Rows(values, 0, 200), width, (0, 0), 8)
        return 1000 * row + column

    assert compiled(ask, np.zeros(400, dtype)) == place


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic_agrees_with_the_twins(dtype):
    with np.errstate(over="ignore"):
        a = np.array(ODD).astype(dtype)
    b, c = a[::-1].copy(), np.roll(a, 3)
    out = np.zeros(64, dtype)

    def arithmetic(a, b, c, out):
        x, y, z = _memory.load(a, 0), _memory.load(b, 0), _memory.load(c, 0)
        _memory.put(out, 0, _simd.fma(x, y, z), 0)
        _memory.put(out, 16, (x - y) * z + x, 0)
        _memory.put(out, 32, _simd.where_finite(x, y, z), 0)
        _memory.put(out, 48, _simd.keep_first(x, 5), 0)
        return _simd.any_greater(x, y), _simd.total(_simd.widen(y))

    flag, total = compiled(arithmetic, a, b, c, out)
    with np.errstate(all="ignore"):
        expected = [
            _simd.fma.twin(a, b, c),
            (a - b) * c + a,
            _simd.where_finite.twin(a, b, c),
            _simd.keep_first.twin(a, 5),
        ]
        np.testing.assert_array_equal(out, np.concatenate(expected))
        assert flag == _simd.any_greater.twin(a, b)
        np.testing.assert_array_equal(total, _simd.total.twin(_simd.widen.twin(b)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_rounds_once(dtype):
    a = np.full(16, 1 + np.finfo(dtype).eps, dtype)
    out = np.zeros(16, dtype)

    def work(a, c, out):
        x, z = _memory.load(a, 0), _memory.load(c, 0)
        _memory.put(out, 0, _simd.fma(x, x, z), 0)

    compiled(work, a, -(a * a), out)
    np.testing.assert_array_equal(out, np.finfo(dtype).eps ** 2)


def test_the_twin_of_fma_rounds_once():
    a = np.float32(1 + 2**-23)
    assert _simd.fma.twin(a, a, np.float32(-1)) == np.float32(2**-22 + 2**-46)
    # 1 + 2**-23 + 2**-24 - 2**-60: rounded to float64 first, half way between two, and then to the even one.
    b, c = np.float32(1 - 2**-18), np.float32(1 + 2**-23)
    assert _simd.fma.twin(np.float32(2**-24 * (1 + 2**-18)), b, c) == c


def test_the_sum_of_the_lanes_has_a_fixed_order():
    values = np.array([1e16, 1.0, -1e16, 1.0] * 4)
    halves = values.copy()
    while halves.size > 1:
        halves = halves[: halves.size // 2] + halves[halves.size // 2 :]

    def total(a):
        return _simd.total(_memory.load(a, 0))

    assert compiled(total, values) == halves[0] == _simd.total.twin(values)
