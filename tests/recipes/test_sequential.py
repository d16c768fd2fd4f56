"""SparseGPT layer by layer against pruning each layer by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import recipes

X = jax.random.normal(jax.random.key(0), (40, 8)) @ jax.random.normal(jax.random.key(1), (8, 8))


class Network(nnx.Module):
    """The names are not in the order in which the layers run."""

    def __init__(self):
        self.last = nnx.Linear(12, 4, rngs=nnx.Rngs(0))
        self.entry = nnx.Linear(8, 12, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.last(jax.nn.relu(self.entry(x)))


def by_hand(model):
    """Two layers: the second sees what the pruned first one gives."""
    first, last = ({"kernel": layer.kernel[...]} for layer in (model.entry, model.last))
    only = lambda w: sj.plan(w, sj.NM(2, 4))  # noqa: E731
    first, _ = sj.recipes.sparsegpt(first, {"kernel": X.T @ X}, only(first))
    hidden = jax.nn.relu(X @ first["kernel"] + model.entry.bias[...])
    last, _ = sj.recipes.sparsegpt(last, {"kernel": hidden.T @ hidden}, only(last))
    return first["kernel"], last["kernel"]


@pytest.mark.slow
def test_each_layer_sees_the_pruned_ones_before_it_also_after_a_kill():
    model, seen = Network(), []
    run = partial(recipes.sequential_sparsegpt, model, [X], sj.plan(model, sj.NM(2, 4)))

    def kill(result):
        seen.append(result)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callback=kill)
    assert seen[0].masks["last"]["kernel"] is None
    found = run(resume=seen[0])
    first, last = by_hand(model)
    np.testing.assert_allclose(found.params["entry"]["kernel"], first, atol=1e-4)
    np.testing.assert_allclose(found.params["last"]["kernel"], last, atol=1e-4)
    np.testing.assert_array_equal(found.masks["last"]["kernel"], last != 0)
    assert not bool(jnp.any(model.last.kernel[...] == 0))  # the model is as it was


def test_what_is_refused():
    model = Network()
    with pytest.raises(ValueError, match="entry/kernel did not run"):
        recipes.sequential_sparsegpt(
            model, [jnp.ones((3, 12))], sj.plan(model, sj.NM(2, 4)), call=lambda m, x: m.last(x)
        )
    with pytest.raises(ValueError, match="no linear layer ran"):
        recipes.sequential_sparsegpt(model, [], sj.plan(model, sj.NM(2, 4)))
