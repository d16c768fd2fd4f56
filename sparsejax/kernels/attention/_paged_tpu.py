"""Attention of one token over pages for TPU: the prefetched lists determine the copies of pages.

The heads that share a list are the queries of one block, so that a page is copied once for all.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ._pallas_tpu import LANES, ROWS, check_memory, flash
from ._rule import Rule


def product(
    q: Shaped[Array, "b h d"],
    k: Shaped[Array, "b m hk d"],
    v: Shaped[Array, "b m hk e"],
    index: Int[Array, "b l s"],
    count: Int[Array, "b l"],
    length: Int[Array, " b"],
    page: int,
    scale: float,
) -> Float[Array, "b h e"]:
    """The output in float32."""
    (batch, room, key_heads, width), (_, lists, slots) = v.shape, index.shape
    check(k, v, index.size, page)
    shared, together = lists // key_heads, q.shape[1] // lists
    rows = q.reshape(batch * lists, together, -1)
    rows = jnp.pad(rows, ((0, 0), (0, -together % ROWS), (0, 0)))
    # The heads of the keys, side by side: one of them is a block of columns.
    k, v = (x.reshape(batch, room, -1) for x in (k, v))
    keys = jnp.repeat(jnp.minimum(length, room), lists).astype(jnp.int32)
    index, count = index.reshape(-1, 1, slots), count.reshape(-1, 1)

    def place(h, j):
        return lax.div(h, lists), j, lax.div(lax.rem(h, lists), shared)

    rule, sizes = Rule(room, causal=False, scale=scale), (rows.shape[1], page, width)
    out, _ = flash(index, count, keys, rows, k, v, place, sizes, rule, "paged_attention")
    return out[:, :together].reshape(batch, -1, width)


def check(k: Any, v: Any, entries: int, page: int) -> None:
    """Raises if the hardware cannot tile the pages."""
    _, room, key_heads, _ = k.shape
    if page % ROWS or room % page:
        raise NotImplementedError(
            f"{room} places in pages of {page}: whole pages of a multiple of {ROWS} are required"
        )
    if key_heads > 1 and (k.shape[3] % LANES or v.shape[3] % LANES):
        raise NotImplementedError(
            f"{key_heads} key heads of {k.shape[3]} and {v.shape[3]}: multiples of {LANES} are "
            "required"
        )
    check_memory(k.dtype, entries)
