"""Degenerate input, for every solver: sizes of the data, numbers at their limits, mistakes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from sparsejax import prox, solve
from sparsejax._arguments import check_strength, matrix_and_target
from sparsejax.contrib import (
    bandits,
    dag,
    multitask,
    private,
    random_support,
    receptive_fields,
    unmixing,
)
from sparsejax.solve import Result

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5)).astype(np.float32)
Y = (X @ np.array([2.0, -1.0, 0.0, 0.0, 0.5]) + 0.1 * RNG.normal(size=8)).astype(np.float32)
X, Y = jnp.asarray(X), jnp.asarray(Y)
GROUPS = np.array([0, 0, 1, 1, 2])
SPECTRA = jnp.asarray(RNG.uniform(0.1, 1, size=(7, 3)), jnp.float32)
MIXED = jnp.concatenate([SPECTRA @ RNG.dirichlet(np.ones(3), 20).T, SPECTRA], 1)
MIXED = MIXED.astype(jnp.float32)
SIGNS = jnp.asarray(RNG.choice([-1.0, 1.0], size=(10, 3)), jnp.float32)


def coefficients(found):
    return getattr(found, "value", getattr(found, "coefficients", found))


REGRESSIONS = {
    "lasso": solve.lasso,
    "lasso_host": solve.lasso_host,
    "lasso_path": lambda X, y, strength: solve.lasso_path(X, y, jnp.array([strength])),
    "lasso_path_host": lambda X, y, strength: solve.lasso_path_host(X, y, jnp.array([strength])),
    "enet": solve.enet,
    "group_lasso": lambda X, y, strength: solve.group_lasso(X, y, strength, GROUPS[: X.shape[1]]),
    "multitask_lasso": lambda X, y, strength: solve.multitask_lasso(
        X, jnp.stack([y, y], 1), strength
    ),
    "penalized_regression": lambda X, y, strength: solve.penalized_regression(
        X, y, prox.mcp(strength, 3.0)
    ),
    "concomitant_lasso": lambda X, y, strength: (
        dag.concomitant_lasso(X, y, strength).value.coefficients
    ),
    "random_support_lasso": lambda X, y, strength: (
        random_support.random_support_lasso(
            X, y, k=1, key=KEY, strength=strength
        ).value.coefficients
    ),
}
SCALED = [name for name in REGRESSIONS if name not in ("penalized_regression", "enet")]


@pytest.mark.parametrize("name", SCALED)
def test_the_units_of_the_data_do_not_matter(name):
    """The same problem in other units; in float32 squares of 1e20 and 1e-20 are no numbers."""
    fit = REGRESSIONS[name]
    # Which units the strength has: those of X and y, but here their own scales are divided out.
    own = {"concomitant_lasso": "y", "random_support_lasso": "x"}.get(name, "")
    strength = lambda x, y: 0.3 * (1 if own == "x" else x) * (1 if own == "y" else y)  # noqa: E731
    expected = np.asarray(coefficients(fit(X, Y, strength(1, 1))), np.float64)
    assert expected.any()
    for x, y in ((1, 1e-20), (1, 1e20), (1e-20, 1), (1e20, 1)):
        found = coefficients(fit(X * x, Y * y, strength(x, y)))
        np.testing.assert_allclose(np.asarray(found, np.float64) * x / y, expected, atol=2e-3)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_one_row_one_column_zeros_and_integers(name):
    fit = REGRESSIONS[name]
    for x, y in ((X * 0, Y), (X, Y * 0)):
        assert not np.asarray(coefficients(fit(x, y, 0.3))).any()
    if name == "random_support_lasso":  # the columns it draws are not penalised
        return
    # By hand: soft(x y / n, strength) / (x^2 / n), and the MCP of 3 / 2 times that.
    one = np.asarray(coefficients(fit(jnp.ones((1, 1), int), jnp.array([2]), 0.5))).ravel()[0]
    by_hand = {"enet": 1.75 / 1.25, "penalized_regression": 2.0, "concomitant_lasso": None}
    by_hand["multitask_lasso"] = 2 - 0.5 / 2**0.5
    expected = by_hand.get(name, 1.5)
    assert 0 < one < 2 if expected is None else one == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_data_that_cannot_be_fitted_are_refused(name):
    fit = REGRESSIONS[name]
    for x, y in ((X[:0], Y[:0]), (X[:, :0], Y), (X, Y[:3]), (X.at[0, 0].set(jnp.nan), Y)):
        with pytest.raises(ValueError):
            fit(x, y, 0.3)
    for strength in (-1.0, np.nan):
        with pytest.raises(ValueError):
            fit(X, Y, strength)


@pytest.mark.parametrize("name", [n for n in REGRESSIONS if n != "random_support_lasso"])
def test_an_infinite_strength_gives_zero(name):
    assert not np.asarray(coefficients(REGRESSIONS[name](X, Y, np.inf))).any()


@pytest.mark.parametrize("solver", [solve.lasso, solve.lasso_host])
def test_without_strength_it_is_least_squares_or_ridge(solver):
    x, y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    with pytest.warns(UserWarning, match="least squares"):
        ridge = solver(X, Y, 0.0, l2=0.7).value
        wide = solver(X.T, Y[:5], 0.0, l2=0.7).value
        part = solver(X, Y, 0.0, weights=jnp.array([1, 1, 1, 1, jnp.inf])).value
    expected = np.linalg.solve(x.T @ x + 8 * 0.7 * np.eye(5), x.T @ y)
    np.testing.assert_allclose(ridge, expected, atol=1e-5)
    expected = np.linalg.solve(x @ x.T + 5 * 0.7 * np.eye(8), x @ y[:5])
    np.testing.assert_allclose(wide, expected, atol=1e-5)
    np.testing.assert_allclose(part[:4], np.linalg.lstsq(x[:, :4], y, rcond=None)[0], atol=1e-4)
    assert part[4] == 0


@pytest.mark.slow
def test_strengths_that_cannot_be_seen_are_told_in_the_result():
    strengths = jnp.array([0.3, -0.3, jnp.nan])
    found = jax.vmap(lambda strength: solve.lasso(X, Y, strength).result)(strengths)
    assert found.tolist() == [Result.SUCCESSFUL, Result.NONFINITE, Result.NONFINITE]
    nan = jax.jit(lambda X: solve.lasso(X, Y, 0.3).result)(X.at[0, 0].set(jnp.nan))
    assert nan == Result.NONFINITE
    # A solution of 1e40 is no float32.
    assert solve.lasso(X * 1e-20, Y * 1e20, 0.3, throw=False).result == Result.NONFINITE
    groups = solve.group_lasso(X, Y, 0.1, GROUPS, weights=jnp.array([jnp.inf, 1.0, 1.0]))
    assert groups.converged and not groups.value[:2].any() and groups.value[2:].any()


def test_gaps_are_told_for_what_is_not_allowed():
    w = jnp.array([1.0, 0.0, -1.0, 0.0, 0.0])
    assert np.isfinite(solve.duality_gap(X, Y, w, 0.1))
    assert solve.duality_gap(X, Y, w, 0.1, positive=True) == np.inf
    never = jnp.array([jnp.inf, 1, 1, 1, 1])
    assert solve.duality_gap(X, Y, w, 0.1, weights=never) == np.inf
    with pytest.raises(ValueError, match="weights"):
        solve.max_strength(X, Y, weights=jnp.zeros(5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "choose", [unmixing.spa, unmixing.pure_pixels, lambda p, k: unmixing.vca(p, k, key=KEY)]
)
def test_endmembers_are_found_in_any_units_and_are_distinct(choose):
    for size in (1.0, 1e-20, 1e20):
        assert sorted(choose(MIXED * size, 3).tolist()) == [20, 21, 22]
    for pixels in (MIXED * 0, MIXED * 0 + 1):
        assert len(set(choose(pixels, 3).tolist())) == 3
    assert choose((MIXED * 100).astype(int), 3).shape == (3,)


@pytest.mark.slow
def test_shares_and_codes_of_integers_and_of_any_size():
    expected = unmixing.fcls(MIXED, SPECTRA, weight=0.0)
    for size in (1e-20, 1e20):
        found = unmixing.fcls(MIXED * size, SPECTRA * size, weight=0.0)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert jnp.isfinite(unmixing.fcls((MIXED * 100).astype(int), SPECTRA)).all()
    assert solve.sparse_code(X.astype(int), X.T, prox.l1(0.2)).value.dtype == jnp.float32
    jitted = jax.jit(
        lambda strength: solve.sparse_code(X, X.T, prox.l1(strength), max_steps=9).value
    )(0.2)
    plain = solve.sparse_code(X, X.T, prox.l1(0.2), max_steps=9).value
    np.testing.assert_allclose(jitted, plain, atol=1e-6)
    lost = solve.sparse_code(X, X.T * 1e-20, prox.l1(1e-20), tol=1e-3)
    assert not lost.converged  # 1 / ||D||^2 is no number, and 0 no answer


@pytest.mark.slow
def test_descent_looks_at_moves_of_any_size():
    """Squares of 1e-20 vanish, and so did the length of a move."""
    for size in (1e-20, 1e20):
        smooth = lambda w: jnp.sum((size * Y - X @ w) ** 2) / 16  # noqa: B023, E731
        found = solve.proximal_gradient(
            smooth, prox.l1(0.3 * size), jnp.zeros(5), step=0.2, throw=False
        )
        expected = solve.lasso(X, Y, 0.3).value
        if found.converged:
            np.testing.assert_allclose(found.value / size, expected, atol=1e-2)
    with pytest.raises(ValueError, match="step must be (> 0|a number in .0, inf.)"):
        solve.proximal_gradient(smooth, prox.l1(0.3), jnp.zeros(5), step=0.0)
    with pytest.raises(ValueError, match="step must be (> 0|a number in .0, inf.)"):
        solve.iht(smooth, prox.hard_k(2), jnp.zeros(5), step=-1.0)
    assert solve.iht(lambda w: jnp.sum(w**2), prox.hard_k(2), jnp.zeros(0)).value.shape == (0,)


def test_residual_columns_of_the_largest_floats():
    big = random_support.random_reference(jnp.concatenate([X * 1e38, X * 1e38]) / 3, 2, key=KEY)
    same = random_support.random_reference(jnp.concatenate([X, X]), 2, key=KEY)
    np.testing.assert_array_equal(big.live, same.live)
    np.testing.assert_allclose(big.residual, same.residual, atol=1e-5)
    scale = np.where(same.live, same.scale / 3, 1e-38)
    np.testing.assert_allclose(np.asarray(big.scale, np.float64) / 1e38, scale, rtol=1e-5)


def test_elimination_goes_on_with_what_was_asked():
    """One action: the second candidate's hope is its reward, already known."""
    candidates = jnp.array([[1.0], [0.0], [-1.0]])
    found = bandits.parameter_elimination(jnp.ones((1, 1)), jnp.array([-1.0]), candidates, 0.0, 0.0)
    assert found.result == Result.SUCCESSFUL
    assert found.value.queries == 1 and found.value.reward == -1


@pytest.mark.slow
@pytest.mark.parametrize("features, rewards", [(1e-20, 1.0), (1e20, 1.0), (1.0, 1e-20)])
def test_bandits_and_tasks_in_any_units(features, rewards):
    found = bandits.lasso_bandit(SIGNS * features, SIGNS[:, 1] * rewards, 1, key=KEY).value
    assert found.action == int(SIGNS[:, 1].argmax())
    expected = np.array([0, rewards / features, 0])
    np.testing.assert_allclose(found.theta, expected, rtol=1e-4)
    heads, head = SIGNS[:3] * features, SIGNS[:3].sum(1) * rewards
    nu = multitask.task_relevance(heads, head) * np.float64(features / rewards)
    np.testing.assert_allclose(nu, multitask.task_relevance(SIGNS[:3], SIGNS[:3].sum(1)), atol=1e-2)
    value = multitask.design_value(heads, head, jnp.ones(3)) * np.float64(features / rewards) ** 2
    if np.isfinite(value) and value > 0:
        same = multitask.design_value(SIGNS[:3], SIGNS[:3].sum(1), jnp.ones(3))
        np.testing.assert_allclose(value, same, rtol=1e-3)


def test_an_audit_sees_infinite_scores():
    told = np.where(RNG.random(400) < 0.5, np.inf, -np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert private.privacy_audit(told, np.full(400, -np.inf)) > 2
    assert private.privacy_audit(np.zeros(400), np.zeros(400)) == 0
    flat = jax.grad(lambda r: receptive_fields.circular_variance(r, jnp.arange(4.0)).sum())(
        jnp.zeros((4, 1))
    )
    assert jnp.isfinite(flat).all()


NAN = X.at[0, 0].set(jnp.nan)
SHORT = {"max_steps": (9,), "path": (1.0,), "shifts": (1.0,)}
REFUSED = {
    "strength out of range": lambda: solve.lasso(X * 1e-20, Y * 1e-20, 1e-41),
    "l2 infinite": lambda: solve.lasso(X, Y, 0.1, l2=np.inf),
    "strengths negative": lambda: solve.lasso_path(X, Y, jnp.array([0.1, -0.1])),
    "strengths negative, host": lambda: solve.lasso_path_host(X, Y, jnp.array([0.1, -0.1])),
    "no strengths": lambda: solve.lasso_path(X, Y, n_strengths=0),
    "eps": lambda: solve.lasso_path_host(X, Y, eps=-1.0),
    "group weight 0": lambda: solve.group_lasso(X, Y, 0.1, GROUPS, weights=jnp.zeros(3)),
    "no targets": lambda: solve.multitask_lasso(X, jnp.zeros((8, 0)), 0.1),
    "penalty without units": lambda: solve.penalized_regression(X, Y * 1e-20, prox.l1(1e-21)),
    "floor": lambda: dag.concomitant_lasso(X, Y, 0.1, floor=-1.0),
    "codes of NaN": lambda: solve.sparse_code(NAN, X.T, prox.l1(0.1)),
    "codes of one signal": lambda: solve.sparse_code(X[0], X.T, prox.l1(0.1)),
    "initial codes": lambda: solve.sparse_code(X, X.T, prox.l1(0.1), w0=jnp.zeros((2, 2))),
    "batches of 2 axes": lambda: solve.dictionary_learning(X, 4, prox.l1(0.1), key=KEY),
    "no atoms": lambda: solve.dictionary_learning(X[None], 0, prox.l1(0.1), key=KEY),
    "large batches": lambda: solve.dictionary_learning(X[None] * 1e20, 4, prox.l1(0.1), key=KEY),
    "spectra of NaN": lambda: unmixing.spa(NAN, 2),
    "shares of NaN": lambda: unmixing.fcls(NAN, jnp.ones((8, 2))),
    "channels": lambda: unmixing.fcls(X, jnp.ones((3, 2))),
    "image of NaN": lambda: unmixing.unmix(jnp.abs(NAN), 2),
    "image in other units": lambda: unmixing.unmix(MIXED * 1e-20, 2),
    "guidance 1": lambda: unmixing.unmix(MIXED, 2, guidance=jnp.ones(23)),
    "start of unmix": lambda: unmixing.unmix(MIXED, 2, w0=jnp.ones((7, 3))),
    "no steps": lambda: unmixing.unmix(MIXED, 2, max_steps=0),
    "squares of samples": lambda: dag.colide(X * 1e20, **SHORT),
    "squares vanish": lambda: dag.dagma(X * 1e-20, **SHORT),
    "covariance": lambda: dag.colide(-jnp.eye(3), precomputed=True, **SHORT),
    "strength": lambda: dag.dagma(X, -1.0, **SHORT),
    "shift": lambda: dag.colide(X, path=(1.0,), shifts=(0.0,), max_steps=(9,)),
    "no combination": lambda: solve.basis_pursuit(X * 0, Y),
    "other columns": lambda: multitask.active_mtl(
        lambda *_: (X[:5], Y[:5]), (X[:, :2], Y), tasks=3, k=1, budget=60, n0=5, key=KEY
    ),
    "squares of tasks": lambda: multitask.active_mtl(
        lambda *_: (X[:5] * 1e-20, Y[:5]), (X, Y), tasks=3, k=1, budget=60, n0=5, key=KEY
    ),
    "graph of NaN": lambda: dag.shd(np.full((2, 2), np.nan), np.zeros((2, 2))),
    "runs": lambda: receptive_fields.error_at_activity(jnp.ones(2), jnp.ones(3), 1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name):
    with pytest.raises(ValueError):
        REFUSED[name]()


def test_host_solvers_say_so_under_jit():
    for f in (solve.basis_pursuit, lambda X, y: solve.lasso_host(X, y, 0.1).value):
        with pytest.raises(TypeError, match="host"):
            jax.jit(f)(X, Y)


@pytest.mark.slow
def test_acyclicity_of_nothing_and_of_a_chain():
    assert dag.logdet_acyclicity(jnp.zeros((0, 0))) == 0
    assert dag.logdet_acyclicity(jnp.zeros((1, 1)), 0.7) == pytest.approx(0, abs=1e-6)
    fit = dag.colide(jnp.ones((1, 3)), **SHORT, throw=False).value  # a single constant sample
    one = dag.dagma(X[:, :1], **SHORT, throw=False).value
    assert not fit.weights.any() and not one.weights.any()
    with pytest.raises(ValueError, match="threshold_to_dag: weights"):  # an edge is not known
        dag.threshold_to_dag(jnp.array([[0.0, jnp.nan], [1.0, 0.0]]))


@pytest.mark.slow
def test_what_newcomers_try_is_told():
    X, y = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), jnp.ones(30)
    with pytest.raises(
        ValueError, match=r"got \(2,\); for several jax.vmap over strength, or solve.las"
    ):
        solve.lasso(X, y, jnp.array([0.1, 0.2]))
    with pytest.raises(TypeError, match=r"X must be an array, got a csr_.*pass X.toarray\(\)"):
        matrix_and_target.__wrapped__(scipy.sparse.csr_matrix(X), y, 1, "lasso")
    with pytest.raises(ValueError, match=r"colide\(covariance, precomputed=True\)"):
        dag.colide(np.cov(X.T).astype(np.float32))
    with pytest.raises(ValueError, match="public holds the rows of X"):
        private.nldp_regression(
            X, y, key=jax.random.key(0), public=X, epsilon=1.0, delta=1e-6, out_of_range="clip"
        )
    for strength in (-1.0, np.nan):
        with pytest.raises(ValueError, match="strength must be (>= 0|a number in .0, inf.)"):
            unmixing.unmix(jnp.abs(X) / 4, 2, strength)


def test_lists_in_place_of_arrays_are_told():
    with pytest.raises(TypeError, match=r"weights must be an array, got .*np.array\(weights\)"):
        check_strength("weights", [1.0, 2.0], (2,))
    with pytest.raises(TypeError, match="strength must be a number, got .* 0.1 for example"):
        check_strength("strength", [1.0, 2.0], ())


def test_a_complex_start_is_refused():
    X, y, w0 = jnp.eye(3), jnp.array([1.0, -1.0, 1.0]), jnp.full(3, 0.1 + 1j)
    square = jnp.full((3, 3), 1j)
    calls = [
        lambda: solve.lasso(X, y, 0.1, w0=w0),
        lambda: solve.lasso_path(X, y, w0=w0),
        lambda: solve.lasso_host(X, y, 0.1, w0=w0),
        lambda: solve.group_lasso(X, y, 0.1, [0, 0, 1], w0=w0),
        lambda: solve.multitask_lasso(X, X, 0.1, w0=square),
        lambda: solve.logistic_lasso(X, y, 0.1, w0=w0),
        lambda: solve.penalized_regression(X, y, prox.mcp(0.1, 3.0), w0=w0),
        lambda: solve.sparse_code(X, X, prox.l1(0.1), w0=square),
        lambda: solve.dictionary_learning(X[None], 3, prox.l1(0.1), key=KEY, w0=square),
        lambda: dag.concomitant_lasso(X, y, 0.1, w0=w0),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="w0 must be real, got complex64"):
            call()
