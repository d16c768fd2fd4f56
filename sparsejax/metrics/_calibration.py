"""Calibration: does a probability of 0.8 come true eight times in ten?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

_FLOOR = 1e-12  # of a probability under the logarithm


class Reliability(NamedTuple):
    """Confidence against accuracy, bin by bin; an empty bin has count 0 and zeros."""

    edges: Float[Array, " bins+1"]
    confidence: Float[Array, " bins"]
    accuracy: Float[Array, " bins"]
    count: Float[Array, " bins"]


def reliability(
    probabilities: Float[ArrayLike, "n classes"], labels: Int[ArrayLike, " n"], bins: int = 15
) -> Reliability:
    r"""The reliability curve: mean confidence and accuracy in equal-width bins (a, b].

    Args:
      probabilities: Predicted probabilities, not logits.
      labels: True classes.
      bins: Number of bins; probability 0 belongs to the first.

    Returns:
      `Reliability(edges, confidence, accuracy, count)`.

    Raises:
      ValueError: If there are no bins or no samples, or (outside of jit) if these are logits.

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import reliability
      >>> p = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> reliability(p, jnp.array([0, 1]), bins=2).accuracy.tolist()
      [0.0, 0.5]
    """
    probabilities, labels = _checked(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1.")
    confidence = probabilities.max(axis=-1)
    correct = probabilities.argmax(axis=-1) == labels
    edges = jnp.asarray(np.linspace(0.0, 1.0, bins + 1), confidence.dtype)
    # The inner edges below a value: a value on an edge belongs to the bin that ends there.
    index = jnp.searchsorted(edges[1:-1], confidence, side="left", method="compare_all")
    columns = jnp.stack([jnp.ones_like(confidence), confidence, correct.astype(confidence.dtype)])
    count, sum_confidence, sum_correct = jax.vmap(
        lambda column: jax.ops.segment_sum(column, index, bins)
    )(columns)
    full = jnp.maximum(count, 1)
    return Reliability(edges, sum_confidence / full, sum_correct / full, count)


def expected_calibration_error(
    probabilities: Float[ArrayLike, "n classes"], labels: Int[ArrayLike, " n"], bins: int = 15
) -> Float[Array, ""]:
    r"""ECE, `sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)|` over equal-width bins (a, b].

    Args:
      probabilities: Predicted probabilities, not logits.
      labels: True classes.
      bins: Number of bins.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: As `reliability`.

    Reference:
      Guo et al., 2017 (arXiv 1706.04599).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import expected_calibration_error
      >>> p = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> float(expected_calibration_error(p, jnp.array([0, 1])))
      0.25
    """
    _, confidence, accuracy, count = reliability(probabilities, labels, bins)
    return jnp.sum(count / jnp.sum(count) * jnp.abs(accuracy - confidence))


def maximum_calibration_error(
    probabilities: Float[ArrayLike, "n classes"], labels: Int[ArrayLike, " n"], bins: int = 15
) -> Float[Array, ""]:
    r"""MCE, `max_b |accuracy(B_b) - confidence(B_b)|` over the bins that are not empty.

    Args:
      probabilities: Predicted probabilities, not logits.
      labels: True classes.
      bins: Number of bins.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: As `reliability`.

    Reference:
      Guo et al., 2017 (arXiv 1706.04599).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import maximum_calibration_error
      >>> p = jnp.array([[0.75, 0.25], [0.5, 0.5]])
      >>> float(maximum_calibration_error(p, jnp.array([0, 1])))
      0.5
    """
    _, confidence, accuracy, _ = reliability(probabilities, labels, bins)
    return jnp.max(jnp.abs(accuracy - confidence))


def negative_log_likelihood(
    probabilities: Float[ArrayLike, "n classes"], labels: Int[ArrayLike, " n"]
) -> Float[Array, ""]:
    r"""NLL, the mean of `-log p(true class)`, probabilities floored at 1e-12.

    Args:
      probabilities: Predicted probabilities, not logits.
      labels: True classes.

    Returns:
      A scalar in nats.

    Raises:
      ValueError: If there are no samples, or (outside of jit) if these are logits.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import negative_log_likelihood
      >>> p = jnp.array([[0.5, 0.5], [1.0, 0.0]])
      >>> round(float(negative_log_likelihood(p, jnp.array([0, 0]))), 4)
      0.3466
    """
    probabilities, labels = _checked(probabilities, labels)
    true = jnp.take_along_axis(probabilities, labels[:, None], axis=-1)
    return -jnp.mean(jnp.log(jnp.maximum(true, _FLOOR)))


def brier_score(
    probabilities: Float[ArrayLike, "n classes"], labels: Int[ArrayLike, " n"]
) -> Float[Array, ""]:
    r"""Brier score, the mean of `sum_c (p_c - [c = true class])^2`.

    Args:
      probabilities: Predicted probabilities, not logits.
      labels: True classes.

    Returns:
      A scalar in [0, 2].

    Raises:
      ValueError: If there are no samples, or (outside of jit) if these are logits.

    Reference:
      Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import brier_score
      >>> float(brier_score(jnp.array([[0.5, 0.5]]), jnp.array([0])))
      0.5
    """
    probabilities, labels = _checked(probabilities, labels)
    target = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=probabilities.dtype)
    return jnp.mean(jnp.sum((probabilities - target) ** 2, axis=-1))


def _checked(probabilities, labels) -> tuple[jax.Array, jax.Array]:
    """Arrays of at least float32; logits and strange labels are refused where they can be seen."""
    p, labels = jnp.asarray(probabilities), jnp.asarray(labels)
    if p.size == 0:
        raise ValueError(f"there are no samples in probabilities of shape {p.shape}.")
    if p.ndim != 2 or labels.shape != p.shape[:1]:
        raise ValueError(
            f"probabilities of shape {p.shape} and labels of shape {labels.shape} must be "
            "(n, classes) and (n,)."
        )
    if not isinstance(labels, Tracer):
        first, last = int(labels.min()), int(labels.max())
        if first < 0 or last >= p.shape[1]:
            raise ValueError(
                f"labels go from {first} to {last} and the probabilities are of {p.shape[1]} "
                f"classes, 0 to {p.shape[1] - 1}."
            )
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32))
    if not isinstance(p, Tracer):
        low, high = float(p.min()), float(p.max())
        if low < 0 or high > 1.001:
            raise ValueError(
                f"probabilities of shape {p.shape} lie in [{low:.3g}, {high:.3g}], not in [0, 1]; "
                "pass jax.nn.softmax(logits)."
            )
    return p, labels
