"""Rows of unit norm against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj


@pytest.mark.parametrize("axis", [-1, 0])
def test_the_gradient_loses_its_parallel_part_and_rows_are_projected(axis):
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    unit = np.linalg.norm(w, axis=axis, keepdims=True)
    tangent = g - np.sum(g * w, axis, keepdims=True) / unit**2 * w
    moved = w - 0.1 * tangent
    wanted = moved / np.linalg.norm(moved, axis=axis, keepdims=True)
    params = {"W_dec": jnp.asarray(w, jnp.float32), "b": jnp.ones(3)}
    grads = {"W_dec": jnp.asarray(g, jnp.float32), "b": jnp.ones(3)}
    tx = sj.optim.unit_norm(optax.sgd(0.1), axis=axis)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["W_dec"], wanted, atol=1e-6)
    np.testing.assert_allclose(after["b"], 0.9, atol=1e-6)


def test_a_zero_row_stays_zero_without_a_gradient():
    params = {"W_dec": jnp.array([[0.0, 0.0], [2.0, 0.0]])}
    tx = sj.optim.unit_norm(optax.sgd(0.1))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert optax.apply_updates(params, updates)["W_dec"].tolist() == [[0, 0], [1, 0]]


def test_no_match_is_reported():
    with pytest.raises(ValueError, match="unit_norm: where='W_dec\\$' matches none of .*kernel"):
        sj.optim.unit_norm(optax.sgd(0.1)).init({"kernel": jnp.ones((2, 2))})
