"""Norms of rows."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._arrays import wide_dtype


def row_norms(W_dec: Any) -> Array:
    """The norm of each decoder row, at least float32; the gradient at a zero row is 0."""
    square = jnp.sum(jnp.square(W_dec.astype(wide_dtype(W_dec))), axis=-1)
    zero = square == 0  # not NaN
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def normalized(rows: Any) -> Array:
    """The rows with norm 1, at least float32; zero rows stay."""
    rows = rows.astype(wide_dtype(rows))
    # Squares stay in the range of floats.
    largest = lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, keepdims=True, initial=0))
    rows = rows / jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    norms = row_norms(rows)[:, None]
    return rows / jnp.where(norms > 0, norms, 1)
