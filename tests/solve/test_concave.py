"""MCP, SCAD and l_1/2 on the host: stationarity and minima by their definitions, in NumPy."""

import warnings

import numpy as np
import pytest
import sklearn.linear_model as theirs

from sparsejax.solve import _lasso_host, _regression_native, _regression_xla, estimators as ours

from .test_regression import LAYOUTS, SCORE, N, P, X, Y, compiled


def concave(shape, a, gamma, u):
    """Values and slopes of MCP and SCAD, by their definitions."""
    if shape == "mcp":
        inside = u <= gamma * a
        return np.where(inside, a * u - u**2 / (2 * gamma), gamma * a**2 / 2), np.where(
            inside, a - u / gamma, 0
        )
    middle = (2 * gamma * a * u - u**2 - a**2) / (2 * (gamma - 1))
    value = np.where(u <= a, a * u, np.where(u <= gamma * a, middle, a**2 * (gamma + 1) / 2))
    return value, np.where(u <= a, a, np.maximum(gamma * a - u, 0) / (gamma - 1))


CONCAVE = {"mcp": (ours.MCPRegression, 3.0), "scad": (ours.SCADRegression, 3.7)}


@compiled
@pytest.mark.parametrize("shape", CONCAVE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_concave_penalties_are_stationary(shape, layout):
    estimator, gamma = CONCAVE[shape]
    y, data = Y["squared"], LAYOUTS[layout](X)
    for alpha in (0.3, 0.1, 0.03):
        mine = estimator(alpha, gamma=gamma, tol=1e-9).fit(data, y)
        r = y - X @ mine.coef_ - mine.intercept_
        c, w = X.T @ r / N, mine.coef_
        slope = concave(shape, alpha, gamma, np.abs(w))[1]
        off = np.where(w == 0, np.maximum(np.abs(c) - alpha, 0), np.abs(c - slope * np.sign(w)))
        largest = np.abs(X.T @ (y - y.mean())).max() / N
        assert off.max() <= 1e-9 * largest + 1e-12
        assert mine.stationarity_ == pytest.approx(off.max(), abs=1e-12)
        assert 0 < np.count_nonzero(w) < P


@compiled
@pytest.mark.parametrize("shape", CONCAVE)
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_one_feature_is_solved_globally(shape, size):
    # Where the problem of a coordinate is not convex, too: columns shorter than the penalty bends.
    estimator, gamma = CONCAVE[shape]
    x = np.r_[np.ones(8), -np.ones(8)][:, None] * size
    grid = np.linspace(-8, 8, 160_001)
    for target in (0.05, 0.4, 0.9, 1.5, 2.5):
        y = target * x[:, 0]
        mine = estimator(0.4, gamma=gamma, fit_intercept=False).fit(x, y)
        smooth = (grid - target) ** 2 * size**2 / 2
        total = smooth + concave(shape, 0.4, gamma, np.abs(grid))[0]
        own = (mine.coef_[0] - target) ** 2 * size**2 / 2
        own += concave(shape, 0.4, gamma, abs(mine.coef_[0]))[0]
        assert own <= total.min() + 1e-8


@compiled
@pytest.mark.parametrize("shape", CONCAVE)
def test_columns_whose_squares_are_out_of_range_are_refused(shape):
    for unit in (1e-200, 1e200):
        with pytest.raises(ValueError, match="X is out of the range of its squares; standardise"):
            CONCAVE[shape][0](0.1).fit(X * unit, Y["squared"])
    assert not CONCAVE[shape][0](0.1).fit(X * 0, Y["squared"]).coef_.any()


def half_distance(X, y, w, alpha):
    """The largest distance of a w_j from the minimum of its own problem."""
    worst, n = 0.0, len(y)
    for j in range(X.shape[1]):
        q = X[:, j] @ X[:, j] / n
        if q == 0:
            assert w[j] == 0
            continue
        u = w[j] + X[:, j] @ (y - X @ w) / n / q
        # s^3 - |u| s + alpha / (2 q) = 0 for s = sqrt(|x|).
        roots = np.roots([1, 0, -abs(u), alpha / (2 * q)])
        s = np.real(roots[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)])
        tried = np.r_[0, s**2] * np.sign(u)
        values = q * (tried - u) ** 2 / 2 + alpha * np.sqrt(np.abs(tried))
        worst = max(worst, q * abs(w[j] - tried[np.argmin(values)]))
    return worst


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_norms_are_minima_of_each_coordinate(layout):
    y, scales = Y["squared"], np.geomspace(0.2, 5, P)
    for alpha in (1.0, 0.1, 0.01):
        mine = ours.LHalfRegression(alpha, tol=1e-9).fit(LAYOUTS[layout](X * scales), y)
        centred, target = X * scales - (X * scales).mean(0), y - y.mean()
        off = half_distance(centred, target, mine.coef_, alpha)
        assert off <= 2e-9 * np.abs(centred.T @ target).max() / N
        assert mine.intercept_ == pytest.approx(y.mean() - (X * scales).mean(0) @ mine.coef_)
    assert 0 < np.count_nonzero(mine.coef_) < P


@compiled
@pytest.mark.parametrize("unit", [1e-150, 1.0, 3e120])
def test_half_norms_hold_in_any_units(unit):
    y = Y["squared"]
    one = ours.LHalfRegression(0.1, tol=1e-10).fit(X, y)
    other = ours.LHalfRegression(0.1 * unit**1.5, tol=1e-10).fit(X, y * unit)
    np.testing.assert_allclose(other.coef_ / unit, one.coef_, atol=1e-9)


@compiled
@pytest.mark.parametrize("unit", [1e-200, 1e-160, 1e120, 1e200])
def test_half_norms_hold_in_any_units_of_columns(unit):
    y = Y["squared"]
    one = ours.LHalfRegression(0.1, tol=1e-10).fit(X, y)
    other = ours.LHalfRegression(0.1 * unit**0.5, tol=1e-10).fit(X * unit, y)
    np.testing.assert_allclose(other.coef_ * unit, one.coef_, atol=1e-9)
    assert 0 < np.count_nonzero(one.coef_) < P


@compiled
def test_half_norms_far_below_the_noise_converge():
    # With more coefficients than samples, of which the Hessian is not definite.
    for seed in range(5):
        rng = np.random.default_rng(seed)
        data = rng.normal(size=(20, 40)) + 3 * rng.normal(size=(20, 1))
        y = data[:, 0] + rng.normal(size=20)
        mine = ours.LHalfRegression(5e-5, fit_intercept=False).fit(data, y)
        assert mine.n_iter_ < 20 and np.count_nonzero(mine.coef_) <= 20
        off = half_distance(data, y, mine.coef_, 5e-5)
        assert off <= 1.1e-6 * np.abs(data.T @ y).max() / 20


def test_half_norms_agree_in_xla_and_find_the_best_subset_of_few(monkeypatch):
    # Orthogonal columns: each problem is its own, so that the minimum is the only answer.
    q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(N, 6)))
    q = np.sqrt(N) * np.c_[q[:, :5], np.zeros(N)]
    y = q[:, :5] @ [3.0, -1.0, 0.4, 0.2, 0.0]
    for solver in (_regression_native.solve, _regression_xla.solve):
        with monkeypatch.context() as patch:  # without a compiler both are in XLA
            patch.setitem(_lasso_host.REGRESSION, "native", solver)
            mine = ours.LHalfRegression(0.2, fit_intercept=False, tol=1e-10).fit(q, y)
        assert half_distance(q, y, mine.coef_, 0.2) < 1e-9
        assert mine.coef_[5] == 0 and np.flatnonzero(mine.coef_).tolist() == [0, 1]


@compiled
def test_mcp_leaves_large_coefficients_unbiased():
    w = np.linalg.lstsq(np.c_[X[:, :4], np.ones(N)], Y["squared"], rcond=None)[0][:3]
    lasso = ours.Lasso(0.1).fit(X, Y["squared"]).coef_[:3]
    mcp = ours.MCPRegression(0.1).fit(X, Y["squared"]).coef_[:3]
    assert np.abs(mcp - w).max() < 0.3 * np.abs(lasso - w).max()


@pytest.mark.slow
def test_without_a_compiler_estimators_run(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NotImplementedError, match="no-such-compiler"):
        _regression_native.library(0, "squared", "mcp", repeated=False)
    warnings.simplefilter("ignore", UserWarning)
    targets = np.stack([Y["squared"], -SCORE], axis=1)
    slow = ours.MultiTaskLasso(0.1, tol=1e-10).fit(X, targets)
    other = theirs.MultiTaskLasso(0.1, tol=1e-12, max_iter=10**5).fit(X, targets)
    np.testing.assert_allclose(slow.coef_, other.coef_, atol=1e-3)
    for shape, (estimator, gamma) in CONCAVE.items():
        mine = estimator(0.1, gamma=gamma, tol=1e-6).fit(X, Y["squared"])
        w = mine.coef_
        c = X.T @ (Y["squared"] - X @ w - mine.intercept_) / N
        slope = concave(shape, 0.1, gamma, np.abs(w))[1]
        off = np.where(w == 0, np.maximum(np.abs(c) - 0.1, 0), np.abs(c - slope * np.sign(w)))
        assert off.max() < 1e-4
