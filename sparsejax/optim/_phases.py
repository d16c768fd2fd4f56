"""AC/DC: alternating compressed and decompressed phases."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from .._arguments import check_optimizer, check_some, check_step, check_updates, checked
from .._steady import reset_moments, steady
from ..masks import Masks, Plan, magnitude
from ._pruning import masked_updates, next_step, zero_off


class PhaseState(NamedTuple):
    """State of `acdc`: the step, the current masks, the state of the optimizer."""

    count: Int[Array, ""]
    masks: PyTree
    inner: optax.OptState


@checked()
def acdc(
    optimizer: optax.GradientTransformation, plan: Plan, phases: Sequence[tuple[int, int]]
) -> optax.GradientTransformationExtraArgs:
    r"""AC/DC: alternates compressed and dense phases, and ends with both models.

    The first step of a compressed phase selects the masks of the largest weights, which are fixed
    until the phase ends; parameters off the masks are exactly 0. In dense phases all weights train,
    previously pruned ones from 0; each switch to dense resets the moments of the optimizer to 0.

    Args:
      optimizer: The optimizer, which receives masked gradients in compressed phases.
      plan: The pruned leaves, usually with `allocate=sj.masks.joint`.
      phases: Compressed phases (first step, first step after); `acdc_phases(steps)` returns the
        published ones. For an open-ended last phase pass any large number.

    Returns:
      A transformation whose state has `count`, `masks` and `inner`.

    Raises:
      ValueError: If the phases overlap or are out of order, or `update` gets no parameters.

    Reference:
      Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks,
      2021 (arXiv 2106.12379).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0], [1.0]])}
      >>> tx = sj.optim.acdc(optax.sgd(0.5), sj.plan(params, sj.Unstructured(0.5)), [(1, 2)])
      >>> state, seen = tx.init(params), []
      >>> for _ in range(3):
      ...     updates, state = tx.update({"kernel": jnp.ones((2, 1))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     seen.append(params["kernel"].ravel().tolist())
      >>> seen
      [[2.5, 0.5], [2.0, 0.0], [1.5, -0.5]]
    """
    check_optimizer("acdc", optimizer)
    pairs = [tuple(np.atleast_1d(phase).tolist()) for phase in phases]
    bounds = [step for pair in pairs for step in pair]
    for step in bounds:
        check_step("acdc", "phases", step)
    if (
        not bounds
        or any(len(pair) != 2 for pair in pairs)
        or bounds != sorted(set(bounds))
        or bounds[0] < 0
    ):
        raise ValueError(
            f"acdc(phases={list(phases)}) must be (begin, end) pairs in order, begin < end, that "
            "do not touch: [(100, 200), (300, 500)]."
        )
    begins, ends = np.asarray(bounds[::2]), np.asarray(bounds[1::2])
    inner = steady(optimizer)

    Plan.require("acdc", plan)

    def init(params):
        masks = plan.full_masks(params)
        check_some("acdc", [leaf.name for leaf in plan.leaves], masks, params)
        return PhaseState(jnp.zeros((), jnp.int32), Masks(masks), inner.init(params))

    def update(updates, state, params=None, **extra):
        check_updates(updates, params)
        compress, release = jnp.any(state.count == begins), jnp.any(state.count == ends)
        full = plan.full_masks(params)
        # All True, and sharded as the parameters, also with explicit axes.
        every = jax.tree.map(lambda p: (p == p) | True, params)
        masks = jax.lax.cond(
            compress,
            lambda: plan.masks(magnitude(params)),
            lambda: jax.tree.map(lambda new, old: new & release | old, full, state.masks.tree),
        )
        old = reset_moments(optimizer, state.inner, every, release)
        moves, new = inner.update(masked_updates(updates, masks), old, params, **extra)
        return zero_off(moves, params, masks), PhaseState(next_step(state.count), Masks(masks), new)

    return optax.GradientTransformationExtraArgs(init, update)


@checked(warmup="[0, 1]", length="(0, 1]", last="[0, 1]")
def acdc_phases(
    steps: int, *, warmup: float = 0.1, length: float = 0.05, last: float = 0.15
) -> list[tuple[int, int]]:
    r"""The compressed phases of AC/DC: after a warm-up, alternating with dense phases.

    Args:
      steps: Length of training.
      warmup: Fraction of training that is dense at the start.
      length: Fraction of each phase, 5 of 100 epochs in the paper.
      last: Fraction of the last compressed phase, which follows a dense phase that takes the
        remaining steps.

    Returns:
      Pairs (first step, first step after); the last one ends with training.

    Raises:
      ValueError: If the fractions leave no steps for a phase.

    Reference:
      Peste et al., 2021 (arXiv 2106.12379).

    Example:
      >>> import sparsejax as sj
      >>> sj.optim.acdc_phases(100, warmup=0.1, length=0.1, last=0.2)
      [(10, 20), (30, 40), (50, 60), (80, 100)]
    """
    begin, final, each = round(steps * warmup), steps - round(steps * last), round(steps * length)
    if each < 1 or not 0 <= begin < final < steps:
        raise ValueError(
            f"acdc_phases({steps}, warmup={warmup}, length={length}, last={last}) leaves no steps "
            "for a phase."
        )
    starts = range(begin, final - 2 * each + 1, 2 * each)
    return [(start, start + each) for start in starts] + [(final, steps)]
