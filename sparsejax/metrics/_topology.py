"""Mask dynamics: divergence, flips, exploration; and live units."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from .._arguments import check_not_nan, checked
from .._masks import History, count, masks_by_name, row_counts, steps_of
from .._sharding import on_host

Masks = PyTree


class Divergence(NamedTuple):
    """Number of positions whose status differs, in the whole network and per leaf by path."""

    total: Any
    leaves: dict[str, Any]


@checked()
def sad(masks_a: Masks, masks_b: Masks, normalize: Literal["weights"] | None = None) -> Divergence:
    r"""Sparse architecture divergence, `sum_l || E_b - E_a ||_0`.

    Counts kept -> pruned and pruned -> kept alike, so it is even if the count is fixed. May be
    called in a jitted step or a scan; leaves are then JAX scalars.

    Args:
      masks_a: A tree of boolean masks and None.
      masks_b: Masks of the same leaves.
      normalize: "weights" divides by the number of masked weights.

    Returns:
      `Divergence(total, leaves)`: Python ints (floats if normalised) outside of jit.

    Raises:
      ValueError: If the two trees do not have masks of the same leaves and shapes.

    Reference:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021
      (arXiv 2102.04010).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import sad
      >>> a, b = jnp.array([True, True, False]), jnp.array([False, True, True])
      >>> sad({"kernel": a}, {"kernel": b})
      Divergence(total=2, leaves={'kernel': 2})
    """
    if normalize not in (None, "weights"):
        raise ValueError(f'normalize={normalize!r} must be "weights" or None.')
    a, b = _same_leaves("sad", masks_by_name(masks_a), masks_by_name(masks_b))
    differing = {name: _count(_xor(a[name], b[name])) for name in a}
    total = sum(differing.values())
    if normalize is None:
        return Divergence(total, differing)
    sizes = {name: math.prod(m.shape) for name, m in a.items()}
    shares = {name: n / max(sizes[name], 1) for name, n in differing.items()}
    return Divergence(total / max(sum(sizes.values()), 1), shares)


@checked()
def mask_change(old: Masks, new: Masks) -> Any:
    r"""The replaced fraction of the masks, `|old xor new| / (2 max(|old|, |new|))`.

    0 if nothing changed, 1 if no kept entry is shared and the counts agree. |m| is the number of
    kept entries of all leaves together.

    Args:
      old: A tree of boolean masks and None.
      new: Masks of the same leaves.

    Returns:
      A float in [0, 1]; a JAX scalar in a jitted function.

    Raises:
      ValueError: If the two trees do not have masks of the same leaves and shapes.

    Reference:
      Liu and Wang, 2023 (arXiv 2302.02596).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import mask_change
      >>> mask_change(jnp.array([True, True, False]), jnp.array([False, True, True]))
      0.5
    """
    before, after = _same_leaves("mask_change", masks_by_name(old), masks_by_name(new))
    differing = sum(_count(_xor(before[name], after[name])) for name in before)
    kept = [sum(_count(m) for m in masks.values()) for masks in (before, after)]
    if any(isinstance(k, jax.Array) for k in kept):
        return differing / jnp.maximum(2 * jnp.maximum(*kept), 1)
    return differing / max(2 * max(kept), 1)


@checked()
def flip_rate(history: History) -> Float[np.ndarray, " changes"]:
    r"""Flips per weight between consecutive masks, `SAD_{t:t+1} / n`.

    Args:
      history: Masks over training: a list of trees, or a dict from steps to trees.

    Returns:
      One number for each consecutive pair in the history.

    Raises:
      ValueError: If the history holds no masks, or its trees have different leaves.

    Reference:
      Zhou et al., 2021 (arXiv 2102.04010).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import flip_rate
      >>> flip_rate([jnp.array([True, False]), jnp.array([False, True])]).tolist()
      [1.0]
    """
    steps = list(steps_of(history).values())
    pairs = zip(steps, steps[1:])
    return np.array([sad(a, b, "weights").total for a, b in pairs], np.float64)


@checked()
def exploration_rate(history: History) -> float:
    r"""R_s, the share of weights that were active at least once, `|union of masks| / n`.

    The in-time over-parameterisation of dynamic sparse training: 1 if every weight was active at
    some time, `1 - sparsity` if the mask never changed.

    Args:
      history: Masks over training: a list of trees, or a dict from steps to trees.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: If the history holds no masks, or its trees have different leaves.

    Reference:
      Liu et al., Do We Actually Need Dense Over-Parameterization?, 2021 (arXiv 2102.02887).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import exploration_rate
      >>> exploration_rate([jnp.array([True, False, False]), jnp.array([False, True, False])])
      0.6666666666666666
    """
    first, *others = steps_of(history).values()
    union = {name: on_host(m) for name, m in first.items()}
    for masks in others:
        _same_leaves("exploration_rate", union, masks)
        union = {name: m | on_host(masks[name]) for name, m in union.items()}
    return sum(map(count, union.values())) / sum(m.size for m in union.values())


@checked()
def live_units(
    incoming: Shaped[Array, "..."],
    bias: Shaped[Array, " units"] | None = None,
    *,
    outgoing: Shaped[Array, "..."] | None = None,
    axis: int = -1,
    outgoing_axis: int | None = None,
) -> Bool[Array, " units"]:
    r"""The live units: those with a non-zero input (or bias) and a non-zero output.

    `live_units(kernel, bias).sum()` is the number of live neurons of a layer. May be jitted.

    Args:
      incoming: Kernel or mask whose `axis` indexes the units.
      bias: Bias of the units: a non-zero bias keeps its unit alive without inputs.
      outgoing: Kernel or mask of the next layer, which must also use the unit.
      axis: The axis of `incoming` that indexes units.
      outgoing_axis: The axis of `outgoing` that indexes them, by default the second to last.

    Returns:
      A boolean per unit.

    Raises:
      ValueError: If the numbers of units disagree, or (outside of jit) an array holds NaN.

    Reference:
      Refael et al., Learning k-Level Structured Sparse Neural Networks Using Group Envelope
      Regularization, 2022 (arXiv 2212.12921).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import live_units
      >>> kernel, following = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[1.0], [0.0], [3.0]])
      >>> live_units(kernel, outgoing=following).tolist()
      [False, False, True]
    """
    given = {"incoming": incoming, "bias": bias, "outgoing": outgoing}
    check_not_nan("live_units", **{name: x for name, x in given.items() if x is not None})
    live = _any_but(incoming, axis)
    if bias is not None:
        live = live | _same_units(live, bias != 0, "the bias")
    if outgoing is None:
        return live
    used = _any_but(outgoing, -2 if outgoing_axis is None else outgoing_axis)
    return live & _same_units(live, used, "the outgoing kernel")


def _any_but(x: Shaped[Array, "..."], axis: int) -> Bool[Array, " units"]:
    others = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    return jnp.any(x != 0, axis=others)


def _same_units(live, other, what: str):
    if other.shape != live.shape:
        raise ValueError(
            f"live_units: there are {live.size} units but {what} has {other.size}; pass the axes "
            "of the units as axis= and outgoing_axis=."
        )
    return other


def _same_leaves(caller: str, a: dict[str, Any], b: dict[str, Any]):
    for name in sorted(a.keys() ^ b.keys()):
        raise ValueError(
            f"{caller}: only one of the two trees has a mask for {name or 'the parameter'}; "
            "compare masks of the same plan."
        )
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(
                f"{caller}: {name or 'the parameter'} has a mask of shape {a[name].shape} and one "
                f"of shape {b[name].shape}."
            )
    return a, b


def _xor(a: Any, b: Any) -> Any:
    return a ^ b if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else jnp.not_equal(a, b)


def _count(x: Any) -> Any:
    """A Python int; in a traced function an int32 scalar."""
    return jnp.sum(row_counts(x)) if isinstance(x, Tracer) else count(x)
