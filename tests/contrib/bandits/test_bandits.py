"""Nets by covering, elimination by its guarantee and against a plain loop, baselines by theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import bandits
from sparsejax.solve import Result

KEY = jax.random.key(0)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(seed, d=5, s=2, a=60, eps=0.2):
    rng = np.random.default_rng(seed)
    theta = np.zeros(d)
    theta[rng.choice(d, s, replace=False)] = unit(rng, s)
    X = unit(rng, a, d)
    return X, X @ theta + eps * rng.choice([-1, 1], a)


@pytest.mark.parametrize("s, h", [(1, 0.3), (2, 0.1), (2, 0.3), (3, 0.3), (4, 0.5)])
def test_every_unit_vector_is_near_the_net(s, h):
    net = bandits.sphere_net(s, h)
    np.testing.assert_allclose(np.linalg.norm(net, axis=1), 1)
    wild = unit(np.random.default_rng(0), 2000, s)
    far = np.sqrt(np.maximum(2 - 2 * (wild @ net.T).max(1), 0))
    assert far.max() <= h + 1e-7


def test_sparse_net_covers_sphere_and_ball_without_repeats():
    net = bandits.sparse_net(4, 2, 0.3)
    assert len(np.unique(net, axis=0)) == len(net) and ((net != 0).sum(1) <= 2).all()
    ball = bandits.sparse_net(4, 2, 0.4, ball=True)
    rng = np.random.default_rng(0)
    for _ in range(300):
        theta = np.zeros(4)
        theta[rng.choice(4, 2, replace=False)] = unit(rng, 2)
        assert np.linalg.norm(net - theta, axis=1).min() <= 0.3 + 1e-7
        assert np.linalg.norm(ball - rng.uniform() * theta, axis=1).min() <= 0.4 + 1e-7
    assert len(bandits.sparse_net(6, 2, 0.2)) == 300  # the size in the specification
    assert bandits.sparse_net(3, 0, 0.1).tolist() == [[0, 0, 0]]
    assert bandits.sparse_net(2, 2, 0.2).shape[1] == 2
    with pytest.raises(ValueError, match="raise h"):
        bandits.sparse_net(100, 3, 0.05)
    for s, h in ((0, 0.1), (2, 0.0), (2, np.nan)):
        with pytest.raises(ValueError, match="h > 0|h must be a number"):
            bandits.sphere_net(s, h)


def plain(X, reward, cand, tol):
    """The algorithm of the paper as a loop on the host, with the matrix of all values."""
    V = cand @ X.T
    alive, asked = np.ones(len(cand), bool), []
    while alive.any():
        i = int(np.argmax(np.where(alive, V.max(1), -np.inf)))
        a = int(np.argmax(V[i]))
        asked.append(a)
        if abs(V[i, a] - reward[a]) <= tol:
            return a, len(set(asked)), alive.sum(), True
        alive &= np.abs(V[:, a] - reward[a]) <= tol
    return max(set(asked), key=lambda a: reward[a]), len(set(asked)), 0, False


def test_elimination_keeps_its_guarantee_and_is_the_plain_loop():
    with jax.enable_x64(True):
        net, eliminate = (
            bandits.sparse_net(5, 2, 0.2),
            jax.jit(lambda X, r, net: bandits.parameter_elimination(X, r, net, 0.2, 0.2)),
        )
        for seed in range(8):
            X, reward = problem(seed)
            solution = eliminate(X, reward, net)
            found, left = solution.value, int(solution.stats["n_candidates"])
            assert solution.result == Result.SUCCESSFUL
            assert reward.max() - reward[found.action] <= 0.8 + 1e-9
            tol = 0.4 + 8 * 2.2e-16 * 5
            expected = plain(X, reward, net, tol)
            assert (int(found.action), int(found.queries), left, True) == expected
            every = bandits.exhaustive_bandit(X, reward, net)
            assert reward.max() - every.reward <= 0.8 + 1e-9
            assert found.queries <= every.queries <= 60


def test_a_function_is_called_once_for_each_action():
    X, reward = problem(1)
    calls = []

    def ask(a):
        calls.append(a)
        return reward[a]

    net = bandits.sparse_net(5, 2, 0.2)
    found = bandits.parameter_elimination(X, ask, net, 0.01, 0.1, throw=False)
    assert len(calls) == len(set(calls)) == int(found.value.queries)
    same = bandits.parameter_elimination(X, reward, net, 0.01, 0.1, throw=False)
    assert int(found.value.action) == int(same.value.action) and found.result == same.result


def test_too_small_eps_is_reported():
    X, reward = problem(0)
    net = bandits.sparse_net(5, 2, 0.2)
    arguments = (X, reward + 10, net, 0.01, 0.1)
    wrong = bandits.parameter_elimination(*arguments, throw=False)
    assert wrong.result == Result.INFEASIBLE and wrong.stats["n_candidates"] == 0
    with pytest.raises(RuntimeError, match="no candidate agrees"):
        bandits.parameter_elimination(*arguments)
    short = bandits.parameter_elimination(*arguments, max_queries=1, throw=False)
    assert short.result != Result.SUCCESSFUL and short.value.queries == 1
    assert short.value.reward == pytest.approx(reward[short.value.action] + 10, rel=1e-5)


def test_queries_run_out():
    arguments = (jnp.eye(3), jnp.array([1.0, 0.0, 0.1]), bandits.sparse_net(3, 1, 0.1), 0.1, 0.1)
    short = bandits.parameter_elimination(*arguments, max_queries=1, throw=False)
    assert short.result == Result.MAX_STEPS and short.value.queries == 1
    assert short.stats["n_iter"] == 1 and short.stats["n_candidates"] > 0
    with pytest.raises(RuntimeError, match="tolerance was not reached"):
        bandits.parameter_elimination(*arguments, max_queries=1)


@pytest.mark.slow
def test_smallest_problems():
    one = bandits.parameter_elimination(jnp.ones((1, 1)), jnp.ones(1), np.ones((1, 1)), 0.0, 0.0)
    assert int(one.value.action) == 0 and one.result == Result.SUCCESSFUL
    zero = bandits.parameter_elimination(
        jnp.eye(3), jnp.zeros(3), bandits.sparse_net(3, 0, 1.0), 0.1, 0.0
    )
    assert zero.result == Result.SUCCESSFUL and zero.value.queries == 1
    for y in (jnp.zeros(3), jnp.ones(3)):
        assert jnp.isfinite(bandits.lasso_bandit(jnp.eye(3), y, 1, 3, key=KEY).value.theta).all()
    assert not bandits.lasso_bandit(jnp.eye(3), jnp.zeros(3), 1, key=KEY).value.theta.any()
    assert bandits.g_optimal(jnp.ones((1, 1))).value.tolist() == [1.0]


@pytest.mark.slow
def test_design_satisfies_kiefer_and_wolfowitz():
    X = unit(np.random.default_rng(0), 80, 5)
    p = np.asarray(bandits.g_optimal(X, max_steps=3000).value)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    leverage = np.einsum("ad,de,ae->a", X, np.linalg.inv((X.T * p) @ X), X)
    assert leverage.max() <= 1.011 * 5
    flat = np.concatenate([X, 0 * X], 1)
    assert np.isfinite(bandits.g_optimal(flat, max_steps=500, throw=False).value).all()
    with pytest.raises(RuntimeError, match="g_optimal: the tolerance was not reached"):
        bandits.g_optimal(X, max_steps=2)
    short = bandits.g_optimal(X, max_steps=2, throw=False)
    assert short.result == Result.MAX_STEPS and short.stats["n_iter"] == 2
    assert bandits.ols_bandit(X, X[:, 0], max_steps=2, throw=False).result == Result.MAX_STEPS


@pytest.mark.slow
def test_baselines_find_a_linear_reward():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (200, 50))
    theta = np.zeros(50)
    theta[[3, 17]] = 0.8, -0.6
    noise = 0.05 * rng.choice([-1, 1], 200)
    fit = bandits.lasso_bandit(signs, signs @ theta + noise, 2, 80, eps=0.05, key=KEY).value
    assert set(np.flatnonzero(fit.theta)) == {3, 17} and len(fit.queried) == 80
    assert np.abs(signs @ (fit.theta - theta)).max() <= 2 * 4 * 0.05
    dense = bandits.ols_bandit(signs, signs @ theta + noise).value
    assert np.abs(signs @ (dense.theta - theta)).max() <= 0.05 * (1 + 50**0.5)


def test_invalid_arguments_raise():
    X, reward = problem(0)
    net = bandits.sparse_net(5, 1, 0.5)
    call = bandits.parameter_elimination
    for arguments, text in (
        ((X, reward[:3], net, 0.1, 0.1), "shape"),
        ((X, reward, net[:, :2], 0.1, 0.1), "columns"),
        ((X, reward, net, -0.1, 0.1), "eps"), ((X, reward, net, 0.1, np.nan), "h must"),
        ((X * np.nan, reward, net, 0.1, 0.1), "NaN"),
        ((X, reward * np.inf, net, 0.1, 0.1), "NaN"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call(*arguments)
    with pytest.raises(ValueError, match="s must be"):
        bandits.lasso_bandit(X, reward, 6, key=KEY)


@pytest.mark.slow
def test_a_second_call_compiles_nothing(caplog):
    X, rewards = problem(0)
    net = bandits.sparse_net(5, 2, 0.5)
    calls = [
        lambda: bandits.g_optimal(X, throw=False),
        lambda: bandits.ols_bandit(X, rewards, throw=False),
        lambda: bandits.parameter_elimination(X, rewards, net, 0.2, 0.5),
        lambda: bandits.exhaustive_bandit(X, rewards, net),
    ]
    for call in calls:
        call()
        with jax.log_compiles():
            call()
    assert "Compiling" not in caplog.text
