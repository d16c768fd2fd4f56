"""Iterative shrinkage by percentage: the lowest-ranked weights shrink at every step."""

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from .._arguments import (
    check_fraction,
    check_scheduled_fraction,
    check_some,
    check_step,
    check_updates,
    checked,
)
from .._arrays import wide_dtype
from .._tree import is_gap
from ..masks import Masks, Plan, PlannedLeaf, magnitude
from ._pruning import at_step, next_step, zero_off


class ShrinkState(NamedTuple):
    """State of `iterative_shrinkage`: the step and the masks of the largest weights."""

    count: Int[Array, ""]
    masks: PyTree


@checked()
def iterative_shrinkage(
    plan: Plan,
    alpha: optax.ScalarOrSchedule = 0.95,
    *,
    prune_steps: ArrayLike = 100_000,
    every: ArrayLike = 1,
    cap: float = 0.995,
) -> optax.GradientTransformationExtraArgs:
    r"""ISS-P: multiplies the lowest-ranked weights by alpha instead of zeroing them.

    For the first `prune_steps` steps the masks m are those of the largest `|p + u|`, recomputed
    each time, and the new parameters are `p + u` where m and `alpha (p + u)` elsewhere. Shrunk
    weights may be kept again. At the last of these steps the masks are fixed and the other weights
    are exactly 0. In a chain of transformations, this should be the last one. The weights that
    shrink settle near `rate * alpha / (1 - alpha)` under Adam: masks can only change if the
    smallest kept weights are of that order.

    Args:
      plan: The pruned leaves, with one sparsity for all in the paper, which rounds the number of
        pruned weights up: `sj.plan(..., rounding="up")`.
      alpha: Factor per step: 0 is iterative hard thresholding, 1 never prunes; a number or an
        optax schedule.
      prune_steps: Length of the first stage, at least 1.
      every: Steps between two shrinkages, by `alpha ** every`.
      cap: Largest fraction of zeros of a leaf (of a slice of a stacked one), whatever its sparsity:
        `min(zeros, floor(cap * units))`. Leaves of a joint plan are capped together; N:M is not.

    Returns:
      A transformation whose state has `count` and `masks`.

    Raises:
      ValueError: If `update` gets no parameters, no leaf is planned, alpha or cap is outside of
        [0, 1], or `prune_steps` or `every` is less than 1.

    Reference:
      Wang et al., Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution, 2023
      (arXiv 2303.09650).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[4.0], [2.0]])}
      >>> plan = sj.plan(params, sj.Unstructured(0.5))
      >>> tx = sj.optim.iterative_shrinkage(plan, 0.5, prune_steps=3)
      >>> state, seen = tx.init(params), []
      >>> for _ in range(4):
      ...     updates, state = tx.update({"kernel": jnp.zeros((2, 1))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     seen.append(params["kernel"].ravel().tolist())
      >>> seen
      [[4.0, 1.0], [4.0, 0.5], [4.0, 0.0], [4.0, 0.0]]
    """

    Plan.require("iterative_shrinkage", plan)
    check_scheduled_fraction("iterative_shrinkage", "alpha", alpha)
    check_fraction("cap", cap)
    check_step("iterative_shrinkage", "every", every, 1)
    check_step("iterative_shrinkage", "prune_steps", prune_steps, 1)
    plan = replace(plan, leaves=tuple(_capped(leaf, cap) for leaf in plan.leaves))

    def init(params):
        masks = plan.full_masks(params)
        check_some("iterative_shrinkage", [x.name for x in plan.leaves], masks, params)
        return ShrinkState(jnp.zeros((), jnp.int32), Masks(masks))

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        count = state.count
        due = (count % every == 0) | (count == prune_steps - 1)

        def shrink():
            moved = jax.tree.map(_sum, params, updates, is_leaf=is_gap)
            masks = plan.masks(magnitude(moved))
            factor = jnp.asarray(at_step(alpha, count), jnp.float32) ** every
            return _shrunk(updates, params, masks, factor), masks

        def leave():
            return _shrunk(updates, params, state.masks.tree, jnp.ones(())), state.masks.tree

        moves, masks = jax.lax.cond(due & (count < prune_steps), shrink, leave)
        over = count >= prune_steps - 1
        moves = jax.tree.map(
            lambda zeroed, moved: moved if is_gap(zeroed) else jnp.where(over, zeroed, moved),
            zero_off(moves, params, masks),
            moves,
            is_leaf=is_gap,
        )
        return moves, ShrinkState(next_step(count), Masks(masks))

    return optax.GradientTransformationExtraArgs(init, update)


def _capped(leaf: PlannedLeaf, cap: float) -> PlannedLeaf:
    if not leaf.pattern.free or not leaf.units:
        return leaf
    most = leaf.slices * math.floor(leaf.units // leaf.slices * cap + 1e-9)
    return replace(leaf, zeros=min(leaf.zeros, most))


def _sum(p, u):
    return p if is_gap(u) else p + u


def _shrunk(updates, params, masks, factor):
    """Updates to `factor (p + u)` off the masks, in at least float32: 0.99 w is w in bfloat16."""

    def one(mask, u, p):
        if is_gap(mask) or is_gap(u):
            return u
        wide = wide_dtype(u, p)
        p, u = p.astype(wide), u.astype(wide)
        return jnp.where(mask, u, factor.astype(wide) * (p + u) - p)

    return jax.tree.map(one, masks, updates, params, is_leaf=is_gap)
