"""Latents whose norm matches that of the input (top-AFA)."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._arrays import wide_dtype
from .._tree import register
from ._activation import Context
from ._norms import row_norms
from ._numbers import most_of
from ._top_k import STATIC, Ranked


@register
@dataclass(frozen=True)
class TopAFA(Ranked):
    r"""Keeps as many of the largest latents as match the norm of the input.

    With `a = max(z, 0)` ranked by `m_i = (a_i |w_i|)^2` and `C_k` the square root of the sum of
    the k largest, `k* = argmin_{k >= 1} |C_k - |x||` for the centred input x; ties take the
    smallest k. The selection has no gradient. Train it with `NormMatching`; no k is chosen, and
    the codes are dense (about 2 d latents in the paper).

    Args:
      most: The capacity of sparse codes, a bound on k*; None for none. `reached` reports the tokens
        whose norm is matched within the bound.

    Reference:
      Lee et al., Evaluating and Designing Sparse Autoencoders by Approximating
      Quasi-Orthogonality, 2025 (arXiv 2503.24277).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> context = sj.sae.Context(jnp.array([3.0, 0.0, 0.0]), {"W_dec": jnp.eye(3)})
      >>> sj.sae.TopAFA()(jnp.array([1.0, 3.0, 1.0]), context).tolist()
      [0.0, 3.0, 0.0]
    """

    most: int | None = field(default=None, metadata=STATIC)

    def __post_init__(self):
        most_of("TopAFA", None, self.most)

    @property
    def scales(self) -> bool:
        """True: latents are ranked by the norms of their contributions."""
        return True

    @property
    def capacity(self) -> int | None:
        """`most`."""
        return self.most

    def scores(self, z: Array, context: Context | None) -> Array:
        """`max(z, 0) |w|`."""
        if context is None:
            raise ValueError("TopAFA: context must hold x and params, got None; call sae.encode.")
        a = jax.nn.relu(z.astype(wide_dtype(z)))
        return a * row_norms(context.params["W_dec"])

    def count(self, scores: Array, context: Context | None) -> Any:
        """`k*` of each token."""
        norms, target = _cumulative(scores, self.most), _input_norm(context)
        return jnp.argmin(jnp.abs(norms - target), axis=-1, keepdims=True).astype(jnp.int32) + 1

    def reached(self, z: Array, context: Context) -> Array:
        """Which tokens have latents enough to reach the norm of the input."""
        return (
            _cumulative(self.scores(z, context), self.most)[..., -1] >= _input_norm(context)[..., 0]
        )


def _input_norm(context: Any) -> Array:
    return row_norms(lax.stop_gradient(context.x))[..., None]


def _cumulative(scores: Array, most: int | None) -> Array:
    """The norms of the 1, 2, ... largest scores."""
    ranked = lax.top_k(scores, min(most or scores.shape[-1], scores.shape[-1]))[0]
    return jnp.sqrt(jnp.cumsum(jnp.square(ranked), axis=-1))
