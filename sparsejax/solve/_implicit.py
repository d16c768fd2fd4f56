"""The linear systems of implicit differentiation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import gmres
from jaxtyping import Array, PyTree

# Maximum size of a system that is solved as a dense matrix.
DENSE = 512


def linear_solve(operator: Callable[[PyTree], PyTree], right: PyTree) -> PyTree:
    """`operator(x) = right` for a linear operator of pytrees; can be transposed.

    A few ulps on the diagonal prevent a division by zero in flat directions.
    """
    flat, unravel = ravel_pytree(right)

    def apply(v: Array) -> Array:
        return ravel_pytree(operator(unravel(v)))[0]

    if flat.size <= DENSE:
        eye = jnp.eye(flat.size, dtype=flat.dtype)
        matrix = jax.vmap(apply, out_axes=1)(eye) + 100 * jnp.finfo(flat.dtype).eps * eye
        return unravel(jnp.linalg.solve(matrix, flat))

    def iterate(matvec, b):
        return gmres(matvec, b, tol=1e-10, restart=min(flat.size, 60), maxiter=100)[0]

    return unravel(lax.custom_linear_solve(apply, flat, iterate, iterate))
