"""Random shapes, strides, types, axes and options against the oracle; the same examples on every run."""

import cases
import numpy as np
import reference
from compare import (
    assert_forward,
    assert_gradients,
    assert_running,
    assert_same_bits,
    assert_within,
    layer,
    mean_error,
    var_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import nbbn

bounded = settings(max_examples=min(120, settings.default.max_examples))
dtypes = st.sampled_from(cases.DTYPES)
options = st.fixed_dictionaries(
    {
        "eps": st.sampled_from([0.0, 1e-12, 1e-5, 1e-3, 1.0]),
        "momentum": st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
        "scale": st.booleans(),
        "center": st.booleans(),
        "track_running_stats": st.booleans(),
        "correction": st.sampled_from([0, 1]),
        "running_correction": st.sampled_from([0, 1]),
        "dtype": dtypes,
    }
)


@st.composite
def arrays(draw, min_size=1):
    """(x, axis): x of 1 to 5 dimensions in any memory order, with steps and signs of its strides."""
    ndim = draw(st.integers(1, 5))
    longest = {1: 300, 2: 90, 3: 30, 4: 10, 5: 5}[ndim]
    shape = tuple(draw(st.lists(st.integers(min_size, longest), min_size=ndim, max_size=ndim)))
    axis = draw(st.integers(-ndim, ndim - 1))
    order = draw(st.permutations(range(ndim)))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, -1, -2]), min_size=ndim, max_size=ndim))
    loc, scale = draw(st.sampled_from([0.0, -1.0, 1e3])), draw(st.sampled_from([1.0, 1e-3, 1e3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(loc * scale, scale, shape).astype(draw(dtypes))
    if values.size and draw(st.booleans()):
        np.moveaxis(values, axis, 0)[0] = loc * scale
    buffer = np.zeros([shape[k] * abs(steps[k]) for k in order], values.dtype).transpose(np.argsort(order))
    x = buffer[tuple(slice(None, None, step) for step in steps)]
    x[...] = values
    return x, axis


def other_layout(x, data):
    """The same values in a layout of the list, if it keeps them."""
    return cases.LAYOUTS[data.draw(st.sampled_from(cases.KEEPING))](x)


def values_per_channel(x, axis):
    return x.size // max(1, x.shape[axis])


@bounded
@given(arrays())
def test_moments(case):
    x, axis = case
    moments, (count, mean, m2) = nbbn.batch_moments(x, axis=axis), reference.moments(x, axis)
    assert moments.count == count
    assert_within(moments.mean, mean, mean_error(x, axis))
    assert_within(moments.m2, m2, var_error(x, m2) + count * mean_error(x, axis) ** 2)


@bounded
@given(arrays(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_moments_of_pieces_merge_to_those_of_the_whole(case, cuts, random):
    x, axis = case
    rows = reference.channels(x, axis).T.astype(x.dtype)
    where = sorted(random.randint(0, len(rows)) for _ in range(cuts))
    merged = nbbn.Moments.from_batches(np.split(rows, where))
    count, mean, m2 = reference.moments(x, axis)
    assert merged.count == count
    assert_within(merged.mean, mean, mean_error(x, axis))
    assert_within(merged.m2, m2, var_error(x, m2) + count * mean_error(x, axis) ** 2)


@bounded
@given(arrays(), options, st.data())
def test_training_and_its_gradients(case, chosen, data):
    x, axis = case
    count = values_per_channel(x, axis)
    if count == 1:
        chosen = {**chosen, "correction": 0, "running_correction": 0}
    eps, correction = max(chosen["eps"], 1e-30), chosen["correction"]
    bn = layer(x.shape[axis], axis=axis, **{**chosen, "eps": eps})
    old = None if bn.running_mean is None else (bn.running_mean.copy(), bn.running_var.copy())
    y = bn(x)
    expected = reference.training(x, bn.gamma, bn.beta, axis=axis, eps=eps, correction=correction)
    varies = expected.var > 0
    check_where(varies, y, x, expected, bn, axis)
    if old is not None:
        _, mean, m2 = reference.moments(x, axis)
        var = m2 / (count - chosen["running_correction"])
        momentum = 1.0 if chosen["momentum"] is None else chosen["momentum"]
        assert_running(bn.running_mean, old[0], mean, momentum, batch_error=mean_error(x, axis))
        spread = var_error(x, var) + 4 * mean_error(x, axis) ** 2
        assert_running(bn.running_var, old[1], var, momentum, batch_error=spread)
    grad_y = other_layout(cases.values(x.shape, x.dtype, seed=3), data)
    grad_x = bn.backward(grad_y)
    if varies.all():
        gradients = reference.backward(grad_y, x, bn.gamma, axis=axis, eps=eps, correction=correction)
        assert_gradients((grad_x, bn.grad_gamma, bn.grad_beta), gradients, grad_y, expected, bn.gamma, axis)


def check_where(varies, y, x, expected, bn, axis):
    """The bound where a channel varies; beta, exactly in float32, where it is constant."""
    rows = np.moveaxis(y, axis, 0)
    constant = [row for row, v in zip(rows, varies, strict=True) if not v]
    betas = reference.zeros_or(bn.beta, varies)[~varies]
    if x.dtype == np.float32:
        for row, beta in zip(constant, betas, strict=True):
            np.testing.assert_array_equal(row, np.float32(beta))
    if varies.any():
        gamma, beta = (None if p is None else p[varies] for p in (bn.gamma, bn.beta))
        kept = expected._replace(
            y=np.moveaxis(expected.y, axis, 0)[varies],
            xhat=np.moveaxis(expected.xhat, axis, 0)[varies],
            **{name: getattr(expected, name)[varies] for name in ("mean", "var", "inv_std")},
        )
        assert_forward(rows[varies], np.moveaxis(x, axis, 0)[varies], kept, gamma, beta, 0)


@bounded
@given(arrays(), options, st.data())
def test_inference_and_its_gradients(case, chosen, data):
    x, axis = case
    bn = layer(x.shape[axis], axis=axis, **{**chosen, "track_running_stats": True}).eval()
    y = bn(x)
    expected = reference.inference(x, bn.running_mean, bn.running_var, bn.gamma, bn.beta, axis=axis, eps=chosen["eps"])
    assert_forward(y, x, expected, bn.gamma, bn.beta, axis)
    grad_y = other_layout(cases.values(x.shape, x.dtype, seed=3), data)
    gradients = reference.backward_inference(grad_y, x, bn.running_mean, expected.inv_std, bn.gamma, axis=axis)
    got = bn.backward(grad_y), bn.grad_gamma, bn.grad_beta
    assert_gradients(got, gradients, grad_y, expected, bn.gamma, axis)


@bounded
@given(arrays(), st.data())
def test_inference_gives_the_same_bits_whatever_the_layout_batch_or_position(case, data):
    x, axis = case
    gamma, beta, mean, var = cases.parameters(x.shape[axis], data.draw(dtypes))
    whole = nbbn.normalize(x, mean, var, gamma, beta, axis=axis)
    assert_same_bits(nbbn.normalize(other_layout(x, data), mean, var, gamma, beta, axis=axis), whole)
    along = data.draw(st.sampled_from([k for k in range(x.ndim) if k != axis % x.ndim] or [None]))
    if along is not None:
        start = data.draw(st.integers(0, x.shape[along] - 1))
        part = (slice(None),) * along + (slice(start, data.draw(st.integers(start + 1, x.shape[along]))),)
        assert_same_bits(nbbn.normalize(x[part], mean, var, gamma, beta, axis=axis), whole[part])


@bounded
@given(arrays(min_size=0), st.booleans(), st.booleans())
def test_in_place_and_into_out_give_the_bits_of_a_fresh_output(case, training, same):
    x, axis = case
    if values_per_channel(x, axis) == 1 or 0 in x.shape:
        training = False
    gamma, beta, mean, var = cases.parameters(x.shape[axis])

    def run(array, out=None):
        return nbbn.batch_norm(array, mean.copy(), var.copy(), gamma, beta, training=training, axis=axis, out=out)

    expected, kept = run(x), x.copy()
    out = x if same else np.full_like(x, 777)
    assert run(x, out) is out
    assert_same_bits(out, expected)
    if not same:
        assert_same_bits(x, kept)


@bounded
@given(arrays(), st.integers(1, 6))
def test_repeating_every_sample_changes_no_output_beyond_rounding(case, times):
    """mean and var do not see how often the whole batch is repeated."""
    x, axis = case
    if values_per_channel(x, axis) == 1:
        times = max(2, times)
    rows = reference.channels(x, axis).T.astype(x.dtype)
    repeated = np.tile(rows, (times, 1))
    gamma, beta = cases.parameters(rows.shape[1])[:2]
    expected = reference.training(repeated, gamma, beta, eps=0.5)
    y = nbbn.batch_norm(repeated, None, None, gamma, beta, training=True, eps=0.5, running_correction=0)
    assert_forward(y, repeated, expected, gamma, beta)
    assert (y.reshape(times, *rows.shape) == y[: len(rows)]).all()
