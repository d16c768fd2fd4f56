"""Top-KAST: sparse forward, a little less sparse backward, never dense."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from .._arguments import (
    check_optimizer,
    check_some,
    check_step,
    check_updates,
    checked,
    checked_number,
)
from .._arrays import wide_dtype
from .._masks import row_counts
from .._steady import steady
from .._tree import is_gap
from ..masks import Masks, Plan, magnitude
from ._pruning import masked_updates, next_step


class TopKASTState(NamedTuple):
    """State of `top_kast`: the step, forward and backward masks, the state of the optimizer."""

    count: Int[Array, ""]
    masks: PyTree
    backward: PyTree
    inner: optax.OptState


@checked(exploration="[0, inf)")
def top_kast(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    backward: Plan,
    *,
    every: ArrayLike = 100,
    exploration: ArrayLike = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    r"""Top-KAST: a forward set A of the largest weights and a larger backward set B.

    The loss uses A; gradient and optimizer act on the superset B, and entries outside B are
    unchanged, bit for bit. The penalty `exploration * (sum_A w^2 + sum_{B - A} w^2 / d)`, with d
    the density of A in the leaf, is added to the loss and lets other entries compete. Both sets are
    selected again, by magnitude, every `every` steps.

    Args:
      optimizer: The optimizer, which receives gradients of entries in B only.
      plan: The forward set.
      backward: The backward set: the same leaves at lower sparsities.
      every: Steps between two selections.
      exploration: Strength of the penalty.

    Returns:
      A transformation whose state has `count`, `masks` (A), `backward` (B) and `inner`; evaluate
      the loss at `sj.masks.straight_through(model, sj.get_masks(opt_state))`.

    Raises:
      ValueError: If the plans have different leaves, B is sparser than A, or `update` gets no
        parameters.

    Reference:
      Jayakumar et al., Top-KAST: Top-K Always Sparse Training, 2021 (arXiv 2106.03517).

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
      >>> forward, backward = (sj.plan(params, sj.Unstructured(s)) for s in (0.75, 0.5))
      >>> tx = sj.optim.top_kast(optax.sgd(1.0), forward, backward, exploration=0.0)
      >>> updates, _ = tx.update({"kernel": jnp.ones((4, 1))}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].ravel().tolist()
      [3.0, 2.0, 2.0, 1.0]
    """
    check_optimizer("top_kast", optimizer)
    Plan.require("top_kast", plan)
    Plan.require("top_kast", backward)
    check_step("top_kast", "every", every, 1)
    checked_number("exploration", exploration, "exploration=1e-4")
    _check_nested(plan, backward)
    inner = steady(optimizer)
    names = [leaf.name for leaf in plan.leaves]

    def choose(params):
        scores = magnitude(params)
        return plan.masks(scores), backward.masks(scores)

    def init(params):
        masks, wider = choose(params)
        check_some("top_kast", names, masks, params)
        return TopKASTState(jnp.zeros((), jnp.int32), Masks(masks), wider, inner.init(params))

    def update(updates, state, params=None, **extra):
        check_updates(updates, params)
        due = (state.count % every == 0) & (state.count > 0)
        kept = (state.masks.tree, state.backward)
        masks, wider = jax.lax.cond(due, lambda: choose(params), lambda: kept)

        def pull(mask, wide, g, p):
            if is_gap(mask) or is_gap(g):
                return g
            dtype = wide_dtype(p)
            own = jnp.sum(row_counts(mask).astype(dtype) / float(max(mask.size, 1)))
            strength = jnp.asarray(2 * exploration, dtype) * p.astype(dtype)
            pulled = jnp.where(mask, strength, strength / jnp.maximum(own, 1e-9))
            return jnp.where(wide, g + pulled.astype(g.dtype), 0)

        pulled = jax.tree.map(pull, masks, wider, updates, params, is_leaf=is_gap)
        moves, new = inner.update(pulled, state.inner, params, **extra)
        moves = masked_updates(moves, wider, off=-0.0)
        return moves, TopKASTState(next_step(state.count), Masks(masks), wider, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_nested(plan: Plan, backward: Plan) -> None:
    wider = {leaf.name: leaf for leaf in backward.leaves}
    for leaf in plan.leaves:
        other = wider.get(leaf.name)
        if other is None or type(other.pattern) is not type(leaf.pattern):
            raise ValueError(
                f"top_kast: {leaf.name} is planned as {leaf.pattern!r} in the forward set and as "
                f"{other and other.pattern!r} in the backward set; plan the same leaves with the "
                "same kind of pattern."
            )
        if other.zeros > leaf.zeros:
            raise ValueError(
                f"top_kast: {leaf.name} has sparsity {leaf.sparsity:.3g} in the forward set and "
                f"{other.sparsity:.3g} in the backward set, which must contain it."
            )
