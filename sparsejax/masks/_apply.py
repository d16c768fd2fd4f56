"""Application of masks: masked in both passes, or masked forward and dense backward."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree, Shaped

from .._arguments import check_masks, checked, named_masks
from .._arrays import wide_dtype
from .._frameworks import map_params
from .._tree import map_named
from ._plan import Plan
from ._score import magnitude


@checked()
def apply_masks(params: PyTree, masks: PyTree | None) -> PyTree:
    r"""The parameters with exact zeros off the masks: `where(m, w, 0)`, forward and backward.

    Leaves without a mask (None or absent) are unchanged.

    Args:
      params: A tree of arrays or a module.
      masks: A tree of boolean arrays and None, looked up by the path of the leaf.

    Returns:
      A tree like `params`, or a module of the same class that shares everything else with it.

    Raises:
      ValueError: If a mask has another shape than its leaf, or belongs to no leaf.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.masks.apply_masks(jnp.array([1.0, 2.0]), jnp.array([True, False])).tolist()
      [1.0, 0.0]
    """
    zero_off = lambda w, m: jnp.where(m, w, jnp.zeros_like(w))  # noqa: E731
    return map_params(params, lambda params: _map_masked("apply_masks", zero_off, params, masks))


@checked(pruned_scale="(-inf, inf)", decay="(-inf, inf)")
def straight_through(
    params: PyTree,
    masks: PyTree | Plan,
    *,
    pruned_scale: ArrayLike = 0.0,
    pruned_gradient: Literal["full", "scaled"] | None = None,
    decay: ArrayLike = 0.0,
) -> PyTree:
    r"""Masked forward, dense backward.

    Forward `m w + (1 - m) beta w`. Backward, with the gradient g with respect to the forward
    result, `m g + (1 - m) (phi g + lambda w)`: `phi` is 1 for "full" and beta for "scaled". With
    beta = lambda = 0 this is the straight-through estimator, with lambda > 0 SR-STE, with a
    decaying beta the mask decay of MdGf. Without lambda it has derivatives of every order and mode,
    in beta too. Use it inside the loss: an NNX module is returned with masked parameters and shares
    its other variables (batch statistics, dropout keys), which are updated as usual.

    Args:
      params: The dense weights: a tree of arrays or a module.
      masks: A tree of boolean arrays and None, looked up by path; or a `Plan`, whose masks are
        then computed from the magnitudes of `params` at each call.
      pruned_scale: beta, the factor of the pruned weights in the forward pass.
      pruned_gradient: Whether pruned weights receive the "full" gradient or one "scaled" by beta,
        as in MdGf; it must be given unless `pruned_scale` is the number 0, where None is "full".
      decay: lambda, the decay of pruned weights towards zero (added to their gradient).

    Returns:
      A tree like `params`, or a module of the same class that shares everything else with it.

    Raises:
      ValueError: If a mask has another shape than its leaf, or belongs to no leaf, or
        `pruned_scale` is given without `pruned_gradient`.

    Reference:
      Zhou et al., 2021 (arXiv 2102.04010); Bambhaniya et al., 2024 (arXiv 2402.04744).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> w, m = jnp.array([1.0, 2.0]), jnp.array([True, False])
      >>> jax.grad(lambda w: (sj.masks.straight_through(w, m) * 3.0).sum())(w).tolist()
      [3.0, 3.0]
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
      >>> plan = sj.plan(model, sj.NM(2, 4))
      >>> loss = lambda m: sj.masks.straight_through(m, plan)(jnp.ones((1, 4))).sum()
      >>> grads = nnx.grad(loss)(model)
      >>> float((grads["kernel"][...] != 0).mean()), float((model.kernel[...] == 0).mean())
      (1.0, 0.0)
    """
    plain = isinstance(pruned_scale, int | float) and pruned_scale == 0
    if pruned_gradient is None and not plain:
        raise ValueError(
            'straight_through: pruned_gradient must be "full" or "scaled" with pruned_scale; MdGf '
            'is pruned_gradient="scaled".'
        )
    full = pruned_gradient != "scaled"

    def see(w, mask):
        wide = wide_dtype(w)
        if not isinstance(decay, int | float) or decay != 0:
            w = _pulled(w, mask, jnp.asarray(decay, wide))
        return jnp.where(mask, w, _pruned(w, jnp.asarray(pruned_scale, wide), full))

    def straight(params):
        now = masks
        if isinstance(masks, Plan):
            now = masks.masks(magnitude(jax.lax.stop_gradient(params)))
        return _map_masked("straight_through", see, params, now)

    return map_params(params, straight)


def _pruned(w: Array, scale: Array, full: bool) -> Array:
    """`scale w`, 0 for a scale of 0 and any w, with the gradient 1 or scale in w."""
    finite = jnp.where(jnp.isfinite(w), w, jnp.zeros_like(w))
    fixed, fixed_scale = jax.lax.stop_gradient((finite, scale))
    value = jnp.where(scale == 0, fixed, jax.lax.stop_gradient(w)).astype(scale.dtype) * scale
    flow = finite - fixed
    part = flow if full else (flow.astype(scale.dtype) * fixed_scale).astype(w.dtype)
    return value.astype(w.dtype) + part


@jax.custom_vjp
def _pulled(w, mask, decay):
    """w, with a gradient that pulls entries off the mask to zero."""
    del mask, decay
    return w


def _pulled_forward(w, mask, decay):
    return w, (w, mask, decay)


def _pulled_backward(residuals, g):
    w, mask, decay = residuals
    pull = jnp.where(mask, 0, (decay * w.astype(decay.dtype)).astype(g.dtype))
    return g + pull.astype(g.dtype), None, None


_pulled.defvjp(_pulled_forward, _pulled_backward)


def _map_masked(what: str, f, params: PyTree, masks: PyTree) -> PyTree:
    by_name = named_masks(what, masks)
    check_masks(what, params, by_name)

    def one(name: str, w: Any, mask: Shaped[Array, "..."] | None):
        return w if mask is None else f(w, mask)

    return map_named(one, params, by_name)
