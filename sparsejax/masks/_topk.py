"""The mask of one leaf: the largest scores of a pattern."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Shaped

from .._arguments import check_not_nan, check_ranking, checked
from .._sharding import with_auto_axes
from ..patterns import Pattern
from ._planned_leaf import PlannedLeaf


@checked(pattern="sj.NM(2, 4)", fraction="[0, 1]")
def topk(
    scores: Shaped[ArrayLike, "..."], pattern: Pattern, fraction: ArrayLike = 1.0
) -> Bool[Array, "..."]:
    """The mask of a pattern that keeps the largest scores.

    Exactly the pattern's number of units is kept; the lowest index wins ties; NaN ranks
    last, below -infinity.

    Args:
      scores: Scores of one leaf, of a floating dtype, in the layout of Flax.
      pattern: `Unstructured`, `NM`, `Block`, `Channel`, `Groups` or `Stages`.
      fraction: Fraction of the pattern's zeros to reach, in [0, 1]; may be traced.

    Returns:
      A boolean array, True where kept.

    Raises:
      ValueError: If the pattern does not fit the shape, the fraction is not in [0, 1], or (outside
        of jit) NaN scores would be kept.
      TypeError: If the scores are not floating point numbers.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.topk(jnp.arange(4.0), sj.Unstructured(0.75)).tolist()
      [False, False, False, True]
    """
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores of dtype {scores.dtype} and shape {scores.shape} must be floats.")
    check_not_nan("topk", fraction=fraction)
    layout = pattern.layout(scores.shape)
    pattern.units(layout)
    leaf = PlannedLeaf("topk: scores", layout, pattern, pattern.zeros(layout))
    mask = with_auto_axes(leaf.select, scores, fraction, like=scores)
    check_ranking("topk", {"": scores}, {"": mask})
    return mask
