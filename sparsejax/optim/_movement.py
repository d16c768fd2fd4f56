"""Movement pruning: scores that learn where weights are going."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._tree import is_gap, map_named
from ..masks import Plan
from ..masks._plan import check_plan
from ._pruning import at_step, check_params, check_some, masked_updates, next_step


class MovementState(NamedTuple):
    """State of `movement`: the step, the masks of the step to come, the scores."""

    count: Int[Array, ""]
    masks: PyTree
    scores: PyTree


def movement(
    plan: Plan,
    schedule: optax.ScalarOrSchedule = 1.0,
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    r"""Movement pruning, for fine-tuning: the entries stay that training moves away from zero.

    With the gradient g of the masked weights, `S <- S - learning_rate * g * w` for every entry,
    `m = plan.masks(S, schedule(t))` for the step to come, and the updates are `m g`: a pruned
    weight keeps its value and may return. Comes before the optimizer in a chain, since S needs the
    raw gradients; the loss sees `sj.nn.view(model, sj.get_masks(opt_state))`.

    Args:
      plan: What to prune.
      schedule: Fraction of the planned zeros in force: a number or an optax schedule.
      learning_rate: Of the scores: a number or an optax schedule.

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
    planned = {leaf.name for leaf in plan.leaves}

    check_plan("movement", plan)

    def init(params):
        def zero(name, p):
            wide = jnp.promote_types(p.dtype, jnp.float32)
            return jnp.zeros_like(p, wide) if name in planned else None

        scores = map_named(zero, params)
        masks = plan.masks(scores, at_step(schedule, jnp.zeros((), jnp.int32)))
        check_some("movement", "plan", sorted(planned), masks, params)
        return MovementState(jnp.zeros((), jnp.int32), masks, scores)

    def update(updates, state, params=None, **extra):
        del extra
        check_params(params)
        rate, count = at_step(learning_rate, state.count), next_step(state.count)

        def accumulate(score, g, p):
            if is_gap(score) or is_gap(g):
                return score
            return score - (rate * g * p).astype(score.dtype)

        scores = jax.tree.map(accumulate, state.scores, updates, params, is_leaf=is_gap)
        masks = plan.masks(scores, at_step(schedule, count))
        # Not planned is not masked: what holds no scores has gaps in both.
        return masked_updates(updates, state.masks), MovementState(count, masks, scores)

    return optax.GradientTransformationExtraArgs(init, update)
