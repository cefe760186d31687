"""The canonical views: which arrays are read in place, and that a view addresses every value."""

import math

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbbn._layout import SMALL_INNER, describe, flat

IN_PLACE = {
    "C order": lambda x: x,
    "Fortran order": cases.fortran,
    "channels last in memory": cases.channels_last_memory,
    "shuffled axes": cases.shuffled_axes,
    "every second sample": cases.batch_step,
}
COPIED = {"reversed": cases.reversed_all, "every second value": cases.strided_last}


def width_of(layout):
    return layout.channels * layout.inner * layout.repeats


def addresses(layout, which=0):
    """The offsets of the values of each channel, as the kernels compute them: (C, n)."""
    channels = [[] for _ in range(layout.channels)]
    if layout.channels_first:
        outer, channel = layout.strides[which]
        for c in range(layout.channels):
            for o in range(layout.outer):
                start = o * outer + c * channel
                channels[c].extend(range(start, start + layout.inner))
    else:
        (row,) = layout.strides[which]
        for i in range(layout.outer + (layout.tail > 0)):
            width = width_of(layout) if i < layout.outer else layout.tail
            for j in range(width):
                channels[j // layout.inner % layout.channels].append(i * row + j)
    return channels


def values_by_channel(x, axis):
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize(("shape", "axis"), cases.SHAPES, ids=str)
def test_a_view_addresses_every_value_of_its_channel_once(shape, axis, name):
    x = IN_PLACE[name](np.arange(math.prod(shape), dtype=np.float64).reshape(shape))
    layout = describe(shape, axis % x.ndim, x.itemsize, x.strides)
    if layout is None:  # for example channels with gaps between them
        x = x.copy()
        layout = describe(shape, axis % x.ndim, x.itemsize, x.strides)
    assert layout is not None
    memory = flat(x)
    for found, expected in zip(addresses(layout), values_by_channel(x, axis), strict=True):
        assert sorted(memory[found]) == sorted(expected)


@pytest.mark.parametrize("name", IN_PLACE)
def test_dense_images_are_read_in_place(name):
    x = IN_PLACE[name](np.zeros((4, 6, 8, 8), np.float32))
    layout = describe(x.shape, 1, 4, x.strides)
    assert layout is not None
    assert np.shares_memory(flat(x), x)
    assert layout.channels_first == (layout.inner >= SMALL_INNER)
    assert (layout.inner == 1) == (name == "channels last in memory")


@pytest.mark.parametrize("name", COPIED)
def test_reversed_and_spread_values_need_a_copy(name):
    x = COPIED[name](np.zeros((4, 6, 8, 8), np.float32))
    assert describe(x.shape, 1, 4, x.strides) is None


def test_crops_of_larger_images_need_a_copy_but_channel_slices_do_not():
    big = np.zeros((4, 16, 32, 32), np.float32)
    crop, channels = big[:, :, 4:20, 4:20], big[:, 3:9]
    assert describe(crop.shape, 1, 4, crop.strides) is None
    layout = describe(channels.shape, 1, 4, channels.strides)
    assert layout is not None
    assert (layout.outer, layout.inner, layout.strides) == (4, 1024, ((16 * 1024, 1024),))


def test_two_arrays_must_agree():
    a = np.zeros((4, 6, 8, 8), np.float32)
    b = cases.channels_last_memory(a)
    assert describe(a.shape, 1, 4, a.strides, b.strides) is None


@given(
    rows=st.integers(1, 300),
    channels=st.integers(2, 140),
    inner=st.integers(1, SMALL_INNER - 1),
)
@settings(max_examples=min(200, settings.default.max_examples))
def test_folded_columns_hold_all_rows(rows, channels, inner):
    x = np.zeros((rows, channels, inner), np.float32)
    layout = describe(x.shape, 1, 4, x.strides)
    assert layout is not None
    assert not layout.channels_first or inner == 1 == rows
    if not layout.channels_first:
        assert layout.outer * width_of(layout) + layout.tail == x.size
        assert layout.outer >= 1
        assert sorted(np.concatenate(addresses(layout))) == list(range(x.size))
