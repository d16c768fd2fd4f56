"""Removed channels: the smaller model is the masked one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(6, 4, (3, 3), rngs=rngs)
        self.middle = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(4 * 25, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.middle(self.second(x)))
        return self.head(x.reshape(x.shape[0], -1))


def shaken(model):
    """Norms as training leaves them: no scale is 1 and no mean is 0."""
    _, state = nnx.split(model)
    keys = iter(jax.random.split(jax.random.key(7), 100))
    return nnx.update(
        model, jax.tree.map(lambda x: x + 0.3 * jax.random.uniform(next(keys), x.shape), state)
    )


def test_equals_the_model_with_dead_channels():
    model = Convolutional(nnx.Rngs(0))
    shaken(model)
    first, second = np.arange(6) % 3 > 0, np.array([True, False, True, True])
    for norm, keep in ((model.norm, first), (model.middle, second)):
        for part in (norm.scale, norm.bias):
            part.set_value(jnp.where(keep, part[...], 0))
    small = sj.nn.surgery.remove_channels(
        model, first, outputs=["conv"], norms=["norm"], inputs=["second"]
    )
    small = sj.nn.surgery.remove_channels(
        small, second, outputs=["second"], norms=["middle"], inputs=["head"]
    )
    assert small.conv.kernel.shape == (3, 3, 2, 4) and small.head.kernel.shape == (75, 3)
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 2))
    np.testing.assert_allclose(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert model.conv.kernel.shape == (3, 3, 2, 6)


def test_what_a_shift_leaves_moves_to_the_next_bias():
    model = Convolutional(nnx.Rngs(0))
    shaken(model)
    keep = np.array([True, False, True, False])
    model.middle.scale.set_value(jnp.where(keep, model.middle.scale[...], 0))
    parts = {"outputs": ["second"], "norms": ["middle"], "inputs": ["head"]}
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 2))
    folded = sj.nn.surgery.remove_channels(model, keep, fold_bias=True, **parts)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-5)
    dropped = sj.nn.surgery.remove_channels(model, keep, **parts)
    assert float(jnp.abs(dropped(x) - model(x)).max()) > 1e-2


def test_mistakes():
    model = Convolutional(nnx.Rngs(0))
    keep = np.ones(6, bool)
    with pytest.raises(ValueError, match="no layer convolution; there are conv"):
        sj.nn.surgery.remove_channels(model, keep, outputs=["convolution"])
    with pytest.raises(ValueError, match="second/kernel has shape"):
        sj.nn.surgery.remove_channels(model, keep, outputs=["second"])
    with pytest.raises(ValueError, match="reads 100 channels"):
        sj.nn.surgery.remove_channels(model, keep, outputs=["conv"], inputs=["head"])
    with pytest.raises(ValueError, match="no channel is kept"):
        sj.nn.surgery.remove_channels(model, ~keep, outputs=["conv"])
    with pytest.raises(ValueError, match="fold_bias needs a dense second"):
        sj.nn.surgery.remove_channels(
            model, keep, outputs=["conv"], norms=["norm"], inputs=["second"], fold_bias=True
        )


def energy_by_hand(scores, fraction):
    a = np.maximum(np.sort(np.asarray(scores, np.float64)), 1e-18)
    if max(scores) < 1e-3:
        return 1.0
    share = np.cumsum(a**2) / np.sum(a**2)
    j = int(np.argmax(share > fraction))
    return 0.0 if j == 0 else (a[j - 1] + a[j]) / 2


@pytest.mark.parametrize(
    "scores", [[1.0, 0.001, 2.0], [1.0, 1.0], [1e-4, 2e-4], [0.0, 0.0, 0.5, 0.004, 3.0]]
)
def test_energy_threshold(scores):
    found = sj.masks.energy_threshold(jnp.array(scores))
    np.testing.assert_allclose(found, energy_by_hand(scores, 1e-4), rtol=1e-5)


def test_above_protects_the_largest():
    assert sj.masks.above(jnp.array([0.001, 0.003, 0.003]), at_least=2).tolist() == [
        False,
        True,
        True,
    ]
    assert sj.masks.above(jnp.array([0.02, 0.01, 0.5])).tolist() == [True, False, True]
