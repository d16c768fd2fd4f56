"""The base of the methods: how a decoder calls them, and what they do unless they say otherwise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class TokenCache(NamedTuple):
    """Keys and values of the tokens kept, each head with its own number of them.

    Attributes:
      keys: (batch, key heads, room, head size).
      values: As `keys`.
      counts: Tokens kept by each head, (batch, key heads).
    """

    keys: Float[Array, "b hk room d"]
    values: Float[Array, "b hk room d"]
    counts: Int[Array, "b hk"]


class SparseAttention:
    r"""Base class of the methods: dense causal attention, of which a method replaces parts.

    A subclass defines `mask`, `attend` if a kernel can be faster, and `prefill` and `step` if its
    cache is not all keys and values. `sj.models.generate` calls `prefill` for prompts and `step`
    for each further token, `sj.models.perplexity` calls `attend`. Subclasses are frozen dataclasses
    with `sj.register`. All arrays are (batch, length, heads, size), with queries and keys rotated.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import sparse_attention
      >>> class Dense(sparse_attention.SparseAttention):
      ...     pass
      >>> x = jnp.ones((1, 5, 2, 4))
      >>> y, cache = Dense().prefill(x, x, x, jnp.array([5]), steps=3)
      >>> y.shape, cache.keys.shape, cache.counts.tolist()
      ((1, 5, 2, 4), (1, 2, 8, 4), [[5, 5]])
    """

    def mask(
        self,
        q: Float[Array, "b n h d"],
        k: Float[Array, "b n hk d"],
        counts: Int[Array, " b"],
    ) -> Bool[Array, "#b #h n n"]:
        """The pairs that are visible in a text that is read at once, here all causal ones."""
        del k, counts
        return jnp.tri(q.shape[1], dtype=bool)[None, None]

    def attend(
        self,
        q: Float[Array, "b n h d"],
        k: Float[Array, "b n hk d"],
        v: Float[Array, "b n hk d"],
        counts: Int[Array, " b"],
    ) -> Float[Array, "b n h d"]:
        """The attention of a text that is read at once.

        Args:
          q: Queries.
          k: Keys.
          v: Values.
          counts: Number of tokens of each row that are not padding.
        """
        return jax.nn.dot_product_attention(q, k, v, mask=self.mask(q, k, counts))

    def prefill(
        self,
        q: Float[Array, "b n h d"],
        k: Float[Array, "b n hk d"],
        v: Float[Array, "b n hk d"],
        counts: Int[Array, " b"],
        steps: int,
    ) -> tuple[Float[Array, "b n h d"], Any]:
        """The attention of prompts, and their cache with room for more tokens.

        Args:
          q: Queries.
          k: Keys.
          v: Values.
          counts: Number of tokens of each prompt.
          steps: Number of tokens that will follow.
        """
        y = self.attend(q, k, v, counts)
        keys, values = (roomy(jnp.moveaxis(x, 1, 2), steps) for x in (k, v))
        held = jnp.broadcast_to(counts[:, None], keys.shape[:2])
        return y, TokenCache(keys, values, held.astype(jnp.int32))

    def step(
        self,
        q: Float[Array, "b 1 h d"],
        k: Float[Array, "b 1 hk d"],
        v: Float[Array, "b 1 hk d"],
        state: Any,
    ) -> tuple[Float[Array, "b 1 h d"], Any]:
        """The attention of one more token, and the cache with it."""
        write = jax.vmap(
            jax.vmap(lambda room, new, at: lax.dynamic_update_slice(room, new, (at, 0)))
        )
        new = [jnp.moveaxis(x, 1, 2) for x in (k, v)]
        keys, values = (
            write(room, x.astype(room.dtype), state.counts) for room, x in zip(state[:2], new)
        )
        seen = jnp.arange(keys.shape[2]) <= state.counts[..., None]
        seen = jnp.repeat(seen, q.shape[2] // k.shape[2], 1)[:, :, None]
        k, v = (jnp.moveaxis(x, 2, 1).astype(q.dtype) for x in (keys, values))
        y = jax.nn.dot_product_attention(q, k, v, mask=seen)
        return y, TokenCache(keys, values, state.counts + 1)

    def indexing_flops(self, heads: int, head_size: int, tokens: int) -> float:
        """Operations of the choice in one layer: for a text, or for one token behind it."""
        del heads, head_size, tokens
        return 0.0


def roomy(x: Any, steps: int) -> Any:
    """Zeros behind the last axis but one."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, steps), (0, 0)])


def dense(q: Any, k: Any, v: Any) -> Any:
    """Causal attention to all tokens."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)
