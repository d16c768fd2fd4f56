"""What the recipes ask of the callables they are given, told before and after the first call."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._tree import named_leaves


def check_callable(name: str, f: Any, *arguments: str, keywords: tuple[str, ...] = ()) -> None:
    """Raises if `f` cannot be called as `name(*arguments, keyword=...)`."""
    call = f"{name}({', '.join([*arguments, *(f'{k}=...' for k in keywords)])})"
    if not callable(f):
        raise TypeError(f"{name}={f!r} must be a function, called as {call}.")
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # builtins do not tell
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        raise TypeError(
            f"{name} is called as {call}, which its signature {signature} does not take ({error})."
        ) from None


def returned_params(name: str, given: PyTree, returned: PyTree, masks: PyTree = None) -> PyTree:
    """`returned`, if it is a tree of parameters like `given` and zero off the masks."""
    before, after = named_leaves(given), named_leaves(returned)
    missing = [x for x in before if x not in after]
    if missing or len(before) != len(after):
        raise TypeError(
            f"{name} must return parameters like those it was given, with the leaves "
            f"{', '.join(before)}; it returned {_describe(after) if after else repr(returned)}."
        )
    for leaf, w in before.items():
        if jnp.shape(after[leaf]) != jnp.shape(w):
            raise ValueError(
                f"{name} was given {leaf} of shape {jnp.shape(w)} and returned it with shape "
                f"{jnp.shape(after[leaf])}."
            )
    for leaf, mask in named_leaves(masks).items():
        if bool(jnp.any(jnp.where(mask, False, after[leaf] != 0))):
            raise ValueError(
                f"{name} returned {leaf} with entries off its mask that are not 0; train with "
                "sj.recipes.train_masked, or chain sj.optim.keep_masked(masks) last."
            )
    return returned


def as_number(name: str, value: Any) -> float:
    """`value` as a float; raises if it is not one number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        shape = jnp.shape(value) if isinstance(value, jax.Array) else type(value).__name__
        raise TypeError(f"{name} must return one number, it returned {shape}.") from None


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises if `value` is not an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")


def check_fraction(name: str, value: float) -> None:
    """Raises if `value` is not in [0, 1]."""
    if not (0 <= value <= 1) or math.isnan(value):
        raise ValueError(f"{name}={value!r} must be a fraction in [0, 1].")


def rows_of(name: str, data: PyTree) -> int:
    """Number of samples: the length of the first axis, the same for all arrays and not 0."""
    leaves = named_leaves(data)
    lengths = {leaf: jnp.shape(x)[:1] for leaf, x in leaves.items()}
    if not leaves or any(not length or length[0] == 0 for length in lengths.values()):
        raise ValueError(f"{name} is empty: {_describe(leaves) or 'it has no arrays'}.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the arrays of {name} differ in their number of rows: {lengths}.")
    return next(iter(lengths.values()))[0]


def _describe(leaves: dict[str, Any]) -> str:
    return ", ".join(f"{name or 'an array'} {jnp.shape(x)}" for name, x in leaves.items())
