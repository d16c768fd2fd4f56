"""Dynamic sparse training: masks that drop and grow during training, at a constant sparsity."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from .._topk import topk_mask
from .._tree import is_gap, map_named, named_leaves
from ..masks import Plan, magnitude, random
from ..masks._plan import check_plan
from ..patterns._pattern import Pooled
from ._check import check_fraction, check_optimizer, check_params, check_step
from ._pruning import at_step, masked_updates, next_step, reset_moments, zero_off

# What a grown entry is worth: a function of the gradients and a key.
Growth = Callable[[PyTree, Key[Array, ""]], PyTree]


class DynamicState(NamedTuple):
    """State of `rigl` and `set_`: the step, the masks, key data, the state of the optimizer.

    The key is kept as plain integers, which every checkpointer can store.
    """

    count: Int[Array, ""]
    masks: PyTree
    key: UInt[Array, "..."]
    inner: optax.OptState


def rigl(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    key: Key[Array, ""],
    *,
    end: int,
    every: ArrayLike = 100,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""RigL: drops the smallest weights and grows where the dense gradient is largest.

    At every `every`-th step t < `end`, of the n active units of a leaf the `floor(f_t n)` of
    smallest magnitude are dropped and as many grown at the largest `|g|` among the others,
    `f_t = drop_fraction / 2 (1 + cos(pi t / end))`. That step changes the mask instead of the
    weights, and the optimizer does not count it. Grown entries start at 0 with their moments
    reset, in any optimizer; one that is dropped and grown at once keeps both. The sparsity never
    changes.

    Args:
      optimizer: The optimizer, which sees gradients of active entries only.
      plan: What is sparse, usually `sj.plan(..., allocate=sj.masks.erk)`.
      key: Key of the random masks to start from.
      end: Step from which the masks stay, usually `int(0.75 * steps)` of a training of `steps`.
      every: Steps between two changes of the masks.
      drop_fraction: Fraction dropped at step 0, decayed by a cosine; or a schedule of its own.

    Returns:
      A transformation whose state has `count`, `masks`, `key` and `inner`. The first update makes
      the parameters sparse; `sj.masks.apply_masks(params, sj.get_masks(state))` does so before.

    Raises:
      ValueError: If a pattern of the plan cannot change (N:M), the masks are selected globally, or
        `update` gets no parameters.

    Reference:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019 (arXiv 1911.11134).

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.ones((8, 8))}
      >>> plan = sj.plan(params, sj.Unstructured(0.75))
      >>> tx = sj.optim.rigl(optax.adam(1e-3), plan, jax.random.key(0), end=750)
      >>> int(sj.get_masks(tx.init(params))["kernel"].sum())
      16
    """
    _check("rigl", optimizer, plan, every, end, drop_fraction)
    if not callable(drop_fraction):
        drop_fraction = optax.cosine_decay_schedule(drop_fraction, end)

    def gradient(grads, key):
        del key
        return magnitude(grads)

    return _dynamic(optimizer, plan, key, gradient, every, end, drop_fraction)


def set_(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    key: Key[Array, ""],
    *,
    end: int,
    every: ArrayLike = 100,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
) -> optax.GradientTransformationExtraArgs:
    r"""Sparse evolutionary training: drops the smallest weights and grows at random.

    As `rigl`, but grown positions are uniformly random among the inactive ones, and the fraction
    that is dropped is constant unless it is a schedule.

    Args:
      optimizer: The optimizer, which sees gradients of active entries only.
      plan: What is sparse, usually `sj.plan(..., allocate=sj.masks.erk)`.
      key: Key of the first masks and of all that is grown.
      end: Step from which the masks stay.
      every: Steps between two changes of the masks, usually an epoch.
      drop_fraction: Fraction of the active entries that is dropped: a number or a schedule.

    Returns:
      A transformation whose state has `count`, `masks`, `key` and `inner`.

    Raises:
      ValueError: As `rigl`.

    Reference:
      Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse
      Connectivity, 2018 (arXiv 1707.04780).

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> params = {"kernel": jnp.ones((8, 8))}
      >>> plan = sj.plan(params, sj.Unstructured(0.75))
      >>> tx = sj.optim.set_(optax.sgd(0.1), plan, jax.random.key(0), end=750)
      >>> int(sj.get_masks(tx.init(params))["kernel"].sum())
      16
    """
    _check("set_", optimizer, plan, every, end, drop_fraction)
    return _dynamic(optimizer, plan, key, random, every, end, drop_fraction)


def _dynamic(optimizer, plan, key, growth: Growth, every, end, drop_fraction):
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        first, rest = jax.random.split(key)
        masks = plan.masks(random(params, first))
        data = jax.random.key_data(rest)
        return DynamicState(jnp.zeros((), jnp.int32), masks, data, inner.init(params))

    def update(updates, state, params=None, **extra):
        check_params(params)
        due = (state.count > 0) & (state.count % every == 0) & (state.count < end)

        def change():
            dropped = at_step(drop_fraction, state.count)
            source = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(key))
            scores = growth(updates, jax.random.fold_in(source, state.count))
            masks = _drop_and_grow(plan, params, state.masks, scores, dropped)
            kept = jax.tree.map(_both, state.masks, masks, is_leaf=is_gap)
            grown = jax.tree.map(_only_new, state.masks, masks, is_leaf=is_gap)
            still = jax.tree.map(jnp.zeros_like, updates)
            return (
                zero_off(still, params, kept),
                masks,
                reset_moments(optimizer, state.inner, grown),
            )

        def descend():
            masked = masked_updates(updates, state.masks)
            moves, new = inner.update(masked, state.inner, params, **extra)
            moves = jax.tree.map(lambda m, u: m.astype(u.dtype), moves, updates)
            return zero_off(moves, params, state.masks), state.masks, new

        moves, masks, new = jax.lax.cond(due, change, descend)
        return moves, DynamicState(next_step(state.count), masks, state.key, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _drop_and_grow(plan: Plan, params, masks, scores, fraction) -> PyTree:
    weights, growing = named_leaves(params), named_leaves(scores)
    planned = {leaf.name: leaf for leaf in plan.leaves}

    def one(name, mask):
        leaf = planned[name]
        if leaf.zeros == 0:
            return mask
        # Slices of stacked layers, and units that stand or fall together, are the pattern's.
        pattern = cast(Pooled, leaf.pattern)  # checked by _check_plan
        pool = pattern.pool
        active = pool(mask.astype(jnp.float32)) > 0
        pairs = (active, pool(jnp.abs(weights[name])), pool(growing[name]))
        swap = lambda a, w, g: _swap(a, w, g, fraction)  # noqa: E731
        return pattern.expand(jax.vmap(swap)(*pairs), mask.shape)

    return map_named(one, masks)


def _swap(
    active: Bool[Array, "..."],
    weights: Float[Array, "..."],
    growing: Float[Array, "..."],
    fraction: ArrayLike,
) -> Bool[Array, "..."]:
    """`floor(fraction * active)` of the active units of least weight, against as many others."""
    count = jnp.sum(active, dtype=jnp.uint32)
    # A schedule in float32 meets a whole number from below: cos(pi / 2) is -4e-8.
    share = fraction * count.astype(jnp.float32)
    swapped = jnp.floor(share * (1 + 2**-22)).astype(jnp.uint32)
    swapped = jnp.minimum(swapped, count)
    # An active NaN is dropped first, but before what is not active.
    weights = jnp.where(jnp.isnan(weights), -jnp.inf, weights)
    kept = topk_mask(jnp.where(active, weights, jnp.nan), count - swapped)
    # At -inf nothing kept is grown again; a NaN gradient ranks below all others but above it.
    growing = jnp.where(jnp.isnan(growing), jnp.finfo(growing.dtype).min, growing)
    return kept | topk_mask(jnp.where(kept, -jnp.inf, growing), swapped)


def _both(old, new):
    return None if is_gap(old) else old & new


def _only_new(old, new):
    return None if is_gap(old) else new & ~old


def _check(what: str, optimizer, plan, every, end, drop_fraction) -> None:
    check_optimizer(what, optimizer)
    _check_plan(plan)
    check_step(what, "every", every, 1)
    check_step(what, "end", end)
    check_fraction(what, "drop_fraction", drop_fraction)


def _check_plan(plan: Plan) -> None:
    check_plan("dynamic sparse training", plan)
    if plan.together:
        raise ValueError(
            "dynamic sparse training keeps the sparsity of each leaf: plan with allocate="
            "sj.masks.erk instead of sj.masks.global_."
        )
    for leaf in plan.leaves:
        if not leaf.pattern.free:
            raise ValueError(
                f"{leaf.name}: {leaf.pattern!r} cannot drop and grow entry by entry; plan it with "
                "sj.Unstructured, sj.Block or sj.Channel."
            )
