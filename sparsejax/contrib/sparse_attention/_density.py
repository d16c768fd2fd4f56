"""Densities of patterns: of the pairs that are visible, and of those that are computed."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..._arguments import checked
from ...kernels import KeyBlocks


@checked()
def pair_density(mask: Bool[Array | np.ndarray, "*h n n"]) -> Float[Array, "*h"]:
    r"""The share of the causal pairs that are visible, `visible / (n (n + 1) / 2)`.

    Args:
      mask: Visible pairs of a query and a key; later keys are not counted.

    Reference:
      Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import sparse_attention
      >>> sparse_attention.pair_density(jnp.eye(3) > 0).item()
      0.5
    """
    n = mask.shape[-1]
    seen = jnp.sum(jnp.tril(jnp.asarray(mask)), (-2, -1), dtype=jnp.float32)
    return seen / max(n * (n + 1) / 2, 1)


@checked(length="[1, inf)")
def computed_density(blocks: KeyBlocks, length: int) -> Float[Array, "*h"]:
    r"""The pairs of listed tiles over the causal pairs, `tiles bq bk / (n (n + 1) / 2)`.

    Kernels compute whole tiles, also the hidden half of a tile on the diagonal, so that a dense
    pattern has a density above 1, the more the shorter the text.

    Args:
      blocks: The lists.
      length: n, number of tokens.

    Reference:
      Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import sparse_attention
      >>> blocks = sj.kernels.KeyBlocks.from_mask(jnp.eye(2) > 0, (2, 2))
      >>> sparse_attention.computed_density(blocks, 4).item()
      0.800000011920929
    """
    tiles = jnp.sum(blocks.count, -1).astype(jnp.float32)
    bq, bk = blocks.block
    return tiles * (bq * bk / (length * (length + 1) / 2))
