"""How private a mechanism is at most, by trying to tell two records apart."""

import math

import numpy as np
from jax.typing import ArrayLike


def privacy_audit(
    first: ArrayLike, second: ArrayLike, delta: float = 0.0, confidence: float = 0.95
) -> float:
    r"""A lower bound on epsilon from what a mechanism said about two records.

    `log((P[score > t | first] - delta) / P[score > t | second])` with Clopper-Pearson limits, at
    the threshold that tells best on the first half of the samples, measured on the second half; in
    both directions. A claim of a smaller epsilon is refuted, at this confidence; no audit proves
    one.

    Args:
      first: Scores (n,) of messages about one record: any number computed from a message, best the
        likelihood ratio.
      second: Scores (n,) of messages about another record.
      delta: The delta that is claimed.
      confidence: Of the bound.

    Returns:
      The bound, >= 0.

    Raises:
      ValueError: If there are fewer than 4 scores of either, or they are NaN.

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
    a, b = (np.asarray(x, np.float64).reshape(-1) for x in (first, second))
    if min(a.size, b.size) < 4 or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError(f"scores must be numbers, 4 of each record, got {a.size} and {b.size}.")
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise ValueError(f"delta and confidence must be in [0, 1), got {delta} and {confidence}.")
    best = 0.0
    level = (1 - confidence) / 8  # two directions, two signs, two limits
    for more, less in ((a, b), (b, a)):
        for sign in (1, -1):
            best = max(best, _one_sided(sign * more, sign * less, delta, level))
    return best


def _one_sided(more: np.ndarray, less: np.ndarray, delta: float, level: float) -> float:
    (choose_m, test_m), (choose_l, test_l) = (np.array_split(x, 2) for x in (more, less))
    # Scores that occurred: between infinities there is nothing to interpolate.
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
