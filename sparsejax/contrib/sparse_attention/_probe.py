"""The attention of the last queries, from which methods read what matters."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from ..._arrays import wide_dtype


def probe(
    q: Shaped[Array, "n d"], k: Shaped[Array, "n d"], size: int, length: Any
) -> tuple[Float[Array, "w n"], Int[Array, " w"]]:
    """The causal softmax of the last `size` queries of one head, and their places.

    At least float32, over all keys. Of shorter sequences the first rows are zero, at negative
    places; keys from `length` on are padding, which causality hides.
    """
    n, wide = q.shape[0], wide_dtype(q, k)
    at = length - min(size, n) + jnp.arange(min(size, n))
    rows = q[jnp.maximum(at, 0)].astype(wide)
    scores = jnp.matmul(rows, k.astype(wide).T, precision=lax.Precision.HIGHEST)
    return causal_softmax(scores * q.shape[1] ** -0.5, jnp.arange(n) <= at[:, None]), at


def causal_softmax(scores: Float[Array, "*r n"], seen: Bool[Array, "*r n"]) -> Float[Array, "*r n"]:
    """The softmax of the visible scores; zeros in rows without any."""
    top = jnp.max(jnp.where(seen, scores, -jnp.inf), -1, keepdims=True)
    p = jnp.where(seen, jnp.exp(jnp.where(seen, scores - top, 0)), 0)
    total = p.sum(-1, keepdims=True)
    return p / jnp.where(total > 0, total, 1)


def by_head(f: Any, q: Shaped[Array, "n h d"], k: Shaped[Array, "n hk d"]) -> Any:
    """`f(q, k)` of each head in turn with the keys of its group, so that one probe is stored."""
    shared = q.shape[1] // k.shape[1]
    heads = jnp.moveaxis(q, 1, 0), jnp.arange(q.shape[1]) // shared
    keys = jnp.moveaxis(k, 1, 0)
    return lax.map(lambda head: f(head[0], keys[head[1]]), heads)


def length_of(q: Any, length: Any) -> Any:
    """The number of tokens that are not padding."""
    return q.shape[0] if length is None else length
