"""Gram matrices that are kept, and Newton steps on a part of the working set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import solve
from sparsejax.solve import _gram_cache
from sparsejax.solve._gram import quadratic, solve_gram
from sparsejax.solve._gram_cache import GramCache


@pytest.mark.parametrize("most", [4096, 9])
def test_kept_products_are_products(monkeypatch, most):
    monkeypatch.setattr(_gram_cache, "MOST", most)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(7, 30))
    grams = GramCache(X)
    for _ in range(20):
        chosen = np.sort(rng.choice(30, rng.integers(1, 13), replace=False))
        found = grams.of(chosen, 16)
        k = chosen.size
        np.testing.assert_allclose(found[:k, :k], X[:, chosen].T @ X[:, chosen] / 7, atol=1e-13)
        assert not found[k:].any() and not found[:, k:].any()
    # A working set larger than what is kept is computed all the same.
    everything = np.arange(30)
    np.testing.assert_allclose(grams.of(everything, 30), X.T @ X / 7, atol=1e-13)


def problem(p=24, n=40):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, p))
    y = X[:, :6] @ rng.normal(size=6) + 0.1 * rng.normal(size=n)
    active = jnp.ones(p, bool)
    return quadratic(jnp.asarray(X.T), jnp.asarray(y), jnp.full(p, 0.05), jnp.asarray(0.0), active)


@pytest.mark.slow
def test_newton_on_the_support_finds_the_same_minimum():
    with jax.enable_x64(True):
        q = problem()
        full, gap, _ = solve_gram(q, jnp.zeros(24), jnp.asarray(1e-12), False, 200)
        part, its, _ = solve_gram(q, jnp.zeros(24), jnp.asarray(1e-12), False, 200, True, 16)
        assert np.count_nonzero(full) <= 16 and gap <= 1e-12 and its <= 1e-12
        np.testing.assert_allclose(part, full, atol=1e-8)


def test_a_support_without_room_goes_back_to_the_host():
    with jax.enable_x64(True):
        q = problem()
        w, gap, n = solve_gram(q, jnp.zeros(24), jnp.asarray(1e-12), False, 200, True, 2)
        assert n == 1 and gap > 1e-12 and np.count_nonzero(w) > 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"l2": 0.5}, {"positive": True}, {"weights": True}])
def test_host_and_fixed_shapes_agree_where_the_support_outgrows_n(options):
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        X, y = jnp.asarray(rng.normal(size=(15, 90))), jnp.asarray(rng.normal(size=15))
        if "weights" in options:
            options = {"weights": jnp.asarray(rng.uniform(0.5, 2, 90))}
        strength = 0.02 * float(solve.max_strength(X, y))
        host = solve.lasso_host(X, y, strength, tol=1e-11, **options)
        fixed = solve.lasso(X, y, strength, tol=1e-11, working_set=90, **options)
        np.testing.assert_allclose(X @ host.value, X @ fixed.value, atol=1e-4)
        assert host.stats["gap"] <= 1e-11 * float(y @ y) / 30


@pytest.mark.slow
def test_few_rounds_where_the_support_meets_the_rank():
    # 79 centred directions, 150 columns, mostly noise: near the end of the path the columns of the
    # support depend on each other.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 150)), rng.normal(size=80)
    X, y = X - X.mean(0), y - y.mean()
    with jax.enable_x64(True):
        path = solve.lasso_path_host(X, y, n_strengths=30, eps=1e-3)
    assert path.stats["n_rounds"].max() < 60 and path.stats["support_size"][-1] > 70
    gaps = path.stats["gap"] / (y @ y / 160)
    assert gaps.max() <= 1e-6
