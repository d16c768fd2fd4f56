"""Checks of queries, keys and values."""

import jax.numpy as jnp
from jaxtyping import Array


def check_heads(what: str, **arrays: Array) -> None:
    """Raises unless queries, keys and values hold floats and the heads are multiples."""
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{what}: {name} must hold floats, got {x.dtype} of shape {x.shape}; write "
                f"{name}.astype(jnp.float32)."
            )
    q, k, _ = arrays.values()
    if not k.shape[-2] or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"{what}: q {q.shape} must have a multiple of the heads of the keys {k.shape}; heads "
            "are the axis before the last."
        )
