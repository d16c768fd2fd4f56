"""The Lasso family as scikit-learn estimators: `pip install "sparsejax[sklearn]"`."""

import concurrent.futures
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from .. import prox
from .._arguments import check_count, check_number
from . import multitask_lasso, penalized_regression
from ._design import host_data
from ._host import Found, geometric
from ._lasso_host import fit_path

try:
    from joblib import effective_n_jobs
    from scipy.sparse import issparse
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import check_cv
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        'sparsejax.solve.estimators needs scikit-learn: pip install "sparsejax[sklearn]".'
    ) from error

__all__ = ["ElasticNet", "Lasso", "LassoCV", "MultiTaskLasso", "SparseLogisticRegression"]


class _Linear(RegressorMixin, BaseEstimator):
    """A linear model `X @ coef_.T + intercept_`, fitted in float64."""

    fit_intercept: bool
    coef_: np.ndarray
    intercept_: Any

    def predict(self, X: Any) -> np.ndarray:
        """Predictions (n,), or (n, q) for several targets."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False, accept_sparse=self._sparse)
        return X @ self.coef_.T + self.intercept_

    _sparse: ClassVar[Any] = False


class _L1(_Linear):
    """Fitted on the host: sparse X, an intercept without a centred copy, weights of samples."""

    tol: float
    max_iter: int
    positive: bool = False
    _sparse: ClassVar[Any] = ["csc", "csr", "coo"]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fits X (n, p), dense or sparse, and y (n,); weights (n,) count samples."""
        checks = {"dtype": np.float64, "y_numeric": True, "accept_sparse": self._sparse}
        X, y = validate_data(self, X, y, **checks)
        y = np.asarray(y, np.float64)
        if sample_weight is not None:
            sample_weight = _relative(_check_sample_weight(sample_weight, X, dtype=np.float64))
        found = self._fit(X, y, sample_weight)
        self.coef_, self.intercept_ = found.value[-1], float(found.offset[-1])
        self.n_iter_, self.dual_gap_ = int(found.stats["n_iter"][-1]), float(found.stats["gap"][-1])
        if found.result[-1]:
            _warn(self)
        return self

    def _fit(self, X: Any, y: np.ndarray, sample_weight: Any) -> Found:
        return self._path(X, y, sample_weight, [self.alpha])  # pyright: ignore

    def _path(self, X: Any, y: np.ndarray, sample_weight: Any, alphas: Any, l2=0.0) -> Found:
        """Solutions for decreasing strengths, each from the one before."""
        check_count("max_iter", self.max_iter, 0)
        if self.tol is not None:
            check_number("tol", self.tol, "1e-6")
        for alpha in alphas:
            check_number("alpha", alpha, "0.1")
        alphas = np.asarray(alphas, np.float64)
        if not np.all(alphas > 0):
            raise ValueError(
                f"alpha must be > 0, got {alphas.min()}; for least squares use scikit-learn's "
                "LinearRegression or Ridge."
            )
        ones = np.ones(len(y))
        if sample_weight is not None:  # the mean of the losses, weighted
            ones = np.sqrt(sample_weight * (len(y) / sample_weight.sum()))
            X = X.multiply(ones[:, None]) if issparse(X) else X * ones[:, None]
        design, y = host_data(X, y * ones)
        return fit_path(
            design, y, alphas, intercept=ones if self.fit_intercept else None, weights=None,
            l2=l2, tol=self.tol, positive=self.positive, max_steps=self.max_iter, w0=None,
        )  # fmt: skip


def _relative(sample_weight: np.ndarray) -> np.ndarray:
    """Weights of samples over the largest, so that sums and ratios of them are in range."""
    largest = sample_weight.max()
    if sample_weight.min() < 0 or largest == 0:
        raise ValueError("sample_weight must be >= 0, and > 0 for one sample at least.")
    return sample_weight / largest


def _warn(estimator: Any) -> None:
    """Warns that max_iter was too small, as scikit-learn does."""
    message = f"{type(estimator).__name__} did not reach tol; increase max_iter or tol."
    warnings.warn(message, ConvergenceWarning, stacklevel=3)


class Lasso(_L1):
    """`min_w |y - X w|^2 / (2 n) + alpha |w|_1` by `solve.lasso_host`, X dense or sparse.

    Args:
      alpha: Strength, > 0.
      fit_intercept: Whether to fit an intercept.
      positive: Whether coefficients must be >= 0.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets.

    Reference:
      Massias, Gramfort and Salmon, Celer, 2018, arXiv 1802.07481.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import Lasso
      >>> X = np.array([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 0.0]])
      >>> Lasso(alpha=0.1).fit(X, 2 * X[:, 0] + 1).coef_.round(2).tolist()
      [1.92, 0.0]
    """

    def __init__(self, alpha=1.0, *, fit_intercept=True, positive=False, tol=1e-6, max_iter=100):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter


class ElasticNet(_L1):
    """`min_w |y - X w|^2 / (2 n) + alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2)`.

    Args:
      alpha: Strength, > 0.
      l1_ratio: Fraction of the l1 norm, in (0, 1].
      fit_intercept: Whether to fit an intercept.
      positive: Whether coefficients must be >= 0.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets.

    Reference:
      Zou and Hastie, Regularization and variable selection via the elastic net, 2005.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import ElasticNet
      >>> X = np.array([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 0.0]])
      >>> ElasticNet(alpha=0.1).fit(X, 2 * X[:, 0] + 1).coef_.round(2).tolist()
      [1.88, 0.0]
    """

    def __init__(
        self, alpha=1.0, *, l1_ratio=0.5, fit_intercept=True, positive=False, tol=1e-6, max_iter=100
    ):
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter

    def _fit(self, X, y, sample_weight):
        check_number("alpha", self.alpha, "0.1")
        check_number("l1_ratio", self.l1_ratio, "0.5")
        if not 0 < self.l1_ratio <= 1:
            raise ValueError(f"l1_ratio must be in (0, 1], got {self.l1_ratio}.")
        ridge = 0.0 if np.isinf(self.alpha) else self.alpha * (1 - self.l1_ratio)
        return self._path(X, y, sample_weight, [self.alpha * self.l1_ratio], ridge)


class LassoCV(_L1):
    """The Lasso with the strength chosen by cross-validation along a path.

    Args:
      alphas: Number of strengths, or the strengths.
      eps: Ratio of the last strength to the first, if their number is given.
      fit_intercept: Whether to fit an intercept.
      positive: Whether coefficients must be >= 0.
      cv: Folds, as in scikit-learn.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets per strength.
      n_jobs: Threads for the folds, as in scikit-learn.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import LassoCV
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> LassoCV(alphas=5).fit(X, 2 * X[:, 0] + 1).coef_.round(1).tolist()
      [2.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        *,
        alphas=100,
        eps=1e-3,
        fit_intercept=True,
        positive=False,
        cv=None,
        tol=1e-6,
        max_iter=100,
        n_jobs=None,
    ):
        self.alphas = alphas
        self.eps = eps
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.n_jobs = n_jobs

    def _fit(self, X, y, sample_weight):
        X = X.tocsr() if issparse(X) else X  # rows are taken
        self.alphas_ = self._alphas(X, y, sample_weight)

        def errors(fold):
            train, test = fold
            own = None if sample_weight is None else _relative(sample_weight[train])
            found = self._path(X[train], y[train], own, self.alphas_)
            left = (X[test] @ found.value.T + found.offset - y[test][:, None]) ** 2
            theirs = None if sample_weight is None else _relative(sample_weight[test])
            return np.average(left, axis=0, weights=theirs)

        folds = check_cv(self.cv).split(X, y)  # pyright: ignore
        threads = effective_n_jobs(self.n_jobs)  # pyright: ignore
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            self.mse_path_ = np.stack(list(pool.map(errors, folds)), axis=1)
        self.alpha_ = float(self.alphas_[self.mse_path_.mean(1).argmin()])
        return self._path(X, y, sample_weight, [self.alpha_])

    def _alphas(self, X, y, sample_weight):
        if np.ndim(self.alphas) == 1 and np.size(self.alphas):
            return np.sort(np.asarray(self.alphas, np.float64))[::-1]
        check_count("alphas", self.alphas)
        check_number("eps", self.eps, "1e-3")
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps must be in (0, 1], got {self.eps}; 1e-3 for example.")
        w = np.ones(len(y)) if sample_weight is None else sample_weight
        own = y - np.average(y, weights=w) if self.fit_intercept else y
        largest = np.abs(X.T @ (w * own)).max() / w.sum()
        return geometric(largest or 1.0, int(self.alphas), self.eps)


class MultiTaskLasso(_Linear):
    """`min_W |Y - X W|_F^2 / (2 n) + alpha sum_j |W_j|`: a common support for several targets.

    Args:
      alpha: Strength, > 0.
      fit_intercept: Whether to fit intercepts.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of steps.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import MultiTaskLasso
      >>> X = np.array([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 0.0]])
      >>> Y = X[:, :1] * np.array([2.0, -1.0])
      >>> MultiTaskLasso(alpha=0.1).fit(X, Y).coef_[:, 0].round(2).tolist()
      [1.93, -0.96]
    """

    def __init__(self, alpha=1.0, *, fit_intercept=True, tol=1e-6, max_iter=20_000):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags

    def fit(self, X: Any, y: Any) -> Any:
        """Fits X (n, p) and y (n, q)."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, multi_output=True)
        y = np.asarray(y, np.float64)
        if y.ndim == 1:
            raise ValueError("MultiTaskLasso: y must have shape (n, q); for one target use Lasso.")
        x_mean = X.mean(0) if self.fit_intercept else np.zeros(X.shape[1])
        y_mean = y.mean(0) if self.fit_intercept else 0.0 * y[0]
        with jax.enable_x64(True):
            centred = jnp.asarray(X - x_mean), jnp.asarray(y - y_mean)
            options = {"tol": self.tol, "max_steps": self.max_iter, "throw": False}
            found = multitask_lasso(*centred, self.alpha, **options)
            self.coef_ = np.asarray(found.value).T
            self.n_iter_, self.dual_gap_ = int(found.stats["n_iter"]), float(found.stats["gap"])
            converged = bool(found.converged)
        self.intercept_ = y_mean - x_mean @ self.coef_.T
        if not converged:
            _warn(self)
        return self


class SparseLogisticRegression(ClassifierMixin, BaseEstimator):
    """`min_{w, b} mean log(1 + exp(-y (X w + b))) + alpha |w|_1` for two classes.

    Args:
      alpha: Strength, > 0.
      fit_intercept: Whether to fit b, which is not penalised.
      tol: Distance of 0 from the subdifferential to reach, relative to that at w = 0.
      max_iter: Maximum number of steps.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import SparseLogisticRegression
      >>> X = np.array([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 0.0]])
      >>> SparseLogisticRegression(alpha=0.1).fit(X, ["a", "a", "b", "b"]).predict(X).tolist()
      ['a', 'a', 'b', 'b']
    """

    def __init__(self, alpha=0.01, *, fit_intercept=True, tol=1e-5, max_iter=20_000):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: Any, y: Any) -> Any:
        """Fits X (n, p) and y (n,) of two classes."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(y)}."
            )
        if len(self.classes_) < 2:
            raise ValueError(
                f"SparseLogisticRegression needs two classes, got one class: {self.classes_}."
            )
        sign = np.where(y == self.classes_[1], 1.0, -1.0)
        # The same problem with columns scaled to one size, and centred if b is fitted.
        mean = X.mean(0) if self.fit_intercept else np.zeros(X.shape[1])
        size = np.sqrt(np.mean((X - mean) ** 2, axis=0))
        size = np.where(size > 0, size, 1)
        columns, weights = (X - mean) / size, 1 / size
        if self.fit_intercept:
            columns, weights = np.c_[columns, np.ones(len(X))], np.r_[weights, 0]
        with jax.enable_x64(True):
            # Multiplied here, so that an infinite alpha leaves b unpenalised.
            inside = np.where(weights > 0, weights, 1) * self.alpha
            penalty = prox.l1(jnp.where(weights > 0, inside, 0))
            found = penalized_regression(
                jnp.asarray(columns), jnp.asarray(sign), penalty, loss="logistic",
                tol=self.tol, max_steps=self.max_iter, throw=False,
            )  # fmt: skip
            w, self.n_iter_ = np.asarray(found.value), int(found.stats["n_iter"])
            if not bool(np.all(found.converged)):
                _warn(self)
        coef = w[: X.shape[1]] / size
        self.coef_ = coef[None]
        self.intercept_ = (w[X.shape[1] :] if self.fit_intercept else np.zeros(1)) - mean @ coef
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """`X w + b`, (n,): positive for the second class."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_[0] + self.intercept_[0]

    def predict(self, X: Any) -> np.ndarray:
        """Classes (n,)."""
        second = self.decision_function(X) > 0
        return self.classes_[second.astype(int)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, 2)."""
        z = self.decision_function(X)
        second = np.exp(-np.logaddexp(0, -z))
        return np.stack([1 - second, second], axis=1)
