"""N:M products for GPU, for few rows of x: bound by reading the stored values of W.

`y^T = sum_r W_r^T x_r^T` over the m positions r of a group, with `x_r = x[:, r::m]` and
`W_r = sum_s where(index_s == r, values_s, 0)`, which is expanded in registers, written to shared
memory and multiplied there. The product is transposed, so that the few rows of x are the short side
of the instruction. On an H200 the expansion takes longer than reading W: slower than cuBLAS in
nearly all cells of benchmarks/results/hopper.md, so it runs by name only.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from ...formats import NMArray
from .. import _mosaic
from .._finish import How, finish
from .._table import Implementation
from .._tiles import divisor, padded_rows, position_planes, promoted, row_tile
from .._walk import SHARED, layout, spec, stages

WIDTH = 64  # columns of W in a tile
DEPTH = 64  # groups in a step
ROWS = (128, 64, 32, 16)  # rows of x per tile: the most that fit into shared memory
SLOTS = 64  # maximum n m: selects per step
RESIDENT = 2  # thread blocks per multiprocessor, so that one loads while the other expands


def product(x: Float[Array, "m k"], w: NMArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    check(w)
    (n, groups, columns), m = w.values.shape, w.m
    dtype = promoted(x, w)
    rows, tile, parts = x.shape[0], _rows(x.shape[0], w), _parts(groups)
    steps = groups // DEPTH // parts
    planes = position_planes(padded_rows(x.astype(dtype), tile), w)
    code = jnp.repeat(w.code, w.share, axis=-1).reshape(-1, groups, columns)
    bits = (m - 1).bit_length()

    def body(planes, values, code, y, expanded, out):
        i, j, part = (lax.axis_index(name) for name in ("rows", "columns", "part"))

        def multiply(total):
            def step(_, x, values, code):
                chosen = [code[s].astype(jnp.int32) for s in range(code.shape[0])]
                for r in range(m):
                    dense = jnp.zeros((DEPTH, WIDTH), dtype)
                    for s in range(n):
                        at = chosen[s] if len(chosen) > 1 else _slot(chosen[0], s, bits)
                        dense = jnp.where(at == r, values[s], dense)
                    # The product before the last has finished reading the buffer written now.
                    plgpu.wgmma_wait(1)
                    expanded[r % 2] = dense
                    plgpu.commit_smem()
                    plgpu.wgmma(
                        total,
                        _mosaic.transposed(expanded.at[r % 2]),
                        _mosaic.transposed(x.at[r]),
                    )
                plgpu.wgmma_wait(0)

            first = part * steps
            pipeline = plgpu.emit_pipeline(
                step,
                grid=(steps,),
                in_specs=[
                    spec((m, tile, DEPTH), lambda g: (0, i, first + g), layout(DEPTH, dtype)),
                    spec((n, DEPTH, WIDTH), lambda g: (0, first + g, j), layout(WIDTH, dtype)),
                    plgpu.BlockSpec((code.shape[0], DEPTH, WIDTH), lambda g: (0, first + g, j)),
                ],
                max_concurrent_steps=stages(*_bytes(w, tile), RESIDENT),
            )
            pipeline(planes, values, code)
            return total[...]

        out[...] = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((WIDTH, tile), jnp.float32))
        plgpu.commit_smem()
        place = part, pl.ds(j * WIDTH, WIDTH), pl.ds(i * tile, tile)
        plgpu.copy_smem_to_gmem(out, y.at[place])
        plgpu.wait_smem_to_gmem(0)

    kernel = _mosaic.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((parts, columns, planes.shape[1]), jnp.float32),
        scratch_types=[
            plgpu.SMEM((2, DEPTH, WIDTH), dtype, transforms=layout(WIDTH, dtype)),
            plgpu.SMEM((WIDTH, tile), jnp.float32, transforms=layout(tile, jnp.float32)),
        ],
        grid=(planes.shape[1] // tile, columns // WIDTH, parts),
        grid_names=("rows", "columns", "part"),
    )
    y = kernel(planes, w.values.astype(dtype), code)
    return finish(y.sum(0).T[:rows], bias, how)


def explain(rows: int, w: NMArray) -> str:
    """The kernel and its tiles."""
    check(w)
    parts = _parts(w.values.shape[-2])
    return f"{w.n}:{w.m} planes, tiles of {_rows(rows, w)}x{DEPTH * w.m}x{WIDTH}, {parts} parts"


def check(w: NMArray) -> None:
    """Raises if tiles do not divide the planes."""
    groups, columns = w.values.shape[-2:]
    if groups % DEPTH or columns % WIDTH:
        raise NotImplementedError(
            f"{groups} groups and {columns} columns: multiples of {DEPTH} and {WIDTH} are required"
        )
    if w.n * w.m > SLOTS:
        raise NotImplementedError(f"{w.n}:{w.m} takes {w.n * w.m} selects, more than {SLOTS}")
    promoted(w)


def _rows(rows: int, w: NMArray) -> int:
    fits = (most for most in ROWS if 2 * _bytes(w, most)[0] + _bytes(w, most)[1] <= SHARED)
    return row_tile(rows, w.dtype, next(fits, ROWS[-1]), least=8)


def _parts(groups: int) -> int:
    """Number of parts into which the groups are split; their sums are added at the end."""
    return divisor(groups // DEPTH, (4, 2, 1)) or 1


def _bytes(w: NMArray, tile: int) -> tuple[int, int]:
    """Shared memory per step, and for the expanded tile and the sum."""
    code = w.code.dtype.itemsize * (w.n if w.code.ndim == w.values.ndim else 1)
    step = DEPTH * (2 * w.m * tile + WIDTH * (2 * w.n + code))
    return step, 4 * WIDTH * (DEPTH + tile)


def _slot(code: Any, s: int, bits: int) -> Any:
    return (code >> (s * bits)) & (2**bits - 1)


IMPLEMENTATION = Implementation(product, explain=explain)
