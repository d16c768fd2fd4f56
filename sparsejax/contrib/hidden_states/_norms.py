"""Nuclear norm of normalised hidden states, and its estimate by the norms of columns."""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from ..._arguments import checked
from ..._sharding import with_auto_axes
from ..._topk import topk_mask
from ...prox import nuclear
from ._rows import Hidden, Tokens, count, normalised, with_mask


@checked(top="[1, inf)")
def matrix_nuclear_norm(
    h: Hidden, mask: Tokens | None = None, *, top: int | None = None, per_token: bool = True
) -> Float[Array, ""]:
    r"""Matrix nuclear norm of a text: the sum of the D largest column norms, over n.

    With R of `normalise`, `MNN = (sum of the D largest ||R[:, j]||) / n`, `D = min(n, d)`: O(n d),
    without a decomposition. Lower values mean more compression; larger models of a family score
    lower. It is in [0, sqrt(D / n)], so only texts of similar length compare.

    It depends on the basis: it measures how far the states concentrate in few dimensions, and not
    their rank. It ranks matrices as `nuclear_norm` does if their spectrum is along the axes, and in
    the opposite order if they are products of random factors of low rank.

    As a regulariser it is minimised for compression and maximised for diversity. The untruncated
    sum is the penalty `sj.prox.l2(1.0, axis=0)` of R, whose proximal operator is the group soft
    thresholding of columns; the truncated one is not convex.

    Args:
      h: Hidden states of n tokens in d dimensions.
      mask: True at tokens, False at padding; n counts tokens only.
      top: D, the number of columns; None for `min(n, d)`.
      per_token: Whether to divide by n.

    Returns:
      A scalar of at least float32; 0 for a single token.

    Raises:
      ValueError: If there are no tokens, or `top` is less than 1.

    Reference:
      Li et al., Large Language Model Evaluation via Matrix Nuclear-Norm, 2024 (arXiv 2410.10672).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import hidden_states
      >>> h = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> round(float(hidden_states.matrix_nuclear_norm(h)), 4)  # 2 sqrt(2) / 4
      0.7071
    """
    h, mask = with_mask("matrix_nuclear_norm", h, mask)
    found = _column_norm_sum(normalised(h, mask), jnp.sum(mask) if top is None else top)
    return found / count(mask, found.dtype) if per_token else found


@jax.jit
def _column_norm_sum(r: Array, top: Array | int) -> Array:
    norms = optax.safe_norm(r, 0.0, axis=0)
    return jnp.sum(jnp.where(topk_mask(lax.stop_gradient(norms), jnp.asarray(top)), norms, 0))


@checked()
def nuclear_norm(
    h: Hidden, mask: Tokens | None = None, *, per_token: bool = True
) -> Float[Array, ""]:
    r"""Nuclear norm of the normalised hidden states of a text, over n.

    With R of `normalise`, `(sum of singular values of R) / n`, by `sj.prox.nuclear`: O(n d min(n,
    d)). At most `sqrt(rank / n)`; `matrix_nuclear_norm` is never smaller if `d <= n`.

    Args:
      h: Hidden states of n tokens in d dimensions.
      mask: True at tokens, False at padding; n counts tokens only.
      per_token: Whether to divide by n.

    Returns:
      A scalar of at least float32; 0 for a single token.

    Raises:
      ValueError: If there are no tokens.

    Reference:
      Li et al., Large Language Model Evaluation via Matrix Nuclear-Norm, 2024 (arXiv 2410.10672).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import hidden_states
      >>> h = jnp.array([[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0], [-2.0, -2.0]])  # one direction
      >>> round(float(hidden_states.nuclear_norm(h)), 4)  # sqrt(4) / 4
      0.5
    """
    h, mask = with_mask("nuclear_norm", h, mask)
    r = normalised(h, mask)
    found = with_auto_axes(_nuclear, r, like=jnp.sum(r))
    return found / count(mask, found.dtype) if per_token else found


@jax.jit
def _nuclear(r: Array) -> Array:
    return nuclear(1.0).value(r)
