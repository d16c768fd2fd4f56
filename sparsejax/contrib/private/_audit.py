"""Empirical lower bounds on epsilon."""

import math

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Shaped

from ..._arguments import checked


@checked()
def privacy_audit(
    first: Shaped[ArrayLike, " m"],
    second: Shaped[ArrayLike, " n"],
    delta: float = 0.0,
    confidence: float = 0.95,
) -> float:
    r"""A lower bound on epsilon from the messages of a mechanism about two records.

    `log((P[score > t | first] - delta) / P[score > t | second])` with Clopper-Pearson limits, in
    both directions. The threshold is the one that separates the first half of the samples best;
    the bound is measured on the second half. It refutes claims of a smaller epsilon at this
    confidence; no audit proves a claim.

    Args:
      first: Scores (n,) of messages about one record: any number computed from a message; the
        likelihood ratio gives the best bound.
      second: Scores (n,) of messages about another record.
      delta: The claimed delta.
      confidence: Confidence level of the bound.

    Returns:
      The bound, >= 0.

    Raises:
      ValueError: If either array has fewer than 4 scores or contains NaN, or `delta` or
        `confidence` is out of range.

    Reference:
      Jagielski, Ullman and Oprea, Auditing Differentially Private Machine Learning, 2020, arXiv
      2006.07709.

    Example:
      >>> import numpy as np
      >>> from sparsejax.contrib import private
      >>> noise = np.random.default_rng(0).laplace(size=(2, 20_000))
      >>> 0.8 < private.privacy_audit(noise[0] + 1, noise[1]) < 1.0
      True
    """
    a, b = (np.asarray(x, np.float64) for x in (first, second))
    if min(a.size, b.size) < 4 or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError(
            "privacy_audit: first and second must be at least 4 scores each, without NaN, got "
            f"{a.size} and {b.size}."
        )
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise ValueError(
            "privacy_audit: delta must be in [0, 1) and confidence in (0, 1), got "
            f"{delta} and {confidence}."
        )
    best = 0.0
    level = (1 - confidence) / 8  # two directions, two signs, two limits
    for more, less in ((a, b), (b, a)):
        for sign in (1, -1):
            best = max(best, _one_sided(sign * more, sign * less, delta, level))
    return best


def _one_sided(more: np.ndarray, less: np.ndarray, delta: float, level: float) -> float:
    (choose_m, test_m), (choose_l, test_l) = (np.array_split(x, 2) for x in (more, less))
    # Observed scores only: interpolation between infinities would give NaN.
    levels, scores = np.linspace(0, 1, 201)[:-1], np.concatenate([choose_m, choose_l])
    cuts = np.unique(np.quantile(scores, levels, method="lower"))
    bounds = [_epsilon(choose_m, choose_l, t, delta, level) for t in cuts]
    return _epsilon(test_m, test_l, cuts[int(np.argmax(bounds))], delta, level)


def _epsilon(more: np.ndarray, less: np.ndarray, cut: float, delta: float, level: float) -> float:
    from scipy.stats import beta  # a dependency of jax; slow to load

    k, n = int(np.sum(more > cut)), more.size
    low = beta.ppf(level, k, n - k + 1) if k else 0.0
    k, n = int(np.sum(less > cut)), less.size
    high = beta.ppf(1 - level, k + 1, n - k) if k < n else 1.0
    return math.log((low - delta) / high) if low > delta else 0.0
