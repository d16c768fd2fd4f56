"""Blocks of keys by the mean query and the mean key of blocks."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from ..._arguments import check_count, checked
from ..._arrays import wide_dtype
from ..._tree import register
from ...kernels import KeyBlocks, block_sparse_attention
from ...select import TopK
from ._method import SparseAttention
from ._probe import length_of


@register
@checked(block="[1, inf)")
@dataclass(frozen=True)
class BlockTopK(SparseAttention):
    r"""The key blocks whose mean key fits the mean query of a block best.

    For means `Q_i` and `K_j` of blocks, padded with zeros, block i sees its `top` best blocks
    `j <= i` by `Q_i K_j`; blocks 0, i - 1 and i are always among them. Within a block attention is
    causal. The lowest index wins ties.

    Args:
      block: Number of tokens of a block.
      top: Number of key blocks for each block of queries, at least 3.

    Raises:
      ValueError: If a size is out of range.

    Reference:
      Jiang et al., MInference 1.0, 2024 (arXiv 2407.02490), as in Nawrot et al., The Sparse
      Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import sparse_attention
      >>> q = jax.random.normal(jax.random.key(0), (64, 4, 8))
      >>> sparse_attention.BlockTopK(block=8, top=3).select(q, q[:, :2]).count[0].tolist()
      [1, 2, 3, 3, 3, 3, 3, 3]
    """

    block: int = field(default=16, metadata=dict(static=True))
    top: int = field(default=64, metadata=dict(static=True))

    def __post_init__(self):
        check_count("BlockTopK: top", self.top, 3)

    def select(
        self, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], length: Any = None
    ) -> KeyBlocks:
        """The lists of one sequence: index `(heads, blocks, slots)`.

        Args:
          q: Queries, rotated.
          k: Keys, rotated.
          length: Number of tokens that are not padding; None for all.
        """
        shared = q.shape[1] // k.shape[1]
        queries, keys = (_means(x, self.block, length_of(q, length)) for x in (q, k))
        queries = queries.reshape(len(queries), k.shape[1], shared, -1)
        scores = jnp.einsum("ihgd,jhd->hgij", queries, keys, precision=lax.Precision.HIGHEST)
        scores = scores.reshape(q.shape[1], *scores.shape[2:])
        i, j = jnp.arange(len(queries))[:, None], jnp.arange(len(keys))
        scores = jnp.where((j == 0) | (j >= i - 1), jnp.inf, scores)
        scores = jnp.where(j <= i, scores, -jnp.inf)
        slots = min(self.top, len(keys))
        mask = TopK(slots)(scores) & (j <= i)
        return KeyBlocks.from_mask(mask, (self.block, self.block), slots=slots)

    def sparsity(self, n: int) -> float:
        """The share of the blocks that are left out, for a number of tokens."""
        blocks = -(-n // self.block)
        top = min(self.top, blocks)
        kept = top * (top + 1) // 2 + (blocks - top) * top
        return 1 - kept / (blocks * (blocks + 1) // 2)

    @classmethod
    def at_sparsity(cls, sparsity: float, n: int, block: int = 16) -> "BlockTopK":
        """The method of the sparsity nearest to a wanted one, for a number of tokens."""
        methods = [cls(block, top) for top in range(3, max(3, -(-n // block)) + 1)]
        return min(methods, key=lambda method: abs(method.sparsity(n) - sparsity))

    def mask(self, q, k, counts):
        """The visible pairs, see `SparseAttention`."""
        pairs = jax.vmap(self.select)(q, k, counts).to_mask(q.shape[1])
        return pairs & jnp.tri(q.shape[1], dtype=bool)

    def indexing_flops(self, heads, head_size, tokens):
        """Operations of the scores of blocks, see `SparseAttention`."""
        return 2.0 * (tokens / self.block) ** 2 * heads * head_size

    def attend(self, q, k, v, counts):
        """The attention of a text read at once, see `SparseAttention`."""
        return block_sparse_attention(q, k, v, jax.vmap(self.select)(q, k, counts))


def _means(x: Any, block: int, length: Any) -> Float[Array, "blocks h d"]:
    """The means of blocks; padding is zeros, and counts."""
    x = jnp.where(jnp.arange(len(x))[:, None, None] < length, x.astype(wide_dtype(x)), 0)
    x = jnp.pad(x, ((0, -len(x) % block), (0, 0), (0, 0)))
    return x.reshape(-1, block, *x.shape[1:]).sum(1) / block
