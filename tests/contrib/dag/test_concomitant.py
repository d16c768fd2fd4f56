"""The concomitant lasso against CVXPY, and its scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.contrib import dag
from sparsejax.solve import Result


def problem(noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 12))
    b = np.zeros(12)
    b[:3] = 2.0, -1.0, 1.5
    return jnp.asarray(x), jnp.asarray(x @ b + noise * rng.normal(size=40))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("strength, floor", [(0.1, 0.01), (0.3, 0.01), (0.1, 2.5), (5.0, 0.01)])
def test_is_the_minimiser_of_the_joint_problem(strength, floor):
    cvxpy = pytest.importorskip("cvxpy")
    x, y = problem()
    b, scale = cvxpy.Variable(12), cvxpy.Variable()
    fit = cvxpy.quad_over_lin(np.asarray(y) - np.asarray(x) @ b, scale) / 80
    objective = cvxpy.Minimize(fit + scale / 2 + strength * cvxpy.norm1(b))
    joint = cvxpy.Problem(objective, [scale >= floor])
    value = joint.solve(solver=cvxpy.CLARABEL)
    found = dag.concomitant_lasso(x, y, strength, floor=floor, tol=1e-10)
    ours, objective = found.value, found.stats["objective"]
    assert found.result == Result.SUCCESSFUL
    np.testing.assert_allclose(objective, value, rtol=1e-6)
    assert objective <= value + 1e-9
    np.testing.assert_allclose(ours.coefficients, b.value, atol=1e-3)
    np.testing.assert_allclose(ours.scale, scale.value, rtol=1e-3)


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.4])
def test_optimality_conditions(strength):
    """Correlations with the residual, in units of the scale, are the strength or below."""
    x, y = problem(seed=1)
    fit = dag.concomitant_lasso(x, y, strength, tol=1e-12).value
    residual = y - x @ fit.coefficients
    np.testing.assert_allclose(fit.scale, np.linalg.norm(residual) / 40**0.5, rtol=1e-12)
    pull = x.T @ residual / (40 * fit.scale)
    used = fit.coefficients != 0
    assert used.any() and (jnp.abs(pull) <= strength + 1e-8).all()
    np.testing.assert_allclose(pull[used], strength * jnp.sign(fit.coefficients[used]), atol=1e-8)


def test_one_strength_for_all_noise_levels():
    """y -> c y gives c b and c sigma, at the same strength."""
    x, y = problem()
    one = dag.concomitant_lasso(x, y, 0.2, tol=1e-12).value
    ten = jax.jit(lambda y: dag.concomitant_lasso(x, y, 0.2, tol=1e-12))(10 * y).value
    np.testing.assert_allclose(ten.coefficients, 10 * one.coefficients, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(ten.scale, 10 * one.scale, rtol=1e-8)


def test_edges():
    x, y = problem()
    nothing = dag.concomitant_lasso(x, 0 * y, 0.2)
    assert not nothing.value.coefficients.any() and jnp.isfinite(nothing.stats["objective"])
    with pytest.raises(ValueError, match="rows"):
        dag.concomitant_lasso(x, y[:3], 0.2)
    with pytest.raises(ValueError, match="w0 must have shape"):
        dag.concomitant_lasso(x, y, 0.2, w0=y[:3])


def test_warm_start_and_failure():
    x, y = problem()
    cold = dag.concomitant_lasso(x, y, 0.2, tol=1e-12)
    warm = dag.concomitant_lasso(x, y, 0.2, tol=1e-12, w0=cold.value.coefficients)
    assert warm.stats["n_iter"] == 1 < cold.stats["n_iter"]
    np.testing.assert_allclose(warm.value.coefficients, cold.value.coefficients, atol=1e-11)
    with pytest.raises(RuntimeError, match="concomitant_lasso: the tolerance was not reached"):
        dag.concomitant_lasso(x, y, 0.2, max_steps=2)
    short = dag.concomitant_lasso(x, y, 0.2, max_steps=2, throw=False)
    assert short.result == Result.MAX_STEPS and short.stats["n_iter"] == 2
    nan = jax.jit(lambda y: dag.concomitant_lasso(x, y, 0.2).result)(y.at[0].set(jnp.nan))
    assert nan == Result.NONFINITE
