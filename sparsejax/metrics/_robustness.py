"""Robustness: out-of-distribution inputs, adversarial inputs, gradient noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .._arguments import checked
from .._arrays import wide_dtype
from .._masks import masks_by_name
from .._tree import is_kernel, named_leaves, pure
from ..masks import Plan


@checked()
def max_softmax_probability(logits: Float[ArrayLike, "... classes"]) -> Float[Array, "..."]:
    r"""MSP, `max_c softmax(logits)_c`: an in-distribution score.

    Args:
      logits: Logits; the last axis indexes classes.

    Returns:
      The largest probability of each sample.

    Reference:
      Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution
      Examples, 2016 (arXiv 1610.02136).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import max_softmax_probability
      >>> max_softmax_probability(jnp.zeros((1, 4))).tolist()
      [0.25]
    """
    return jnp.max(jax.nn.softmax(jnp.asarray(logits), axis=-1), axis=-1)


@checked(epsilon="[0, inf)", loss_fn="loss_fn(inputs)")
def fgsm(
    loss_fn: Callable[[Array], Array],
    inputs: Float[Array, "*shape"],
    epsilon: ArrayLike,
    *,
    bounds: tuple[float, float] | None = None,
) -> Float[Array, "*shape"]:
    r"""Fast gradient sign method, `x + epsilon sign(grad loss(x))`.

    Args:
      loss_fn: The loss as a scalar function of the inputs.
      inputs: A batch of inputs.
      epsilon: Size of the step in each entry, such as 8 / 255 for pixels in [0, 1].
      bounds: Range of valid inputs; the result is clipped to it.

    Returns:
      The perturbed inputs.

    Reference:
      Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2014 (arXiv 1412.6572).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import fgsm
      >>> fgsm(lambda x: (x**2).sum(), jnp.array([0.5, -0.5]), 0.25).tolist()
      [0.75, -0.75]
    """
    gradient = jax.grad(loss_fn)(inputs)
    hostile = inputs + jnp.asarray(epsilon, inputs.dtype) * jnp.sign(gradient)
    return hostile if bounds is None else jnp.clip(hostile, *bounds)


@checked()
def gradient_noise(grads: PyTree, masks: PyTree | Plan | None = None) -> Float[Array, ""]:
    r"""Gradient noise, the mean over layers of `Var_i |g_i|`, entries of the layer.

    May be jitted; average it over the steps.

    Args:
      grads: Gradients as a tree like the parameters.
      masks: Selects the leaves with a mask, or those of a `Plan`; by default those named `kernel`
        or `weight`. All entries of a leaf are used, kept or not.

    Returns:
      A scalar.

    Raises:
      ValueError: If no leaf is selected.

    Reference:
      Bambhaniya et al., Progressive Gradient Flow for Robust N:M Sparsity Training in
      Transformers, 2024 (arXiv 2402.04744).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.metrics import gradient_noise
      >>> grads = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([9.0])}
      >>> float(gradient_noise(grads))
      1.0
    """
    leaves = named_leaves(pure(grads))
    if masks is None:
        chosen = [g for name, g in leaves.items() if is_kernel(name, g)]
    else:
        meant = masks if isinstance(masks, Plan) else masks_by_name(masks)
        chosen = [g for name, g in leaves.items() if name in meant]
    if not chosen:
        raise ValueError(
            "gradient_noise: no leaf named kernel or weight, or none that is masked; the leaves "
            f"are {', '.join(leaves)}. Select leaves with masks=."
        )
    wide = [g.astype(wide_dtype(g)) for g in chosen]
    return jnp.mean(jnp.stack([jnp.var(jnp.abs(g)) for g in wide]))
