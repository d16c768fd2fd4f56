"""Models in which activations are replaced by reconstructions, ablated or steered."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked
from ..nn import replace
from ._collect import first, first_input, with_first
from ._sae import SAE, Weights, check_names


@checked()
def splice(model: Any, where: str, sae: SAE, params: Weights, *, error: bool = False) -> Any:
    r"""A copy of a model in which the output of a module is replaced by its reconstruction.

    Args:
      model: As for `sj.nn.replace`.
      where: Regular expression over the paths of modules.
      sae: The autoencoder; a transcoder reads the first input of the module.
      params: Its parameters.
      error: Whether to add the error `x - xhat` without gradient, so that the output is unchanged
        and gradients pass through the autoencoder.

    Returns:
      A model of the same framework.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> sae = sj.sae.SAE(sj.sae.TopK(1))
      >>> params = sae.init(3, 8, key=jax.random.key(0))
      >>> spliced = sj.sae.splice(model, "layers/0$", sae, params, error=True)
      >>> x = jnp.ones((2, 4))
      >>> bool(jnp.allclose(spliced(x), model(x), atol=1e-6))
      True
    """

    def reconstructed(path, call, *args, **kwargs):
        whole = call(*args, **kwargs)
        y = first(whole)
        z = sae(params, read_by(sae, args, y)).astype(y.dtype)
        return with_first(whole, z + lax.stop_gradient(y - z) if error else z)

    return replace(model, {where: reconstructed})


def read_by(sae: SAE, inputs: tuple[Any, ...], output: Array) -> Array:
    """The input of an autoencoder at a module: its output, or for a transcoder its first input."""
    return first_input(inputs) if sae.transcoder else output


@checked(value="(-inf, inf)")
def ablate(
    model: Any,
    where: str,
    sae: SAE,
    params: Weights,
    latents: Sequence[int],
    *,
    value: ArrayLike = 0.0,
) -> Any:
    r"""A copy of a model in which some latents have a fixed value; the error of x is kept.

    `x + sum_i (value - f_i) w_i` over the latents: all other latents, and what the autoencoder does
    not reconstruct, are unchanged.

    Args:
      model: As for `sj.nn.replace`.
      where: Regular expression over the paths of modules.
      sae: The autoencoder.
      params: Its parameters.
      latents: Indices of latents.
      value: Their value.

    Raises:
      ValueError: If an index is out of range or given twice.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> sae = sj.sae.SAE(sj.sae.ReLU())
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
      >>> y = sj.sae.ablate(model, "layers/0$", sae, params, [0])(jnp.ones((1, 2)))
      >>> bool(y[0, 0] <= 0)
      True
    """  # fmt: skip
    index = checked_latents("ablate: latents", latents, params)
    if len(np.unique(index)) < len(index):
        raise ValueError(f"ablate: latents must be distinct, got {latents!r:.80}.")

    def ablated(path, call, *args, **kwargs):
        whole = call(*args, **kwargs)
        y, x = first(whole), read_by(sae, args, first(whole))
        moved = (value - sae.encode(params, x)[..., index]) @ sae.rows(params)[index]
        return with_first(whole, y + (moved * sae.output_units(x).back).astype(y.dtype))

    return replace(model, {where: ablated})


@checked(strength="(-inf, inf)")
def steer(
    model: Any,
    where: str,
    sae: SAE,
    params: Weights,
    latent: int,
    strength: ArrayLike,
    *,
    relative: bool = True,
) -> Any:
    r"""A copy of a model in which a decoder row is added to an activation.

    `x + strength |x| w_i` for each token, or `x + strength w_i`; other parts are unchanged.

    Args:
      model: As for `sj.nn.replace`.
      where: Regular expression over the paths of modules.
      sae: The autoencoder.
      params: Its parameters.
      latent: i.
      strength: May be negative; may be traced.
      relative: Whether the strength is in units of the norm of each token.

    Raises:
      ValueError: If the index is out of range.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
      >>> sae = sj.sae.SAE(sj.sae.ReLU())
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> steered = sj.sae.steer(model, "layers/0$", sae, params, 1, 3.0, relative=False)
      >>> x = jnp.ones((1, 2))
      >>> (steered(x) - model(x)).round(4).tolist()
      [[0.0, 3.0]]
    """  # fmt: skip
    (index,) = checked_latents("steer: latent", [latent], params)

    def steered(path, call, *args, **kwargs):
        whole = call(*args, **kwargs)
        y = first(whole)
        size = jnp.linalg.norm(y.astype(jnp.float32), axis=-1, keepdims=True) if relative else 1.0
        moved = strength * size * params["W_dec"][index]
        return with_first(whole, y + moved.astype(y.dtype))

    return replace(model, {where: steered})


def checked_latents(what: str, latents: Any, params: Weights) -> np.ndarray:
    """Indices of latents as an array; raises unless each is one of the autoencoder's."""
    check_names(params, "W_dec")
    index, h = np.asarray(latents), params["W_dec"].shape[0]
    if index.ndim != 1 or index.dtype.kind not in "iu" or not index.size:
        raise ValueError(f"{what} must be integers, got {latents!r:.80}.")
    if index.min() < 0 or index.max() >= h:
        raise ValueError(f"{what} must be in [0, {h}), got {latents!r:.80}.")
    return index
