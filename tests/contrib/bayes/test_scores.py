"""Removal scores against quadrature, far from zero and near it."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from sparsejax.contrib import bayes

T = np.array([0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0])


def moment(f, mu, sigma):
    """`E f(|w|)`, by quadrature in float64."""
    density = stats.norm(mu, sigma).pdf
    ends = sorted({mu - 12 * sigma, 0.0, mu, mu + 12 * sigma})
    parts = [integrate.quad(lambda w: f(abs(w)) * density(w), a, b, epsabs=0, epsrel=1e-12)[0]
             for a, b in zip(ends, ends[1:])]  # fmt: skip
    return sum(parts)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 3.0])
def test_scores_equal_quadrature(sigma):
    mu = -T * sigma
    first, second = (np.array([moment(lambda w, p=p: w**p, m, sigma) for m in mu]) for p in (1, 2))
    found = [f(mu.astype(np.float32), np.full(T.shape, sigma, np.float32))
             for f in (bayes.e_abs, bayes.snr_abs, bayes.snr)]  # fmt: skip
    wanted = [first, first / np.sqrt(second - first**2), T]
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_the_exponential_score_equals_quadrature(rate):
    mu, sigma = np.array([0.0, -0.3, 1.0, 4.0]), np.array([1.0, 0.1, 2.0, 0.5])
    wanted = [moment(lambda w: np.exp(rate * w), m, s) for m, s in zip(mu, sigma)]
    found = bayes.e_exp_abs(mu.astype(np.float32), sigma.astype(np.float32), rate)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_the_ratio_is_stable_and_ranks_as_t():
    t = np.concatenate([np.linspace(0, 12, 400), [3e3, 1e4, 1e7, 1e12]]).astype(np.float32)
    found = np.asarray(bayes.snr_abs(t, np.ones_like(t)), np.float64)
    assert np.isclose(found[0], np.sqrt(2 / (np.pi - 2)), rtol=1e-6)
    np.testing.assert_allclose(found[-4:], t[-4:], rtol=1e-6)
    apart = np.diff(t) > 0.02  # closer values may round to equal ratios near 0, where it is flat
    assert np.all(np.diff(found)[apart][1:] > 0)


def test_the_published_form_is_not_stable():
    """The reason for the other form: at t = 10^4 the variance of |w| cancels in float32."""
    mean, one = jnp.float32(1e4), jnp.float32(1)
    e = bayes.e_abs(mean, one)
    variance = (one + mean**2) - e * e
    assert not np.isclose(variance, 1, rtol=0.5)
    assert np.isclose(bayes.snr_abs(mean, one), 1e4)


def test_edges_of_the_scores():
    zero = jnp.zeros(2)
    for f in (bayes.snr, bayes.snr_abs, bayes.e_abs, bayes.e_exp_abs):
        assert np.all(np.isfinite(f(zero, zero)))  # sigma underflows
        low = f(jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16))
        assert low.dtype == jnp.float32
    assert bayes.snr(jnp.array([-2.0]), jnp.array([0.0])).item() == pytest.approx(2e8)
    with pytest.raises(ValueError, match="same shape"):
        bayes.e_abs(jnp.ones(2), jnp.ones(3))


def test_scores_of_any_size():
    mu, sigma = jnp.float32([1e31, 1e-30]), jnp.float32([1e-9, 1e-30])
    np.testing.assert_allclose(bayes.e_abs(mu, sigma), [1e31, 7.978846e-09], rtol=1e-5)
    assert np.isposinf(bayes.snr_abs(mu, sigma)[0]) and np.isposinf(bayes.snr(mu, sigma)[0])
