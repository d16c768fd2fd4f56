"""2:4 products on the sparse tensor cores of Hopper, for many rows of x.

The sparse operand of the instruction `wgmma.mma_async.sp` is the left one, so the kernel computes
`y^T = W^T x^T`: tiles of W^T hold the stored values, and metadata words encode which two of every
four rows of W are stored. The kernel writes y, not its transpose.

The words are checked without a GPU against the tables of the PTX ISA (a model of the instruction
reads them lane by lane and multiplies), everything around the instruction in the interpreter. On an
H200 results agree with cuBLAS, at 1.5 to 1.6 times its speed (benchmarks/results/hopper.md). It is
enabled only after `probe` has compared small products with those of XLA on the GPU of this process.
"""

import importlib
import itertools
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from ...formats import NMArray, SparseArray, TensorCoreArray
from .. import _mosaic
from .._finish import How, finish_inside
from .._table import Implementation
from .._tiles import padded_rows, promoted, row_tile
from .._walk import layout, spec, stages
from ._two_four import failure, require_probed

STEP, PART, WORDS = TensorCoreArray.step, TensorCoreArray.part, TensorCoreArray.words
WIDTHS = (256, 128, 64)  # columns of W per tile, for two, two and one warpgroups
ROWS = 128  # maximum rows of x per tile
BUSY = 120  # tiles that occupy a GPU
BAND = 8  # row tiles processed together

# Rows of x, rows and columns of W: a single tile; few rows; several tiles in every direction, an
# incomplete one, pairs, and more steps than buffers.
PROBES = ((64, 128, 64), (48, 512, 256), (2000, 1024, 2048))


def product(x: Float[Array, "m k"], w: SparseArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`, after a probe of the device."""
    check(w, x.shape[0])
    require(promoted(x, w))
    packed: Any = TensorCoreArray.fromnm(w) if isinstance(w, NMArray) else w
    return multiply(x, packed, bias, how)


def explain(rows: int, w: SparseArray) -> str:
    """The tiles, after a probe of the device."""
    check(w, rows)
    require(promoted(w))
    width, _, tile, pair = _tiles(rows, w.shape[-1])
    return f"2:4 sparse tensor cores, tiles of {tile}x{STEP}x{width}" + ", in pairs" * (pair > 1)


def check(w: Any, rows: int = 1) -> None:
    """Raises if the instruction does not support W or tiles do not divide it."""
    promoted(w)
    if not rows:
        raise NotImplementedError("x has no rows")
    if not isinstance(w, NMArray | TensorCoreArray):
        raise NotImplementedError("sparse tensor cores multiply 2:4 matrices")
    if isinstance(w, NMArray) and (why := TensorCoreArray.misfit(w)):
        raise NotImplementedError(why)


def multiply(
    x: Float[Array, "m k"], w: TensorCoreArray, bias: Any, how: How
) -> Float[Array, "m n"]:
    """The kernel."""
    instruction: Any = _instruction()
    values, metadata = w.values, w.metadata.reshape(-1, WORDS)
    rows, columns = x.shape[0], values.shape[0]
    dtype, out_dtype = promoted(x, values), how.dtype or jnp.float32
    width, groups, tile, pair = _tiles(rows, columns)
    high = width // groups  # columns of W for each warpgroup
    slab = 32 if tile % 32 == 0 else 16  # rows of y written at once
    x = jnp.pad(x.astype(dtype), ((0, 0), (0, 2 * values.shape[1] - x.shape[1])))
    x = padded_rows(x, tile * pair)
    high_tiles, wide_tiles = x.shape[0] // (tile * pair), columns // width
    bias = jnp.zeros(columns) if bias is None else bias.astype(jnp.float32)
    tiling = layout(64, dtype)

    def body(values, metadata, x, bias, y, out):
        # Consecutive tiles are neighbours in y, so that x and W stay in the cache.
        i, j = plgpu.planar_snake(lax.axis_index("tile"), (high_tiles, wide_tiles), 0, BAND)
        i = i * pair + lax.axis_index("pair") if pair > 1 else i
        group = lax.axis_index("wg")
        column = j * width + group * high

        def context(pipeline):
            total = instruction.finished(pipeline(instruction.zeros((high, tile))))
            added = _mosaic.vector(bias, column, high, axis=1)
            added = lax.broadcast_in_dim(added, (high, tile), (0,))
            result = finish_inside(total, added, how).astype(out_dtype)
            result = plgpu.layout_cast(result, plgpu.Layout.WGMMA_TRANSPOSED)
            starts = itertools.product(range(0, high, 64), range(0, tile, slab))
            for turn, (across, down) in enumerate(starts):
                buffer = out.at[group, turn % 2]
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                block = result[across : across + 64, down : down + slab]
                _mosaic.transposed(buffer)[...] = block
                plgpu.commit_smem()
                place = pl.ds(i * tile + down, slab), pl.ds(column + across, 64)
                plgpu.copy_smem_to_gmem(buffer, y.at[place])
            plgpu.wait_smem_to_gmem(0)

        def step(_, values, metadata, x, total):
            values = values.at[pl.ds(group * high, high)]
            metadata = metadata.at[pl.ds(group * (high // PART), high // PART)]
            total = instruction.wgmma(total, values, x, metadata, tiling)
            # The words of the next step are loaded into registers that this step may still read;
            # meanwhile the tensor cores run the other warpgroup.
            plgpu.wgmma_wait(0)
            return total

        parts = width // PART
        both = ("pair",) if pair > 1 else ()
        pipeline = plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(x.shape[1] // STEP,),
            in_specs=[
                spec((width, STEP // 2), lambda k: (j, k), tiling, both=both),
                spec((parts, WORDS), lambda k: (k * wide_tiles + j, 0), (), both=both),
                spec((tile, STEP), lambda k: (i, k), tiling),
            ],
            memory_registers=40,
            wg_axis="wg",
            num_compute_wgs=groups,
            max_concurrent_steps=stages(
                STEP * (width + 2 * tile) + parts * WORDS * 4,
                2 * groups * slab * 64 * jnp.dtype(out_dtype).itemsize,
            ),
            compute_context=context,
        )
        pipeline(values, metadata, x)

    kernel = _mosaic.kernel(
        body,
        lanes=True,
        out_type=jax.ShapeDtypeStruct((x.shape[0], columns), out_dtype),
        scratch_types=[
            plgpu.SMEM((groups, 2, slab, 64), out_dtype, transforms=layout(64, out_dtype))
        ],
        grid=(high_tiles * wide_tiles,),
        grid_names=("tile",),
        num_threads=groups + 1,
        thread_name="wg",
        **({"cluster": (pair,), "cluster_names": ("pair",)} if pair > 1 else {}),
    )
    return kernel(values.astype(dtype), metadata, x, bias)[:rows]


def require(dtype: Any) -> None:
    """Raises unless small products on this device passed a self-test."""
    require_probed("sparse tensor cores", "a Hopper GPU", on_hopper, probe, dtype)


def on_hopper(device: Any) -> bool:
    """Whether a device has the instruction."""
    return device.platform == "gpu" and getattr(device, "compute_capability", None) == "9.0"


@cache
def probe(dtype: str) -> str | None:
    """The reason for a failed self-test on this device, once per process; None if it passed."""

    def product(x, w, bias, how):
        return multiply(x, TensorCoreArray.fromnm(w), bias, how=how)

    return failure("sparse tensor cores", product, PROBES, dtype)


def _instruction() -> Any:
    try:
        return importlib.import_module("sparsejax.kernels._sparse_wgmma")
    except (ImportError, AttributeError) as error:
        raise NotImplementedError(
            f"sparse tensor cores are not supported by JAX {jax.__version__}: {error}"
        ) from error


def _tiles(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Columns of W per tile, warpgroups, rows of x per tile, and tiles that share those of W."""
    tile = row_tile(rows, jnp.bfloat16, ROWS, least=16)
    across = -(-rows // tile)
    # The widest tiles that still occupy all multiprocessors.
    fits = (w for w in WIDTHS if columns % w == 0 and columns // w * across >= BUSY)
    width = next(fits, PART)
    return width, 2 if width > 64 else 1, tile, 2 if across > 1 and width > 64 else 1


IMPLEMENTATION = Implementation(product, explain=explain)
