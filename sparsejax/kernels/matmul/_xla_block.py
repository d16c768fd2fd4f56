"""Block-sparse products in XLA: batched over block columns, or a scan over them.

Both gather the block rows of x that a block column needs, and multiply them with its blocks as one
dense matrix. The batched form gathers all of them at once, which is fast while they fit in the
cache; the scan holds only those of one column.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from ...formats import BlockArray
from ._order import known_rows

# Bytes of gathered x up to which the batched form is faster, for blocks of at least 32 rows and for
# smaller ones, whose gather is slower. Measured with a last-level cache of 32 MB, see
# benchmarks/results/matmul-cpu.md.
BATCHED_BYTES = {32: 16 * 2**20, 1: 4 * 2**20}
# Columns of a block from which transposing it first is faster.
TRANSPOSED_COLUMNS = 32
# Rows of x from which the batched form sums over slots within rows of a block.
INTERLEAVED_ROWS = 512
# Fill of the lists, and rows of x, from which one product with the decompressed matrix is faster.
DENSE_FILL, DENSE_ROWS = 0.6, 512


def product(x: Shaped[Array, "m k"], w: BlockArray, **dot: Any) -> Float[Array, "m n"]:
    """`x W` in the form selected by the shapes."""
    if not w.values.size:
        return jnp.zeros((x.shape[0], w.shape[1]), dot["preferred_element_type"])
    return form(known_rows(x.shape[0]), w)(x, w, **dot)


def form(rows: int, w: BlockArray) -> Callable[..., Array]:
    """The fastest form on a CPU."""
    forms = {"decompressed": decompressed, "batched": batched, "scanned": scanned}
    return forms[_choose(rows, w.index.shape, w.index_t.shape[0], w.block[0])]


def _choose(rows: int, lists: tuple[int, ...], others: int, width: int) -> str:
    """The form for lists of blocks `width` wide, given `others`, the length of a full list."""
    count, slots = lists
    if rows >= DENSE_ROWS and slots > DENSE_FILL * others:
        return "decompressed"
    limit = next(size for least, size in BATCHED_BYTES.items() if width >= least)
    return "batched" if rows * count * slots * width * 4 <= limit else "scanned"


def decompressed(x: Shaped[Array, "m k"], w: BlockArray, **dot: Any) -> Float[Array, "m n"]:
    """One dense product."""
    y = lax.dot_general(x, w.todense(), (((1,), (0,)), ((), ())), **dot)
    return _marked(y, _damaged(w.index, w.index_t.shape[0]))


def batched(x: Shaped[Array, "m k"], w: BlockArray, **dot: Any) -> Float[Array, "m n"]:
    """One gather of x, one product batched over block columns."""
    columns, _, bk, bn = w.values.shape
    gathered = _rows(x, w.index, bk)
    # The order of the sum determines the layout of both copies made by XLA.
    summed = ((3, 2), (2, 1)) if known_rows(x.shape[0]) >= INTERLEAVED_ROWS else ((2, 3), (1, 2))
    y = lax.dot_general(gathered, w.values, (summed, ((1,), (0,))), **dot)
    y = y.transpose(1, 0, 2).reshape(x.shape[0], columns * bn)
    return _marked(y, _damaged(w.index, w.index_t.shape[0]))


def scanned(x: Shaped[Array, "m k"], w: BlockArray, **dot: Any) -> Float[Array, "m n"]:
    """A scan over block columns, transposed: `y_j^T = V_j^T x_j^T`."""
    columns, slots, bk, bn = w.values.shape
    rows = _columns(x, bk)

    def step(_, column):
        values, index, damaged = column
        # Marked here, in cache: a pass over the result would take half as long as the product.
        tile = jnp.where(damaged, jnp.nan, values.reshape(slots * bk, bn).T)
        if bn >= TRANSPOSED_COLUMNS:
            # XLA's CPU product is slow with a transposed left side: transpose the tile, in cache.
            tile = lax.optimization_barrier(tile)
        gathered = _take(rows, index).reshape(slots * bk, -1)
        return None, lax.dot_general(tile, gathered, (((1,), (0,)), ((), ())), **dot)

    _, y = lax.scan(step, None, (w.values, w.index, _damaged(w.index, len(rows))))
    return y.reshape(columns * bn, -1).T


def transposed(dy: Shaped[Array, "m n"], w: BlockArray, **dot: Any) -> Float[Array, "m k"]:
    """`dy W^T` through the lists by block row."""
    rows, slots = w.index_t.shape
    if not w.values.size:
        return jnp.zeros((dy.shape[0], w.shape[0]), dot["preferred_element_type"])
    chosen = _choose(known_rows(dy.shape[0]), (rows, slots), w.values.shape[0], w.block[1])
    if chosen == "decompressed":
        y = lax.dot_general(dy, w.todense(), (((1,), (1,)), ((), ())), **dot)
        return _marked(y, _damaged(w.index_t, w.values.shape[0]))
    product = _transposed_batched if chosen == "batched" else _transposed_scanned
    return product(dy, w, **dot)


def _transposed_batched(dy, w: BlockArray, **dot: Any) -> Float[Array, "m k"]:
    rows, (bk, bn) = w.index_t.shape[0], w.block
    gathered = _rows(dy, w.index_t, bn)
    blocks = _blocks(w, w.slot_t, w.count_t)
    y = lax.dot_general(gathered, blocks, (((2, 3), (1, 3)), ((1,), (0,))), **dot)
    y = y.transpose(1, 0, 2).reshape(dy.shape[0], rows * bk)
    return _marked(y, _damaged(w.index_t, w.values.shape[0]))


def _transposed_scanned(dy, w: BlockArray, **dot: Any) -> Float[Array, "m k"]:
    (rows, slots), (bk, bn) = w.index_t.shape, w.block
    columns = _columns(dy, bn)

    def step(_, row):
        index, slot, count, damaged = row
        tile = _blocks(w, slot, count).transpose(1, 0, 2).reshape(bk, slots * bn)
        tile = jnp.where(damaged, jnp.nan, tile)
        gathered = _take(columns, index).reshape(slots * bn, -1)
        return None, lax.dot_general(tile, gathered, (((1,), (0,)), ((), ())), **dot)

    lists = w.index_t, w.slot_t, w.count_t, _damaged(w.index_t, len(columns))
    _, y = lax.scan(step, None, lists)
    return y.reshape(rows * bk, -1).T


def sampled(
    x: Shaped[Array, "m k"], dy: Shaped[Array, "m n"], w: BlockArray, **dot: Any
) -> Float[Array, "nb l bk bn"]:
    """`x^T dy` at the stored blocks; exactly zero in the padding."""
    columns, slots, bk, bn = w.values.shape
    if not w.values.size:
        return jnp.zeros(w.values.shape, dot["preferred_element_type"])
    by_column = dy.reshape(-1, columns, bn)
    if _choose(known_rows(x.shape[0]), (columns, slots), w.index_t.shape[0], bk) == "batched":
        gathered = _rows(x, w.index, bk)
        values = lax.dot_general(gathered, by_column, (((0,), (0,)), ((1,), (1,))), **dot)
    else:
        values = _sampled_scanned(_columns(x, bk), by_column.transpose(1, 0, 2), w.index, **dot)
    values = values.reshape(w.values.shape)
    return jnp.where(w.used[..., None, None], values, jnp.zeros((), values.dtype))


def _sampled_scanned(rows, by_column, index, **dot: Any) -> Float[Array, "nb lbk bn"]:
    def step(_, column):
        dy, index = column
        gathered = _take(rows, index).reshape(-1, rows.shape[2])
        return None, lax.dot_general(gathered, dy, (((1,), (0,)), ((), ())), **dot)

    return lax.scan(step, None, (by_column, index))[1]


def _damaged(index, end: int) -> Bool[Array, " lists"]:
    """The lists with indices out of range, which XLA would clamp."""
    return ((index < 0) | (index >= end)).any(-1)


def _marked(y, damaged: Bool[Array, " lists"]) -> Float[Array, "m n"]:
    """NaN in the entries of damaged lists."""
    return jnp.where(jnp.repeat(damaged, y.shape[-1] // damaged.size), jnp.nan, y)


def _rows(x, index, width: int) -> Shaped[Array, "m lists slots width"]:
    """The blocks of x referenced by each list."""
    blocks = x.reshape(x.shape[0], x.shape[1] // width, width)
    # One flat list of indices: XLA gathers it faster than a table.
    flat = blocks.at[:, index.reshape(-1)].get(mode="promise_in_bounds")
    return flat.reshape(x.shape[0], *index.shape, width)


def _columns(x, width: int) -> Shaped[Array, "blocks width m"]:
    return x.T.reshape(x.shape[1] // width, width, x.shape[0])


def _blocks(w: BlockArray, slot, count) -> Shaped[Array, "..."]:
    """The blocks at flat positions `slot`, zero from `count` on."""
    place = lax.broadcasted_iota(jnp.int32, slot.shape, slot.ndim - 1)
    used = place < jnp.asarray(count)[..., None]
    flat = w.values.reshape(-1, *w.block)
    return jnp.where(used[..., None, None], _take(flat, slot), jnp.zeros((), w.dtype))


def _take(x, index) -> Shaped[Array, "..."]:
    return x.at[index].get(mode="promise_in_bounds")
