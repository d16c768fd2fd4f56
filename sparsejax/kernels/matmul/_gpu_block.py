"""Block-sparse products for Hopper: a thread block walks the list of one block column.

The memory warp reads the list and copies the tiles of x and the stored blocks it names into a ring
of buffers; one or two warpgroups multiply them on the tensor cores. Lists are taken longest first,
and each runs as many steps as it has blocks.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int, Shaped

from ...formats import BlockArray
from .. import _mosaic
from ._finish import How, finish_inside
from ._tiles import padded_rows, row_tile

SIDES = (16, 32, 64, 128)
DEPTH = 64  # of a step, along the contraction
SHARED = 224 * 2**10  # bytes for the ring of buffers and the result
STAGES = 6


def product(x: Shaped[Array, "m k"], w: BlockArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    check(w)
    columns, slots = w.index.shape
    slot = jnp.arange(columns * slots, dtype=jnp.int32).reshape(columns, slots)
    return _lists_product(x, w, w.index, slot, w.count, bias, how)


def transposed(dy: Shaped[Array, "m n"], w: BlockArray, how: How) -> Float[Array, "m k"]:
    """`dy W^T` through the lists by block row; the blocks are read as they are stored."""
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
                    spec((DEPTH, bk), lambda i: (i, index[j * slots + s]), dtype, release=1),
                    spec((DEPTH, bn), lambda i: (i, j), dtype, release=1),
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
    groups, tile = _rows(rows, w.dtype, w.block[1])
    return f"blocks of {w.block[0]}x{w.block[1]}, {groups} x {tile} rows"


def check(w: BlockArray) -> None:
    """Raises where the tensor cores have no instruction for the blocks."""
    if not w.values.size or not w.index_t.size:
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
    dtype, out_dtype = promoted(x, w), how.dtype or jnp.float32
    groups, tile = _rows(x.shape[0], dtype, bn)
    rows, x = x.shape[0], padded_rows(x.astype(dtype), groups * tile)
    depth = min(bk, DEPTH)
    parts = bk // depth
    stored = w.values.astype(dtype).reshape(-1, w.block[1])
    wide = min(bn, 128 // jnp.dtype(out_dtype).itemsize)  # columns written at once
    order = jnp.argsort(-count).astype(jnp.int32)
    bias = jnp.zeros(lists * bn) if bias is None else bias.astype(jnp.float32)

    def body(order, index, slot, count, x, stored, bias, y, out):
        j, i, group = order[lax.axis_index("list")], lax.axis_index("rows"), lax.axis_index("wg")

        def context(pipeline):
            @partial(pl.run_scoped, total=plgpu.WGMMAAccumulatorRef((tile, bn), jnp.float32))
            def _(total):
                pipeline(total)
                added = _mosaic.vector(bias, j * bn, bn, axis=0)
                added = lax.broadcast_in_dim(added, (tile, bn), (1,))
                result = finish_inside(total[...], added, how)
                for part in range(bn // wide):
                    slab = out.at[group, part % 2]
                    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                    slab[...] = result[:, part * wide : (part + 1) * wide].astype(out_dtype)
                    plgpu.commit_smem()
                    place = pl.ds((i * groups + group) * tile, tile)
                    columns = pl.ds(j * bn + part * wide, wide)
                    plgpu.copy_smem_to_gmem(slab, y.at[place, columns])
                plgpu.wait_smem_to_gmem(0)

        def step(_, x, block, total):
            plgpu.wgmma(
                total,
                x.at[pl.ds(group * tile, tile)],
                _mosaic.transposed(block) if transposed else block,
            )
            plgpu.wgmma_wait(1)
            return total

        def x_tile(k):
            return i, index[j * slots + k // parts] * parts + k % parts

        def block_part(k):
            place = slot[j * slots + k // parts]
            return (place, k % parts) if transposed else (place * parts + k % parts, 0)

        part = (bn, depth) if transposed else (depth, bn)
        pipeline = plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(count[j] * parts,),
            in_specs=[
                spec((groups * tile, depth), x_tile, dtype, release=1),
                spec(part, block_part, dtype, release=1),
            ],
            memory_registers=40,
            wg_axis="wg",
            num_compute_wgs=groups,
            max_concurrent_steps=stages(depth * (groups * tile + bn) * 2, 2 * groups * tile * 128),
            compute_context=context,
        )
        pipeline(x, stored)

    kernel = _mosaic.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((x.shape[0], lists * bn), out_dtype),
        scratch_types=[
            plgpu.SMEM((groups, 2, tile, wide), out_dtype, transforms=layout(wide, out_dtype))
        ],
        grid=(lists, x.shape[0] // (groups * tile)),
        grid_names=("list", "rows"),
        num_threads=groups + 1,
        thread_name="wg",
    )
    return kernel(order, index.reshape(-1), slot.reshape(-1), count, x, stored, bias)[:rows]


def _rows(rows: int, dtype: Any, columns: int) -> tuple[int, int]:
    """Warpgroups and the rows of each: 64 for few rows of x or wide blocks, else 128."""
    groups = 1 if rows <= 128 else 2
    tile = row_tile(-(-rows // groups), dtype, 64 if columns > 128 else 128, least=64)
    return groups, tile


def promoted(*arrays: Any) -> Any:
    """The common dtype; raises if the tensor cores do not take it."""
    dtype = jnp.result_type(*(a.dtype for a in arrays))
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"{dtype}: the tensor cores take bfloat16 and float16")
    return dtype


def stages(step: int, rest: int) -> int:
    """Steps whose tiles fit into shared memory beside the rest."""
    return max(2, min(STAGES, (SHARED - rest) // step))


def layout(columns: int, dtype: Any) -> tuple[Any, ...]:
    """How the tensor cores want a tile of so many columns in shared memory."""
    size = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(min(columns * size, 128) * 8)
    return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)


def spec(shape: tuple[int, ...], index_map: Any, dtype: Any, release: int = 0) -> Any:
    """Tiles for the tensor cores, copied ahead; `release` steps later they may be overwritten."""
    transforms = layout(shape[-1], dtype)
    return plgpu.BlockSpec(shape, index_map, transforms=transforms, delay_release=release)
