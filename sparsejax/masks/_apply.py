"""Masks at work: masked both ways, or masked forward and dense backward."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from .._tree import map_named, named_leaves
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
    pruned_gradient: str = "full",
    decay: ArrayLike = 0.0,
) -> PyTree:
    r"""Masked forward, dense backward.

    Forward `m w + (1 - m) beta w`. Backward, with the gradient g of what the forward returned,
    `m g + (1 - m) (phi g + lambda w)`: `phi` is 1 for "full" and beta for "scaled".
    beta = lambda = 0 is the straight-through estimator, lambda > 0 SR-STE, a decaying beta the
    mask decay of MdGf.

    Args:
      params: A tree of arrays, the dense weights.
      masks: A tree of boolean arrays and None, looked up by path; or a `Plan`, whose masks are
        then computed from the magnitudes of `params` at each call.
      pruned_scale: beta, what multiplies the pruned weights in the forward pass.
      pruned_gradient: Whether pruned weights receive the "full" gradient or one "scaled" by beta.
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
    if pruned_gradient not in ("full", "scaled"):
        raise ValueError(f'pruned_gradient={pruned_gradient!r} must be "full" or "scaled".')
    if isinstance(masks, Plan):
        masks = masks.masks(magnitude(jax.lax.stop_gradient(params)))
    flow = 1.0 if pruned_gradient == "full" else pruned_scale
    scalars = [jnp.asarray(x, jnp.float32) for x in (pruned_scale, flow, decay)]
    return _map_masked(lambda w, m: _soft_mask(w, m, *scalars), params, masks)


@partial(jax.custom_vjp)
def _soft_mask(w, mask, scale, flow, decay):
    del flow, decay
    return jnp.where(mask, w, scale.astype(w.dtype) * w)


def _soft_mask_forward(w, mask, scale, flow, decay):
    return _soft_mask(w, mask, scale, flow, decay), (w, mask, flow, decay)


def _soft_mask_backward(residuals, g):
    w, mask, flow, decay = residuals
    pruned = flow.astype(g.dtype) * g + decay.astype(w.dtype) * w
    return jnp.where(mask, g, pruned), None, None, None, None


_soft_mask.defvjp(_soft_mask_forward, _soft_mask_backward)


def _map_masked(f, params: PyTree, masks: PyTree) -> PyTree:
    by_name = named_leaves(masks)
    leaves = named_leaves(params)
    unknown = [name for name in by_name if name not in leaves]
    if unknown:
        raise ValueError(
            f"there is a mask for {', '.join(unknown)} but no such parameter; "
            f"the parameters are {', '.join(leaves)}."
        )

    def one(name: str, w: Float[Array, "..."], mask: Bool[Array, "..."] | None):
        if mask is None:
            return w
        if jnp.shape(mask) != jnp.shape(w):
            raise ValueError(
                f"{name or 'the parameter'} has shape {jnp.shape(w)} and its mask shape "
                f"{jnp.shape(mask)}."
            )
        return f(w, mask)

    return map_named(one, params, by_name)
