"""Layers with Gaussian weights against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import signal

from sparsejax.contrib import bayes

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 6))
MASK = np.asarray(jax.random.bernoulli(jax.random.key(1), 0.5, (6, 4))).copy()
MASK[:, 3] = False  # a unit without incoming weights
LAYER = bayes.BayesLinear(6, 4, sigma=0.3, prior_std=0.7, mask=MASK, rngs=nnx.Rngs(0))


def numbers(kernel):
    """Mean and deviation in float64, from the parameters and the mask."""
    mu, rho = (np.asarray(x[...], np.float64) for x in (kernel.mu, kernel.rho))
    mask = np.asarray(kernel.mask[...])
    return np.where(mask, mu, 0), np.where(mask, np.log1p(np.exp(rho)), 0)


def test_a_layer_has_the_mean_and_variance_of_its_weights():
    mean, std = numbers(LAYER.kernel)
    np.testing.assert_allclose(LAYER(X), X @ mean, rtol=1e-5, atol=1e-6)
    draws = np.asarray(jax.vmap(lambda k: LAYER(X, k))(jax.random.split(KEY, 4000)), np.float64)
    np.testing.assert_allclose(draws.mean(0), X @ mean, atol=0.06)
    np.testing.assert_allclose(draws.var(0), X**2 @ std**2 + 1e-8, rtol=0.15)


def test_draws_have_the_distribution_of_local_reparametrisation():
    mean, std = numbers(LAYER.kernel)
    draws = jax.vmap(lambda k: bayes.draw(LAYER, key=k)(X))(jax.random.split(KEY, 4000))
    draws = np.asarray(draws, np.float64)
    np.testing.assert_allclose(draws.mean(0), X @ mean, atol=0.06)
    np.testing.assert_allclose(draws.var(0), X**2 @ std**2, rtol=0.15, atol=1e-12)
    assert not np.any(np.asarray(bayes.draw(LAYER, key=KEY).kernel.mean())[~MASK])


def test_the_divergence_is_that_of_the_live_weights():
    mean, std = numbers(LAYER.kernel)
    s0, live = 0.7, std > 0
    each = np.log(s0 / std[live]) + (std[live] ** 2 + mean[live] ** 2) / (2 * s0**2) - 0.5
    assert np.isclose(float(bayes.kl(LAYER)), each.sum(), rtol=1e-5)
    two = nnx.Sequential(LAYER, nnx.Linear(4, 4, rngs=nnx.Rngs(0)), LAYER.__class__(
        4, 2, rngs=nnx.Rngs(1)))  # fmt: skip
    assert np.isclose(float(bayes.kl(two)), each.sum() + float(two.layers[2].kernel.kl()))


def test_gradients_are_dense_in_mu_and_masked_in_rho():
    def loss(params):
        model = nnx.merge(graph, params, rest)
        return jnp.sum(model(X, KEY) ** 2) + bayes.kl(model)

    graph, params, rest = nnx.split(LAYER, nnx.Param, ...)
    grads = nnx.as_pure(jax.grad(loss)(params))["kernel"]
    assert np.all(np.asarray(grads["mu"])[~MASK][:, None] != 0)
    assert not np.any(np.asarray(grads["rho"])[~MASK]) and np.all(np.isfinite(grads["rho"]))
    assert np.all(np.asarray(grads["rho"])[MASK] != 0)


@pytest.mark.parametrize("strides, padding", [((1, 1), "SAME"), ((2, 1), "VALID")])
def test_a_convolution_equals_scipy(strides, padding):
    layer = bayes.BayesConv(2, 3, (3, 3), strides=strides, padding=padding, sigma=0.2,
                            mask=jax.random.bernoulli(KEY, 0.5, (3, 3, 2, 3)),
                            rngs=nnx.Rngs(0))  # fmt: skip
    x = np.asarray(jax.random.normal(KEY, (2, 6, 7, 2)), np.float64)
    mean, std = numbers(layer.kernel)

    def conv(x, kernel):
        out = [sum(signal.correlate2d(image[..., c], kernel[..., c, k], padding.lower())
                   for c in range(2)) for image in x for k in range(3)]  # fmt: skip
        out = np.stack(out).reshape(2, 3, *out[0].shape).transpose(0, 2, 3, 1)
        return out[:, :: strides[0], :: strides[1]]

    low = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(layer(low), conv(x, mean), rtol=1e-4, atol=1e-5)
    draws = np.asarray(jax.vmap(lambda k: layer(low, k))(jax.random.split(KEY, 3000)), np.float64)
    np.testing.assert_allclose(draws.var(0), conv(x**2, std**2) + 1e-8, rtol=0.2)


def test_predictions_average_probabilities_of_draws():
    p = bayes.predict(LAYER, jnp.asarray(X), samples=3, key=KEY)
    draws = [jax.nn.softmax(bayes.draw(LAYER, key=k)(X), -1) for k in jax.random.split(KEY, 3)]
    np.testing.assert_allclose(p, np.mean(draws, 0), rtol=1e-5)


def test_masks_are_set_by_path_in_a_copy():
    model = nnx.Sequential(LAYER, bayes.BayesLinear(4, 2, rngs=nnx.Rngs(1)))
    masks = {"layers": {0: {"kernel": {"mu": jnp.asarray(~MASK)}}}}
    new = bayes.set_masks(model, masks)
    assert not np.any(np.asarray(new.layers[0].kernel.mean()))  # they were 0 before
    np.testing.assert_array_equal(new.layers[0].kernel.std() > 0, ~MASK)
    assert np.all(np.asarray(new.layers[1].kernel.std()) > 0)
    np.testing.assert_array_equal(model.layers[0].kernel.std() > 0, MASK)
    for bad, error in (({"mu": jnp.ones(2, bool)}, "mu"), ({"kernel": {"mu": jnp.ones(2, bool)}},
                                                           "shape")):  # fmt: skip
        with pytest.raises(ValueError, match=error):
            bayes.set_masks(LAYER, bad)
    with pytest.raises(ValueError, match="no Gaussian weights"):
        bayes.kl(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_bfloat16_inputs_are_computed_in_the_dtype_of_the_weights():
    y = LAYER(jnp.asarray(X, jnp.bfloat16), KEY)
    assert y.dtype == jnp.float32 and np.all(np.isfinite(y))
