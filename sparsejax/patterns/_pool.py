"""Pooling of the scores of a unit."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._arrays import wide_dtype


def join(x: Float[Array, "..."], axes: tuple[int, ...], how: str) -> Float[Array, "..."]:
    """The scores of units from those of their entries, at least float32 if summed."""
    if how == "max":
        return jnp.max(x, axes)
    x = x.astype(wide_dtype(x))
    if how == "l2":
        return jnp.sqrt(jnp.sum(x * x, axes))
    return jnp.mean(x, axes) if how == "mean" else jnp.sum(x, axes)


def check_pool(pattern: Any) -> None:
    """Raises unless `pool_by` of a pattern is a way of pooling."""
    if pattern.pool_by not in ("mean", "max", "l2", "sum"):
        raise ValueError(f'pool_by={pattern.pool_by!r} must be "mean", "max", "l2" or "sum".')
