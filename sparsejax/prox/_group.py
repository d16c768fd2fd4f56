"""Group penalties: any even penalty on the norms of groups of entries."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import checked_number
from .._arrays import poison
from ._concave import mcp, scad
from ._elementwise import l0, l1, outside
from ._partition import Axes, Partition, fit, partition, ratio
from ._penalty import Elementwise, Leaf, Penalty, register, relu, static
from ._power import lp


@register
class OnNorm(Penalty):
    """`sum_g w_g f(||x_g||)`, see `on_norm`.

    The weights are 1 if None, or the square roots of the group sizes if `by_size`.
    """

    takes_tree = True

    penalty: Penalty
    partition: Partition
    weights: Leaf = None
    by_size: bool = static(default=False)

    @property
    def groups(self) -> PyTree | None:
        """The labels; None if groups are spanned by axes."""
        return self.partition.labels

    @property
    def weak_convexity(self) -> ArrayLike:
        """The weak convexity of the penalty times the largest weight."""
        inner = self.penalty.weak_convexity
        if self.weights is None:
            return inner
        return jnp.where(jnp.asarray(inner) > 0, inner * jnp.max(jnp.asarray(self.weights)), 0)

    def _value(self, x: PyTree) -> Array:
        r = self.partition.norms(x)
        if isinstance(self.penalty, Elementwise):
            w = self._weights(r, x)
            w = jnp.where((r == 0) & jnp.isinf(w), 0, w)  # an infinite weight forces a zero
            return jnp.sum(w * self.penalty._cost(r)) + poison(r)
        return self.penalty.value(r)

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        r = self.partition.norms(x)
        if self.penalty.elementwise:
            w = self._weights(r, x)
            forced = jnp.isinf(w)
            # Near 0 the factor has a limit, and with it the derivative at 0.
            r = jnp.where(r == 0, jnp.sqrt(jnp.finfo(r.dtype).tiny), r)
            u = jnp.where(forced, 0, self.penalty.prox(r, t * jnp.where(forced, 0, w)))
        else:
            u = self.penalty.prox(r, t)
        return self.partition.map(lambda leaf, f: leaf * f, x, ratio(u, r))

    def _conjugate_value(self, y: PyTree) -> Array:
        if self.weights is None and not self.by_size:
            return self.penalty.conjugate_value(self.partition.norms(y))
        return outside(*self.norm_terms(y))

    def norm_terms(self, x: PyTree) -> tuple[Array, Array]:
        """The norms of the groups and their weights, if the penalty of the norms is `l1`."""
        sizes, strength = self.penalty.norm_terms(self.partition.norms(x))
        return sizes, self._weights(sizes, x) * strength

    def _subdiff_distance(self, x: PyTree, grad: PyTree) -> Array:
        if not isinstance(self.penalty, Elementwise):
            return super()._subdiff_distance(x, grad)
        r = self.partition.norms(x)
        slope = self._weights(r, x) * self.penalty._slope(r)
        pull = self.partition.map(lambda leaf, f: leaf * f, x, ratio(slope, r))
        active = self.partition.norms(jax.tree.map(jnp.add, grad, pull))
        inside = jnp.where(r == 0, relu(self.partition.norms(grad) - slope), active)
        return jnp.where(jnp.isnan(r), r, inside)

    def _weights(self, r: Array, x: PyTree) -> Array:
        if self.by_size:
            return jnp.sqrt(self.partition.sizes(x))
        return fit(self.weights, r.shape).astype(r.dtype)


def on_norm(
    penalty: Penalty,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""Any even penalty on group norms, by its scalar proximal operator and rescaling.

    `f(x) = sum_g w_g penalty(||x_g||)`, `prox(x)_g = x_g prox_{t w_g penalty}(||x_g||) / ||x_g||`.

    Args:
      penalty: An elementwise penalty (`prox.cel0(0.1)`), or one of a vector of norms.
      axis: Axes that span one group, as in `jnp.linalg.norm`: with `axis=0` the columns of a
        matrix. None (without groups) for the whole array.
      groups: Integer labels in the shape of x; or a pytree of them in the structure of x, so that
        a group may span leaves (None for a leaf outside); or disjoint lists of indices.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group, 1 by default; 0 leaves a group unpenalised.

    Returns:
      A penalty of arrays, or of pytrees if the labels are one; supports complex x.

    Raises:
      ValueError: If groups overlap, labels are out of range or of another shape than x.

    Reference:
      Huang, Breheny and Ma, A Selective Review of Group Selection in High-Dimensional Models,
      2012, arXiv 1204.6491.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> x = jnp.array([[3.0, 0.3], [4.0, 0.4]])
      >>> prox.on_norm(prox.l0(2.0), axis=0).prox(x).tolist()
      [[3.0, 0.0], [4.0, 0.0]]
    """
    call = "prox.on_norm(prox.l1(0.1), axis=0)"
    if not isinstance(penalty, Penalty) or not penalty.monotone:
        raise TypeError(
            f"penalty must be non-decreasing in the modulus, got {penalty!r}; for example {call}."
        )
    if weights is not None:
        weights = checked_number("weights", weights, call)
    return OnNorm(penalty, partition(axis, groups, num_groups, call), weights)


def l2(strength: ArrayLike, axis: Axes = -1) -> Penalty:
    r"""The l2 norm (not squared): zeroes whole vectors.

    `f(x) = strength * ||x||`, `prox(v, t) = max(1 - t strength / ||v||, 0) v`.

    Args:
      strength: >= 0.
      axis: Axes of the vectors, None for the whole array.

    Returns:
      A convex penalty.

    Raises:
      ValueError: If the strength is negative.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.l2(2.5).prox(jnp.array([3.0, 4.0])).tolist()
      [1.5, 2.0]
    """
    return on_norm(l1(strength), axis)


def group_lasso(
    strength: ArrayLike,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""The group lasso: block soft thresholding.

    `f(x) = strength * sum_g w_g ||x_g||`.

    Args:
      strength: >= 0.
      axis: Axes that span one group: with `axis=0` the columns of a kernel `(in, out)`.
      groups: Integer labels, a pytree of them, or disjoint lists of indices; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group; by default the square root of its size.

    Returns:
      A convex penalty of arrays, or of pytrees if the labels are one. `prox.group_labels` puts the
      bias of a neuron into its group: otherwise a neuron with zero weights still outputs a
      constant.

    Raises:
      ValueError: If the strength is negative, or groups overlap or do not fit.

    Reference:
      Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> x = jnp.array([3.0, 4.0, 0.3, 0.4])
      >>> prox.group_lasso(2.5, groups=jnp.array([0, 0, 1, 1]), weights=1.0).prox(x).tolist()
      [1.5, 2.0, 0.0, 0.0]
    """
    penalty: Any = on_norm(l1(strength), axis, groups, num_groups, weights)
    return replace(penalty, by_size=weights is None)


def group_l0(
    strength: ArrayLike,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""The number of non-zero groups: keeps a group if `||x_g|| > sqrt(2 t strength w_g)`.

    `f(x) = strength * sum_g w_g 1[x_g != 0]`.

    Args:
      strength: >= 0.
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group, 1 by default.

    Returns:
      A penalty that is not weakly convex.

    Raises:
      ValueError: If the strength is negative, or groups overlap or do not fit.

    Reference:
      Hu, Li, Meng, Qin and Yang, Group Sparse Optimization via lp,q Regularization, 2017,
      arXiv 1601.07779.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.group_l0(2.0, axis=1).prox(jnp.array([[3.0, 4.0], [1.0, 1.0]])).tolist()
      [[3.0, 4.0], [0.0, 0.0]]
    """
    return on_norm(l0(strength), axis, groups, num_groups, weights)


def group_mcp(
    strength: ArrayLike,
    gamma: ArrayLike = 3.0,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""The minimax concave penalty of group norms: `on_norm(mcp(strength, gamma), ...)`.

    Args:
      strength: >= 0.
      gamma: > 0.
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group, 1 by default.

    Returns:
      A penalty of weak convexity `max w_g / gamma`.

    Raises:
      ValueError: If a number is out of range, or groups overlap or do not fit.

    Reference:
      Huang, Breheny and Ma, A Selective Review of Group Selection in High-Dimensional Models,
      2012, arXiv 1204.6491.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.group_mcp(1.0, gamma=2.0, axis=1).prox(jnp.array([[3.0, 4.0], [0.6, 0.8]])).tolist()
      [[3.0, 4.0], [0.0, 0.0]]
    """
    return on_norm(mcp(strength, gamma), axis, groups, num_groups, weights)


def group_scad(
    strength: ArrayLike,
    a: ArrayLike = 3.7,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""SCAD of group norms: `on_norm(scad(strength, a), ...)`.

    Args:
      strength: >= 0.
      a: > 2.
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group, 1 by default.

    Returns:
      A penalty of weak convexity `max w_g / (a - 1)`.

    Raises:
      ValueError: If a number is out of range, or groups overlap or do not fit.

    Reference:
      Wang, Chen and Li, Group SCAD regression analysis for microarray time course gene
      expression data, 2007.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.group_scad(1.0, axis=1).prox(jnp.array([[3.0, 4.0], [0.6, 0.8]])).tolist()
      [[3.0, 4.0], [0.0, 0.0]]
    """
    return on_norm(scad(strength, a), axis, groups, num_groups, weights)


def group_lp(
    strength: ArrayLike,
    p: ArrayLike,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""A power of group norms: `on_norm(lp(strength, p), ...)`.

    Args:
      strength: >= 0.
      p: In (0, 2].
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group, 1 by default.

    Returns:
      A penalty, convex for p >= 1.

    Raises:
      ValueError: If a number is out of range, or groups overlap or do not fit.

    Reference:
      Hu, Li, Meng, Qin and Yang, Group Sparse Optimization via lp,q Regularization, 2017,
      arXiv 1601.07779.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> prox.group_lp(1.0, p=0.5, axis=1).prox(jnp.array([[0.6, 0.8], [0.0, 0.0]])).tolist()
      [[0.0, 0.0], [0.0, 0.0]]
    """
    return on_norm(lp(strength, p), axis, groups, num_groups, weights)
