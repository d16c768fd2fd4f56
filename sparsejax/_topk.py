"""Exact selection without sorting: the k-th largest by bisection on the integer image of floats.

Selections along some axes of an array leave the other axes alone: nothing is moved or gathered, so
that arrays may be sharded along any axis.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt

from ._arrays import zeros_for
from ._counts import count_dtype

# Sums of up to this many booleans fit into uint16, which vectorizes: 3x faster than a plain sum.
_SHORT = 2**16 - 1
# Groups up to this long are ranked by comparing all pairs, longer ones by bisection.
_PAIRWISE = 32

Axes = tuple[int, ...]


def topk_mask(
    scores: Float[Array, "..."], k: int | Shaped[Array, "..."], axes: Axes | None = None
) -> Bool[Array, "..."]:
    """Exactly `k` ones at the largest scores; the lowest flat index wins ties, NaN ranks last.

    Bisection over the bits of the scores: 32 counting passes of 2 bytes an entry for float32, no
    sort. `k` may be traced; k <= 0 keeps nothing and k >= n everything. NaN ranks below -infinity.

    Args:
      scores: Floats.
      k: Number of ones; with `axes` a number for each slice, in the shape of the scores with 1 in
        place of the compared axes.
      axes: The compared axes, the slowest of the flat index first; every slice along the others is
        a selection by itself. None compares all entries.
    """
    if axes is None:
        return topk_masks([scores], k)[0]
    total = math.prod(scores.shape[axis] for axis in axes)
    if scores.size == 0:
        return jnp.zeros(scores.shape, bool)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(scores.shape))
    return _topk_masks([scores], jnp.broadcast_to(_as_count(k, total), shape), axes)[0]


def topk_masks(
    scores: Sequence[Float[Array, "..."]], k: int | Shaped[Array, ""]
) -> list[Bool[Array, "..."]]:
    """`topk_mask` over several arrays together: earlier arrays have the lower indices."""
    total = sum(math.prod(s.shape) for s in scores)
    if total == 0:
        return [jnp.zeros(s.shape, bool) for s in scores]
    return _topk_masks(list(scores), _as_count(k, total), None)


def _as_count(k: int | Shaped[Array, "..."], total: int) -> UInt[Array, "..."]:
    dtype = count_dtype(total)
    if isinstance(k, int):
        return jnp.asarray(min(max(k, 0), total), dtype)
    return jnp.minimum(jnp.maximum(k, 0).astype(dtype), jnp.asarray(total, dtype))


@partial(jax.jit, static_argnames="axes")
def _topk_masks(
    scores: list[Float[Array, "..."]], k: UInt[Array, "..."], axes: Axes | None
) -> list[Bool[Array, "..."]]:
    wide = jnp.result_type(*scores)
    keys = [sortable(s.astype(wide)) for s in scores]
    cut, missing = _kth_largest(keys, k, axes)
    ties = [key == cut for key in keys]
    end = _end_of_ties(ties, missing, axes)
    return [(key > cut) | tie for key, tie in zip(keys, _before(ties, end, axes))]


def nm_mask(
    scores: Float[Array, "... k n"], n: int | Shaped[Array, ""], m: int
) -> Bool[Array, "... k n"]:
    """The `n` largest of every `m` consecutive scores along the axis before the last."""
    *lead, k, columns = scores.shape
    if k % m:
        raise ValueError(f"groups of {m} do not divide the contraction length {k}.")
    groups = scores.reshape(*lead, k // m, m, columns)
    return group_mask(groups, n, (groups.ndim - 2,)).reshape(scores.shape)


@partial(jax.jit, static_argnames="axes")
def group_mask(
    groups: Float[Array, "..."], n: int | Shaped[Array, ""], axes: Axes
) -> Bool[Array, "..."]:
    """The `n` largest scores along short axes, the slowest first.

    By rank: an entry is kept if fewer than `n` of its group exceed it. The lowest index wins ties,
    NaN ranks last, `n` may be traced.
    """
    sizes = [groups.shape[axis] for axis in axes]
    if math.prod(sizes) > _PAIRWISE:
        return topk_mask(groups, jnp.asarray(n), axes)
    places = list(np.ndindex(*sizes))
    slots = [_at(groups, axes, place) for place in places]
    missing = [jnp.isnan(slot) for slot in slots]
    ranks = [jnp.zeros(slots[0].shape, jnp.int8) for _ in places]
    for j in range(len(places)):
        for i in range(j):
            # Every entry ranks above a NaN, also an earlier NaN.
            wins = (slots[i] >= slots[j]) | missing[j]
            ranks[j] += wins.astype(jnp.int8)
            ranks[i] += (~wins).astype(jnp.int8)
    n = jnp.asarray(n, jnp.int8)
    kept = [rank < n for rank in ranks]
    if len(axes) == 1:
        return jnp.stack(kept, axes[0])
    first = jnp.stack(kept).reshape(*sizes, *slots[0].shape)
    return jnp.moveaxis(first, range(len(axes)), axes)


def _at(x: Array, axes: Axes, place: Sequence[int]) -> Array:
    index: list[Any] = [slice(None)] * x.ndim
    for axis, i in zip(axes, place):
        index[axis] = i
    return x[tuple(index)]


def sortable(x: Float[Array, "..."]) -> UInt[Array, "..."]:
    """The unsigned integers in the order of the floats: NaN lowest, -0 equal to +0."""
    bits = jnp.finfo(x.dtype).bits
    signed = jnp.dtype(f"int{bits}")
    unsigned = jnp.dtype(f"uint{bits}")
    image = lax.bitcast_convert_type(jnp.where(x == 0, jnp.zeros_like(x), x), signed)
    top = jnp.array(jnp.iinfo(signed).min, signed)
    key = lax.bitcast_convert_type(jnp.where(image < 0, ~image, image | top), unsigned)
    return jnp.where(jnp.isnan(x), jnp.zeros_like(key), key)


def flat_index(shape: tuple[int, ...], axes: Axes, dtype: Any) -> UInt[Array, "..."]:
    """The row-major index along some axes, the slowest first; constant along the others."""
    index, stride = jnp.zeros(shape, dtype), 1
    for axis in reversed(axes):
        index += lax.broadcasted_iota(dtype, shape, axis) * jnp.asarray(stride, dtype)
        stride *= shape[axis]
    return index


def _count(keep: Bool[Array, "..."], axes: Axes | None, dtype: Any) -> UInt[Array, "..."]:
    """The number of ones along the axes, which are kept; of the whole array if None."""
    kept_axes, axes = axes is not None, tuple(range(keep.ndim)) if axes is None else axes
    short = max((axis for axis in axes if keep.shape[axis] <= _SHORT), default=None)
    if short is not None:
        keep = jnp.sum(keep.astype(jnp.uint16), short, dtype=jnp.uint16, keepdims=True)
    return jnp.sum(keep, axes, dtype=dtype, keepdims=kept_axes)


def _total(marked: list[Any], axes: Axes | None, dtype: Any) -> UInt[Array, "..."]:
    return sum((_count(m, axes, dtype) for m in marked), jnp.zeros((), dtype))


def _kth_largest(keys: list[UInt[Array, "..."]], k: UInt[Array, "..."], axes: Axes | None):
    """The k-th largest key, and the number of keys equal to it to select.

    Digit by digit from the top, 16 bits at a time: each pass reads 2 bytes per entry, computed on
    the fly from the scores, so that no 32-bit image of them is stored.
    """
    bits = jnp.iinfo(keys[0].dtype).bits
    cut, missing = jnp.zeros(k.shape, keys[0].dtype), k
    for shift in reversed(range(0, bits, 16)):
        digits = [_digit(key, shift, cut, first=shift + 16 == bits) for key in keys]
        digit, missing = _largest(digits, missing, axes)
        cut |= digit.astype(cut.dtype) << shift
    return cut, missing


def _digit(key: UInt[Array, "..."], shift: int, cut: UInt[Array, "..."], first: bool):
    """16 bits of the keys that agree with `cut` above them, 0 for all others."""
    digit = (key >> shift).astype(jnp.uint16)
    return digit if first else jnp.where(key >> (shift + 16) == cut >> (shift + 16), digit, 0)


def _largest(digits: list[UInt[Array, "..."]], k: UInt[Array, "..."], axes: Axes | None):
    """The k-th largest of 16-bit digits by bisection, one counting pass a bit, and its rank.

    Excluded entries have digit 0, which no candidate counts: all candidates have a bit set.
    """

    def set_bit(i, cut):
        candidate = cut | (jnp.ones((), jnp.uint16) << jnp.asarray(15 - i, jnp.uint16))
        enough = _total([d >= candidate for d in digits], axes, k.dtype) >= k
        return jnp.where(enough, candidate, cut)

    cut = lax.fori_loop(0, 16, set_bit, zeros_for(k.shape, jnp.uint16, k, *digits))
    return cut, k - _total([d > cut for d in digits], axes, k.dtype)


def _end_of_ties(
    ties: list[Bool[Array, "..."]], k: UInt[Array, "..."], axes: Axes | None
) -> UInt[Array, "..."]:
    """The index before which there are `k` ties, by bisection: a cumulative sum would not shard.

    If every slice needs all of its ties no pass is taken.
    """
    shapes, dtype = [t.shape for t in ties], k.dtype
    sizes = [math.prod(s if axes is None else [s[axis] for axis in axes]) for s in shapes]
    bits, some = sum(sizes).bit_length(), jnp.any(_total(ties, axes, dtype) != k)

    def set_bit(i, end):
        candidate = end | (jnp.ones((), dtype) << jnp.asarray(bits - 1 - i, dtype))
        enough = _total(_before(ties, candidate, axes), axes, dtype) > k
        return jnp.where(enough, end, candidate)

    none, everything = zeros_for(k.shape, dtype, k, *ties), jnp.full(k.shape, 2**bits - 1, dtype)
    end = lax.fori_loop(0, jnp.where(some, bits, 0), set_bit, none)
    return jnp.where(some, end, everything)


def _before(
    marked: list[Bool[Array, "..."]], end: UInt[Array, "..."], axes: Axes | None
) -> list[Bool[Array, "..."]]:
    """The marked entries of a lower flat index than `end`: in their slice, or of all arrays."""
    found, offset = [], 0
    for m in marked:
        own = end - jnp.minimum(end, jnp.asarray(offset, end.dtype))
        found.append(m & _is_before(m.shape, range(m.ndim) if axes is None else axes, own))
        offset += m.size
    return found


def _is_before(shape: tuple[int, ...], axes: Sequence[int], end: UInt[Array, "..."]) -> Any:
    """Whether the flat index is below `end`, by one comparison an axis: no index is stored."""
    dtype, stride = end.dtype, math.prod(shape[axis] for axis in axes)
    before, equal = jnp.zeros((), bool), jnp.ones((), bool)
    for axis in axes:
        stride //= shape[axis]
        place, end = end // jnp.asarray(stride, dtype), end % jnp.asarray(stride, dtype)
        thin = [size if i == axis else 1 for i, size in enumerate(shape)]
        own = lax.broadcasted_iota(dtype, thin, axis)
        before, equal = before | (equal & (own < place)), equal & (own == place)
    return before
