"""The reference: all scores, and the softmax of the visible ones."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from ..._arrays import wide_dtype
from ._lists import KeyBlocks
from ._rule import Rule


def product(
    q: Shaped[Array, "h n d"],
    k: Shaped[Array, "hk m d"],
    v: Shaped[Array, "hk m e"],
    index: Int[Array, "h qb s"],
    count: Int[Array, "h qb"],
    block: tuple[int, int],
    rule: Rule,
) -> tuple[Float[Array, "h n e"], Float[Array, "h n"]]:
    """The output, and the log of the sum of exponentials of each query, in at least float32."""
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])
    mask = KeyBlocks(index, count, block).to_mask(q.shape[1], k.shape[1])
    return masked(q, k, v, mask & rule.visible(i, j), rule.scale)


def masked(
    q: Shaped[Array, "h n d"],
    k: Shaped[Array, "hk m d"],
    v: Shaped[Array, "hk m e"],
    mask: Bool[Array, "#h #n m"],
    scale: Any,
) -> tuple[Float[Array, "h n e"], Float[Array, "h n"]]:
    """Attention with a mask of pairs; a query without a visible key gives zeros."""
    (heads, n, _), (groups, m, _) = q.shape, k.shape
    wide = wide_dtype(q, k, v)
    q = q.reshape(groups, -1, q.shape[2])  # the queries of the heads that share a key head
    s = _dot(q, k, 2, 2, wide).reshape(heads, n, m) * jnp.asarray(scale, wide)
    s = jnp.where(mask, s, -jnp.inf)
    top = jnp.max(s, -1, keepdims=True)
    top = lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    p = jnp.exp(s - top)
    total = p.sum(-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    p = (p / total).astype(v.dtype).reshape(groups, -1, m)
    return _dot(p, v, 2, 1, wide).reshape(heads, n, v.shape[2]), (top + jnp.log(total))[..., 0]


def _dot(a, b, left: int, right: int, dtype: Any):
    contracted = ((left,), (right,)), ((0,), (0,))
    return lax.dot_general(a, b, contracted, preferred_element_type=dtype)
