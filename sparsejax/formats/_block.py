"""Block-sparse matrices in padded ELL form: one list of blocks per block column."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._arguments import checked, is_int, known
from .._sharding import on_host
from .._tree import register
from ._array import SparseArray, as_mask, check_matrix, stacked
from ._validate import need, need_floats, need_lists


@register
@dataclass(frozen=True, eq=False, repr=False)
class BlockArray(SparseArray):
    r"""A matrix that stores some of its `(bk, bn)` blocks.

    Block column j has `count[j]` blocks; the l-th is at block row `index[j, l]` and holds
    `values[j, l]`. Slots from `count[j]` on are padding: index 0 and zeros, and their gradient is
    exactly zero. The same blocks by row: the l-th of block row i is at block column `index_t[i, l]`
    and at position `slot_t[i, l]` of `values.reshape(nb * L, bk, bn)`. Make one with `fromdense`.

    Only gradients and `T` read the lists by row, which are two thirds of the bytes of the indices.
    `for_inference()` leaves them out (Lt = 0), so that the gradient of a product raises ValueError,
    and narrows the others to uint8 or uint16 where these hold them; `with_rows()` restores both.
    With 90 % zeros at random in 256 x 256 float32 entries, blocks of 1 take 0.19 of the dense bytes
    instead of 0.64, blocks of 1 x 4 0.16 instead of 0.31, blocks of 4 x 4 0.19 instead of 0.23.

    Args:
      values: `(stacked..., nb, L, bk, bn)`.
      index: `(stacked..., nb, L)`, int32, ascending.
      count: `(stacked..., nb)`, int32.
      index_t: `(stacked..., kb, Lt)`, int32, ascending.
      slot_t: `(stacked..., kb, Lt)`, int32.
      count_t: `(stacked..., kb)`, int32.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> dense = jnp.zeros((4, 4)).at[2:, :2].set(3.0)
      >>> w = sj.formats.BlockArray.fromdense(dense, (2, 2))
      >>> w.values.shape, w.index.tolist(), w.count.tolist()
      ((2, 1, 2, 2), [[1], [0]], [1, 0])
      >>> (jnp.ones((1, 4)) @ w).tolist()
      [[6.0, 6.0, 0.0, 0.0]]
      >>> w.nbytes, w.for_inference().nbytes
      (72, 38)
    """

    values: Any
    index: Any
    count: Any
    index_t: Any
    slot_t: Any
    count_t: Any

    @classmethod
    @checked()
    def fromdense(
        cls,
        w: Shaped[Array | np.ndarray, "..."],
        block: int | np.integer | tuple[int, int],
        *,
        mask: Shaped[Array | np.ndarray, "..."] | None = None,
        slots: int | None = None,
        slots_t: int | None = None,
    ) -> "BlockArray":
        """Compresses a matrix; can be jitted and vmapped.

        Args:
          w: `(stacked..., K, N)`, floats.
          block: `(bk, bn)` or one number for both.
          mask: Entries to keep, in the shape of `w`; blocks that contain any of them are stored.
          slots: L, the capacity of a block column in blocks. None uses the fullest column, or all
            blocks if `w` is traced. Equal numbers give equal shapes, so nothing is recompiled.
          slots_t: Lt, the same for block rows.

        Raises:
          ValueError: If the blocks do not divide the matrix, or (unless traced) a block column or
            row has more blocks than slots. If traced, excess blocks are dropped.
          TypeError: If `w` does not hold floats or the mask booleans.
        """
        check_matrix("BlockArray.fromdense", w)
        block, w = _checked_block(w.shape, block), jnp.asarray(w)
        kept = as_mask("BlockArray.fromdense", w, mask)
        masked = jnp.where(kept, w, jnp.zeros((), w.dtype))
        stored = _occupied(jnp.asarray(kept), block)
        lists = lists_of(stored, slots, slots_t)
        return cls(_gather(masked, lists[0], lists[1], block), *lists)

    @property
    def block(self) -> tuple[int, int]:
        """`(bk, bn)`."""
        return self.values.shape[-2:]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(stacked..., K, N)`."""
        *stacked, columns, _, bk, bn = self.values.shape
        return (*stacked, self.index_t.shape[-2] * bk, columns * bn)

    def todense(self) -> Float[Array, "... k n"]:
        """The matrix `(stacked..., K, N)` with zeros where nothing is stored."""
        rows = self.index_t.shape[-2]
        scatter = stacked(partial(_scatter, rows=rows), self.values.ndim - 4)
        w = self.for_product()
        return scatter(w.values, w.index, w.count)

    def take(self, dense: Shaped[Array, "... k n"]) -> Shaped[Array, "... nb l bk bn"]:
        """The entries of a matrix `(stacked..., K, N)` at the stored blocks; padding is zero."""
        w = self.for_product()
        return _gather(dense, w.index, w.count, self.block)

    def validate(self) -> None:
        """Raises ValueError if a list refers to a block out of range, or the lists differ."""
        *lead, columns, slots, _, _ = need_floats(self, "values", 4)
        count_t = getattr(self.count_t, "shape", ())
        rows, slots_t = count_t[-1:], getattr(self.index_t, "shape", ())[-1:]
        shape, shape_t = (*lead, columns, slots), (*lead, *rows, *slots_t)
        need(self, len(rows) and len(slots_t), "index_t and count_t must be arrays of lists")
        index, used = need_lists(self, ("index", "count"), shape, rows)
        padding = jnp.any(jnp.where(used[..., None, None], False, self.values != 0))
        need(self, ~padding, "values must be 0 from count on")
        ends = (columns, columns * slots)
        index_t, slot_t, used_t = need_lists(self, ("index_t", "slot_t", "count_t"), shape_t, ends)
        if not self._has_rows:
            return
        # Block row, block column and position of every block, by column and by row.
        *stack, j, s = np.nonzero(used)
        by_column = np.stack([*stack, index[used], j, j * slots + s])
        *stack, i, _ = np.nonzero(used_t)
        by_row = np.stack([*stack, i, index_t[used_t], slot_t[used_t]])
        order = np.lexsort(by_column[: len(lead) + 2][::-1])
        same = np.array_equal(by_column[:, order], by_row)
        need(self, same, "the lists by row and column differ")

    @property
    def used(self) -> Bool[Array, "... nb l"]:
        """Which slots hold a block, `(stacked..., nb, L)`."""
        return _filled(self.count.astype(jnp.int32), self.index.shape[-1])

    @property
    def T(self) -> "BlockArray":
        """The transposed matrix, with a rearranged copy of the values."""
        self.check_gradient()
        values = stacked(_transpose_values, self.values.ndim - 4)
        values = values(self.values, self.slot_t, self.count_t)
        slot = stacked(_slots_by_column, self.values.ndim - 4)
        slot = slot(self.slot_t, self.count_t, self.index)
        return BlockArray(values, self.index_t, self.count_t, self.index, slot, self.count)

    def for_inference(self) -> "BlockArray":
        """The same matrix without the lists by block row: no gradient, no `T`.

        The lists by block column become the narrowest unsigned integers that hold them. Products
        are equal bit for bit.
        """
        none, count_t = self.index_t[..., :0], jnp.zeros_like(self.count_t, jnp.uint8)
        rows, slots = self.index_t.shape[-2], self.index.shape[-1]
        index, count = self.index.astype(_narrow(rows)), self.count.astype(_narrow(slots + 1))
        return replace(self, index=index, count=count, index_t=none, slot_t=none, count_t=count_t)

    def for_product(self) -> "BlockArray":
        """The same matrix with lists of int32, as kernels read them."""
        lists = ("index", "count", "index_t", "slot_t", "count_t")
        return replace(self, **{name: getattr(self, name).astype(jnp.int32) for name in lists})

    def with_rows(self, slots_t: int | None = None) -> "BlockArray":
        """The same matrix with the lists by block row, made from those by block column.

        Args:
          slots_t: As for `fromdense`.
        """
        if self._has_rows:
            return self
        rows, slots = self.index_t.shape[-2], self.index.shape[-1]
        stored, w = stacked(partial(_scatter, rows=rows), self.values.ndim - 4), self.for_product()
        ones = jnp.ones((*w.index.shape, 1, 1), jnp.float32)
        found = stored(ones, w.index, w.count) != 0
        return BlockArray(self.values, *lists_of(found, slots, slots_t))

    def check_gradient(self) -> None:
        """Raises ValueError without the lists by block row, which gradients and `T` read."""
        if not self._has_rows:
            raise ValueError(
                f"{self} was compressed for inference, without the lists by block row that its "
                "gradient and its transpose read: keep them with sj.compress(model, plan, masks), "
                "or restore them with w.with_rows()."
            )

    @property
    def _has_rows(self) -> bool:
        # `lists_of` has slots for both lists or for none.
        return bool(self.index_t.shape[-1] or not self.index.shape[-1])

    @property
    def real(self) -> Bool[Array, "... nb l 1 1"]:
        """The slots that hold a block."""
        return self.used[..., None, None]

    @property
    def label(self) -> str:
        """ "blocks of RxC, L slots"."""
        return f"blocks of {self.block[0]}x{self.block[1]}, {self.index.shape[-1]} slots"

    @property
    def column_axes(self) -> dict[str, int]:
        """Block columns."""
        return {"values": -4, "index": -2, "count": -1}

    def _repr(self) -> str:
        (bk, bn), slots = self.block, self.index.shape[-1]
        return f"blocks={bk}x{bn}, slots={slots}, shape={self.shape}, dtype={self.dtype}"


@checked()
def choose_output_block(w: Shaped[Array | np.ndarray, "k n"]) -> int:
    """The number of outputs per block of a sparse matrix, 1, 2 or 4, by the rule of XNNPACK.

    The largest b such that at least 9 of 10 entries of the stored blocks `(1, b)` are not zero;
    columns beyond the last whole block are ignored.

    Args:
      w: `(K, N)` with zeros, on the host.

    Raises:
      ValueError: If W is not a matrix.

    Reference:
      Elsen et al., Fast Sparse ConvNets, 2019 (arXiv 1911.09723).

    Example:
      >>> import numpy as np, sparsejax as sj
      >>> sj.formats.choose_output_block(np.kron(np.eye(4), np.ones((1, 2))))
      2
    """
    kept = on_host(w) != 0
    if kept.ndim != 2:
        raise ValueError(f"choose_output_block: w must be a matrix (K, N), got shape {kept.shape}.")
    for b in (4, 2):
        whole = kept[:, : kept.shape[1] // b * b].reshape(len(kept), -1, b)
        blocks = int(whole.any(-1).sum())
        if blocks and 10 * int(whole.sum()) >= 9 * b * blocks:
            return b
    return 1


def lists_of(
    stored: Bool[Array, "... kb nb"], slots: int | None = None, slots_t: int | None = None
) -> tuple[Int[Array, "..."], ...]:
    """`index, count, index_t, slot_t, count_t` from the stored blocks."""
    *lead, rows, columns = stored.shape
    if known(stored):
        held = on_host(stored)
        slots = _room("slots", held.sum(-2), slots)
        slots_t = _room("slots_t", held.sum(-1), slots_t)
    slots = rows if slots is None else min(slots, rows)
    slots_t = columns if slots_t is None else min(slots_t, columns)
    # Lists by row without slots mark a matrix for inference.
    slots, slots_t = max(slots, min(slots_t, rows, 1)), max(slots_t, min(slots, columns, 1))
    return stacked(partial(_lists, slots=slots, slots_t=slots_t), len(lead))(stored)


@partial(jax.jit, static_argnames=("slots", "slots_t"))
def _lists(stored: Bool[Array, "kb nb"], slots: int, slots_t: int):
    # Excess blocks (only possible if the mask is traced) are dropped from both lists.
    stored &= jnp.cumsum(stored, axis=0) <= slots
    stored &= jnp.cumsum(stored, axis=1) <= slots_t
    index, count = _first(stored.T, slots)
    index_t, count_t = _first(stored, slots_t)
    rank = jnp.cumsum(stored, axis=0) - 1
    position = jnp.arange(stored.shape[1])[None] * slots + rank
    slot_t = jnp.take_along_axis(position, index_t, axis=1) if index_t.size else index_t
    slot_t = jnp.where(_filled(count_t, slots_t), slot_t, 0).astype(jnp.int32)
    return index, count, index_t, slot_t, count_t


def _first(stored: Bool[Array, "lists entries"], slots: int):
    """The indices of the first `slots` ones of each row, ascending, zero-padded; and the count."""
    count = stored.sum(1, dtype=jnp.int32)
    order = jnp.argsort(~stored, axis=1, stable=True)[:, :slots].astype(jnp.int32)
    return jnp.where(_filled(count, slots), order, 0), count


def _narrow(end: int) -> Any:
    """The narrowest dtype of the integers in `[0, end)`."""
    return next(t for t in (jnp.uint8, jnp.uint16, jnp.int32) if end <= jnp.iinfo(t).max + 1)


def _filled(count: Int[Array, "..."], slots: int) -> Bool[Array, "... l"]:
    """Which slots of each list are in use: the first `count`."""
    return lax.broadcasted_iota(jnp.int32, (*count.shape, slots), count.ndim) < count[..., None]


def _room(name: str, counts: np.ndarray, slots: int | None) -> int:
    most = int(counts.max(initial=0))
    if slots is not None and slots < most:
        side = "column" if name == "slots" else "row"
        raise ValueError(
            f"BlockArray.fromdense({name}={slots}) has no room for the {most} blocks of the "
            f"fullest block {side}; pass {name}={most} or omit it."
        )
    return most if slots is None else slots


def _tiles(x: Shaped[Array, "... k n"], block: tuple[int, int]) -> Shaped[Array, "..."]:
    """`(stacked..., nb, kb, bk, bn)`."""
    *lead, k, n = x.shape
    bk, bn = block
    tiles = x.reshape(math.prod(lead), k // bk, bk, n // bn, bn).transpose(0, 3, 1, 2, 4)
    return tiles.reshape(*lead, n // bn, k // bk, bk, bn)


@partial(jax.jit, static_argnames="block")
def _occupied(kept: Bool[Array, "... k n"], block: tuple[int, int]) -> Bool[Array, "... kb nb"]:
    return jnp.swapaxes(_tiles(kept, block).any((-2, -1)), -1, -2)


@partial(jax.jit, static_argnames="block")
def _gather(w, index, count, block: tuple[int, int]) -> Shaped[Array, "... nb l bk bn"]:
    tiles = _tiles(w, block)
    if not index.size:
        return jnp.zeros((*index.shape, *block), w.dtype)
    blocks = jnp.take_along_axis(tiles, index[..., None, None], axis=-3)
    used = _filled(count, index.shape[-1])
    return jnp.where(used[..., None, None], blocks, jnp.zeros((), w.dtype))


@partial(jax.jit, static_argnames="rows")
def _scatter(values, index, count, rows: int) -> Float[Array, "k n"]:
    columns, slots, bk, bn = values.shape
    # Padding is written to an out-of-range row.
    index = jnp.where(_filled(count, slots), index, rows)
    blocks = jnp.zeros((columns, rows, bk, bn), values.dtype)
    # By column, so that sharded columns stay where they are.
    blocks = jax.vmap(lambda b, at, v: b.at[at].set(v, mode="drop"))(blocks, index, values)
    return blocks.transpose(1, 2, 0, 3).reshape(rows * bk, columns * bn)


def _transpose_values(values, slot_t, count_t) -> Float[Array, "kb lt bn bk"]:
    columns, slots, bk, bn = values.shape
    if not values.size or not slot_t.size:
        return jnp.zeros((*slot_t.shape, bn, bk), values.dtype)
    used = _filled(count_t, slot_t.shape[1])
    blocks = values.reshape(columns * slots, bk, bn)[slot_t]
    return jnp.where(used[..., None, None], blocks, 0).swapaxes(-1, -2)


def _slots_by_column(slot_t, count_t, index) -> Int[Array, "nb l"]:
    """Positions of blocks, listed by column, in the transposed values: inverse of `slot_t`."""
    used = _filled(count_t, slot_t.shape[1])
    place = jnp.where(used, slot_t, index.size)
    own = jnp.arange(slot_t.size, dtype=jnp.int32).reshape(slot_t.shape)
    flat = jnp.zeros(index.size, jnp.int32).at[place].set(own, mode="drop")
    return flat.reshape(index.shape)


def _checked_block(shape: tuple[int, ...], block: Any) -> tuple[int, int]:
    block = block if isinstance(block, tuple | list) else (block, block)
    if len(block) != 2 or not all(is_int(b) and b >= 1 for b in block):
        raise ValueError(f"BlockArray.fromdense(block={block}) must be two positive integers.")
    if shape[-2] % block[0] or shape[-1] % block[1]:
        raise ValueError(
            f"BlockArray.fromdense(block={block}) does not divide w of shape {tuple(shape)}; "
            "choose a block that divides the last two axes, or pad w."
        )
    return int(block[0]), int(block[1])
