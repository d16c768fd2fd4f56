"""Masks in the optimizer state: pruning, fixed masks, masks that track dense weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from .._arguments import (
    check_masks,
    check_not_nan,
    check_schedule,
    check_scheduled_fraction,
    check_some,
    check_step,
    check_updates,
    checked,
    is_number,
    known,
    named_masks,
)
from .._arrays import common_dtype, zeros_for
from .._steady import filled_gaps
from .._tree import is_gap
from ..masks import Masks, Plan, magnitude


class PruneState(NamedTuple):
    """State of `prune`: the step and the current masks."""

    count: Int[Array, ""]
    masks: PyTree


@checked(score="score(params)")
def prune(
    plan: Plan,
    schedule: optax.ScalarOrSchedule = 1.0,
    *,
    every: ArrayLike = 1,
    begin: ArrayLike = 0,
    end: ArrayLike | None = None,
    score: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes the parameters along a schedule, with exact zeros.

    At an update of the masks, `m = plan.masks(score(p), schedule(step))`; at every step the new
    parameters are `p + u` where m and exactly 0 elsewhere: the update is `-p` there. In a chain of
    transformations, this should be the last one.

    Args:
      plan: The plan, from `sj.plan`.
      schedule: Fraction of the planned zeros to reach, in [0, 1]: a number or an optax schedule.
        `optax.polynomial_schedule(0, 1, power=3, ...)` is the cubic ramp of gradual pruning.
      every: Steps between two updates of the masks.
      begin: First step at which the masks are updated; until then nothing is pruned.
      end: Last step at which the masks are updated, also if it is not a multiple of `every`; None
        keeps updating them.
      score: Maps the parameters to scores, the largest of which are kept; None means magnitudes.

    Returns:
      A transformation whose state has `count` and `masks`.

    Raises:
      ValueError: If `update` gets no parameters, a planned leaf has changed its shape, no leaf is
        planned, `every` is less than 1 or `end` comes before `begin`. NaN from the schedule, or as
        the score of a kept entry, raises too; under jit it makes the updates NaN.

    Reference:
      Zhu and Gupta, To prune, or not to prune, 2017 (arXiv 1710.01878).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [2.0, 4.0]])}
      >>> plan = sj.plan(params, sj.Unstructured(0.5))
      >>> tx = optax.chain(optax.sgd(1.0), sj.optim.prune(plan))
      >>> updates, state = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["kernel"].tolist()
      [[2.0, 0.0], [0.0, 3.0]]
    """

    Plan.require("prune", plan)
    check_scheduled_fraction("prune", "schedule", schedule)
    check_step("prune", "every", every, 1)
    check_step("prune", "begin", begin)
    check_step("prune", "end", end, optional=True)
    if is_number(begin) and is_number(end) and end < begin:
        raise ValueError(f"prune(begin={begin}, end={end}) ends before it begins.")

    def init(params):
        masks = plan.full_masks(params)
        check_some("prune", [leaf.name for leaf in plan.leaves], masks, params)
        return PruneState(jnp.zeros((), jnp.int32), Masks(masks))

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        count, fraction = state.count, at_step(schedule, state.count)
        due = (count >= begin) & ((count - begin) % every == 0)
        if end is not None:
            due = (due & (count <= end)) | ((count == end) & (count >= begin))

        def new_masks():
            scores = (magnitude if score is None else score)(params)
            masks = plan.masks(scores, fraction)
            return masks, _least_kept(scores, masks)

        none = zeros_for((), jnp.float32, *jax.tree.leaves(state.masks.tree))
        masks, least = jax.lax.cond(due, new_masks, lambda: (state.masks.tree, none))
        moves = zero_off(updates, params, masks)
        moves = unless_nan("prune", moves, masks, schedule=fraction, scores=least)
        return moves, PruneState(next_step(count), Masks(masks))

    return optax.GradientTransformationExtraArgs(init, update)


class KeepState(NamedTuple):
    """State of `keep_masked`: the masks."""

    masks: PyTree


@checked()
def keep_masked(masks: PyTree | None) -> optax.GradientTransformationExtraArgs:
    r"""Keeps given masks: new parameters are `p + u` where kept and exactly 0 elsewhere.

    In a chain of transformations, this should be the last one. The parameters become sparse at
    the first update; `sj.masks.apply_masks(params, masks)` does so before training.

    Args:
      masks: A tree of boolean arrays and None, looked up by the path of the leaf.

    Returns:
      A transformation whose state has `masks`.

    Raises:
      ValueError: If a mask has another shape than its leaf or belongs to no leaf, or `update`
        gets no parameters.
      TypeError: If a mask is not boolean.

    Reference:
      Liu et al., The Unreasonable Effectiveness of Random Pruning, 2022 (arXiv 2202.02643).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params, masks = {"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([True, False])}
      >>> tx = optax.chain(optax.sgd(1.0), sj.optim.keep_masked(masks))
      >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [2.0, 0.0]
    """
    by_name = named_masks("keep_masked", masks)

    def init(params):
        return KeepState(Masks(check_masks("keep_masked", params, by_name)))

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        return zero_off(updates, params, state.masks.tree), state

    return optax.GradientTransformationExtraArgs(init, update)


class TrackState(NamedTuple):
    """State of `track_masks`: the step, the masks of the weights, the scale of pruned weights."""

    count: Int[Array, ""]
    masks: PyTree
    pruned_scale: Array


@checked(pruned_scale="[0, inf)")
def track_masks(
    plan: Plan,
    schedule: optax.ScalarOrSchedule = 1.0,
    *,
    pruned_scale: optax.ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Tracks the masks of the dense weights, for losses with a masked forward pass.

    The updates are unchanged; the state holds `plan.masks(|p + u|, schedule(t))` and
    `pruned_scale(t)` of the next step t, for `sj.masks.straight_through`. In a chain of
    transformations, this should be the last one. With a constant schedule this is the
    straight-through estimator (SR-STE with `decay` in `straight_through`), with a decaying
    `pruned_scale` MdGf, with `Stages` and a `stage_schedule` SdGf.

    Args:
      plan: The patterns.
      schedule: Fraction of the planned zeros in force: a number or an optax schedule.
      pruned_scale: Factor of the pruned weights in the forward pass.

    Returns:
      A transformation whose state has `count`, `masks` and `pruned_scale`.

    Raises:
      ValueError: If `update` gets no parameters.

    Reference:
      Zhou et al., 2021 (arXiv 2102.04010); Bambhaniya et al., 2024 (arXiv 2402.04744).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.array([[3.0], [1.0], [2.0], [4.0]])}
      >>> tx = optax.chain(optax.sgd(1.0), sj.optim.track_masks(sj.plan(params, sj.NM(1, 2))))
      >>> sj.get_masks(tx.init(params))["kernel"].ravel().tolist()
      [True, False, False, True]
    """

    Plan.require("track_masks", plan)
    check_scheduled_fraction("track_masks", "schedule", schedule)
    check_schedule("track_masks", "pruned_scale", pruned_scale)

    def state_at(count, params):
        masks = plan.masks(magnitude(params), at_step(schedule, count))
        scale = jnp.asarray(at_step(pruned_scale, count), jnp.float32)
        return TrackState(count, Masks(masks), scale)

    def init(params):
        return state_at(jnp.zeros((), jnp.int32), params)

    def update(updates, state, params=None, **extra):
        del extra
        check_updates(updates, params)
        moved = optax.apply_updates(params, filled_gaps(updates, params))  # pyright: ignore
        new = state_at(next_step(state.count), moved)
        fraction = at_step(schedule, new.count)
        return unless_nan("track_masks", updates, new.masks.tree, schedule=fraction), new

    return optax.GradientTransformationExtraArgs(init, update)


@checked()
def get_masks(opt_state: PyTree) -> PyTree:
    r"""The masks in any nested optimizer state, merged, as a tree like the parameters.

    Works through `chain`, `partition`, `MultiSteps`, `inject_hyperparams` and `nnx.Optimizer`.
    If two transformations have a mask for the same leaf, the later one wins; masks that mark
    trainable entries, not zeros (`subset`), are used only if no other mask exists.

    Args:
      opt_state: An optax state, or `nnx.Optimizer.opt_state`.

    Returns:
      Boolean arrays; None for leaves without a mask, and for branches that no transformation with
      masks handles.

    Raises:
      ValueError: If no transformation in the state has masks.

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> tx = optax.chain(optax.adam(1e-3), sj.optim.prune(sj.plan(params, sj.Unstructured(0.5))))
      >>> sj.get_masks(tx.init(params))["bias"] is None
      True
    """
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=_is_masks) if _is_masks(x)]
    if not found:
        raise ValueError(
            "get_masks: opt_state, the state of an optimizer, has no masks; chain sj.optim.prune, "
            "keep_masked or track_masks into the optimizer, and pass tx.init(params), not tx."
        )
    # Stable sort: masks of trainable entries come first and are overridden.
    found.sort(key=lambda x: not x.trainable)
    merged = functools.reduce(_merge, [x.dense for x in found])
    return jax.tree.map(lambda m: None if is_gap(m) else m, merged, is_leaf=is_gap)


def _is_masks(x: Any) -> bool:
    return isinstance(x, Masks)


def _merge(first: PyTree, later: PyTree) -> PyTree:
    """Leaves of `later`, otherwise of `first`; a gap may represent a whole branch."""
    if is_gap(first) or is_gap(later):
        return first if is_gap(later) else later
    branch = jax.tree.structure(first, is_leaf=lambda x: x is not first)
    if jax.tree_util.treedef_is_leaf(branch):
        return later
    pairs = zip(branch.flatten_up_to(first), branch.flatten_up_to(later))
    return branch.unflatten([_merge(*pair) for pair in pairs])


def zero_off(updates: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    """Updates that make the parameters exactly 0 off the masks and are unchanged elsewhere."""

    def one(mask, update, param):
        if mask is None or update is None or is_gap(mask):
            return update
        # In the wider dtype of both: an update narrower than -p would leave p + u different from 0.
        dtype = common_dtype(update, param)
        return jnp.where(mask, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(one, masks, updates, params, is_leaf=is_gap)


def masked_updates(updates: PyTree, masks: PyTree, off: float = 0.0) -> PyTree:
    """The updates, 0 off the masks; adding `off=-0.0` preserves -0 bit for bit."""

    def one(mask, u):
        return u if is_gap(mask) or is_gap(u) else jnp.where(mask, u, jnp.full_like(u, off))

    return jax.tree.map(one, masks, updates, is_leaf=is_gap)


def unless_nan(what: str, updates: PyTree, masks: PyTree, **numbers: Any) -> PyTree:
    """The updates; NaN for masked leaves if a schedule returned NaN, with which masks are full.

    Raises if the number is concrete.
    """
    check_not_nan(what, **numbers)
    if known(*numbers.values()):
        return updates
    lost = jnp.any(jnp.stack([jnp.isnan(x) for x in numbers.values()]))

    def one(mask, u):
        return u if is_gap(mask) or is_gap(u) else jnp.where(lost, jnp.full_like(u, jnp.nan), u)

    return jax.tree.map(one, masks, updates, is_leaf=is_gap)


def _least_kept(scores: PyTree, masks: PyTree) -> Array:
    """NaN if NaN scores are kept in a leaf from which others are pruned, else 0."""

    def one(mask, score):
        if is_gap(mask) or not jnp.issubdtype(score.dtype, jnp.inexact):
            return False
        return jnp.any(mask & jnp.isnan(score)) & ~jnp.all(mask)

    lost = jax.tree.leaves(jax.tree.map(one, masks, scores, is_leaf=is_gap))
    found = functools.reduce(jnp.logical_or, lost, False)
    return jnp.where(found, jnp.nan, 0.0).astype(jnp.float32)


def next_step(count: Int[Array, ""]) -> Int[Array, ""]:
    """The next step; saturates at the largest integer."""
    return jnp.asarray(optax.safe_increment(count))


def at_step(schedule: optax.ScalarOrSchedule, count: Int[Array, ""]) -> Any:
    """The value of a number or a schedule at a step."""
    return schedule(count) if callable(schedule) else schedule
