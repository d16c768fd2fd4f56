"""Indicators of hard sparsity: at most k entries, at most k groups, or n of m."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import check_count, checked, checked_axis, checked_integer, checked_number
from .._topk import nm_mask, topk_mask
from ..patterns import layout
from ._group import OnNorm
from ._ordered import along, one_axis
from ._partition import Axes, fit, partition
from ._penalty import Indicator, Leaf, Penalty, Symmetric, register, static


@register
class HardK(Indicator, Symmetric):
    """The indicator of at most k non-zero entries, see `hard_k`."""

    k: Leaf
    axis: int | None = static(default=-1)
    weights: Leaf = None

    @property
    def weak_convexity(self) -> ArrayLike:
        """Infinity: the set is not convex."""
        return jnp.inf

    def _violation(self, x: Array) -> Array:
        axis = None if self.axis is None else (self.axis,)
        return jnp.where(jnp.sum(x != 0, axis) > self.k, jnp.inf, 0)

    def _shrink(self, b: Array, t: Array) -> Array:
        del t
        scores = lax.stop_gradient(b) * jnp.sqrt(fit(self.weights, b.shape))
        return jnp.where(along(self.axis, lambda rows: _topk_rows(rows, self.k), scores), b, 0)


@register
class NM(Indicator, Symmetric):
    """The indicator of at most n of each m consecutive entries, see `nm`."""

    n: Leaf
    m: int = static()
    axis: int | tuple[int, ...] | None = static(default=None)
    stacked: int = static(default=0)

    @property
    def weak_convexity(self) -> ArrayLike:
        """Infinity: the set is not convex."""
        return jnp.inf

    def _violation(self, x: Array) -> Array:
        b = jnp.abs(x)
        return jnp.where(jnp.any((b > 0) & ~self._keep(b)), jnp.inf, 0)

    def _shrink(self, b: Array, t: Array) -> Array:
        del t
        return jnp.where(self._keep(b), b, 0)

    def _keep(self, b: Array) -> Array:
        view = layout(b.shape, self.axis, self.stacked)
        return view.from_matrix(nm_mask(view.to_matrix(lax.stop_gradient(b)), self.n, self.m))


def _topk_rows(scores: Array, k: Any) -> Array:
    if not scores.size:
        return scores != 0
    rows = scores.reshape(-1, scores.shape[-1])
    return jax.vmap(topk_mask, (0, None))(rows, k).reshape(scores.shape)


@checked()
def hard_k(k: ArrayLike, axis: int | None = -1) -> Penalty:
    r"""The indicator of at most k non-zero entries: keep the k largest.

    `f(x) = 0 if #{i: x_i != 0} <= k, else infinity`. The lowest index wins ties.

    Args:
      k: An integer; may be traced.
      axis: Axis of the vectors, None for the whole array.

    Returns:
      A penalty; not weakly convex.

    Raises:
      TypeError: If k is not an integer.

    Reference:
      Blumensath and Davies, Iterative Thresholding for Sparse Approximations, 2008.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.hard_k(2).prox(jnp.array([1.0, -3.0, 2.0, -2.0])).tolist()
      [0.0, -3.0, 2.0, 0.0]
    """
    return HardK(checked_integer("k", k, "prox.hard_k(16)"), one_axis(axis))


def nm(
    n: ArrayLike, m: int, axis: int | tuple[int, ...] | None = None, stacked: int = 0
) -> Penalty:
    r"""The indicator of N:M sparsity: keep the n largest of each m consecutive entries.

    `f(x) = 0 if at most n of each m entries along the contraction are not 0, else infinity`.

    Args:
      n: Entries kept per group, an integer; may be traced.
      m: Group length.
      axis: The contraction axis or axes; None for kernels `(in, out)` and `(h, w, in, out)`.
      stacked: Number of leading axes that index layers or experts.

    Returns:
      A penalty of kernels; not weakly convex.

    Raises:
      TypeError: If n or m is not an integer.
      ValueError: If m does not divide the contraction, or the contraction axis is ambiguous with
        `axis=None`.

    Reference:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021,
      arXiv 2102.04010.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.nm(1, 2).prox(jnp.array([[1.0], [-3.0], [2.0], [2.0]]))[:, 0].tolist()
      [0.0, -3.0, 2.0, 0.0]
    """
    call = "prox.nm(2, 4, axis=0)"
    n, m = checked_integer("n", n, call, 0), checked_integer("m", m, call)
    if m < 1:
        raise ValueError(f"m must be at least 1, got {m}; for example {call}.")
    check_count("stacked", stacked, 0)
    return NM(n, m, checked_axis(axis), stacked)


@checked()
def group_hard_k(
    k: ArrayLike,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""The indicator of at most k groups: keep the k with the largest `sqrt(d_g) ||x_g||`.

    `f(x) = 0 if #{g: x_g != 0} <= k, else infinity`. The weights change the metric of the
    projection, `sum_g d_g ||u_g - x_g||^2`, as in `wgsef`; 1 is Euclidean. The lowest group wins
    ties.

    Args:
      k: An integer; may be traced.
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: d, > 0, 1 by default.

    Returns:
      A penalty; not weakly convex.

    Raises:
      TypeError: If k is not an integer.
      ValueError: If groups overlap, do not fit or are missing.

    Reference:
      Baldassarre, Bhan, Cevher, Kyrillidis and Satpathi, Group-Sparse Model Selection: Hardness
      and Relaxations, 2016, arXiv 1303.3207.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.group_hard_k(1, axis=0).prox(jnp.array([[3.0, 0.3], [4.0, 0.4]])).tolist()
      [[3.0, 0.0], [4.0, 0.0]]
    """
    call = "prox.group_hard_k(16, axis=0)"
    if axis is None and groups is None:
        raise ValueError(f"axis= or groups= must define the groups; for example {call}.")
    if weights is not None:
        weights = checked_number("weights", weights, call, positive=True)
    inner = HardK(checked_integer("k", k, call), None, weights)
    return OnNorm(inner, partition(axis, groups, num_groups, call))
