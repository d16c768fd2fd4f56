"""The epilogue of a product: bias, activation, rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Activations that kernels fuse, in operations that every compiler supports; others are applied to
# the result.
FUSED = {
    jax.nn.relu: lambda y: jnp.maximum(y, 0),
    jax.nn.silu: lambda y: y / (1 + jnp.exp(-y)),
    jax.nn.sigmoid: lambda y: 1 / (1 + jnp.exp(-y)),
    jnp.tanh: jnp.tanh,
}


@dataclass(frozen=True)
class How:
    """How a product is computed and rounded.

    Args:
      precision: As for `jax.lax.dot_general`.
      activation: Elementwise function applied to the sum and bias.
      dtype: Dtype of the result; None keeps that of the sum.
      platform: The target platform.
    """

    precision: Any = None
    activation: Callable[[Array], Array] | None = None
    dtype: DTypeLike | None = None
    platform: str = "cpu"


def finish(y: Float[Array, "..."], bias: Any, how: How) -> Float[Array, "..."]:
    """`activation(y + bias)`, rounded."""
    if bias is not None:
        y = y + jnp.asarray(bias, y.dtype)
    if how.activation is not None:
        y = how.activation(y)
    return y if how.dtype is None else y.astype(how.dtype)


def finish_inside(y: Float[Array, "m n"], bias: Any, how: How) -> Float[Array, "m n"]:
    """The same within a kernel, unrounded."""
    y = y + bias
    return y if how.activation is None else FUSED[how.activation](y)
