"""N:M products for TPU: reads only stored values and expands them on the chip.

`x W = sum_r x_r W_r` over the m positions r of a group, with `x_r = x[:, r::m]` and
`W_r = sum_s where(index_s == r, values_s, 0)`: selects and products, no shuffles. x is permuted
once to `(m, M, G)`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from ...formats import NMArray
from .._finish import How, finish_inside
from .._table import Implementation
from .._tiles import divisor, padded_rows, position_planes, row_tile

TILES = (512, 256, 128)
ROWS = 256
SLOTS = 64  # maximum n m: selects and products per tile


def product(x: Float[Array, "m k"], w: NMArray, bias: Any, how: How) -> Float[Array, "m n"]:
    """`activation(x W + bias)`."""
    depth, width = check(w)
    n, groups, columns = w.values.shape
    dtype = jnp.promote_types(x.dtype, w.dtype)
    rows, tile = x.shape[0], row_tile(x.shape[0], dtype, ROWS)
    planes = position_planes(padded_rows(x.astype(dtype), tile), w)
    code = jnp.repeat(w.code, w.share, axis=-1)
    code = code.reshape(-1, groups, columns)
    bias = jnp.zeros((1, columns)) if bias is None else bias.astype(jnp.float32)[None]
    kernel = pl.pallas_call(
        partial(_step, n=n, m=w.m, how=how),
        grid=(planes.shape[1] // tile, columns // width, groups // depth),
        in_specs=[
            pl.BlockSpec((w.m, tile, depth), lambda i, j, g: (0, i, g)),
            pl.BlockSpec((n, depth, width), lambda i, j, g: (0, g, j)),
            pl.BlockSpec((code.shape[0], depth, width), lambda i, j, g: (0, g, j)),
            pl.BlockSpec((1, width), lambda i, j, g: (0, j)),
        ],
        out_specs=pl.BlockSpec((tile, width), lambda i, j, g: (i, j)),
        out_shape=jax.ShapeDtypeStruct((planes.shape[1], columns), how.dtype or jnp.float32),
        scratch_shapes=[pltpu.VMEM((tile, width), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name="nm_product",
    )
    return kernel(planes, w.values.astype(dtype), code, bias)[:rows]


def explain(rows: int, w: NMArray) -> str:
    """The kernel and its tiles."""
    depth, width = check(w)
    return f"{w.n}:{w.m} planes, tiles of {row_tile(rows, w.dtype, ROWS)}x{depth * w.m}x{width}"


def check(w: NMArray) -> tuple[int, int]:
    """Groups and columns per tile; raises if the hardware cannot tile the planes."""
    n, groups, columns = w.values.shape
    depth, width = divisor(groups, TILES), divisor(columns, TILES)
    if depth is None or width is None:
        raise NotImplementedError(
            f"{groups} groups and {columns} columns: both must be multiples of {TILES[-1]}"
        )
    if w.n * w.m > SLOTS:
        raise NotImplementedError(f"{w.n}:{w.m} takes {w.n * w.m} selects, more than {SLOTS}")
    if w.dtype == jnp.float64:
        raise NotImplementedError("float64")
    # The m planes of x and of the expanded tile share the vector memory.
    return min(depth, 1024 // w.m if w.m <= 8 else 128), width


def _step(x, values, code, bias, y, total, *, n: int, m: int, how: How):
    @pl.when(pl.program_id(2) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    chosen = code[...].astype(jnp.int32)
    bits = (m - 1).bit_length()
    slots = [chosen[s] for s in range(n)] if chosen.shape[0] == n > 1 else None
    for r in range(m):
        expanded = jnp.zeros(values.shape[1:], values.dtype)
        for s in range(n):
            at = slots[s] if slots else (chosen[0] >> (s * bits)) & (2**bits - 1)
            expanded = jnp.where(at == r, values[s], expanded)
        total[...] += lax.dot_general(
            x[r],
            expanded,
            (((1,), (0,)), ((), ())),
            precision=how.precision,
            preferred_element_type=jnp.float32,
        )

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        y[...] = finish_inside(total[...], bias[...], how).astype(y.dtype)


IMPLEMENTATION = Implementation(product, explain=explain)
