"""Block-sparse products for Hopper: each thread block processes the list of one block column."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int, Shaped

from ...formats import BlockArray
from .. import _mosaic
from .._finish import How
from .._table import Implementation
from .._tiles import padded_rows, promoted
from .._walk import DEPTH, SIDES, layout, spec, stages, tiles_of, walk


def product(x: Shaped[Array, "m k"], w: BlockArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    check(w)
    columns, slots = w.index.shape
    slot = jnp.arange(columns * slots, dtype=jnp.int32).reshape(columns, slots)
    return _lists_product(x, w, w.index, slot, w.count, bias, how)


def transposed(dy: Shaped[Array, "m n"], w: BlockArray, how: How) -> Float[Array, "m k"]:
    """`dy W^T` through the lists by block row; the blocks are read as stored."""
    check(w)
    lists = w.index_t, w.slot_t, w.count_t
    return _lists_product(dy, w, *lists, None, how, transposed=True)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: BlockArray, how: How
) -> Float[Array, "nb l bk bn"]:
    """`x^T dy` at the stored blocks, zero in the padding."""
    del how
    check(w)
    (columns, slots), (bk, bn) = w.index.shape, w.block
    if bk % 64:
        raise NotImplementedError(f"the gradient of blocks of {bk}x{bn}: 64 rows or a multiple")
    dtype = promoted(x, dy)
    x, dy = (padded_rows(a.astype(dtype), DEPTH) for a in (x, dy))
    tiling = layout(min(bk, bn), dtype)

    def body(index, count, x, dy, values, out):
        j, s = lax.axis_index("column"), lax.axis_index("slot")
        steps = jnp.where(s < count[j], x.shape[0] // DEPTH, 0)

        def multiply(total):
            def step(_, x, dy):
                plgpu.wgmma(total, _mosaic.transposed(x), dy)
                plgpu.wgmma_wait(1)

            pipeline = plgpu.emit_pipeline(
                step,
                grid=(steps,),
                in_specs=[
                    spec((DEPTH, bk), lambda i: (i, index[j * slots + s]), tiling, release=1),
                    spec((DEPTH, bn), lambda i: (i, j), tiling, release=1),
                ],
                max_concurrent_steps=stages(DEPTH * (bk + bn) * 2, bk * bn * 2),
            )
            pipeline(x, dy)
            return total[...]

        out[...] = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((bk, bn), jnp.float32)).astype(
            w.dtype
        )
        plgpu.commit_smem()
        place = (j * slots + s) * bk
        plgpu.copy_smem_to_gmem(out, values.at[pl.ds(place, bk)])
        plgpu.wait_smem_to_gmem(0)

    kernel = _mosaic.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((columns * slots * bk, bn), w.dtype),
        scratch_types=[plgpu.SMEM((bk, bn), w.dtype, transforms=layout(bn, w.dtype))],
        grid=(columns, slots),
        grid_names=("column", "slot"),
    )
    return kernel(w.index.reshape(-1), w.count, x, dy).reshape(w.values.shape)


def explain(rows: int, w: BlockArray) -> str:
    """The kernel and its tiles."""
    check(w)
    groups, tile = tiles_of(rows, w.block[1])
    return f"blocks of {w.block[0]}x{w.block[1]}, {groups} x {tile} rows"


def check(w: BlockArray) -> None:
    """Raises if the tensor cores have no instruction for the blocks."""
    if not w.values.size:
        raise NotImplementedError("no block is stored")
    if any(side not in SIDES for side in w.block):
        raise NotImplementedError(
            f"blocks of {w.block[0]}x{w.block[1]}: both sides must be among {SIDES}"
        )
    promoted(w)


def _lists_product(
    x: Shaped[Array, "m k"],
    w: BlockArray,
    index: Int[Array, "lists slots"],
    slot: Int[Array, "lists slots"],
    count: Int[Array, " lists"],
    bias: Any,
    how: How,
    transposed: bool = False,
) -> Float[Array, "m n"]:
    """For each list the sum over its slots of a tile of x times a block."""
    (lists, slots), (bk, bn) = index.shape, w.block[::-1] if transposed else w.block
    depth = min(bk, DEPTH)
    parts = bk // depth

    def stored_at(j, k, order, index, slot, count):
        place = slot[j * slots + k // parts]
        return (place, k % parts) if transposed else (place * parts + k % parts, 0)

    return walk(
        x,
        w.values.reshape(-1, w.block[1]),
        # Longest first, for load balance.
        (jnp.argsort(-count).astype(jnp.int32), index.reshape(-1), slot.reshape(-1), count),
        columns=(lists, bn),
        depth=depth,
        list_of=lambda j, order, *_: order[j],
        steps=lambda j, order, index, slot, count: count[j] * parts,
        x_at=lambda j, k, order, index, *_: index[j * slots + k // parts] * parts + k % parts,
        stored_at=stored_at,
        transposed=transposed,
        bias=bias,
        how=how,
    )


IMPLEMENTATION = Implementation(product, transposed, sampled, explain)
