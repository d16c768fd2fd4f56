"""An NNX model seen through masks inside a loss: masked forward, dense backward."""

from typing import TypeVar

from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import PyTree

from ..masks import Plan, straight_through

Module = TypeVar("Module", bound=nnx.Module)


def view(
    model: Module,
    masks: PyTree | Plan,
    *,
    pruned_scale: ArrayLike = 0.0,
    pruned_gradient: str | None = None,
    decay: ArrayLike = 0.0,
) -> Module:
    r"""The model with masked weights, for use inside a loss.

    Its parameters are `sj.masks.straight_through(params, masks)`: the forward pass is sparse, the
    gradients reach the dense weights, which stay as they are. Everything else (batch statistics,
    dropout keys) is shared with the model and moves by itself.

    Args:
      model: An NNX module; make the view inside the function that is differentiated.
      masks: A tree of masks such as `sj.get_masks(optimizer.opt_state)`, or a `Plan`, whose masks
        are then computed from the magnitudes at each call.
      pruned_scale: What multiplies the pruned weights in the forward pass (MdGf's beta).
      pruned_gradient: Whether pruned weights receive the "full" gradient or one "scaled" by beta;
        None is "full" if `pruned_scale` is the number 0 and "scaled", as in MdGf, otherwise.
      decay: Pull of the pruned weights towards zero (SR-STE's lambda).

    Returns:
      A module of the same class.

    Raises:
      TypeError: If the model is no NNX module.
      ValueError: If a mask has another shape than its leaf, or belongs to no leaf.

    Reference:
      Zhou et al., 2021 (arXiv 2102.04010).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
      >>> plan = sj.plan(model, sj.NM(2, 4))
      >>> grads = nnx.grad(lambda m: sj.nn.view(m, plan)(jnp.ones((1, 4))).sum())(model)
      >>> float((grads["kernel"][...] != 0).mean()), float((model.kernel[...] == 0).mean())
      (1.0, 0.0)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"view takes an NNX module, got a {type(model).__name__}; for plain or Linen "
            "parameters give the loss sj.masks.straight_through(params, masks, decay=...)."
        )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    seen = straight_through(
        nnx.as_pure(params),
        masks,
        pruned_scale=pruned_scale,
        pruned_gradient=pruned_gradient,
        decay=decay,
    )
    return nnx.merge(graphdef, seen, rest, copy=False)
