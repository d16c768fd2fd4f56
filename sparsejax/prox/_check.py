"""Checks of what penalties are made from: only where the numbers are known, never when traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def known(x: Any) -> bool:
    """Whether the numbers are at hand."""
    return not isinstance(x, Tracer)


def number(name: str, x: Any, call: str, *, positive: bool = False) -> ArrayLike:
    """A real number or array, >= 0 (or > 0); integers become floats, so that no ratio is cut."""
    if not isinstance(x, int | float | np.ndarray | np.number | jax.Array) or isinstance(x, bool):
        raise TypeError(f"{name} must be a number or an array, got {x!r}; for example {call}.")
    if known(x):
        bad = np.asarray(x) <= 0 if positive else np.asarray(x) < 0
        if np.any(bad) or np.any(np.isnan(np.asarray(x, np.float64))):
            need = "> 0" if positive else ">= 0"
            raise ValueError(f"{name} must be {need}, got {x}; for example {call}.")
    if isinstance(x, int | float):
        return float(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x, jnp.float32)


def integer(name: str, x: Any, call: str) -> Any:
    """An integer, possibly traced; 3.0 is refused: how many entries are kept is a count."""
    kind = isinstance(x, int | np.integer | np.ndarray | jax.Array) and not isinstance(x, bool)
    if not kind or not jnp.issubdtype(jnp.result_type(x), jnp.integer) or np.ndim(x) > 0:
        raise TypeError(f"{name} must be an integer, got {x!r}; for example {call}.")
    return x
