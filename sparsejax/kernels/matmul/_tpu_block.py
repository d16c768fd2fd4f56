"""Block-sparse products for TPU: the prefetched lists of blocks determine the copies.

A grid step multiplies one tile of x with one stored block. Steps without a block repeat the copy of
the previous step, which is not executed again, and add nothing.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Shaped

from ...formats import BlockArray
from .._finish import How, finish_inside
from .._table import Implementation
from .._tiles import padded_rows, row_tile

LANES = 128
# Indices that fit into scalar memory (about 1 MB), minus the share of the compiler.
SCALARS = 2**17
ROWS = 512  # maximum rows of x per tile


def product(x: Shaped[Array, "m k"], w: BlockArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    check(w)
    (columns, slots), (bk, bn) = w.index.shape, w.block
    blocks = w.values.reshape(columns * slots, bk, bn)
    slot = jnp.arange(columns * slots, dtype=jnp.int32).reshape(columns, slots)
    return _lists_product(x, blocks, w.index, slot, w.count, bias, how, (bk, bn))


def transposed(dy: Shaped[Array, "m n"], w: BlockArray, how: How) -> Float[Array, "m k"]:
    """`dy W^T` through the lists by block row; the blocks are contracted over their columns."""
    check(w)
    bk, bn = w.block
    blocks = w.values.reshape(-1, bk, bn)
    lists = w.index_t, w.slot_t, w.count_t
    return _lists_product(dy, blocks, *lists, None, how, (bn, bk), contracted=1)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: BlockArray, how: How
) -> Float[Array, "nb l bk bn"]:
    """`x^T dy` at the stored blocks, zero in the padding."""
    check(w)
    (columns, slots), (bk, bn) = w.index.shape, w.block
    dtype = jnp.promote_types(x.dtype, dy.dtype)
    tile = row_tile(x.shape[0], dtype, ROWS)
    x, dy = (padded_rows(a.astype(dtype), tile) for a in (x, dy))

    def x_tile(j, s, i, index, count):
        return i, index[j * slots + _last(s, count[j])]

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(columns, slots, x.shape[0] // tile),
        in_specs=[
            pl.BlockSpec((tile, bk), x_tile),
            pl.BlockSpec((tile, bn), lambda j, s, i, index, count: (i, j)),
        ],
        out_specs=pl.BlockSpec((1, 1, bk, bn), lambda j, s, i, index, count: (j, s, 0, 0)),
    )
    kernel = pl.pallas_call(
        partial(_sampled_step, precision=how.precision),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct(w.values.shape, jnp.float32),
        compiler_params=_order("parallel", "parallel", "arbitrary"),
        name="block_sampled",
    )
    return kernel(w.index.reshape(-1), w.count, x, dy)


def explain(rows: int, w: BlockArray) -> str:
    """The kernel and its tiles."""
    check(w)
    return f"blocks of {w.block[0]}x{w.block[1]}, tiles of {row_tile(rows, w.dtype, ROWS)} rows"


def check(w: BlockArray) -> None:
    """Raises if the hardware cannot tile the blocks."""
    if not w.values.size:
        raise NotImplementedError("no block is stored")
    if any(side % LANES for side in w.block):
        raise NotImplementedError(
            f"blocks of {w.block[0]}x{w.block[1]}: both sides must be multiples of {LANES}"
        )
    if w.dtype == jnp.float64:
        raise NotImplementedError("float64")
    size = max(w.index.size, w.index_t.size)
    if size > SCALARS:
        raise NotImplementedError(f"{size} list entries: scalar memory holds {SCALARS}")


def _lists_product(
    x: Shaped[Array, "m k"],
    blocks: Shaped[Array, "stored bk bn"],
    index: Int[Array, "lists slots"],
    slot: Int[Array, "lists slots"],
    count: Int[Array, " lists"],
    bias: Any,
    how: How,
    block: tuple[int, int],
    contracted: int = 0,
) -> Float[Array, "m n"]:
    """For each list the sum over its slots of a tile of x times a block."""
    (lists, slots), (bk, bn) = index.shape, block
    dtype = jnp.promote_types(x.dtype, blocks.dtype)
    rows, tile = x.shape[0], row_tile(x.shape[0], dtype, ROWS)
    x, blocks = padded_rows(x.astype(dtype), tile), blocks.astype(dtype)
    bias = jnp.zeros((1, lists * bn)) if bias is None else bias.astype(jnp.float32)[None]

    def x_tile(i, j, s, index, slot, count):
        return i, index[j * slots + _last(s, count[j])]

    def stored(i, j, s, index, slot, count):
        return slot[j * slots + _last(s, count[j])], 0, 0

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(x.shape[0] // tile, lists, slots),
        in_specs=[
            pl.BlockSpec((tile, bk), x_tile),
            pl.BlockSpec((1, *blocks.shape[1:]), stored),
            pl.BlockSpec((1, bn), lambda i, j, *_: (0, j)),
        ],
        out_specs=pl.BlockSpec((tile, bn), lambda i, j, *_: (i, j)),
        scratch_shapes=[pltpu.VMEM((tile, bn), jnp.float32)],
    )
    kernel = pl.pallas_call(
        partial(_product_step, how=how, contracted=contracted),
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct((x.shape[0], lists * bn), how.dtype or jnp.float32),
        compiler_params=_order("parallel", "parallel", "arbitrary"),
        name="block_product",
    )
    return kernel(index.reshape(-1), slot.reshape(-1), count, x, blocks, bias)[:rows]


def _product_step(index, slot, count, x, block, bias, y, total, *, how: How, contracted: int):
    del index, slot
    j, s = pl.program_id(1), pl.program_id(2)

    @pl.when(s == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when(s < count[j])
    def _():
        total[...] += _dot(x[...], block[0], ((1,), (contracted,)), how.precision)

    @pl.when(s == pl.num_programs(2) - 1)
    def _():
        y[...] = finish_inside(total[...], bias[...], how).astype(y.dtype)


def _sampled_step(index, count, x, dy, values, *, precision: Any):
    del index
    j, s, i = (pl.program_id(axis) for axis in range(3))

    @pl.when(i == 0)
    def _():
        values[...] = jnp.zeros_like(values)

    @pl.when(s < count[j])
    def _():
        values[0, 0] += _dot(x[...], dy[...], ((0,), (0,)), precision)


def _dot(a, b, contracted, precision: Any):
    return lax.dot_general(
        a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _last(slot, count):
    """The slot, or the last one that holds a block, so that the copy is not repeated."""
    return jnp.maximum(jnp.minimum(slot, count - 1), 0)


def _order(*semantics: Any) -> Any:
    return pltpu.CompilerParams(dimension_semantics=semantics)


IMPLEMENTATION = Implementation(product, transposed, sampled, explain)
