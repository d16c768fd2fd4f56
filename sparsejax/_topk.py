"""Exact selection without sorting: the k-th largest by bisection on the integer image of floats."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt

# Rows of this many booleans are added up in uint8, which vectorises: 3x faster than a plain sum.
_ROWS = (128, 64, 32)
# Groups up to this long are ranked by comparing all pairs, longer ones by sorting.
_PAIRWISE = 32


def topk_mask(scores: Float[Array, "..."], k: int | Shaped[Array, ""]) -> Bool[Array, "..."]:
    """Exactly `k` ones at the largest scores; the lowest flat index wins ties, NaN ranks last.

    Bisection over the bits of the scores: 32 counting passes of 2 bytes an entry for float32, no
    sort. `k` may be traced; k <= 0 keeps nothing and k >= n everything.
    """
    return topk_masks([scores], k)[0]


def topk_masks(
    scores: Sequence[Float[Array, "..."]], k: int | Shaped[Array, ""]
) -> list[Bool[Array, "..."]]:
    """`topk_mask` over several arrays together: earlier arrays have the lower indices."""
    total = sum(math.prod(s.shape) for s in scores)
    if total == 0:
        return [jnp.zeros(s.shape, bool) for s in scores]
    dtype = _count_dtype(total)
    if isinstance(k, int):
        return _topk_masks(list(scores), jnp.asarray(min(max(k, 0), total), dtype))
    return _topk_masks(list(scores), jnp.maximum(k, 0).astype(dtype))


@jax.jit
def _topk_masks(scores: list[Float[Array, "..."]], k: UInt[Array, ""]) -> list[Bool[Array, "..."]]:
    total, dtype = sum(s.size for s in scores), k.dtype
    k = jnp.minimum(k, jnp.asarray(total, dtype))
    wide = jnp.result_type(*scores)
    keys = [sortable(s.astype(wide)) for s in scores]
    cut, missing = _kth_largest(keys, k)

    def all_ties():
        return [key >= cut for key in keys]

    def lowest_ties():
        ties = _lowest_indices([key == cut for key in keys], missing, total, dtype)
        return [(key > cut) | tie for key, tie in zip(keys, ties)]

    tied = sum(_count(key == cut, dtype) for key in keys)
    return lax.cond(tied == missing, all_ties, lowest_ties)


@partial(jax.jit, static_argnames="m")
def nm_mask(
    scores: Float[Array, "... k n"], n: int | Shaped[Array, ""], m: int
) -> Bool[Array, "... k n"]:
    """The `n` largest of every `m` consecutive scores along the axis before the last.

    By rank: an entry is kept if fewer than `n` of its group exceed it. The lowest index wins ties,
    NaN ranks last, `n` may be traced.
    """
    *lead, k, columns = scores.shape
    if k % m:
        raise ValueError(f"groups of {m} do not divide the contraction length {k}.")
    groups = scores.reshape(*lead, k // m, m, columns)
    if m > _PAIRWISE:
        order = jnp.argsort(~sortable(groups), axis=-2, stable=True)
        return (jnp.argsort(order, axis=-2) < n).reshape(scores.shape)
    slots = [groups[..., i, :] for i in range(m)]
    missing = [jnp.isnan(slot) for slot in slots]
    ranks = [jnp.zeros(slots[0].shape, jnp.int8) for _ in range(m)]
    for j in range(m):
        for i in range(j):
            # Every entry ranks above a NaN, also an earlier NaN.
            wins = (slots[i] >= slots[j]) | missing[j]
            ranks[j] += wins.astype(jnp.int8)
            ranks[i] += (~wins).astype(jnp.int8)
    n = jnp.asarray(n, jnp.int8)
    keep = jnp.stack([rank < n for rank in ranks], axis=-2)
    return keep.reshape(scores.shape)


def sortable(x: Float[Array, "..."]) -> UInt[Array, "..."]:
    """The unsigned integers in the order of the floats: NaN lowest, -0 equal to +0."""
    bits = jnp.finfo(x.dtype).bits
    signed = jnp.dtype(f"int{bits}")
    unsigned = jnp.dtype(f"uint{bits}")
    image = lax.bitcast_convert_type(jnp.where(x == 0, jnp.zeros_like(x), x), signed)
    top = jnp.array(jnp.iinfo(signed).min, signed)
    key = lax.bitcast_convert_type(jnp.where(image < 0, ~image, image | top), unsigned)
    return jnp.where(jnp.isnan(x), jnp.zeros_like(key), key)


def _count_dtype(total: int) -> jnp.dtype:
    if total < 2**32:
        return jnp.dtype(jnp.uint32)
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return jnp.dtype(jnp.uint64)
    raise ValueError(
        f"selecting among {total} entries together needs 64-bit counts: set jax_enable_x64, or "
        "select per leaf instead of globally."
    )


def _count(keep: Bool[Array, "..."], dtype: jnp.dtype) -> UInt[Array, ""]:
    width = keep.shape[-1] if keep.ndim else 1
    row = next((r for r in _ROWS if width % r == 0), None)
    if row is None:
        return jnp.sum(keep, dtype=dtype)
    rows = keep.astype(jnp.uint8).reshape(*keep.shape[:-1], width // row, row)
    return jnp.sum(jnp.sum(rows, axis=-1, dtype=jnp.uint8), dtype=dtype)


def _kth_largest(keys: list[UInt[Array, "..."]], k: UInt[Array, ""]):
    """The k-th largest key, and the number of keys equal to it to select.

    Digit by digit from the top, 16 bits at a time: each pass reads 2 bytes per entry, computed on
    the fly from the scores, so that no 32-bit image of them is stored.
    """
    bits = jnp.iinfo(keys[0].dtype).bits
    cut, missing = jnp.zeros((), keys[0].dtype), k
    for shift in reversed(range(0, bits, 16)):
        digits = [_digit(key, shift, cut, first=shift + 16 == bits) for key in keys]
        digit, missing = _largest(digits, missing)
        cut |= digit.astype(cut.dtype) << shift
    return cut, missing


def _digit(key: UInt[Array, "..."], shift: int, cut: UInt[Array, ""], first: bool):
    """16 bits of the keys that agree with `cut` above them, 0 for all others."""
    digit = (key >> shift).astype(jnp.uint16)
    return digit if first else jnp.where(key >> (shift + 16) == cut >> (shift + 16), digit, 0)


def _largest(digits: list[UInt[Array, "..."]], k: UInt[Array, ""]):
    """The k-th largest of 16-bit digits by bisection, one counting pass a bit, and its rank.

    Excluded entries have digit 0, which no candidate counts: all candidates have a bit set.
    """

    def at_least(cut):
        return sum(_count(d >= cut, k.dtype) for d in digits)

    def set_bit(i, cut):
        candidate = cut | (jnp.ones((), jnp.uint16) << jnp.asarray(15 - i, jnp.uint16))
        return jnp.where(at_least(candidate) >= k, candidate, cut)

    cut = lax.fori_loop(0, 16, set_bit, jnp.zeros((), jnp.uint16))
    return cut, k - sum(_count(d > cut, k.dtype) for d in digits)


def _lowest_indices(
    marked: list[Bool[Array, "..."]], k: UInt[Array, ""], total: int, dtype: jnp.dtype
) -> list[Bool[Array, "..."]]:
    """The first `k` marked entries, by bisection on the index: a cumulative sum would not shard."""
    indices, offset = [], 0
    for m in marked:
        indices.append(_flat_index(m.shape, dtype) + jnp.asarray(offset, dtype))
        offset += math.prod(m.shape)

    def below(end):
        return sum(_count(m & (i < end), dtype) for m, i in zip(marked, indices))

    def set_bit(i, end):
        candidate = end | (jnp.ones((), dtype) << jnp.asarray(bits - 1 - i, dtype))
        return jnp.where(below(candidate) <= k, candidate, end)

    bits = total.bit_length()
    end = lax.fori_loop(0, bits, set_bit, jnp.zeros((), dtype))
    return [m & (i < end) for m, i in zip(marked, indices)]


def _flat_index(shape: tuple[int, ...], dtype: jnp.dtype) -> UInt[Array, "..."]:
    index, stride = jnp.zeros(shape, dtype), 1
    for axis in reversed(range(len(shape))):
        index += lax.broadcasted_iota(dtype, shape, axis) * jnp.asarray(stride, dtype)
        stride *= shape[axis]
    return index
