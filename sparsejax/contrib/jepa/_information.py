"""Dependence among latents."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ..._arguments import check_finite, checked, known
from ..._arrays import wide_dtype
from ..._sharding import on_host


@checked()
def multi_information(
    covariance: Float[Array, "k k"], groups: Int[ArrayLike, " k"] | None = None
) -> Float[Array, ""]:
    r"""Multi-information of Gaussian variables, or of groups of them, in nats.

    `sum_g h(Z_g) - h(Z) = (sum_g log det C_gg - log det C) / 2`. It is 0 for independent groups;
    merging groups cannot raise it.

    Args:
      covariance: C, positive definite.
      groups: The group of each variable; None means one variable a group.

    Returns:
      A scalar >= 0, up to rounding.

    Raises:
      ValueError: If the covariance is not symmetric and positive definite, unless traced.

    Reference:
      Studeny and Vejnarova, The Multiinformation Function as a Tool for Measuring Stochastic
      Dependence, 1998; Hartman and Varshney, SparseJEPA, 2025 (arXiv 2504.16140).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import jepa
      >>> round(float(jepa.multi_information(jnp.array([[1.0, 0.6], [0.6, 1.0]]))), 4)
      0.2231
    """
    check_finite("multi_information", covariance=covariance)
    if known(covariance):
        _check_definite(on_host(covariance))
    c = covariance.astype(wide_dtype(covariance))
    # A unit diagonal: the value does not depend on the scales, the rounding does.
    scale = jnp.sqrt(jnp.diagonal(c))
    c = c / (scale[:, None] * scale)
    labels = jnp.arange(len(c)) if groups is None else jnp.asarray(groups)
    # The blocks C_gg on the diagonal of one matrix, whose log det is the sum of theirs.
    blocks, whole = (
        jnp.linalg.slogdet(x)[1] for x in (jnp.where(labels[:, None] == labels, c, 0), c)
    )
    return (blocks - whole) / 2


def _check_definite(covariance: np.ndarray) -> None:
    """Raises unless a matrix is symmetric and, up to the rounding of its dtype, definite."""
    c = covariance.astype(wide_dtype(covariance))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.diagonal(c))
        c = c / (scale[:, None] * scale)
    definite = np.isfinite(c).all() and np.linalg.eigvalsh(c)[0] > 0
    if not (definite and np.linalg.slogdet(c)[0] > 0 and np.allclose(c, c.T, atol=1e-4)):
        raise ValueError(
            f"multi_information: covariance {covariance.shape} must be symmetric and positive "
            "definite; drop latents that are constant or copies, or add a small multiple of "
            "the identity."
        )
