"""Decay of pruned weights during dense training: SR-STE, mask decay, stages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from .._arguments import check_finite, check_step, check_updates, checked
from .._tree import is_gap
from ..masks import Masks, Plan, magnitude
from ._pruning import next_step


class PrunedDecayState(NamedTuple):
    """State of `add_pruned_decay`: the step and the masks of the latest parameters."""

    count: Int[Array, ""]
    masks: PyTree


@checked(strength="(-inf, inf)")
def add_pruned_decay(
    plan: Plan, strength: ArrayLike = 2e-4
) -> optax.GradientTransformationExtraArgs:
    r"""Decays the pruned weights only: `u + strength * (1 - m) * p`, with m the masks of `|p|`.

    The sparse-refined term of SR-STE only: evaluate the loss at
    `sj.masks.straight_through(params, plan)`, whose `decay` argument adds the same term without a
    transformation. As for `optax.add_decayed_weights`, the position in the chain matters: before
    `optax.sgd(...)` it enters the momentum, as in the paper; between `optax.scale_by_adam()` and
    `optax.scale_by_learning_rate(...)` it is decoupled, since Adam would normalise it.

    Args:
      plan: The patterns; masks are recomputed at each step from the magnitudes.
      strength: lambda. 0 is the straight-through estimator; negative values are allowed.

    Returns:
      A transformation whose state has `count` and `masks`.

    Raises:
      ValueError: If `update` gets no parameters.

    Reference:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021
      (arXiv 2102.04010).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0], [1.0]])}
      >>> tx = sj.optim.sr_ste(sj.plan(params, sj.NM(1, 2)), strength=0.5)
      >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 1))}, tx.init(params), params)
      >>> updates["kernel"].ravel().tolist()
      [0.0, 0.5]
    """

    Plan.require("add_pruned_decay", plan)
    check_finite("sr_ste", strength=strength)

    def init(params):
        masks = plan.masks(magnitude(params))
        return PrunedDecayState(jnp.zeros((), jnp.int32), Masks(masks))

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        masks = plan.masks(magnitude(params))

        def pull(mask, u, p):
            if is_gap(mask) or u is None:
                return u
            return jnp.where(mask, u, u + (strength * p).astype(u.dtype))

        pulled = jax.tree.map(pull, masks, updates, params, is_leaf=is_gap)
        return pulled, PrunedDecayState(next_step(state.count), Masks(masks))

    return optax.GradientTransformationExtraArgs(init, update)


sr_ste = add_pruned_decay


@checked(rate="[0, inf)")
def mask_decay_schedule(
    kind: str, rate: float, *, begin: int = 0, end: int | None = None
) -> optax.Schedule:
    r"""The scale of pruned weights in MdGf: 1 before `begin`, decaying to 0.

    Linear `max(1 - rate * (t - begin), 0)`, exponential `exp(-rate * (t - begin))`; exactly 0 from
    step `end` on, so that exported weights are sparse.

    Args:
      kind: "linear" or "exponential".
      rate: Decay per step, >= 0.
      begin: Number of dense steps.
      end: First step of fine-tuning with binary masks; None never switches to them.

    Returns:
      An optax schedule, for `sj.optim.track_masks(plan, pruned_scale=...)`.

    Raises:
      ValueError: If kind is neither, rate is negative, or end comes before begin.

    Reference:
      Bambhaniya et al., Progressive Gradient Flow for Robust N:M Sparsity Training in
      Transformers, 2024 (arXiv 2402.04744).

    Example:
      >>> import sparsejax as sj
      >>> beta = sj.optim.mask_decay_schedule("linear", 0.25, begin=2)
      >>> [float(beta(t)) for t in (0, 2, 4, 6, 9)]
      [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if kind not in ("linear", "exponential"):
        raise ValueError(f'kind={kind!r} must be "linear" or "exponential".')
    check_step("mask_decay_schedule", "begin", begin)
    check_step("mask_decay_schedule", "end", end, optional=True)
    if not rate >= 0 or (end is not None and end < begin):
        raise ValueError(f"rate={rate} must be >= 0 and end={end} not before begin={begin}.")

    def schedule(count):
        steps = jnp.maximum(jnp.asarray(count) - begin, 0).astype(jnp.float32)
        linear = jnp.maximum(1 - rate * steps, 0)
        beta = linear if kind == "linear" else jnp.exp(-rate * steps)
        return beta if end is None else jnp.where(jnp.asarray(count) >= end, 0.0, beta)

    return schedule


@checked()
def stage_schedule(
    stages: int, total: int, *, dense: int = 0, fine_tune: int = 0
) -> optax.Schedule:
    r"""The fraction schedule of `sj.patterns.Stages` in SdGf: stages of equal length.

    Stage i (from 0) starts at step `dense + floor(i * (total - dense - fine_tune) / stages)`;
    the last stage is kept during fine-tuning.

    Args:
      stages: Number of patterns.
      total: Number of training steps.
      dense: Steps before the first pattern.
      fine_tune: Steps of fine-tuning after the stages.

    Returns:
      An optax schedule with values i / stages.

    Raises:
      ValueError: If no step remains between the dense and the fine-tuning phase.

    Reference:
      Bambhaniya et al., 2024 (arXiv 2402.04744).

    Example:
      >>> import sparsejax as sj
      >>> fraction = sj.optim.stage_schedule(2, total=10, dense=2)
      >>> [float(fraction(t)) for t in (0, 1, 2, 5, 6, 9)]
      [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    """
    given = {"stages": stages, "total": total, "dense": dense, "fine_tune": fine_tune}
    for name, value in given.items():
        check_step("stage_schedule", name, value)
    steps = total - dense - fine_tune
    if stages < 1 or steps < 1 or dense < 0 or fine_tune < 0:
        raise ValueError(
            f"stage_schedule(stages={stages}, total={total}, dense={dense}, "
            f"fine_tune={fine_tune}) leaves {steps} steps for the stages."
        )
    starts = np.asarray([dense + (i * steps) // stages for i in range(stages)])
    return lambda count: jnp.sum(jnp.asarray(count) >= starts) / stages
