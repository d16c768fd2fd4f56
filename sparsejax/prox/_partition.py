"""Partitions of entries into groups: by axes, by a label per entry, or across leaves."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arguments import check_count, checked_axis, is_int, known
from .._arrays import quotient
from .._tree import is_array, map_named, named_leaves
from ._labels import GroupLabels
from ._penalty import Leaf, register, static

Axes = int | Sequence[int] | None


@register
class Partition:
    """Groups of entries: all entries along `axis` (None: all axes), or entries with one label.

    A value per group has the shape of x with length 1 at `axis`, or `(num_groups,)`.
    """

    labels: Leaf = None
    axis: tuple[int, ...] | None = static(default=None)
    num_groups: int = static(default=0)

    @property
    def spans_leaves(self) -> bool:
        """Whether the labels are a tree, so that a group may span leaves."""
        return self.labels is not None and not jax.tree_util.all_leaves([self.labels])

    def sum(self, x: PyTree) -> Array:
        """Sums over each group."""
        if self.labels is None:
            return jnp.sum(x, self.axis, keepdims=True)
        return sum(self._segments(jax.ops.segment_sum, x))  # pyright: ignore[reportReturnType]

    def max(self, x: PyTree) -> Array:
        """The largest non-negative entry of each group, 0 for an empty one."""
        if self.labels is None:
            return jnp.max(x, self.axis, keepdims=True, initial=0)
        parts = [jnp.maximum(part, 0) for part in self._segments(jax.ops.segment_max, x)]
        return jnp.max(jnp.stack(parts), axis=0)

    def map(self, f: Callable[..., Array], x: PyTree, *of_groups: Array) -> PyTree:
        """`f(entries, values of their groups...)`; leaves without labels are unchanged."""
        if self.labels is None:
            return f(x, *of_groups)
        labels = self._labels(x)

        def at(name, leaf):
            if name not in labels:
                return leaf
            return f(leaf, *(group[labels[name]] for group in of_groups))

        return map_named(at, x)

    def norms(self, x: PyTree) -> Array:
        """The l2 norm of each group, without overflow, and with gradient 0 at 0."""
        size = lax.stop_gradient(self.max(self.map(jnp.abs, x)))
        # The squares of the size and of its inverse stay finite: XLA folds products of constants.
        bound = float(jnp.finfo(size.dtype).max) ** 0.4
        size = jnp.where(size < jnp.inf, jnp.clip(size, 1 / bound, bound), 1)
        total = self.sum(self.map(lambda leaf, s: _square(leaf * s), x, 1 / size))
        positive = total > 0
        return jnp.where(positive, size * jnp.sqrt(jnp.where(positive, total, 1)), total)

    def sizes(self, x: PyTree) -> Array:
        """The number of entries of each group."""
        return self.sum(self.map(lambda leaf: jnp.ones_like(leaf, _real(leaf)), x))

    def ravel(self, x: PyTree) -> tuple[Array, Callable[[Array], PyTree], "Partition"]:
        """The labelled leaves as one vector, the inverse map, and the partition of that vector."""
        labels, leaves = self._labels(x), named_leaves(x)
        flat = jnp.concatenate([leaves[name].ravel() for name in labels])
        joint = jnp.concatenate([jnp.ravel(label) for label in labels.values()])

        def back(vector):
            ends = np.cumsum([math.prod(leaves[name].shape) for name in labels])[:-1]
            parts = dict(zip(labels, jnp.split(vector, ends)))
            return map_named(
                lambda name, leaf: parts[name].reshape(leaf.shape) if name in parts else leaf, x
            )

        return flat, back, Partition(joint, num_groups=self.num_groups)

    def _segments(self, reduce: Callable[..., Array], x: PyTree) -> list[Array]:
        leaves = named_leaves(x)
        return [
            reduce(leaves[name].ravel(), jnp.ravel(label), self.num_groups)
            for name, label in self._labels(x).items()
        ]

    def _labels(self, x: PyTree) -> dict[str, Array]:
        """Labels by path; every leaf of x must have labels of its shape, or None."""
        labels = {name: jnp.asarray(label) for name, label in named_leaves(self.labels).items()}
        leaves = named_leaves(x)
        for name, label in labels.items():
            shape = leaves[name].shape if name in leaves else None
            if label.shape != shape:
                raise ValueError(
                    f"groups{f' at {name}' if name else ''}: labels of shape {label.shape} for "
                    f"an array of shape {shape}; every entry needs one label, as in "
                    "groups=jnp.broadcast_to(jnp.arange(n), x.shape)."
                )
        known_names = labels.keys() | named_gaps(self.labels)
        unlabelled = [name for name in leaves if name not in known_names]
        if unlabelled:
            raise ValueError(
                f"groups: no labels for {', '.join(unlabelled)}; pass None for a leaf that "
                "belongs to no group."
            )
        return labels


def named_gaps(tree: PyTree) -> set[str]:
    """The paths at which a tree has None."""
    filled = jax.tree.map(lambda leaf: leaf is None, tree, is_leaf=lambda leaf: leaf is None)
    return {name for name, is_gap in named_leaves(filled).items() if is_gap}


def partition(
    axis: Axes = None, groups: PyTree = None, num_groups: int | None = None, call: str = ""
) -> Partition:
    """The partition defined by `axis=` or `groups=`; concrete labels are validated."""
    if isinstance(groups, GroupLabels):
        groups, num_groups = groups
    if num_groups is not None:
        check_count("num_groups", num_groups)
    if groups is None:
        axes = checked_axis(axis)
        return Partition(axis=(axes,) if isinstance(axes, int) else axes)
    if axis is not None:
        raise ValueError(f"axis={axis} and groups= exclude each other; for example {call}.")
    if _is_index_lists(groups):
        groups = _labels_of(groups)
    elif isinstance(groups, list | tuple) and all(isinstance(g, int) for g in groups):
        groups = np.array(groups)
    return Partition(groups, num_groups=_count(groups, num_groups, call))


def ratio(u: Array, r: Array) -> Array:
    """`u / r` for groups of norm r: 0 where r is 0, with gradient 0; 1 where both are infinite."""
    usable = (r > 0) & (r < jnp.inf)
    other = jnp.where(r == jnp.inf, jnp.where(u == jnp.inf, 1, 0), lax.stop_gradient(r))
    return jnp.where(usable, quotient(jnp.where(usable, u, 0), jnp.where(usable, r, 1)), other)


def fit(weights: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """Weights in the shape of a value per group; axes of length one may be omitted."""
    weights = jnp.asarray(1.0 if weights is None else weights)
    squeezed = tuple(n for n in shape if n != 1)
    if weights.ndim and tuple(n for n in weights.shape if n != 1) != squeezed:
        raise ValueError(f"weights of shape {weights.shape} do not fit groups of shape {shape}.")
    return weights.reshape(shape) if weights.ndim else weights


def _square(x: Array) -> Array:
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x * x


def _real(x: Array) -> Any:
    return jnp.finfo(x.dtype).dtype


def _is_index_lists(groups: Any) -> bool:
    lists = isinstance(groups, list | tuple) and len(groups) > 0
    return lists and all(
        isinstance(g, list | tuple) and all(isinstance(i, int) for i in g) for g in groups
    )


def _labels_of(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Labels of a vector from lists of indices, which must cover each index exactly once."""
    flat = np.sort(np.concatenate([np.asarray(g, int) for g in lists]))
    repeated = flat[1:][flat[1:] == flat[:-1]]
    if repeated.size:
        raise ValueError(
            f"groups overlap: index {repeated[0]} is in two lists. Every entry belongs to exactly "
            "one group."
        )
    if not np.array_equal(flat, np.arange(flat.size)):
        raise ValueError(f"groups must cover the indices 0 to {flat.size - 1}, got {flat}.")
    labels = np.empty(flat.size, np.int32)
    for group, indices in enumerate(lists):
        labels[list(indices)] = group
    return labels


def _count(groups: PyTree, num_groups: int | None, call: str) -> int:
    """The number of groups; concrete labels are validated against it."""
    leaves = jax.tree.leaves(groups)
    for leaf in leaves:
        if not is_array(leaf) and not is_int(leaf):
            raise TypeError(f"groups must be integer labels, got {leaf!r:.80}; for example {call}.")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
            raise TypeError(
                f"groups must be integer labels, got {jnp.result_type(leaf)}; for example {call}."
            )
    if not all(map(known, leaves)):
        if num_groups is None:
            raise ValueError(
                "num_groups is required if the labels are traced: groups=labels, num_groups=8."
            )
        return num_groups
    low = min((int(np.min(leaf)) for leaf in leaves if np.size(leaf)), default=0)
    high = max((int(np.max(leaf)) for leaf in leaves if np.size(leaf)), default=-1)
    if low < 0 or (num_groups is not None and high >= num_groups):
        raise ValueError(
            f"groups must be labels from 0 to num_groups - 1, got {low} to {high} with "
            f"num_groups={num_groups}."
        )
    return high + 1 if num_groups is None else num_groups
