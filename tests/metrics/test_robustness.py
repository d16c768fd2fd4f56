"""AUROC, FGSM and gradient noise against scikit-learn and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import sparsejax as sj
from sparsejax import metrics


def test_max_softmax_probability():
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 5
    np.testing.assert_allclose(
        metrics.max_softmax_probability(logits), softmax(logits, axis=-1).max(-1), rtol=1e-5
    )


def test_fgsm_is_the_worst_step_of_a_linear_model():
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=8), jnp.float32)
    x = jnp.asarray(rng.uniform(size=(3, 8)), jnp.float32)
    hostile = metrics.fgsm(lambda x: (x @ w).sum(), x, 0.1)
    np.testing.assert_allclose(hostile, x + 0.1 * np.sign(w), rtol=1e-6)
    np.testing.assert_allclose((hostile - x) @ w, jnp.full(3, 0.1 * jnp.abs(w).sum()), rtol=1e-4)
    clipped = metrics.fgsm(lambda x: (x @ w).sum(), x, 0.5, bounds=(0.0, 1.0))
    assert clipped.min() >= 0 and clipped.max() <= 1


def test_gradient_noise_is_the_mean_variance_of_absolute_gradients():
    rng = np.random.default_rng(2)
    g = {
        "a": {"kernel": rng.normal(size=(5, 4)), "bias": rng.normal(size=4)},
        "b": {"kernel": 9 * rng.normal(size=(4, 3))},
    }
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g)
    a, b = (np.abs(g[n]["kernel"]).var() for n in "ab")
    np.testing.assert_allclose(metrics.gradient_noise(grads), (a + b) / 2, rtol=1e-5)
    masks = {"a": {"kernel": jnp.ones((5, 4), bool), "bias": None}, "b": {"kernel": None}}
    np.testing.assert_allclose(metrics.gradient_noise(grads, masks), a, rtol=1e-5)
    plan = sj.plan(grads, {"b/kernel": sj.Unstructured(0.5)})
    np.testing.assert_allclose(
        jax.jit(lambda g: metrics.gradient_noise(g, plan))(grads), b, rtol=1e-5
    )
    with pytest.raises(ValueError, match="the leaves are scale"):
        metrics.gradient_noise({"scale": jnp.ones(3)})
