"""Page selection while decoding, by a bound on the scores of each page."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype
from ..._topk import topk_mask
from ..._tree import register
from ...kernels import KeyBlocks, paged_attention
from ...select import ActiveSet
from ._method import SparseAttention, dense


class QuestCache(NamedTuple):
    """Keys and values of all tokens of one sequence, and the range of the keys of each page.

    Attributes:
      keys: (room, key heads, head size).
      values: As `keys`.
      length: Number of tokens so far.
      low: Least key of each page by channel, (pages, key heads, head size); infinity if empty.
      high: Largest key of each page by channel; minus infinity if empty.
    """

    keys: Float[Array, "room hk d"]
    values: Float[Array, "room hk e"]
    length: Int[Array, ""]
    low: Float[Array, "pages hk d"]
    high: Float[Array, "pages hk d"]


@register
@checked(budget="[1, inf)", page="[1, inf)")
@dataclass(frozen=True)
class Quest(SparseAttention):
    r"""Attention of each new token over the pages whose keys can score highest, and the last one.

    A page keeps the least and the largest of its keys by channel. For each page before the current
    one, `sum_c max(q_c low_c, q_c high_c)` bounds the score of any of its keys; the `budget / page`
    pages of the largest bounds and the current page are read. The whole cache is kept: Quest saves
    reads, not memory. Prompts are read densely.

    Args:
      budget: Number of tokens that are read besides the current page, a multiple of `page`.
      page: Number of tokens of a page.
      shared: Whether the query heads of a group share their pages, by the sum of their bounds.

    Raises:
      ValueError: If a size is out of range, or `page` does not divide `budget`.

    Reference:
      Tang et al., Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, 2024 (arXiv
      2406.10774), as in Nawrot et al., The Sparse Frontier, 2025 (arXiv 2504.17768).

    Example:
      >>> import jax
      >>> from sparsejax.contrib import sparse_attention
      >>> k = jax.random.normal(jax.random.key(0), (64, 2, 8))
      >>> quest = sparse_attention.Quest(budget=16, page=8)
      >>> cache = quest.init(k, k, room=72)
      >>> cache = quest.append(cache, k[0], k[0])
      >>> pages = quest.select(cache, k[0].repeat(2, 0))
      >>> pages.count.tolist(), pages.index[:, 0, -1].tolist()
      ([[3], [3]], [8, 8])
    """

    budget: int = field(default=1024, metadata=dict(static=True))
    page: int = field(default=16, metadata=dict(static=True))
    shared: bool = field(default=True, metadata=dict(static=True))

    def __post_init__(self):
        if self.budget % self.page:
            raise ValueError(
                f"Quest: budget must be a multiple of page, got {self.budget} and {self.page}; "
                f"write budget={-(-self.budget // self.page) * self.page}."
            )

    @property
    def pages(self) -> int:
        """Number of pages that are read besides the current one."""
        return self.budget // self.page

    def init(
        self,
        k: Shaped[Array, "n hk d"],
        v: Shaped[Array, "n hk e"],
        length: Any = None,
        *,
        room: int | None = None,
    ) -> QuestCache:
        """The cache of one prompt.

        Args:
          k: Keys, rotated.
          v: Values.
          length: Number of tokens that are not padding; None for all.
          room: Number of tokens for which there is place; None for that of the prompt.
        """
        n = k.shape[0]
        length = jnp.asarray(n if length is None else length, jnp.int32)
        room = -(-max(n, room or 0) // self.page) * self.page
        k, v = (jnp.pad(x, ((0, room - n), (0, 0), (0, 0))) for x in (k, v))
        used = (jnp.arange(room) < length)[:, None, None]
        low, high = (_pages(jnp.where(used, k, fill), self.page) for fill in (jnp.inf, -jnp.inf))
        return QuestCache(k, v, length, low.min(1), high.max(1))

    def append(
        self, cache: QuestCache, k: Shaped[Array, "hk d"], v: Shaped[Array, "hk e"]
    ) -> QuestCache:
        """The cache with one more token."""
        at, page = cache.length, cache.length // self.page
        k, v = k.astype(cache.keys.dtype), v.astype(cache.values.dtype)
        return QuestCache(
            cache.keys.at[at].set(k),
            cache.values.at[at].set(v),
            at + 1,
            cache.low.at[page].min(k),
            cache.high.at[page].max(k),
        )

    def select(self, cache: QuestCache, q: Shaped[Array, "h d"]) -> KeyBlocks:
        """The pages to read for the last token in the cache, the current one last.

        Args:
          cache: The cache, with the key of this token.
          q: Queries, rotated.
        """
        current = (cache.length - 1) // self.page
        bounds = self._bounds(q[None], cache.low, cache.high)[:, 0]
        mask = self._chosen(bounds, current)
        slots = min(self.pages + 1, mask.shape[-1])
        pages = ActiveSet.from_mask(mask, slots)
        return KeyBlocks(pages.index[:, None], pages.count[:, None], (1, self.page))

    def _bounds(self, q: Any, low: Any, high: Any) -> Float[Array, "lists n pages"]:
        """The bound of each page for queries `(n, h, d)`: for each key head, or each head."""
        wide = wide_dtype(q, low)
        q = q.astype(wide).reshape(len(q), low.shape[1], -1, q.shape[2])
        # Empty pages have infinite ranges, whose products with zeros are NaN.
        low, high = (jnp.where(jnp.isfinite(x), x, 0).astype(wide) for x in (low, high))
        # max(q low, q high) by channel: the positive part of q meets high, the negative one low.
        dot = lambda a, b: jnp.einsum("nhgd,phd->hgnp", a, b, precision=lax.Precision.HIGHEST)  # noqa: E731
        bounds = dot(jnp.maximum(q, 0), high) + dot(jnp.minimum(q, 0), low)
        return bounds.sum(1) if self.shared else bounds.reshape(-1, *bounds.shape[2:])

    def _chosen(self, bounds: Any, current: Any) -> Bool[Array, "... pages"]:
        """The best pages before the current one, and that one."""
        place = jnp.arange(bounds.shape[-1])
        current = jnp.asarray(current)[..., None]
        scores = jnp.where(place < current, bounds, -jnp.inf)
        axis = scores.ndim - 1
        shape = (*scores.shape[:-1], 1)
        best = topk_mask(scores, jnp.full(shape, min(self.pages, place.size)), axes=(axis,))
        return (best & (place < current)) | (place == current)

    def mask(self, q, k, counts):
        """A text of which each token is decoded, with its choice of pages."""
        del counts
        return jax.vmap(self._mask_of_one)(q, k)

    def _mask_of_one(self, q, k):
        n = q.shape[0]
        cache = self.init(k, k)
        # Pages before the current one are whole, so their ranges are those of decoding.
        bounds = self._bounds(q, cache.low, cache.high)
        chosen = self._chosen(bounds, jnp.arange(n) // self.page)
        mask = jnp.repeat(chosen, self.page, -1)[..., :n] & jnp.tri(n, dtype=bool)
        return jnp.repeat(mask, q.shape[1] // mask.shape[0], 0)

    def indexing_flops(self, heads, head_size, tokens):
        """Operations of the bounds of all pages for one token, see `SparseAttention`."""
        return 4.0 * tokens / self.page * heads * head_size

    def prefill(self, q, k, v, counts, steps):
        """Dense attention of prompts, and their cache."""
        init = lambda k, v, length: self.init(k, v, length, room=k.shape[0] + steps)  # noqa: E731
        return dense(q, k, v), jax.vmap(init)(k, v, counts)

    def step(self, q, k, v, state):
        """The attention of one more token over its pages, and the cache with it."""

        def one(q, k, v, cache):
            cache = self.append(cache, k[0], v[0])
            keys, values = (x.astype(q.dtype) for x in cache[:2])
            pages = self.select(cache, q[0])
            return paged_attention(q[0], keys, values, pages, cache.length)[None], cache

        return jax.vmap(one)(q, k, v, state)


def _pages(x: Any, page: int) -> Any:
    return x.reshape(-1, page, *x.shape[1:])
