"""The Lasso on the host: C++ against XLA and scikit-learn, in every layout of the data."""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import sklearn.linear_model as theirs
from jax.experimental import sparse

import sparsejax as sj
from sparsejax import solve
from sparsejax.contrib import retrieval
from sparsejax.solve import Result, _lasso_host, estimators as ours

RNG = np.random.default_rng(0)
N, P = 40, 60
X = RNG.normal(size=(N, P)) * (RNG.random((N, P)) < 0.4)
X[:, 20] = 0
Y = X[:, :5] @ np.array([1.0, -2.0, 1.5, 1.0, -1.0]) + 3 * X[:, 10] + 0.1 * RNG.normal(size=N)
WEIGHTS = RNG.uniform(0.5, 2, P)

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def unsorted(X):
    """Entries of each column from the last to the first, some in two parts, some stored zeros."""
    coo = scipy.sparse.coo_array(X)
    row, col = coo.coords
    row, col = np.r_[row[::-1], row[:9], 0, 1], np.r_[col[::-1], col[:9], 20, 20]
    data = np.r_[coo.data[::-1], np.zeros(9), 0, 0]
    data[-11:-2], data[:-11][::-1][:9] = coo.data[:9] / 4, 3 * coo.data[:9] / 4
    return scipy.sparse.coo_array((data.astype(X.dtype), (row, col)), X.shape)


def wide_indices(X):
    found = scipy.sparse.csc_array(X)
    found.indices, found.indptr = found.indices.astype(np.int64), found.indptr.astype(np.int64)
    return found


LAYOUTS = {
    "fortran": np.asfortranarray,
    "c": np.ascontiguousarray,
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "csc": scipy.sparse.csc_array,
    "csr": scipy.sparse.csr_matrix,
    "coo": unsorted,
    "csc, int64": wide_indices,
    "bcoo": lambda X: sparse.BCOO.fromdense(X, nse=1 + np.count_nonzero(X)),
    "bcsr": lambda X: sparse.BCSR.fromdense(X),
}
OPTIONS = {
    "plain": {},
    "ridge": {"l2": 0.3},
    "positive": {"positive": True},
    "weights": {"weights": WEIGHTS},
    "never": {"weights": np.where(np.arange(P) % 3, WEIGHTS, np.inf)},
    "free": {"weights": np.where(np.arange(P) % 11 == 10, 0, WEIGHTS)},
    "free, ridge": {"weights": np.where(np.arange(P) % 11 == 10, 0, WEIGHTS), "l2": 0.3},
}


def violation(w, strength, weights=None, l2=0.0, positive=False):
    """The largest violation of the optimality conditions, in NumPy."""
    a = strength * (np.ones(P) if weights is None else weights)
    c = X.T @ (Y - X @ w) / N - l2 * w
    on = (w != 0) | (a == 0)
    inside = np.maximum((c if positive else np.abs(c)) - a, 0)
    with np.errstate(invalid="ignore"):
        return np.max(np.where(on, np.abs(c - np.where(w == 0, 0, a * np.sign(w))), inside))


@compiled
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("share", [0.5, 0.05, 0.005])
def test_both_implementations_meet_the_optimality_conditions(name, share):
    with jax.enable_x64(True):
        strength = share * float(solve.max_strength(X, Y))
        # With a ridge the certificate is of second order: a gap of 1e-13 leaves errors of 1e-7.
        tol = 1e-14 if "l2" in OPTIONS[name] else 1e-13
        found = {
            how: np.asarray(
                solve.lasso_host(X, Y, strength, tol=tol, implementation=how, **OPTIONS[name]).value
            )
            for how in ("native", "xla")
        }
        for w in found.values():
            assert violation(w, strength, **OPTIONS[name]) < 1e-6
        np.testing.assert_allclose(X @ found["native"], X @ found["xla"], atol=1e-7)


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_layouts_do_not_matter(layout, dtype):
    with jax.enable_x64(True):
        data, y = LAYOUTS[layout](X.astype(dtype)), Y.astype(dtype)
        found = solve.lasso_host(data, y, 0.05, weights=OPTIONS["free"]["weights"])
        assert found.value.dtype == dtype
        limit = {np.float64: 1e-6, np.float32: 1e-3}[dtype]
        assert violation(np.float64(found.value), 0.05, OPTIONS["free"]["weights"]) < limit
        path = solve.lasso_path_host(data, y, n_strengths=5)
        np.testing.assert_allclose(
            path.value[-1], solve.lasso_host(data, y, path.stats["strengths"][-1]).value, atol=1e-2
        )


@compiled
def test_the_gap_of_each_solution_alone_is_small():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(150, 400))
    y = X[:, :20] @ rng.normal(size=20) + rng.normal(size=150)
    with jax.enable_x64(True):
        path = solve.lasso_path_host(X, y, n_strengths=60)
        pairs = zip(path.value, path.stats["strengths"])
        gaps = [float(solve.duality_gap(X, y, w, strength)) for w, strength in pairs]
    # Not those of a dual point that another vector has left behind.
    assert max(gaps) <= 1.01e-6 * (y @ y) / 300
    np.testing.assert_allclose(gaps, path.stats["gap"], rtol=1e-3, atol=1e-12)


def test_without_float64_in_jax_data_of_float64_are_solved_in_it():
    found = solve.lasso_host(X, Y, 0.05, tol=1e-12)
    assert found.value.dtype == jnp.float32 and found.stats["gap"] < 1e-11


def test_without_a_compiler_it_is_told_once(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    _lasso_host._tell.cache_clear()
    with pytest.warns(UserWarning, match="solved in XLA, slower than in C.*CXX"):
        slow = solve.lasso_host(scipy.sparse.csc_array(X), Y, 0.05)
    again = solve.lasso_host(X, Y, 0.05)  # warnings are errors here
    np.testing.assert_allclose(slow.value, again.value, atol=1e-5)
    _lasso_host._tell.cache_clear()
    with pytest.raises(NotImplementedError, match="no-such-compiler"):
        solve.lasso_host(X, Y, 0.05, implementation="native")


@compiled
def test_scales_that_leave_the_float_range():
    with jax.enable_x64(True):
        expected = np.asarray(solve.lasso_host(X, Y, 0.05).value)
        for x, y in ((1e-150, 1.0), (1e150, 1e20), (1.0, 1e-200)):
            found = solve.lasso_host(X * x, Y * y, 0.05 * x * y, implementation="native")
            np.testing.assert_allclose(found.value * x / y, expected, atol=1e-3)
    # A solution of 1e150 is no float32, the dtype of the value here.
    found = solve.lasso_host(X * 1e-150, Y, 0.05e-150, throw=False)
    assert found.result == Result.NONFINITE


@compiled
@pytest.mark.parametrize("how", ["native", "xla"])
def test_strengths_in_any_memory_order(how):
    y = 0.75 * Y / np.abs(Y).max()  # of a size that is not scaled
    strengths = np.geomspace(0.001, 0.1, 4)
    expected = solve.lasso_path_host(X, y, strengths[::-1].copy(), implementation=how).value
    for given in (strengths[::-1], np.repeat(strengths[::-1], 2)[::2]):
        found = solve.lasso_path_host(X, y, given, implementation=how).value
        np.testing.assert_array_equal(found, expected)


@compiled
@pytest.mark.parametrize("how", ["native", "xla", "jit"])
@pytest.mark.parametrize("size", [np.inf, -np.inf, 1e300, 1e100, np.nan])
def test_an_initial_value_worse_than_0_is_not_used(how, size):
    jitted, host = solve.lasso, partial(solve.lasso_host, implementation=how)
    w0, lasso = np.full(P, size), jitted if how == "jit" else host
    found = lasso(X, Y, 0.05, w0=w0)
    assert violation(np.float64(found.value), 0.05) < 1e-2 and found.stats["gap"] < 1e-4
    assert not lasso(X, 0 * Y, 0.05, w0=w0, weights=1 + np.arange(P) % 2).value.any()


@compiled
def test_free_features_with_a_ridge_may_be_positive():
    free = np.where(np.arange(P) % 11 == 10, 0, 1.0)
    found = solve.lasso_host(X, Y, 0.05, weights=free, l2=0.3, positive=True)
    w = np.float64(found.value)
    slope = X.T @ (Y - X @ w) / N - 0.3 * w - 0.05 * free
    assert np.all(w >= 0) and np.all(slope < 1e-3) and np.all(np.abs(slope[w > 0]) < 1e-3)


@compiled
def test_products_that_leave_the_float_range_are_not_free():
    with jax.enable_x64(True):
        least = solve.lasso_host(X, Y, 1e-200, weights=np.full(P, 1e-200), tol=1e-12)
        np.testing.assert_allclose(X @ least.value, Y, atol=1e-3)
        huge = solve.lasso_host(X, Y * 1e300, 0.05e300, implementation="native")
        expected = solve.lasso_host(X, Y, 0.05, implementation="native").value
        np.testing.assert_allclose(huge.value / 1e300, expected, atol=1e-6)


def test_a_path_where_every_solution_is_0():
    never = np.full(P, np.inf)
    for found in (
        solve.lasso_path_host(X, 0 * Y, n_strengths=2),
        solve.lasso_path_host(X, Y, n_strengths=2, weights=never),
    ):
        assert not found.value.any() and np.all(found.stats["strengths"] > 0)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: solve.lasso_host([[1.0]], Y, 0.1), TypeError, "sparse data of SciPy or JAX"),
        (lambda: solve.lasso_host(X.astype(str), Y, 0.1), TypeError, "must hold numbers"),
        (lambda: solve.lasso_host(X + 0j, Y, 0.1), TypeError, "must be real"),
        (lambda: solve.lasso_host(X, Y, 0.1, w0=np.ones(P) + 1j), TypeError, "w0 must be real"),
        (lambda: solve.lasso_host(scipy.sparse.csc_array(X), Y[:3], 0.1), ValueError, "y must"),
        (
            lambda: solve.lasso_host(scipy.sparse.csc_array(X * np.nan), Y, 0.1),
            ValueError,
            "X holds NaN",
        ),
        (
            lambda: solve.lasso_host(X, Y, 0.1, weights=np.zeros(P), positive=True),
            ValueError,
            "weights must be > 0 with positive",
        ),
        (
            lambda: solve.lasso_host(X, Y, 0.1, implementation="fortran"),
            ValueError,
            "implementation",
        ),
        (lambda: solve.lasso_path_host(X, Y, np.array([1.0, 0.0])), ValueError, "strengths must"),
        (
            lambda: solve.lasso_host(sparse.BCOO.fromdense(X[None], n_batch=1), Y, 0.1),
            ValueError,
            "n_batch=1",
        ),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()


@compiled
def test_a_limit_of_steps_is_told():
    found = solve.lasso_host(X, Y, 0.005, tol=1e-12, max_steps=0, throw=False)
    assert found.result == Result.MAX_STEPS
    with pytest.raises(RuntimeError, match="tolerance was not reached"):
        solve.lasso_host(X, Y, 0.005, tol=1e-12, max_steps=0)


@compiled
@pytest.mark.parametrize("layout", ["fortran", "c", "csr"])
@pytest.mark.parametrize("counts", [False, True])
def test_estimators_agree_with_scikit_learn(layout, counts):
    data = LAYOUTS[layout](X + (3 if layout != "csr" else 0))  # far from centred
    weight = RNG.integers(0, 4, N).astype(float) if counts else None
    pairs = [
        (ours.Lasso(0.05, tol=1e-10), theirs.Lasso(0.05, tol=1e-12, max_iter=10**6)),
        (
            ours.ElasticNet(0.05, l1_ratio=0.3, tol=1e-10),
            theirs.ElasticNet(0.05, l1_ratio=0.3, tol=1e-12, max_iter=10**6),
        ),
    ]
    for mine, other in pairs:
        mine.fit(data, Y, sample_weight=weight), other.fit(data, Y, sample_weight=weight)
        np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-6)
        assert mine.intercept_ == pytest.approx(other.intercept_, abs=1e-5)
        np.testing.assert_allclose(mine.predict(data), other.predict(data), atol=1e-5)


@compiled
def test_cross_validation_takes_sparse_data_weights_and_threads():
    data, weight = scipy.sparse.csr_array(X), RNG.integers(1, 4, N).astype(float)
    options = {"alphas": 10, "cv": 4}
    mine = ours.LassoCV(**options, eps=0.05, n_jobs=2).fit(data, Y, sample_weight=weight)
    other = theirs.LassoCV(**options, eps=0.05, tol=1e-8, max_iter=10**5)
    other.fit(scipy.sparse.csc_matrix(data), Y, sample_weight=weight)
    np.testing.assert_allclose(mine.mse_path_, other.mse_path_, rtol=1e-3)
    assert mine.alpha_ == pytest.approx(other.alpha_)


@compiled
@pytest.mark.parametrize("layout", ["fortran", "c", "csc"])
@pytest.mark.parametrize("mean", [1e3, 1e6, 1e9])
def test_an_intercept_takes_away_large_means(layout, mean):
    shift = np.where(np.arange(P) % 3, 0, mean)
    far = LAYOUTS[layout](X + shift)
    near = X + shift - shift  # as the sum was rounded
    expected = ours.Lasso(0.05, tol=1e-10).fit(near, Y)
    kept = far.copy()
    found = ours.Lasso(0.05, tol=1e-10).fit(far, Y)
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-6)
    assert abs(far - kept).max() == 0


@compiled
def test_only_the_ratios_of_sample_weights_matter():
    weight = RNG.integers(0, 4, N).astype(float)
    expected = ours.Lasso(0.05).fit(X, Y, sample_weight=weight).coef_
    for size in (1e-320, 1e307):
        found = ours.Lasso(0.05).fit(X, Y, sample_weight=weight * size).coef_
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    "fit, error, message",
    [
        (lambda: ours.Lasso(0.1).fit(X, Y, -np.ones(N)), ValueError, "sample_weight must be >= 0"),
        (lambda: ours.Lasso("a").fit(X, Y), TypeError, "alpha='a' must be a number"),
        (lambda: ours.Lasso(None).fit(X, Y), TypeError, "alpha=None must be a number"),
        (lambda: ours.Lasso(0.1, max_iter=2.5).fit(X, Y), TypeError, "max_iter=2.5 must be an int"),
        (lambda: ours.Lasso(0.1, max_iter=-1).fit(X, Y), ValueError, "max_iter=-1 must be an int"),
        (lambda: ours.Lasso(0.1, tol="a").fit(X, Y), TypeError, "tol='a' must be a number"),
        (lambda: ours.ElasticNet(l1_ratio="a").fit(X, Y), TypeError, "l1_ratio='a' must be a num"),
        (lambda: ours.LassoCV(alphas=0).fit(X, Y), ValueError, "alphas=0 must be an integer"),
        (lambda: ours.LassoCV(alphas=[]).fit(X, Y), TypeError, "alphas=.* must be an integer"),
        (lambda: ours.LassoCV(alphas=None).fit(X, Y), TypeError, "alphas=None must be an integer"),
        (lambda: ours.LassoCV(eps=2).fit(X, Y), ValueError, "eps must be in"),
        (lambda: ours.LassoCV(eps="a").fit(X, Y), TypeError, "eps='a' must be a number"),
    ],
)
def test_mistakes_in_estimators(fit, error, message):
    with pytest.raises(error, match=message):
        fit()


def test_small_data_are_not_empty():
    X = np.random.default_rng(1).normal(size=(50, 5)) * 1e-2
    y = X[:, 0] * 2
    mine = ours.Lasso(alpha=1e-4, fit_intercept=False).fit(X, y)
    other = theirs.Lasso(alpha=1e-4, fit_intercept=False, tol=1e-12).fit(X, y)
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-6)
    constant = ours.Lasso(alpha=0.1, positive=True).fit(X, np.full(50, 3.0))
    assert not constant.coef_.any() and constant.intercept_ == pytest.approx(3)


def _moved(matrix, part, value):
    """A SciPy matrix of which an index was assigned to; SciPy itself does not notice."""
    matrix = matrix.copy()
    getattr(matrix, part)[2] = value
    return matrix


SPARSE = scipy.sparse.csc_array(np.where(np.abs(X) > 0.5, X, 0))
ASTRAY = {
    **{f"{kind} {part} {value}": (kind, part, value)
       for kind in ("csc", "csr") for part in ("indices", "indptr") for value in (10**8, -(10**8))},
    "bsr": ("bsr", "indices", 10**6), "coo": ("coo", "row", 10**8), "negative": ("coo", "col", -1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ASTRAY)
def test_indices_outside_of_a_sparse_matrix_are_refused(kind):
    """Compiled code would read, and SciPy write, whatever is there: a segmentation fault."""
    form, *change = ASTRAY[kind]
    damaged = _moved(SPARSE.asformat(form), *change)
    calls = {
        "X": lambda: solve.lasso_host(damaged, Y, 0.1),
        "matrix": lambda: sj.formats.from_sparse(damaged, block=1),
        "from_sparse: matrix": lambda: retrieval.InvertedIndex.from_sparse(damaged),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name} of shape .* must be a valid sparse matrix"):
            call()


def test_indices_outside_of_a_sparse_matrix_of_jax():
    matrix = sparse.BCSR.from_scipy_sparse(SPARSE.tocsr())
    damaged = sparse.BCSR(
        (matrix.data, matrix.indices.at[2].set(10**8), matrix.indptr), shape=matrix.shape
    )
    with pytest.raises(ValueError, match="X of shape .* must be a valid sparse matrix"):
        solve.lasso_host(damaged, Y, 0.1)
    entries = sparse.BCOO.from_scipy_sparse(SPARSE)
    damaged = sparse.BCOO((entries.data, entries.indices.at[2, 0].set(-1)), shape=entries.shape)
    with pytest.raises(ValueError, match="X of shape .* must have indices >= 0"):
        solve.lasso_host(damaged, Y, 0.1)


def test_duplicates_of_small_integers_do_not_wrap():
    """100 + 100 is -56 in int8."""
    where, twice = (np.array([0, 0, 1]),) * 2, np.array([100, 100, 1], np.int8)
    y = np.array([400.0, -3.0])
    expected = solve.lasso_host(np.diag([200.0, 1.0]), y, 0.1).value
    for X in (scipy.sparse.coo_array((twice, where), (2, 2)),
              sparse.BCOO((jnp.asarray(twice), jnp.stack(where, 1)), shape=(2, 2))):  # fmt: skip
        np.testing.assert_allclose(solve.lasso_host(X, y, 0.1).value, expected, rtol=1e-5)
