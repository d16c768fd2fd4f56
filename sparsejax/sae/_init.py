"""Initial decoders, and the geometric median of samples."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from .._arguments import checked, finite_array
from ._norms import row_norms


@checked(max_steps="[1, inf)", tol="[0, inf)")
def geometric_median(
    samples: Shaped[Array | np.ndarray, "n d"], *, max_steps: int = 100, tol: float = 1e-5
) -> Float[Array, " d"]:
    r"""`argmin_m sum_i |x_i - m|_2` by Weiszfeld's iteration, an initial value for b_dec.

    Args:
      samples: One sample a row, of one batch.
      max_steps: Maximum number of iterations.
      tol: Relative decrease of the objective below which the iteration stops.

    Returns:
      The median; the mean is its initial value.

    Raises:
      ValueError: If the samples are not finite.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> sj.sae.geometric_median(jnp.array([[0.0], [1.0], [9.0]])).round(2).tolist()
      [1.0]
    """
    return _median(finite_array("geometric_median", "samples", samples, 2), int(max_steps), tol)


@partial(jax.jit, static_argnums=1)
def _median(x: Array, max_steps: int, tol: Array) -> Array:
    def distances(m):
        return row_norms(x - m)

    def unfinished(carry):
        step, _, before, now = carry
        return (step < max_steps) & (before - now > tol * now)

    def move(carry):
        step, m, _, now = carry
        # A sample at the median itself would have an infinite weight.
        weights = 1 / jnp.maximum(distances(m), 1e-6 * now / len(x) + 1e-30)
        m = weights @ x / jnp.sum(weights)
        return step + 1, m, now, jnp.sum(distances(m))

    mean = jnp.mean(x, axis=0)
    return lax.while_loop(unfinished, move, (0, mean, jnp.inf, jnp.sum(distances(mean))))[1]


def unit_rows(key: Array, latents: int, width: int, norm: float, dtype: Any) -> Array:
    """Rows of random direction (Kaiming uniform) and the given norm."""
    rows = jax.random.uniform(key, (latents, width), minval=-1.0, maxval=1.0)
    return (norm * rows / row_norms(rows)[:, None]).astype(dtype)
