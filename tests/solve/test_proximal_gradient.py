"""Proximal gradient and hard thresholding against closed forms, scikit-learn and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

from sparsejax import prox, solve


def data(n=30, p=12, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    w = np.where(np.arange(p) < 4, rng.normal(size=p) + 1, 0)
    return X, X @ w + 0.1 * rng.normal(size=n)


def least_squares(X, y):
    return lambda w: jnp.sum((y - X @ w) ** 2) / (2 * len(y))


@pytest.mark.parametrize("options", [{}, {"accelerate": False}, {"monotone": True}])
def test_lasso_against_scikit_learn(options):
    X, y = data()
    expected = Lasso(0.1, fit_intercept=False, tol=1e-12).fit(X, y).coef_
    with jax.enable_x64(True):
        smooth = least_squares(jnp.asarray(X), jnp.asarray(y))
        found = solve.proximal_gradient(
            smooth, prox.l1(0.1), jnp.zeros(12), tol=1e-10, max_steps=20000, **options
        )
        fixed = solve.proximal_gradient(
            smooth, prox.l1(0.1), jnp.zeros(12), tol=1e-10, max_steps=20000,
            step=30 / np.linalg.norm(X, 2) ** 2,
        )  # fmt: skip
    assert found.converged and found.stats["n_iter"] > 1
    np.testing.assert_allclose(found.value, expected, atol=1e-7)
    np.testing.assert_allclose(fixed.value, expected, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(found.value) == 0, expected == 0)


@pytest.mark.slow
def test_orthonormal_designs_have_closed_forms():
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.normal(size=(20, 8)))[0]
    y = 3 * rng.normal(size=20)
    with jax.enable_x64(True):
        smooth = lambda w: jnp.sum((jnp.asarray(y) - jnp.asarray(Q) @ w) ** 2) / 2  # noqa: E731
        for penalty in (prox.l1(0.7), prox.elastic_net(0.7, 0.3), prox.mcp(0.7, 3.0)):
            found = solve.proximal_gradient(smooth, penalty, jnp.zeros(8), tol=1e-10)
            np.testing.assert_allclose(found.value, penalty.prox(jnp.asarray(Q.T @ y)), atol=1e-8)


@pytest.mark.slow
def test_gradients_through_the_fixed_point():
    X, y = data()
    with jax.enable_x64(True):
        X, y = jnp.asarray(X), jnp.asarray(y)

        def score(strength, y, penalty=prox.l1):
            found = solve.proximal_gradient(
                least_squares(X, y), penalty(strength), jnp.zeros(12), tol=1e-13, max_steps=50000
            )
            return jnp.sum(found.value**2)

        for penalty in (prox.l1, lambda strength: prox.elastic_net(strength, 0.3)):
            f = jax.jit(lambda strength, y, p=penalty: score(strength, y, p))
            dlam, dy = jax.grad(f, (0, 1))(0.1, y)
            np.testing.assert_allclose(
                dlam, (f(0.1 + 1e-6, y) - f(0.1 - 1e-6, y)) / 2e-6, rtol=1e-4
            )
            u = jnp.asarray(np.random.default_rng(2).normal(size=30))
            slope = (f(0.1, y + 1e-6 * u) - f(0.1, y - 1e-6 * u)) / 2e-6
            np.testing.assert_allclose(jnp.vdot(dy, u), slope, rtol=1e-4)


@pytest.mark.slow
def test_pytrees_jit_and_vmap():
    X, y = (jnp.asarray(a, jnp.float32) for a in data())
    both = prox.separable_sum({"a": prox.l1(0.1), "b": prox.ridge(0.1)})

    def smooth(w):
        return jnp.sum((y - X[:, :6] @ w["a"] - X[:, 6:] @ w["b"]) ** 2) / 60

    start = {"a": jnp.zeros(6), "b": jnp.zeros(6)}
    found = solve.proximal_gradient(smooth, both, start)
    compiled = jax.jit(lambda w: solve.proximal_gradient(smooth, both, w).value)(start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found.value, compiled)
    strengths = jnp.array([0.05, 0.5])

    def one(strength):
        smooth = least_squares(X, y)
        return solve.proximal_gradient(smooth, prox.l1(strength), jnp.zeros(12)).value

    together = jax.vmap(one)(strengths)
    for row, strength in zip(together, strengths):
        np.testing.assert_allclose(row, one(strength), atol=1e-4)


@pytest.mark.slow
def test_hard_thresholding_finds_the_best_subset():
    X, y = data(n=60, p=9, seed=3)
    best = min(
        (np.sum((y - X[:, s] @ np.linalg.lstsq(X[:, s], y, rcond=None)[0]) ** 2), s)
        for s in map(list, itertools.combinations(range(9), 3))
    )
    with jax.enable_x64(True):
        smooth = least_squares(jnp.asarray(X), jnp.asarray(y))
        found = solve.iht(smooth, prox.hard_k(3), jnp.zeros(9), tol=1e-10)
    assert np.flatnonzero(found.value).tolist() == best[1]
    residual = np.sum((y - X @ np.asarray(found.value)) ** 2)
    np.testing.assert_allclose(residual, best[0], rtol=1e-6)


@pytest.mark.slow
def test_failures_are_told():
    X, y = (jnp.asarray(a, jnp.float32) for a in data())
    smooth = least_squares(X, y)
    with pytest.raises(RuntimeError, match="increase the number of steps"):
        solve.proximal_gradient(smooth, prox.l1(0.01), jnp.zeros(12), max_steps=2)
    unfinished = solve.proximal_gradient(
        smooth, prox.l1(0.01), jnp.zeros(12), max_steps=2, throw=False
    )
    assert unfinished.result == solve.Result.MAX_STEPS and not unfinished.converged
    with pytest.raises(RuntimeError, match="not finite"):
        solve.proximal_gradient(lambda w: jnp.sum(w) * jnp.nan, prox.l1(0.1), jnp.zeros(3))
