"""Eviction after the prompt: the tokens that its last queries attend to."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import check_count, checked
from ..._tree import register
from ...select import ActiveSet, TopK
from ._method import SparseAttention, TokenCache, dense, roomy
from ._probe import by_head, length_of, probe

Scores = Float[Array, "hk n"]
SIZES = {
    "window": "[1, inf)",
    "kernel": "[1, inf)",
    "local": "[0, inf)",
    "sinks": "[0, inf)",
    "prompt": "[0, 1]",
}


@dataclass(frozen=True)
class _Evicting(SparseAttention, ABC):
    """Base class of the methods that evict tokens: sizes, pooling, forced tokens and the cache."""

    capacity: int = field(default=1024, metadata=dict(static=True))
    window: int = field(default=256, metadata=dict(static=True))
    kernel: int = field(default=21, metadata=dict(static=True))
    local: int = field(default=128, metadata=dict(static=True))
    sinks: int = field(default=4, metadata=dict(static=True))
    prompt: float = field(default=0.5, metadata=dict(static=True))

    def __post_init__(self):
        name = type(self).__name__
        check_count(f"{name}: capacity", self.capacity, self.local + self.sinks + 1)
        if self.kernel % 2 == 0:
            raise ValueError(f"{name}: kernel must be odd, got {self.kernel}; write kernel=21.")

    @abstractmethod
    def _importance(self, p: Float[Array, "w n"]) -> Float[Array, " n"]:
        """The importance of each token to one query head."""

    @abstractmethod
    def _grouped(self, scores: Float[Array, "hk g n"]) -> Scores:
        """The importance to the heads of a group."""

    @abstractmethod
    def kept(
        self, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], length: Any = None
    ) -> Bool[Array, "hk n"]:
        """The mask of the tokens that each key head keeps."""

    @abstractmethod
    def most(self, n: int, key_heads: int) -> int:
        """The largest number of tokens that one head keeps of n."""

    def select(
        self, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], length: Any = None
    ) -> ActiveSet:
        """The tokens kept of one prompt: index `(key heads, slots)`, count `(key heads,)`.

        Args:
          q: Queries, rotated.
          k: Keys, rotated.
          length: Number of tokens that are not padding; None for all.
        """
        return ActiveSet.from_mask(self.kept(q, k, length), self.most(*k.shape[:2]))

    def scores(
        self, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"], length: Any = None
    ) -> Scores:
        """The pooled importance; infinity for tokens always kept, minus infinity for padding."""
        end = length_of(q, length)
        one = lambda q, k: self._importance(probe(q, k, self.window, end)[0])  # noqa: E731
        scores = self._grouped(by_head(one, q, k).reshape(k.shape[1], -1, q.shape[0]))
        half = self.kernel // 2
        padded = jnp.pad(scores, ((0, 0), (half, half)))
        # Zeros beyond the ends count.
        pooled = sum(padded[:, i : i + q.shape[0]] for i in range(self.kernel)) / self.kernel
        j = jnp.arange(q.shape[0])
        pooled = jnp.where((j < self.sinks) | (j >= end - self.local), jnp.inf, pooled)
        return jnp.where(j < end, pooled, -jnp.inf)

    def mask(self, q, k, counts):
        """A text whose first part, a share `prompt`, is evicted from for the tokens behind it."""
        n = q.shape[1]
        prompt = jnp.maximum(jnp.floor(counts * self.prompt).astype(jnp.int32), 1)
        kept = jax.vmap(self.kept)(q, k, prompt)
        kept = jnp.repeat(kept, q.shape[2] // k.shape[2], 1)[:, :, None]
        i, j, end = jnp.arange(n)[:, None], jnp.arange(n), prompt[:, None, None, None]
        return (j <= i) & ((i < end) | (j >= end) | kept)

    def indexing_flops(self, heads, head_size, tokens):
        """Operations of the probe, see `SparseAttention`."""
        return 2.0 * min(self.window, tokens) * tokens * heads * head_size

    def prefill(self, q, k, v, counts, steps):
        """Dense attention of prompts, and the cache of the tokens kept."""
        chosen = jax.vmap(self.select)(q, k, counts)
        keys, values = (
            jnp.take_along_axis(jnp.moveaxis(x, 1, 2), chosen.index[..., None], 2) for x in (k, v)
        )
        return dense(q, k, v), TokenCache(roomy(keys, steps), roomy(values, steps), chosen.count)


@register
@checked(**SIZES)
@dataclass(frozen=True)
class SnapKV(_Evicting):
    r"""Keeps the tokens of a prompt that its last queries attend to, as many for each key head.

    From `P`, the causal softmax of the last `window` queries, averaged over the query heads of a
    group and summed over the queries; average pooling over `kernel` tokens, whose divisor does not
    change at the ends. The first `sinks` and the last `local` tokens are always kept.

    Args:
      capacity: Number of tokens kept by each key head, above `local + sinks`.
      window: Number of last queries.
      kernel: Width of the pooling, odd.
      local: Last tokens that are always kept.
      sinks: First tokens that are always kept.
      prompt: For `sj.models.perplexity`, the share of a text that is the prompt, in [0, 1].

    Raises:
      ValueError: If a size is out of range.

    Reference:
      Li et al., SnapKV, 2024 (arXiv 2404.14469), as in Nawrot et al., The Sparse Frontier, 2025
      (arXiv 2504.17768).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import sparse_attention
      >>> q = jax.random.normal(jax.random.key(0), (64, 4, 8))
      >>> method = sparse_attention.SnapKV(capacity=16, window=8, kernel=3, local=4)
      >>> kept = method.select(q, q[:, :2])
      >>> kept.index.shape, kept.index[0, :4].tolist(), kept.index[0, -4:].tolist()
      ((2, 16), [0, 1, 2, 3], [60, 61, 62, 63])
    """

    def _importance(self, p):
        return p.sum(0)

    def _grouped(self, scores):
        return scores.mean(1)

    def most(self, n: int, key_heads: int) -> int:
        """The largest number of tokens that one head keeps of n."""
        del key_heads
        return min(self.capacity, n)

    def kept(self, q, k, length=None):
        """The mask of the tokens that each key head keeps, `(key heads, n)`."""
        scores = self.scores(q, k, length)
        return TopK(self.most(*k.shape[:2]))(scores) & (scores > -jnp.inf)


@register
@checked(least="[0, 1]", **SIZES)
@dataclass(frozen=True)
class AdaSnapKV(_Evicting):
    r"""SnapKV with one budget for all key heads, of which each has a least share.

    The importance of a token is its largest attention of any query of the window and any head of
    the group, pooled as in `SnapKV`. Each key head keeps its best
    `max(floor(least capacity), local + sinks)` tokens; the other places, `capacity` for each head
    in total, go to the best remaining pairs of a head and a token.

    Args:
      capacity: Number of tokens kept by a key head on average, above `local + sinks`.
      window: Number of last queries.
      kernel: Width of the pooling, odd.
      local: Last tokens that are always kept.
      sinks: First tokens that are always kept.
      prompt: As for `SnapKV`.
      least: Least share of the capacity, in [0, 1].

    Raises:
      ValueError: If a size is out of range.

    Reference:
      Feng et al., Ada-KV, 2024 (arXiv 2407.11550), as in Nawrot et al., The Sparse Frontier, 2025
      (arXiv 2504.17768).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import sparse_attention
      >>> q = jax.random.normal(jax.random.key(0), (64, 4, 8))
      >>> method = sparse_attention.AdaSnapKV(capacity=16, window=8, kernel=3, local=4)
      >>> int(method.select(q, q[:, :2]).count.sum())
      32
    """

    least: float = field(default=0.2, metadata=dict(static=True))

    def _importance(self, p):
        return p.max(0)

    def _grouped(self, scores):
        return scores.max(1)

    def _sizes(self, n: int) -> tuple[int, int]:
        """The capacity, and the least number of tokens of a head."""
        capacity = min(self.capacity, n)
        return capacity, min(
            max(int(self.least * self.capacity), self.local + self.sinks), capacity
        )

    def most(self, n: int, key_heads: int) -> int:
        """The largest number of tokens that one head keeps of n."""
        capacity, least = self._sizes(n)
        return min(n, least + key_heads * (capacity - least))

    def kept(self, q, k, length=None):
        """The mask of the tokens that each key head keeps, `(key heads, n)`."""
        scores = self.scores(q, k, length)
        capacity, least = self._sizes(k.shape[0])
        first = TopK(least)(scores) if least else jnp.zeros(scores.shape, bool)
        mask = first
        if capacity > least:
            rest = jnp.where(first, -jnp.inf, scores).reshape(-1)
            others = TopK(k.shape[1] * (capacity - least))(rest).reshape(scores.shape)
            mask = first | others
        return mask & (scores > -jnp.inf)
