"""Statistics of batch norms by hand, in NumPy, cumulative and with momentum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj


class Net(nnx.Module):
    """The second norm reads what the first normalises by the batch; dropout must be off."""

    def __init__(self, rngs):
        self.first = nnx.BatchNorm(3, rngs=rngs)
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.BatchNorm(2, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.second(self.drop(self.linear(self.first(x))))


BATCHES = [
    np.random.default_rng(i).normal(i, 2, (n, 3)).astype("f") for i, n in enumerate((4, 4, 6, 6))
]


def by_hand(model, batches, momentum):
    found = [(np.zeros(3), np.ones(3)), (np.zeros(2), np.ones(2))]
    kernel, bias = (
        np.asarray(x[...], np.float64) for x in (model.linear.kernel, model.linear.bias)
    )
    for count, x in enumerate(batches):
        mean, var = x.mean(0), x.var(0)
        h = (x - mean) / np.sqrt(var + 1e-5) @ kernel + bias
        w = 1 / (count + 1) if momentum is None else momentum
        new = [(mean, var), (h.mean(0), h.var(0))]
        found = [tuple((1 - w) * s + w * b for s, b in zip(*pair)) for pair in zip(found, new)]
    return found


@pytest.mark.parametrize(
    "options, used", [({}, 4), ({"fraction": 0.5}, 2), ({"fraction": 0.51, "momentum": 0.1}, 3)]
)
def test_statistics_by_hand(options, used):
    model = Net(nnx.Rngs(0))
    before = nnx.state(model)
    found = sj.nn.recalibrate(model, BATCHES, **options)
    expected = by_hand(model, BATCHES[:used], options.get("momentum"))
    for norm, (mean, var) in zip((found.first, found.second), expected):
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(norm.var[...], var, rtol=1e-3)
    assert found.second.momentum == 0.9 and not found.second.use_running_average
    assert (model.first.mean[...] == 0).all() and found.linear.kernel is not model.linear.kernel
    np.testing.assert_array_equal(before["linear"]["kernel"][...], found.linear.kernel[...])


def test_what_is_refused():
    model, batches = Net(nnx.Rngs(0)), BATCHES[:1]
    renew = partial(sj.nn.recalibrate, model)
    for call, message in (
        (lambda: renew([]), "at least one batch"),
        (lambda: renew(batches, fraction=0.0), "must be a number in .0, 1."),
        (lambda: renew(batches, momentum=1.5), "momentum must be a number in .0, 1."),
        (lambda: renew([jnp.full((2, 3), jnp.nan)]), "the mean of first is NaN"),
        (
            lambda: sj.nn.recalibrate(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), batches),
            "no nnx.BatchNorm",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    pairs = [(x, None) for x in BATCHES]
    same = sj.nn.recalibrate(model, pairs, call=lambda model, pair: model(pair[0]))
    np.testing.assert_array_equal(same.first.mean[...], renew(BATCHES).first.mean[...])


def test_wider_batches_are_measured_in_the_dtype_of_the_statistics():
    with jax.enable_x64(True):
        norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        found = sj.nn.recalibrate(norm, [jnp.asarray(BATCHES[0], jnp.float64)])
        assert found.mean[...].dtype == jnp.float32
        np.testing.assert_allclose(found.mean[...], BATCHES[0].mean(0), rtol=1e-5)


class Explicit(nnx.Module):
    """A norm whose mode is an argument of the call."""

    def __init__(self):
        self.bn = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
        self.unused = nnx.BatchNorm(1, rngs=nnx.Rngs(0))

    def __call__(self, x, train=False):
        return self.bn(x, use_running_average=not train)


def test_norms_that_do_not_run_in_training_mode_keep_what_they_have_or_raise():
    x = jnp.array([[5.0], [7.0]])
    with pytest.raises(ValueError, match="no batch norm ran in training mode"):
        sj.nn.recalibrate(Explicit(), [x])
    found = sj.nn.recalibrate(Explicit(), [x], call=lambda m, x: m(x, train=True), momentum=0.5)
    assert (float(found.bn.mean[0]), float(found.unused.mean[0])) == (3.0, 0.0)
    assert float(found.unused.var[0]) == 1.0
