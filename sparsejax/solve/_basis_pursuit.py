"""Exact combinations of columns with minimal l1 norm or minimal l2 norm."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._arguments import checked, known, matrix_and_target

CALL = "solve.basis_pursuit(W, w)"


@checked(rtol="[0, 1)")
def basis_pursuit(W: ArrayLike, w: ArrayLike, rtol: float = 1e-6) -> Float[Array, " t"]:
    r"""The combination of columns with minimal l1 norm, which uses at most k columns.

    `min |nu|_1 subject to W nu = w`, a linear program, solved on the host by SciPy's HiGHS.

    Args:
      W: Columns (k, t).
      w: Target (k,).
      rtol: Tolerated distance of w from the span of the columns, relative to |w|.

    Returns:
      Coefficients (t,). Not unique if columns repeat.

    Raises:
      ValueError: If w is not a linear combination of the columns.
      TypeError: Inside jit, vmap or grad.

    Reference:
      Chen, Donoho and Saunders, Atomic Decomposition by Basis Pursuit, 1998.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> W = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
      >>> [round(x.item(), 4) for x in solve.basis_pursuit(W, jnp.array([1.0, 1.0]))]
      [0.0, 0.0, 0.5]
    """
    from scipy.optimize import linprog  # a dependency of jax; slow to load

    if not (known(W) and known(w)):
        raise TypeError(
            "basis_pursuit runs on the host: under jit use solve.lasso with a small strength."
        )
    W, w = matrix_and_target(W, w, 1, CALL, ("W", "w"))
    A, b = np.asarray(W, np.float64), np.asarray(w, np.float64)
    size = np.linalg.norm(b)
    if size == 0:
        return jnp.zeros(A.shape[1], W.dtype)
    least = np.linalg.pinv(A, rcond=1e-10) @ b
    slack = max(rtol, 50 * float(jnp.finfo(W.dtype).eps))
    if np.linalg.norm(A @ least - b) > slack * size:
        raise ValueError(
            "w is not a combination of the columns of W; use solve.lasso for an approximation."
        )
    # Project onto the range of W, so that rounding cannot make the equations infeasible.
    u, s, vt = np.linalg.svd(A, full_matrices=False)
    r = int(np.sum(s > 1e-10 * s[0]))
    rows, right = vt[:r], (u[:, :r].T @ b) / s[:r]
    t, scale = A.shape[1], np.abs(right).max()
    found = linprog(np.ones(2 * t), A_eq=np.hstack([rows, -rows]), b_eq=right / scale)
    if found.x is None:
        raise RuntimeError(f"basis_pursuit: {found.message}")
    return jnp.asarray(scale * (found.x[:t] - found.x[t:]), W.dtype)
