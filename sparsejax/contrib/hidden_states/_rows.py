"""Hidden states of a text, centred over its tokens, with rows of norm 1."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import checked, known
from ..._arrays import magnitude, wide_dtype
from ..._sharding import on_host

Hidden = Shaped[ArrayLike, "n d"]
Tokens = Bool[ArrayLike, " n"]


@checked()
def normalise(h: Hidden, mask: Tokens | None = None) -> Float[Array, "n d"]:
    r"""Centres hidden states over the tokens, and scales each token to norm 1.

    `z_i = h_i - mean_i h_i`, `r_i = z_i / ||z_i||`. Rows of zeros, and rows that differ from zero
    only by the rounding of the mean, are zero, as are rows of padding.

    Args:
      h: Hidden states of n tokens in d dimensions, such as the last ones of a language model, after
        its final norm. Padding may hold any values, also NaN.
      mask: True at tokens, False at padding; None for no padding.

    Returns:
      Rows of norm 1 or 0, without a unit, of at least float32. Their derivatives are finite.

    Raises:
      ValueError: If there are no tokens or no dimensions, or mask and h differ in length.

    Reference:
      Li et al., Large Language Model Evaluation via Matrix Nuclear-Norm, 2024 (arXiv 2410.10672).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import hidden_states
      >>> h = jnp.array([[8.0, 7.0], [2.0, 7.0], [9.0, 9.0]])  # the last row is padding
      >>> hidden_states.normalise(h, jnp.array([True, True, False])).tolist()
      [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]
    """
    return normalised(*with_mask("normalise", h, mask))


def with_mask(name: str, h: Any, mask: Any) -> tuple[Array, Array]:
    """Arrays of hidden states and tokens; raises without a token."""
    h = jnp.asarray(h)
    if h.size == 0:
        raise ValueError(f"{name}: h must hold at least one token (n, d), got shape {h.shape}.")
    if mask is None:
        return h, jnp.ones(h.shape[:1], bool)
    mask = jnp.asarray(mask)
    if known(mask) and not on_host(mask).any():
        raise ValueError(f"{name}: mask {mask.shape} must hold at least one token, got no True.")
    return h, mask


def count(mask: Array, dtype: Any) -> Float[Array, ""]:
    """The number of tokens, at least 1, to divide by."""
    return jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1).astype(dtype)


@jax.jit
def normalised(h: Array, mask: Array) -> Array:
    """`normalise` of arrays."""
    h = jnp.where(mask[:, None], h.astype(wide_dtype(h)), 0)
    for _ in range(2):  # squares stay in range; one division reaches 1e18 and not all floats
        h = h / magnitude(h)
    # Seen from one of the tokens: equal tokens give exact zeros, and a large common part is gone.
    first = jnp.arange(len(h)) == jnp.argmax(mask)  # no index: rows may be sharded
    start = jnp.sum(jnp.where(first[:, None], h, 0), axis=0, keepdims=True)
    x = jnp.where(mask[:, None], h - start, 0)
    mean = jnp.sum(x, axis=0, keepdims=True) / count(mask, h.dtype)
    z = jnp.where(mask[:, None], x - mean, 0)
    squares = jnp.sum(z * z, axis=1, keepdims=True)
    rounding = 4 * float(jnp.finfo(h.dtype).eps)
    largest = jnp.max(jnp.sum(lax.stop_gradient(x * x), axis=1))
    # The norm is not differentiable at 0: there the derivative is 0.
    nothing = squares <= rounding**2 * largest
    return jnp.where(nothing, 0, z / jnp.sqrt(jnp.where(nothing, 1, squares)))
