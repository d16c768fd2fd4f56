"""Gram matrices of the inputs of kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sparsejax as sj


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.mix = nnx.Einsum("bthd,hdo->bto", (2, 4, 5), rngs=rngs)

    def __call__(self, x):
        y = self.attention(jnp.tanh(self.first(x)))
        return self.mix(y.reshape(*y.shape[:-1], 2, 4))


@pytest.mark.slow
def test_of_every_linear_layer():
    model = Model(nnx.Rngs(0))
    batches = [jax.random.normal(jax.random.key(i), (2, 3, 6)) for i in range(3)]
    grams = sj.nn.input_grams(model, batches)
    x = np.concatenate([np.asarray(b).reshape(-1, 6) for b in batches])
    np.testing.assert_allclose(grams["first/kernel"], x.T @ x, rtol=1e-4, atol=1e-5)
    hidden = np.tanh(x @ model.first.kernel[...] + model.first.bias[...])
    for name in ("query", "key", "value"):
        gram = grams[f"attention/{name}/kernel"]
        np.testing.assert_allclose(gram, hidden.T @ hidden, rtol=1e-4, atol=1e-4)
    y = np.concatenate(
        [np.asarray(model.attention(jnp.tanh(model.first(b)))).reshape(-1, 8) for b in batches]
    )
    np.testing.assert_allclose(grams["mix/kernel"], y.T @ y, rtol=1e-4, atol=1e-5)
    assert grams["attention/out/kernel"].shape == (8, 8)
    # The model itself still multiplies as before.
    assert model.first.dot_general is nnx.Linear(1, 1, rngs=nnx.Rngs(0)).dot_general


def test_a_layer_called_twice_adds_up_and_call_says_how():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 4))
    twice = sj.nn.input_grams(model, [x], lambda m, x: m(m(x)))
    y = model(x)
    np.testing.assert_allclose(twice["kernel"], x.T @ x + y.T @ y, rtol=1e-5)


def test_nothing_ran():
    with pytest.raises(ValueError, match="no linear layer ran"):
        sj.nn.input_grams(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), [])


def test_a_batch_of_several_arrays_needs_call():
    model, x = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), jnp.ones((3, 4))
    with pytest.raises(TypeError, match=r"tuple of 2; .* call=lambda model, batch: model\(batch\["):
        sj.nn.input_grams(model, [(x, jnp.zeros(3, int))])
    with pytest.raises(TypeError, match=r"model\(batch\['image'\]\)"):
        sj.nn.input_grams(model, [{"image": x, "label": jnp.zeros(3, int)}])
    found = sj.nn.input_grams(model, [(x, jnp.zeros(3, int))], lambda model, batch: model(batch[0]))
    np.testing.assert_array_equal(found["kernel"], x.T @ x)


def test_grams_of_inputs_split_over_features_stay_split():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    model, x = nnx.Linear(64, 8, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (16, 64))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "d")))
    gram = sj.nn.input_grams(model, [split, split])["kernel"]
    assert {shard.data.shape for shard in gram.addressable_shards} == {(8, 64)}
    np.testing.assert_allclose(gram, 2 * x.T @ x, atol=1e-4)
