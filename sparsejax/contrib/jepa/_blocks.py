"""Blocks of patches: those to predict, and the context to predict them from."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from ..._arguments import checked
from ..._topk import topk_mask


class Blocks(NamedTuple):
    """Indices of patches of one image, in row-major order.

    Args:
      context: Increasing indices of the context, without patches of a target.
      targets: Indices of the patches of each target block.
    """

    context: Int[Array, " c"]
    targets: Int[Array, "m t"]


@checked(grid="[1, inf)", target="[1, inf)", targets="[1, inf)", context="[1, inf)")
def block_masks(
    grid: tuple[int, int],
    target: tuple[int, int],
    *,
    key: Key[Array, ""],
    targets: int = 1,
    context: tuple[int, int] | None = None,
) -> Blocks:
    r"""Draws target blocks and a context of fixed sizes at random places of a grid of patches.

    The context is a block without all target patches. It has the number of patches that remain if
    all target blocks are disjoint and inside it, so that shapes are static: of more that remain, a
    random subset is kept.

    Args:
      grid: Rows and columns of patches of an image.
      target: Rows and columns of a target block.
      key: A key from `jax.random.key`; `jax.vmap` over keys gives each image its own blocks.
      targets: Number of target blocks, which may overlap.
      context: Rows and columns of the context block; None means the whole grid.

    Returns:
      `Blocks(context, targets)`.

    Raises:
      ValueError: If a block is larger than the grid, or no context would remain.

    Reference:
      Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive
      Architecture, 2023 (arXiv 2301.08243).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import jepa
      >>> blocks = jepa.block_masks((4, 4), (2, 2), key=jax.random.key(0))
      >>> blocks.context.shape, blocks.targets.shape
      ((12,), (1, 4))
    """
    context = grid if context is None else context
    for name, block in (("target", target), ("context", context)):
        if block[0] > grid[0] or block[1] > grid[1]:
            raise ValueError(f"block_masks: {name}={block} must fit into the grid {grid}.")
    size = math.prod(context) - targets * math.prod(target)
    if size < 1:
        raise ValueError(
            f"block_masks: {targets} targets of {target} leave nothing of a context of {context}; "
            "pass a smaller target or fewer targets."
        )
    of_targets, of_context, subset = jax.random.split(key, 3)
    blocks = jax.vmap(lambda k: _block(grid, target, k))(jax.random.split(of_targets, targets))
    free = jnp.zeros(math.prod(grid), bool).at[_block(grid, context, of_context)].set(True)
    free = free.at[blocks].set(False)
    ranks = jnp.where(free, jax.random.uniform(subset, free.shape), -1)
    kept = topk_mask(ranks, size)
    return Blocks(jnp.flatnonzero(kept, size=size), blocks)


def _block(grid: tuple[int, int], block: tuple[int, int], key: Array) -> Int[Array, " t"]:
    """The patches of a block at a random place."""
    starts = [
        jax.random.randint(k, (), 0, whole - part + 1)
        for k, whole, part in zip(jax.random.split(key), grid, block)
    ]
    rows, columns = (start + jnp.arange(part) for start, part in zip(starts, block))
    return (rows[:, None] * grid[1] + columns).reshape(-1)
