"""Exact fractions of counts: `round(fraction * total)` in integers, in total and per slice."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, UInt

from ._arrays import zeros_for

# Numbers are lists of digits of 16 bits, the lowest first: products of two fit into 32 bits.
_BITS = 16
_LOW = (1 << _BITS) - 1
# Up to this count a float32 fraction that is 2 units in the last place low gives the same floor.
_FORGIVEN = 4096


def count_dtype(total: int) -> Any:
    """The unsigned dtype that holds counts up to `total`."""
    if total < 2**32:
        return jnp.dtype(jnp.uint32)
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return jnp.dtype(jnp.uint64)
    raise ValueError(
        f"selecting among {total} entries together needs 64-bit counts: set jax_enable_x64, or "
        "select per leaf, or per slice of a stacked leaf: sj.Unstructured(0.9, stacked=1)."
    )


def fraction_of(fraction: ArrayLike, total: int) -> int | UInt[Array, ""]:
    """`round(fraction * total)`, half to even, exact at any size.

    A Python fraction gives a Python int. A traced float32 is multiplied in integers, since the
    product needs more than 24 bits: in float32 arithmetic 0.9 * 4e7 is already off by one.
    """
    if isinstance(fraction, int | float):
        return round(min(max(fraction, 0.0), 1.0) * total)
    return _shared(fraction, total, 1, count_dtype(total))[0]


def kept_at(fraction: ArrayLike, units: int, zeros: int) -> int | UInt[Array, ""]:
    """Number of the `units` kept at a fraction of the way to `zeros` zeros."""
    dtype, gone = count_dtype(units), fraction_of(fraction, zeros)
    return units - gone if isinstance(gone, int) else jnp.asarray(units, dtype) - gone.astype(dtype)


def kept_in_slice(
    fraction: ArrayLike, units: int, zeros: int, slices: int, index: UInt[Array, "..."]
) -> UInt[Array, "..."]:
    """Number kept of the `units` of a slice, of `zeros` zeros in all slices together.

    Slices differ by at most one: those of the lowest index keep one more. No count exceeds that of
    a slice, so a leaf of any size needs 32 bits.
    """
    dtype = count_dtype(max(units, slices))
    if isinstance(fraction, int | float):
        shared = divmod(round(min(max(fraction, 0.0), 1.0) * zeros), slices)
    else:
        shared = _shared(fraction, zeros, slices, dtype)
    each, rest = (jnp.asarray(x, dtype) for x in shared)
    last = index.astype(dtype) >= jnp.asarray(slices, dtype) - rest
    return jnp.asarray(units, dtype) - each - last.astype(dtype)


def floor_of(fraction: ArrayLike, count: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """`floor(fraction * count)` in integers, for a fraction in [0, 1].

    A fraction a rounding error below the intended one gives the same: 0.7 * 10 is 7, and so is the
    product with the float32 below 0.7. Of more than 4096 a float32 is taken literally.
    """
    if isinstance(fraction, int | float):
        mantissa, exponent = math.frexp(min(max(fraction, 0.0), 1.0))
        digits = [(int(mantissa * 2**53) + 2) >> s & _LOW for s in range(0, 64, _BITS)]
        digits, shift = (digits, 53 - exponent) if exponent > -60 else ([0], 0)
    else:
        value, shift = _binary(fraction)
        value += jnp.where(count < _FORGIVEN, jnp.uint32(2), jnp.uint32(0))
        digits = [value & _LOW, value >> _BITS]
    wide = _product(digits, [count & _LOW, (count >> _BITS) & _LOW])
    return jnp.minimum(_joined(_shifted(wide, shift), count.dtype), count)


def _shared(fraction: ArrayLike, total: int, parts: int, dtype: Any) -> tuple[Any, Any]:
    """`divmod(round(fraction * total), parts)` of a traced fraction."""
    fraction = jnp.asarray(fraction)
    if fraction.dtype == jnp.float64:
        whole = jnp.round(jnp.clip(fraction, 0, 1) * total).astype(jnp.uint64)
        return (whole // parts).astype(dtype), (whole % parts).astype(dtype)
    mantissa, shift = _binary(fraction)
    length = -(-max(total.bit_length(), 1) // _BITS)
    factor = [total >> (_BITS * i) & _LOW for i in range(length)]
    whole = _rounded(_product([mantissa & _LOW, mantissa >> _BITS], factor), shift)
    if parts == 1:
        return _joined(whole, dtype), jnp.zeros((), dtype)
    return _divided(whole, parts, dtype)


def _binary(fraction: ArrayLike) -> tuple[UInt[Array, ""], UInt[Array, ""]]:
    """A fraction, clipped to [0, 1], as mantissa * 2**-shift with 24 bits."""
    clipped = jnp.clip(jnp.asarray(fraction, jnp.float32), 0, 1)
    bits = lax.bitcast_convert_type(clipped, jnp.uint32)
    exponent = bits >> 23
    mantissa = (bits & 0x7FFFFF) | jnp.where(exponent > 0, jnp.uint32(1 << 23), jnp.uint32(0))
    return mantissa, jnp.uint32(150) - jnp.maximum(exponent, 1)


def _product(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    columns: list[Any] = [jnp.uint32(0)] * (len(a) + len(b) + 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            part = jnp.asarray(x, jnp.uint32) * jnp.asarray(y, jnp.uint32)
            columns[i + j] += part & _LOW
            columns[i + j + 1] += part >> _BITS
    return _carried(columns)


def _carried(columns: Sequence[Any]) -> list[Any]:
    """Digits from sums of digits."""
    digits, carry = [], jnp.uint32(0)
    for column in columns:
        digits.append((column + carry) & _LOW)
        carry = (column + carry) >> _BITS
    return digits


def _shifted(digits: Sequence[Any], shift: Any) -> list[Any]:
    """The integer part of a number over 2**shift."""
    count = len(digits)
    shift = jnp.minimum(jnp.asarray(shift, jnp.uint32), _BITS * count)
    words, bits = (shift // _BITS).astype(jnp.int32), shift % _BITS
    padded = jnp.stack([*digits, *[jnp.zeros_like(digits[0])] * (count + 1)])
    low, high = (lax.dynamic_slice_in_dim(padded, words + i, count) for i in (0, 1))
    return list(((low | high << _BITS) >> bits) & _LOW)


def _rounded(digits: Sequence[Any], shift: UInt[Array, ""]) -> list[Any]:
    """The nearest integer to a number over 2**shift, half to even."""
    shift = jnp.minimum(shift, _BITS * len(digits))
    places = [
        jnp.clip(shift.astype(jnp.int32) - 1 - _BITS * i, 0, _BITS) for i in range(len(digits))
    ]
    half = [
        (jnp.uint32(1) << place.astype(jnp.uint32)) - 1 for place in places
    ]  # less the last bit
    half[0] += _shifted(digits, shift)[0] & 1
    return _shifted(_carried([d + h for d, h in zip(digits, half)]), shift)


def _joined(digits: Sequence[Any], dtype: Any) -> UInt[Array, "..."]:
    wanted = digits[: jnp.iinfo(dtype).bits // _BITS]
    return sum((d.astype(dtype) << (_BITS * i) for i, d in enumerate(wanted)), jnp.zeros((), dtype))


def _divided(digits: Sequence[Any], parts: int, dtype: Any) -> tuple[Any, Any]:
    """Quotient and remainder of the division by an integer below 2**31, bit by bit."""
    stacked, parts_ = jnp.stack(digits), jnp.asarray(parts, dtype)

    def next_bit(i, found):
        quotient, rest = found
        place = _BITS * len(digits) - 1 - i
        bit = stacked[place // _BITS] >> (place % _BITS).astype(jnp.uint32) & 1
        rest = (rest << 1) | bit.astype(dtype)
        fits = rest >= parts_
        return (quotient << 1) | fits.astype(dtype), jnp.where(fits, rest - parts_, rest)

    zero = zeros_for((), dtype, stacked)
    return lax.fori_loop(0, _BITS * len(digits), next_bit, (zero, zero))
