"""Features of predictions for membership inference attacks."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from ..._arguments import checked

_TOLERANCE = 0.02  # of sums of probabilities, for bfloat16
_FLOOR = 1e-30  # of probabilities in logarithms


class MembershipFeatures(NamedTuple):
    """Features of n predictions, each an input of `membership_attack`.

    Args:
      confidence: `p_y`, the probability of the true class.
      correctness: 1 where the class of the largest probability is the true one, else 0.
      entropy: `-sum_c p_c log p_c`.
      modified_entropy: `-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)`: small only where the
        prediction is confident and correct.
      probabilities: All of them, (n, classes).
    """

    confidence: np.ndarray
    correctness: np.ndarray
    entropy: np.ndarray
    modified_entropy: np.ndarray
    probabilities: np.ndarray


@checked()
def membership_features(
    probabilities: Float[ArrayLike, "n classes"], labels: Int[ArrayLike, " n"]
) -> MembershipFeatures:
    r"""The features of predictions that membership inference attacks use.

    Logarithms are taken of at least 1e-30.

    Args:
      probabilities: Of each class for each sample; rows sum to 1.
      labels: The true classes.

    Returns:
      `MembershipFeatures`.

    Raises:
      ValueError: If shapes differ, a label is not a class, or a row is not a distribution.

    Reference:
      Song and Mittal, Systematic Evaluation of Privacy Risks of Machine Learning Models, 2021
      (arXiv 2003.10595); Jia et al., 2023 (arXiv 2304.04934).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.unlearning import membership_features
      >>> found = membership_features(jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.array([0, 1]))
      >>> found.modified_entropy.round(3).tolist(), found.correctness.tolist()
      ([0.693, 0.0], [1.0, 1.0])
    """
    p, y = check_predictions("membership_features", probabilities, labels)
    p = p.astype(np.float64)
    true = np.arange(p.shape[1]) == y[:, None]
    log = lambda x: np.log(np.maximum(x, _FLOOR))  # noqa: E731
    # At the true class the roles of p and 1 - p are exchanged.
    one, other = np.where(true, 1 - p, p), np.where(true, p, 1 - p)
    return MembershipFeatures(
        p[true],
        (p.argmax(1) == y).astype(np.float64),
        0 - np.sum(p * log(p), axis=1),
        0 - np.sum(one * log(other), axis=1),
        p,
    )


def check_predictions(name: str, probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels as arrays, after a look at each row."""
    p, y = np.asarray(jnp.asarray(probabilities, jnp.float32)), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(
            f"{name}: probabilities must have shape (n, classes) and labels (n,), got {p.shape} "
            f"and {y.shape}."
        )
    if y.size and not 0 <= y.min() <= y.max() < p.shape[1]:
        raise ValueError(
            f"{name}: labels go from {y.min()} to {y.max()} but the probabilities have "
            f"{p.shape[1]} classes."
        )
    _check_rows(name, p)
    return p, y


def _check_rows(name: str, p: np.ndarray) -> None:
    sums = p.sum(-1)
    wrong = ~np.isfinite(p).all(-1) | (p < 0).any(-1) | ~(np.abs(sums - 1) <= _TOLERANCE)
    if wrong.any():
        i = int(np.argmax(wrong))
        what = "contains values that are not finite"
        if np.isfinite(p[i]).all():
            what = "has negative entries" if (p[i] < 0).any() else f"has the sum {sums[i]:.4g}"
        raise ValueError(
            f"{name}: row {i} of the probabilities {p.shape} {what}, and {int(wrong.sum())} rows "
            "are not distributions; for logits pass (jax.nn.softmax(logits), labels)."
        )
