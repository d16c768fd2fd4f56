"""Envelopes of k-sparsity: SEF, its group and weighted forms, and the k-support norm."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .._arguments import checked, checked_integer, checked_number
from .._arrays import poison
from ._cells import Cells, largest_sum
from ._group import OnNorm
from ._partition import Axes, Partition, fit, partition
from ._penalty import Leaf, Penalty, largest_float, register, widen


@register
class SEF(Cells):
    """The sparse envelope of half the squared norm, `strength * S_k(x)` per cell, see `sef`.

    With k = 1 it is the exclusive lasso.
    """

    strength: Leaf
    k: Leaf
    partition: Partition
    weights: Leaf = None

    def usage(self, x: Any, step: ArrayLike = 1.0) -> Float[Array, "..."]:
        """Usage of each entry: u in [0, 1], with sum k in each cell.

        `prox(x, step) = x u / (step strength weights + u)`; 0 where an entry is zeroed.
        """
        vector, wide = self._widen(x)
        vector, back, flat = wide._flat(vector)
        b = jnp.abs(vector)
        u = flat._usage(b, jnp.asarray(step, b.dtype))[0]
        return back(jnp.where(jnp.isnan(b), b, u) + poison(jnp.asarray(step)))

    def _cost(self, b: Array) -> Array:
        u, _ = self._usage(b, jnp.zeros((), b.dtype))
        d = fit(self.weights, b.shape)
        used = u > 0
        halves = jnp.where(used, d * b / jnp.where(used, u, 1) * b, 0) / 2
        # For k = 0 every non-zero entry is infeasible.
        return self.strength * halves + jnp.where((b > 0) & ~used, jnp.inf, 0)

    def _shrink(self, b: Array, t: Array) -> Array:
        u, c = self._usage(b, t)
        used = u > 0
        return b * jnp.where(used, jnp.where(used, u, 1) / jnp.where(used, c + u, 1), 0)

    def _conjugate_value(self, y: Any) -> Array:
        y, _, flat = self._flat(y)
        z = jnp.abs(y) ** 2 / fit(flat.weights, y.shape)
        total = jnp.sum(largest_sum(z, jnp.asarray(flat.k, z.dtype), flat.partition))
        return total / (2 * flat.strength)

    def _usage(self, b: Array, t: Array) -> tuple[Array, Array]:
        d = fit(self.weights, b.shape)
        c = t * self.strength * d
        return fill(jnp.sqrt(d) * b, c, jnp.asarray(self.k, b.dtype), self), c


def fill(a: Array, c: Array, k: Array, cells: Cells) -> Array:
    """`u = clip(eta a - c, 0, 1)` with eta chosen so that u sums to k in each cell.

    The breakpoints of the sum in eta need no sort: bisection over the bits of eta finds the last
    float below the root, which separates entries at 0, at 1 and in between; eta then follows
    exactly from those in between. If at most k entries are non-zero, they have usage 1.
    """
    top = lax.stop_gradient(cells.partition.max(a))
    a = a / cells._spread(jnp.where((top > 0) & (top < jnp.inf), top, 1))
    live = a > 0
    fixed, offset = lax.stop_gradient(a), lax.stop_gradient(c)

    def filled(eta):
        return jnp.where(live, jnp.clip(cells._spread(eta) * fixed - offset, 0, 1), 0)

    eta = largest_float(lambda eta: cells.partition.sum(filled(eta)) <= k, top.shape, a.dtype)
    u = filled(eta)
    full, between = u >= 1, (u > 0) & (u < 1)
    slope = cells.partition.sum(jnp.where(between, a, 0))
    rest = k - cells.partition.sum(full.astype(a.dtype))
    rest = rest + cells.partition.sum(jnp.where(between, c, 0))
    # With no remainder, the entries in between are rounding errors, and the last float suffices.
    closed = (slope > 0) & (rest > 0)
    last = jnp.where(jnp.isfinite(eta), eta, 0)
    exact = jnp.where(closed, rest / jnp.where(closed, slope, 1), last)
    part = jnp.clip(cells._spread(exact) * a - c, 0, 1)
    # Rounding residues of the difference are set to 0.
    part = jnp.where(part > 4 * jnp.finfo(a.dtype).eps * c, part, 0)
    return jnp.where(full, 1, jnp.where(between, part, 0))


@register
class WGSEF(OnNorm):
    """`SEF` on the norms of groups, see `wgsef`."""

    def usage(self, x: PyTree, step: ArrayLike = 1.0) -> Float[Array, "..."]:
        """Usage of each group: u in [0, 1], with sum k.

        `prox(x, step)_g = x_g u_g / (step strength weights_g + u_g)`; 0 where a group is zeroed.

        Args:
          x: The argument of the penalty.
          step: The step of the proximal operator; 0 gives the usage at x itself.

        Returns:
          A value per group.
        """
        x, wide = self._widen(x)
        u = wide.penalty.usage(wide.partition.norms(x), step)
        axis = self.partition.axis
        return u if self.groups is not None or axis is None else jnp.squeeze(u, axis)


@checked(k="[0, inf)")
def sef(k: ArrayLike, strength: ArrayLike = 1.0, axis: Axes = -1) -> Penalty:
    r"""The sparse envelope: the largest convex minorant of half the squared norm on k-sparse x.

    `S_k(x) = 0.5 min { sum_i x_i^2 / u_i : 0 <= u <= 1, sum u <= k }`, half the squared k-support
    norm; `f = strength * S_k`. The proximal operator is `x_i u_i / (t strength + u_i)`. With k = 1
    it is the exclusive lasso, with k = n half the squared norm.

    Args:
      k: Number of entries to keep, an integer; may be traced.
      strength: >= 0.
      axis: Axes of the vectors, None for the whole array.

    Returns:
      A convex penalty with `usage`.

    Raises:
      TypeError: If k is not an integer.
      ValueError: If the strength is negative.

    Reference:
      Beck and Refael, Sparse Regularization via Bidualization, 2022.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.sef(2).prox(jnp.array([4.0, -3.0, 0.5])).tolist()
      [2.0, -1.5, 0.0]
    """
    call = "prox.sef(16, strength=0.1)"
    k = checked_integer("k", k, call)
    return SEF(checked_number("strength", strength, call), k, partition(axis, call=call))


@checked(k="[1, inf)")
def gsef(
    k: ArrayLike,
    strength: ArrayLike = 1.0,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
) -> Penalty:
    r"""The group sparse envelope: `wgsef` with all weights 1.

    Args:
      k: Number of groups to keep, an integer; may be traced.
      strength: >= 0.
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.

    Returns:
      A convex penalty with `usage`.

    Raises:
      TypeError: If k is not an integer.
      ValueError: If the strength is negative, or groups overlap, do not fit or are missing.

    Reference:
      Beck and Refael, Sparse Regularization via Bidualization, 2022.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.gsef(1, axis=0).prox(jnp.array([[3.0, 0.3], [4.0, 0.4]])).tolist()
      [[1.5, 0.0], [2.0, 0.0]]
    """
    return wgsef(k, strength, axis, groups, num_groups)


@checked(k="[1, inf)")
def wgsef(
    k: ArrayLike,
    strength: ArrayLike = 1.0,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""The weighted group sparse envelope: a convex penalty parametrised by the number of groups.

    `GS_k(x) = 0.5 min { sum_g d_g ||x_g||^2 / u_g : 0 <= u <= 1, sum u <= k }`, the largest convex
    function below `0.5 sum_g d_g ||x_g||^2` of x with at most k non-zero groups;
    `f = strength * GS_k`. The proximal operator is `x_g u_g / (t strength d_g + u_g)`.

    Args:
      k: Number of groups to keep, an integer; may be traced. If it is at least the number of
        groups, the penalty is `ridge`.
      strength: >= 0.
      axis: Axes that span a group: with `axis=0` the columns of a kernel `(in, out)`.
      groups: Integer labels, a pytree of them (`prox.group_labels`), or disjoint lists of indices;
        see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: d, > 0, 1 by default; a group with a larger weight is penalised more.

    Returns:
      A convex penalty with `usage`, of pytrees if the labels are one.

    Raises:
      TypeError: If k is not an integer.
      ValueError: If a number is out of range, or groups overlap, do not fit or are missing.

    Reference:
      Refael, Arbel and Huleihel, Learning k-Level Structured Sparse Neural Networks Using Group
      Envelope Regularization, 2022, arXiv 2212.12921.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> x = jnp.array([[3.0, 0.3], [4.0, 0.4]])
      >>> penalty = prox.wgsef(1, axis=0, weights=jnp.array([1.0, 4.0]))
      >>> penalty.prox(x).tolist(), penalty.usage(x).tolist()
      ([[1.5, 0.0], [2.0, 0.0]], [1.0, 0.0])
    """
    call = "prox.wgsef(16, strength=0.1, axis=0)"
    k = checked_integer("k", k, call)
    if axis is None and groups is None:
        raise ValueError(f"axis= or groups= must define the groups; for example {call}.")
    if weights is not None:
        weights = checked_number("weights", weights, call, positive=True)
    inner = SEF(checked_number("strength", strength, call), k, Partition(), weights)
    return WGSEF(inner, partition(axis, groups, num_groups, call))


def exclusive_lasso(
    strength: ArrayLike,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
) -> Penalty:
    r"""The exclusive lasso: entries compete within each group, and every group keeps some.

    `f(x) = strength/2 * sum_g ||x_g||_1^2`; the proximal operator soft thresholds each group at its
    own level. It is `sef` with k = 1 in each group.

    Args:
      strength: >= 0.
      axis: Axes that span one group; None (without groups) for the whole array.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.

    Returns:
      A convex penalty.

    Raises:
      ValueError: If the strength is negative, or groups overlap or do not fit.

    Reference:
      Zhou, Jin and Hoi, Exclusive Lasso for Multi-task Feature Selection, 2010.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.exclusive_lasso(1.0, axis=1).prox(jnp.array([[3.0, 1.0], [2.0, 2.0]])).round(4)
      Array([[1.5   , 0.    ],
             [0.6667, 0.6667]], dtype=float32)
    """
    call = "prox.exclusive_lasso(0.1, axis=0)"
    cells = partition(axis, groups, num_groups, call)
    return SEF(checked_number("strength", strength, call), 1, cells)


@checked(step="(0, inf)")
def fenchel_young_gap(
    penalty: Penalty, v: PyTree, x: PyTree, step: ArrayLike = 1.0
) -> Float[Array, ""]:
    r"""A certificate for a convex proximal operator: 0 if and only if `v = prox(x, step)`.

    `f(v) + f*(y) - <v, y>` with `y = (x - v) / step`; it bounds the excess of the objective over
    its minimum, divided by the step.

    Args:
      penalty: A convex penalty with a `conjugate_value`.
      v: Candidate for `penalty.prox(x, step)`.
      x: The point.
      step: > 0.

    Returns:
      The gap, >= 0 up to rounding.

    Reference:
      Rockafellar, Convex Analysis, 1970, theorem 23.5.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> penalty, x = prox.sef(1), jnp.array([3.0, 1.0])
      >>> prox.fenchel_young_gap(penalty, penalty.prox(x), x).item()
      0.0
      >>> prox.fenchel_young_gap(penalty, x, x).item()
      8.0
    """
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (v, x)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"fenchel_young_gap: v {shapes[0]} and x {shapes[1]} must be alike.")
    y = jax.tree.map(lambda x, v: (widen(x) - widen(v)) / step, x, v)
    inner = sum(
        jnp.real(jnp.vdot(widen(a), b)) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(y))
    )
    return penalty.value(v) + penalty.conjugate_value(y) - inner
