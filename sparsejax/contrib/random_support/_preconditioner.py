"""A design seen past a few random columns: what those do not explain of the others."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from ...solve._duality import matrix_and_target

CALL = "solve.random_reference(jax.random.key(0), X, 4)"


class Preconditioner(NamedTuple):
    """A design seen past `m` of its columns, from `random_reference`.

    Attributes:
      basis: Orthonormal basis of the reference columns (n, m); dropped directions are 0.
      residual: The other columns without their part in that basis (n, p), of norm sqrt(n) each.
      scale: What the residual columns were divided by (p,).
      live: Which columns have a residual (p,); the others have coefficient 0.
      reference: The reference columns (m,).
      back: From coordinates in the basis to coefficients of the reference columns (m, m).
    """

    basis: Float[Array, "n m"]
    residual: Float[Array, "n p"]
    scale: Float[Array, " p"]
    live: Bool[Array, " p"]
    reference: Int[Array, " m"]
    back: Float[Array, "m m"]


def random_reference(key: Array, X: ArrayLike, m: int, rtol: float | None = None) -> Preconditioner:
    r"""Takes `m` random columns as they are, and of all others what those do not explain.

    `Z_j = sqrt(n) E_j / |E_j|` with `E = X - Q Q^T X`, Q an orthonormal basis of the columns drawn.
    The columns are drawn without looking at the data: whichever columns a random support holds,
    each is about as near to the span of enough columns drawn like them as to the span of the rest
    of the support, so that in Z its coefficient is at most `|X w| / sqrt(n)`.

    Args:
      key: A key that is independent of X and of the target.
      X: Design (n, p).
      m: How many columns to draw, 0 to p. 0 only brings all columns to norm sqrt(n).
      rtol: Singular values and residuals below it, as a share of the largest singular value and
        of the column, count as 0: 1e-9 by default, in float32 3e-5.

    Returns:
      A `Preconditioner`. Works under jit, and under vmap over keys.

    Reference:
      Chandrasekaran, Meka and Stavropoulos, Sparse Linear Regression is Easy on Random Supports,
      2025, arXiv 2511.06211. The paper's guarantee, by a construction of our own.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import random_support
      >>> X = jnp.array([[1.0, 1.0, 1.0], [0.0, 1e-3, 0.0], [0.0, 0.0, 1e-2]])
      >>> found = random_support.random_reference(jax.random.key(0), X, 1)
      >>> jnp.abs(found.basis.T @ found.residual).max().item() < 1e-6
      True
    """
    X, _ = matrix_and_target(X, jnp.zeros(jnp.shape(X)[:1]), 1, CALL)
    n, p = X.shape
    if isinstance(m, bool) or not isinstance(m, int | np.integer) or not 0 <= m <= p:
        raise ValueError(f"m must be a number of columns from 0 to {p}, got {m!r}; as in {CALL}.")
    if rtol is None:
        rtol = 3e-5 if jnp.finfo(X.dtype).bits <= 32 else 1e-9
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must be between 0 and 1, got {rtol}; 1e-9 for example.")
    return _reference(key, X, int(m), rtol)


@functools.partial(jax.jit, static_argnames=("m", "rtol"))
def _reference(key: Array, X: Array, m: int, rtol: float) -> Preconditioner:
    n, p = X.shape
    reference = jax.random.permutation(key, p)[:m]
    sizes = column_sizes(X)
    wide = jnp.where(sizes > 0, sizes, 1)
    basis, back = _basis((X / wide)[:, reference], rtol)
    # The first pass leaves rounding in the basis, the second removes it. Columns of size 1, so
    # that neither their squares nor their products leave the range of floats.
    E = X / wide
    for _ in range(2):
        E = E - basis @ (basis.T @ E)
    left = column_sizes(E)
    live = (left > rtol) & (sizes > 0)
    live = live.at[reference].set(False)
    residual = jnp.where(live, E / jnp.where(live, left, 1), 0)
    scale = jnp.where(live, left * wide, 1)
    back = back / wide[reference][:, None]
    return Preconditioner(basis, residual, scale, live, reference, back)


def column_sizes(X: Array) -> Array:
    """Root mean squares of columns, which unlike their norms are no larger than their entries."""
    largest = jnp.max(jnp.abs(X), axis=0)
    safe = jnp.where(largest > 0, largest, 1)
    return safe * jnp.sqrt(jnp.mean((X / safe) ** 2, axis=0))


def _basis(columns: Array, rtol: float) -> tuple[Array, Array]:
    """An orthonormal basis (n, m), and the map from its coordinates to those of the columns."""
    n, m = columns.shape
    if m == 0:
        return columns, jnp.zeros((0, 0), columns.dtype)
    u, s, vt = jnp.linalg.svd(columns, full_matrices=False)
    keep = s > rtol * s[0]
    back = vt.T * jnp.where(keep, 1 / jnp.where(keep, s, 1), 0)
    wanting = m - s.size  # with fewer rows than columns
    u = jnp.pad(u * keep, ((0, 0), (0, wanting)))
    return u, jnp.pad(back, ((0, 0), (0, wanting)))


def precondition_apply(
    preconditioner: Preconditioner, X: ArrayLike, coefficients: ArrayLike
) -> tuple[Float[Array, " m"], Float[Array, " p"]]:
    """Coefficients in the columns of X as coordinates in the basis and in the residual columns.

    `X w = Q q + Z a` for every w that is 0 on columns that are neither live nor drawn.

    Args:
      preconditioner: From `random_reference` of the same X.
      X: Design (n, p).
      coefficients: w (p,).

    Returns:
      q (m,) and a (p,).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import random_support
      >>> X, w = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 3.0])
      >>> found = random_support.random_reference(jax.random.key(0), X, 1)
      >>> q, a = random_support.precondition_apply(found, X, w)
      >>> (found.basis @ q + found.residual @ a).round(4).tolist()
      [5.0, 3.0]
    """
    X, w = jnp.asarray(X), jnp.asarray(coefficients)
    a = jnp.where(preconditioner.live, w * preconditioner.scale, 0)
    return preconditioner.basis.T @ (X @ w), a


def precondition_unapply(
    preconditioner: Preconditioner, X: ArrayLike, coordinates: ArrayLike, residual: ArrayLike
) -> Float[Array, " p"]:
    """Coefficients in the columns of X from coordinates in the basis and in the residual columns.

    Args:
      preconditioner: From `random_reference` of the same X.
      X: Design (n, p).
      coordinates: q (m,), such as `basis.T @ y`.
      residual: a (p,).

    Returns:
      w (p,), with `X w = Q q + Z a`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import random_support
      >>> X, w = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 3.0])
      >>> found = random_support.random_reference(jax.random.key(0), X, 1)
      >>> q, a = random_support.precondition_apply(found, X, w)
      >>> random_support.precondition_unapply(found, X, q, a).round(4).tolist()
      [1.0, 3.0]
    """
    X = jnp.asarray(X)
    w = jnp.where(preconditioner.live, jnp.asarray(residual) / preconditioner.scale, 0)
    on_reference = jnp.asarray(coordinates) - preconditioner.basis.T @ (X @ w)
    return w.at[preconditioner.reference].set(preconditioner.back @ on_reference)
