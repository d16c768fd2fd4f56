"""Two classes: sparse logistic regression."""

from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import validate_data

from .._host import Found
from .._model import Model
from ._cross_validation import CrossValidated
from ._linear import FORMATS, Linear, relative_weights


class _Classifier(ClassifierMixin, Linear):
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _model(self, p):
        return Model(loss="logistic")

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fits X (n, p), dense or sparse, and y (n,) of two classes; weights (n,) count samples."""
        X, y = validate_data(self, X, y, dtype=np.float64, accept_sparse=FORMATS)
        check_classification_targets(y)
        weights = relative_weights(sample_weight, X)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(y)}. For more classes use sklearn.multiclass.OneVsRestClassifier."
            )
        counted = np.unique(y if weights is None else y[weights > 0])
        if len(counted) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of two classes, got one class: {counted}."
            )
        self._keep(self._solve(X, np.where(y == self.classes_[1], 1.0, -1.0), weights))
        return self

    def _keep(self, found: Found) -> None:
        super()._keep(found)
        self.coef_, self.intercept_ = self.coef_[None], np.array([self.intercept_])

    def decision_function(self, X: Any) -> np.ndarray:
        """`X w + b`, (n,): positive for the second class."""
        return self._linear(X)[:, 0]

    def predict(self, X: Any) -> np.ndarray:
        """Classes (n,)."""
        second = self.decision_function(X) > 0
        return self.classes_[second.astype(int)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, 2)."""
        z = self.decision_function(X)
        return np.exp(-np.logaddexp(0, np.stack([z, -z], axis=1)))


class SparseLogisticRegression(_Classifier):
    r"""`min_{w, b} mean log(1 + exp(-y (X w + b))) + alpha |w|_1` for two classes.

    With `l1_ratio` below 1 the penalty is
    `alpha (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2)`. X may be dense or sparse.

    Args:
      alpha: Strength, > 0.
      l1_ratio: Fraction of the l1 norm, in (0, 1].
      fit_intercept: Whether to fit b, which is not penalised.
      positive: Whether coefficients must be >= 0.
      tol: Duality gap to reach, relative to the objective at w = 0.
      max_iter: Maximum number of working sets.

    Reference:
      Koh, Kim and Boyd, An Interior-Point Method for Large-Scale l1-Regularized Logistic
      Regression, 2007; Bertrand et al., skglm, 2022, arXiv 2204.07826 (working sets).

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import SparseLogisticRegression
      >>> X = np.array([[0.0, 1.0], [1.0, -1.0], [2.0, 0.5], [3.0, 0.0]])
      >>> SparseLogisticRegression(alpha=0.1).fit(X, ["a", "a", "b", "b"]).predict(X).tolist()
      ['a', 'a', 'b', 'b']
    """

    def __init__(
        self,
        alpha=0.01,
        *,
        l1_ratio=1.0,
        fit_intercept=True,
        positive=False,
        tol=1e-6,
        max_iter=100,
    ):
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.positive = positive
        self.tol = tol
        self.max_iter = max_iter


class SparseLogisticRegressionCV(CrossValidated, _Classifier):
    """Sparse logistic regression with the strength chosen by the log loss of folds left out.

    Args:
      alphas: Number of strengths, or the strengths.
      eps: Ratio of the last strength to the first, if their number is given.
      fit_intercept: Whether to fit an intercept.
      positive: Whether coefficients must be >= 0.
      cv: Folds, as in scikit-learn: stratified by default.
      tol: Duality gap to reach, relative to the objective at w = 0.
      max_iter: Maximum number of working sets per strength.
      n_jobs: Threads for the folds, as in scikit-learn.

    Example:
      >>> import numpy as np
      >>> from sparsejax.solve.estimators import SparseLogisticRegressionCV
      >>> X = np.random.default_rng(0).normal(size=(60, 4))
      >>> y = np.where(X[:, 0] + 0.1 * X[:, 1] > 0, "yes", "no")
      >>> SparseLogisticRegressionCV(alphas=5, cv=3).fit(X, y).score(X, y) > 0.9
      True
    """

    _losses: ClassVar[tuple[str, float]] = ("log_loss_path_", 1.0)
    _is_classifier: ClassVar[bool] = True

    def __init__(
        self,
        *,
        alphas=20,
        eps=1e-2,
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
