"""A law of accuracy over model size, length and compression."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ..._arguments import checked

AXES = ("size", "length", "compression")


class ScalingLaw(NamedTuple):
    """`log (error / accuracy) = offset + size log N + length log L + compression log C`.

    Attributes:
      offset: The constant.
      size: Exponent of the model size.
      length: Exponent of the length.
      compression: Exponent of the compression.
      residual: Root mean square of the residuals in log odds.
      held_out: The same by axis for points whose value on this axis was left out of the fit; NaN
        for an axis of fewer than 3 values.
    """

    offset: float
    size: float
    length: float
    compression: float
    residual: float
    held_out: dict[str, float]

    def accuracy(
        self, size: ArrayLike, length: ArrayLike, compression: ArrayLike
    ) -> Float[np.ndarray, "..."]:
        """The accuracy that the law predicts."""
        logs = [np.log(np.asarray(x, np.float64)) for x in (size, length, compression)]
        slopes = self.size, self.length, self.compression
        odds = self.offset + sum(b * x for b, x in zip(slopes, logs))
        return np.asarray(1 / (1 + np.exp(odds)))


@checked()
def fit_scaling_law(
    size: ArrayLike, length: ArrayLike, compression: ArrayLike, accuracy: ArrayLike
) -> ScalingLaw:
    r"""Fits a log-linear law to the odds of an error by ordinary least squares.

    Validated by leaving out one value of one axis after the other, and predicting its points.

    Args:
      size: N, parameters of the model, `(n,)`, above 0.
      length: L, number of tokens, `(n,)`, above 0.
      compression: C, `1 / (1 - sparsity)`, `(n,)`, at least 1.
      accuracy: In (0, 1), `(n,)`.

    Raises:
      ValueError: If the arrays differ in shape, hold fewer than five numbers or ones out of range,
        or an axis has one value only.

    Reference:
      Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768); the form is inferred.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import sparse_attention
      >>> N, L, C = (x.ravel() for x in np.meshgrid([7, 14, 32], [16, 32, 64], [1, 2, 5]))
      >>> odds = np.exp(-1 - 0.5 * np.log(N) + 0.3 * np.log(L) + 0.2 * np.log(C))
      >>> law = sparse_attention.fit_scaling_law(N, L, C, 1 / (1 + odds))
      >>> round(law.size, 3), round(law.length, 3), round(law.compression, 3)
      (-0.5, 0.3, 0.2)
    """
    columns = [np.asarray(x, np.float64) for x in (size, length, compression)]
    y = np.asarray(accuracy, np.float64)
    _check(columns, y)
    X = np.stack([np.ones(len(y)), *map(np.log, columns)], 1)
    odds = np.log((1 - y) / y)
    beta = _least_squares(X, odds)
    held_out = {name: _held_out(X, odds, axis) for axis, name in enumerate(AXES, 1)}
    offset, by_size, by_length, by_compression = map(float, beta)
    residual = _root_mean_square(odds - X @ beta)
    return ScalingLaw(offset, by_size, by_length, by_compression, residual, held_out)


def _least_squares(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(X, y, rcond=None)[0]


def _held_out(X: np.ndarray, y: np.ndarray, axis: int) -> float:
    values = np.unique(X[:, axis])
    if len(values) < 3:  # no slope can be fitted to the rest
        return float("nan")
    errors = []
    for value in values:
        out = X[:, axis] == value
        errors.append(y[out] - X[out] @ _least_squares(X[~out], y[~out]))
    return _root_mean_square(np.concatenate(errors))


def _root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _check(columns: list[np.ndarray], y: np.ndarray) -> None:
    if y.ndim != 1 or len(y) < 5 or not ((y > 0) & (y < 1)).all():
        raise ValueError(
            f"fit_scaling_law: accuracy must be at least five numbers in (0, 1), got {y!r:.80}."
        )
    for name, x, least in zip(AXES, columns, (0, 0, 1)):
        good = x.shape == y.shape and np.isfinite(x).all() and (x > 0).all() and (x >= least).all()
        if not good or len(np.unique(x)) < 2:
            raise ValueError(
                f"fit_scaling_law: {name} must be {len(y)} numbers, of two values or more, all "
                f"{'at least 1' if least else 'above 0'}, got {x!r:.80}."
            )
