"""The strength chosen by cross-validation along a path."""

import concurrent.futures
import warnings
from typing import Any, ClassVar

import numpy as np
from joblib import effective_n_jobs
from scipy.sparse import issparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv

from ..._arguments import check_count, check_number
from .._host import Found, geometric, inner
from .._model import largest_bound, objective, pull
from ._linear import Linear, relative

# Products of left-out samples up to which the threads of BLAS take longer than one loop.
_FEW = 2**21


class CrossValidated(Linear):
    """Selects the strength with the smallest mean loss over folds that were left out."""

    alphas: Any
    eps: float
    cv: Any
    n_jobs: Any
    alphas_: np.ndarray
    # Where the losses (alphas, folds) are kept, and by what they are multiplied.
    _losses: ClassVar[tuple[str, float]] = ("mse_path_", 2.0)

    def _solve(self, X: Any, y: np.ndarray, sample_weight: Any) -> Found:
        X = X.tocsr() if issparse(X) else X  # rows are taken
        folds = list(check_cv(self.cv, y, classifier=self._is_classifier).split(X, y))  # pyright: ignore
        ratios = np.atleast_1d(self._ratios())
        grids = np.stack([self._alphas(X, y, sample_weight, ratio) for ratio in ratios])
        jobs = [(r, fold) for r in range(len(ratios)) for fold in folds]

        def errors(job):
            r, (train, test) = job
            own = None if sample_weight is None else relative(sample_weight[train])
            found = self._path(X[train], y[train], own, grids[r], float(ratios[r]))
            left_out = X[test]
            few = not issparse(X) and left_out.size * len(found.value) < _FEW
            u = inner(left_out, found.value) if few else left_out @ found.value.T
            u = u + found.offset
            left = objective(self._model(X.shape[1]), y[test][:, None], u)
            theirs = None if sample_weight is None else relative(sample_weight[test])
            return self._losses[1] * np.average(left, axis=0, weights=theirs), found.result.any()

        threads = effective_n_jobs(self.n_jobs)  # pyright: ignore
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            parts, failed = zip(*pool.map(errors, jobs))
        if any(failed):
            message = (
                f"{type(self).__name__} did not reach tol in a fold; increase max_iter or tol."
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=3)
        found = np.stack(parts)
        losses = np.swapaxes(found.reshape(len(ratios), len(folds), -1), 1, 2)
        r, best = np.unravel_index(losses.mean(-1).argmin(), losses.shape[:2])
        several = np.ndim(self._ratios()) > 0
        self.alphas_ = grids if several else grids[0]
        setattr(self, self._losses[0], losses if several else losses[0])
        self.alpha_, self.l1_ratio_ = float(grids[r, best]), float(ratios[r])
        return self._path(X, y, sample_weight, [self.alpha_], self.l1_ratio_)

    _is_classifier: ClassVar[bool] = False

    def _ratios(self) -> Any:
        """The share of the l1 norm, or several to choose from."""
        return self._ratio()

    def _alphas(self, X: Any, y: np.ndarray, sample_weight: Any, ratio: float) -> np.ndarray:
        if np.ndim(self.alphas) == 1 and np.size(self.alphas):
            return np.sort(np.asarray(self.alphas, np.float64))[::-1]
        check_count("alphas", self.alphas, other=", or a list of strengths")
        check_number("eps", self.eps, "1e-3")
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps must be in (0, 1], got {self.eps}; 1e-3 for example.")
        p, s = X.shape[1], np.ones(len(y)) if sample_weight is None else sample_weight
        model, weights = self._model(p), self._weights(p)
        mean = np.average(y, weights=s)
        link = np.arctanh(mean) * 2 if model.loss == "logistic" else mean
        r = pull(model, y, np.full(len(y), link if self.fit_intercept else 0.0))
        c = X.T @ (s * r) / s.sum()
        if weights is None:
            weights = np.ones(p)
        largest = largest_bound(model, c, weights, self.positive) / ratio
        return geometric(largest or 1.0, int(self.alphas), self.eps)
