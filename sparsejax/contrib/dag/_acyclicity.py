"""Acyclicity characterisations of weighted graphs, and thresholding to an acyclic graph."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import expm, lu_factor, lu_solve
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from ..._arguments import check_finite, check_not_nan, checked


@checked(shift="(0, inf)")
def logdet_acyclicity(weights: Float[Array, "d d"], shift: ArrayLike = 1.0) -> Float[Array, ""]:
    r"""The log-determinant characterisation of acyclicity.

    `h_s(W) = d log s - log |det(s I - W*W)|`, `grad h_s(W) = 2 W * inv(s I - W*W)^T`, where `*`
    between W and W is elementwise. On the matrices for which `s I - W*W` is an M-matrix h is >= 0,
    and 0 exactly for acyclic graphs. Value and derivative share one LU factorisation.

    Args:
      weights: Weighted adjacency matrix (d, d); `weights[i, j] != 0` is the edge i -> j.
      shift: s > 0.

    Returns:
      A scalar.

    Reference:
      Bello et al., DAGMA: Learning DAGs via M-matrices and a Log-Determinant Acyclicity
      Characterization, 2022 (arXiv 2209.08037).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> float(dag.logdet_acyclicity(jnp.array([[0.0, 0.5], [0.0, 0.0]])))
      0.0
      >>> round(float(dag.logdet_acyclicity(jnp.array([[0.0, 0.5], [0.5, 0.0]]))), 4)
      0.0645
    """
    return _logdet_acyclicity(weights, shift)


@jax.custom_jvp
def _logdet_acyclicity(weights: Float[Array, "d d"], shift: ArrayLike) -> Float[Array, ""]:
    return _logdet(weights, shift, factored(weights, shift))


@_logdet_acyclicity.defjvp
def _(primals, tangents):
    (weights, shift), (moved, shifted) = primals, tangents
    factors = factored(weights, shift)
    inverse = lu_solve(factors, jnp.eye(len(weights), dtype=weights.dtype))
    slope = 2 * jnp.sum(weights * inverse.T * moved)
    slope += (len(weights) / shift - jnp.trace(inverse)) * jnp.asarray(shifted, weights.dtype)
    return _logdet(weights, shift, factors), slope


def factored(weights: Array, shift: ArrayLike) -> tuple[Array, Array]:
    """The LU factors of `s I - W*W`."""
    eye = jnp.eye(len(weights), dtype=weights.dtype)
    return lu_factor(jnp.asarray(shift, weights.dtype) * eye - weights * weights)


def _logdet(weights: Array, shift: ArrayLike, factors: tuple[Array, Array]) -> Array:
    logdet = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(factors[0]))))
    return len(weights) * jnp.log(jnp.asarray(shift, weights.dtype)) - logdet


@checked(tol="[0, inf)")
def is_m_matrix(matrix: Float[Array, "d d"], tol: ArrayLike = 0.0) -> Bool[Array, ""]:
    r"""Whether a matrix with off-diagonal entries <= 0 is an M-matrix: its inverse is >= 0.

    Args:
      matrix: A square matrix.
      tol: Entries of the inverse of at least `-tol` count as non-negative.

    Returns:
      A boolean scalar; False for a singular matrix.

    Reference:
      Berman and Plemmons, Nonnegative Matrices in the Mathematical Sciences, 1994.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> bool(dag.is_m_matrix(jnp.array([[1.0, -0.5], [-0.5, 1.0]])))
      True
      >>> bool(dag.is_m_matrix(jnp.array([[1.0, -2.0], [-2.0, 1.0]])))
      False
    """
    check_not_nan("is_m_matrix", matrix=matrix)
    inverse = jnp.linalg.inv(matrix)
    off_diagonal = matrix * (1 - jnp.eye(len(matrix), dtype=matrix.dtype))
    return (jnp.max(off_diagonal) <= 0) & (jnp.min(inverse) >= -jnp.asarray(tol))


@checked()
def expm_acyclicity(weights: Float[Array, "d d"]) -> Float[Array, ""]:
    r"""The matrix exponential characterisation, `h(W) = tr exp(W*W) - d`.

    Args:
      weights: Weighted adjacency matrix (d, d).

    Returns:
      A scalar >= 0, and 0 exactly for acyclic graphs.

    Reference:
      Zheng et al., DAGs with NO TEARS, 2018 (arXiv 1803.01422).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> round(float(dag.expm_acyclicity(jnp.array([[0.0, 1.0], [1.0, 0.0]]))), 4)
      1.0862
    """
    return jnp.trace(expm(weights * weights)) - len(weights)


@checked()
def polynomial_acyclicity(weights: Float[Array, "d d"]) -> Float[Array, ""]:
    r"""The polynomial characterisation, `h(W) = tr (I + W*W / d)^d - d`.

    Args:
      weights: Weighted adjacency matrix (d, d).

    Returns:
      A scalar >= 0, and 0 exactly for acyclic graphs.

    Reference:
      Yu et al., DAG-GNN, 2019 (arXiv 1904.10098).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> float(dag.polynomial_acyclicity(jnp.array([[0.0, 1.0], [1.0, 0.0]])))
      0.5
    """
    d = len(weights)
    matrix = jnp.eye(d, dtype=weights.dtype) + weights * weights / d
    return jnp.trace(jnp.linalg.matrix_power(matrix, d)) - d


@checked()
def is_acyclic(adjacency: Shaped[Array, "d d"]) -> Bool[Array, ""]:
    r"""Whether a directed graph is acyclic, by repeated squaring of its reachability matrix.

    Args:
      adjacency: Adjacency matrix (d, d); non-zero entries are edges.

    Returns:
      A boolean scalar; False for a graph with self-loops.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> bool(dag.is_acyclic(jnp.array([[0, 1], [0, 0]])))
      True
      >>> bool(dag.is_acyclic(jnp.array([[0, 1], [1, 0]])))
      False
    """

    check_not_nan("is_acyclic", adjacency=adjacency)
    return _is_acyclic(adjacency != 0)


@jax.jit
def _is_acyclic(edges: Bool[Array, "d d"]) -> Bool[Array, ""]:
    def double(_, reach):  # paths of up to twice the length
        return reach | (reach.astype(jnp.float32) @ reach.astype(jnp.float32) > 0)

    reach = jax.lax.fori_loop(0, max(1, len(edges)).bit_length(), double, edges)
    return ~jnp.any(jnp.diagonal(reach))


@checked(threshold="[0, inf)")
def threshold_to_dag(
    weights: Float[Array, "d d"], threshold: ArrayLike = 0.3
) -> Float[Array, "d d"]:
    r"""Prunes small weights, then the smallest remaining ones until the graph is acyclic.

    Weights with `|w| <= threshold` are set to zero. Then the weights of smallest modulus are pruned
    one by one, on a cycle or not, while the graph has a cycle. Bisection finds how many, since
    removing edges never creates a cycle. Among equal weights those of the lowest index are kept.

    Args:
      weights: Weighted adjacency matrix (d, d). Under jit NaN counts as no edge.
      threshold: >= 0.

    Returns:
      The weights of an acyclic graph; weights that are kept are unchanged.

    Raises:
      ValueError: If (outside of jit) an argument holds NaN or infinity.

    Reference:
      Ng et al., On the Role of Sparsity and DAG Constraints for Learning Linear DAGs, 2020
      (arXiv 2006.10201).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> dag.threshold_to_dag(jnp.array([[0.0, 0.9], [0.4, 0.0]])).tolist()
      [[0.0, 0.8999999761581421], [0.0, 0.0]]
    """
    check_finite("threshold_to_dag", weights=weights, threshold=threshold)
    return _threshold_to_dag(weights, threshold)


@jax.jit
def _threshold_to_dag(weights: Float[Array, "d d"], threshold: ArrayLike) -> Float[Array, "d d"]:
    size = jnp.where(jnp.abs(weights) > jnp.asarray(threshold, weights.dtype), jnp.abs(weights), 0)
    falling = jnp.argsort(-size.ravel(), stable=True)
    place = jnp.zeros_like(falling).at[falling].set(jnp.arange(size.size)).reshape(size.shape)

    def first(kept):
        return jnp.where((place < kept) & (size > 0), weights, 0)

    def halve(_, bounds):
        low, high = bounds  # low edges are acyclic, more than high are not
        middle = (low + high + 1) // 2
        fine = _is_acyclic(first(middle) != 0)
        return jnp.where(fine, middle, low), jnp.where(fine, high, middle - 1)

    edges = jnp.sum(size > 0)
    rounds = int(np.ceil(np.log2(size.size + 1))) + 1
    kept, _ = jax.lax.fori_loop(0, rounds, halve, (jnp.zeros_like(edges), edges))
    return first(kept)
