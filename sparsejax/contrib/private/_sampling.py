"""Random choices whose rare events have their exact probability, unlike those of float32.

A float32 uniform has 2^-24 as its smallest step: events that are rarer never occur, or too often.
"""

import math
from decimal import Decimal, getcontext, localcontext

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt

_WORDS = 4  # 32-bit words per decision: probabilities are multiples of 2^-128


def lie_threshold(epsilon: float) -> int:
    """`ceil(2^128 / (1 + e^epsilon))`: rounded up, so that the odds never exceed e^epsilon."""
    with localcontext(getcontext()) as exact:
        exact.prec = 80
        share = Decimal(2) ** (32 * _WORDS) / (1 + Decimal(min(epsilon, 100.0)).exp())
        return int(share.to_integral_value(rounding="ROUND_CEILING"))


def below(words: UInt[Array, "... 4"], threshold: int) -> Bool[Array, "..."]:
    """Whether integers of 128 bits, the most significant word first, are below a threshold."""
    parts = [threshold >> 32 * i & 0xFFFFFFFF for i in reversed(range(_WORDS))]
    less = jnp.zeros(words.shape[:-1], bool)
    for i in reversed(range(_WORDS)):
        word, part = words[..., i], jnp.uint32(parts[i])
        less = (word < part) | ((word == part) & less)
    return less


def truthful(key: Array, epsilon: float) -> Bool[Array, ""]:
    """True with probability `e^epsilon / (1 + e^epsilon)`, exact to 2^-128."""
    return ~below(jax.random.bits(key, (_WORDS,), jnp.uint32), lie_threshold(epsilon))


def normal(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Normal numbers with tails up to 9.4 standard deviations; those of `jax.random` end at 5.4.

    Box and Muller, with the radius from 64 bits: `P[|z| > t]` is right down to 1e-19.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (3, -(-size // 2)), jnp.uint32)
    return from_words(words, dtype)[:size].reshape(shape)


def from_words(words: UInt[Array, "3 n"], dtype: jnp.dtype) -> Float[Array, "2*n"]:
    """Pairs of normal numbers: the radius from two words, the angle from one."""
    high, low, turn = words.astype(dtype)
    uniform = (high + (low + 0.5) * 2.0**-32) * 2.0**-32
    # Near 1 the sum is rounded, and the radius is 0.
    radius = jnp.sqrt(jnp.maximum(-2 * jnp.log(uniform), 0))
    angle = (turn + 0.5) * (2 * math.pi * 2.0**-32)
    return jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)])
