"""The compressed format of a pattern."""

import functools
from typing import Any

from jaxtyping import Array, Bool, Float

from .._arguments import checked
from ..patterns import NM, Block, Pattern
from ._array import SparseArray
from ._block import BlockArray
from ._nm import NMArray


@checked()
@functools.singledispatch
def compress_matrix(
    pattern: Pattern, matrix: Float[Array, "... k n"], mask: Bool[Array, "... k n"]
) -> SparseArray | None:
    """A masked matrix in the format of its pattern; None if the pattern has none.

    Custom patterns define `Pattern.compressed`.

    Args:
      pattern: The pattern of the mask.
      matrix: `(stacked..., K, N)`.
      mask: Entries to keep, of the same shape.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> mask = jnp.arange(8).reshape(4, 2) < 4
      >>> sj.formats.compress_matrix(sj.NM(2, 4), jnp.ones((4, 2)), mask)
      NMArray(2:4, shape=(4, 2), dtype=float32)
    """
    return pattern.compressed(matrix, mask)


@compress_matrix.register
def _(pattern: NM, matrix: Any, mask: Any) -> SparseArray | None:
    # N:M with n = 0 has no slots to store.
    return NMArray.fromdense(matrix, pattern.n, pattern.m, mask=mask) if pattern.n else None


@compress_matrix.register
def _(pattern: Block, matrix: Any, mask: Any) -> SparseArray | None:
    return BlockArray.fromdense(matrix, pattern.shape, mask=mask)
