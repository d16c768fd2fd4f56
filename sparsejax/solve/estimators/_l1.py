"""The Lasso and the elastic net."""

from typing import Any

import numpy as np

from ._cross_validation import CrossValidated
from ._linear import Regressor, check_ratio


class Lasso(Regressor):
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


class ElasticNet(Regressor):
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


class LassoCV(CrossValidated, Regressor):
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


class ElasticNetCV(CrossValidated, Regressor):
    """The elastic net with the strength, and the l1_ratio of several, by cross-validation.

    Args:
      l1_ratio: Fraction of the l1 norm, in (0, 1], or several to choose from.
      alphas: Number of strengths, or the strengths.
      eps: Ratio of the last strength to the first, if their number is given.
      fit_intercept: Whether to fit an intercept.
      positive: Whether coefficients must be >= 0.
      cv: Folds, as in scikit-learn.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets per strength.
      n_jobs: Threads for the folds, as in scikit-learn.

    Reference:
      Zou and Hastie, Regularization and variable selection via the elastic net, 2005.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import ElasticNetCV
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> ElasticNetCV(l1_ratio=[0.5, 0.9], alphas=5).fit(X, 2 * X[:, 0]).coef_.round(1).tolist()
      [2.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        *,
        l1_ratio: Any = 0.5,
        alphas=100,
        eps=1e-3,
        fit_intercept=True,
        positive=False,
        cv=None,
        tol=1e-6,
        max_iter=100,
        n_jobs=None,
    ):
        self.l1_ratio = l1_ratio
        self.alphas = alphas
        self.eps = eps
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.n_jobs = n_jobs

    def _ratios(self):
        if np.ndim(self.l1_ratio) == 0:
            return check_ratio(self.l1_ratio)
        if np.size(self.l1_ratio) == 0:
            raise ValueError("l1_ratio must be a number in (0, 1], or several such as [0.5, 0.9].")
        return [check_ratio(ratio) for ratio in self.l1_ratio]
