"""The Lasso against scikit-learn, finite differences, and its degenerate inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, Lasso

from sparsejax import solve
from sparsejax.solve import _lasso


def data(n=40, p=60, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    w = np.where(np.arange(p) < 6, 2 * rng.normal(size=p), 0)
    return X, X @ w + 0.3 * rng.normal(size=n)


def gap_by_hand(X, y, w, strength):
    """Primal minus dual in NumPy, as the paper of the gap-safe rules writes them."""
    n, r = len(y), y - X @ w
    theta = r / n * min(1, strength / max(np.abs(X.T @ r / n).max(), 1e-300))
    primal = r @ r / (2 * n) + strength * np.abs(w).sum()
    return primal - (y @ y / (2 * n) - n / 2 * np.sum((theta - y / n) ** 2))


@pytest.mark.parametrize("solver", [solve.lasso, solve.lasso_host])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_against_scikit_learn(solver, share):
    X, y = data()
    with jax.enable_x64(True):
        strength = float(solve.max_strength(jnp.asarray(X), jnp.asarray(y))) * share
        found = solver(jnp.asarray(X), jnp.asarray(y), strength, tol=1e-10)
    expected = Lasso(strength, fit_intercept=False, tol=1e-14, max_iter=100000).fit(X, y).coef_
    np.testing.assert_allclose(found.value, expected, atol=1e-4)
    gap = gap_by_hand(X, y, np.asarray(found.value), strength)
    assert gap <= 1e-10 * (y @ y) / (2 * len(y)) + 1e-14
    np.testing.assert_allclose(found.stats["gap"], gap, atol=1e-12)
    assert found.converged


def test_options_against_scikit_learn():
    X, y = data(seed=1)
    with jax.enable_x64(True):
        A, b = jnp.asarray(X), jnp.asarray(y)
        mixed = solve.enet(A, b, 0.2, 0.7, tol=1e-10).value
        positive = solve.lasso(A, b, 0.1, positive=True, tol=1e-10).value
        weights = np.linspace(0.5, 2, 60)
        weighted = solve.lasso(A, b, 0.1, weights=jnp.asarray(weights), tol=1e-10).value
    fit = lambda model, X=X: model.fit(X, y).coef_  # noqa: E731
    options = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100000}
    np.testing.assert_allclose(mixed, fit(ElasticNet(0.2, l1_ratio=0.7, **options)), atol=1e-5)
    np.testing.assert_allclose(positive, fit(Lasso(0.1, positive=True, **options)), atol=1e-5)
    scaled = fit(Lasso(0.1, **options), X / weights) / weights
    np.testing.assert_allclose(weighted, scaled, atol=1e-5)


@pytest.mark.parametrize("ratio", [1e-6, 1e-9])
def test_a_tiny_share_of_the_l1_norm_converges_in_float32(ratio):
    X, y = data(n=50, p=20)
    found = solve.enet(np.float32(X), np.float32(y), 0.1, ratio=ratio)
    ridge = np.linalg.solve(X.T @ X / 50 + 0.1 * np.eye(20), X.T @ y / 50)
    np.testing.assert_allclose(found.value, ridge, atol=1e-3)  # tol is 1e-5
    assert found.converged and found.stats["n_iter"] <= 2


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("strength", [1e-9, 0.02, 1.0])
def test_the_gap_with_a_ridge_term_bounds_the_error(strength, positive):
    X, y = data(n=15, p=10, seed=5)
    rng, options = np.random.default_rng(6), {"fit_intercept": False, "tol": 1e-11}
    model = ElasticNet(strength + 0.1, l1_ratio=strength / (strength + 0.1), positive=positive,
                       max_iter=100000, **options)  # fmt: skip
    best = model.fit(X, y).coef_

    def cost(w):
        return ((y - X @ w) ** 2).sum() / 30 + strength * np.abs(w).sum() + 0.05 * (w**2).sum()

    with jax.enable_x64(True):
        for size in (0, 1e-6, 1e-2, 1.0, 10.0):
            w = best + size * rng.normal(size=10) * (rng.random(10) < 0.7)
            w = np.maximum(w, 0) if positive else w
            gap = float(solve.duality_gap(X, y, w, strength, l2=0.1, positive=positive))
            assert cost(w) - cost(best) - 1e-9 <= gap <= 50 * (cost(w) - cost(best)) + 1e-9


@pytest.mark.slow
def test_implicit_gradients_against_differences():
    X, y = data(n=30, p=10, seed=2)
    with jax.enable_x64(True):
        X, y = jnp.asarray(X), jnp.asarray(y)
        c = jnp.asarray(np.random.default_rng(3).normal(size=10))
        f = jax.jit(lambda X, y, strength: c @ solve.lasso(X, y, strength, tol=1e-13).value)
        grads = jax.grad(f, (0, 1, 2))(X, y, 0.1)
        rng = np.random.default_rng(4)
        h = 1e-6
        for i, point in enumerate((X, y, jnp.asarray(0.1))):
            u = jnp.asarray(rng.normal(size=point.shape))
            args = [X, y, jnp.asarray(0.1)]
            ahead, behind = (f(*[a + s * h * u if j == i else a for j, a in enumerate(args)])
                             for s in (1, -1))  # fmt: skip
            slope = (ahead - behind) / (2 * h)
            np.testing.assert_allclose(jnp.vdot(grads[i], u), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_jit_vmap_and_scan_agree_with_single_calls():
    problems = [data(n=25, p=15, seed=s) for s in range(3)]
    with jax.enable_x64(True):
        X, y = (jnp.asarray(np.stack(a)) for a in zip(*problems))
        strengths = jnp.array([0.3, 0.1, 0.02])
        together = jax.vmap(lambda X, y, strength: solve.lasso(X, y, strength, tol=1e-10).value)(
            X, y, strengths
        )
        for i in range(3):
            alone = solve.lasso(X[i], y[i], strengths[i], tol=1e-10).value
            np.testing.assert_allclose(together[i], alone, atol=1e-8)
        for path in (solve.lasso_path, solve.lasso_path_host):
            found = path(X[0], y[0], strengths, tol=1e-10)
            for row, strength in zip(found.value, strengths):
                single = solve.lasso(X[0], y[0], strength, tol=1e-10).value
                np.testing.assert_allclose(row, single, atol=1e-5)


@pytest.mark.slow
def test_degenerate_problems():
    one = solve.lasso(jnp.ones((1, 1)), jnp.array([2.0]), 0.5)
    np.testing.assert_allclose(one.value, [1.5], rtol=1e-5)
    X, y = (jnp.asarray(a, jnp.float32) for a in data(n=10, p=5))
    assert not solve.lasso(X, jnp.zeros(10), 0.1).value.any()
    assert not solve.lasso(jnp.zeros((10, 5)), y, 0.1).value.any()
    assert not solve.lasso(X, y, jnp.inf).value.any()
    top = solve.max_strength(X, y)
    assert not solve.lasso(X, y, 1.0001 * top).value.any()
    assert solve.lasso(X, y, 0.99 * top).value.any()
    with pytest.warns(UserWarning, match="least squares"):
        free = solve.lasso(X, y, 0.0)
    np.testing.assert_allclose(free.value, np.linalg.lstsq(X, y, rcond=None)[0], atol=1e-3)
    # Equal columns share a coefficient in some way; the prediction is the same.
    twice = jnp.concatenate([X, X[:, :1]], 1)
    a, b = solve.lasso(X, y, 0.1, tol=1e-5), solve.lasso(twice, y, 0.1, tol=1e-5)
    np.testing.assert_allclose(X @ a.value, twice @ b.value, atol=2e-2)
    dead = X.at[:, 2].set(0.0)
    assert solve.lasso(dead, y, 0.05).value[2] == 0


@pytest.mark.slow
def test_a_working_set_that_is_too_small_is_told():
    X, y = (jnp.asarray(a, jnp.float32) for a in data())
    found = solve.lasso(X, y, 0.01, working_set=3, throw=False)
    assert found.result == solve.Result.WORKING_SET and not found.converged
    with pytest.raises(RuntimeError, match="increase working_set"):
        solve.lasso(X, y, 0.01, working_set=3)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"X": np.full((4, 3), np.nan, np.float32)}, "NaN or infinity"),
        ({"y": np.ones(5, np.float32)}, "X's rows"),
        ({"strength": -1.0}, ">= 0"),
        ({"tol": 1e-9}, "float32"),
        ({"weights": np.zeros(3, np.float32)}, "weights must be > 0"),
        ({"w0": np.ones(4, np.float32)}, "w0 must have shape"),
    ],
)
def test_mistakes(change, match):
    rng = np.random.default_rng(0)
    given = {"X": rng.normal(size=(4, 3)).astype(np.float32), "y": np.ones(4, np.float32)}
    given = {**given, "strength": 0.1, **change}
    with pytest.raises(ValueError, match=match):
        solve.lasso(given.pop("X"), given.pop("y"), given.pop("strength"), **given)


@pytest.mark.slow
@pytest.mark.parametrize("path", [False, True])
def test_second_derivatives_against_differences(path):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        X = jnp.asarray(rng.normal(size=(20, 6)))
        y = X @ jnp.array([2.0, -1, 0, 0, 1.5, 0]) + 0.1 * rng.normal(size=20)

        def solved(strength, scale, l2):
            options: dict = {"l2": l2, "tol": 1e-13}
            if path:
                return solve.lasso_path(X, scale * y, strength * jnp.array([3.0, 1.0]), **options)
            return solve.lasso(X, scale * y, strength, **options)

        slope = jax.grad(lambda args: jnp.sum(solved(*args).value ** 2))
        at = jnp.array([0.1, 1.3, 0.2])
        steps = 1e-5 * jnp.eye(3)
        want = [(slope(at + step) - slope(at - step)) / 2e-5 for step in steps]
        found = jax.jacobian(slope)(at)
    assert np.all(np.abs(found) > 1e-3)
    np.testing.assert_allclose(found, np.stack(want), rtol=1e-6)


@pytest.mark.slow
def test_a_path_is_compiled_once():
    X, y = 2 * jnp.eye(3), jnp.array([3.0, 2.0, 1.0])
    solve.lasso_path(X, y, n_strengths=4)
    before = _lasso._path._cache_size()
    solve.lasso_path(2 * X, y + 1, n_strengths=4)
    assert _lasso._path._cache_size() == before


@pytest.mark.parametrize("positive", [False, True])
def test_cpp_and_xla_agree_for_every_way_of_mapping(positive):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((3, 20, 30)), rng.standard_normal((3, 20))
        strengths, weights = np.array([0.05, 0.2, 9.0, np.inf]), rng.uniform(0.5, 2, 30)

        def batch(implementation):
            def one(X, y, strength, l2):
                return solve.lasso(
                    X, y, strength, l2=l2, weights=weights, positive=positive, tol=1e-13,
                    implementation=implementation, throw=False,
                )  # fmt: skip

            def all_of(X, y):
                over = jax.vmap(jax.vmap(one, (None, None, 0, None)), (0, 0, None, None))
                return over(X, y, strengths, 0.1), jax.vmap(one, (None, 0, None, None))(
                    X[0], y, 0.1, 0.0
                )

            found = jax.jit(all_of)(X, y)
            slope = jax.grad(lambda X, y: sum(jnp.sum(f.value**2) for f in all_of(X, y)), (0, 1))
            return found, slope(X, y)

        (native, slope), (xla, expected) = batch("native"), batch("xla")
        for ours, theirs in zip(native, xla):
            np.testing.assert_allclose(ours.value, theirs.value, atol=1e-9)
            np.testing.assert_array_equal(ours.result, 0)
            np.testing.assert_allclose(ours.stats["gap"], theirs.stats["gap"], atol=1e-13)
            np.testing.assert_array_equal(ours.stats["support_size"], theirs.stats["support_size"])
        for found in (native[0], xla[0]):
            np.testing.assert_array_equal(found.stats["gap"][:, strengths > 1], 0)
        for ours, theirs in zip(slope, expected):
            np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_an_empty_batch_has_no_solutions():
    fits = jax.vmap(lambda y: solve.lasso(jnp.eye(3), y, 0.1))(jnp.zeros((0, 3)))
    assert fits.value.shape == (0, 3)


def test_without_a_compiler_xla_solves(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert solve.lasso(2 * jnp.eye(2), jnp.array([4.0, 1.0]), 1.0).value.tolist() == [1.5, 0.0]
    with pytest.raises(NotImplementedError, match="no-such-compiler"):
        solve.lasso(jnp.eye(2), jnp.ones(2), 0.1, implementation="native")


def test_a_program_in_xla_can_be_exported():
    export = jax.jit(lambda X, y: solve.lasso(X, y, 0.1, implementation="xla").value)
    shapes = jax.ShapeDtypeStruct((4, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)
    program = jax.export.export(export, platforms=("cpu", "cuda", "tpu"))(*shapes)
    X, y = jnp.eye(4)[:, :3], jnp.arange(4.0)
    np.testing.assert_allclose(program.call(X, y), solve.lasso(X, y, 0.1).value, atol=1e-5)


@pytest.mark.parametrize("solver", [solve.lasso, solve.lasso_host])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
@pytest.mark.parametrize("l2", [1e-3, 10.0])
def test_ridge_regression_of_features_in_different_units(solver, shape, l2):
    # The Gram matrix has the square of the condition of X.
    rng, (n, p) = np.random.default_rng(0), shape
    X, y = rng.normal(size=shape) * np.geomspace(1e-4, 1e4, p), rng.normal(size=n)
    X, y = X.astype(np.float32), y.astype(np.float32)

    def objective(w):
        w = np.asarray(w, np.float64)
        return np.mean((X @ w - y) ** 2) / 2 + l2 / 2 * w @ w

    with pytest.warns(UserWarning, match="least squares"):
        found = solver(X, y, 0.0, l2=l2)
    above = np.concatenate([X, np.sqrt(n * l2) * np.eye(p)]).astype(np.float64)
    exact = np.linalg.lstsq(above, np.concatenate([y, np.zeros(p)]), rcond=None)[0]
    assert objective(found.value) <= objective(exact) * (1 + 1e-4)
    assert found.stats["gap"] >= objective(found.value) - objective(exact) - 1e-12


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_within_shard_map(implementation):
    X, y = (jnp.asarray(np.stack([a, 2 * a]), jnp.float32) for a in data(n=20, p=10))
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")

    def own(X, y):
        return solve.lasso(X[0], y[0], 0.1, implementation=implementation).value[None]

    found = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=(spec, spec), out_specs=spec))(X, y)
    for each, a, b in zip(found, X, y):
        np.testing.assert_allclose(each, solve.lasso(a, b, 0.1).value, atol=1e-4)
