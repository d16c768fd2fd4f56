"""Attention over lists for Hopper: each thread block takes one block of queries.

Its list says which keys and values are copied into a ring of buffers while the tensor cores
multiply those before them; the running maximum and sum stay in registers.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int, Shaped

from .. import _mosaic
from .._tiles import promoted
from .._walk import layout, spec
from ._rule import LOW, Rule

SIDES = (64, 128)  # queries and keys of a block, and widths of a head
STAGES = 2


def product(
    q: Shaped[Array, "h n d"],
    k: Shaped[Array, "hk m d"],
    v: Shaped[Array, "hk m e"],
    index: Int[Array, "h qb s"],
    count: Int[Array, "h qb"],
    block: tuple[int, int],
    rule: Rule,
) -> tuple[Float[Array, "h n e"], Float[Array, "h n"]]:
    """The output in the dtype of the inputs, and the float32 log of the sum of exponentials."""
    dtype = check(q, k, v, block)
    (heads, n, d), (bq, bk), (_, queries, slots) = q.shape, block, index.shape
    shared, width, key_blocks = heads // k.shape[0], v.shape[2], -(-k.shape[1] // bk)

    def body(index, count, q, k, v, out, log_sum, own, weights, sums, loaded, *more):
        h, i = lax.axis_index("head"), lax.axis_index("queries")
        row = h * queries + i
        place = pl.ds(row * bq, bq)
        plgpu.copy_gmem_to_smem(q.at[place], own, loaded)
        plgpu.barrier_wait(loaded)

        def key_block(s):
            listed = jnp.minimum(index[row * slots + s], key_blocks - 1)
            return lax.div(h, shared) * key_blocks + listed, 0

        def step(at, keys, values, carry):
            acc, top, total = carry
            scores = _product(own, _mosaic.transposed(keys), (bq, bk)) * rule.scale
            j = index[row * slots + at[0]]
            i_at, j_at = (
                plgpu.broadcasted_iota(jnp.int32, (bq, bk), axis, layout=plgpu.Layout.WGMMA)
                for axis in (0, 1)
            )
            scores = jnp.where(rule.visible(i * bq + i_at, j * bk + j_at), scores, LOW)
            new = jnp.maximum(top, jnp.max(scores, axis=1))
            p, shrink = jnp.exp(scores - _columns(new, bk)), jnp.exp(top - new)
            total = total * shrink + jnp.sum(p, axis=1)
            weights[...] = p.astype(dtype)
            plgpu.commit_smem()
            acc = acc * _columns(shrink, width) + _product(weights, values, (bq, width))
            return acc, new, total

        start = (
            jnp.full((bq, width), 0, jnp.float32),
            jnp.full((bq,), LOW, jnp.float32),
            jnp.full((bq,), 0, jnp.float32),
        )
        pipeline = plgpu.emit_pipeline(
            step,
            grid=(count[row],),
            in_specs=[
                spec((bk, d), key_block, layout(d, dtype)),
                spec((bk, width), key_block, layout(width, dtype)),
            ],
            max_concurrent_steps=STAGES,
            init_carry=start,
        )
        acc, top, total = pipeline(k, v)
        # The queries are not needed any more: their memory takes a result of the same size.
        result = more[0] if more else own
        # Hidden pairs weigh 1 where nothing is seen; NaN is kept.
        seen = (top > LOW / 2) | (total != total)
        total = jnp.where(seen, total, 1.0)
        share = jnp.where(seen, 1.0 / total, 0.0)
        result[...] = (acc * _columns(share, width)).astype(dtype)
        sums[...] = top + jnp.log(total)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(result, out.at[place])
        plgpu.copy_smem_to_gmem(sums, log_sum.at[place])
        plgpu.wait_smem_to_gmem(0)

    tile = partial(plgpu.SMEM, dtype=dtype)
    kernel = _mosaic.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((heads * queries * bq, width), dtype),
            jax.ShapeDtypeStruct((heads * queries * bq,), jnp.float32),
        ),
        scratch_types=(
            tile((bq, d), transforms=layout(d, dtype)),
            tile((bq, bk), transforms=layout(bk, dtype)),
            plgpu.SMEM((bq,), jnp.float32),
            plgpu.Barrier(),
            *([] if width == d else [tile((bq, width), transforms=layout(width, dtype))]),
        ),
        grid=(heads, queries),
        grid_names=("head", "queries"),
    )
    rows = _rows(q, bq, dtype), _rows(k, bk, dtype), _rows(v, bk, dtype)
    out, log_sum = kernel(index.reshape(-1), count.reshape(-1), *rows)
    return out.reshape(heads, -1, width)[:, :n], log_sum.reshape(heads, -1)[:, :n]


def check(q: Any, k: Any, v: Any, block: tuple[int, int]) -> Any:
    """The common dtype; raises if the tensor cores have no instruction for the blocks."""
    dtype = promoted(q, k, v)
    sides = *block, q.shape[2], v.shape[2]
    if any(side not in SIDES for side in sides):
        raise NotImplementedError(
            f"blocks of {block[0]} queries and {block[1]} keys, heads of {q.shape[2]} and "
            f"{v.shape[2]}: all must be among {SIDES}"
        )
    return dtype


def _product(a, b, shape: tuple[int, int]):
    def multiply(total):
        plgpu.wgmma(total, a, b)
        plgpu.wgmma_wait(0)
        return total[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def _columns(x, width: int):
    return lax.broadcast_in_dim(x, (x.shape[0], width), (0,))


def _rows(x, size: int, dtype: Any):
    """The rows of all heads, each padded to whole blocks."""
    x = jnp.pad(x.astype(dtype), ((0, 0), (0, -x.shape[1] % size), (0, 0)))
    return x.reshape(-1, x.shape[2])
