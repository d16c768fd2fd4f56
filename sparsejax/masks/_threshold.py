"""Masks by a threshold."""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._arguments import check_not_nan, check_ranking, check_scheduled_fraction, checked
from .._arrays import poison
from .._topk import topk_mask


@checked(threshold="(-inf, inf)", at_least="[0, inf)")
def above(
    scores: Float[Array, " n"], threshold: ArrayLike = 0.01, at_least: int = 1
) -> Bool[Array, " n"]:
    r"""The entries above a threshold, and at least a given number.

    Args:
      scores: Scores of the channels of a layer, `abs(norm.scale)` for example; for channels tied by
        residual additions the maximum over the layers.
      threshold: Scores above it are kept.
      at_least: Number of the largest scores that are always kept; the lowest index wins ties.

    Returns:
      A mask, True where kept.

    Raises:
      ValueError: If (outside of jit) the threshold is NaN, or NaN scores would be kept.

    Reference:
      Jiang et al., Pruning-aware Sparse Regularization for Network Pruning, 2022 (arXiv
      2201.06776).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.above(jnp.array([0.5, 0.001, 0.2])).tolist()
      [True, False, True]
      >>> sj.masks.above(jnp.array([0.002, 0.001, 0.0])).tolist()
      [True, False, False]
    """
    kept = (scores > threshold) | topk_mask(scores, min(at_least, scores.size))
    check_ranking("above", {"": scores}, {"": kept})
    check_not_nan("above", threshold=threshold)
    return kept


@checked(fraction="[0, 1]")
def energy_threshold(scores: Float[Array, " n"], fraction: ArrayLike = 1e-4) -> Float[Array, ""]:
    r"""The threshold below which scores have a given fraction of the sum of squares.

    With the scores in ascending order and `c_j` the share of the first j squares, it is the
    midpoint of the pair at which c first exceeds the fraction; 0 if that is the first pair. If all
    scores are below 1e-3 it is 1, and nothing is kept.

    Args:
      scores: Scores >= 0 of the channels of a layer.
      fraction: Share of the energy to prune.

    Returns:
      A threshold, for `sj.masks.above`; NaN if a score is NaN or infinite.

    Reference:
      Jiang et al., 2022 (arXiv 2201.06776), the "OT" rule of its code.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> round(float(sj.masks.energy_threshold(jnp.array([1.0, 0.001, 2.0]))), 4)
      0.5005
    """
    check_scheduled_fraction("energy_threshold", "fraction", fraction)
    rising = jnp.maximum(jnp.sort(scores), 1e-18)
    unit = rising / rising[-1]  # squares stay in range
    share = jnp.cumsum(unit**2) / jnp.sum(unit**2)
    first = jnp.argmax(share > fraction)
    below = lax.dynamic_index_in_dim(rising, jnp.maximum(first - 1, 0), keepdims=False)
    middle = jnp.where(first > 0, (below + rising[first]) / 2, 0)
    return jnp.where(jnp.max(scores) < 1e-3, 1.0, middle) + poison(share)
