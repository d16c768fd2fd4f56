"""Auxiliary reconstructions: of the residual by dead latents, of the input by gates."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._arguments import is_int
from .._tree import register
from ._loss import STATIC, Loss
from ._numbers import check_not_negative
from ._pass import Pass
from ._products import combined


@register
@dataclass(frozen=True)
class AuxK(Loss):
    r"""Dead latents reconstruct the residual: `strength * |e - a W_dec|^2 / var(e)` (AuxK).

    For the residual `e = x - xhat`, without gradient, and a, the k largest `max(z, 0)` of each
    token among the dead latents. The decoder bias is not added again. 0 if no latent is dead, and
    where the quotient is not finite.

    Args:
      k: Dead latents per token, at most all dead ones; None for d / 2.
      strength: Its weight, applied once.
      dead_after: Steps without activity after which a latent is dead: tokens over batch size.
      normalize: "variance" divides the sum over features by the variance of the residual in the
        batch, "mean" takes the mean over entries, "none" the sum over features.
      detach: Whether the residual has no gradient; False is as in the code of TopAFA.

    Reference:
      Gao et al., 2024 (arXiv 2406.04093).

    Example:
      >>> import sparsejax as sj
      >>> sae = sj.sae.SAE(sj.sae.TopK(32), losses=(sj.sae.AuxK(dead_after=200),))
    """

    k: int | None = field(default=None, metadata=STATIC)
    strength: Any = 1 / 32
    dead_after: Any = 1000
    normalize: Literal["variance", "mean", "none"] = field(default="variance", metadata=STATIC)
    detach: bool = field(default=True, metadata=STATIC)

    def __post_init__(self):
        check_not_negative("AuxK", strength=self.strength, dead_after=self.dead_after)
        if self.k is not None and (not is_int(self.k) or self.k < 1):
            raise ValueError(f"AuxK: k must be an integer of at least 1 or None, got {self.k!r}.")
        if self.normalize not in ("variance", "mean", "none"):
            raise ValueError(
                f'AuxK: normalize must be "variance", "mean" or "none", got {self.normalize!r}.'
            )

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The loss."""
        dead = found.state.silent >= self.dead_after
        residual = lax.stop_gradient(found.residual) if self.detach else found.residual
        zero = jnp.zeros((), residual.dtype)
        # The pass costs as much as a decoder, and usually no latent is dead.
        return lax.cond(jnp.any(dead), lambda: self._error(found, dead, residual), lambda: zero)

    def _error(self, found: Pass, dead: Array, residual: Array) -> Array:
        scores = jnp.where(dead, found.fixed_z, -jnp.inf)
        k = min(self.k or max(residual.shape[-1] // 2, 1), len(dead))
        indices = lax.top_k(scores, k)[1]
        values = jnp.where(dead[indices], jax.nn.relu(found.z_at(indices)), 0)
        error = combined(indices, values, found.sae.rows(found.params)) - residual
        if self.normalize == "mean":
            return self.strength * jnp.mean(jnp.square(error))
        total = jnp.mean(jnp.sum(jnp.square(error), axis=-1))
        if self.normalize == "none":
            return self.strength * total
        spread = jnp.mean(jnp.sum(jnp.square(residual - jnp.mean(residual, axis=0)), axis=-1))
        safe = jnp.where(spread > 0, spread, 1)
        scaled = self.strength * total / safe
        return jnp.where((spread > 0) & jnp.isfinite(scaled), scaled, 0)


@register
@dataclass(frozen=True)
class GateAuxiliary(Loss):
    r"""`strength * mean_n |x - (max(pi, 0) W_dec + b_dec)|^2`, the loss that trains gates.

    Args:
      strength: Its weight.
      frozen: Whether the decoder has no gradient here, as in the paper.

    Reference:
      Rajamanoharan et al., 2024 (arXiv 2404.16014).

    Example:
      >>> import sparsejax as sj
      >>> losses = (sj.sae.L1(0.1), sj.sae.GateAuxiliary())
      >>> sae = sj.sae.SAE(sj.sae.Gated(), losses, constraint=sj.optim.unit_norm)
    """

    strength: Any = 1.0
    frozen: bool = field(default=True, metadata=STATIC)

    def __post_init__(self):
        check_not_negative("GateAuxiliary", strength=self.strength)

    def __call__(self, found: Pass, own: PyTree) -> Array:
        """The loss."""
        gate = found.sae.activation.gate(found.z, found.context)
        if gate is None:
            raise ValueError(
                f"GateAuxiliary: activation must have gates, got {found.sae.activation}; use Gated."
            )
        rows, bias = found.sae.rows(found.params), found.params["b_dec"]
        rows, bias = lax.stop_gradient((rows, bias)) if self.frozen else (rows, bias)
        error = (found.target - (gate @ rows + bias)).astype(found.residual.dtype)
        return self.strength * jnp.mean(jnp.sum(jnp.square(error), axis=-1))
