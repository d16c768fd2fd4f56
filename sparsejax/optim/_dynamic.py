"""Dynamic sparse training: masks that drop and grow during training, at a constant sparsity."""

import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Key, PyTree, UInt

from .._arguments import (
    check_key,
    check_optimizer,
    check_scheduled_fraction,
    check_step,
    check_updates,
    checked,
)
from .._counts import floor_of
from .._sharding import drawn_like, with_auto_axes
from .._steady import filled_gaps, reset_moments, steady, with_gaps
from .._topk import topk_mask
from .._tree import is_gap, map_named, named_leaves
from ..masks import Masks, Plan, PlannedLeaf, magnitude, random
from ._pruning import at_step, masked_updates, next_step, unless_nan, zero_off

# Maps parameters, gradients and a key to scores.
Score = Callable[[PyTree, PyTree, Key[Array, ""]], PyTree]


class DynamicState(NamedTuple):
    """State of `drop_and_grow`: the step, the masks, key data, the state of the optimizer.

    The key is kept as plain integers, which every checkpointer can store.
    """

    count: Int[Array, ""]
    masks: PyTree
    key: UInt[Array, "..."]
    inner: optax.OptState


@checked()
def rigl(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    *,
    key: Key[Array, ""],
    end: int,
    every: ArrayLike = 100,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""RigL: drops the smallest weights and grows where the dense gradient is largest.

    At every `every`-th step t < `end`, of the n active units of a leaf the `floor(f_t n)` of
    smallest magnitude are dropped and as many are grown at the largest `|g|` among the others,
    `f_t = drop_fraction / 2 (1 + cos(pi t / end))`. That step changes the mask instead of the
    weights, and the optimizer does not count it. Grown entries start at 0 with their moments reset,
    in any optimizer; one that is dropped and grown at once keeps both. The sparsity is constant.

    Args:
      optimizer: The optimizer, which receives gradients of active entries only.
      plan: The sparse leaves, usually `sj.plan(..., allocate=sj.masks.erk)`.
      key: Key of the random initial masks.
      end: Step from which the masks are fixed, usually `int(0.75 * steps)` of a training of
        `steps`.
      every: Steps between two changes of the masks.
      drop_fraction: Fraction dropped at step 0, decayed by a cosine; or a schedule.

    Returns:
      A transformation whose state has `count`, `masks`, `key` and `inner`. The first update makes
      the parameters sparse; `sj.masks.apply_masks(params, sj.get_masks(state))` does so before
      training.

    Raises:
      ValueError: If a pattern of the plan cannot change (N:M), the masks are selected globally, or
        `update` gets no parameters.

    Reference:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019 (arXiv 1911.11134).

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.ones((8, 8))}
      >>> plan = sj.plan(params, sj.Unstructured(0.75))
      >>> tx = sj.optim.rigl(optax.adam(1e-3), plan, key=jax.random.key(0), end=750)
      >>> int(sj.get_masks(tx.init(params))["kernel"].sum())
      16
    """
    _check("rigl", optimizer, plan, every, end, drop_fraction)
    if not callable(drop_fraction):
        drop_fraction = optax.cosine_decay_schedule(drop_fraction, end)
    return drop_and_grow(
        optimizer,
        plan,
        key=key,
        when=every_until(every, end),
        fraction=drop_fraction,
        grow=lambda params, grads, key: magnitude(grads),
    )


@checked()
def sparse_evolution(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    *,
    key: Key[Array, ""],
    end: int,
    every: ArrayLike = 100,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""Sparse evolutionary training: drops the smallest weights and grows at random.

    Like `rigl`, but grown positions are uniformly random among the inactive ones, and the dropped
    fraction is constant unless it is a schedule.

    Args:
      optimizer: The optimizer, which receives gradients of active entries only.
      plan: The sparse leaves, usually `sj.plan(..., allocate=sj.masks.erk)`.
      key: Key of the initial masks and of grown positions.
      end: Step from which the masks are fixed.
      every: Steps between two changes of the masks, usually an epoch.
      drop_fraction: Fraction of the active entries that is dropped: a number or a schedule.

    Returns:
      A transformation whose state has `count`, `masks`, `key` and `inner`.

    Raises:
      ValueError: As for `rigl`.

    Reference:
      Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse
      Connectivity, 2018 (arXiv 1707.04780).

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.ones((8, 8))}
      >>> plan = sj.plan(params, sj.Unstructured(0.75))
      >>> tx = sj.optim.sparse_evolution(optax.sgd(0.1), plan, key=jax.random.key(0), end=750)
      >>> int(sj.get_masks(tx.init(params))["kernel"].sum())
      16
    """
    _check("sparse_evolution", optimizer, plan, every, end, drop_fraction)
    return drop_and_grow(
        optimizer, plan, key=key, when=every_until(every, end), fraction=drop_fraction
    )


@checked(when="when(step)", drop="drop(params, grads, key)", grow="grow(params, grads, key)")
def drop_and_grow(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    *,
    key: Key[Array, ""],
    when: Callable[[Int[Array, ""]], Bool[Array, ""]],
    fraction: optax.ScalarOrSchedule = 0.3,
    drop: Score | None = None,
    grow: Score | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Dynamic sparse training with custom criteria for dropping and growing units.

    At a step t with `when(t)`, of the n active units of a leaf the `floor(f_t n)` of lowest drop
    score are dropped, and as many of the others with the highest grow score are grown. That step
    changes the mask instead of the weights, and the optimizer does not count it. Grown entries
    start at 0 with their moments reset, in any optimizer; one that is dropped and grown at once
    keeps both. The sparsity is constant.

    Args:
      optimizer: The optimizer, which receives gradients of active entries only.
      plan: The sparse leaves.
      key: Key of the random initial masks and of random scores.
      when: Function of the step, True if the masks change, such as `every_until(100, 75_000)`.
      fraction: Fraction of the active units to swap: a number or a schedule.
      drop: Function `(params, grads, key)` that returns scores; active units of lowest score are
        dropped. None means magnitudes.
      grow: The same; inactive units of highest score are grown. None means random.

    Returns:
      A transformation whose state has `count`, `masks`, `key` and `inner`.

    Raises:
      ValueError: If a pattern of the plan cannot change (N:M), the masks are selected jointly, or
        `update` gets no parameters.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.ones((8, 8))}
      >>> plan = sj.plan(params, sj.Unstructured(0.75))
      >>> tx = sj.optim.drop_and_grow(
      ...     optax.adam(1e-3), plan, key=jax.random.key(0), when=sj.optim.every_until(100, 750),
      ...     grow=lambda params, grads, key: sj.masks.saliency(params, grads))
      >>> int(sj.get_masks(tx.init(params))["kernel"].sum())
      16
    """
    check_optimizer("drop_and_grow", optimizer)
    check_key("key", key)
    check_scheduled_fraction("drop_and_grow", "fraction", fraction)
    _check_plan(plan)
    inner = steady(optimizer)
    drop = (lambda params, grads, key: magnitude(params)) if drop is None else drop
    grow = (lambda params, grads, key: _noise(params, key)) if grow is None else grow

    def init(params):
        first, rest = jax.random.split(key)
        masks = plan.masks(random(params, key=first))
        data = jax.random.key_data(rest)
        return DynamicState(jnp.zeros((), jnp.int32), Masks(masks), data, inner.init(params))

    def update(updates, state, params=None, **extra):
        check_updates(updates, params)
        masks = state.masks.tree

        swapped = at_step(fraction, state.count)

        def change():
            source = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key))
            now = jax.random.fold_in(source, state.count)
            grads = filled_gaps(updates, params)
            growing = with_gaps(grow(params, grads, now), updates)
            new = _drop_and_grow(plan, masks, drop(params, grads, now), growing, swapped)
            kept = jax.tree.map(_both, masks, new, is_leaf=is_gap)
            grown = jax.tree.map(_only_new, masks, new, is_leaf=is_gap)
            still = jax.tree.map(jnp.zeros_like, updates)
            moments = reset_moments(optimizer, state.inner, grown)
            return zero_off(still, params, kept), new, moments

        def descend():
            seen = masked_updates(updates, masks)
            moves, new = inner.update(seen, state.inner, params, **extra)
            moves = jax.tree.map(lambda u, m: m.astype(u.dtype), updates, moves)
            return zero_off(moves, params, masks), masks, new

        moves, masks_now, new = jax.lax.cond(when(state.count), change, descend)
        moves = unless_nan("drop_and_grow", moves, masks_now, fraction=swapped)
        return moves, DynamicState(next_step(state.count), Masks(masks_now), state.key, new)

    return optax.GradientTransformationExtraArgs(init, update)


@checked()
def every_until(every: ArrayLike, end: ArrayLike) -> Callable[[Int[Array, ""]], Bool[Array, ""]]:
    """True at every `every`-th step before `end`, but not at step 0, for `drop_and_grow`.

    Args:
      every: Steps between two changes.
      end: Step from which the masks are fixed.

    Example:
      >>> import sparsejax as sj
      >>> [t for t in range(10) if sj.optim.every_until(3, 9)(t)]
      [3, 6]
    """
    check_step("every_until", "every", every, 1)
    check_step("every_until", "end", end, optional=True)
    return lambda count: (count > 0) & (count % every == 0) & (count < end)


def _drop_and_grow(plan: Plan, masks, weights, growing, fraction) -> PyTree:
    planned = {leaf.name: leaf for leaf in plan.leaves if leaf.zeros}
    named = [named_leaves(tree) for tree in (masks, weights, growing)]
    present = [name for name in planned if all(name in tree for tree in named)]
    given = [{name: tree[name] for name in present} for tree in named]

    def swap(masks, weights, growing, fraction):
        return {
            name: _swapped(planned[name], mask, weights[name], growing[name], fraction)
            for name, mask in masks.items()
        }

    new = with_auto_axes(swap, *given, fraction, like=given[0])
    return map_named(lambda name, mask: new.get(name, mask), masks)


def _swapped(leaf: PlannedLeaf, mask, weights, growing, fraction) -> Bool[Array, "..."]:
    """Swaps `floor(fraction * active)` active units of least weight for as many others, per slice.

    The active entries are those of the mask. The count is exact.
    """
    pool = functools.partial(leaf.pattern.pool, layout=leaf.layout)
    active, weights, growing = leaf.pattern.active(mask, leaf.layout), pool(weights), pool(growing)
    axes = leaf.pattern.unit_axes(leaf.layout, active.ndim)
    count = jnp.sum(active, axes, dtype=jnp.uint32, keepdims=True)
    swapped = floor_of(fraction, count)
    # Drop active NaNs first, but rank them above inactive entries.
    weights = jnp.where(jnp.isnan(weights), -jnp.inf, weights)
    kept = topk_mask(jnp.where(active, weights, jnp.nan), count - swapped, axes)
    # Kept entries score -inf, so that they are not grown again; NaN gradients rank just above them.
    growing = jnp.where(jnp.isnan(growing), jnp.finfo(growing.dtype).min, growing)
    grown = topk_mask(jnp.where(kept, -jnp.inf, growing), swapped, axes)
    return leaf.pattern.expand(kept | grown, leaf.layout)


def _noise(params: PyTree, key: Key[Array, ""]) -> PyTree:
    """Uniform scores, a hash of a key for each leaf and of the index of each entry.

    Unlike `jax.random`, which takes four words an entry on CPUs, it needs no memory.
    """

    def one(name, leaf):
        leaf = jnp.asarray(leaf)

        def draw(key):
            found = jnp.zeros(leaf.shape, jnp.uint32)
            for axis, seed in enumerate(jax.random.bits(key, (len(leaf.shape),))):
                thin = [size if i == axis else 1 for i, size in enumerate(leaf.shape)]
                index = jax.lax.broadcasted_iota(jnp.uint32, thin, axis)
                found = _hash(found ^ _hash(index + seed))
            return (found >> 8).astype(jnp.float32) / 2**24

        return drawn_like(leaf, draw, jax.random.fold_in(key, zlib.crc32(name.encode())))

    return map_named(one, params)


def _hash(x: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """A permutation of 32-bit integers in which every bit of the result depends on every bit of x.

    The constants of Wellons, Prospecting for Hash Functions, 2018 (lowbias32).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _both(old, new):
    return None if is_gap(old) else old & new


def _only_new(old, new):
    return None if is_gap(old) else new & ~old


def _check(what: str, optimizer, plan, every, end, drop_fraction) -> None:
    check_optimizer(what, optimizer)
    _check_plan(plan)
    check_step(what, "every", every, 1)
    check_step(what, "end", end, optional=True)
    check_scheduled_fraction(what, "drop_fraction", drop_fraction)


def _check_plan(plan: Plan) -> None:
    Plan.require("dynamic sparse training", plan)
    if plan.joint:
        raise ValueError(
            "dynamic sparse training keeps the sparsity of each leaf; plan with allocate="
            "sj.masks.erk instead of sj.masks.joint."
        )
    for leaf in plan.leaves:
        if not (leaf.pattern.free and leaf.pattern.pooled):
            raise ValueError(
                f"{leaf.name}: {leaf.pattern!r} cannot drop and grow entry by entry; plan it with "
                "sj.Unstructured, sj.Block or sj.Channel."
            )
