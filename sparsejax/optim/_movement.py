"""Movement pruning: learned scores, selected by rank or by a threshold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._arguments import check_scheduled_fraction, check_some, check_updates, checked
from .._arrays import wide_dtype
from .._tree import is_gap, map_named
from ..masks import Masks, Plan
from ..patterns import Unstructured
from ._pruning import at_step, masked_updates, next_step, unless_nan


class MovementState(NamedTuple):
    """State of `movement` and `soft_movement`: the step, the masks of the next step, the scores."""

    count: Int[Array, ""]
    masks: PyTree
    scores: PyTree


@checked(learning_rate="[0, inf)")
def movement(
    plan: Plan,
    schedule: optax.ScalarOrSchedule = 1.0,
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    r"""Movement pruning, for fine-tuning: keeps the entries that training moves away from zero.

    With the gradient g of the masked weights, `S <- S - learning_rate * g * w` for every entry,
    `m = plan.masks(S, schedule(t))` for the next step, and the updates are `m g`: a pruned weight
    keeps its value and may be kept again. Place it before the optimizer in a chain, since S needs
    the raw gradients; evaluate the loss at
    `sj.masks.straight_through(model, sj.get_masks(opt_state))`.

    Args:
      plan: The plan, from `sj.plan`.
      schedule: Current fraction of the planned zeros: a number or an optax schedule.
      learning_rate: Learning rate of the scores: a number or an optax schedule.

    Returns:
      A transformation whose state has `count`, `masks` and `scores`.

    Raises:
      ValueError: If `update` gets no parameters, or no leaf is planned.

    Reference:
      Sanh, Wolf and Rush, Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020 (arXiv
      2005.07683).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0], [0.5]])}
      >>> tx = sj.optim.movement(sj.plan(params, sj.Unstructured(0.5)), learning_rate=1.0)
      >>> grads = {"kernel": jnp.array([[1.0], [-1.0]])}  # the small weight grows
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> sj.get_masks(state)["kernel"].ravel().tolist()
      [False, True]
    """
    Plan.require("movement", plan)
    check_scheduled_fraction("movement", "schedule", schedule)

    def choose(scores, count):
        return plan.masks(scores, at_step(schedule, count))

    return _scored("movement", plan, choose, learning_rate, lambda score, count: 0.0, schedule)


@checked(threshold="[0, inf]", strength="[0, inf)", learning_rate="[0, inf)")
def soft_movement(
    plan: Plan,
    threshold: optax.ScalarOrSchedule = 0.1,
    *,
    strength: optax.ScalarOrSchedule = 0.0,
    learning_rate: optax.ScalarOrSchedule = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    r"""Soft movement pruning, for fine-tuning: a threshold on the scores, not a rank.

    With the gradient g of the masked weights,
    `S <- S - learning_rate * (g * w + strength(t) * sigmoid'(S))` for every entry from S = 0, and
    `m = sigmoid(S) > threshold(t)` for the next step; the second term is the gradient of the
    penalty `strength * sum sigmoid(S)`. Training determines the sparsity of each leaf, and leaves
    may differ; the strength controls it. Otherwise like `movement`.

    Args:
      plan: The leaves to prune; the sparsities in its patterns are ignored: `sj.Unstructured(0.5)`.
      threshold: In [0, 0.5): a number or an optax schedule, which usually rises from 0 to 0.1.
      strength: Strength of the penalty: a number or an optax schedule, which usually rises from 0.
      learning_rate: Learning rate of the scores: a number or an optax schedule.

    Returns:
      A transformation whose state has `count`, `masks` and `scores`.

    Raises:
      ValueError: If a pattern of the plan is not `Unstructured`, a constant threshold is not in
        [0, 0.5), `update` gets no parameters, or no leaf is planned.

    Reference:
      Sanh, Wolf and Rush, 2020 (arXiv 2005.07683), section 4.

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0], [0.5], [2.0]])}
      >>> plan = sj.plan(params, sj.Unstructured(0.5))
      >>> tx = sj.optim.soft_movement(plan, 0.1, learning_rate=1.0)
      >>> grads = {"kernel": jnp.array([[1.0], [-1.0], [0.1]])}  # only 3.0 shrinks by much
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> sj.get_masks(state)["kernel"].ravel().tolist()
      [False, True, True]
    """
    Plan.require("soft_movement", plan)
    _check_soft(plan, threshold)

    def choose(scores, count):
        cut = at_step(threshold, count)
        return map_named(lambda name, s: jax.nn.sigmoid(s) > cut, scores)

    def pull(score, count):
        value = jax.nn.sigmoid(score)
        return at_step(strength, count) * value * (1 - value)

    return _scored("soft_movement", plan, choose, learning_rate, pull, threshold)


def _scored(what: str, plan: Plan, choose, learning_rate, pull, limit):
    """Scores updated by `g w + pull(S)`, and the masks that `choose` derives from them."""
    planned = {leaf.name for leaf in plan.leaves}

    def init(params):
        def zero(name, p):
            if name not in planned:
                return None
            return jnp.zeros_like(p, wide_dtype(p))

        plan.full_masks(params)  # checks the shapes
        scores, count = map_named(zero, params), jnp.zeros((), jnp.int32)
        masks = choose(scores, count)
        check_some(what, sorted(planned), masks, params)
        return MovementState(count, Masks(masks), scores)

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        rate, count = at_step(learning_rate, state.count), next_step(state.count)

        def accumulate(score, g, p):
            if is_gap(score) or is_gap(g):
                return score
            g, p = g.astype(score.dtype), p.astype(score.dtype)
            pulled = g * p + jnp.asarray(pull(score, state.count), score.dtype)
            return score - jnp.asarray(rate, score.dtype) * pulled

        scores = jax.tree.map(accumulate, state.scores, updates, params, is_leaf=is_gap)
        masks = choose(scores, count)
        # Unplanned leaves are not masked: leaves without scores are gaps in both trees.
        new = MovementState(count, Masks(masks), scores)
        numbers = {"learning_rate": rate, "threshold": at_step(limit, count)}
        moves = masked_updates(updates, state.masks.tree)
        return unless_nan(what, moves, masks, **numbers), new

    return optax.GradientTransformationExtraArgs(init, update)


def _check_soft(plan: Plan, threshold: optax.ScalarOrSchedule) -> None:
    for leaf in plan.leaves:
        if not isinstance(leaf.pattern, Unstructured):
            raise ValueError(
                f"soft_movement: {leaf.name} is planned as {leaf.pattern!r}, and a threshold "
                "cannot enforce a pattern; plan it with sj.Unstructured, or use sj.optim.movement."
            )
    if isinstance(threshold, int | float) and not 0 <= threshold < 0.5:
        raise ValueError(
            f"soft_movement(threshold={threshold}) must be in [0, 0.5): scores start at 0, where "
            "their sigmoid is 0.5."
        )
