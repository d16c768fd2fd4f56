"""Regression with losses for outliers and for counts."""

import numpy as np

from ..._arguments import check_number
from .._model import Model, check_intercept, check_target
from ._linear import Regressor


class SparseHuberRegression(Regressor):
    r"""`min_{w, b} mean h(y - X w - b) + alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2)`.

    `h(r) = r^2 / 2` for `|r| <= delta`, and `delta |r| - delta^2 / 2` beyond: outliers in y count
    linearly.

    Args:
      alpha: Strength, > 0.
      delta: Where the loss becomes linear, in units of y; > 0.
      l1_ratio: Fraction of the l1 norm, in (0, 1].
      fit_intercept: Whether to fit b.
      positive: Whether coefficients must be >= 0.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets.

    Reference:
      Huber, Robust Estimation of a Location Parameter, 1964.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import SparseHuberRegression
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> y = 2 * X[:, 0] + 100 * (np.arange(30) == 7)
      >>> abs(SparseHuberRegression(alpha=0.01, delta=0.5).fit(X, y).coef_.round(1)).tolist()
      [2.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        alpha=1.0,
        *,
        delta=1.35,
        l1_ratio=1.0,
        fit_intercept=True,
        positive=False,
        tol=1e-6,
        max_iter=100,
    ):
        self.alpha = alpha
        self.delta = delta
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter

    def _model(self, p):
        check_number("delta", self.delta, "1.35")
        if not 0 < self.delta < np.inf:
            raise ValueError(f"delta must be > 0 and finite, got {self.delta}; 1.35 for example.")
        return Model(loss="huber", delta=float(self.delta))


class SparsePoissonRegression(Regressor):
    r"""`min_{w, b} mean (exp(X w + b) - y (X w + b)) + alpha |w|_1` for counts y.

    With `l1_ratio` below 1 the penalty is
    `alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2)`. `predict` returns means, `exp(X w + b)`.

    Args:
      alpha: Strength, > 0.
      l1_ratio: Fraction of the l1 norm, in (0, 1].
      fit_intercept: Whether to fit b.
      positive: Whether coefficients must be >= 0.
      tol: Duality gap to reach, relative to half the deviance at w = 0.
      max_iter: Maximum number of working sets.

    Reference:
      Friedman, Hastie and Tibshirani, Regularization Paths for Generalized Linear Models via
      Coordinate Descent, 2010.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import SparsePoissonRegression
      >>> X = np.random.default_rng(0).normal(size=(200, 4))
      >>> y = np.round(np.exp(X[:, 0] + 1))
      >>> SparsePoissonRegression(alpha=0.01).fit(X, y).coef_.round(1).tolist()
      [1.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self, alpha=1.0, *, l1_ratio=1.0, fit_intercept=True, positive=False, tol=1e-6, max_iter=100
    ):
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags

    def _model(self, p):
        return Model(loss="poisson")

    def _solve(self, X, y, sample_weight):
        check_target("poisson", y)
        if self.fit_intercept:
            check_intercept("poisson", y if sample_weight is None else y[sample_weight > 0])
        return super()._solve(X, y, sample_weight)

    def predict(self, X):
        """Means (n,)."""
        return np.exp(self._linear(X))
