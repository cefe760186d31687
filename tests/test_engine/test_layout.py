"""The views: which arrays are read in place, and that a view addresses every value once."""

import math

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import checks, masks, views

import nbbn


def zeros(*shape):
    return np.zeros(shape, np.float32)


IMAGES = zeros(4, 6, 8, 8)
SERIES = zeros(4, 6, 40)  # (N, C, T)
STEPS = zeros(4, 40, 6)  # (N, T, C)
TABLE = zeros(100, 8)

# name: (array, channel axis)
IN_PLACE = {
    "images": (IMAGES, 1),
    "images, Fortran order": (np.asfortranarray(IMAGES), 1),
    "images, channels last in memory": (cases.channels_last_memory(IMAGES), 1),
    "images, shuffled axes": (cases.shuffled_axes(IMAGES), 1),
    "images, of small size": (zeros(4, 6, 3, 3), 1),
    "some images": (IMAGES[1:3], 1),
    "every second image": (IMAGES[::2], 1),
    "some channels of images": (IMAGES[:, 1:4], 1),
    "every second channel of images": (zeros(4, 6, 8, 8)[:, ::2], 1),
    "some rows of images": (IMAGES[:, :, 2:7], 1),
    "some images, of these some channels": (IMAGES[::2, 1:4], 1),
    "some images, channels last in memory": (cases.channels_last_memory(IMAGES)[1:3], 1),
    "some channels, channels last in memory": (cases.channels_last_memory(IMAGES)[:, 1:4], 1),
    "images, channels last": (zeros(4, 8, 8, 6), -1),
    "some channels, last": (zeros(4, 8, 8, 6)[..., 1:4], -1),
    "some rows, channels last": (zeros(4, 8, 8, 6)[:, 2:5], -1),
    "series": (SERIES, 1),
    "some time steps": (SERIES[:, :, 3:30], 1),
    "few time steps": (SERIES[:, :, 3:7], 1),
    "channel by channel": (SERIES, 0),
    "some time steps, channels last": (STEPS[:, 3:30], -1),
    "every second time step, channels last": (STEPS[:, ::2], -1),
    "a table": (TABLE, 1),
    "every second row of a table": (TABLE[::2], 1),
    "some columns of a table": (TABLE[:, 2:5], 1),
    "a Fortran table": (np.asfortranarray(TABLE), 1),
    "some rows of a Fortran table": (np.asfortranarray(TABLE)[10:90], 1),
    "some columns of a Fortran table": (np.asfortranarray(TABLE)[:, 2:5], 1),
    "one channel": (zeros(9, 1, 33), 1),
    "one of several channels": (IMAGES[:, 2:3], 1),
    "a vector": (zeros(5), 0),
    "volumes": (zeros(2, 3, 4, 5, 6), 1),
}
COPIED = {
    "reversed": (cases.reversed_all(IMAGES), 1),
    "every second value": (cases.strided_last(IMAGES), 1),
    "a part of each image": (zeros(4, 6, 16, 16)[:, :, 4:12, 4:12], 1),
    "every third time step": (SERIES[:, :, ::3], 1),
    "one value for all": (np.broadcast_to(np.float32(1), (4, 6, 8, 8)), 1),
    "not aligned": (cases.unaligned(IMAGES), 1),
}
OPS = ("inference", "training", "moments", "backward")


def read(x, op, axis):
    return nbbn.explain(x, op, axis=axis).split("read:")[1].splitlines()[0].strip()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("x", "axis"), IN_PLACE.values(), ids=IN_PLACE)
def test_these_are_read_in_place(x, axis, op):
    assert read(x, op, axis) == "in place"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("x", "axis"), COPIED.values(), ids=COPIED)
def test_these_need_a_copy(x, axis, op):
    assert read(x, op, axis).startswith("a copy, as ")


def by_channel(stack, view):
    """The values of each channel, as steps find them: (C, n)."""
    if view.runs:
        return np.moveaxis(stack, 1, 0).reshape(view.channels, -1)
    values = stack.reshape(-1, view.channels, view.inner)
    return np.moveaxis(values, 1, 0).reshape(view.channels, -1)


def assert_view_is_right(x, axis, view, weighted):
    """``x`` holds at each place its number, times the channels, plus the channel."""
    stack = view.of(x)
    assert np.shares_memory(stack, x)
    assert stack.shape == view.shape
    assert stack.strides[-1] == x.itemsize or stack.shape[-1] == 1
    channels = x.shape[axis]
    places = x.size // channels
    for channel, found in enumerate(by_channel(stack, view)):
        assert sorted(found) == list(range(channel, x.size, channels))
    if weighted:
        others = x.shape[:axis] + x.shape[axis + 1 :]
        weights = masks.Weights(np.arange(places).reshape(others) * 1.0, others, 0.0)
        flat = weights.in_order(x, axis)
        if view.runs:
            outer, _, inner = view.shape
            expected = np.broadcast_to(flat.reshape(outer, 1, inner), view.shape)
        else:
            expected = np.broadcast_to(flat.reshape(*view.shape[:2], 1), view.shape)
        np.testing.assert_array_equal(stack // channels, expected)


def numbered(shape, axis):
    """At each place its number, times the channels, plus the channel."""
    channels = shape[axis]
    others = shape[:axis] + shape[axis + 1 :]
    places = np.arange(math.prod(others), dtype=np.float64).reshape(others)
    return np.stack([places * channels + c for c in range(channels)], axis)


@given(st.data())
@settings(max_examples=min(400, 40 * settings.default.max_examples))
def test_a_view_addresses_every_value_of_its_channel_once(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 5, 17]), min_size=1, max_size=4)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    before = [data.draw(st.sampled_from([0, 0, 0, 1])) for _ in shape]
    every = [data.draw(st.sampled_from([1, 1, 1, 2])) for _ in shape]
    kept = numbered(shape, axis)
    memory = np.full([(n * every[a] + 2 * before[a]) for a, n in enumerate(shape)], np.nan)
    memory = np.ascontiguousarray(memory.transpose(order)).transpose(np.argsort(order))
    index = tuple(slice(before[a], before[a] + n * every[a], every[a]) for a, n in enumerate(shape))
    x = memory[index]
    x[...] = kept
    for weighted in (False, True):
        view = views.view_of(axis, weighted, x)
        dense = before == [0] * len(shape) and every == [1] * len(shape)
        assert view is not None or not dense or weighted
        if view is not None:
            assert_view_is_right(x, axis, view, weighted)


@pytest.mark.parametrize("name", ["c", "fortran", "channels_last_memory", "shuffled_axes"])
@pytest.mark.parametrize(("shape", "axis"), cases.SHAPES, ids=str)
def test_dense_arrays_need_no_copy(shape, axis, name):
    axis %= len(shape)
    x = cases.LAYOUTS[name](numbered(shape, axis))
    for weighted in (False, True):
        view = views.view_of(axis, weighted, x)
        if view is None:  # of a value in each channel, say
            assert weighted
        else:
            assert_view_is_right(x, axis, view, weighted)


def test_two_arrays_must_agree():
    assert views.view_of(1, False, IMAGES, cases.channels_last_memory(IMAGES)) is None
    of_one = views.view_of(1, False, IMAGES[:, 1:4])
    of_both = views.view_of(1, False, IMAGES[:, 1:4], zeros(4, 3, 8, 8))
    assert of_one.shape == of_both.shape == (4, 3, 64)


def test_what_may_be_written_to_while_x_is_read():
    assert views.apart(IMAGES, IMAGES)
    assert views.apart(IMAGES[1:], IMAGES[1:])
    assert views.apart(IMAGES[:2], IMAGES[2:])
    assert not views.apart(IMAGES[1:], IMAGES[:-1])
    assert not views.apart(IMAGES.transpose(0, 1, 3, 2), IMAGES)


def test_an_overlap_that_takes_long_to_rule_out_counts_as_one(monkeypatch):
    x = zeros(40, 50, 60)
    one, other = x[:, 1::2, ::3], x[:, ::3, 1::2]
    assert checks.overlap(one, other)
    assert not checks.overlap(x[:, ::2], x[:, 1::2])
    monkeypatch.setattr(checks, "_WORK", 1)
    assert checks.overlap(one, other)
