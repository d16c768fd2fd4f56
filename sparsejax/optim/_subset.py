"""Training of a given subset of entries; the others stay bit-identical under any optimizer."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .._arguments import check_masks, check_optimizer, checked, known, named_masks
from .._masks import count
from .._sharding import on_host
from .._steady import steady
from .._tree import is_gap, map_named, named_leaves, pure, register
from ..masks import Masks
from ._pruning import masked_updates


class SubsetState(NamedTuple):
    """State of `subset`: masks and optimizer state.

    If compact, both have the size of the selected entries: masks are stored as indices.
    """

    masks: PyTree
    inner: optax.OptState


@checked()
def subset(
    optimizer: optax.GradientTransformation, masks: PyTree, *, compact: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Trains the entries of a mask only: `u = m * optimizer(m * g)`.

    Unselected entries stay bit-identical under any optimizer, momentum and weight decay. A leaf
    without a mask is unchanged. If the full training clips gradients, clip by the norm of the full
    gradient before this transformation.

    Args:
      optimizer: The optimizer.
      masks: Boolean arrays by the path of the leaf, such as `sj.masks.update_mask(before, after)`.
      compact: Whether the optimizer receives the selected entries as vectors, so that its state has
        their size, and the masks are stored as indices of 4 bytes each (72 kB under Adam for 5 % of
        120 000 entries). The optimizer must then be elementwise (Adam, SGD; not Adafactor, which is
        rejected by the shapes of its state, nor Muon, which cannot be detected), and the masks must
        be concrete. Parameters that the optimizer needs are gathered, too.

    Returns:
      A transformation whose state has `masks` and `inner`.

    Raises:
      ValueError: If nothing is selected, a mask has another shape than its leaf or belongs to no
        leaf, or the optimizer is not elementwise although `compact`.
      TypeError: If a mask is not boolean.

    Reference:
      Mukherjee et al., Reinforcement Learning Finetunes Small Subnetworks in Large Language
      Models, 2025 (arXiv 2505.11711).

    Example:
      >>> import jax.numpy as jnp, optax, sparsejax as sj
      >>> params, masks = {"w": jnp.ones(3)}, {"w": jnp.array([True, False, True])}
      >>> tx = sj.optim.subset(optax.adamw(0.5), masks, compact=True)
      >>> state = tx.init(params)
      >>> updates, _ = tx.update({"w": jnp.ones(3)}, state, params)
      >>> new = optax.apply_updates(params, updates)
      >>> new["w"].round(2).tolist(), optax.tree.get(state, "mu")["w"].shape
      ([0.5, 1.0, 0.5], (2,))
    """
    check_optimizer("subset", optimizer)
    by_name = named_masks("subset", masks)
    _check_some_entry(by_name)
    inner = steady(optimizer)
    if compact:
        return _compact(optimizer, inner, by_name)

    def aligned(tree):
        """The masks of a tree: all False for leaves without a mask."""
        found = check_masks("subset", tree, by_name)

        def whole(mask, p):
            return jnp.zeros(p.shape, bool) if mask is None and not is_gap(p) else mask

        return jax.tree.map(whole, found, tree, is_leaf=is_gap)

    def init(params):
        found = check_masks("subset", params, by_name)
        return SubsetState(Masks(found, trainable=True), inner.init(params))

    def update(updates, state, params=None, **extra):
        found = aligned(updates)
        moves, new = inner.update(masked_updates(updates, found), state.inner, params, **extra)
        return masked_updates(moves, found, off=-0.0), SubsetState(state.masks, new)

    return optax.GradientTransformationExtraArgs(init, update)


@register
@dataclass(frozen=True)
class Places(Masks):
    """Masks as the flat indices of their True entries, with the shapes of the leaves by path."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), metadata=dict(static=True))

    @property
    def dense(self) -> PyTree:
        """Boolean arrays, stacked like the indices."""

        def mask(name, index, shape):
            del name
            flat = jnp.zeros(math.prod(shape), bool)
            whole = jnp.vectorize(lambda i: flat.at[i].set(True), signature="(k)->(n)")
            return whole(index).reshape(*index.shape[:-1], *shape)

        return map_named(mask, pure(self.tree), dict(self.shapes))


def _compact(
    optimizer: optax.GradientTransformation,
    inner: optax.GradientTransformationExtraArgs,
    masks: dict[str, Any],
) -> optax.GradientTransformationExtraArgs:
    """`subset` on vectors of the selected entries; it does not refer to the masks themselves."""
    places = {name: _places(name, mask) for name, mask in masks.items()}
    specs = {name: jax.ShapeDtypeStruct(mask.shape, bool) for name, mask in masks.items()}
    shapes = tuple((name, spec.shape) for name, spec in specs.items())

    def init(params):
        check_masks("subset", params, specs)
        _check_elementwise(optimizer, params)
        index = map_named(lambda name, x, at: at, params, jax.tree.map(jnp.asarray, places))
        few = map_named(_take, params, places)
        return SubsetState(Places(index, True, shapes), inner.init(few))

    def update(updates, state, params=None, **extra):
        index = named_leaves(state.masks.tree)
        few = None if params is None else map_named(_take, params, index)
        moves, new = inner.update(map_named(_take, updates, index), state.inner, few, **extra)

        def scatter(name, u, move, at):
            del name
            still = jnp.full_like(u, -0.0)  # adding it preserves -0 bit for bit
            return still if at is None else _put(still, move, at)

        moves = map_named(scatter, updates, named_leaves(moves), index)
        return moves, SubsetState(state.masks, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_some_entry(masks: dict[str, Any]) -> None:
    if known(*masks.values()) and not any(map(count, masks.values())):
        raise ValueError(
            "subset: the masks must select an entry, got none; lower the tolerance or "
            "threshold that made them."
        )


def _places(name: str, mask: Any) -> np.ndarray:
    """The flat indices of a mask; raises unless it is concrete and they fit."""
    if not known(mask):
        raise TypeError(
            f"subset(compact=True): the mask of {name or 'the parameter'} is traced, and the state "
            "has its size; make the masks outside of jit. Under optax.inject_hyperparams take them "
            "from outside of the factory, or pass static_args='masks'."
        )
    wide = mask.size > np.iinfo(np.int32).max
    if wide and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"subset(compact=True): {name} {mask.shape} has more than 2**31 entries, whose indices "
            "need 64 bits: set jax_enable_x64, or omit compact=True."
        )
    return np.flatnonzero(on_host(mask)).astype(np.int64 if wide else np.int32)


def _check_elementwise(optimizer: optax.GradientTransformation, params: PyTree) -> None:
    """Raises if the state has leaves of other shapes than their parameters, by shapes only."""
    if not named_leaves(params):
        return
    state = jax.eval_shape(optimizer.init, params)

    def check(p, moments):
        for moment in jax.tree.leaves(None if is_gap(p) else moments):
            if jnp.shape(moment) != jnp.shape(p):
                raise ValueError(
                    f"subset(compact=True) needs an elementwise optimizer such as optax.adam: this "
                    f"one has a state of shape {jnp.shape(moment)} for a parameter of shape "
                    f"{jnp.shape(p)}; omit compact=True."
                )

    def whole(moments, params):
        jax.tree.map(check, params, moments, is_leaf=is_gap)
        return moments

    optax.tree.map_params(optimizer, whole, state, params, is_leaf=lambda x: True)


def _take(name: str, x: Any, places: Any) -> Any:
    """The entries at the indices; None for a leaf without a mask."""
    del name
    return None if places is None else x.reshape(-1)[places]


def _put(x: Any, values: Any, places: Any) -> Any:
    flat = x.reshape(-1).at[places]
    sure = {"unique_indices": True, "indices_are_sorted": True}
    return flat.set(values.astype(x.dtype), **sure).reshape(x.shape)
