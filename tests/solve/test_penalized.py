"""Group, multi-task, logistic and non-convex regression against scikit-learn and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, MultiTaskLasso

from sparsejax import prox, solve


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def data(n=40, p=12, q=None, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    w = rng.normal(size=(p, q) if q else p) * (np.arange(p) < 4).reshape(-1, *([1] if q else []))
    return X, X @ w + 0.3 * rng.normal(size=(n, q) if q else n)


def arrays(*xs):
    return [jnp.asarray(x) for x in xs]


@pytest.mark.slow
def test_multitask_against_scikit_learn():
    X, Y = data(q=3)
    found = solve.multitask_lasso(*arrays(X, Y), 0.2, tol=1e-10)
    model = MultiTaskLasso(0.2, fit_intercept=False, tol=1e-13, max_iter=100_000).fit(X, Y)
    np.testing.assert_allclose(found.value, model.coef_.T, atol=1e-5)
    assert found.stats["gap"] <= 1e-10 * np.sum(Y**2) / (2 * len(Y))
    assert (np.asarray(found.value) == 0).any()


@pytest.mark.slow
def test_one_target_or_groups_of_one_are_the_lasso():
    X, y = data()
    lasso = solve.lasso(*arrays(X, y), 0.1, tol=1e-11).value
    one = solve.multitask_lasso(*arrays(X, y[:, None]), 0.1, tol=1e-11).value[:, 0]
    groups = solve.group_lasso(*arrays(X, y), 0.1, np.arange(12), tol=1e-11).value
    penalty = solve.penalized_regression(*arrays(X, y), prox.l1(0.1), tol=1e-9).value
    for found in (one, groups, penalty):
        np.testing.assert_allclose(found, lasso, atol=2e-6)


@pytest.mark.slow
def test_group_lasso_meets_the_optimality_conditions():
    X, y = data(seed=1)
    labels, weights = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3]), np.array([1.0, 2, 0.5, 1.5])
    strength = 0.3
    found = solve.group_lasso(
        *arrays(X, y), strength, labels, weights=jnp.asarray(weights), tol=1e-12
    )
    w = np.asarray(found.value)
    c = X.T @ (y - X @ w) / len(y)
    zeros = 0
    for g in range(4):
        own, size = w[labels == g], np.linalg.norm(w[labels == g])
        if size == 0:
            zeros += 1
            assert np.linalg.norm(c[labels == g]) <= strength * weights[g] * (1 + 1e-6)
        else:
            np.testing.assert_allclose(
                c[labels == g], strength * weights[g] * own / size, atol=1e-5
            )
    assert 0 < zeros < 4


@pytest.mark.slow
def test_logistic_against_scikit_learn():
    X, y = data(n=60, seed=2)
    y, strength = np.sign(y), 0.03
    found = solve.logistic_lasso(*arrays(X, y), strength, tol=1e-10)
    options = {"l1_ratio": 1.0, "solver": "saga", "fit_intercept": False, "tol": 1e-10}
    model = LogisticRegression(C=1 / (strength * len(y)), max_iter=200_000, **options).fit(X, y)
    np.testing.assert_allclose(found.value, model.coef_[0], atol=1e-4)
    # Primal minus dual in NumPy.
    w = np.asarray(found.value)
    z = y * (X @ w)
    theta = 1 / (1 + np.exp(z))
    theta *= min(1, strength / np.abs(X.T @ (y * theta) / len(y)).max())
    dual = -np.mean(theta * np.log(theta) + (1 - theta) * np.log1p(-theta))
    primal = np.mean(np.log1p(np.exp(-z))) + strength * np.abs(w).sum()
    np.testing.assert_allclose(found.stats["gap"], primal - dual, atol=1e-12)
    assert primal - dual <= 1e-10 * np.log(2) + 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [prox.mcp(0.2, 3.0), prox.scad(0.2, 3.7), prox.l0(0.05)])
def test_non_convex_penalties_on_an_orthogonal_design(penalty):
    # There the minimum is the proximal operator of the least squares solution.
    X, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 6)))
    X, w = X * np.sqrt(20), np.array([3.0, -1.5, 0.4, 0.15, 0.0, 0.7])
    found = solve.penalized_regression(*arrays(X, X @ w), penalty, tol=1e-7)
    np.testing.assert_allclose(found.value, penalty.prox(jnp.asarray(w), 1.0), atol=1e-5)


@pytest.mark.slow
def test_mcp_leaves_large_coefficients_unbiased():
    X, y = data(n=80, seed=3)
    w = np.linalg.lstsq(X[:, :4], y, rcond=None)[0]
    lasso = solve.lasso(*arrays(X, y), 0.15).value
    mcp = solve.penalized_regression(*arrays(X, y), prox.mcp(0.15, 3.0), w0=lasso).value
    large = np.abs(w) > 3 * 0.15
    assert np.abs(mcp[:4] - w)[large].max() < 0.2 * np.abs(lasso[:4] - w)[large].max()


@pytest.mark.slow
def test_gradients_against_differences():
    X, Y = data(n=30, p=6, q=2, seed=4)
    labels = np.array([0, 0, 1, 1, 2, 2])
    y = np.sign(Y[:, 0])
    solvers = {
        "multitask": lambda X, strength: (
            solve.multitask_lasso(X, jnp.asarray(Y), strength, tol=1e-13).value
        ),
        "group": lambda X, strength: (
            solve.group_lasso(X, Y[:, 0], strength, labels, tol=1e-13).value
        ),
        "logistic": lambda X, strength: (
            solve.logistic_lasso(X, jnp.asarray(y), strength, tol=1e-13).value
        ),
    }
    for name, solver in solvers.items():
        f = jax.jit(lambda X, strength, solver=solver: jnp.sum(jnp.sin(3 * solver(X, strength))))
        strength = 0.02 if name == "logistic" else 0.1
        dX, dlam = jax.jit(jax.grad(f, (0, 1)))(jnp.asarray(X), strength)
        step = 1e-5
        numeric = (f(jnp.asarray(X), strength + step) - f(jnp.asarray(X), strength - step)) / (
            2 * step
        )
        np.testing.assert_allclose(dlam, numeric, rtol=1e-4, atol=1e-5)
        moved = np.zeros_like(X)
        moved[3, 1] = step
        numeric = (f(jnp.asarray(X + moved), strength) - f(jnp.asarray(X - moved), strength)) / (
            2 * step
        )
        np.testing.assert_allclose(dX[3, 1], numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_vmap_over_strengths():
    X, Y = arrays(*data(q=2))
    strengths = jnp.array([0.05, 0.2, 5.0])
    many = jax.vmap(lambda strength: solve.multitask_lasso(X, Y, strength, tol=1e-10).value)(
        strengths
    )
    for strength, w in zip(strengths, many):
        one = solve.multitask_lasso(X, Y, float(strength), tol=1e-10).value
        np.testing.assert_allclose(w, one, atol=1e-6)
    assert (many[2] == 0).all()


@pytest.mark.slow
def test_degenerate_problems():
    one = jnp.ones((1, 1))
    assert float(solve.multitask_lasso(2 * one, 3 * one, 2.0).value[0, 0]) == pytest.approx(1.0)
    X, y = arrays(*data())
    for f in (
        lambda X, y: solve.group_lasso(X, y, 0.1, np.arange(12) // 2),
        lambda X, y: solve.multitask_lasso(X, y[:, None], 0.1),
    ):
        zero = f(X, 0 * y)
        assert (zero.value == 0).all() and zero.converged and float(zero.stats["gap"]) == 0
        empty = f(X.at[:, 0].set(0), y)
        assert empty.converged and np.asarray(empty.value).ravel()[0] == 0
        twice = f(jnp.concatenate([X[:, :6], X[:, :6]], 1), y)
        assert twice.converged and jnp.isfinite(twice.value).all()
    assert (solve.logistic_lasso(X, jnp.sign(y), 10.0).value == 0).all()


@pytest.mark.slow
def test_mistakes():
    X, y = arrays(*data())
    with pytest.raises(ValueError, match="classes -1 and 1"):
        solve.logistic_lasso(X, (y > 0).astype(float), 0.1)
    with pytest.raises(ValueError, match="strength must be > 0"):
        solve.group_lasso(X, y, 0.0, np.arange(12))
    with pytest.raises(ValueError, match="NaN"):
        solve.multitask_lasso(X.at[0, 0].set(jnp.nan), y[:, None], 0.1)
    with pytest.raises(ValueError, match=r"\(40, q\)"):
        solve.multitask_lasso(X, y, 0.1)
    with pytest.raises(ValueError, match="w0 must have shape"):
        solve.penalized_regression(X, y, prox.l1(0.1), w0=jnp.zeros(3))
    with pytest.raises(RuntimeError, match="group_lasso"):
        solve.group_lasso(X, y, 0.01, np.arange(12), max_steps=1)
