"""What the recipes ask of the callables they are given, told before and after the first call."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import PyTree

from .._arguments import check_count, check_fraction, check_key, check_number
from .._tree import is_variable, name_of, named_leaves

__all__ = [
    "as_number",
    "check_callable",
    "check_count",
    "check_fraction",
    "check_key",
    "check_number",
    "check_params",
    "check_resume",
    "returned_params",
    "rows_of",
]


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


def check_params(what: str, params: PyTree) -> None:
    """Raises if `params` hold variables of NNX that are not parameters, or a module as a leaf."""
    for path, x in jax.tree.leaves_with_path(params, is_leaf=is_variable):
        other = is_variable(x) and not isinstance(x, nnx.Param)
        if other or isinstance(x, nnx.Module):
            raise TypeError(
                f"{what}: params holds {name_of(path) or 'a module'}, a {type(x).__name__} and no "
                "nnx.Param, which would be trained as a weight. Split the model: "
                "graphdef, params, rest = nnx.as_pure(nnx.split(model, nnx.Param, ...)); and in "
                "the loss model = nnx.merge(graphdef, params, rest)."
            )


def check_resume(name: str, given: Any, kind: type) -> None:
    """Raises if what a recipe goes on from is not of the type that it returns."""
    if not isinstance(given, kind):
        raise TypeError(
            f"{name}={given!r:.80} is a {type(given).__name__} and must be the {kind.__name__} "
            f"that an earlier call returned or gave to callback; read it from its file first."
        )


def returned_params(
    name: str, given: PyTree, returned: PyTree, masks: PyTree = None, *, finite: bool = True
) -> PyTree:
    """`returned`, if it is a tree of parameters like `given`, zero off the masks, and finite."""
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
        if finite and (count := _lost(w, after[leaf])):
            raise ValueError(
                f"{name} returned {leaf or 'an array'} {jnp.shape(w)} with {count} values that are "
                "not finite: lower the learning rate, or clip the gradient. Nothing earlier is "
                "lost: callback has had each result so far; go on from one with resume=result."
            )
    for leaf, mask in named_leaves(masks).items():
        if bool(jnp.any(jnp.where(mask, False, after[leaf] != 0))):
            raise ValueError(
                f"{name} returned {leaf} with entries off its mask that are not 0; train with "
                "sj.recipes.train_masked, or chain sj.optim.keep_masked(masks) last."
            )
    return returned


def _lost(before: Any, after: Any) -> int:
    """Number of entries that are NaN, or have become infinite; 0 under a trace."""
    if isinstance(before, Tracer) or isinstance(after, Tracer):
        return 0
    if not jnp.issubdtype(jnp.result_type(after), jnp.inexact):
        return 0
    was_infinite = jnp.isinf(jnp.asarray(before))  # a constant of -inf may stay
    return int(jnp.sum(~jnp.isfinite(jnp.asarray(after)) & ~(was_infinite & jnp.isinf(after))))


def as_number(name: str, value: Any) -> float:
    """`value` as a float; raises if it is not one number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        shape = jnp.shape(value) if isinstance(value, jax.Array) else type(value).__name__
        raise TypeError(f"{name} must return one number, it returned {shape}.") from None


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
