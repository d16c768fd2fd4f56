"""Checks of trees of parameters and masks, and of arrays of samples."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._tree import (
    check_known,
    is_array,
    is_gap,
    is_variable,
    map_named,
    name_of,
    named_leaves,
    pure,
)
from ._numbers import is_nan_in

# The message of optax for a transformation that needs the parameters.
_NO_PARAMS = (
    "You are using a transformation that requires the current value of parameters, but you are "
    "not passing `params` when calling `update`."
)


def check_updates(updates: PyTree, params: PyTree) -> None:
    """Raises the error of optax if there are no parameters, and for updates of other shapes."""
    if params is None:
        raise ValueError(_NO_PARAMS)
    leaves = named_leaves(params)
    for name, u in named_leaves(updates).items():
        if name in leaves and jnp.shape(u) != jnp.shape(leaves[name]):
            raise ValueError(
                f"update: the gradient of {name or 'the parameter'} has shape {jnp.shape(u)} and "
                f"the parameter {jnp.shape(leaves[name])}; pass jax.grad(loss)(params)."
            )


def named_masks(what: str, masks: PyTree) -> dict[str, Array]:
    """Given masks by the path of their leaf."""
    leaves = named_leaves(pure(masks))
    for name, mask in leaves.items():
        if not is_array(mask):
            raise TypeError(
                f"{what} takes masks, got a {type(mask).__name__}{name and ' at ' + name}; "
                "plan.masks(scores) makes them."
            )
    with jax.ensure_compile_time_eval():  # known masks, also inside jit
        by_name = {name: jnp.asarray(mask) for name, mask in leaves.items()}
    for name, mask in by_name.items():
        if mask.dtype != bool:
            raise TypeError(
                f"{what}: masks must be booleans: the mask of {name or 'the parameter'} holds "
                f"{mask.dtype}, not booleans; "
                "True means kept: pass sj.get_masks(opt_state), plan.masks(scores) or mask != 0."
            )
    return by_name


def check_masks(what: str, params: PyTree, by_name: Mapping[str, Any]) -> PyTree:
    """Given masks as a tree like the parameters, each in the shape of its leaf."""

    def check(name, leaf, mask):
        if mask is not None and mask.shape != leaf.shape:
            raise ValueError(
                f"{what}: {name or 'the parameter'} has shape {leaf.shape} and its mask shape "
                f"{mask.shape}; masks must be made for these parameters."
            )
        return mask

    leaves, gaps = named_leaves(params), [name for name, x in _places(params) if is_gap(x)]
    # Leaves below a gap belong to another part of a partial tree.
    below = [n for n in by_name if any(n == gap or n.startswith(f"{gap}/") for gap in gaps)]
    if leaves:
        check_known([name for name in by_name if name not in below], leaves, what)
    return map_named(check, params, by_name)


def _places(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves and gaps of a tree by path."""
    found = jax.tree.leaves_with_path(tree, is_leaf=lambda x: is_gap(x) or is_variable(x))
    return [(name_of(p), x.get_value() if is_variable(x) else x) for p, x in found]


def check_some(what: str, names: list[str], masks: PyTree, params: PyTree) -> None:
    """Raises if none of the named leaves exists; a partial tree has some of them."""
    leaves = named_leaves(params)
    if names and leaves and not jax.tree.leaves(masks):
        raise ValueError(
            f"{what}: the plan is of {', '.join(names)} but the parameters are "
            f"{', '.join(leaves)}; make it from these parameters."
        )


def check_ranking(
    what: str, scores: Mapping[str, Any], masks: Mapping[str, Any], *, joint: bool = False
) -> None:
    """Raises if NaN scores are kept where others are pruned: NaN ranks last, so they all tie.

    Traced scores are not checked. `joint`: whether entries of all leaves compete.
    """
    lost = [name for name in masks if is_nan_in(scores[name])]
    pruned = {name for name, mask in masks.items() if not bool(jnp.all(mask))} if lost else set()
    for name in lost:
        kept = int(jnp.sum(masks[name] & jnp.isnan(scores[name])))
        if kept and (pruned if joint else name in pruned):
            raise ValueError(
                f"{what}: {kept} scores of {name or 'the array'} {jnp.shape(scores[name])} that "
                "would be kept are NaN, in the order of their index; pass scores without NaN: "
                "check the loss and the gradients."
            )


def check_params(what: str, params: PyTree) -> None:
    """Raises if `params` hold NNX variables that are not parameters, or a module as a leaf."""
    for path, x in jax.tree.leaves_with_path(params, is_leaf=is_variable):
        other = is_variable(x) and not isinstance(x, nnx.Param)
        if other or isinstance(x, nnx.Module):
            raise TypeError(
                f"{what}: params holds {name_of(path) or 'a module'}, a {type(x).__name__} and "
                "not an nnx.Param, which would be trained as a weight. Split the model: "
                "graphdef, params, rest = nnx.as_pure(nnx.split(model, nnx.Param, ...)); and in "
                "the loss model = nnx.merge(graphdef, params, rest)."
            )


def returned_params(
    name: str, given: PyTree, returned: PyTree, masks: PyTree = None, *, finite: bool = True
) -> PyTree:
    """`returned`, if it is a tree of parameters like `given`, zero off the masks, and finite."""
    before, after = named_leaves(given), named_leaves(returned)
    missing = [x for x in before if x not in after]
    if missing or len(before) != len(after):
        raise TypeError(
            f"{name} must return parameters like those passed to it, with the leaves "
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
                "not finite: lower the learning rate, or clip the gradient. Earlier results "
                "were passed to callback; continue from one of them with resume=result."
            )
    for leaf, mask in named_leaves(masks).items():
        if bool(jnp.any(jnp.where(mask, False, after[leaf] != 0))):
            raise ValueError(
                f"{name} returned {leaf} with entries off its mask that are not 0; train with "
                "sj.recipes.train_masked, or chain sj.optim.keep_masked(masks) last."
            )
    return returned


def _lost(before: Any, after: Any) -> int:
    """Number of entries that are NaN or newly infinite; 0 under a trace."""
    if isinstance(before, Tracer) or isinstance(after, Tracer):
        return 0
    if not jnp.issubdtype(jnp.result_type(after), jnp.inexact):
        return 0
    was_infinite = jnp.isinf(jnp.asarray(before))  # a constant of -inf is allowed
    return int(jnp.sum(~jnp.isfinite(jnp.asarray(after)) & ~(was_infinite & jnp.isinf(after))))


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
