"""Entries chosen by a threshold: channels above, weights below."""

import math
import re

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from .._arguments import check_fraction, is_nan_in
from .._select import topk_mask, topk_masks
from .._tree import map_named, named_leaves


def above(
    scores: Float[Array, " n"], threshold: ArrayLike = 0.01, at_least: int = 1
) -> Bool[Array, " n"]:
    r"""The entries above a threshold, but never fewer than some.

    Args:
      scores: Scores of the channels of a layer, `abs(norm.scale)` for example; of channels that
        residual additions tie together the maximum over the layers.
      threshold: What is kept is larger.
      at_least: So many of the largest are kept in any case; the lowest index wins ties.

    Returns:
      A mask, True where kept.

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
    return (scores > threshold) | topk_mask(scores, min(at_least, scores.size))


def below_threshold(
    params: PyTree,
    theta: ArrayLike | None = None,
    *,
    fraction: float | None = None,
    where: str = "",
) -> PyTree:
    r"""The entries of small magnitude, `|p| < theta`, over all leaves together.

    With `fraction` theta is the (k+1)-th smallest magnitude of all, `k = floor(fraction n)`, so
    that k entries lie below it, or fewer if there are ties.

    Args:
      params: A tree of arrays, biases and norms included.
      theta: The threshold; equal magnitudes are not below it.
      fraction: Instead of theta, in [0, 1].
      where: Regular expression of the paths that are meant, all by default.

    Returns:
      The tree of masks; None for leaves that are not meant or hold no floats.

    Raises:
      ValueError: If not one of theta and fraction is given, `where` matches nothing, or (outside
        of jit) a leaf holds NaN.
      TypeError: If `fraction` is not a number.

    Reference:
      Hu et al., SaRA, 2024 (arXiv 2409.06633).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": jnp.array([0.1, 3.0]), "b": jnp.array([-0.2, 2.0])}
      >>> masks = sj.masks.below_threshold(params, fraction=0.5)
      >>> masks["a"].tolist(), masks["b"].tolist()
      ([True, False], [True, False])
    """
    if (theta is None) == (fraction is None):
        raise ValueError(
            "below_threshold needs one of theta and fraction, not both: below_threshold(p, 2e-3) "
            "or below_threshold(p, fraction=0.1)."
        )
    sizes = {
        name: jnp.abs(p).astype(jnp.promote_types(p.dtype, jnp.float32))
        for name, p in named_leaves(params).items()
        if re.search(where, name) and jnp.issubdtype(p.dtype, jnp.floating)
    }
    if not sizes:
        raise ValueError(f"below_threshold: where={where!r} matches none of the parameters.")
    for name, size in sizes.items():
        if is_nan_in(size):
            raise ValueError(
                f"below_threshold: {name or 'params'} {size.shape} holds NaN, which is neither "
                "below nor above; give parameters that are numbers, or leave it out with where=."
            )
    if fraction is not None:
        check_fraction("fraction", fraction)
        theta = _smallest_kept(list(sizes.values()), fraction)

    def below(name, p):
        del p
        return sizes[name] < theta if name in sizes else None

    return map_named(below, params)


def _smallest_kept(sizes: list[Array], fraction: float) -> Array:
    """The (k+1)-th smallest, infinity if k is all."""
    total = sum(x.size for x in sizes)
    kept = topk_masks(sizes, total - math.floor(fraction * total + 1e-9))
    least = [jnp.min(jnp.where(m, x, jnp.inf), initial=jnp.inf) for x, m in zip(sizes, kept)]
    return jnp.min(jnp.stack(least))


def energy_threshold(scores: Float[Array, " n"], fraction: ArrayLike = 1e-4) -> Float[Array, ""]:
    r"""The threshold below which the scores hold a fraction of the sum of squares.

    With the scores sorted to rise and `c_j` the share of the first j squares, it lies in the
    middle of the pair at which c first exceeds the fraction; 0 if that is the first. A layer
    whose scores are all below 1e-3 gets 1: nothing is kept.

    Args:
      scores: Scores >= 0 of the channels of a layer.
      fraction: Share of the energy that may go.

    Returns:
      A threshold, for `sj.masks.above`.

    Reference:
      Jiang et al., 2022 (arXiv 2201.06776), the "OT" rule of its code.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> round(float(sj.masks.energy_threshold(jnp.array([1.0, 0.001, 2.0]))), 4)
      0.5005
    """
    rising = jnp.maximum(jnp.sort(scores), 1e-18)
    share = jnp.cumsum(rising**2) / jnp.sum(rising**2)
    first = jnp.argmax(share > fraction)
    below = lax.dynamic_index_in_dim(rising, jnp.maximum(first - 1, 0), keepdims=False)
    middle = jnp.where(first > 0, (below + rising[first]) / 2, 0)
    return jnp.where(jnp.max(scores) < 1e-3, 1.0, middle)
