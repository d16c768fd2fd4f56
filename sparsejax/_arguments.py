"""Checks of arguments that every room has: counts, fractions, keys, finite arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises if `value` is not an integer of at least `least`."""
    wanted = f"{name}={value!r} must be an integer of at least {least}"
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{wanted}, it is a {type(value).__name__}: {name}={max(least, 1)}.")
    if value < least:
        raise ValueError(f"{wanted}.")


def check_number(name: str, value: Any, example: str) -> None:
    """Raises if `value` is not a number."""
    try:
        float(value)
        number = not isinstance(value, str | bytes)  # float("5") is a number, "5" is not
    except (TypeError, ValueError):
        number = False
    if not number:
        raise TypeError(f"{name}={value!r} must be a number: {name}={example}.")


def check_fraction(name: str, value: Any) -> None:
    """Raises if `value` is not a number in [0, 1]."""
    check_number(name, value, "0.5")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be a fraction in [0, 1].")


def check_key(name: str, key: Any) -> None:
    """Raises if `key` is not one random key; those of `jax.random.PRNGKey` are taken too."""
    dtype, shape = getattr(key, "dtype", None), jnp.shape(key) if hasattr(key, "shape") else None
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and shape == ()) or (dtype == jnp.uint32 and shape is not None and len(shape) == 1):
        return
    got = repr(key) if shape is None else f"an array {dtype} of shape {shape}"
    raise TypeError(
        f"{name} must come from jax.random.key(0): {name}=jax.random.key(0); got {got}."
    )


def is_nan_in(x: Any) -> bool:
    """Whether a concrete array of floats holds NaN; False under a trace."""
    return _any(jnp.isnan, x)


def is_infinite_in(x: Any) -> bool:
    """Whether a concrete array of floats holds what is not finite; False under a trace."""
    return _any(lambda x: ~jnp.isfinite(x), x)


def _any(test: Any, x: Any) -> bool:
    if isinstance(x, Tracer) or not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return False
    return bool(jnp.any(test(jnp.asarray(x))))
