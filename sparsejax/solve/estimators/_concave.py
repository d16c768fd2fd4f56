"""Regression with MCP, SCAD and l_1/2, which leave large coefficients (almost) unbiased."""

from typing import ClassVar

from ..._arguments import check_number
from .._model import Model
from ._linear import Regressor


class MCPRegression(Regressor):
    r"""Least squares with the minimax concave penalty, at a stationary point.

    `min_w |y - X w|^2 / (2 n) + sum_j f(|w_j|)`, `f(u) = alpha u - u^2 / (2 gamma)` up to
    `gamma alpha`, constant beyond. Columns of mean square 1 are assumed: standardise X first.

    Args:
      alpha: Strength, > 0.
      gamma: Where the penalty becomes flat, as a multiple of alpha; > 1.
      fit_intercept: Whether to fit an intercept.
      tol: Largest distance of 0 from the subdifferential (`stationarity_`), relative to the largest
        correlation with y.
      max_iter: Maximum number of working sets.

    Reference:
      Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010, arXiv
      1002.4734; Bertrand et al., skglm, 2022, arXiv 2204.07826 (the criterion).

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import MCPRegression
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> MCPRegression(alpha=0.1).fit(X, 2 * X[:, 0] + 1).coef_.round(2).tolist()
      [2.0, 0.0, 0.0, 0.0]
    """

    _certificate: ClassVar[str] = "stationarity_"

    def __init__(self, alpha=1.0, *, gamma=3.0, fit_intercept=True, tol=1e-6, max_iter=100):
        self.alpha = alpha
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _model(self, p):
        return Model(shape="mcp", gamma=_checked(self.gamma, 1))


class SCADRegression(Regressor):
    r"""Least squares with the smoothly clipped absolute deviation, at a stationary point.

    `min_w |y - X w|^2 / (2 n) + sum_j f(|w_j|)`, where the slope of f is alpha up to alpha, falls
    to 0 at `gamma alpha`, and is 0 beyond. Columns of mean square 1 are assumed.

    Args:
      alpha: Strength, > 0.
      gamma: Where the penalty becomes flat, as a multiple of alpha; > 2.
      fit_intercept: Whether to fit an intercept.
      tol: As for `MCPRegression`.
      max_iter: Maximum number of working sets.

    Reference:
      Fan and Li, Variable selection via nonconcave penalized likelihood and its oracle properties,
      2001.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import SCADRegression
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> SCADRegression(alpha=0.1).fit(X, 2 * X[:, 0] + 1).coef_.round(2).tolist()
      [2.0, 0.0, 0.0, 0.0]
    """

    _certificate: ClassVar[str] = "stationarity_"

    def __init__(self, alpha=1.0, *, gamma=3.7, fit_intercept=True, tol=1e-6, max_iter=100):
        self.alpha = alpha
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _model(self, p):
        return Model(shape="scad", gamma=_checked(self.gamma, 2))


class LHalfRegression(Regressor):
    r"""Least squares with the square roots of the moduli, at a minimum of each coordinate.

    `min_w |y - X w|^2 / (2 n) + alpha sum_j |w_j|^(1/2)`. Every w_j is the minimum with the others
    held fixed; with curvature `q_j = |x_j|^2 / n` this is 0 up to a correlation of
    `1.5 alpha^(2/3) q_j^(1/3)`.

    Args:
      alpha: Strength, > 0, in units of `y^(3/2) X^(1/2)`.
      fit_intercept: Whether to fit an intercept.
      tol: Largest distance of a coordinate from its minimum times its curvature
        (`stationarity_`), relative to the largest correlation with y.
      max_iter: Maximum number of working sets.

    Reference:
      Xu, Chang, Xu and Zhang, L1/2 Regularization: A Thresholding Representation Theory and a
      Fast Solver, 2012; Bertrand et al., skglm, 2022, arXiv 2204.07826 (the criterion).

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import LHalfRegression
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> LHalfRegression(alpha=0.1).fit(X, 2 * X[:, 0] + 1).coef_.round(2).tolist()
      [1.96, 0.0, 0.0, 0.0]
    """

    _certificate: ClassVar[str] = "stationarity_"

    def __init__(self, alpha=1.0, *, fit_intercept=True, tol=1e-6, max_iter=100):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _model(self, p):
        return Model(shape="l_half")


def _checked(gamma, least: int) -> float:
    check_number("gamma", gamma, "3.0")
    if not gamma > least:
        raise ValueError(f"gamma must be > {least}, got {gamma}; 3.7 for example.")
    return float(gamma)
