"""Sums of penalties: over the parts of a pytree, and of one array if the proxes compose."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import checked, checked_number
from ._combine import masked
from ._elementwise import l1
from ._group import group_lasso
from ._partition import Axes
from ._penalty import Leaf, Penalty, register


@register
class Nested(Penalty):
    """A sum of penalties whose proximal operators compose, see `nested`."""

    takes_tree = True

    penalties: Leaf

    @property
    def monotone(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether this holds for every part."""
        return all(penalty.monotone for penalty in self.penalties)

    @property
    def weak_convexity(self) -> ArrayLike:
        """The sum."""
        return sum(penalty.weak_convexity for penalty in self.penalties)

    @property
    def groups(self) -> Any:
        """The labels of the first penalty that has labels."""
        labels = (getattr(penalty, "groups", None) for penalty in self.penalties)
        return next((label for label in labels if label is not None), None)

    def _value(self, x: PyTree) -> Array:
        return sum((p.value(y) for p, y in self._pairs(x)), start=jnp.zeros(()))

    def _pairs(self, x: PyTree) -> list[tuple[Penalty, Any]]:
        """Penalties that take one array are applied to each leaf, the others to the whole tree."""
        whole = jax.tree_util.all_leaves([x])
        return [
            (penalty, y)
            for penalty in self.penalties
            for y in ([x] if whole or penalty.takes_tree else jax.tree.leaves(x))
        ]

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        for penalty in self.penalties:
            if penalty.takes_tree:
                x = penalty.prox(x, t)
            else:
                x = jax.tree.map(lambda leaf: penalty.prox(leaf, t), x)  # noqa: B023
        return x


@register
class SeparableSum(Penalty):
    """A penalty for each part of a pytree, see `separable_sum`."""

    takes_tree = True

    penalties: Leaf

    @property
    def elementwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether this holds for every part."""
        return all(penalty.elementwise for penalty in self._parts())

    @property
    def weak_convexity(self) -> ArrayLike:
        """The maximum over the parts."""
        found = [jnp.max(jnp.asarray(p.weak_convexity)) for p in self._parts()]
        return jnp.max(jnp.stack(found)) if found else 0.0

    def _parts(self) -> list[Penalty]:
        return jax.tree.leaves(self.penalties, is_leaf=lambda p: isinstance(p, Penalty))

    def _value(self, x: PyTree) -> Array:
        values = self._map(lambda penalty, leaf: penalty.value(leaf), x, 0.0)
        return sum(jax.tree.leaves(values), start=jnp.zeros(()))

    def _prox(self, x: PyTree, t: Array) -> PyTree:
        return self._map(lambda penalty, leaf: penalty.prox(leaf, t), x, None)

    def _map(self, f, x: PyTree, otherwise: float | None) -> PyTree:
        def part(penalty, sub):
            if penalty is None:
                return sub if otherwise is None else otherwise
            if penalty.takes_tree:
                return f(penalty, sub)
            return jax.tree.map(lambda leaf: f(penalty, leaf), sub)

        stop = lambda p: p is None or isinstance(p, Penalty)  # noqa: E731
        return jax.tree.map(part, self.penalties, x, is_leaf=stop)


@checked()
def separable_sum(penalties: PyTree) -> Penalty:
    r"""A penalty of a pytree: one penalty for every leaf, or a tree of penalties.

    `f(x) = sum_k f_k(x_k)`, and each part has its own proximal operator.

    Args:
      penalties: A penalty for every leaf; or a pytree of penalties that is the upper part of the
        structure of x, with None for unpenalised parts.

    Returns:
      A penalty of pytrees, elementwise if all of them are.

    Raises:
      TypeError: If the tree contains anything other than penalties and None.

    Reference:
      Parikh and Boyd, Proximal Algorithms, 2014, section 2.1.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> penalty = prox.separable_sum({"kernel": prox.l1(1.0), "bias": None})
      >>> penalty.prox({"kernel": jnp.array([3.0]), "bias": jnp.array([3.0])})
      {'bias': Array([3.], dtype=float32), 'kernel': Array([2.], dtype=float32)}
    """
    leaves = jax.tree.leaves(penalties, is_leaf=lambda p: isinstance(p, Penalty))
    if not all(isinstance(leaf, Penalty) for leaf in leaves):
        raise TypeError(
            f"penalties must be a tree of penalties and None, got {penalties!r}; for example "
            'prox.separable_sum({"kernel": prox.l1(0.1), "bias": None}).'
        )
    return SeparableSum(penalties)


def nested(*penalties: Penalty) -> Penalty:
    r"""A sum of penalties of one array whose proximal operators are applied in sequence.

    `f = f_1 + f_2 + ...`, `prox_f = ... prox_{f_2}(prox_{f_1}(v))`. That is exact for l1, then
    group lassos whose groups form a tree, leaves first; and for the total variation, then l1. In
    general it is not exact; this is not checked.

    Args:
      *penalties: Penalties in order of application.

    Returns:
      A penalty.

    Raises:
      TypeError: If an argument is not a penalty.

    Reference:
      Jenatton, Mairal, Obozinski and Bach, Proximal Methods for Hierarchical Sparse Coding, 2011,
      arXiv 1009.2139.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> penalty = prox.nested(prox.l1(1.0), prox.l2(2.5))
      >>> penalty.prox(jnp.array([4.0, 5.0, 0.5])).tolist()
      [1.5, 2.0, 0.0]
    """
    if not penalties or not all(isinstance(penalty, Penalty) for penalty in penalties):
        raise TypeError(
            f"penalties must be penalties, got {penalties!r}; for example "
            "prox.nested(prox.l1(0.1), prox.l2(0.1))."
        )
    return Nested(penalties)


@checked()
def sparse_group_lasso(
    strength: ArrayLike,
    group_strength: ArrayLike,
    axis: Axes = None,
    groups: PyTree = None,
    num_groups: int | None = None,
    weights: ArrayLike | None = None,
) -> Penalty:
    r"""The sparse group lasso: zeroes groups, and entries within the kept groups.

    `f(x) = strength ||x||_1 + group_strength sum_g w_g ||x_g||`; the proximal operator is soft
    thresholding, then block soft thresholding.

    Args:
      strength: >= 0, of the l1 norm.
      group_strength: >= 0, of the group norms.
      axis: Axes that span one group; see `on_norm`.
      groups: Labels; see `on_norm`. Leaves without labels are unpenalised.
      num_groups: Number of groups; required if the labels are traced.
      weights: A weight per group; by default the square root of its size.

    Returns:
      A convex penalty of arrays, or of pytrees if the labels are one.

    Raises:
      ValueError: If a strength is negative, or groups overlap or do not fit.

    Reference:
      Simon, Friedman, Hastie and Tibshirani, A Sparse-Group Lasso, 2013.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> penalty = prox.sparse_group_lasso(1.0, 2.5, axis=1, weights=1.0)
      >>> penalty.prox(jnp.array([[4.0, 5.0, 0.5], [2.0, 2.0, 0.0]])).tolist()
      [[1.5, 2.0, 0.0], [0.0, 0.0, 0.0]]
    """
    checked_number("group_strength", group_strength, "prox.sparse_group_lasso(0.1, 0.1, axis=0)")
    blocks: Any = group_lasso(group_strength, axis, groups, num_groups, weights)
    entries: Any = l1(strength)
    if blocks.partition.spans_leaves:
        gap = lambda leaf: leaf is None  # noqa: E731
        labelled = jax.tree.map(lambda leaf: leaf is not None, blocks.groups, is_leaf=gap)
        entries = masked(separable_sum(entries), labelled)
    return nested(entries, blocks)
