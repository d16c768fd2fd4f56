"""N:M products for GPU, for few rows of x: the time is that of reading W, so less of it is read.

`y^T = sum_r W_r^T x_r^T` over the m positions r of a group, with `x_r = x[:, r::m]` and
`W_r = sum_s where(index_s == r, values_s, 0)`, which is expanded in registers, put into shared
memory and multiplied there. Transposed, the few rows of x are the short side of the instruction.
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
from .._walk import layout, spec, stages
from ._finish import How, finish_inside
from ._tiles import padded_rows, position_planes, promoted, row_tile

WIDTH = 64  # columns of W in a tile
DEPTH = 64  # groups in a step
PLANES = 512  # rows of x in a tile, over all positions
SLOTS = 64  # n m: selects for each step


def product(x: Float[Array, "m k"], w: NMArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    check(w)
    (n, groups, columns), m = w.values.shape, w.m
    dtype, out_dtype = promoted(x, w), how.dtype or jnp.float32
    rows, tile = x.shape[0], _rows(x.shape[0], w)
    planes = position_planes(padded_rows(x.astype(dtype), tile), w)
    code = jnp.repeat(w.code, w.share, axis=-1).reshape(-1, groups, columns)
    bias = jnp.zeros(columns) if bias is None else bias.astype(jnp.float32)
    bits = (m - 1).bit_length()

    def body(planes, values, code, bias, y, expanded, out):
        i, j = lax.axis_index("rows"), lax.axis_index("columns")

        def multiply(total):
            def step(_, x, values, code):
                chosen = [code[s].astype(jnp.int32) for s in range(code.shape[0])]
                for r in range(m):
                    dense = jnp.zeros((DEPTH, WIDTH), dtype)
                    for s in range(n):
                        at = chosen[s] if len(chosen) > 1 else _slot(chosen[0], s, bits)
                        dense = jnp.where(at == r, values[s], dense)
                    # The product before the last has read the buffer that is written now.
                    plgpu.wgmma_wait(1)
                    expanded[r % 2] = dense
                    plgpu.commit_smem()
                    plgpu.wgmma(
                        total,
                        _mosaic.transposed(expanded.at[r % 2]),
                        _mosaic.transposed(x.at[r]),
                    )
                plgpu.wgmma_wait(0)

            pipeline = plgpu.emit_pipeline(
                step,
                grid=(groups // DEPTH,),
                in_specs=[
                    spec((m, tile, DEPTH), lambda g: (0, i, g), layout(DEPTH, dtype)),
                    spec((n, DEPTH, WIDTH), lambda g: (0, g, j), layout(WIDTH, dtype)),
                    plgpu.BlockSpec((code.shape[0], DEPTH, WIDTH), lambda g: (0, g, j)),
                ],
                max_concurrent_steps=stages(_step_bytes(w, tile, DEPTH), 4 * DEPTH * WIDTH),
            )
            pipeline(planes, values, code)
            return total[...]

        total = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((WIDTH, tile), jnp.float32))
        place = pl.ds(j * WIDTH, WIDTH)
        added = _mosaic.vector(bias, j * WIDTH, WIDTH, axis=1)
        added = lax.broadcast_in_dim(added, (WIDTH, tile), (0,))
        out[...] = finish_inside(total, added, how).astype(out_dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, y.at[place, pl.ds(i * tile, tile)])
        plgpu.wait_smem_to_gmem(0)

    kernel = _mosaic.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((columns, planes.shape[1]), out_dtype),
        scratch_types=[
            plgpu.SMEM((2, DEPTH, WIDTH), dtype, transforms=layout(WIDTH, dtype)),
            plgpu.SMEM((WIDTH, tile), out_dtype, transforms=layout(tile, out_dtype)),
        ],
        grid=(planes.shape[1] // tile, columns // WIDTH),
        grid_names=("rows", "columns"),
    )
    return kernel(planes, w.values.astype(dtype), code, bias).T[:rows]


def transposed(dy: Any, w: NMArray, how: How) -> Any:
    """The groups lie along the output of this product: a dense product is what remains."""
    raise NotImplementedError("the transposed N:M product is dense")


def sampled(x: Any, dy: Any, w: NMArray, how: How) -> Any:
    """Nothing is saved: every entry of `x^T dy` is in reach of some slot."""
    raise NotImplementedError("the sampled N:M product is dense")


def explain(rows: int, w: NMArray) -> str:
    """The kernel and its tiles."""
    check(w)
    return f"{w.n}:{w.m} planes, tiles of {_rows(rows, w)}x{DEPTH * w.m}x{WIDTH}"


def check(w: NMArray) -> None:
    """Raises where tiles do not divide the planes."""
    groups, columns = w.values.shape[-2:]
    if groups % DEPTH or columns % WIDTH:
        raise NotImplementedError(
            f"{groups} groups and {columns} columns: multiples of {DEPTH} and {WIDTH} are needed"
        )
    if w.n * w.m > SLOTS:
        raise NotImplementedError(f"{w.n}:{w.m} takes {w.n * w.m} selects, more than {SLOTS}")
    promoted(w)


def _rows(rows: int, w: NMArray) -> int:
    return row_tile(rows, w.dtype, max(16, PLANES // w.m))


def _step_bytes(w: NMArray, tile: int, DEPTH: int) -> int:
    code = w.code.dtype.itemsize * (w.n if w.code.ndim == w.values.ndim else 1)
    return DEPTH * (2 * w.m * tile + WIDTH * (2 * w.n + code))


def _slot(code: Any, s: int, bits: int) -> Any:
    return (code >> (s * bits)) & (2**bits - 1)
