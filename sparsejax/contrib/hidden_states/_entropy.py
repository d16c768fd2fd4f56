"""Entropy of the spectrum of normalised hidden states."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import entr
from jaxtyping import Array, Float

from ..._arguments import checked
from ..._sharding import with_auto_axes
from ._rows import Hidden, Tokens, normalised, with_mask


@checked()
def matrix_entropy(h: Hidden, mask: Tokens | None = None) -> Float[Array, ""]:
    r"""Matrix entropy of a text: of the eigenvalues of the covariance of its hidden states.

    With R of `normalise` and the eigenvalues e of `R^T R / tr(R^T R)`, `-sum e ln e / ln d`. They
    are those of `R R^T` where n < d, so that the smaller matrix is decomposed: O(min(n, d)^3).

    Args:
      h: Hidden states of n tokens in d >= 2 dimensions.
      mask: True at tokens, False at padding.

    Returns:
      A scalar in [0, 1], of at least float32; 0 if all tokens are equal.

    Raises:
      ValueError: If there are no tokens, or less than two dimensions.

    Reference:
      Wei et al., Diff-eRank: A Novel Rank-Based Metric for Evaluating Large Language Models, 2024
      (arXiv 2401.17139); Li et al., 2024 (arXiv 2410.10672).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import hidden_states
      >>> h = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> round(float(hidden_states.matrix_entropy(h)), 4)
      1.0
    """
    h, mask = with_mask("matrix_entropy", h, mask)
    if h.shape[1] < 2:
        raise ValueError(
            f"matrix_entropy: h must have at least two dimensions (n, d), got shape {h.shape}."
        )
    r = normalised(h, mask)
    return with_auto_axes(_spectral_entropy, r, like=jnp.sum(r)) / math.log(h.shape[1])


@jax.jit
def _spectral_entropy(r: Array) -> Array:
    n, d = r.shape
    left, right = (r, r.T) if n < d else (r.T, r)
    e = jnp.linalg.eigvalsh(jnp.matmul(left, right, precision="highest"))
    trace = jnp.sum(r * r)
    e = e / jnp.where(trace > 0, trace, 1)
    # Rounding spreads the zeros of the spectrum over this range; ln e has no derivative at 0.
    floor = float(jnp.finfo(e.dtype).eps) * lax.stop_gradient(jnp.max(e))
    noise = e <= floor
    return jnp.sum(jnp.where(noise, 0, entr(jnp.where(noise, 1, e))))
