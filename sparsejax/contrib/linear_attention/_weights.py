"""The weights of linear attention as a matrix, and how far they spread."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype
from ._products import linear_attention


@checked(eps="[0, inf)")
def linear_attention_weights(
    fq: Shaped[Array | np.ndarray, "*b n h f"],
    fk: Shaped[Array | np.ndarray, "*b m hk f"],
    *,
    causal: bool = False,
    eps: float = 1e-6,
) -> Float[Array, "*b h n m"]:
    r"""The weights with which `linear_attention` averages values, for plots.

    Args:
      fq: Features of the queries.
      fk: Features of the keys.
      causal: As for `linear_attention`.
      eps: As for `linear_attention`.

    Returns:
      `fq_i fk_j / (sum_j fq_i fk_j + m eps)`, O(n m) numbers; rows sum to one up to eps.

    Raises:
      ValueError: If the shapes do not match.

    Reference:
      Meng et al., NaLaFormer, 2025 (arXiv 2506.21137).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import linear_attention
      >>> fq, fk = jnp.ones((1, 1, 2)), jnp.array([[[1.0, 0.0]], [[1.0, 2.0]]])
      >>> linear_attention.linear_attention_weights(fq, fk, eps=0.0).tolist()
      [[[0.25, 0.75]]]
    """
    *lead, m, heads, _ = np.shape(fk)
    units = jnp.broadcast_to(jnp.eye(m)[:, None], (*lead, m, heads, m))
    return jnp.moveaxis(linear_attention(fq, fk, units, causal=causal, eps=eps), -2, -3)


@checked()
def attention_entropy(weights: Shaped[Array | np.ndarray, "*h m"]) -> Float[Array, "*h"]:
    r"""The entropy of each row of attention weights, `-sum_j w_ij log w_ij`, in nats.

    Args:
      weights: Non-negative weights that sum to one over the last axis; negative ones, of rotated
        features, give NaN.

    Returns:
      From 0 for one key to `log m` for equal weights.

    Reference:
      Meng et al., NaLaFormer, 2025 (arXiv 2506.21137).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import linear_attention
      >>> linear_attention.attention_entropy(jnp.array([[1.0, 0.0], [0.5, 0.5]])).round(4).tolist()
      [0.0, 0.6930999755859375]
    """
    weights = jnp.asarray(weights)
    weights = weights.astype(wide_dtype(weights))
    return jnp.sum(jax.scipy.special.entr(jnp.where(weights < 0, jnp.nan, weights)), axis=-1)
