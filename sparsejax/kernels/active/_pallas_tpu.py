"""Active units on TPU: the prefetched list determines the rows to copy."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Shaped

from ...select import ActiveSet
from .._tiles import divisor, padded_rows, row_tile

LANES = 128
WIDTHS = (2048, 1024, 512, 256, 128)  # features per tile


def reduce(
    h: Float[Array, "t k g"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t d"]:
    """`sum_j h_j w[index_j]`."""
    width, tokens = check(w, s), h.shape[0]
    h = _by_place(h, w.dtype)
    size, features = w.shape[1:]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(features // width, s.capacity),
        in_specs=[
            pl.BlockSpec((1, h.shape[1], size), lambda c, j, *_: (j, 0, 0)),
            pl.BlockSpec((1, size, width), lambda c, j, *list_: (_unit(j, *list_), 0, c)),
        ],
        out_specs=pl.BlockSpec((h.shape[1], width), lambda c, j, *_: (0, c)),
    )
    y = pl.pallas_call(
        _reduce_step,
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct((h.shape[1], features), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="active_reduce",
    )(s.index, s.count.reshape(1), h, w)
    return y[:tokens]


def expand(
    x: Float[Array, "t d"], w: Shaped[Array, "n g d"], s: ActiveSet
) -> Float[Array, "t k g"]:
    """`x w[index_j]^T`, zero from `count` on."""
    width, tokens = check(w, s), x.shape[0]
    x = padded_rows(x.astype(w.dtype), row_tile(tokens, w.dtype, 256))
    size, features = w.shape[1:]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(s.capacity, features // width),
        in_specs=[
            pl.BlockSpec((x.shape[0], width), lambda j, c, *_: (0, c)),
            pl.BlockSpec((1, size, width), lambda j, c, *list_: (_unit(j, *list_), 0, c)),
        ],
        out_specs=pl.BlockSpec((1, x.shape[0], size), lambda j, c, *_: (j, 0, 0)),
    )
    u = pl.pallas_call(
        _expand_step,
        grid_spec=grid,
        out_shape=jax.ShapeDtypeStruct((s.capacity, x.shape[0], size), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        name="active_expand",
    )(s.index, s.count.reshape(1), x, w)
    return u[:, :tokens].transpose(1, 0, 2)


def check(w: Any, s: ActiveSet) -> int:
    """Features per tile; raises if the hardware cannot tile the rows."""
    if s.index.ndim != 1:
        raise NotImplementedError("one set per token is not supported")
    width = divisor(w.shape[2], WIDTHS)
    if width is None:
        raise NotImplementedError(f"{w.shape[2]} features: a multiple of {LANES} is required")
    if w.dtype == jnp.float64:
        raise NotImplementedError("float64")
    return width


def _by_place(h, dtype) -> Float[Array, "k t g"]:
    """List positions first, padded to the rows of a tile."""
    tile = row_tile(h.shape[0], dtype, 256)
    h = jnp.pad(h, ((0, -h.shape[0] % tile), (0, 0), (0, 0)))
    return h.astype(dtype).transpose(1, 0, 2)


def _unit(j, index, count):
    """The unit of a list position; unused ones repeat the last unit, to avoid another copy."""
    return index[jnp.maximum(jnp.minimum(j, count[0] - 1), 0)]


def _reduce_step(index, count, h, w, y):
    del index
    j = pl.program_id(1)

    @pl.when(j == 0)
    def _():
        y[...] = jnp.zeros_like(y)

    @pl.when(j < count[0])
    def _():
        if h.shape[2] == 1:
            y[...] += h[0].astype(jnp.float32) * w[0].astype(jnp.float32)
        else:
            y[...] += _dot(h[0], w[0], ((1,), (0,)))


def _expand_step(index, count, x, w, u):
    del index
    j, c = pl.program_id(0), pl.program_id(1)

    @pl.when(c == 0)
    def _():
        u[...] = jnp.zeros_like(u)

    @pl.when(j < count[0])
    def _():
        if w.shape[1] == 1:
            wide = x[...].astype(jnp.float32) * w[0].astype(jnp.float32)
            u[0] += jnp.sum(wide, axis=1, keepdims=True)
        else:
            u[0] += _dot(x[...], w[0], ((1,), (1,)))


def _dot(a, b, contracted):
    return lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)
