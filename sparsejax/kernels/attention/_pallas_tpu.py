"""Attention over lists for TPU: the prefetched lists determine the copies of keys and values.

A grid step takes one block of queries and one listed block of keys, with a running maximum and sum.
Steps behind the end of a list repeat the copy of the last one, which is not executed again.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Shaped

from ._rule import LOW, Rule

LANES, ROWS = 128, 16
SCALARS = 2**17  # indices that fit into scalar memory


def product(
    q: Shaped[Array, "h n d"],
    k: Shaped[Array, "hk m d"],
    v: Shaped[Array, "hk m e"],
    index: Int[Array, "h qb s"],
    count: Int[Array, "h qb"],
    block: tuple[int, int],
    rule: Rule,
) -> tuple[Float[Array, "h n e"], Float[Array, "h n"]]:
    """The output, and the log of the sum of exponentials of each query, in float32."""
    (heads, n, _), (bq, bk) = q.shape, block
    check(q, block, index.size)
    shared, keys = heads // k.shape[0], jnp.full(heads, rule.keys, jnp.int32)
    q, k, v = _padded(q, bq), _padded(k, bk), _padded(v, bk)
    place = lambda h, j: (lax.div(h, shared), j, 0)  # noqa: E731
    sizes = *block, v.shape[2]
    out, log_sum = flash(index, count, keys, q, k, v, place, sizes, rule, "block_sparse_attention")
    return out[:, :n], log_sum[:, :n, 0]


def flash(
    index: Int[Array, "h qb s"],
    count: Int[Array, "h qb"],
    keys: Int[Array, " h"],
    q: Shaped[Array, "h n d"],
    k: Shaped[Array, "lead m keys"],
    v: Shaped[Array, "lead m values"],
    place: Callable[[Any, Any], tuple[Any, Any, Any]],
    sizes: tuple[int, int, int],
    rule: Rule,
    name: str,
) -> tuple[Float[Array, "h n e"], Float[Array, "h n lanes"]]:
    """The output and the log of the sum of exponentials, of whole blocks.

    Args:
      index: The lists.
      count: Their lengths.
      keys: For each head the number of keys, in place of that of the rule.
      q: Queries.
      k: Keys.
      v: Values.
      place: The block of k and v that is entry j of a list of head h.
      sizes: Queries of a block, keys of a block, and width of the values.
      rule: Visible pairs.
      name: Name of the kernel.
    """
    (heads, n, d), (bq, bk, width), (_, queries, slots) = q.shape, sizes, index.shape
    last_block = k.shape[1] // bk - 1

    def key_block(h, i, s, index, count, keys):
        row = h * queries + i
        used = jnp.maximum(jnp.minimum(s, count[row] - 1), 0)
        return place(h, jnp.minimum(index[row * slots + used], last_block))

    own = lambda h, i, s, *_: (h, i, 0)  # noqa: E731
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(heads, queries, slots),
        in_specs=[
            pl.BlockSpec((1, bq, d), own),
            pl.BlockSpec((1, bk, d), key_block),
            pl.BlockSpec((1, bk, width), key_block),
        ],
        out_specs=[pl.BlockSpec((1, bq, width), own), pl.BlockSpec((1, bq, LANES), own)],
        scratch_shapes=[
            pltpu.VMEM((bq, width), jnp.float32),
            pltpu.VMEM((bq, LANES), jnp.float32),
            pltpu.VMEM((bq, LANES), jnp.float32),
        ],
    )
    return pl.pallas_call(
        partial(_step, rule=rule),
        grid_spec=grid,
        out_shape=[
            jax.ShapeDtypeStruct((heads, n, width), jnp.float32),
            jax.ShapeDtypeStruct((heads, n, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name=name,
    )(index.reshape(-1), count.reshape(-1), keys, q, k, v)


def check(q: Any, block: tuple[int, int], entries: int) -> None:
    """Raises if the hardware cannot tile the blocks."""
    if block[0] % ROWS or block[1] % LANES:
        raise NotImplementedError(
            f"blocks of {block[0]} queries and {block[1]} keys: multiples of {ROWS} and {LANES} "
            "are required"
        )
    check_memory(q.dtype, entries)


def check_memory(dtype: Any, entries: int) -> None:
    """Raises for numbers that the hardware does not have, and for lists that are too long."""
    if dtype == jnp.float64:
        raise NotImplementedError("float64")
    if entries > SCALARS:
        raise NotImplementedError(f"{entries} list entries: scalar memory holds {SCALARS}")


def _step(index, count, keys, q, k, v, out, log_sum, total, top, weight, *, rule: Rule):
    h, i, s = (pl.program_id(axis) for axis in range(3))
    row, slots = h * pl.num_programs(1) + i, pl.num_programs(2)

    @pl.when(s == 0)
    def _():
        total[...] = jnp.zeros_like(total)
        weight[...] = jnp.zeros_like(weight)
        top[...] = jnp.full_like(top, LOW)

    @pl.when(s < count[row])
    def _():
        (bq, bk), j = (q.shape[1], k.shape[1]), index[row * slots + s]
        scores = _dot(q[0], k[0], 1, 1) * rule.scale
        known = replace(rule, keys=keys[h])
        at = lambda first, axis: first + lax.broadcasted_iota(jnp.int32, (bq, bk), axis)  # noqa: E731
        scores = jnp.where(known.visible(at(i * bq, 0), at(j * bk, 1)), scores, LOW)
        old = top[:, :1]
        new = jnp.maximum(old, jnp.max(scores, 1, keepdims=True))
        p, shrink = jnp.exp(scores - new), jnp.exp(old - new)
        top[...] = jnp.broadcast_to(new, top.shape)
        weight[...] = weight[...] * shrink + jnp.sum(p, 1, keepdims=True)
        total[...] = total[...] * shrink + _dot(p.astype(v.dtype), v[0], 1, 0)

    @pl.when(s == slots - 1)
    def _():
        # Hidden pairs weigh 1 where nothing is seen; NaN is kept.
        sums = weight[:, :1]
        seen = (top[:, :1] > LOW / 2) | (sums != sums)
        sums = jnp.where(seen, sums, 1)
        out[0] = jnp.where(seen, total[...] / sums, 0)
        log_sum[0] = jnp.broadcast_to(top[:, :1] + jnp.log(sums), top.shape)


def _dot(a, b, left: int, right: int):
    contracted = ((left,), (right,)), ((), ())
    return lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)


def _padded(x, size: int):
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0)))
