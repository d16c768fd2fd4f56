"""Scales moved from inputs and decoder rows into the weights, without another function."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from .._arguments import check_finite, checked, known
from .._sharding import on_host
from ._norms import row_norms
from ._sae import SAE, Params, Weights, check_names

# The parameters of a latent that scale with its pre-activation.
_SCALED = ("b_enc", "b_gate", "b_mag", "threshold")


@checked()
def fold_decoder_norm(sae: SAE, params: Weights) -> Params:
    r"""Parameters with decoder rows of norm 1 and the same reconstruction.

    `w_i / |w_i|`, and encoder columns, biases and thresholds times `|w_i|`: features are multiplied
    by it. Rows of norm 0 are unchanged.

    Args:
      sae: With an activation for which this is exact: `ReLU`, `Gated`, `JumpReLU`, `TopAFA`, or any
        top-k with `rescale=True`, whose features are unchanged.
      params: Its parameters.

    Raises:
      ValueError: For other activations: another latent may be selected.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"W_enc": jnp.eye(2), "W_dec": 4 * jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> sj.sae.fold_decoder_norm(sj.sae.SAE(sj.sae.ReLU()), params)["W_enc"].tolist()
      [[4.0, 0.0], [0.0, 4.0]]
    """
    if not (sae.activation.scales or sae.rescale):
        raise ValueError(
            f"fold_decoder_norm: sae must have rescale=True with {sae.activation}: otherwise other "
            "latents may be selected."
        )
    check_names(params, "W_dec")
    params = {name: jnp.asarray(p) for name, p in params.items()}
    norms = row_norms(params["W_dec"])
    norms = jnp.where(norms > 0, norms, 1)
    folded = {name: params[name] * norms.astype(params[name].dtype) for name in _SCALED
              if name in params}  # fmt: skip
    if "W_enc" in params:
        folded["W_enc"] = params["W_enc"] * norms.astype(params["W_enc"].dtype)
    folded["W_dec"] = (params["W_dec"] / norms[:, None]).astype(params["W_dec"].dtype)
    return params | folded


@checked()
def expected_scale(samples: Shaped[Array | np.ndarray, "n d"]) -> Float[Array, ""]:
    r"""`sqrt(d) / E |x|`, the scale of "expected_average_only_in".

    Train on `scale * x`, then `fold_scale(params, scale)` gives parameters for x itself.

    Args:
      samples: One sample a row.

    Raises:
      ValueError: If all samples are 0, or one is not finite.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> float(sj.sae.expected_scale(jnp.array([[3.0, 4.0, 0.0, 0.0]]))).__round__(3)
      0.4
    """
    check_finite("expected_scale", samples=samples)
    if known(samples) and not on_host(samples).any():
        raise ValueError(f"expected_scale: samples of shape {samples.shape} must not all be 0.")
    samples = jnp.asarray(samples)
    return samples.shape[-1] ** 0.5 / jnp.mean(row_norms(samples))


@checked(scale="(0, inf)")
def fold_scale(params: Weights, scale: ArrayLike) -> Params:
    """Parameters for inputs x of an autoencoder that was trained on `scale * x`.

    Features are unchanged; reconstructions are those of x.

    Args:
      params: The parameters.
      scale: From `expected_scale`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"W_enc": jnp.eye(1), "W_dec": jnp.eye(1), "b_dec": jnp.ones(1)}
      >>> {k: v.tolist() for k, v in sj.sae.fold_scale(params, 2.0).items()}["b_dec"]
      [0.5]
    """
    check_names(params)
    params = {name: jnp.asarray(p) for name, p in params.items()}
    new = params | {"W_dec": params["W_dec"] / scale, "b_dec": params["b_dec"] / scale}
    return new | ({"W_enc": params["W_enc"] * scale} if "W_enc" in params else {})
