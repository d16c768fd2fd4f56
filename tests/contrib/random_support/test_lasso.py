"""Random-reference preconditioning against NumPy, its guarantee by counting, degenerate data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from sparsejax.contrib import random_support

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def fit_of(X, y, **options):
    return random_support.random_support_lasso(X, y, **options).value


def walk(n=30, p=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(n, p)), axis=1)


def test_parts_are_those_of_least_squares():
    X = walk()
    found = random_support.random_reference(X, 5, key=KEY)
    drawn = X[:, found.reference]
    others = np.setdiff1d(np.arange(20), found.reference)
    left = X - drawn @ np.linalg.lstsq(drawn, X)[0]
    np.testing.assert_allclose(
        found.residual * found.scale, np.where(found.live, left, 0), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.norm(found.residual[:, others], axis=0), 30**0.5)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(found.basis.T @ found.residual, 0, atol=1e-12)
    assert not found.live[found.reference].any() and found.live[others].all()


@pytest.mark.slow
def test_fit_is_the_minimiser_over_both_blocks():
    """Against a smooth solver on the joint problem, reference columns without penalty."""
    X, rng = walk(), np.random.default_rng(1)
    y, strength = X[:, 3] - X[:, 11] + rng.normal(size=30), 0.3
    fit = fit_of(X, y, k=2, key=KEY, m=4, strength=strength)
    pre = fit.preconditioner
    Z, drawn = np.asarray(pre.residual), X[:, pre.reference]

    def objective(v):
        plus, minus, free = v[:20], v[20:40], v[40:]
        r = y - drawn @ free - Z @ (plus - minus)
        slope = -np.concatenate([Z.T @ r, -Z.T @ r, drawn.T @ r]) / 30
        slope[:40] += strength
        return r @ r / 60 + strength * v[:40].sum(), slope

    bounds = [(0, None)] * 40 + [(None, None)] * 4
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-14, "gtol": 1e-9}
    other = minimize(objective, np.zeros(44), jac=True, bounds=bounds, options=options)
    a = np.asarray(fit.residual_coefficients)
    r = y - np.asarray(fit.prediction)
    np.testing.assert_allclose(r @ r / 60 + strength * np.abs(a).sum(), other.fun, rtol=2e-5)
    np.testing.assert_allclose(X @ fit.coefficients, fit.prediction, atol=1e-8)


def test_coordinates_and_coefficients_are_inverse():
    X, w = walk(), np.random.default_rng(0).normal(size=20)
    pre = random_support.random_reference(X, 6, key=KEY)
    q, a = pre.coordinates(X, w)
    np.testing.assert_allclose(pre.basis @ q + pre.residual @ a, X @ w, rtol=1e-9)
    np.testing.assert_allclose(pre.coefficients(X, q, a), w, atol=1e-8)


@pytest.mark.parametrize("k, blocks", [(2, 4), (3, 6)])
def test_coefficients_keep_the_bound_as_often_as_proved(k, blocks):
    """|a_i| <= |X w| / sqrt(n) fails for at most k / (B + 1) of the random supports."""
    X, bad, trials = walk(24, 40), 0, 200
    reference = jax.jit(
        jax.vmap(lambda key: random_support.random_reference(X, blocks * (k - 1), key=key))
    )
    found = reference(jax.random.split(jax.random.key(0), trials))
    scale = np.where(found.live, found.scale, 0)
    for trial in range(trials):
        support = np.random.default_rng(trial).choice(40, k, replace=False)
        w = np.linalg.svd(X[:, support])[2][-1]
        size = np.linalg.norm(X[:, support] @ w) / 24**0.5
        bad += np.abs(scale[trial, support] * w).max() > size * (1 + 1e-9)
    assert 0 < bad / trials <= k / (blocks + 1)


@pytest.mark.slow
def test_condition_of_1e8_is_no_obstacle():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 1)) + 1e-8 * rng.normal(size=(60, 40))
    signal = 1e8 * (X[:, 4] - X[:, 9])
    fit = fit_of(X, signal, k=2, key=KEY, m=8, strength=1e-3)
    assert jnp.mean((fit.prediction - signal) ** 2) < 1e-3
    plain = fit_of(X, signal, k=2, key=KEY, m=0, strength=1e-3)
    assert jnp.mean((plain.prediction - signal) ** 2) > 100 * jnp.mean(
        (fit.prediction - signal) ** 2
    )


@pytest.mark.slow
def test_intercept_is_the_fit_of_centred_data():
    X = walk() + 5
    y = X[:, 2] + 100
    fit = fit_of(X, y, k=1, key=KEY, m=2, strength=0.05, intercept=True)
    same = fit_of(X - X.mean(0), y - y.mean(), k=1, key=KEY, m=2, strength=0.05)
    np.testing.assert_allclose(fit.coefficients, same.coefficients, atol=1e-10)
    np.testing.assert_allclose(X @ fit.coefficients + fit.intercept, fit.prediction, atol=1e-9)
    ones = fit_of(X, 0 * y + 7, k=1, key=KEY, m=2, strength=0.05, intercept=True)
    np.testing.assert_allclose(ones.prediction, 7)


@pytest.mark.slow
def test_vmap_over_keys_is_a_loop():
    X = jnp.asarray(walk())
    y = X[:, 2] + 1.0

    def fit(key):
        return fit_of(X, y, k=2, key=key, m=4, strength=0.1).prediction

    keys = jax.random.split(KEY, 3)
    np.testing.assert_allclose(jax.jit(jax.vmap(fit))(keys), [fit(k) for k in keys], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (8, 1)])
@pytest.mark.parametrize("m", [None, 0])
def test_smallest_data(shape, m):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=shape), rng.normal(size=shape[0])
    fit = fit_of(X, y, k=1, key=KEY, m=m, sigma=0.1)
    assert all(np.isfinite(x).all() for x in (fit.prediction, fit.coefficients, fit.strength))
    np.testing.assert_allclose(X @ fit.coefficients, fit.prediction, atol=1e-8)


@pytest.mark.slow
def test_columns_of_zeros_duplicates_and_nothing_to_fit():
    X = walk()
    X[:, 4] = 0
    X[:, 5] = X[:, 6]
    everything = random_support.random_reference(X, 20, key=KEY)
    assert not everything.live.any()
    y = np.random.default_rng(0).normal(size=30)
    fit = fit_of(X, y, k=2, key=KEY, m=20, strength=0.1)
    np.testing.assert_allclose(fit.prediction, X @ np.linalg.lstsq(X, y)[0], atol=1e-8)
    for design, target in ((0 * X, y), (X, 0 * y)):
        for m in (0, 3):
            fit = fit_of(design, target, k=2, key=KEY, m=m)
            assert not fit.prediction.any() and not fit.coefficients.any()
    tiny = fit_of(1e-200 * walk(), walk()[:, 3], k=1, key=KEY, m=4, strength=0.1)
    same = fit_of(walk(), walk()[:, 3], k=1, key=KEY, m=4, strength=0.1)
    np.testing.assert_allclose(tiny.prediction, same.prediction, atol=1e-8)


def test_single_precision_drops_what_it_cannot_see():
    with jax.enable_x64(False):
        X = jnp.asarray(walk(), jnp.float32).at[:, 1].set(0)
        X = X.at[:, 1].set(X[:, 0] * (1 + 1e-7))
        found = [random_support.random_reference(X, 3, key=jax.random.key(s)) for s in range(8)]
    drawn = [f for f in found if (0 in f.reference) != (1 in f.reference)]
    assert drawn and all(not f.live[:2].any() for f in drawn)
    assert all(jnp.isfinite(f.residual).all() for f in found)


@pytest.mark.slow
def test_width_is_chosen_by_need():
    """All of it where a common factor hides everything, little or none for Gaussian columns."""
    rng = np.random.default_rng(0)
    own, common = rng.normal(size=(120, 150)), rng.normal(size=(120, 1))
    for X, needs in ((own, False), (common + 1e-3 * own, True)):
        span = np.linalg.qr(X[:, [3, 40, 77]])[0]
        signal = span @ np.ones(3) * (120 / 3) ** 0.5
        y = signal + 0.3 * rng.normal(size=120)
        fit = fit_of(X, y, k=3, key=KEY, m="auto")
        plain = fit_of(X, y, k=3, key=KEY, m=0, strength="cv")
        error, other = (np.mean((f.prediction - signal) ** 2) for f in (fit, plain))
        assert set(fit.errors) == {0, 6, 24} and np.isfinite(list(fit.errors.values())).all()
        assert fit.preconditioner.basis.shape[1] == min(fit.errors, key=fit.errors.get)
        assert error < other / 2 if needs else error <= 1.25 * other


def test_mistakes_are_reported():
    X, y = walk(), np.ones(30)
    call = random_support.random_support_lasso
    for options, text in (
        ({"k": 0}, "k must be"), ({"k": 21}, "k must be"), ({"m": 21}, "m must be"),
        ({"m": "some"}, "m must be"), ({"strength": "best"}, "strength must be"),
        ({"delta": 0.0}, "delta"), ({"n_restarts": 0}, "n_restarts"), ({"sigma": -1.0}, "sigma"),
        ({"strength": -1.0}, "strength"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call(X, y, **({"k": 2, "key": KEY} | options))
    with pytest.raises(ValueError, match="held-out error needs 10 rows"):
        call(X[:5], y[:5], k=1, key=KEY, m="auto")
    with pytest.raises(ValueError, match="NaN"):
        call(X * np.nan, y, k=1, key=KEY)
    with pytest.raises(ValueError, match="shape"):
        call(X, y[:4], k=1, key=KEY)
    with pytest.raises(TypeError, match="tracers"):
        jax.jit(lambda y: call(X, y, k=1, key=KEY, m="auto").value.prediction)(y)
