"""Losses of models with reconstructed activations, and effects of steering."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._arguments import check_one, checked
from ..nn import replace
from ._collect import first, with_first
from ._intervene import checked_latents, splice, steer
from ._sae import SAE, Weights


class Fidelity(NamedTuple):
    """Losses of a model, and divergences from its outputs, from `fidelity`.

    Attributes:
      clean: Loss of the model.
      spliced: Loss with reconstructions.
      ablated: Loss with the activation replaced by 0, or by its mean.
      recovered: `(ablated - spliced) / (ablated - clean)`.
      kl_spliced: KL(clean, spliced) of the outputs, per token.
      kl_ablated: KL(clean, ablated).
      kl_recovered: `(kl_ablated - kl_spliced) / kl_ablated`.
    """

    clean: float
    spliced: float
    ablated: float
    recovered: float
    kl_spliced: float
    kl_ablated: float
    kl_recovered: float


@checked(loss="loss(logits, batch)")
def fidelity(
    model: Any,
    where: str,
    sae: SAE,
    params: Weights,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
    *,
    ablation: Literal["zero", "mean"] = "zero",
    call: Callable[[Any, Any], Any] | None = None,
) -> Fidelity:
    r"""The loss and the outputs of a model with reconstructions at one place.

    Args:
      model: As for `sj.nn.replace`.
      where: Regular expression over the paths of modules.
      sae: The autoencoder; selections by `GradientTopK` need labels, use `TopK` here.
      params: Its parameters.
      batches: Inputs of the model, all of one size.
      loss: Function of the logits and the batch that returns the mean over tokens.
      ablation: Reference of no information: 0, or the mean over the tokens of a batch.
      call: Calls the model, `lambda model, batch: model(batch)` by default.

    Raises:
      ValueError: If there is no batch.

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 3, rngs=rngs))
      >>> sae = sj.sae.SAE(sj.sae.ReLU())
      >>> both = jnp.concatenate([jnp.eye(2), -jnp.eye(2)])
      >>> params = {"W_enc": both.T, "W_dec": both, "b_dec": jnp.zeros(2)}
      >>> loss = lambda logits, batch: -jax.nn.log_softmax(logits)[:, 0].mean()
      >>> sj.sae.fidelity(model, "layers/0$", sae, params, [jnp.ones((3, 2))], loss).recovered
      1.0
    """
    call = (lambda model, batch: model(batch)) if call is None else call
    reference = _zero if ablation == "zero" else _mean
    models = (
        model, splice(model, where, sae, params), replace(model, {where: reference})
    )  # fmt: skip

    @jax.jit
    def measured(batch):
        outputs = [call(m, batch) for m in models]
        losses = [check_one("fidelity: loss", loss(y, batch)) for y in outputs]
        return *losses, _kl(outputs[0], outputs[1]), _kl(outputs[0], outputs[2])

    found = [[float(x) for x in measured(batch)] for batch in batches]
    if not found:
        raise ValueError("fidelity: batches must have at least one batch, got none.")
    clean, spliced, ablated, near, far = (sum(column) / len(found) for column in zip(*found))
    lost = ablated - clean
    return Fidelity(
        clean, spliced, ablated, (ablated - spliced) / lost if lost else float("nan"),
        near, far, (far - near) / far if far else float("nan"),
    )  # fmt: skip


def _zero(path: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    whole = call(*args, **kwargs)
    return with_first(whole, jnp.zeros_like(first(whole)))


def _mean(path: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    whole = call(*args, **kwargs)
    y = first(whole)
    mean = jnp.mean(y.astype(jnp.float32), axis=tuple(range(y.ndim - 1)))
    return with_first(whole, jnp.broadcast_to(mean.astype(y.dtype), y.shape))


def _kl(logits: Array, others: Array) -> Array:
    """The mean divergence per token."""
    p, q = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, others))
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


@checked(strength="(-inf, inf)")
def steering_effect(
    model: Any,
    where: str,
    sae: SAE,
    params: Weights,
    latents: Sequence[int],
    batch: Any,
    strength: ArrayLike = 1.0,
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    r"""The change of the outputs of a model that is steered by a latent.

    Args:
      model: As for `sj.nn.replace`.
      where: Regular expression over the paths of modules.
      sae: The autoencoder.
      params: Its parameters.
      latents: Indices of latents.
      batch: Input of the model, in any contexts.
      strength: In units of the norm of each token, as for `steer`.

    Returns:
      For each latent the mean absolute change of a logit, and KL(clean, steered) per token.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
      >>> params = {"W_enc": jnp.eye(2), "W_dec": jnp.eye(2), "b_dec": jnp.zeros(2)}
      >>> sae = sj.sae.SAE(sj.sae.ReLU())
      >>> change, kl = sj.sae.steering_effect(model, "", sae, params, [0, 1], jnp.ones((1, 2)))
      >>> change.shape, bool((kl > 0).all())
      ((2,), True)
    """
    rows = jnp.asarray(params["W_dec"])
    index = checked_latents("steering_effect: latents", latents, params)
    steer(model, where, sae, params, int(index[0]), strength)  # checks the model
    clean = model(batch)

    @jax.jit
    def effect(latent):
        one = {**params, "W_dec": rows[latent][None]}
        steered = steer(model, where, sae, one, 0, strength)(batch)
        difference = jnp.abs(steered.astype(jnp.float32) - clean.astype(jnp.float32))
        return jnp.mean(difference), _kl(clean, steered)

    found = [effect(jnp.asarray(i)) for i in latents]
    return jnp.stack([x for x, _ in found]), jnp.stack([x for _, x in found])
