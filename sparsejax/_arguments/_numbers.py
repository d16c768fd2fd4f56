"""Checks of numbers, counts, fractions, steps and keys; traced values are not checked."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def known(*values: Any) -> bool:
    """Whether the numbers are concrete: none of the values is traced."""
    return not any(isinstance(x, Tracer) for x in values)


def check_count(name: str, value: Any, least: int = 1, other: str = "") -> None:
    """Raises if `value` is not an integer of at least `least`; `other` names an alternative."""
    wanted = f"{name}={value!r} must be an integer of at least {least}{other}"
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
    """Raises if `key` is not one random key; keys of `jax.random.PRNGKey` are accepted too."""
    got = repr(key)
    if isinstance(key, jax.Array | np.ndarray):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return
        if key.dtype == jnp.uint32 and key.ndim == 1:
            return
        got = f"an array {key.dtype} of shape {key.shape}"
    raise TypeError(
        f"{name} must come from jax.random.key(0): {name}=jax.random.key(0); got {got}."
    )


def is_nan_in(x: Any) -> bool:
    """Whether a concrete array of floats holds NaN; False under a trace."""
    return _any(jnp.isnan, x)


def is_infinite_in(x: Any) -> bool:
    """Whether a concrete array of floats holds non-finite values; False under a trace."""
    return _any(lambda x: ~jnp.isfinite(x), x)


def _any(test: Any, x: Any) -> bool:
    if isinstance(x, Tracer) or not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        return False
    with jax.ensure_compile_time_eval():  # known arrays, also inside jit
        return bool(jnp.any(test(jnp.asarray(x))))


def is_int(x: Any) -> bool:
    """True for integers, not for booleans."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def checked_sparsity(what: str, sparsity: Any) -> float:
    """The fraction of zeros as a float; raises unless it is a number in [0, 1]."""
    numeric = isinstance(sparsity, int | float | np.floating | np.integer)
    if not numeric or isinstance(sparsity, bool) or not 0 <= sparsity <= 1:
        raise ValueError(
            f"{what}: sparsity must be the fraction of zeros, a number in [0, 1], got "
            f"{sparsity!r}; sparsity=0.9 keeps a tenth."
        )
    return float(sparsity)  # counts are exact in float64: a NumPy float32 would round them


def checked_axis(axis: Any) -> int | tuple[int, ...] | None:
    """Axes as Python integers, in a tuple if there are several, so that patterns hash."""
    if axis is None or is_int(axis):
        return axis if axis is None else int(axis)
    if isinstance(axis, Sequence) and axis and all(map(is_int, axis)):
        return tuple(map(int, axis))
    raise ValueError(f"axis must be an axis or a tuple of axes, got {axis!r}; write axis=(0, 1).")


def checked_number(name: str, x: Any, call: str, *, positive: bool = False) -> ArrayLike:
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


def check_real(name: str, x: Any, call: str) -> None:
    """Raises unless `x` is a real number or an array of them."""
    kind = isinstance(x, Tracer) or (is_number(x) and not isinstance(x, bool | np.bool_))
    real = kind and jnp.issubdtype(jnp.result_type(x), jnp.number)
    if not real or jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
        raise TypeError(f"{name} must be a real number or an array, got {x!r}; for example {call}.")


def checked_integer(name: str, x: Any, call: str, least: int | None = None) -> Any:
    """An integer, possibly traced; 3.0 is rejected, since it is a count."""
    kind = isinstance(x, int | np.integer | np.ndarray | jax.Array) and not isinstance(x, bool)
    if not kind or not jnp.issubdtype(jnp.result_type(x), jnp.integer) or np.ndim(x) > 0:
        raise TypeError(f"{name} must be an integer, got {x!r}; for example {call}.")
    if least is not None and known(x) and x < least:
        raise ValueError(f"{name} must be at least {least}, got {x}; for example {call}.")
    return x


def is_number(value: Any) -> bool:
    """Whether an argument is a concrete number, not None, traced or a schedule."""
    if isinstance(value, Tracer) or value is None or callable(value):
        return False
    return isinstance(value, int | float | np.generic | np.ndarray | jax.Array)


def check_schedule(what: str, name: str, value: Any) -> None:
    """Raises if `value` is neither a number nor a schedule: a string, a list."""
    number = is_number(value) and jnp.ndim(value) == 0 and not isinstance(value, bool)
    if not (number or isinstance(value, Tracer) or callable(value)):
        raise TypeError(
            f"{what}: {name}={value!r} is a {type(value).__name__}; pass a number or an optax "
            f"schedule: {name}=0.5."
        )


def check_step(what: str, name: str, value: Any, least: int = 0, *, optional: bool = False) -> None:
    """Raises if a step, or a number of steps, is concrete and not whole or too small."""
    if (optional and value is None) or isinstance(value, Tracer):
        return
    if callable(value) or not is_number(value) or jnp.ndim(value) or isinstance(value, bool):
        raise TypeError(
            f"{what}: {name}={value!r} is a {type(value).__name__}; a step is a whole number: "
            f"{name}=100."
        )
    number = float(value)
    fraction = not isinstance(value, int) and not np.issubdtype(jnp.result_type(value), np.integer)
    # 1.0 is whole, but probably means all of training rather than its first step.
    if fraction and number != float("inf") and (not number.is_integer() or number == 1):
        raise ValueError(
            f"{what}: {name}={number:g} is a step, not a fraction: {name}=int({number:g} * steps)."
        )
    if number < least:
        raise ValueError(f"{what}: {name}={value} must be at least {least}, as in {name}=100.")


def check_scheduled_fraction(what: str, name: str, value: Any) -> None:
    """Raises unless value is a schedule, a tracer or a number in [0, 1]."""
    check_schedule(what, name, value)
    if is_number(value) and not 0 <= float(value) <= 1:
        raise ValueError(f"{what}: {name}={value} must be a fraction in [0, 1].")


def as_number(name: str, value: Any) -> float:
    """`value` as a float; raises if it is not one number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        shape = jnp.shape(value) if isinstance(value, jax.Array) else type(value).__name__
        raise TypeError(f"{name} must return one number, it returned {shape}.") from None


def check_one(name: str, value: Any) -> Any:
    """The result of a function as an array; raises unless it is one real number, traced or not."""
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape or jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} must return one real number, it returned {dtype} of shape {shape}; take its "
            "mean."
        )
    return jnp.asarray(value)
