"""Errors of spectra and abundances, and a sparsity index of vectors."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ..._arguments import check_finite, checked


class UnmixingErrors(NamedTuple):
    """Errors of matched endmembers.

    Attributes:
      order: `estimate[:, order]` are the endmembers in the order of the true ones.
      angles: Spectral angles in radians, one per true endmember.
      rmse: Root mean squared errors of their abundances, one per true endmember.
    """

    order: Int[np.ndarray, " k"]
    angles: Float[np.ndarray, " k"]
    rmse: Float[np.ndarray, " k"]


@checked()
def spectral_angle(
    a: Float[ArrayLike, "channels ..."], b: Float[ArrayLike, "channels ..."]
) -> Float[Array, "..."]:
    r"""Spectral angle distance (SAD), `arccos(<a, b> / (|a| |b|))` in radians.

    Computed from the norms of the sum and the difference of the unit vectors, which is accurate for
    small angles.

    Args:
      a: Spectra along the first axis.
      b: Spectra of a shape that broadcasts with a.

    Returns:
      Angles in [0, pi]; pi / 2 if a spectrum is zero.

    Reference:
      Kruse et al., The Spectral Image Processing System, 1993.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.unmixing import spectral_angle
      >>> round(float(spectral_angle(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0]))), 4)
      0.7854
    """
    a, b = (x / jnp.where(_length(x) > 0, _length(x), 1) for x in map(jnp.asarray, (a, b)))
    return 2 * jnp.arctan2(_length(a - b)[0], _length(a + b)[0])


def _length(x: Array) -> Array:
    return jnp.linalg.norm(x, axis=0, keepdims=True)


@checked()
def unmixing_errors(
    endmembers: Float[ArrayLike, "channels k"],
    abundances: Float[ArrayLike, "k pixels"],
    true_endmembers: Float[ArrayLike, "channels k"],
    true_abundances: Float[ArrayLike, "k pixels"],
) -> UnmixingErrors:
    r"""SAD and RMSE of an unmixing, with endmembers matched to the true ones.

    The matching minimises the sum of spectral angles (the Hungarian method). Exclude known outlier
    channels from both sets of spectra.

    Args:
      endmembers: Estimated spectra in columns, (channels, k).
      abundances: Estimated abundances, (k, pixels).
      true_endmembers: True spectra, (channels, k).
      true_abundances: True abundances, (k, pixels).

    Returns:
      An `UnmixingErrors`; papers report the means.

    Raises:
      ValueError: If the shapes of the estimates and the true values differ, or endmembers, which
        could not be matched, are not finite.

    Reference:
      Kuhn, The Hungarian method for the assignment problem, 1955.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.unmixing import unmixing_errors
      >>> spectra, shares = jnp.eye(2), jnp.array([[1.0, 0.25], [0.0, 0.75]])
      >>> unmixing_errors(spectra[:, ::-1], shares[::-1], spectra, shares).order.tolist()
      [1, 0]
    """
    from scipy.optimize import linear_sum_assignment

    m, t = np.asarray(endmembers), np.asarray(true_endmembers)
    given, true = np.shape(abundances), np.shape(true_abundances)
    if m.ndim != 2 or m.shape != t.shape or given != true or given[:1] != m.shape[1:]:
        raise ValueError(
            "unmixing_errors: endmembers (channels, k) and abundances (k, pixels) of the same k "
            f"are needed on both sides, got {m.shape} and {given}, true {t.shape} and {true}."
        )
    check_finite("unmixing_errors", endmembers=m, true_endmembers=t)
    angles = np.asarray(spectral_angle(t[:, :, None], m[:, None, :]))
    _, order = linear_sum_assignment(angles)
    gaps = np.asarray(abundances)[order] - np.asarray(true_abundances)
    matched = angles[np.arange(len(order)), order]
    return UnmixingErrors(order, matched, np.sqrt(np.mean(gaps**2, axis=1)))


@checked()
def hoyer_sparsity(x: Float[ArrayLike, "... n"], axis: int = -1) -> Float[Array, "..."]:
    r"""Hoyer's sparsity, `(sqrt n - |x|_1 / |x|_2) / (sqrt n - 1)`.

    Args:
      x: An array.
      axis: The axis of the vectors.

    Returns:
      1 for a single non-zero entry; 0 for entries of equal modulus, for zeros, and for n = 1; NaN
      if an entry is not finite.

    Reference:
      Hoyer, Non-negative Matrix Factorization with Sparseness Constraints, 2004
      (arXiv cs/0408058).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.unmixing import hoyer_sparsity
      >>> hoyer_sparsity(jnp.array([[0.0, 3.0, 0.0], [1.0, -1.0, 1.0]])).round(4)
      Array([1., 0.], dtype=float32)
    """
    x = jnp.asarray(x)
    root = x.shape[axis] ** 0.5
    if root == 1:
        return jnp.sum(x - x, axis=axis)  # 0, or NaN
    # Constant under differentiation, since the result does not depend on it.
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    unit = jnp.abs(x) / jnp.where(largest > 0, largest, 1)  # avoids overflow of squares
    one, two = jnp.sum(unit, axis=axis), jnp.sqrt(jnp.sum(unit**2, axis=axis))
    sparsity = (root - one / jnp.where(two > 0, two, 1)) / (root - 1)
    return jnp.where(two == 0, 0, jnp.clip(sparsity, 0, 1))
