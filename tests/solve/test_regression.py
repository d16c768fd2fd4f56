"""Losses, groups and non-convex penalties on the host, against conditions and gaps in NumPy."""

import shutil

import jax
import numpy as np
import pytest
import scipy.sparse
import sklearn.linear_model as theirs
from scipy.special import xlogy
from sklearn.exceptions import ConvergenceWarning

from sparsejax import solve
from sparsejax.solve import estimators as ours
from sparsejax.solve._design import host_data
from sparsejax.solve._lasso_host import fit_path
from sparsejax.solve._model import Model, grouped

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
RNG = np.random.default_rng(0)
N, P = 60, 90
X = RNG.normal(size=(N, P)) * (RNG.random((N, P)) < 0.5) + 0.5 * (RNG.random((N, P)) < 0.5)
X[:, 20] = 0
SCORE = X[:, :4] @ np.array([1.0, -1.5, 1.0, 0.5]) + 0.3 * RNG.normal(size=N)
Y = {
    "squared": SCORE + 1,
    "logistic": np.where(SCORE > SCORE.mean(), 1.0, -1.0),
    "huber": SCORE + 20 * (RNG.random(N) < 0.1),
    "poisson": RNG.poisson(np.exp(SCORE / 2)).astype(float),
}
LABELS = RNG.permutation(np.arange(P) // 6)
SAMPLES = RNG.integers(0, 4, N).astype(float)
DELTA = 0.7
LAYOUTS = {"fortran": np.asfortranarray, "c": np.ascontiguousarray, "csc": scipy.sparse.csc_array}


def losses(loss, y, u):
    """Losses, minus their derivatives, and conjugates at -v as a function of v."""
    if loss == "logistic":
        entropy = lambda v: xlogy(y * v, y * v) + xlogy(1 - y * v, 1 - y * v)  # noqa: E731
        return np.log1p(np.exp(-y * u)), y / (1 + np.exp(y * u)), entropy
    if loss == "poisson":
        base = xlogy(y, y) - y
        entropy = lambda v: xlogy(y - v, y - v) - (y - v) - base  # noqa: E731
        return np.exp(u) - y * u + base, y - np.exp(u), entropy
    d, delta = y - u, DELTA if loss == "huber" else np.inf
    with np.errstate(invalid="ignore"):
        value = np.where(np.abs(d) <= delta, d * d / 2, delta * np.abs(d) - delta**2 / 2)
    return value, np.clip(d, -delta, delta), lambda v: v * v / 2 - v * y


def block_norms(v, labels):
    return np.sqrt(np.bincount(labels, v * v))


def fit(loss, strength, *, data=X, samples=None, intercept=True, weights=None, l2=0.0, labels=None,
        positive=False, tol=1e-12, how="native", y=None):  # fmt: skip
    y = Y[loss] if y is None else y
    start, member = (None, None) if labels is None else grouped(labels, data.shape[1])
    s = None if samples is None else samples / samples.mean()
    squared = loss == "squared"
    model = Model(
        loss, "l1" if labels is None else "groups", start, member, DELTA, samples=s,
        intercept=intercept and not squared,
    )  # fmt: skip
    column = np.ones(len(y)) if squared and intercept else None
    found = fit_path(
        host_data(data, y)[0], y, np.array([strength]), model=model, intercept=column,
        implementation=how, weights=weights, l2=l2, tol=tol, positive=positive, max_steps=200,
        w0=None,
    )  # fmt: skip
    return found.value[0], found.offset[0], found


def check(loss, strength, w, b, *, samples=None, intercept=True, weights=None, l2=0.0, labels=None,
          positive=False, y=None, limit=1e-5):  # fmt: skip
    """The optimality conditions; returns the duality gap over the objective at zero."""
    y, s = Y[loss] if y is None else y, np.ones(N) if samples is None else samples / samples.mean()
    labels = np.arange(P) if labels is None else np.unique(labels, return_inverse=True)[1]
    a = strength * (np.ones(labels.max() + 1) if weights is None else weights)
    value, theta, conjugate = losses(loss, y, X @ w + b)
    c = X.T @ (s * theta) / N - l2 * w
    if intercept:
        assert abs(np.mean(s * theta)) < 1e-7
    size = np.abs(w) if labels is None else block_norms(w, labels)
    if positive:
        assert (w >= 0).all()
        c = np.where(w == 0, np.maximum(c, 0), c)
    with np.errstate(invalid="ignore"):
        pull = np.where(w == 0, 0, a[labels] * w / np.where(size == 0, 1, size)[labels])
    active = (size > 0) | (a == 0)
    off = block_norms(np.where(np.isinf(a)[labels], 0, c - pull), labels)
    assert off[active].max(initial=0) < limit
    assert (block_norms(c, labels) <= a + limit)[~active].all()
    assert (size[np.isinf(a)] == 0).all()
    if l2 or (a == 0).any():
        return None
    scale = min(1, np.min(a / np.maximum(block_norms(c, labels), 1e-300)))
    # Conjugates are 0 times infinity for samples of weight 0.
    total = np.sum(np.where(s > 0, s * (value + conjugate(scale * theta)), 0)) / N
    return total + np.sum(np.where(size == 0, 0, a) * size)


FREE = np.where(np.arange(P) % 13 == 2, 0, np.where(np.arange(P) % 3, 1, np.inf))
OPTIONS = {
    "plain": {},
    "no intercept": {"intercept": False},
    "samples": {"samples": SAMPLES},
    "ridge": {"l2": 0.05},
    "positive": {"positive": True},
    "weights": {"weights": RNG.uniform(0.5, 2, P)},
    "free and forced": {"weights": FREE},
    "groups": {"labels": LABELS},
    "groups, weights": {"labels": LABELS, "weights": RNG.uniform(1, 3, 15), "l2": 0.02},
    "free group": {
        "labels": LABELS, "weights": np.r_[0, np.ones(13), np.inf], "samples": SAMPLES + 1,
    },
}  # fmt: skip


@compiled
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("loss", ["logistic", "huber", "poisson", "squared"])
def test_the_optimality_conditions(loss, name):
    if loss == "squared" and ("samples" in name or "labels" not in OPTIONS[name]):
        pytest.skip("tested in test_host.py")
    options = dict(OPTIONS[name])
    if loss == "squared":
        options.pop("samples", None)
    for strength in (0.1, 0.02):
        w, b, found = fit(loss, strength, **options)
        assert found.result[0] == 0
        gap = check(loss, strength, w, b, **options)
        assert 0 < np.count_nonzero(w) < P
        if gap is not None:
            np.testing.assert_allclose(found.stats["gap"][0], gap, atol=1e-9)
            assert gap < 1e-9


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_layouts_do_not_matter(loss, layout):
    labels = LABELS if loss == "squared" else None
    expected, b, _ = fit(loss, 0.05, labels=labels)
    for dtype, atol in ((np.float64, 1e-6), (np.float32, 1e-4)):
        data = LAYOUTS[layout](X.astype(dtype))
        w, offset, _ = fit(loss, 0.05, data=data, labels=labels, tol=1e-10)
        np.testing.assert_allclose(w, expected, atol=atol)
        assert offset == pytest.approx(b, abs=atol)


@compiled
def test_a_certificate_of_the_default_tolerance():
    for loss in Y:
        labels = LABELS if loss == "squared" else None
        w, b, _ = fit(loss, 0.05, tol=1e-6, labels=labels)
        gap = check(loss, 0.05, w, b, limit=1e-2, labels=labels)
        null, u = losses(loss, Y[loss], 0)[0].mean(), np.linspace(-5, 5, 2001)
        best = min(losses(loss, Y[loss], v)[0].mean() for v in u)
        assert gap <= 1.01e-6 * null and gap <= 1.1e-6 * best + 1e-12


@compiled
def test_logistic_regression_against_scikit_learn():
    y, strength = Y["logistic"], 0.03
    mine = ours.SparseLogisticRegression(strength, tol=1e-10).fit(X, y)
    options = {"l1_ratio": 1.0, "solver": "saga", "tol": 1e-9, "max_iter": 10**6}
    other = theirs.LogisticRegression(C=1 / (strength * N), **options).fit(X, y)
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-4)
    np.testing.assert_allclose(mine.intercept_, other.intercept_, atol=1e-4)
    np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), atol=1e-4)


@compiled
def test_poisson_with_a_ridge_against_scikit_learn():
    mine = ours.SparsePoissonRegression(0.1, l1_ratio=1e-9, tol=1e-12).fit(X, Y["poisson"])
    other = theirs.PoissonRegressor(alpha=0.1, tol=1e-10, max_iter=10**4).fit(X, Y["poisson"])
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-5)
    np.testing.assert_allclose(mine.predict(X), other.predict(X), rtol=1e-4)


@compiled
def test_huber_without_outliers_is_least_squares():
    mine = ours.SparseHuberRegression(0.05, delta=1e6, tol=1e-11).fit(X, Y["huber"])
    other = ours.Lasso(0.05, tol=1e-11).fit(X, Y["huber"])
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-6)
    far = ours.SparseHuberRegression(0.05, delta=0.5, tol=1e-10).fit(X, Y["huber"] + 1e3)
    near = ours.SparseHuberRegression(0.05, delta=0.5, tol=1e-10).fit(X, Y["huber"])
    np.testing.assert_allclose(far.coef_, near.coef_, atol=1e-5)


@compiled
@pytest.mark.parametrize("loss", Y)
def test_lasso_host_takes_losses_groups_and_an_intercept(loss):
    with jax.enable_x64(True):
        for labels, b in ((None, True), (LABELS, True), (LABELS, False)):
            options = {"loss": loss, "groups": labels, "intercept": b, "tol": 1e-11}
            options |= {"delta": DELTA} if loss == "huber" else {}
            found = solve.lasso_host(X, Y[loss], 0.05, **options)
            w, offset = np.asarray(found.value), float(found.stats["intercept"])
            check(loss, 0.05, w, offset, labels=labels, intercept=b)
            warm = solve.lasso_host(X, Y[loss], 0.05, w0=found.value, **options)
            assert warm.stats["n_rounds"] <= found.stats["n_rounds"]
            np.testing.assert_allclose(warm.value, w, atol=1e-5)
            for far in (np.nan, 1e200, -50.0):
                other = solve.lasso_host(X, Y[loss], 0.05, w0=np.full(P, far), **options)
                np.testing.assert_allclose(other.value, w, atol=1e-5)


def test_a_delta_that_no_loss_reads_is_refused():
    for loss in ("squared", "logistic", "poisson"):
        with pytest.raises(ValueError, match='delta=1.0 is only read by loss="huber"'):
            solve.lasso_host(X, Y[loss], 0.05, loss=loss, delta=1.0)


@compiled
def test_groups_agree_with_proximal_gradients():
    with jax.enable_x64(True):
        slow = solve.group_lasso(X, Y["squared"], 0.05, LABELS, weights=np.ones(15), tol=1e-7)
        fast = solve.lasso_host(X, Y["squared"], 0.05, groups=LABELS, tol=1e-12)
        np.testing.assert_allclose(fast.value, slow.value, atol=2e-3)
        slow = solve.logistic_lasso(X, Y["logistic"], 0.05, tol=1e-10)
        fast = solve.lasso_host(X, Y["logistic"], 0.05, loss="logistic", tol=1e-12)
        np.testing.assert_allclose(fast.value, slow.value, atol=1e-4)


@compiled
def test_several_targets_against_scikit_learn():
    targets = np.stack([Y["squared"], SCORE**2, -SCORE], axis=1)
    mine = ours.MultiTaskLasso(0.1, tol=1e-12)
    other = theirs.MultiTaskLasso(0.1, tol=1e-13, max_iter=10**5).fit(X, targets)
    for layout in LAYOUTS.values():
        mine.fit(layout(X), targets)
        np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-5)
        np.testing.assert_allclose(mine.intercept_, other.intercept_, atol=1e-4)
    repeated = np.repeat(np.arange(N), SAMPLES.astype(int))
    weighted = ours.MultiTaskLasso(0.1, tol=1e-12).fit(X, targets, sample_weight=SAMPLES)
    mine.fit(X[repeated], targets[repeated])
    np.testing.assert_allclose(mine.coef_, weighted.coef_, atol=1e-5)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("loss", ["squared", "logistic", "huber", "poisson"])
def test_without_a_compiler_the_solution_is_the_same(loss, name):
    if loss == "squared" and "labels" not in OPTIONS[name]:
        pytest.skip("tested in test_host.py")
    options = dict(OPTIONS[name])
    if loss == "squared":
        options.pop("samples", None)
    w, b, _ = fit(loss, 0.05, tol=1e-11, **options)
    # Without a bound of the curvature, steps of XLA stall at 4e-7 there with JAX 0.12.
    tol = 1e-6 if (loss, name) == ("poisson", "free group") else 1e-9
    other, offset, found = fit(loss, 0.05, tol=tol, how="xla", **options)
    assert found.result[0] == 0
    np.testing.assert_allclose(X @ other + offset, X @ w + b, atol=2e-3)


def test_zeros_of_groups_have_no_sign():
    rng = np.random.default_rng(0)
    samples, labels = rng.normal(size=(30, 12)), np.repeat(np.arange(4), 3)
    w = ours.GroupLasso(labels, alpha=0.5).fit(samples, samples[:, :3] @ [2.0, -1, 1]).coef_
    assert np.any(w != 0) and np.any(w == 0)
    assert not np.signbit(w[w == 0]).any()


@compiled
def test_labels_of_groups():
    ids = np.unique(LABELS, return_inverse=True)[1]
    expected = ours.GroupLasso(ids, alpha=0.05).fit(X, Y["squared"]).coef_
    names = np.array([f"g{i:02}" for i in ids])
    lists = [np.flatnonzero(ids == g) for g in range(15)]
    for groups in (names, list(names), lists, [x.tolist() for x in lists], 100 - ids):
        found = ours.GroupLasso(groups, alpha=0.05).fit(X, Y["squared"]).coef_
        np.testing.assert_allclose(found, expected, atol=1e-4)
    neighbours = ours.GroupLasso(6, alpha=0.05).fit(X, Y["squared"]).coef_
    by_label = ours.GroupLasso(np.arange(P) // 6, alpha=0.05).fit(X, Y["squared"]).coef_
    np.testing.assert_array_equal(neighbours, by_label)


def test_the_form_of_jax_takes_names_and_arrays_of_features():
    A, b = np.asarray(X[:, :4]), Y["squared"]
    expected = solve.group_lasso(A, b, 0.1, [0, 1, 0, 1]).value
    for groups in (["u", "v", "u", "v"], np.array(["u", "v"] * 2), [np.r_[0, 2], np.r_[1, 3]]):
        np.testing.assert_array_equal(solve.group_lasso(A, b, 0.1, groups).value, expected)


@compiled
def test_cross_validation():
    logistic = ours.SparseLogisticRegressionCV(alphas=8, eps=0.05, cv=4, tol=1e-10)
    logistic.fit(X, Y["logistic"])
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    train, test = next(iter(StratifiedKFold(4).split(X, Y["logistic"])))
    alone = ours.SparseLogisticRegression(logistic.alphas_[3], tol=1e-10)
    alone.fit(X[train], Y["logistic"][train])
    left = log_loss(Y["logistic"][test], alone.predict_proba(X[test]))
    assert logistic.log_loss_path_[3, 0] == pytest.approx(left, rel=1e-3)
    assert logistic.alpha_ == logistic.alphas_[logistic.log_loss_path_.mean(1).argmin()]
    largest = ours.SparseLogisticRegression(logistic.alphas_[0] * 1.0001).fit(X, Y["logistic"])
    smaller = ours.SparseLogisticRegression(logistic.alphas_[0] * 0.99).fit(X, Y["logistic"])
    assert not largest.coef_.any() and smaller.coef_.any()
    groups = ours.GroupLassoCV(LABELS, alphas=6, cv=3, n_jobs=2).fit(X, Y["squared"])
    edge = ours.GroupLasso(LABELS, alpha=groups.alphas_[0] * 1.0001).fit(X, Y["squared"])
    below = ours.GroupLasso(LABELS, alpha=groups.alphas_[0] * 0.99).fit(X, Y["squared"])
    assert not edge.coef_.any() and below.coef_.any()
    net = ours.ElasticNetCV(l1_ratio=[0.3, 0.9], alphas=6, cv=3, eps=0.01, tol=1e-9)
    other = theirs.ElasticNetCV(
        l1_ratio=[0.3, 0.9], alphas=6, cv=3, eps=0.01, tol=1e-9, max_iter=10**5
    )
    net.fit(X, Y["squared"]), other.fit(X, Y["squared"])
    assert net.alpha_ == pytest.approx(other.alpha_) and net.l1_ratio_ == other.l1_ratio_
    np.testing.assert_allclose(net.mse_path_, other.mse_path_, rtol=1e-4)


@compiled
@pytest.mark.parametrize("size", [1.0, 1e6, 1e9, 1e12])
def test_counts_of_any_size(size):
    # Poisson noise shrinks beside large counts: losses in the plain form would cancel.
    noise = np.sqrt(size) * np.random.default_rng(3).normal(size=N)
    y = np.round(np.maximum(size + noise, 0))
    strength = 0.02 * np.sqrt(size)
    mine = ours.SparsePoissonRegression(strength, tol=1e-5).fit(X, y)
    r = y - np.exp(X @ mine.coef_ + mine.intercept_)
    c = X.T @ r / N
    assert 0 < np.count_nonzero(mine.coef_) < P
    assert abs(r.mean()) < 1e-3 * strength + 1e-14 * size
    assert np.abs(c).max() < 1.1 * strength
    none = ours.SparsePoissonRegression(100 * strength).fit(X, y)
    assert not none.coef_.any()
    assert none.intercept_ == pytest.approx(np.log(y.mean()), rel=1e-9)


@compiled
@compiled
@pytest.mark.parametrize("far", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("loss", ["logistic", "huber", "poisson"])
def test_columns_far_from_0_beside_an_intercept(loss, far):
    """Predictions and coefficients are those of centred columns, dense and sparse."""
    means = far * np.arange(6)
    options = {"loss": loss, "intercept": True, "tol": 1e-10, "implementation": "native"}
    near = X[:, :6] - X[:, :6].mean(0)
    expected = solve.lasso_host(near, Y[loss], 0.02, **options)
    for layout in LAYOUTS.values():
        found = solve.lasso_host(layout(near + means), Y[loss], 0.02, **options)
        np.testing.assert_allclose(found.value, expected.value, atol=1e-5)
        shift = found.stats["intercept"] - expected.stats["intercept"]
        np.testing.assert_allclose(shift, -means @ np.asarray(found.value), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e8])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_constant_columns_in_groups_stay_out(loss, size):
    # With an intercept only rounding errors are left of them, multiplied by their size.
    A = np.c_[X[:, :3], np.full(N, size), X[:, 3:8], np.zeros(N), np.full(N, -size)]
    labels, weights = np.array([0] * 4 + [1] * 5 + [0, 2]), np.array([1.5, 2.0, 1.0])
    kept = np.r_[:3, 4:9]
    w, b, found = fit(loss, 0.02, data=A, labels=labels, weights=weights, y=Y[loss])
    v, offset, other = fit(
        loss, 0.02, data=A[:, kept], labels=labels[kept], weights=weights[:2], y=Y[loss]
    )
    assert found.result[0] == other.result[0] == 0
    assert w[[0, 1, 2]].all() and not w[[3, 9, 10]].any()
    np.testing.assert_allclose(w[kept], v, atol=1e-7)
    assert b == pytest.approx(offset, abs=1e-7)


@compiled
def test_folds_that_are_cut_short_warn():
    with (
        pytest.warns(ConvergenceWarning, match="LassoCV did not reach tol; "),
        pytest.warns(ConvergenceWarning, match="LassoCV did not reach tol in a fold"),
    ):
        ours.LassoCV(alphas=[0.01], cv=2, max_iter=0).fit(X, Y["squared"])


@compiled
def test_degenerate_data():
    y = Y["logistic"]
    for data in (X[:, :1], np.zeros((N, 3)), np.c_[X, X], X * 1e-8, X * 1e100):
        found = ours.SparseLogisticRegression(1e-3).fit(data, y)
        assert np.isfinite(found.coef_).all() and found.dual_gap_ <= 1e-6
    constant = ours.SparseLogisticRegression(10.0).fit(X, y)
    share = (y > 0).mean()
    assert not constant.coef_.any()
    assert constant.intercept_[0] == pytest.approx(np.log(share / (1 - share)))
    separable = ours.SparseLogisticRegression(1e-4).fit(X, np.where(X[:, 0] > 0.3, "a", "b"))
    assert separable.score(X, np.where(X[:, 0] > 0.3, "a", "b")) > 0.9
    explicit = scipy.sparse.csc_array(X)
    explicit.data[::7] = 0
    dense = ours.GroupLasso(6, alpha=0.05).fit(explicit.toarray(), SCORE).coef_
    np.testing.assert_allclose(
        ours.GroupLasso(6, alpha=0.05).fit(explicit, SCORE).coef_, dense, atol=1e-5
    )
    zero = ours.SparsePoissonRegression(0.1).fit(X, np.ones(N))
    assert not zero.coef_.any() and zero.intercept_ == pytest.approx(0, abs=1e-8)
    same = ours.GroupLasso(6, alpha=0.1).fit(X, np.full(N, 3.0))
    assert not same.coef_.any() and same.intercept_ == pytest.approx(3)
    wide = ours.GroupLasso(np.zeros(P), alpha=1e-3).fit(X, SCORE)
    assert wide.coef_.any() and wide.dual_gap_ <= 1e-6 * np.var(SCORE) / 2


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ours.SparseLogisticRegression().fit(X, np.ones(N)), ValueError, "one class"),
        (
            lambda: ours.SparseLogisticRegression().fit(
                X, Y["logistic"], sample_weight=(Y["logistic"] > 0).astype(float)
            ),
            ValueError,
            "one class",
        ),
        (lambda: ours.SparsePoissonRegression().fit(X, SCORE), ValueError, "counts >= 0"),
        (lambda: ours.SparsePoissonRegression().fit(X, 0 * SCORE), ValueError, "one count > 0"),
        (
            lambda: ours.SparsePoissonRegression().fit(
                X, Y["poisson"], sample_weight=(Y["poisson"] == 0).astype(float)
            ),
            ValueError,
            "one count > 0",
        ),
        (
            lambda: solve.lasso_host(X, 0 * SCORE, 0.1, loss="poisson", intercept=True),
            ValueError,
            "one count > 0",
        ),
        (
            lambda: solve.lasso_host(X, -np.ones(N), 0.1, loss="logistic", intercept=True),
            ValueError,
            r"both classes, -1 and 1, with an intercept, got -1\.0 only",
        ),
        (
            lambda: ours.SparseHuberRegression(delta=0).fit(X, SCORE),
            ValueError,
            "delta must be > 0",
        ),
        (lambda: ours.Lasso(positive="yes").fit(X, SCORE), TypeError, "positive must be True or"),
        (
            lambda: ours.SparseLogisticRegression(fit_intercept=None).fit(X, Y["logistic"]),
            TypeError,
            "fit_intercept must be True or",
        ),
        (lambda: ours.ElasticNetCV(l1_ratio=[]).fit(X, SCORE), ValueError, "l1_ratio must be"),
        (
            lambda: ours.LassoCV(cv=2).fit(X, SCORE, sample_weight=np.arange(N) < N // 2),
            ValueError,
            "in each fold",
        ),
        (
            lambda: ours.SparseLogisticRegression().fit(X, np.arange(N) % 3),
            ValueError,
            "multiclass. For more classes use",
        ),
        (lambda: ours.MCPRegression(gamma=1).fit(X, SCORE), ValueError, "gamma must be > 1"),
        (lambda: ours.SCADRegression(gamma="a").fit(X, SCORE), TypeError, "gamma='a' must be"),
        (lambda: ours.GroupLasso([0, 1]).fit(X, SCORE), ValueError, r"label per feature \(90,\)"),
        (lambda: ours.GroupLasso([[0, 1], [1]]).fit(X, SCORE), ValueError, "exactly one list"),
        (lambda: ours.GroupLasso(0).fit(X, SCORE), ValueError, "groups"),
        (lambda: ours.GroupLasso(6, weights=[1]).fit(X, SCORE), ValueError, "each of 15 groups"),
        (lambda: ours.MultiTaskLasso().fit(X, SCORE), ValueError, r"shape \(n, q\)"),
        (lambda: ours.MultiTaskLasso(0.0).fit(X, X[:, :2]), ValueError, "alpha must be > 0"),
        (lambda: solve.lasso_host(X, SCORE, 0.1, loss="logistic"), ValueError, "classes -1 and 1"),
        (lambda: solve.lasso_host(X, SCORE, 0.1, loss="l2"), (TypeError, ValueError), "loss"),
        (
            lambda: solve.lasso_host(X, SCORE, 0.0, groups=LABELS),
            ValueError,
            "strength must be > 0",
        ),
        (
            lambda: solve.lasso_host(X, SCORE, 0.1, groups=LABELS, positive=True),
            ValueError,
            "positive must be False",
        ),
        (
            lambda: ours.SparseLogisticRegression(l1_ratio=0).fit(X, Y["logistic"]),
            ValueError,
            "l1_r",
        ),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
