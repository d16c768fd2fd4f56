"""Attention that computes the listed blocks only: a flash loop over each list, O(n) memory.

A step takes a few blocks of queries of a head and goes over their lists in chunks with a running
maximum and sum. The trip count is data, so short lists take less time than long ones. The backward
pass goes over the same chunks and adds the gradients of the keys in place.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ..._arrays import wide_dtype
from ._rule import LOW, Rule

KEYS = 512  # keys of a chunk
ROWS = 256  # queries of a step, of several blocks with lists of similar lengths


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
    tiles = _Tiles(q, k, v, index, count, block, rule)

    def one(item):
        q, at = item

        def add(c, sums):
            s, _, values = tiles.scores(q, at, c)
            top, total, out = sums
            new = jnp.maximum(top, s.max(-1))
            p, shrink = jnp.exp(s - new[:, None]), jnp.exp(top - new)
            out = out * shrink[:, None] + _dot(p.astype(v.dtype), values, 1, 0, tiles.wide)
            return new, total * shrink + p.sum(-1), out

        rows, wide = q.shape[0], tiles.wide
        start = (
            jnp.full(rows, LOW, wide),
            jnp.zeros(rows, wide),
            jnp.zeros((rows, v.shape[2]), wide),
        )
        top, total, out = lax.fori_loop(0, tiles.chunks(at), add, start)
        # Hidden pairs of a query that sees none have the weight exp(LOW - LOW) = 1.
        seen = (top > LOW / 2) | jnp.isnan(total)  # a maximum may ignore NaN
        total = jnp.where(seen, total, 1)
        return jnp.where(seen[:, None], out / total[:, None], 0), top + jnp.log(total)

    together = ROWS // tiles.bq if tiles.bq < ROWS else None
    out, log_sum = lax.map(one, (tiles.q, tiles.at), batch_size=together)
    return tiles.whole(out), tiles.whole(log_sum[..., None])[..., 0]


def backward(q, k, v, index, count, block, rule: Rule, out, log_sum, dy) -> tuple[Any, Any, Any]:
    """The gradients of q, k and v from that of the output."""
    tiles = _Tiles(q, k, v, index, count, block, rule)
    wide = tiles.wide
    split = lambda x: tiles.split(x.astype(wide))  # noqa: E731

    def one(sums, item):
        q, at, dy, delta, log_sum = item

        def add(c, sums):
            dq, dk, dv = sums
            s, keys, values = tiles.scores(q, at, c)
            # A query that sees nothing has the log sum LOW, and weights of 1 to remove.
            p = jnp.where(s <= LOW / 2, 0, jnp.exp(s - log_sum[:, None]))
            ds = p * (_dot(dy, values.astype(wide), 1, 1, wide) - delta[:, None]) * rule.scale
            place = tiles.places(at, c)[0]
            shape = (len(place), tiles.bk, -1)
            dk = dk.at[place].add(_dot(ds, q.astype(wide), 0, 0, wide).reshape(shape))
            dv = dv.at[place].add(_dot(p, dy, 0, 0, wide).reshape(shape))
            return dq + _dot(ds, keys.astype(wide), 1, 0, wide), dk, dv

        start = jnp.zeros(q.shape, wide), *sums
        dq, *sums = lax.fori_loop(0, tiles.chunks(at), add, start)
        return tuple(sums), dq

    zeros = jnp.zeros(tiles.k.shape, wide), jnp.zeros(tiles.v.shape, wide)
    delta = jnp.sum(out.astype(wide) * dy.astype(wide), -1, keepdims=True)
    items = tiles.q, tiles.at, split(dy), split(delta)[..., 0], split(log_sum[..., None])[..., 0]
    (dk, dv), dq = lax.scan(one, zeros, items)
    join = lambda x, like: x.reshape(like.shape[0], -1, like.shape[2])[:, : like.shape[1]]  # noqa: E731
    return tiles.whole(dq).astype(q.dtype), join(dk, k).astype(k.dtype), join(dv, v).astype(v.dtype)


class _Tiles:
    """The blocks of q, k and v, and which blocks of k and v each block of q takes in turn."""

    def __init__(self, q, k, v, index, count, block, rule: Rule):
        (self.heads, self.n, _), self.rule = q.shape, rule
        (self.bq, self.bk), self.slots = block, index.shape[-1]
        self.wide = wide_dtype(q, k, v)
        self.q, self.k, self.v = self.split(q), _blocks(k, self.bk), _blocks(v, self.bk)
        self.step = max(1, min(self.slots, KEYS // self.bk))
        # Whole chunks, so that no slice of a list is shifted at its end.
        index = jnp.pad(index, ((0, 0), (0, 0), (0, -self.slots % self.step)))
        self.blocks = len(self.k) // k.shape[0]
        first = jnp.arange(self.heads) // (self.heads // k.shape[0]) * self.blocks
        row = jnp.arange(index.shape[1]) * self.bq
        head, row = jnp.meshgrid(first, row, indexing="ij")
        self.at = index.reshape(-1, index.shape[2]), count.ravel(), head.ravel(), row.ravel()

    def split(self, x) -> Any:
        """The blocks of queries of all heads."""
        return _blocks(x, self.bq)

    def whole(self, blocks) -> Any:
        """The queries of each head from their blocks."""
        return blocks.reshape(self.heads, -1, blocks.shape[-1])[:, : self.n]

    def chunks(self, at) -> Any:
        """The number of chunks of a list."""
        return -(-at[1] // self.step)

    def places(self, at, c) -> tuple[Any, Any]:
        """The blocks of k and v of a chunk, and which of them are on the list."""
        index, count, head, _ = at
        listed = lax.dynamic_slice_in_dim(index, c * self.step, self.step)
        used = c * self.step + jnp.arange(self.step) < count
        inside = listed < self.blocks
        return head + jnp.where(inside, listed, 0), used & inside

    def scores(self, q, at, c) -> tuple[Any, Any, Any]:
        """The scores of a chunk, LOW where hidden, and its keys and values."""
        place, used = self.places(at, c)
        keys, values = (_take(x, place) for x in (self.k, self.v))
        j = ((place - at[2]) * self.bk)[:, None] + jnp.arange(self.bk)
        i = at[3] + jnp.arange(self.bq)
        seen = self.rule.visible(i[:, None], j.ravel()) & jnp.repeat(used, self.bk)
        s = _dot(q, keys, 1, 1, self.wide) * jnp.asarray(self.rule.scale, self.wide)
        return jnp.where(seen, s, LOW), keys, values


def _blocks(x, size: int):
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0)))
    return x.reshape(-1, size, x.shape[2])


def _take(x, place):
    return x.at[place].get(mode="promise_in_bounds").reshape(-1, x.shape[2])


def _dot(a, b, left: int, right: int, dtype: Any):
    return lax.dot_general(a, b, (((left,), (right,)), ((), ())), preferred_element_type=dtype)
