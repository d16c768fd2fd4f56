"""Tile sizes and contents, shared by the kernels for all hardware."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ..formats import NMArray


def row_tile(rows: int, dtype: Any, most: int, least: int | None = None) -> int:
    """Rows of x per tile: all of them, rounded up as the hardware requires, or `most`."""
    least = 32 // jnp.dtype(dtype).itemsize if least is None else least
    return min(most, max(least, _round_up(rows, least)))


def padded_rows(x: Shaped[Array, "m k"], tile: int) -> Shaped[Array, "rows k"]:
    """Pads with zero rows to a multiple of the tile."""
    missing = -x.shape[0] % tile
    return jnp.pad(x, ((0, missing), (0, 0))) if missing else x


def promoted(*arrays: Any) -> Any:
    """The common dtype; raises if the tensor cores do not support it."""
    dtype = jnp.result_type(*(a.dtype for a in arrays))
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"{dtype}: the tensor cores support bfloat16 and float16")
    return dtype


def divisor(size: int, choices: tuple[int, ...]) -> int | None:
    """The first of the choices that divides a size."""
    return next((c for c in choices if size % c == 0), None)


def position_planes(x: Shaped[Array, "m k"], w: NMArray) -> Shaped[Array, "r m g"]:
    """x by position within a group: plane r holds `x[:, r::m]`."""
    x = jnp.pad(x, ((0, 0), (0, w.padding)))
    return x.reshape(x.shape[0], -1, w.m).transpose(2, 0, 1)


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
