"""N:M products in XLA: decompressed, selected, or gathered once per shared pattern."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from ...formats import NMArray
from ._order import known_rows

# Columns that must share a pattern for gathering x to be faster.
GATHERED_SHARE = 32
# Group length up to which each entry is compared with the index of a slot.
SELECTED_GROUP = 128
# Bytes of gathered x up to which one batched product beats a scan over tiles.
BATCHED_BYTES = 2**20
# Rows of x from which a half-dense pattern is not faster than dense.
DENSE_ROWS = 64


def product(x: Shaped[Array, "m k"], w: NMArray, **dot: Any) -> Float[Array, "m n"]:
    """`x W` in the form selected by the shapes."""
    return form(known_rows(x.shape[0]), w)(x, w, **dot)


def form(rows: int, w: NMArray) -> Callable[..., Array]:
    """The fastest form on a CPU, see benchmarks/results/matmul-cpu.md."""
    if w.share < GATHERED_SHARE:
        selects = rows == 1 and 8 * w.n <= w.m <= SELECTED_GROUP
        return selected if selects else decompressed
    if 2 * w.n >= w.m and rows >= DENSE_ROWS:
        return decompressed
    return gathered if _is_batched(rows, w) else scanned


def _is_batched(rows: int, w: NMArray) -> bool:
    n, groups, columns = w.values.shape
    return rows * n * groups * (columns // w.share) * 4 <= BATCHED_BYTES


def decompressed(x: Shaped[Array, "m k"], w: NMArray, **dot: Any) -> Float[Array, "m n"]:
    """One dense product."""
    return lax.dot_general(x, w.todense(), (((1,), (0,)), ((), ())), **dot)


def selected(x: Shaped[Array, "m k"], w: NMArray, **dot: Any) -> Float[Array, "m n"]:
    """Each stored value times the selected entry of x; reads only stored values."""
    dtype = dot["preferred_element_type"]
    x = _padded(x, w).reshape(x.shape[0], -1, w.m).astype(dtype)
    index = jnp.repeat(w.index, w.share, axis=-1)
    y = jnp.zeros((x.shape[0], w.shape[1]), dtype)
    for s in range(w.n):
        picked = jnp.zeros((), dtype)
        for r in range(w.m):
            picked = jnp.where(index[s] == r, x[:, :, r, None], picked)
        # A sum along an axis that is not the last is a slow loop on a CPU, a product is not.
        terms = picked * w.values[s].astype(dtype)
        ones = jnp.ones(terms.shape[1], dtype)
        y += lax.dot_general(ones, terms, (((0,), (1,)), ((), ())), lax.Precision.HIGHEST)
    return y


def gathered(x: Shaped[Array, "m k"], w: NMArray, **dot: Any) -> Float[Array, "m n"]:
    """One gather of x per tile of columns with one pattern, one product batched over tiles."""
    tiles = _gather(x, w)
    values = w.values.reshape(-1, tiles.shape[0], w.share)
    y = lax.dot_general(tiles, values, (((2,), (0,)), ((0,), (1,))), **dot)
    return y.transpose(1, 0, 2).reshape(x.shape[0], w.shape[1])


def scanned(x: Shaped[Array, "m k"], w: NMArray, **dot: Any) -> Float[Array, "m n"]:
    """A scan over the tiles, transposed: `y_j^T = V_j^T x_j^T`."""
    rows = _stored_rows(w)
    values = w.values.reshape(-1, rows.shape[0], w.share).transpose(1, 2, 0)
    columns = _padded(x, w).T

    def step(_, tile):
        rows, values = tile
        picked = columns.at[rows].get(mode="promise_in_bounds")
        return None, lax.dot_general(values, picked, (((1,), (0,)), ((), ())), **dot)

    _, y = lax.scan(step, None, (rows, values))
    return y.reshape(w.shape[1], -1).T


def transposed(dy: Shaped[Array, "m n"], w: NMArray, **dot: Any) -> Float[Array, "m k"]:
    """`dy W^T`: the groups are along the output of this product, so W is decompressed."""
    return lax.dot_general(dy, w.todense(), (((1,), (1,)), ((), ())), **dot)


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: NMArray, **dot: Any
) -> Float[Array, "slots g n"]:
    """`x^T dy` at the stored positions, unused slots included."""
    if w.share < GATHERED_SHARE or not _is_batched(known_rows(x.shape[0]), w):
        return w.take(lax.dot_general(x, dy, (((0,), (0,)), ((), ())), **dot))
    tiles = _gather(x, w)
    by_tile = dy.reshape(dy.shape[0], -1, w.share)
    values = lax.dot_general(tiles, by_tile, (((1,), (0,)), ((0,), (1,))), **dot)
    return values.transpose(1, 0, 2).reshape(w.values.shape)


def _gather(x, w: NMArray) -> Shaped[Array, "tiles m stored"]:
    """The entries of x that each tile needs, `(T, m, n G)`."""
    x = _padded(x, w)
    return jax.vmap(lambda r: x.at[:, r].get(mode="promise_in_bounds"))(_stored_rows(w))


def _stored_rows(w: NMArray) -> Int[Array, "tiles stored"]:
    """The rows of W that each tile stores, slot by slot."""
    first = jnp.arange(w.values.shape[1], dtype=jnp.int32)[:, None] * w.m
    return (first + w.index.astype(jnp.int32)).reshape(-1, w.code.shape[-1]).T


def _padded(x, w: NMArray) -> Shaped[Array, "m k"]:
    return jnp.pad(x, ((0, 0), (0, w.padding)))
