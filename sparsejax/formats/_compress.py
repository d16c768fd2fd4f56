"""The kernels of a parameter tree in compressed form, as a plan says."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._tree import map_named, named_leaves, pure
from ..patterns._layout import matrix_view
from ._array import SparseArray
from ._block import BlockArray
from ._nm import NMArray


@runtime_checkable
class Plan(Protocol):
    """What compression needs of a plan, as `sj.plan` makes it."""

    @property
    def leaves(self) -> tuple[Any, ...]:
        """The planned leaves, each with a name and a pattern."""
        ...

    def masks(self, scores: PyTree) -> PyTree:
        """The masks that keep the largest scores."""
        ...


def compress(tree: PyTree, plan: Plan, masks: PyTree | None = None) -> PyTree:
    """Compresses the planned leaves of a tree of parameters.

    An N:M leaf becomes an `NMArray`, a block-sparse one a `BlockArray`, of the matrix
    `(stacked..., K, N)` that its pattern sees: a kernel with more axes loses their names. Patterns
    that have no compressed form (`Unstructured`, `Channel`, `Groups`, N:M that keeps nothing) stay
    dense arrays with zeros.

    Args:
      tree: Parameters: a tree of arrays, `nnx.State` or `nnx.Module` (its `nnx.Param`s).
      plan: What to compress, from `sj.plan`.
      masks: Tree of masks such as `sj.get_masks(optimizer.opt_state)`; None keeps the largest
        magnitudes, which are the weights that are not zero yet if the tree was pruned.

    Returns:
      The tree with compressed leaves; leaves that are not planned are passed through.

    Raises:
      ValueError: If a mask does not fit its leaf or its pattern.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"kernel": jnp.arange(16.0).reshape(8, 2), "bias": jnp.ones(2)}
      >>> small = sj.formats.compress(params, sj.plan(params, sj.NM(2, 4)))
      >>> small["kernel"], small["kernel"].nbytes
      (NMArray(2:4, shape=(8, 2), dtype=float32), 36)
    """
    tree = pure(tree)
    if masks is None:
        masks = plan.masks(jax.tree.map(jnp.abs, tree))
    patterns = {leaf.name: leaf.pattern for leaf in plan.leaves}

    def at(name, leaf, pattern, mask):
        if pattern is None or mask is None:
            return leaf
        return compress_leaf(leaf, pattern, mask, name)

    return map_named(at, tree, patterns, named_leaves(masks))


def compress_leaf(
    w: Float[Array, "..."], pattern: Any, mask: Bool[Array, "..."], name: str = "kernel"
) -> SparseArray | Float[Array, "..."]:
    """One leaf in the format of its pattern, or dense with zeros where there is none."""
    if tuple(w.shape) != tuple(mask.shape):
        raise ValueError(f"{name}: the mask has shape {mask.shape}, the leaf {w.shape}.")
    pattern = target(pattern)
    if not (is_nm(pattern) or is_block(pattern)):
        return jnp.where(mask, w, jnp.zeros((), w.dtype))
    view = matrix_view(w.shape, pattern.axis, pattern.stacked)
    matrix, kept = view.to_matrix(w), view.to_matrix(mask)
    try:
        if is_nm(pattern):
            return NMArray.fromdense(matrix, pattern.n, pattern.m, mask=kept)
        return BlockArray.fromdense(matrix, pattern.shape, mask=kept)
    except ValueError as error:
        raise ValueError(f"{name} of shape {tuple(w.shape)}: {error}") from error


def target(pattern: Any) -> Any:
    """The pattern that training ends with: the last of stages, itself otherwise."""
    return getattr(pattern, "patterns", (pattern,))[-1]


def is_nm(pattern: Any) -> bool:
    """Whether the pattern has the N:M format; one that keeps nothing has no slot to store."""
    return hasattr(pattern, "n") and hasattr(pattern, "m") and pattern.n > 0


def is_block(pattern: Any) -> bool:
    """Whether the pattern has the block format."""
    return isinstance(getattr(pattern, "shape", None), tuple)
