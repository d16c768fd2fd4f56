"""The sparsity, rank and overlap of updates between checkpoints."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from ..._arguments import checked
from ..._arrays import wide_dtype
from ..._masks import count
from ..._tree import is_array, named_leaves, pure
from ...masks import update_mask


class UpdateSparsity(NamedTuple):
    """The shares of entries that did not change: pooled, by leaf, and the mean of the leaves of
    each layer (by the first number that ends a part of the path).
    """

    total: float
    per_leaf: dict[str, float]
    per_layer: dict[int, float]


@checked(tol="[0, inf)")
def update_sparsity(before: PyTree, after: PyTree, tol: ArrayLike = 1e-5) -> UpdateSparsity:
    r"""The share of parameters that training left as they were, `1 - |after - before|_0 / n`.

    Entries are equal if `|after - before| <= tolerance`, as stored and subtracted in float32. A
    joint property of learning rate, steps, size of the weights and their dtype: a bfloat16 weight
    w only changes by steps beyond `|w| / 512`. Always report these with it.

    Args:
      before: A tree of arrays, biases, norms and embeddings included.
      after: The same tree later.
      tol: tau, 0 for plain inequality.

    Returns:
      An `UpdateSparsity`.

    Raises:
      ValueError: If the trees have other leaves or shapes, or no entries.

    Reference:
      Mukherjee et al., Reinforcement Learning Finetunes Small Subnetworks in Large Language
      Models, 2025 (arXiv 2505.11711).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.update_sparsity import update_sparsity
      >>> before = {"layers": {"0": {"kernel": jnp.ones((2, 2))}}}
      >>> after = {"layers": {"0": {"kernel": jnp.array([[1.0, 1.0], [1.0, 2.0]])}}}
      >>> update_sparsity(before, after)
      UpdateSparsity(total=0.75, per_leaf={'layers/0/kernel': 0.75}, per_layer={0: 0.75})
    """
    masks = named_leaves(pure(update_mask(before, after, tol)))
    sizes = {name: int(np.size(m)) for name, m in masks.items()}
    if not sum(sizes.values()):
        raise ValueError("update_sparsity: the trees have no entries.")
    moved = {name: count(m) for name, m in masks.items()}
    per_leaf = {name: 1 - moved[name] / sizes[name] for name in masks if sizes[name]}
    layers: dict[int, list[float]] = {}
    for name, share in per_leaf.items():
        number = re.search(r"(\d+)(?:/|$)", name)  # conv2d_0 is layer 0
        if number:
            layers.setdefault(int(number[1]), []).append(share)
    per_layer = {layer: float(np.mean(shares)) for layer, shares in sorted(layers.items())}
    total = 1 - sum(moved.values()) / sum(sizes.values())
    return UpdateSparsity(total, per_leaf, per_layer)


@checked()
def update_rank(before: PyTree, after: PyTree) -> dict[str, float]:
    r"""The numerical rank of each matrix of differences over its largest possible rank.

    Singular values above `max(m, n) eps sigma_max` count, eps of float32. Leaves of more than two
    axes are seen as (the leading ones, the last); those of fewer are left out.

    Args:
      before: A tree of arrays.
      after: The same tree later.

    Returns:
      Relative ranks by path, 0 where nothing changed, NaN where a difference is not finite.

    Raises:
      ValueError: If the trees have other leaves or shapes.

    Reference:
      Mukherjee et al., 2025 (arXiv 2505.11711).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.update_sparsity import update_rank
      >>> update_rank({"kernel": jnp.zeros((4, 4))}, {"kernel": jnp.ones((4, 4))})
      {'kernel': 0.25}
    """
    update_mask(before, after)  # checks the trees
    old, new = named_leaves(pure(before)), named_leaves(pure(after))
    ranks = {}
    for name, x in old.items():
        if x.ndim >= 2 and x.size:
            difference = _wide(new[name]) - _wide(x)
            matrix = difference.reshape(-1, x.shape[-1])
            values = np.asarray(jnp.linalg.svdvals(matrix))
            limit = max(matrix.shape) * np.finfo(np.float32).eps * values.max()
            rank = int(np.sum(values > limit)) if np.isfinite(limit) else float("nan")
            ranks[name] = rank / min(matrix.shape)
    return ranks


class UpdateOverlap(NamedTuple):
    """`|A and B| / |A|` and `/ |B|`, what chance gives for each, and `|A and B| / |A or B|`.

    Chance is the density of the other set, leaf by leaf: a random set with as many entries in each
    leaf. Everything is NaN where a set is empty.
    """

    first: float
    second: float
    chance_first: float
    chance_second: float
    jaccard: float


@checked(tol="[0, inf)")
def update_overlap(
    base: PyTree, first: PyTree, second: PyTree, tol: ArrayLike = 1e-5
) -> UpdateOverlap:
    r"""The overlap of the entries changed by two runs from the same start.

    Args:
      base: The parameters that both runs started from.
      first: Those after the first run.
      second: Those after the second run.
      tol: As in `update_sparsity`.

    Returns:
      An `UpdateOverlap`.

    Raises:
      ValueError: If the trees have other leaves or shapes.

    Reference:
      Mukherjee et al., 2025 (arXiv 2505.11711).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.update_sparsity import update_overlap
      >>> base = {"w": jnp.zeros(4)}
      >>> a, b = {"w": jnp.array([1.0, 1, 0, 0])}, {"w": jnp.array([1.0, 0, 0, 0])}
      >>> update_overlap(base, a, b)[:4]
      (0.5, 1.0, 0.25, 0.5)
    """
    a, b = (named_leaves(pure(update_mask(base, x, tol))) for x in (first, second))
    n_a, n_b = ({name: count(m) for name, m in x.items()} for x in (a, b))
    both = sum(count(a[name] & b[name]) for name in a)
    total_a, total_b = sum(n_a.values()), sum(n_b.values())
    if not total_a or not total_b:
        return UpdateOverlap(*[float("nan")] * 5)
    expected = sum(n_a[name] * n_b[name] / np.size(a[name]) for name in a if np.size(a[name]))
    return UpdateOverlap(
        both / total_a,
        both / total_b,
        expected / total_a,
        expected / total_b,
        both / (total_a + total_b - both),
    )


class UpdatePartition(NamedTuple):
    """Shares of the entries that never moved, moved and came back, and moved for good."""

    never: float
    cancelled: float
    net: float


@checked(tol="[0, inf)")
def update_partition(checkpoints: Iterable[PyTree], tol: ArrayLike = 0.0) -> UpdatePartition:
    r"""Partitions entries by their updates along a run: never updated, cancelled, or changed.

    Args:
      checkpoints: Trees of arrays in the order of training, one at a time: only the first, the
        last and one boolean an entry are held.
      tol: As in `update_sparsity`, between neighbours and between the first and last.

    Returns:
      An `UpdatePartition`; the shares add up to 1.

    Raises:
      ValueError: If there are fewer than two checkpoints, or they differ in leaves or shapes.

    Reference:
      Mukherjee et al., 2025 (arXiv 2505.11711).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.update_sparsity import update_partition
      >>> steps = ([0.0, 0, 0, 0], [0.0, 0, 1, 1], [0.0, 0, 0, 2])
      >>> update_partition(jnp.array(step) for step in steps)
      UpdatePartition(never=0.5, cancelled=0.25, net=0.25)
    """
    stream = map(_held, checkpoints)
    first = previous = next(stream, None)
    ever = None
    for tree in stream:
        step = update_mask(previous, tree, tol)
        ever = step if ever is None else jax.tree.map(jnp.logical_or, ever, step)
        previous = tree
    if ever is None:
        raise ValueError("update_partition needs at least two checkpoints.")
    net = update_mask(first, previous, tol)
    size = sum(np.size(m) for m in jax.tree.leaves(net))
    if not size:
        raise ValueError("update_partition: the trees have no entries.")
    moved = sum(count(m) for m in jax.tree.leaves(jax.tree.map(jnp.logical_or, ever, net)))
    final = sum(count(m) for m in jax.tree.leaves(net))
    return UpdatePartition(1 - moved / size, (moved - final) / size, final / size)


def _held(tree: PyTree) -> PyTree:
    """The tree with copies of what can change in place."""
    if not jax.tree.leaves(tree) or not all(map(is_array, jax.tree.leaves(pure(tree)))):
        raise TypeError(f"update_partition: checkpoints must be trees of arrays, got {tree!r:.80}.")
    return jax.tree.map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, pure(tree))


def _wide(x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x))
