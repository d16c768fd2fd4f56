"""What the transformations ask of their arguments, told when they are made or at `init`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._tree import check_known, is_gap, is_variable, map_named, name_of, named_leaves, pure
from ..masks import Plan

# What optax raises for a transformation that needs the parameters.
_NO_PARAMS = (
    "You are using a transformation that requires the current value of parameters, but you are "
    "not passing `params` when calling `update`."
)


def check_params(params: PyTree) -> None:
    """Raises what optax raises if there are no parameters."""
    if params is None:
        raise ValueError(_NO_PARAMS)


def named_masks(what: str, masks: PyTree) -> dict[str, Array]:
    """Given masks by the path of their leaf."""
    if isinstance(masks, Plan):
        raise TypeError(f"{what} takes masks, got a plan; plan.masks(scores) makes them.")
    by_name = {name: jnp.asarray(m) for name, m in named_leaves(pure(masks)).items()}
    for name, mask in by_name.items():
        if mask.dtype != bool:
            raise TypeError(f"{what}: the mask of {name} is {mask.dtype}, not boolean.")
    return by_name


def check_masks(what: str, params: PyTree, by_name: Mapping[str, Array]) -> PyTree:
    """Given masks as a tree like the parameters, each in the shape of its leaf."""

    def check(name, leaf, mask):
        if mask is not None and mask.shape != leaf.shape:
            raise ValueError(
                f"{what}: {name} has shape {leaf.shape} and its mask shape {mask.shape}."
            )
        return mask

    leaves, gaps = named_leaves(params), [name for name, x in _places(params) if is_gap(x)]
    # What stands below a gap belongs to another part of a partial tree.
    below = [n for n in by_name if any(n == gap or n.startswith(f"{gap}/") for gap in gaps)]
    if leaves:
        check_known([name for name in by_name if name not in below], leaves, what)
    return map_named(check, params, by_name)


def _places(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves and gaps of a tree by path."""
    found = jax.tree.leaves_with_path(tree, is_leaf=lambda x: is_gap(x) or is_variable(x))
    return [(name_of(p), x.get_value() if is_variable(x) else x) for p, x in found]


def check_some(what: str, names: list[str], masks: PyTree, params: PyTree) -> None:
    """Raises if none of the named leaves is there; some may be, a tree may be partial."""
    leaves = named_leaves(params)
    if names and leaves and not jax.tree.leaves(masks):
        raise ValueError(
            f"{what}: the plan is of {', '.join(names)} but the parameters are "
            f"{', '.join(leaves)}; make it from these parameters."
        )


def check_optimizer(what: str, optimizer: Any) -> None:
    """Raises if an inner optimizer is not one, a function that would make one for example."""
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return
    name = getattr(optimizer, "__name__", None)
    if callable(optimizer) and name is not None:
        package = (getattr(optimizer, "__module__", None) or "").split(".")[0]
        name = f"optax.{name}" if package == "optax" else name
        raise TypeError(
            f"{what}(optimizer={name}) is the function that makes an optimizer: call it, "
            f"{what}({name}(1e-3), ...)."
        )
    raise TypeError(
        f"{what} wraps an optimizer such as optax.adamw(1e-3), got a {type(optimizer).__name__}."
    )


def is_known(value: Any) -> bool:
    """Whether an argument is a number whose value is there, not None, traced or a schedule."""
    if isinstance(value, Tracer) or value is None or callable(value):
        return False
    return isinstance(value, int | float | np.generic | np.ndarray | jax.Array)


def check_number(what: str, name: str, value: Any) -> None:
    """Raises if `value` is neither a number nor a schedule: a string, a list."""
    known = is_known(value) and jnp.ndim(value) == 0
    if not (known or isinstance(value, Tracer) or callable(value)):
        raise TypeError(
            f"{what}: {name}={value!r} is a {type(value).__name__}; give a number or an optax "
            f"schedule: {name}=0.5."
        )


def check_step(what: str, name: str, value: Any, least: int = 0) -> None:
    """Raises if a step, or a number of them, is known and not whole or too small."""
    if value is None or isinstance(value, Tracer):
        return
    if callable(value) or not is_known(value) or jnp.ndim(value) or isinstance(value, bool):
        raise TypeError(
            f"{what}: {name}={value!r} is a {type(value).__name__}; a step is a whole number: "
            f"{name}=100."
        )
    number = float(value)
    fraction = not isinstance(value, int) and not np.issubdtype(jnp.result_type(value), np.integer)
    # 1.0 is whole, and means all of training rather than its first step.
    if fraction and number != float("inf") and (not number.is_integer() or number == 1):
        raise ValueError(
            f"{what}: {name}={number:g} is a step, not a fraction: {name}=int({number:g} * steps)."
        )
    if number < least:
        raise ValueError(f"{what}: {name}={value} must be at least {least}, as in {name}=100.")


def check_fraction(what: str, name: str, value: Any) -> None:
    """Raises if a number that is known is not in [0, 1], or there is no number."""
    check_number(what, name, value)
    if is_known(value) and not 0 <= float(value) <= 1:
        raise ValueError(f"{what}: {name}={value} must be a fraction in [0, 1].")
