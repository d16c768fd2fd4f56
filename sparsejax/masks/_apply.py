"""Masks at work: masked both ways, or masked forward and dense backward."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree, Shaped

from .._tree import check_known, map_named, named_leaves
from ._plan import Plan
from ._score import magnitude


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    r"""The parameters with exact zeros off the masks: `where(m, w, 0)`, forward and backward.

    Leaves without a mask (None or absent) pass through.

    Args:
      params: A tree of arrays.
      masks: A tree of boolean arrays and None, looked up by the path of the leaf.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If a mask has another shape than its leaf, or belongs to no leaf.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.apply_masks(jnp.array([1.0, 2.0]), jnp.array([True, False])).tolist()
      [1.0, 0.0]
    """
    zero_off = lambda w, m: jnp.where(m, w, jnp.zeros_like(w))  # noqa: E731
    return _map_masked(zero_off, params, masks)


def straight_through(
    params: PyTree,
    masks: PyTree | Plan,
    *,
    pruned_scale: ArrayLike = 0.0,
    pruned_gradient: str | None = None,
    decay: ArrayLike = 0.0,
) -> PyTree:
    r"""Masked forward, dense backward.

    Forward `m w + (1 - m) beta w`. Backward, with the gradient g of what the forward returned,
    `m g + (1 - m) (phi g + lambda w)`: `phi` is 1 for "full" and beta for "scaled". With
    beta = lambda = 0 this is the straight-through estimator, with lambda > 0 SR-STE, with a
    decaying beta the mask decay of MdGf. Without lambda it has derivatives of every order and
    mode, in beta too.

    Args:
      params: A tree of arrays, the dense weights.
      masks: A tree of boolean arrays and None, looked up by path; or a `Plan`, whose masks are
        then computed from the magnitudes of `params` at each call.
      pruned_scale: beta, what multiplies the pruned weights in the forward pass.
      pruned_gradient: Whether pruned weights receive the "full" gradient or one "scaled" by beta;
        None is "full" if `pruned_scale` is the number 0 and "scaled", as in MdGf, otherwise.
      decay: lambda, the pull of pruned weights towards zero (added to their gradient).

    Returns:
      A tree like `params`.

    Raises:
      ValueError: If a mask has another shape than its leaf, or belongs to no leaf.

    Reference:
      Zhou et al., 2021 (arXiv 2102.04010); Bambhaniya et al., 2024 (arXiv 2402.04744).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> w, m = jnp.array([1.0, 2.0]), jnp.array([True, False])
      >>> jax.grad(lambda w: (sj.masks.straight_through(w, m) * 3.0).sum())(w).tolist()
      [3.0, 3.0]
    """
    if pruned_gradient not in (None, "full", "scaled"):
        raise ValueError(f'pruned_gradient={pruned_gradient!r} must be "full" or "scaled".')
    if isinstance(masks, Plan):
        masks = masks.masks(magnitude(jax.lax.stop_gradient(params)))
    plain = isinstance(pruned_scale, int | float) and pruned_scale == 0
    full = plain if pruned_gradient is None else pruned_gradient == "full"

    def see(w, mask):
        wide = jnp.promote_types(w.dtype, jnp.float32)
        if not isinstance(decay, int | float) or decay != 0:
            w = _pulled(w, mask, jnp.asarray(decay, wide))
        return jnp.where(mask, w, _pruned(w, jnp.asarray(pruned_scale, wide), full))

    return _map_masked(see, params, masks)


def _pruned(w: Array, scale: Array, full: bool) -> Array:
    """`scale w`, 0 for a scale of 0 whatever w is, with the gradient 1 or scale in w."""
    finite = jnp.where(jnp.isfinite(w), w, jnp.zeros_like(w))
    fixed, fixed_scale = jax.lax.stop_gradient((finite, scale))
    value = jnp.where(scale == 0, fixed, jax.lax.stop_gradient(w)) * scale
    flow = finite - fixed
    return value.astype(w.dtype) + (flow if full else (flow * fixed_scale).astype(w.dtype))


@jax.custom_vjp
def _pulled(w, mask, decay):
    """w, whose gradient pulls what is off the mask to zero."""
    del mask, decay
    return w


def _pulled_forward(w, mask, decay):
    return w, (w, mask, decay)


def _pulled_backward(residuals, g):
    w, mask, decay = residuals
    pull = jnp.where(mask, 0, (decay * w).astype(g.dtype))
    return g + pull.astype(g.dtype), None, None


_pulled.defvjp(_pulled_forward, _pulled_backward)


def _map_masked(f, params: PyTree, masks: PyTree) -> PyTree:
    if isinstance(masks, Plan):
        raise TypeError("apply_masks takes masks, got a plan; plan.masks(scores) makes them.")
    by_name = named_leaves(masks)
    leaves = named_leaves(params)
    check_known(by_name, leaves)

    def one(name: str, w: Any, mask: Shaped[Array, "..."] | None):
        if mask is None:
            return w
        if jnp.asarray(mask).dtype != bool:
            raise TypeError(
                f"the mask of {name or 'the parameter'} holds {jnp.asarray(mask).dtype}, not "
                "booleans; True means kept: pass mask != 0."
            )
        if jnp.shape(mask) != jnp.shape(w):
            raise ValueError(
                f"{name or 'the parameter'} has shape {jnp.shape(w)} and its mask shape "
                f"{jnp.shape(mask)}."
            )
        return f(w, mask)

    return map_named(one, params, by_name)
