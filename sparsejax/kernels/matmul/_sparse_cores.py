"""2:4 products on the sparse tensor cores of Hopper, for many rows of x.

The sparse operand of the instruction `wgmma.mma_async.sp` is the left one, so what is computed is
`y^T = W^T x^T`: tiles of W^T hold the stored values, and words beside them say which two of every
four rows of W those are. y itself is written, not its transpose.

What is proved without a GPU: that the words say, by the tables of the PTX ISA, what the indices of
an `NMArray` say (a model of the instruction reads them lane by lane and multiplies); everything
around the instruction, in the interpreter; that the kernel compiles for an H200, without spills.
What only the device can prove is that the instruction reads its words and its tiles so, and that
no race is left. Therefore nothing runs here before `probe` has compared small products with XLA's
on the GPU of this process. Not yet measured on hardware.
"""

import importlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, UInt32

from ...formats import NMArray
from .. import _mosaic
from .._walk import layout, promoted, spec, stages
from ._finish import How, finish_inside
from ._tiles import divisor, padded_rows, row_tile

DEPTH = 128  # rows of W in a step: four instructions
WIDTHS = (256, 128, 64)  # columns of W in a tile, for two, two and one warpgroups
ROWS = 128  # of x in a tile, at most
BAND = 8  # tiles of rows that are gone through together
WORDS = 256  # for a step and 64 columns: one for each pair of lanes and each instruction

# Rows of x, rows and columns of W: a single tile; few rows; several tiles in every direction, an
# incomplete one, pairs, and more steps than buffers.
PROBES = ((64, 128, 64), (48, 512, 256), (300, 2048, 768))


class Packed(NamedTuple):
    """A 2:4 matrix as the sparse tensor cores read it.

    Args:
      values: W^T without its zeros, `(N, K / 2)`.
      metadata: Where they stood, `(K / 128 N / 64, 256)`.
    """

    values: Any
    metadata: Any


def product(x: Float[Array, "m k"], w: NMArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`, after a probe of the device."""
    check(w)
    dtype = promoted(x, w)
    if not x.shape[0]:
        raise NotImplementedError("x has no rows")
    require(dtype)
    return multiply(x, pack(w), bias, how)


def transposed(dy: Any, w: NMArray, how: How) -> Any:
    """The groups lie along the output of this product: a dense product is what remains."""
    raise NotImplementedError("the transposed 2:4 product is dense")


def sampled(x: Any, dy: Any, w: NMArray, how: How) -> Any:
    """Nothing is saved: every entry of `x^T dy` is in reach of some slot."""
    raise NotImplementedError("the sampled 2:4 product is dense")


def explain(rows: int, w: NMArray) -> str:
    """The tiles, after a probe of the device."""
    check(w)
    require(promoted(w))
    width, _, tile, pair = _tiles(rows, w.shape[-1])
    return f"2:4 sparse tensor cores, tiles of {tile}x{DEPTH}x{width}" + ", in pairs" * (pair > 1)


def check(w: Any) -> None:
    """Raises where the instruction does not take W or tiles do not divide it."""
    if not isinstance(w, NMArray) or (w.n, w.m) != (2, 4):
        raise NotImplementedError("sparse tensor cores multiply 2:4 matrices")
    groups, columns = w.values.shape[-2:]
    if not groups or not columns or groups % (DEPTH // 4) or columns % WIDTHS[-1]:
        raise NotImplementedError(
            f"W of {4 * groups} rows and {columns} columns: multiples of {DEPTH} and {WIDTHS[-1]} "
            "are needed"
        )
    promoted(w)


def pack(w: NMArray) -> Packed:
    """W as the tensor cores read it; can be jitted.

    A word holds the codes of eight groups, 4 bits each, the lower index in the lower 2 bits. By the
    PTX ISA (9.7.15.6.2.1, the figure of `mma.sp.m16n8k32` for each warp), the lanes 4 g and
    4 g + 1 of warp w give those of the rows 16 w + g (low half of the word) and 16 w + g + 8 (high
    half) of W^T, lane 4 g for the first 16 of the 32 rows of W, lane 4 g + 1 for the others. The
    sparsity selector 0 takes these lanes; the other two of a group of four are given the same.
    CUTLASS lays the metadata of this instruction out alike.
    """
    _, groups, columns = w.values.shape
    steps, parts = 4 * groups // DEPTH, columns // 64
    code = jnp.repeat(w.code, w.share, axis=-1).astype(jnp.uint32).reshape(-1, 4, columns)
    half = code[:, 0] | code[:, 1] << 4 | code[:, 2] << 8 | code[:, 3] << 12
    half = half.reshape(steps, 4, 2, parts, 4, 2, 8)  # step, instruction, lane, part, warp, half, g
    words = half[..., 0, :] | half[..., 1, :] << 16
    metadata = words.transpose(0, 3, 4, 5, 2, 1).reshape(steps * parts, WORDS)
    return Packed(w.values.transpose(2, 1, 0).reshape(columns, 2 * groups), metadata)


def multiply(x: Float[Array, "m k"], packed: Packed, bias: Any, how: How) -> Float[Array, "m n"]:
    """The kernel."""
    instruction: Any = _instruction()
    values, metadata = packed
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
        # Neighbours in time are neighbours in y, so that they find x and W in the cache.
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
            metadata = metadata.at[pl.ds(group * (high // 64), high // 64)]
            total = instruction.wgmma(total, values, x, metadata, tiling)
            # The words of the next step go to the registers from which this one's may still be
            # read; the tensor cores are busy with the other warpgroup meanwhile.
            plgpu.wgmma_wait(0)
            return total

        parts = width // 64
        both = ("pair",) if pair > 1 else ()
        pipeline = plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(x.shape[1] // DEPTH,),
            in_specs=[
                spec((width, DEPTH // 2), lambda k: (j, k), tiling, both=both),
                spec((parts, WORDS), lambda k: (k * wide_tiles + j, 0), (), both=both),
                spec((tile, DEPTH), lambda k: (i, k), tiling),
            ],
            memory_registers=40,
            wg_axis="wg",
            num_compute_wgs=groups,
            max_concurrent_steps=stages(
                DEPTH * (width + 2 * tile) + parts * WORDS * 4,
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
    """Raises unless small products on this device have been found right."""
    device = jax.devices()[0]
    if not on_hopper(device):
        raise NotImplementedError(f"sparse tensor cores: {device.device_kind} is not a Hopper GPU")
    failure = probe(jnp.dtype(dtype).name)
    if failure:
        raise NotImplementedError(failure)


def on_hopper(device: Any) -> bool:
    """Whether a device has the instruction."""
    return device.platform == "gpu" and getattr(device, "compute_capability", None) == "9.0"


@cache
def probe(dtype: str) -> str | None:
    """What is wrong with small products on this device, once in a process; None if nothing.

    Of the sizes in `PROBES`, with a bias and an activation. In a thread of its own, where nothing
    is being traced.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_probe, dtype).result()


def _probe(dtype: str) -> str | None:
    how = How(activation=jax.nn.relu, dtype=jnp.dtype(dtype))
    try:
        for rows, k, columns in PROBES:
            error = probe_error(partial(multiply, how=how), rows, k, columns, dtype)
            if not error < 1e-2:
                size = f"{rows}x{k}x{columns}"
                return (
                    f"sparse tensor cores: the probe of {size} in {dtype} is wrong by {error:.1e}"
                )
    except Exception as error:  # whatever a compiler or driver raises
        return f"sparse tensor cores: the probe fails: {type(error).__name__}: {str(error)[:200]}"
    return None


def probe_error(product: Any, rows: int, k: int, columns: int, dtype: str) -> float:
    """Error of `product(x, packed, bias)` with relu, relative to that of XLA's."""
    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(keys[0], (k, columns), dtype)
    w = NMArray.fromdense(w, 2, 4)
    x = jax.random.normal(keys[1], (rows, k), dtype)
    bias = jax.random.normal(keys[2], (columns,), jnp.float32)
    want = x.astype(jnp.float32) @ w.todense().astype(jnp.float32)
    want = jnp.maximum(want + bias, 0)
    got = jax.jit(product)(x, pack(w), bias).astype(jnp.float32)
    return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


def _instruction() -> Any:
    try:
        return importlib.import_module("sparsejax.kernels._sparse_wgmma")
    except (ImportError, AttributeError) as error:
        raise NotImplementedError(
            f"sparse tensor cores: JAX {jax.__version__} lacks what they need: {error}"
        ) from error


def _tiles(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Columns of W in a tile, warpgroups, rows of x in a tile, and tiles that share those of W."""
    width = divisor(columns, WIDTHS)
    assert width is not None
    tile = row_tile(rows, jnp.bfloat16, ROWS, least=16)
    return width, 2 if width > 64 else 1, tile, 2 if rows > tile and width > 64 else 1


def words_of(metadata: UInt32[Array, "parts words"]) -> UInt32[Array, "parts instructions lanes"]:
    """What each of the 128 lanes of a warpgroup gives to each of the four instructions."""
    lane = jnp.arange(128)
    words = metadata.reshape(-1, 64, 4)[:, lane // 4 * 2 + lane % 2]
    return words.transpose(0, 2, 1)
