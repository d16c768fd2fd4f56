"""Dead latents pointed at inputs that are reconstructed badly."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, Shaped

from .._arguments import check_finite, checked
from .._steady import reset_moments
from ._norms import normalized, row_norms
from ._sae import SAE
from ._train import Trained, whole_optimizer


@checked(dead_after="[1, inf)", scale="(0, inf)")
def resample(
    sae: SAE,
    optimizer: optax.GradientTransformation,
    carry: Trained,
    x: Shaped[Array | np.ndarray, "n d"],
    *,
    key: Key[Array, ""],
    target: Shaped[Array | np.ndarray, "n e"] | None = None,
    grad: Shaped[Array | np.ndarray, "n d"] | None = None,
    dead_after: int = 12_500,
    scale: float = 0.2,
) -> Trained:
    r"""Reinitialises dead latents: each gets an input, drawn in proportion to its error.

    The decoder row becomes the centred input with norm 1, the encoder column that times `scale`
    times the mean norm of the columns of live latents, biases 0, and the optimizer's moments of
    these entries 0. Inputs are not drawn twice before all are.

    Args:
      sae: The autoencoder.
      optimizer: That of `train_step`.
      carry: From `train_step` or `train`.
      x: Inputs.
      key: A key made by `jax.random.key`.
      target: The targets of a transcoder; its decoder rows become those minus the decoder bias.
      grad: The gradients of `GradientTopK` at the inputs.
      dead_after: Steps without activity after which a latent is dead.
      scale: Size of the new encoder columns.

    Returns:
      The carry to continue from.

    Reference:
      Bricken et al., Towards Monosemanticity, Transformer Circuits, 2023.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sparsejax as sj
      >>> sae, adam = sj.sae.SAE(sj.sae.ReLU()), optax.adam(1e-3)
      >>> params = sae.init(2, 4, key=jax.random.key(0)) | {"b_enc": jnp.full(4, -9.0)}
      >>> carry = sj.sae.train_step(sae, adam, sj.sae.begin(sae, params, adam), jnp.eye(2))
      >>> carry = sj.sae.resample(sae, adam, carry, jnp.eye(2), key=jax.random.key(1), dead_after=1)
      >>> carry.params["b_enc"].tolist()
      [0.0, 0.0, 0.0, 0.0]
    """
    more = {"target": target, "grad": grad}
    check_finite("resample", x=x, **{name: a for name, a in more.items() if a is not None})
    return _resampled(sae, optimizer, carry, jnp.asarray(x), more, key, dead_after, scale)


@partial(jax.jit, static_argnames="optimizer")
def _resampled(
    sae: SAE, optimizer: Any, carry: Trained, x: Array, more: Any, key: Array,
    dead_after: Array, scale: Array,
) -> Trained:  # fmt: skip
    params, opt_state, state = carry
    dead = state.silent >= dead_after
    found = sae.run(params, x, **more)
    errors = row_norms(found.residual)
    # The order of exponential clocks is that of draws without replacement.
    order = jnp.argsort(-(jnp.log(errors) + jax.random.gumbel(key, errors.shape)))
    chosen = order[(jnp.cumsum(dead) - 1) % len(x)]
    inputs = normalized(found.context.x[chosen])
    rows = normalized(found.target[chosen] - params["b_dec"])
    new, where = dict(params), {name: jnp.zeros(p.shape, bool) for name, p in params.items()}
    for name, p in params.items():
        if name.startswith("b_") and name != "b_dec":
            new[name], where[name] = jnp.where(dead, 0, p), dead
    new["W_dec"] = jnp.where(dead[:, None], rows, params["W_dec"]).astype(params["W_dec"].dtype)
    where["W_dec"] = jnp.broadcast_to(dead[:, None], params["W_dec"].shape)
    if "W_enc" in params:
        live = jnp.where(dead, 0, row_norms(params["W_enc"].T))
        size = scale * jnp.sum(live) / jnp.maximum(jnp.sum(~dead), 1)
        size = jnp.where(size > 0, size, scale)
        columns = jnp.where(dead, size * inputs.T, params["W_enc"])
        new["W_enc"] = columns.astype(params["W_enc"].dtype)
        where["W_enc"] = jnp.broadcast_to(dead, params["W_enc"].shape)
    tx = whole_optimizer(optimizer, sae.constraint, "threshold" in params)
    opt_state = reset_moments(tx, opt_state, where)
    silent = jnp.where(dead, 0, state.silent)
    return Trained(new, opt_state, state._replace(silent=silent))
