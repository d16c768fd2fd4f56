"""Preconditioning of a design by the span of a few random columns."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from ..._arguments import checked, matrix_and_target

CALL = "random_support.random_reference(X, 4, key=jax.random.key(0))"


class Preconditioner(NamedTuple):
    """A design split into the span of `m` of its columns and the residuals of the others.

    Attributes:
      basis: Orthonormal basis of the reference columns (n, m); dropped directions are 0.
      residual: Residuals of the other columns orthogonal to the basis (n, p), of norm sqrt(n) each.
      scale: Factors that the residual columns were divided by (p,).
      live: Whether a column has a residual (p,); the others have coefficient 0.
      reference: Indices of the reference columns (m,).
      back: Map from coordinates in the basis to coefficients of the reference columns (m, m).
    """

    basis: Float[Array, "n m"]
    residual: Float[Array, "n p"]
    scale: Float[Array, " p"]
    live: Bool[Array, " p"]
    reference: Int[Array, " m"]
    back: Float[Array, "m m"]

    def coordinates(
        self, X: ArrayLike, coefficients: ArrayLike
    ) -> tuple[Float[Array, " m"], Float[Array, " p"]]:
        """Converts coefficients in the columns of X to coordinates in both blocks.

        `X w = Q q + Z a` for every w that is 0 on columns that are neither live nor drawn.

        Args:
          X: The design (n, p) that the preconditioner was made from.
          coefficients: w (p,).

        Returns:
          The coordinates q (m,) in the basis and a (p,) in the residual columns.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from sparsejax.contrib import random_support
          >>> X, w = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 3.0])
          >>> found = random_support.random_reference(X, 1, key=jax.random.key(0))
          >>> q, a = found.coordinates(X, w)
          >>> (found.basis @ q + found.residual @ a).round(4).tolist()
          [5.0, 3.0]
        """
        X, w = jnp.asarray(X), jnp.asarray(coefficients)
        a = jnp.where(self.live, w * self.scale, 0)
        return self.basis.T @ (X @ w), a

    def coefficients(
        self, X: ArrayLike, coordinates: ArrayLike, residual: ArrayLike
    ) -> Float[Array, " p"]:
        """Converts coordinates in both blocks to coefficients in the columns of X.

        Args:
          X: The design (n, p) that the preconditioner was made from.
          coordinates: q (m,), such as `basis.T @ y`.
          residual: a (p,), coefficients of the residual columns.

        Returns:
          w (p,), with `X w = Q q + Z a`.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from sparsejax.contrib import random_support
          >>> X, w = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, 3.0])
          >>> found = random_support.random_reference(X, 1, key=jax.random.key(0))
          >>> found.coefficients(X, *found.coordinates(X, w)).round(4).tolist()
          [1.0, 3.0]
        """
        X = jnp.asarray(X)
        w = jnp.where(self.live, jnp.asarray(residual) / self.scale, 0)
        on_reference = jnp.asarray(coordinates) - self.basis.T @ (X @ w)
        return w.at[self.reference].set(self.back @ on_reference)


@checked()
def random_reference(
    X: ArrayLike, m: int, *, key: Array, rtol: float | None = None
) -> Preconditioner:
    r"""Draws `m` random reference columns and projects them out of all other columns.

    `Z_j = sqrt(n) E_j / |E_j|` with `E = X - Q Q^T X`, Q an orthonormal basis of the columns drawn.
    The draw does not depend on the data: each column of a random support is about as near to the
    span of enough random columns as to the span of the rest of the support, so that in Z its
    coefficient is at most `|X w| / sqrt(n)`.

    Args:
      X: Design (n, p).
      m: Number of columns to draw, 0 to p; 0 only scales all columns to norm sqrt(n).
      key: A random key, independent of X and of the target.
      rtol: Relative tolerance, 1e-9 by default, in float32 3e-5. Singular values below this share
        of the largest one, and residuals below this share of their column, count as 0.

    Returns:
      A `Preconditioner`. Works under jit, and under vmap over keys.

    Raises:
      ValueError: If X is not a finite matrix, or `m` or `rtol` is out of its range.

    Reference:
      Chandrasekaran, Meka and Stavropoulos, Sparse Linear Regression is Easy on Random Supports,
      2025, arXiv 2511.06211. Same guarantee, different construction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import random_support
      >>> X = jnp.array([[1.0, 1.0, 1.0], [0.0, 1e-3, 0.0], [0.0, 0.0, 1e-2]])
      >>> found = random_support.random_reference(X, 1, key=jax.random.key(0))
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
        raise ValueError(f"rtol must be between 0 and 1, got {rtol}; for example rtol=1e-9.")
    return _reference(key, X, int(m), rtol)


@functools.partial(jax.jit, static_argnames=("m", "rtol"))
def _reference(key: Array, X: Array, m: int, rtol: float) -> Preconditioner:
    n, p = X.shape
    reference = jax.random.permutation(key, p)[:m]
    sizes = column_sizes(X)
    wide = jnp.where(sizes > 0, sizes, 1)
    basis, back = _basis((X / wide)[:, reference], rtol)
    # The second pass removes the rounding error of the first. Columns are scaled to size 1 so that
    # neither their squares nor their products overflow or underflow.
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
    """Root mean squares of columns, which unlike their norms never exceed the largest entry."""
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
    missing = m - s.size  # with fewer rows than columns
    u = jnp.pad(u * keep, ((0, 0), (0, missing)))
    return u, jnp.pad(back, ((0, 0), (0, missing)))
