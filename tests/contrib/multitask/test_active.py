"""Relevance, allocation and the multi-task fit against brute force; where active sampling goes."""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import solve
from sparsejax.contrib import multitask

KEY = jax.random.key(0)


def heads(k=3, t=8, seed=0):
    W = np.random.default_rng(seed).normal(size=(k, t + 1))
    W /= np.linalg.norm(W, axis=0)
    return W[:, :t], W[:, t]


def test_basis_pursuit_against_all_vertices():
    """The minimum l1 norm is attained on k columns: enumerates all choices."""
    for seed in range(4):
        W, w = heads(seed=seed)
        best = min(
            np.abs(np.linalg.solve(W[:, c], w)).sum()
            for c in map(list, itertools.combinations(range(8), 3))
        )
        nu = np.asarray(solve.basis_pursuit(W, w))
        np.testing.assert_allclose(W @ nu, w, atol=1e-5)
        np.testing.assert_allclose(np.abs(nu).sum(), best, rtol=1e-5)
        assert (np.abs(nu) > 1e-6).sum() <= 3
        dense = multitask.task_relevance(W, w, kind="l2")
        np.testing.assert_allclose(dense, np.linalg.lstsq(W, w)[0], atol=1e-5)


def test_basis_pursuit_of_degenerate_data():
    W, w = heads()
    assert not solve.basis_pursuit(W, 0 * w).any()
    assert solve.basis_pursuit(np.ones((1, 1)), np.full(1, 3.0)).tolist() == [3.0]
    twice = solve.basis_pursuit(np.concatenate([W, W], 1), w)
    np.testing.assert_allclose(
        jnp.abs(twice).sum(), jnp.abs(solve.basis_pursuit(W, w)).sum(), rtol=1e-5
    )
    flat = np.concatenate([W[:2], 0 * W[:1]])
    assert jnp.isfinite(solve.basis_pursuit(flat, flat[:, 0])).all()
    with pytest.raises(ValueError, match="not a combination"):
        solve.basis_pursuit(flat, np.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        solve.basis_pursuit(W * np.nan, w)


def test_design_value_is_least_at_the_l1_shares():
    W, w = heads()
    nu = np.abs(np.asarray(solve.basis_pursuit(W, w)))
    least = nu.sum() ** 2
    np.testing.assert_allclose(multitask.design_value(W, w, nu), least, rtol=1e-3)
    for seed in range(20):
        p = np.random.default_rng(seed).dirichlet(np.ones(8))
        exact = w @ np.linalg.solve((W * p) @ W.T, w)
        np.testing.assert_allclose(multitask.design_value(W, w, 5 * p), exact, rtol=1e-2)
        assert exact >= least * (1 - 1e-6)
    assert jnp.isinf(multitask.design_value(W, w, np.eye(8)[0]))


@pytest.mark.slow
def test_relevance_is_the_lasso_and_tends_to_basis_pursuit():
    W, w = heads()
    nu = multitask.task_relevance(W, w, strength=1e-4)
    np.testing.assert_allclose(
        jnp.abs(nu).sum(), jnp.abs(solve.basis_pursuit(W, w)).sum(), rtol=0.01
    )
    pull = np.asarray(W.T @ (w - W @ multitask.task_relevance(W, w, strength=0.1)))
    assert np.abs(pull).max() <= 0.1 * 1.02  # optimality of |W nu - w|^2 / 2 + strength |nu|_1
    assert multitask.task_relevance(W, w, strength=3.0).any()  # a tenth of it, once
    assert not multitask.task_relevance(W, 0 * w).any()
    with pytest.raises(ValueError, match="kind"):
        multitask.task_relevance(W, w, kind="l3")


def brute_force_lasso(W, w, strength):
    """The Lasso of a small strength: the best consistent vertex over all choices of k columns."""
    best = (np.inf, None)
    for c in map(list, itertools.combinations(range(W.shape[1]), len(W))):
        for signs in itertools.product([-1.0, 1.0], repeat=len(W)):
            part = np.linalg.solve(W[:, c].T @ W[:, c], W[:, c].T @ w - strength * np.array(signs))
            loss = ((W[:, c] @ part - w) ** 2).sum() / 2 + strength * np.abs(part).sum()
            best = min(best, (loss, np.abs(part).sum()))
    return best[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relevance_is_precise_at_small_strengths(dtype):
    for seed in range(4):
        W, w = (np.float64(dtype(a)) for a in heads(seed=seed))
        for scale in (1.0, 30.0):
            nu = multitask.task_relevance(dtype(W), dtype(scale * w), strength=1e-4)
            expected = brute_force_lasso(W, scale * w, 1e-4)
            np.testing.assert_allclose(np.abs(nu).sum(dtype=float), expected, rtol=1e-5)


def test_relevance_says_that_it_failed(monkeypatch):
    module = sys.modules[multitask.task_relevance.__module__]
    limited = functools.partial(solve.lasso, max_steps=0)
    monkeypatch.setattr(module, "lasso", limited)
    W, w = heads()
    with pytest.raises(RuntimeError, match="task_relevance"):
        multitask.task_relevance(W, w)
    assert not multitask.task_relevance(W, w, throw=False).any()


def test_large_totals_are_exact():
    for total in (2**53 + 1, 2**60, 2**63 - 1):
        for relevance in (np.ones(3), np.array([1.0, 0.3, 1e-9, 2.0])):
            assert sum(map(int, multitask.allocate_samples(relevance, total))) == total
    with pytest.raises(ValueError, match="2\\*\\*63"):
        multitask.allocate_samples(np.ones(3), 2**63)


@pytest.mark.parametrize("total", [0, 1, 7, 100])
def test_allocation_keeps_the_total(total):
    rng = np.random.default_rng(total)
    nu = rng.normal(size=6)
    counts = multitask.allocate_samples(nu, total, power=2.0)
    assert counts.sum() == total and (counts >= 0).all()
    assert (np.abs(counts - total * nu**2 / (nu**2).sum()) < 1).all()
    assert multitask.allocate_samples(np.zeros(3), 4).tolist() == [2, 1, 1]
    assert multitask.allocate_samples(np.array([5.0, 0.0]), 10, n_min=2).tolist() == [8, 2]
    dear = multitask.allocate_samples(np.ones(2), 1000, costs=np.array([1.0, 4.0]))
    assert dear @ [1, 4] <= 1000 and abs(dear[0] / dear[1] - 2) < 0.02
    with pytest.raises(ValueError, match="lower n_min"):
        multitask.allocate_samples(nu, 5, n_min=1)
    with pytest.raises(ValueError, match="finite"):
        multitask.allocate_samples(nu * np.nan, 5)


def test_als_recovers_what_made_the_data():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        B = np.linalg.qr(rng.normal(size=(6, 2)))[0]
        W = rng.normal(size=(2, 5))
        X = rng.normal(size=(5, 30, 6))
        G, c = np.einsum("tnd,tne->tde", X, X), np.einsum("tnd,tnk,kt->td", X, X @ B, W)
        G[4], c[4] = 0, 0  # a task without samples
        found, w = multitask.multitask_als(G, c, 2)
        np.testing.assert_allclose((found @ w)[:, :4], (B @ W)[:, :4], atol=1e-5)
        assert not w[:, 4].any()
        np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-10)
        nothing, none = multitask.multitask_als(0 * G, 0 * c, 2)
        assert jnp.isfinite(nothing).all() and not none.any()


def scene(seed, t=6, d=5, k=2):
    rng = np.random.default_rng(seed)
    B = np.linalg.qr(rng.normal(size=(d, k)))[0]
    W = rng.normal(size=(k, t))
    W /= np.linalg.norm(W, axis=0)
    w = W[:, 0]

    def sampler(key, task, n):
        r = np.random.default_rng([seed, *np.asarray(jax.random.key_data(key)).tolist()])
        x = r.normal(size=(n, d))
        return x, x @ (B @ W[:, task]) + 0.5 * r.normal(size=n)

    x = rng.normal(size=(500, d))
    return sampler, (x, x @ (B @ w)), B @ w


@pytest.mark.parametrize("method", ["l1", "l2", "uniform"])
def test_active_sampling_spends_its_budget_and_learns(method):
    sampler, target, truth = scene(0)
    options = {"tasks": 6, "k": 2, "budget": 601, "method": method}
    fit = multitask.active_mtl(sampler, target, n_rounds=2, key=KEY, **options)
    assert fit.counts.sum() == 601 and (fit.counts >= 25).all()
    assert np.linalg.norm(fit.basis @ fit.target_head - truth) < 0.2
    if method != "uniform":
        assert fit.counts.argmax() == 0 and fit.counts[0] > 150


def test_invalid_arguments_raise():
    sampler, target, _ = scene(0)
    options = {"tasks": 6, "k": 2, "budget": 60, "key": KEY}
    for change, text in (
        ({"method": "l3"}, "method"), ({"budget": 10}, "budget"), ({"n0": 0}, "exploration"),
        ({"n_rounds": 0}, "n_rounds"), ({"k": 7}, "k must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            multitask.active_mtl(sampler, target, **({**options, "n0": 4} | change))
    with pytest.raises(ValueError, match="NaN"):
        multitask.active_mtl(sampler, (target[0] * np.nan, target[1]), n0=4, **options)
    with pytest.raises(ValueError, match="must be X"):
        multitask.active_mtl(lambda *_: (np.ones((1, 5)), np.ones(1)), target, n0=4, **options)
