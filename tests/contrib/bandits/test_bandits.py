"""Nets by covering, elimination by its guarantee and against a plain loop, baselines by theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import bandits

KEY = jax.random.key(0)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(seed, d=5, s=2, a=60, eps=0.2):
    rng = np.random.default_rng(seed)
    theta = np.zeros(d)
    theta[rng.choice(d, s, replace=False)] = unit(rng, s)
    Phi = unit(rng, a, d)
    return Phi, Phi @ theta + eps * rng.choice([-1, 1], a)


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
        with pytest.raises(ValueError, match="h > 0"):
            bandits.sphere_net(s, h)


def plain(Phi, reward, cand, tol):
    """The algorithm as it is told: host loop, matrix of all values."""
    V = cand @ Phi.T
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
            jax.jit(lambda Phi, r, net: bandits.parameter_elimination(Phi, r, net, 0.2, 0.2)),
        )
        for seed in range(8):
            Phi, reward = problem(seed)
            found = eliminate(Phi, reward, net)
            assert found.ok and reward.max() - reward[found.action] <= 0.8 + 1e-9
            tol = 0.4 + 8 * 2.2e-16 * 5
            expected = plain(Phi, reward, net, tol)
            assert (int(found.action), int(found.queries), int(found.alive), True) == expected
            every = bandits.exhaustive_bandit(Phi, reward, net)
            assert reward.max() - every.value <= 0.8 + 1e-9
            assert found.queries <= every.queries <= 60


def test_a_function_is_called_once_for_each_action():
    Phi, reward = problem(1)
    calls = []

    def ask(a):
        calls.append(a)
        return reward[a]

    net = bandits.sparse_net(5, 2, 0.2)
    found = bandits.parameter_elimination(Phi, ask, net, 0.01, 0.1)
    assert len(calls) == len(set(calls)) == int(found.queries)
    same = bandits.parameter_elimination(Phi, reward, net, 0.01, 0.1)
    assert int(found.action) == int(same.action) and bool(found.ok) == bool(same.ok)


def test_wrong_eps_is_told():
    Phi, reward = problem(0)
    net = bandits.sparse_net(5, 2, 0.2)
    wrong = bandits.parameter_elimination(Phi, reward + 10, net, 0.01, 0.1)
    assert not wrong.ok and wrong.alive == 0
    short = bandits.parameter_elimination(Phi, reward + 10, net, 0.01, 0.1, max_queries=1)
    assert not short.ok and short.queries == 1
    assert short.value == pytest.approx(reward[short.action] + 10, rel=1e-5)


def test_smallest_problems():
    one = bandits.parameter_elimination(jnp.ones((1, 1)), jnp.ones(1), np.ones((1, 1)), 0.0, 0.0)
    assert int(one.action) == 0 and one.ok
    zero = bandits.parameter_elimination(
        jnp.eye(3), jnp.zeros(3), bandits.sparse_net(3, 0, 1.0), 0.1, 0.0
    )
    assert zero.ok and zero.queries == 1
    for y in (jnp.zeros(3), jnp.ones(3)):
        assert jnp.isfinite(bandits.lasso_bandit(KEY, jnp.eye(3), y, 1, 3).theta).all()
    assert not bandits.lasso_bandit(KEY, jnp.eye(3), jnp.zeros(3), 1).theta.any()
    assert bandits.g_optimal(jnp.ones((1, 1))).tolist() == [1.0]


def test_design_meets_kiefer_and_wolfowitz():
    Phi = unit(np.random.default_rng(0), 80, 5)
    p = np.asarray(bandits.g_optimal(Phi, 3000))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    leverage = np.einsum("ad,de,ae->a", Phi, np.linalg.inv((Phi.T * p) @ Phi), Phi)
    assert leverage.max() <= 1.011 * 5
    flat = np.concatenate([Phi, 0 * Phi], 1)
    assert np.isfinite(bandits.g_optimal(flat, 500)).all()


def test_baselines_find_a_linear_reward():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (200, 50))
    theta = np.zeros(50)
    theta[[3, 17]] = 0.8, -0.6
    noise = 0.05 * rng.choice([-1, 1], 200)
    fit = bandits.lasso_bandit(KEY, signs, signs @ theta + noise, 2, 80, eps=0.05)
    assert set(np.flatnonzero(fit.theta)) == {3, 17} and len(fit.queried) == 80
    assert np.abs(signs @ (fit.theta - theta)).max() <= 2 * 4 * 0.05
    dense = bandits.ols_bandit(signs, signs @ theta + noise)
    assert np.abs(signs @ (dense.theta - theta)).max() <= 0.05 * (1 + 50**0.5)


def test_mistakes_are_told():
    Phi, reward = problem(0)
    net = bandits.sparse_net(5, 1, 0.5)
    call = bandits.parameter_elimination
    for arguments, text in (
        ((Phi, reward[:3], net, 0.1, 0.1), "shape"),
        ((Phi, reward, net[:, :2], 0.1, 0.1), "columns"),
        ((Phi, reward, net, -0.1, 0.1), "eps"), ((Phi, reward, net, 0.1, np.nan), "h must"),
        ((Phi * np.nan, reward, net, 0.1, 0.1), "NaN"),
        ((Phi, reward * np.inf, net, 0.1, 0.1), "NaN"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call(*arguments)
    with pytest.raises(ValueError, match="s must be"):
        bandits.lasso_bandit(KEY, Phi, reward, 6)
