"""The FLOPS penalty of document vectors, and the ramp of its strength."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_finite, checked, known
from ..._arrays import poison, wide_dtype
from ..._sharding import on_host


@checked(threshold="[0, inf)")
def flops_loss(
    w: Float[Array | np.ndarray, "batch *slots vocabulary"],
    idf: Float[ArrayLike, " vocabulary"] | None = None,
    *,
    threshold: int | None = None,
) -> Float[Array, ""]:
    r"""The FLOPS penalty, `sum_j (mean_i w_ij)^2`: few, evenly used tokens.

    It bounds the work of an inverted index smoothly. The mean is over the batch, for each slot of
    documents (such as positive and negative ones), and the sum over slots and tokens.

    With the weights of `idf_query` in the scores, the ranking loss moves `w_j` by idf_j times as
    much and the penalty does not: rare tokens are spared ("IDF-aware"). A model whose scores are
    not weighted gets the same with `idf`: `sum_j (mean_i w_ij / idf_j)^2`.

    Args:
      w: Weights of documents: all documents of a batch along the first axis, slots after it.
      idf: Weights > 0 by which the penalty of tokens is divided; None for all 1.
      threshold: Documents with at most so many non-zeros are left out of the sum (the l0 variant;
        150 is usual), the divisor of the mean remains the batch size; None for none.

    Returns:
      A scalar of at least float32.

    Raises:
      ValueError: If there are no documents, or a weight of `idf` is not positive and finite.

    Reference:
      Paria et al., Minimizing FLOPs to Learn Efficient Sparse Representations, 2020 (arXiv
      2004.05665); Geng et al., 2024 (arXiv 2411.04403); threshold: Shen et al., 2025 (arXiv
      2504.14839).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import retrieval
      >>> w = jnp.array([[2.0, 0.0], [2.0, 2.0]])
      >>> float(retrieval.flops_loss(w)), float(retrieval.flops_loss(w, threshold=1))
      (5.0, 2.0)
    """
    w = jnp.asarray(w)
    if not w.shape[0]:
        raise ValueError(f"flops_loss: w must hold at least one document, got shape {w.shape}.")
    if threshold is not None:
        many = jnp.sum(w != 0, axis=-1, keepdims=True) > threshold
        w = jnp.where(many, w, 0) + poison(w)  # NaN in a document that is left out
    mean = jnp.mean(w.astype(wide_dtype(w)), axis=0)
    if idf is not None:
        mean = mean / _positive(jnp.asarray(idf))
    return jnp.sum(mean * mean)


def _positive(idf: Array) -> Array:
    check_finite("flops_loss", idf=idf)
    if known(idf) and (on_host(idf) <= 0).any():
        raise ValueError("flops_loss: idf must be > 0, as retrieval.idf(frequencies, documents).")
    return idf


@checked(strength="[0, inf)", steps="[1, inf)")
def quadratic_ramp(strength: float, steps: int) -> Callable[[ArrayLike], Array]:
    r"""A schedule that rises to a strength: `strength ((t + 1) / steps)^2` for `t < steps`.

    Args:
      strength: The last value.
      steps: Number of steps in which it is reached.

    Returns:
      A schedule of optax, a function of the step t.

    Reference:
      Geng et al., 2024 (arXiv 2411.04403): 0.002 with distillation in 40 000 of 100 000 steps.

    Example:
      >>> from sparsejax.contrib import retrieval
      >>> ramp = retrieval.quadratic_ramp(4.0, 2)
      >>> [float(ramp(t)) for t in range(3)]
      [1.0, 4.0, 4.0]
    """

    def schedule(step: ArrayLike) -> Array:
        share = jnp.minimum((jnp.asarray(step) + 1) / steps, 1)
        return strength * share * share

    return schedule
