"""Calibration of predicted probabilities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from .._arguments import checked, known
from .._arrays import wide_dtype


class Reliability(NamedTuple):
    """Confidence and accuracy per bin; empty bins have count 0 and zeros."""

    edges: Float[Array, " bins+1"]
    confidence: Float[Array, " bins"]
    accuracy: Float[Array, " bins"]
    count: Float[Array, " bins"]


@checked(bins="[1, inf)")
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
      ValueError: If `bins` is less than 1, there are no samples, or (outside of jit) probabilities
        are logits.

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


@checked(bins="[1, inf)")
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
      ValueError: As for `reliability`.

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


@checked(bins="[1, inf)")
def maximum_calibration_error(
    probabilities: Float[ArrayLike, "n classes"], labels: Int[ArrayLike, " n"], bins: int = 15
) -> Float[Array, ""]:
    r"""MCE, `max_b |accuracy(B_b) - confidence(B_b)|` over the non-empty bins.

    Args:
      probabilities: Predicted probabilities, not logits.
      labels: True classes.
      bins: Number of bins.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: As for `reliability`.

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


def _checked(probabilities, labels) -> tuple[jax.Array, jax.Array]:
    """Arrays of at least float32; rejects logits and invalid labels unless traced."""
    p, labels = jnp.asarray(probabilities), jnp.asarray(labels)
    if p.size == 0:
        raise ValueError(f"there are no samples in probabilities of shape {p.shape}.")
    if p.ndim != 2 or labels.shape != p.shape[:1]:
        raise ValueError(
            f"probabilities of shape {p.shape} and labels of shape {labels.shape} must be "
            "(n, classes) and (n,)."
        )
    # NumPy: under jit even operations on known JAX arrays are traced.
    if known(labels):
        first, last = int(np.asarray(labels).min()), int(np.asarray(labels).max())
        if first < 0 or last >= p.shape[1]:
            raise ValueError(
                f"labels must be in 0 to {p.shape[1] - 1} for probabilities of {p.shape[1]} "
                f"classes, got {first} to {last}."
            )
    if known(p):
        low, high = float(np.asarray(p).min()), float(np.asarray(p).max())
        if not (low >= 0 and high <= 1.001):  # NaN is in neither range
            raise ValueError(
                f"probabilities of shape {p.shape} lie in [{low:.3g}, {high:.3g}], not in [0, 1]; "
                "pass jax.nn.softmax(logits)."
            )
    return p.astype(wide_dtype(p)), labels
