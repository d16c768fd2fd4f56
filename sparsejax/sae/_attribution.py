"""Top-k by activation and effect on the loss of the model (g-SAE)."""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._arrays import wide_dtype
from .._tree import register
from ._activation import Context
from ._numbers import check_not_negative, most_of
from ._top_k import STATIC, Ranked


@register
@dataclass(frozen=True)
class GradientTopK(Ranked):
    r"""Top-k of `z (1 + beta a)`, where `a_i = |<w_i, g>|` is the effect on the loss (g-SAE).

    w_i is a decoder row and g the gradient of the model's loss in the input. Only the choice of
    latents depends on g; the features are those of `TopK`. Labels leak: g depends on the target
    token, so that features selected with it are not available at inference; use
    `TopK(k)` with the same parameters there, and report that too.

    Args:
      k: As for `TopK`.
      beta: Weight of the effect; 0 is `TopK`.
      normalize: "mean" divides a by its mean over the latents of each token, so that beta has no
        unit (all zeros stay 0); "none" is the formula of the paper.
      most: As for `TopK`.

    Reference:
      Olmo et al., Features that Make a Difference, 2024 (arXiv 2411.10397).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> z, g = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])
      >>> context = sj.sae.Context(None, {"W_dec": jnp.eye(2)}, g)
      >>> sj.sae.GradientTopK(1)(z, context).tolist()
      [1.0, 0.0]
    """

    k: Any
    beta: Any = 1.0
    normalize: Literal["mean", "none"] = field(default="mean", metadata=STATIC)
    most: int | None = field(default=None, metadata=STATIC)

    def __post_init__(self):
        check_not_negative("GradientTopK", beta=self.beta)
        if self.normalize not in ("mean", "none"):
            raise ValueError(
                f'GradientTopK: normalize must be "mean" or "none", got {self.normalize!r}.'
            )
        object.__setattr__(self, "most", most_of("GradientTopK", self.k, self.most))

    @property
    def capacity(self) -> int | None:
        """`most`."""
        return self.most

    def scores(self, z: Array, context: Context | None) -> Array:
        """`z (1 + beta a)`."""
        if context is None or context.grad is None:
            raise ValueError(
                "GradientTopK: grad must be the gradient of the model's loss in x, got None; "
                "pass sae.encode(params, x, grad), or use TopK at inference."
            )
        a = attribution(context.grad, context.params["W_dec"], self.normalize)
        return z.astype(a.dtype) * (1 + self.beta * a)

    def count(self, scores: Array, context: Context | None) -> Any:
        """k."""
        return self.k


def attribution(grad: Array, W_dec: Array, normalize: str) -> Array:
    """`|g W_dec^T|`, divided by its mean over latents unless that is 0; no gradient."""
    wide = wide_dtype(grad, W_dec)
    a = jnp.abs(lax.stop_gradient(grad).astype(wide) @ lax.stop_gradient(W_dec).astype(wide).T)
    if normalize == "none":
        return a
    mean = jnp.mean(a, axis=-1, keepdims=True)
    return a / jnp.where(mean == 0, 1, mean)
