"""Matching pursuit as an activation: latents one at a time, each of the residual of the last."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._arguments import check_count
from .._tree import register
from ._activation import Activation, Context
from ._numbers import check_not_negative


@register
@dataclass(frozen=True)
class MatchingPursuit(Activation):
    r"""Selects `argmax_i <w_i, r>` of the residual r, `steps` times; there is no encoder.

    From `r = x`, the centred input: `v = max(<w_i, r>, 0)` for the best decoder row, `f_i += v`,
    `r -= v w_i`. Rows should have unit norm. The choice has no gradient, values and residuals do.

    Args:
      steps: Number of selections, a bound on the active latents.
      residual: Norm of the residual below which a token takes no more latents; 0 for none.
      stop_on_repeat: Whether a token stops when it selects a latent again.

    Reference:
      Costa et al., From Flat to Hierarchical: Extracting Sparse Representations with Matching
      Pursuit, 2025 (arXiv 2506.03093).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> context = sj.sae.Context(jnp.array([[1.0, 2.0]]), {"W_dec": jnp.eye(2)})
      >>> sj.sae.MatchingPursuit(1)(context.x, context).tolist()
      [[0.0, 2.0]]
    """

    steps: int = field(metadata=dict(static=True))
    residual: Any = 0.0
    stop_on_repeat: bool = field(default=False, metadata=dict(static=True))

    def __post_init__(self):
        check_count("MatchingPursuit: steps", self.steps)
        check_not_negative("MatchingPursuit", residual=self.residual)

    @property
    def capacity(self) -> int | None:
        """`steps`."""
        return self.steps

    @property
    def tied(self) -> bool:
        """True: latents are selected by their decoder rows."""
        return True

    def params(self, latents: int, dtype: Any) -> dict[str, Array]:
        """None."""
        return {}

    def __call__(
        self, z: Float[Array, "*n h"], context: Context | None = None
    ) -> Float[Array, "*n h"]:
        """The features."""
        if context is None:
            raise ValueError(
                "MatchingPursuit: context must hold x and params, got None; call sae.encode."
            )
        x = context.x.reshape(-1, context.x.shape[-1])
        indices, values = self.codes(z, context._replace(x=x), lambda i: i)
        dense = jnp.zeros((len(x), z.shape[-1]), values.dtype)
        return dense.at[jnp.arange(len(x))[:, None], indices].add(values).reshape(z.shape)

    def codes(
        self, z: Array, context: Context, at: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Indices and values in the order of selection; an index may occur twice."""
        del z, at
        W_dec, x = context.params["W_dec"], context.x
        fixed = lax.stop_gradient(W_dec).T
        chosen = jnp.full((len(x), self.steps), -1)

        def select(carry, step):
            r, done, chosen = carry
            index = jnp.argmax(lax.stop_gradient(r) @ fixed, axis=-1)
            rows = W_dec[index]
            v = jnp.where(done, 0, jax.nn.relu(jnp.sum(r * rows, axis=-1)))
            r = r - v[:, None] * rows
            if self.stop_on_repeat:
                done |= (v == 0) | (chosen == index[:, None]).any(-1)
            size = jnp.sum(jnp.square(lax.stop_gradient(r)), axis=-1)
            done |= (self.residual > 0) & (jnp.sqrt(size) < self.residual)
            return (r, done, chosen.at[:, step].set(jnp.where(v > 0, index, -1))), (index, v)

        begin = (x, jnp.zeros(len(x), bool), chosen)
        _, (indices, values) = lax.scan(select, begin, jnp.arange(self.steps))
        return indices.T, values.T
