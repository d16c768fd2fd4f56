"""The estimators keep scikit-learn's contract and agree with its own."""

import numpy as np
import pytest
import sklearn.linear_model as theirs
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sparsejax.solve import estimators as ours

ALL = [
    ours.Lasso(0.1),
    ours.ElasticNet(0.1),
    ours.LassoCV(alphas=4, cv=3, eps=1e-2),
    ours.ElasticNetCV(alphas=4, cv=3, eps=1e-2),
    ours.MultiTaskLasso(0.1),
    ours.GroupLasso(2, alpha=0.1),
    ours.GroupLassoCV(2, alphas=4, cv=3, eps=1e-2),
    ours.MCPRegression(0.1),
    ours.SCADRegression(0.1),
    ours.LHalfRegression(0.1),
    ours.SparseHuberRegression(0.1),
    ours.SparsePoissonRegression(0.1),
    ours.SparseLogisticRegression(0.01),
    ours.SparseLogisticRegressionCV(alphas=4, cv=3),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ALL)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([ours.Lasso(0.1), ours.SparseLogisticRegression(0.01)])
def test_the_quick_checks(estimator, check):
    if check.func.__name__ in (
        "check_estimators_nan_inf", "check_dont_overwrite_attributes", "check_n_features_in",
        "check_no_attributes_set_in_init", "check_parameters_default_constructible",
        "check_estimators_unfitted", "check_fit1d", "check_estimator_sparse_array",
    ):  # fmt: skip
        check(estimator)


@pytest.mark.slow
def test_against_scikit_learn_on_diabetes():
    X, y = load_diabetes(return_X_y=True)
    pairs = {
        "Lasso": (ours.Lasso(0.5, tol=1e-10), theirs.Lasso(0.5, tol=1e-12, max_iter=100_000)),
        "ElasticNet": (
            ours.ElasticNet(0.01, l1_ratio=0.3, tol=1e-10),
            theirs.ElasticNet(0.01, l1_ratio=0.3, tol=1e-12, max_iter=100_000),
        ),
        "positive": (
            ours.Lasso(0.1, positive=True, tol=1e-10),
            theirs.Lasso(0.1, positive=True, tol=1e-12, max_iter=100_000),
        ),
    }
    for mine, other in pairs.values():
        mine.fit(X, y), other.fit(X, y)
        np.testing.assert_allclose(mine.coef_, other.coef_, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(mine.intercept_, other.intercept_, rtol=1e-6)
        assert mine.score(X, y) == pytest.approx(other.score(X, y), abs=1e-6)


@pytest.mark.slow
def test_several_targets_and_classes():
    X, y = load_diabetes(return_X_y=True)
    Y = np.stack([y, -y / 2 + 3], axis=1)
    mine = ours.MultiTaskLasso(0.5, tol=1e-9).fit(X, Y)
    other = theirs.MultiTaskLasso(0.5, tol=1e-10, max_iter=100_000).fit(X, Y)
    np.testing.assert_allclose(mine.coef_, other.coef_, rtol=1e-3, atol=2e-2)
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    mine = ours.SparseLogisticRegression(0.02, tol=1e-7).fit(X, y)
    other = theirs.LogisticRegression(
        C=1 / (0.02 * len(y)), l1_ratio=1.0, solver="saga", tol=1e-8, max_iter=100_000
    ).fit(X, y)
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=2e-3)
    np.testing.assert_allclose(mine.intercept_, other.intercept_, atol=2e-3)
    assert (mine.coef_ == 0).sum() > 15
    np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), atol=1e-3)


def test_cross_validation_finds_the_strength_that_scikit_learn_finds():
    X, y = load_diabetes(return_X_y=True)
    alphas = np.geomspace(2, 0.02, 12)
    mine = make_pipeline(StandardScaler(), ours.LassoCV(alphas=alphas, cv=5)).fit(X, y)
    other = make_pipeline(StandardScaler(), theirs.LassoCV(alphas=alphas, cv=5)).fit(X, y)
    assert mine[-1].alpha_ == pytest.approx(other[-1].alpha_)
    np.testing.assert_allclose(mine[-1].mse_path_, other[-1].mse_path_, rtol=1e-3)


@pytest.mark.slow
def test_a_fit_that_is_cut_short_warns():
    X, y = load_diabetes(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="MultiTaskLasso did not reach tol"):
        ours.MultiTaskLasso(0.01, max_iter=1).fit(X, y[:, None])
