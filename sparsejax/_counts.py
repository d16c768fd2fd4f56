"""Exact fractions of counts: `round(fraction * total)` in integers."""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt


def fraction_of(fraction: ArrayLike, total: int) -> int | UInt[Array, ""]:
    """`round(fraction * total)`, half to even, exact for every total below 2**32.

    A Python fraction gives a Python int. A traced float32 is multiplied in integers, since the
    product needs up to 56 bits: in float32 arithmetic 0.9 * 4e7 is already off by one.
    """
    if isinstance(fraction, int | float):
        return round(min(max(fraction, 0.0), 1.0) * total)
    fraction = jnp.clip(jnp.asarray(fraction), 0, 1)
    if fraction.dtype == jnp.float64:
        return jnp.round(fraction * total).astype(jnp.uint64)
    return _round_product(fraction.astype(jnp.float32), total)


def kept_at(fraction: ArrayLike, units: int, zeros: int) -> int | UInt[Array, ""]:
    """Number of the `units` kept at a fraction of the way to `zeros` zeros."""
    gone = fraction_of(fraction, zeros)
    return units - gone if isinstance(gone, int) else jnp.asarray(units, gone.dtype) - gone


def _round_product(fraction: Float[Array, ""], total: int) -> UInt[Array, ""]:
    """`round(fraction * total)` with fraction = mantissa * 2**-shift in 32-bit limbs."""
    bits = lax.bitcast_convert_type(fraction, jnp.uint32)
    exponent = bits >> 23
    mantissa = (bits & 0x7FFFFF) | jnp.where(exponent > 0, jnp.uint32(1 << 23), jnp.uint32(0))
    shift = jnp.uint32(150) - jnp.maximum(exponent, 1)
    high, low = _multiply(mantissa, jnp.uint32(total))
    quotient, remainder_high, remainder_low = _shift_right(high, low, shift)
    half_high, half_low = _power_of_two(shift - 1)
    same = (remainder_high == half_high) & (remainder_low == half_low)
    more = (remainder_high > half_high) | (
        (remainder_high == half_high) & (remainder_low > half_low)
    )
    up = more | (same & (quotient % 2 == 1))
    # The product has at most 56 bits: a shift by more than 57 rounds to zero.
    return jnp.where(shift > 57, jnp.uint32(0), quotient + up.astype(jnp.uint32))


def _multiply(a: UInt[Array, ""], b: UInt[Array, ""]) -> tuple[UInt[Array, ""], UInt[Array, ""]]:
    """The 64-bit product of a 24-bit and a 32-bit integer as (high, low)."""
    a1, a0, b1, b0 = a >> 12, a & 0xFFF, b >> 16, b & 0xFFFF
    high, low = jnp.uint32(0), a0 * b0
    for part, shift in ((a0 * b1, 16), (a1 * b0, 12), (a1 * b1, 28)):
        added = low + (part << shift)
        high += (part >> (32 - shift)) + (added < low).astype(jnp.uint32)
        low = added
    return high, low


def _shift_right(high: UInt[Array, ""], low: UInt[Array, ""], shift: UInt[Array, ""]):
    """Quotient (32 bits) and remainder (high, low) of the 64-bit integer by 2**shift, 23..57."""
    small = shift < 32
    s = jnp.where(small, shift, shift - 32)
    mask = (jnp.uint32(1) << s) - 1
    quotient = jnp.where(small, (high << (32 - s)) | (low >> s), high >> s)
    quotient = jnp.where(shift == 32, high, quotient)
    return quotient, jnp.where(small, 0, high & mask), jnp.where(small, low & mask, low)


def _power_of_two(exponent: UInt[Array, ""]) -> tuple[UInt[Array, ""], UInt[Array, ""]]:
    one = jnp.uint32(1)
    small = exponent < 32
    return (
        jnp.where(small, 0, one << jnp.where(small, 0, exponent - 32)),
        jnp.where(small, one << jnp.where(small, exponent, 0), 0),
    )
