"""A product for Hopper in which each thread block processes a list of tiles.

The memory warp reads the list and copies the listed tiles of x and of the stored values into a ring
of buffers; one or two warpgroups multiply them on the tensor cores. A list takes one step per tile;
an empty list gives zeros.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Shaped

from . import _mosaic
from ._finish import How, finish_inside
from ._tiles import padded_rows, promoted, row_tile

SIDES = (16, 32, 64, 128)  # tile sides that the tensor cores support
DEPTH = 64  # length of a step along the contraction
SHARED = 224 * 2**10  # bytes for the ring of buffers and the result
STAGES = 6


def walk(
    x: Shaped[Array, "m k"],
    stored: Shaped[Array, "rows columns"],
    lists: tuple[Array, ...],
    *,
    columns: tuple[int, int],
    depth: int,
    steps: Callable[..., Any],
    x_at: Callable[..., Any],
    stored_at: Callable[..., Any],
    list_of: Callable[..., Any] = lambda j, *_: j,
    transposed: bool = False,
    bias: Any = None,
    how: How,
) -> Float[Array, "m n"]:
    """`y[:, j] = sum_k x[:, x_at(j, k)] stored[stored_at(j, k)]` over `steps(j)` values of k.

    Args:
      x: Activations, in blocks of `depth` columns.
      stored: Stored values in blocks `(depth, width)`, or `(width, depth)` if transposed.
      lists: Integer arrays passed to the functions as `(j, k, *lists)`.
      columns: Number and width of the column blocks of y.
      depth: Length of a step.
      steps: Number of steps of list j.
      x_at: Block column of x.
      stored_at: Block row and block column of the stored values.
      list_of: The list of the j-th thread block.
      transposed: Whether the blocks are stored transposed.
      bias: `(n,)` or None.
      how: Activation and dtype of the result.
    """
    (count, width), rows = columns, x.shape[0]
    dtype, out_dtype = promoted(x, stored), how.dtype or jnp.float32
    groups, tile = tiles_of(rows, width)
    x, stored = padded_rows(x.astype(dtype), groups * tile), stored.astype(dtype)
    wide = min(width, 128 // jnp.dtype(out_dtype).itemsize)  # columns written at once
    bias = jnp.zeros(count * width) if bias is None else bias.astype(jnp.float32)

    def body(*refs):
        *lists, x, stored, bias, y, out = refs
        j, i = list_of(lax.axis_index("list"), *lists), lax.axis_index("rows")
        group = lax.axis_index("wg")

        def context(pipeline):
            @partial(pl.run_scoped, total=plgpu.WGMMAAccumulatorRef((tile, width), jnp.float32))
            def _(total):
                pipeline(total)
                added = _mosaic.vector(bias, j * width, width, axis=0)
                added = lax.broadcast_in_dim(added, (tile, width), (1,))
                result = finish_inside(total[...], added, how)
                for part in range(width // wide):
                    slab = out.at[group, part % 2]
                    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                    slab[...] = result[:, part * wide : (part + 1) * wide].astype(out_dtype)
                    plgpu.commit_smem()
                    place = pl.ds((i * groups + group) * tile, tile)
                    slice_ = pl.ds(j * width + part * wide, wide)
                    plgpu.copy_smem_to_gmem(slab, y.at[place, slice_])
                plgpu.wait_smem_to_gmem(0)

        def step(_, x, block, total):
            block = _mosaic.transposed(block) if transposed else block
            plgpu.wgmma(total, x.at[pl.ds(group * tile, tile)], block)
            plgpu.wgmma_wait(1)
            return total

        part = (width, depth) if transposed else (depth, width)
        tiling = layout(min(depth, part[1]), dtype)
        pipeline = plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(steps(j, *lists),),
            in_specs=[
                spec((groups * tile, depth), lambda k: (i, x_at(j, k, *lists)), tiling, release=1),
                spec(part, lambda k: stored_at(j, k, *lists), tiling, release=1),
            ],
            memory_registers=40,
            wg_axis="wg",
            num_compute_wgs=groups,
            max_concurrent_steps=stages(
                depth * (groups * tile + width) * 2, 2 * groups * tile * 128
            ),
            compute_context=context,
        )
        pipeline(x, stored)

    result = plgpu.SMEM((groups, 2, tile, wide), out_dtype, transforms=layout(wide, out_dtype))
    kernel = _mosaic.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((x.shape[0], count * width), out_dtype),
        scratch_types=[result],
        grid=(count, x.shape[0] // (groups * tile)),
        grid_names=("list", "rows"),
        num_threads=groups + 1,
        thread_name="wg",
    )
    return kernel(*lists, x, stored, bias)[:rows]


def tiles_of(rows: int, width: int) -> tuple[int, int]:
    """Warpgroups, and rows of x for each: 64 if x has no more."""
    groups = 1 if rows <= 128 else 2
    return groups, row_tile(-(-rows // groups), jnp.bfloat16, 128, least=64)


def stages(step: int, rest: int, resident: int = 1) -> int:
    """Number of steps whose tiles fit into the shared memory of each resident block."""
    return max(2, min(STAGES, (SHARED // resident - rest) // step))


def layout(columns: int, dtype: Any) -> tuple[Any, ...]:
    """The tile layout of the tensor cores in shared memory, the same for both operands."""
    size = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(min(columns * size, 128) * 8)
    tiling: Any = plgpu.TilingTransform  # abstract, says the type checker of some releases
    swizzling: Any = plgpu.SwizzleTransform
    return tiling((8, swizzle // size)), swizzling(swizzle)


def spec(
    shape: tuple[int, ...],
    index_map: Any,
    tiling: Any,
    release: int = 0,
    both: tuple[str, ...] = (),
) -> Any:
    """A prefetched tile; it may be overwritten `release` steps after its own.

    `both` is the cluster axis whose thread blocks share the tile, each copying a part.
    """
    shared: Any = {"collective_axes": both} if both else {}
    return plgpu.BlockSpec(shape, index_map, transforms=tiling, delay_release=release, **shared)
