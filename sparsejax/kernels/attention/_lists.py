"""Lists of the key blocks that each block of queries attends to."""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ..._arguments import checked, is_int, known
from ..._tree import register
from ...select import ActiveSet, TopK


@register
@dataclass(frozen=True)
class KeyBlocks:
    r"""The key blocks that each block of queries attends to, as lists of a fixed length.

    Queries `[i bq, (i + 1) bq)` attend to the keys `[j bk, (j + 1) bk)` of the first
    `count[..., i]` entries j of `index[..., i, :]`. Lists are data: new ones of the same shape do
    not recompile.

    Args:
      index: `(batch, heads, query blocks, slots)` int32, distinct blocks, 0 from position `count`
        on; the axes of the batch and of the heads may be left out for lists that all share.
      count: The same without the last axis, at most the slots.
      block: `(bq, bk)`, queries and keys in a block.

    Raises:
      ValueError: If `block` is not two positive integers, or the shapes do not match.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> blocks = sj.kernels.KeyBlocks.from_mask(jnp.array([[1, 0], [0, 0]]) > 0, (4, 4))
      >>> blocks.index.tolist(), blocks.count.tolist()
      ([[0], [1]], [1, 1])
    """

    index: Any
    count: Any
    block: tuple[int, int] = field(metadata=dict(static=True))

    def __post_init__(self):
        pair = isinstance(self.block, tuple) and len(self.block) == 2
        if not pair or any(not is_int(side) or side < 1 for side in self.block):
            raise ValueError(
                f"KeyBlocks: block must be two positive integers, got {self.block!r}; write "
                "block=(64, 64)."
            )

    @classmethod
    @checked()
    def from_mask(
        cls,
        mask: Bool[Array | np.ndarray, "*h q k"],
        block: tuple[int, int],
        *,
        slots: int | None = None,
    ) -> "KeyBlocks":
        """The listed blocks where a mask of blocks is True, and the blocks of the diagonal.

        The diagonal is always listed, so that no query is without a key.

        Args:
          mask: `(..., query blocks, key blocks)`.
          block: `(bq, bk)`.
          slots: Length of the lists; None for the longest one, or all blocks under `jax.jit`. The
            last blocks before the diagonal are dropped from longer lists.

        Raises:
          ValueError: If `slots` holds less than the diagonal.

        Example:
          >>> import jax.numpy as jnp, sparsejax as sj
          >>> mask = jnp.tril(jnp.ones((4, 4), bool))
          >>> sj.kernels.KeyBlocks.from_mask(mask, (8, 8), slots=2).index.tolist()
          [[0, 0], [0, 1], [0, 2], [0, 3]]
        """
        *lead, queries, keys = mask.shape
        diagonal = _diagonal(queries, keys, block)
        whole = jnp.asarray(mask) | diagonal
        if slots is None:
            length = int(whole.sum(-1).max(initial=1)) if known(whole) else keys
        else:
            length = slots
        least = max(1, int(diagonal.sum(-1).max(initial=0)))
        if not is_int(length) or not least <= length <= keys:
            raise ValueError(
                f"KeyBlocks.from_mask: slots must be an integer from {least}, for the diagonal, to "
                f"the {keys} key blocks, got {length!r}."
            )
        if length < keys:
            whole &= TopK(int(length))(jnp.where(diagonal, 2.0, whole.astype(jnp.float32)))
        listed = ActiveSet.from_mask(whole.reshape(-1, keys), int(length))
        shape = (*lead, queries)
        return cls(listed.index.reshape(*shape, -1), listed.count.reshape(shape), block)

    @classmethod
    @checked(length="[1, inf)", window="[1, inf)", sinks="[0, inf)")
    def sliding_window(
        cls, length: int, block: tuple[int, int], window: int, *, sinks: int = 0
    ) -> "KeyBlocks":
        """The blocks that hold a key in a causal window, or one of the first keys.

        Args:
          length: Number of queries and keys.
          block: `(bq, bk)`.
          window: Number of keys up to the query itself.
          sinks: Number of first keys that all queries see.

        Example:
          >>> import sparsejax as sj
          >>> blocks = sj.kernels.KeyBlocks.sliding_window(16, (4, 4), 3, sinks=1)
          >>> blocks.index.tolist(), blocks.count.tolist()
          ([[0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 2, 3]], [1, 2, 3, 3])
        """
        (bq, bk), first = cls(0, 0, block).block, np.arange(0, length, block[0])[:, None]
        last = np.minimum(first + bq, length) - 1
        begin = np.arange(0, length, bk)
        near = begin + bk > first - window + 1
        return cls.from_mask((near | (begin < sinks)) & (begin <= last), block)

    @property
    def slots(self) -> int:
        """Length of the lists."""
        return self.index.shape[-1]

    @property
    def used(self) -> Bool[Array, "*h q slots"]:
        """The mask of list positions that hold a block."""
        return jnp.arange(self.slots) < self.count[..., None]

    def to_block_mask(self, keys: int) -> Bool[Array, "*h q k"]:
        """The mask of listed blocks, for a number of key blocks."""
        hit = (self.index[..., None] == jnp.arange(keys)) & self.used[..., None]
        return hit.any(-2)

    def to_mask(self, queries: int, keys: int | None = None) -> Bool[Array, "*h n m"]:
        """The mask of the pairs of tokens in listed blocks; O(n^2).

        Args:
          queries: Number of queries.
          keys: Number of keys; None for that of the queries.
        """
        keys = queries if keys is None else keys
        (bq, bk), blocks = self.block, -(-keys // self.block[1])
        mask = jnp.repeat(jnp.repeat(self.to_block_mask(blocks), bq, -2), bk, -1)
        return mask[..., :queries, :keys]


def _diagonal(queries: int, keys: int, block: tuple[int, int]) -> Bool[np.ndarray, "q k"]:
    """The blocks that hold a pair of a token with itself."""
    bq, bk = block
    i, j = np.arange(queries)[:, None], np.arange(keys)
    return (i * bq < (j + 1) * bk) & (j * bk < (i + 1) * bq)


def check_lists(
    what: str, lists: KeyBlocks, lead: tuple[int, ...], queries: int, keys: int,
    name: str = "blocks",
) -> None:  # fmt: skip
    """Raises unless the lists fit the leading axes and the numbers of query and key blocks.

    Entries can be checked outside of jit only; inside, those out of range are skipped.
    """
    index, count = jnp.shape(lists.index), jnp.shape(lists.count)
    rows = index[-2:-1]
    fits = len(index) >= 2 and rows == (queries,) and count == index[:-1]
    given = index[:-2]
    fits = (
        fits
        and len(given) <= len(lead)
        and all(a in (1, b) for a, b in zip(given[::-1], lead[::-1]))
    )
    if not fits:
        raise ValueError(
            f"{what}: {name} with index {index} and count {count} must have the shapes (..., "
            f"{queries}, slots) and (..., {queries}), where ... are the last of {lead}, the batch "
            "and the heads."
        )
    if known(lists.index, lists.count):
        _check_entries(what, np.asarray(lists.index), np.asarray(lists.count), keys, name)


def _check_entries(what: str, index: Any, count: Any, keys: int, name: str) -> None:
    slots = index.shape[-1]
    if count.size and not 0 <= count.min() <= count.max() <= slots:
        raise ValueError(
            f"{what}: the count of {name} must be from 0 to the {slots} entries of a list, got "
            f"{count.min()} to {count.max()}."
        )
    used = np.arange(slots) < count[..., None]
    if np.any(used & ((index < 0) | (index >= keys))):
        raise ValueError(
            f"{what}: the index of {name} must be from 0 to {keys - 1}, for {keys} key blocks, got "
            f"{index[used].min()} to {index[used].max()}."
        )
    # Unused entries differ from all others.
    ordered = np.sort(np.where(used, index, keys + np.arange(slots)), -1)
    if np.any(ordered[..., 1:] == ordered[..., :-1]):
        raise ValueError(f"{what}: a list of {name} holds a block twice; use KeyBlocks.from_mask.")


def broadcast_lists(
    lists: KeyBlocks, lead: tuple[int, ...], keys: int
) -> tuple[Int[Array, "h q s"], Int[Array, "h q"]]:
    """Index and count of each head, batch and heads as one axis.

    An entry out of range becomes `keys`: a block behind all keys, where all pairs are hidden.
    """
    index = jnp.where((lists.index >= 0) & (lists.index < keys), lists.index, keys)
    index = jnp.broadcast_to(index, (*lead, *index.shape[-2:]))
    count = jnp.clip(lists.count, 0, lists.slots)
    count = jnp.broadcast_to(count, (*lead, *count.shape[-1:]))
    return index.reshape(-1, *index.shape[-2:]), count.reshape(-1, count.shape[-1])
