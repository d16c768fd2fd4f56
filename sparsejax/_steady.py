"""Optimizers inside a transformation: states of one dtype, gaps in the gradients, resets."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ._tree import is_gap


def steady(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer with a state that keeps its dtypes, and gradients that may be None.

    Some states change dtype at the first step, as moments of bfloat16 that meet a float32 rate: the
    state starts in the dtype it would settle in for gradients of the dtype of the parameters, and
    keeps it for others. A leaf without a gradient, although it has a parameter, counts as one with
    the gradient 0 and is not updated.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        state = inner.init(params)
        return jax.tree.map(_cast, state, _settled(inner, state, params))

    def update(updates, state, params=None, **extra):
        filled = updates if params is None else filled_gaps(updates, params)
        moves, new = inner.update(filled, state, params, **extra)
        return with_gaps(moves, updates), jax.tree.map(_cast, new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def filled_gaps(updates: PyTree, params: PyTree) -> PyTree:
    """The updates, 0 where there is a float without one; keys and counters have none."""
    return jax.tree.map(
        lambda u, p: jax.tree.map(jnp.zeros_like, _only(jnp.inexact, p)) if is_gap(u) else u,
        updates,
        params,
        is_leaf=is_gap,
    )


def _only(kind: Any, params: PyTree) -> PyTree:
    """The leaves whose dtype is of a kind, None for the others."""
    return jax.tree.map(lambda p: p if jnp.issubdtype(jnp.result_type(p), kind) else None, params)


def with_gaps(moves: PyTree, updates: PyTree) -> PyTree:
    """The moves, without those of leaves that have no update."""
    return jax.tree.map(lambda u, m: u if is_gap(u) else m, updates, moves, is_leaf=is_gap)


def _settled(inner: optax.GradientTransformationExtraArgs, state: PyTree, params: PyTree) -> PyTree:
    """A state of the dtypes after one step; the given one if a step needs extra arguments."""
    if not jax.tree.leaves(params):  # optax's sharding tools pass a tree without leaves
        return state
    try:
        return jax.eval_shape(lambda p: inner.update(_only(jnp.number, p), state, p)[1], params)
    except (TypeError, ValueError):
        return state


def _cast(x: Any, like: Any) -> Any:
    wanted = jnp.result_type(like)
    return x if jnp.result_type(x) == wanted else jnp.asarray(x, wanted)


def reset_moments(
    optimizer: optax.GradientTransformation, state: PyTree, where: PyTree, when: ArrayLike = True
) -> Any:
    """The state of any optimizer, zeroed where the masks select; factored moments are unchanged."""

    def reset(moment: Array, new: Array) -> Array:
        if jnp.shape(moment) != jnp.shape(new):
            return moment
        return jnp.where(new & when, jnp.zeros_like(moment), moment)

    def one(new, moments):
        return moments if is_gap(new) else jax.tree.map(lambda x: reset(x, new), moments)

    def whole(moments, where):
        return jax.tree.map(one, where, moments, is_leaf=is_gap)

    # Whole trees, since a moment may be a list for each parameter (SM3).
    return optax.tree.map_params(optimizer, whole, state, where, is_leaf=lambda x: True)
