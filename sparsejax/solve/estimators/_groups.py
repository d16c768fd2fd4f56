"""Features that enter together: the group Lasso, and the Lasso of several targets."""

from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from ..._arguments import check_count, is_int
from .._model import Model, grouped
from ._cross_validation import CrossValidated
from ._linear import FORMATS, Linear, Regressor, relative_weights


class _Groups(Linear):
    groups: Any
    weights: Any

    def _model(self, p):
        groups = self.groups
        if is_int(groups):
            check_count("groups", groups)
            groups = np.arange(p) // groups
        start, member = grouped(groups, p)
        return Model(shape="groups", start=start, member=member)

    def _weights(self, p):
        start = self._model(p).start
        assert start is not None
        sizes = np.diff(start)
        if self.weights is None:
            return np.sqrt(sizes)
        weights = np.asarray(self.weights, np.float64)
        if weights.shape != sizes.shape or not np.all(weights >= 0):
            raise ValueError(f"weights must be >= 0, one for each of {sizes.size} groups.")
        return weights


class GroupLasso(_Groups, Regressor):
    r"""`min_{w, b} |y - X w - b|^2 / (2 n) + alpha sum_g weights_g |w_g|`, X dense or sparse.

    Args:
      groups: A label per feature (p,), numbers or strings in any order; or disjoint lists or arrays
        of features; or the size of groups of neighbours.
      alpha: Strength, > 0.
      weights: A weight >= 0 per group, in the order of sorted labels or of the lists; 0 leaves a
        group unpenalised, infinity forces zeros. By default the square root of its size.
      fit_intercept: Whether to fit b.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets.

    Reference:
      Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006;
      Ndiaye et al., Gap Safe Screening Rules, 2017, arXiv 1611.05780.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import GroupLasso
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> y = X @ np.array([2.0, 0.0, -2.0, 0.0])
      >>> GroupLasso(["b", "a", "b", "a"], alpha=0.1).fit(X, y).coef_.round(1).tolist()
      [1.9, 0.0, -1.9, 0.0]
    """

    def __init__(
        self,
        groups: Any = 1,
        *,
        alpha=1.0,
        weights=None,
        fit_intercept=True,
        tol=1e-6,
        max_iter=100,
    ):
        self.groups = groups
        self.alpha = alpha
        self.weights = weights
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter


class GroupLassoCV(CrossValidated, _Groups, Regressor):
    """The group Lasso with the strength chosen by cross-validation along a path.

    Args:
      groups: As for `GroupLasso`.
      weights: As for `GroupLasso`.
      alphas: Number of strengths, or the strengths.
      eps: Ratio of the last strength to the first, if their number is given.
      fit_intercept: Whether to fit an intercept.
      cv: Folds, as in scikit-learn.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets per strength.
      n_jobs: Threads for the folds, as in scikit-learn.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import GroupLassoCV
      >>> X = np.random.default_rng(0).normal(size=(30, 4))
      >>> y = X @ np.array([2.0, 0.0, -2.0, 0.0])
      >>> GroupLassoCV([0, 1, 0, 1], alphas=5).fit(X, y).coef_[::2].round(1).tolist()
      [2.0, -2.0]
    """

    def __init__(
        self,
        groups: Any = 1,
        *,
        weights=None,
        alphas=100,
        eps=1e-3,
        fit_intercept=True,
        cv=None,
        tol=1e-6,
        max_iter=100,
        n_jobs=None,
    ):
        self.groups = groups
        self.weights = weights
        self.alphas = alphas
        self.eps = eps
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.n_jobs = n_jobs


class MultiTaskLasso(Regressor):
    """`min_W |Y - X W|_F^2 / (2 n) + alpha sum_j |W_j|`: a common support for several targets.

    Args:
      alpha: Strength, > 0.
      fit_intercept: Whether to fit intercepts.
      tol: Duality gap to reach, relative to the objective at 0.
      max_iter: Maximum number of working sets.

    Reference:
      Obozinski, Taskar and Jordan, Joint covariate selection and joint subspace selection for
      multiple classification problems, 2010.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import MultiTaskLasso
      >>> X = np.array([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 0.0]])
      >>> Y = X[:, :1] * np.array([2.0, -1.0])
      >>> MultiTaskLasso(alpha=0.1).fit(X, Y).coef_[:, 0].round(2).tolist()
      [1.93, -0.96]
    """

    def __init__(self, alpha=1.0, *, fit_intercept=True, tol=1e-6, max_iter=100):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fits X (n, p), dense or sparse, and y (n, q); weights (n,) count samples."""
        checks = {"dtype": np.float64, "y_numeric": True, "accept_sparse": FORMATS}
        X, y = validate_data(self, X, y, multi_output=True, **checks)
        if y.ndim == 1:
            raise ValueError("MultiTaskLasso: y must have shape (n, q); for one target use Lasso.")
        targets = np.ascontiguousarray(np.asarray(y, np.float64).T)
        self._keep(self._solve(X, targets, relative_weights(sample_weight, X)))
        return self
