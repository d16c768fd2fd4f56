"""A linear model with one coefficient per feature, fitted on the host in float64."""

import warnings
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..._arguments import check_count, check_number
from .._design import host_data
from .._host import Found
from .._lasso_host import fit_path
from .._model import Model

FORMATS = ["csc", "csr", "coo"]


class Linear(BaseEstimator):
    """`X @ coef_.T + intercept_`: sparse X, an intercept without a centred copy, sample weights."""

    tol: float
    max_iter: int
    alpha: float
    fit_intercept: bool
    positive: bool = False
    l1_ratio: Any = 1.0
    coef_: np.ndarray
    intercept_: Any
    # The statistic of the solver under the name by which the estimator reports it.
    _certificate: ClassVar[str] = "dual_gap_"

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _model(self, p: int) -> Model:
        """The loss and the penalty for p features."""
        return Model()

    def _weights(self, p: int) -> np.ndarray | None:
        """Weights of blocks, None for 1."""
        return None

    def _ratio(self) -> float:
        """The share of the norm that is not squared in the penalty."""
        return check_ratio(self.l1_ratio)

    def _solve(self, X: Any, y: np.ndarray, sample_weight: Any) -> Found:
        """The solution, after those that lead to it."""
        return self._path(X, y, sample_weight, [self.alpha])

    def _keep(self, found: Found) -> None:
        """Sets the attributes of a fit."""
        self.coef_ = found.value[-1]
        self.intercept_ = found.offset[-1] if found.offset.ndim == 2 else float(found.offset[-1])
        self.n_iter_ = int(found.stats["n_iter"][-1])
        setattr(self, self._certificate, float(found.stats["gap"][-1]))
        if found.result[-1]:
            message = f"{type(self).__name__} did not reach tol; increase max_iter or tol."
            warnings.warn(message, ConvergenceWarning, stacklevel=3)

    def _path(
        self, X: Any, y: np.ndarray, sample_weight: Any, alphas: Any, ratio: float | None = None
    ) -> Found:
        """Solutions for decreasing strengths, each from the one before."""
        self._check(alphas)
        alphas, ratio = np.asarray(alphas, np.float64), self._ratio() if ratio is None else ratio
        # One ridge holds for a path: each strength is solved by itself where it depends on them.
        if ratio < 1 and len(alphas) > 1:
            return _joined([self._path(X, y, sample_weight, [a], ratio) for a in alphas])
        l2 = 0.0 if np.isinf(alphas[0]) else float(alphas[0] * (1 - ratio))
        p, intercept = X.shape[1], None
        model = self._model(p)
        if model.loss == "squared":  # the mean of the losses, weighted
            rows = np.ones(y.shape[-1])
            if sample_weight is not None:
                rows = np.sqrt(sample_weight / sample_weight.mean())
                X = X.multiply(rows[:, None]) if issparse(X) else X * rows[:, None]
            y, intercept = y * rows, rows if self.fit_intercept else None
        else:
            samples = None if sample_weight is None else sample_weight / sample_weight.mean()
            model = model._replace(samples=samples, intercept=self.fit_intercept)
        design, _ = host_data(X, y[0] if y.ndim == 2 else y)
        return fit_path(
            design, y, alphas * ratio, intercept=intercept, weights=self._weights(p), l2=l2,
            tol=self.tol, positive=self.positive, max_steps=self.max_iter, w0=None, model=model,
        )  # fmt: skip

    def _check(self, alphas: Any) -> None:
        for name in ("fit_intercept", "positive"):
            if not isinstance(value := getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {value!r}.")
        check_count("max_iter", self.max_iter, 0)
        if self.tol is not None:
            check_number("tol", self.tol, "1e-6")
        for alpha in alphas:
            check_number("alpha", alpha, "0.1")
            if not alpha > 0:
                raise ValueError(
                    f"alpha must be > 0, got {alpha}; without a penalty use scikit-learn's "
                    "LinearRegression or LogisticRegression."
                )

    def _linear(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False, accept_sparse=FORMATS)
        return X @ self.coef_.T + self.intercept_


class Regressor(RegressorMixin, Linear):
    """A linear model of one target."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fits X (n, p), dense or sparse, and y (n,); weights (n,) count samples."""
        checks = {"dtype": np.float64, "y_numeric": True, "accept_sparse": FORMATS}
        X, y = validate_data(self, X, y, **checks)
        y = np.asarray(y, np.float64)
        self._keep(self._solve(X, y, relative_weights(sample_weight, X)))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions (n,), or (n, q) for several targets."""
        return self._linear(X)


def relative_weights(sample_weight: Any, X: Any) -> np.ndarray | None:
    """Weights of samples over the largest, so that sums and ratios of them are in range."""
    if sample_weight is None:
        return None
    return relative(_check_sample_weight(sample_weight, X, dtype=np.float64))


def relative(sample_weight: np.ndarray) -> np.ndarray:
    """Weights over the largest of them."""
    largest = sample_weight.max()
    if sample_weight.min() < 0 or largest == 0:
        raise ValueError(
            "sample_weight must be >= 0, and > 0 for one sample at least; with cross-validation in "
            "each fold, and among the samples outside of it."
        )
    return sample_weight / largest


def check_ratio(ratio: Any) -> float:
    """An l1_ratio in (0, 1]."""
    check_number("l1_ratio", ratio, "0.5")
    if not 0 < ratio <= 1:
        raise ValueError(f"l1_ratio must be in (0, 1], got {ratio}.")
    return float(ratio)


def _joined(parts: list[Found]) -> Found:
    stats = {name: np.concatenate([x.stats[name] for x in parts]) for name in parts[0].stats}
    value, offset, result = (
        np.concatenate([getattr(x, name) for x in parts]) for name in ("value", "offset", "result")
    )
    return Found(value, offset, result, stats)
