"""Vertical and slash patterns: columns that all queries see, and diagonals."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import check_count, check_fraction, checked
from ..._topk import topk_mask
from ..._tree import register
from ...kernels import KeyBlocks, block_sparse_attention
from ...select import TopK
from ._method import SparseAttention
from ._probe import by_head, length_of, probe

Heads = Float[Array, "h n"]


@register
@dataclass(frozen=True)
class Stripes:
    r"""The keys that queries see: token j is seen by i if `j <= i` and j or i - j is selected.

    Args:
      columns: The selected columns j of each head, `(..., heads, n)` booleans.
      offsets: The selected diagonals i - j of each head, `(..., heads, n)` booleans. Offset 0 is
        always seen, so that no query is without a key.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import sparse_attention
      >>> columns = jnp.array([[True, False, False, False]])
      >>> sparse_attention.Stripes(columns, columns).to_mask(4)[0].astype(int).tolist()
      [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    """

    columns: Any
    offsets: Any

    def to_mask(self, n: int) -> Bool[Array, "*h n n"]:
        """The mask of visible pairs; O(n^2)."""
        gap = jnp.arange(n)[:, None] - jnp.arange(n)
        diagonal = self.offsets[..., jnp.maximum(gap, 0)] | (gap == 0)
        return (self.columns[..., None, :n] | diagonal) & (gap >= 0)

    def tile_closure(self, block: tuple[int, int]) -> KeyBlocks:
        """The tiles that hold a visible pair, for `sj.kernels.block_sparse_attention`.

        Args:
          block: Queries and keys of a tile.
        """
        n, (bq, bk) = self.columns.shape[-1], KeyBlocks(0, 0, block).block
        first_i, first_j = jnp.arange(0, n, bq)[:, None], jnp.arange(0, n, bk)
        last_i, last_j = (jnp.minimum(x + b, n) - 1 for x, b in ((first_i, bq), (first_j, bk)))
        # Of a tile all columns up to its last query are seen, and all offsets that it holds.
        columns = _any_within(self.columns, first_j, jnp.minimum(last_j, last_i))
        offsets = _any_within(self.offsets, jnp.maximum(first_i - last_j, 0), last_i - first_j)
        return KeyBlocks.from_mask(columns | offsets, block)


def _any_within(marked: Bool[Array, "*h n"], first: Any, last: Any) -> Bool[Array, "*h q k"]:
    """Whether any place from `first` to `last`, inclusive, is marked."""
    before = jnp.cumsum(marked, -1, dtype=jnp.int32)
    before = jnp.concatenate([jnp.zeros_like(before[..., :1]), before], -1)
    first, end = jnp.broadcast_arrays(first, jnp.maximum(last, -1) + 1)
    return before[..., jnp.maximum(end, first)] > before[..., first]


class _Striped(SparseAttention):
    """Base class of the methods of columns and diagonals."""

    probe: int
    tile: int | None

    @abstractmethod
    def select(
        self, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], length: Any = None
    ) -> Stripes:
        """The pattern of one sequence.

        Args:
          q: Queries, rotated.
          k: Keys, rotated.
          length: Number of tokens that are not padding; None for all.
        """

    def mask(self, q, k, counts):
        """The visible pairs, see `SparseAttention`."""
        return jax.vmap(self.select)(q, k, counts).to_mask(q.shape[1])

    def attend(self, q, k, v, counts):
        """The attention of a text read at once, with the pattern widened to whole tiles."""
        if self.tile is None:
            return super().attend(q, k, v, counts)
        stripes = jax.vmap(self.select)(q, k, counts)
        return block_sparse_attention(q, k, v, stripes.tile_closure((self.tile, self.tile)))

    def indexing_flops(self, heads, head_size, tokens):
        """Operations of the probe, see `SparseAttention`."""
        return 2.0 * min(self.probe, tokens) * tokens * heads * head_size


@register
@checked(probe="[1, inf)", sinks="[0, inf)", local="[1, inf)", tile="[1, inf)")
@dataclass(frozen=True)
class VerticalSlash(_Striped):
    r"""The columns and diagonals with the most attention of the last queries.

    From `P`, the causal softmax of the last `probe` queries: column j has the score `sum_i P_ij`,
    diagonal o the score `sum_i P_i,i-o`. The first `sinks` columns and the `local` nearest
    diagonals are always kept. Sizes are clipped to the length; the lowest index wins ties.

    Args:
      vertical: Number of columns, at least `sinks`.
      slash: Number of diagonals, at least `local`.
      probe: Number of last queries.
      sinks: First columns that are always kept.
      local: Nearest diagonals that are always kept, at least 1.
      tile: Side of the tiles to which `attend` widens the pattern, which the kernels then skip;
        None for the exact pattern, with a mask.

    Raises:
      ValueError: If a size is out of range.

    Reference:
      Jiang et al., MInference 1.0, 2024 (arXiv 2407.02490), as in Nawrot et al., The Sparse
      Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import sparse_attention
      >>> q = jax.random.normal(jax.random.key(0), (512, 4, 16))
      >>> method = sparse_attention.VerticalSlash(vertical=32, slash=64)
      >>> stripes = method.select(q, q[:, :2])
      >>> stripes.columns.sum(-1).tolist(), stripes.offsets.sum(-1).tolist()
      ([32, 32, 32, 32], [64, 64, 64, 64])
    """

    vertical: int = field(default=512, metadata=dict(static=True))
    slash: int = field(default=512, metadata=dict(static=True))
    probe: int = field(default=256, metadata=dict(static=True))
    sinks: int = field(default=4, metadata=dict(static=True))
    local: int = field(default=64, metadata=dict(static=True))
    tile: int | None = field(default=64, metadata=dict(static=True))

    def __post_init__(self):
        check_count("VerticalSlash: vertical", self.vertical, max(self.sinks, 1))
        check_count("VerticalSlash: slash", self.slash, self.local)

    def select(
        self, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], length: Any = None
    ) -> Stripes:
        """The pattern of one sequence, of which `length` tokens are not padding; None for all."""
        columns, offsets = stripe_scores(q, k, self.probe, length)
        n = q.shape[0]
        columns, offsets = forced(columns, self.sinks), forced(offsets, self.local)
        return Stripes(TopK(min(self.vertical, n))(columns), TopK(min(self.slash, n))(offsets))


@register
@checked(probe="[1, inf)", sinks="[0, inf)", local="[1, inf)", tile="[1, inf)")
@dataclass(frozen=True)
class FlexPrefill(_Striped):
    r"""Columns and diagonals as `VerticalSlash`, as many as hold a share of the attention.

    The scores of each head are divided by the number of queries, so that they sum to 1; it keeps
    `max(least, #(cumsum(sorted scores) <= alpha) + 1)` columns, and as many diagonals by theirs.

    Args:
      alpha: Share of the attention, in [0, 1]; a new value does not recompile.
      least: Least number of columns and of diagonals, at least `sinks` and `local`.
      probe: Number of last queries.
      sinks: As for `VerticalSlash`.
      local: As for `VerticalSlash`.
      tile: As for `VerticalSlash`.

    Raises:
      ValueError: If a size or alpha is out of range.

    Reference:
      Lai et al., FlexPrefill, 2025 (arXiv 2502.20766), without its choice of a block pattern, as in
      Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import sparse_attention
      >>> q = jax.random.normal(jax.random.key(0), (512, 2, 16))
      >>> stripes = sparse_attention.FlexPrefill(0.65, least=64).select(q, q)
      >>> stripes.columns.shape, bool((stripes.columns.sum(-1) > 64).all())
      ((2, 512), True)
    """

    alpha: Any = 0.65
    least: int = field(default=512, metadata=dict(static=True))
    probe: int = field(default=512, metadata=dict(static=True))
    sinks: int = field(default=4, metadata=dict(static=True))
    local: int = field(default=64, metadata=dict(static=True))
    tile: int | None = field(default=64, metadata=dict(static=True))

    def __post_init__(self):
        if isinstance(self.alpha, int | float):
            check_fraction("FlexPrefill: alpha", self.alpha)
        check_count("FlexPrefill: least", self.least, max(self.sinks, self.local))

    def select(
        self, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], length: Any = None
    ) -> Stripes:
        """The pattern of one sequence, of which `length` tokens are not padding; None for all."""
        columns, offsets = stripe_scores(q, k, self.probe, length)
        queries = jnp.clip(length_of(q, length), 1, self.probe)
        return Stripes(
            self._kept(columns / queries, self.sinks), self._kept(offsets / queries, self.local)
        )

    def _kept(self, scores: Heads, first: int) -> Bool[Array, "h n"]:
        # Counted before the first are forced.
        falling = -jnp.sort(-scores, -1)
        enough = (jnp.cumsum(falling, -1) <= self.alpha).sum(-1, keepdims=True) + 1
        size = jnp.minimum(jnp.maximum(enough, self.least), scores.shape[-1])
        return topk_mask(forced(scores, first), size, axes=(1,))


def stripe_scores(
    q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], size: int, length: Any
) -> tuple[Heads, Heads]:
    """The sums of the probe over each column and over each diagonal."""

    def one(q, k):
        p, at = probe(q, k, size, length_of(q, length))
        column = at[:, None] - jnp.arange(q.shape[0])  # of each offset
        along = jnp.take_along_axis(p, jnp.maximum(column, 0), 1)
        return p.sum(0), jnp.where(column >= 0, along, 0).sum(0)

    return by_head(one, q, k)


def forced(scores: Float[Array, "*h n"], first: int) -> Float[Array, "*h n"]:
    """Infinity for the first scores."""
    return jnp.where(jnp.arange(scores.shape[-1]) < first, jnp.inf, scores)
