"""Selected entries as vectors, and gradients for them alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import sara


def setup(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "a": {"kernel": jax.random.normal(keys[0], (6, 4), dtype), "bias": jnp.ones(4, dtype)},
        "b": {"kernel": jax.random.normal(keys[1], (4, 3), dtype)},
    }
    masks = sara.below_threshold(params, 0.7, where="kernel")
    return params, masks, sara.indices_of(masks)


def loss(params, x):
    hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
    return jnp.sum((hidden @ params["b"]["kernel"]) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tap_write_back_and_dense_gradients_agree(dtype):
    params, masks, indices = setup(dtype)
    values = sara.gather_values(params, indices)
    assert values["a"]["bias"] is None and values["a"]["kernel"].dtype == jnp.float32
    x = jax.random.normal(jax.random.key(1), (5, 6), dtype)
    tapped = jax.grad(lambda v: loss(sara.select_gradients(params, v, indices), x))(values)
    merged = jax.grad(lambda v: loss(sara.write_back(params, v, indices), x))(values)
    dense = jax.grad(loss)(params, x)
    for name in ("a", "b"):
        expected = dense[name]["kernel"][masks[name]["kernel"]]
        np.testing.assert_allclose(tapped[name]["kernel"], expected, rtol=1e-2)
        np.testing.assert_allclose(merged[name]["kernel"], expected, rtol=1e-2)


def test_write_back_changes_the_selected_entries_only():
    params, masks, indices = setup()
    values = jax.tree.map(lambda v: v + 1, sara.gather_values(params, indices))
    new = sara.write_back(params, values, indices)
    for name in ("a", "b"):
        w, m = np.asarray(params[name]["kernel"]), np.asarray(masks[name]["kernel"])
        np.testing.assert_array_equal(np.asarray(new[name]["kernel"])[~m], w[~m])
        np.testing.assert_allclose(np.asarray(new[name]["kernel"])[m], w[m] + 1)
    assert new["a"]["bias"] is params["a"]["bias"]


def test_padding_is_dropped_so_that_stacked_layers_scan():
    w = jnp.arange(6.0).reshape(2, 3)
    at = {"w": jnp.array([1, 4, 6, 6])}
    values = sara.gather_values({"w": w}, at)
    assert values["w"].tolist() == [1.0, 4.0, 0.0, 0.0]
    new = sara.write_back({"w": w}, {"w": values["w"] + 10}, at)
    assert new["w"].ravel().tolist() == [0.0, 11.0, 2.0, 3.0, 14.0, 5.0]
    grads = jax.grad(lambda v: jnp.sum(sara.select_gradients({"w": w}, v, at)["w"] ** 2))(values)
    assert grads["w"].tolist() == [2.0, 8.0, 0.0, 0.0]


def test_the_tapped_forward_copies_nothing():
    """No scatter in the program of the gradient, and the dense gradient is not returned."""
    params, _, indices = setup()
    values = sara.gather_values(params, indices)
    grad = jax.grad(lambda v, p, i, x: loss(sara.select_gradients(p, v, i), x))
    text = jax.jit(grad).lower(values, params, indices, jnp.ones((5, 6))).as_text()
    assert "scatter" not in text and "gather" in text


@pytest.mark.slow
def test_scanned_layers_keep_no_copy_of_the_weights():
    """As the docstring has it: the temporaries of a step are less than the weights."""
    w, x = jax.random.normal(jax.random.key(0), (8, 64, 64)) / 8, jnp.ones((2, 64))
    at = jnp.tile(jnp.arange(0, 64 * 64, 64), (8, 1))
    values = jax.vmap(sara.gather_values)(w, at)

    @functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
    )
    def layer(x, given):
        return jnp.tanh(x @ sara.select_gradients(*given)), None

    def loss(values, w, at, x):
        return jnp.sum(jax.lax.scan(layer, x, (w, values, at))[0])

    compiled = jax.jit(jax.grad(loss)).lower(values, w, at, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < w.nbytes / 2
    dense = jax.grad(lambda w: jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]))
    expected = jnp.take_along_axis(dense(w).reshape(8, -1), at, 1)
    np.testing.assert_allclose(compiled(values, w, at, x), expected, rtol=1e-5)


@pytest.mark.slow
def test_below_threshold():
    params = {"a": jnp.array([0.5, -0.1, 0.2]), "b": jnp.array([0.1, 3.0])}
    masks = sara.below_threshold(params, 0.2)
    assert masks["a"].tolist() == [False, True, False] and masks["b"].tolist() == [True, False]
    masks = sara.below_threshold(params, fraction=0.6)
    assert masks["a"].tolist() == [False, True, True] and masks["b"].tolist() == [True, False]
    # Ties: fewer than asked for, never one of two equals.
    masks = sara.below_threshold(params, fraction=0.2)
    assert not any(m.any() for m in masks.values())
    everything = sara.below_threshold(params, fraction=1.0)
    assert all(m.all() for m in everything.values())
    with pytest.raises(ValueError, match="needs one of theta and fraction"):
        sara.below_threshold(params)
    with pytest.raises(ValueError, match="matches none"):
        sara.below_threshold(params, 0.1, where="kernel")
    with pytest.raises(ValueError, match="no such parameter"):
        sara.select_gradients(params, {"c": jnp.ones(1)}, {"c": jnp.array([0])})
