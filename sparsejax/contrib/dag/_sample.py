"""Random directed acyclic graphs and samples from linear structural equation models."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from ..._arguments import check_callable, check_finite, checked, checked_number, known
from ..._sharding import on_host
from ._acyclicity import is_acyclic


@checked(nodes="[1, inf)")
def erdos_renyi_dag(nodes: int, edges: float | int, *, key: PRNGKeyArray) -> Bool[Array, "d d"]:
    r"""A random acyclic graph in which every pair of nodes is an edge with equal probability.

    Edges follow a random order of the nodes.

    Args:
      nodes: Number d of nodes.
      edges: Expected number of edges; `4 * nodes` is called ER4.
      key: A random key.

    Returns:
      An adjacency matrix (d, d); `[i, j]` is the edge i -> j.

    Raises:
      ValueError: If `edges` is negative or exceeds the number of pairs.

    Reference:
      Erdos and Renyi, On random graphs, 1959.

    Example:
      >>> import jax
      >>> from sparsejax.contrib import dag
      >>> graph = dag.erdos_renyi_dag(20, 40, key=jax.random.key(0))
      >>> bool(dag.is_acyclic(graph))
      True
    """
    pairs = nodes * (nodes - 1) / 2
    if not 0 <= edges <= pairs:
        raise ValueError(
            f"erdos_renyi_dag: edges must lie between 0 and the {pairs:g} pairs of {nodes} nodes, "
            f"got {edges}; for example erdos_renyi_dag({nodes}, {pairs / 4:g}, key=key)."
        )
    chosen, order = jax.random.split(key)
    drawn = jax.random.bernoulli(chosen, edges / max(pairs, 1), (nodes, nodes))
    return _relabelled(order, jnp.tril(drawn, -1))


@checked(nodes="[1, inf)")
def scale_free_dag(nodes: int, per_node: int, *, key: PRNGKeyArray) -> Bool[Array, "d d"]:
    r"""A random acyclic graph with hubs, by preferential attachment.

    Node t draws `min(t, per_node)` distinct earlier nodes with probability proportional to 1 plus
    their in-degree; the nodes are relabelled at random.

    Args:
      nodes: Number d of nodes.
      per_node: Number of edges that leave a new node; 4 is called SF4.
      key: A random key.

    Returns:
      An adjacency matrix (d, d); `[i, j]` is the edge i -> j.

    Raises:
      ValueError: If per_node is not between 1 and nodes - 1.

    Reference:
      Barabasi and Albert, Emergence of Scaling in Random Networks, 1999.

    Example:
      >>> import jax
      >>> from sparsejax.contrib import dag
      >>> int(dag.scale_free_dag(20, 2, key=jax.random.key(0)).sum())
      37
    """
    if not 1 <= per_node < max(nodes, 2):
        raise ValueError(
            f"scale_free_dag: per_node must lie between 1 and nodes - 1 = {nodes - 1}, got "
            f"{per_node}; for example scale_free_dag({nodes}, 1, key=key)."
        )
    growth, order = jax.random.split(key)
    return _relabelled(order, _grown(growth, nodes, per_node))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _grown(key: PRNGKeyArray, nodes: int, per_node: int) -> Array:
    """The rows of the graph, in the order in which the nodes enter."""
    earlier = jnp.arange(nodes)

    def grow(entering, now):
        t, key = now
        # Gumbel top-k: the largest log weights + Gumbel noise are a draw without replacement.
        score = jnp.log1p(entering) + jax.random.gumbel(key, (nodes,))
        _, best = lax.top_k(jnp.where(earlier < t, score, -jnp.inf), per_node)
        row = jnp.zeros(nodes, bool).at[best].set(True) & (earlier < t)
        return entering + row, row

    keys = jax.random.split(key, nodes)
    return lax.scan(grow, jnp.zeros(nodes), (earlier, keys))[1]


def _relabelled(key: PRNGKeyArray, graph: Array) -> Array:
    order = jax.random.permutation(key, len(graph))
    return graph[order][:, order]


@checked(low="[0, inf)", high="[0, inf)")
def edge_weights(
    adjacency: Shaped[Array, "d d"],
    low: ArrayLike = 0.5,
    high: ArrayLike = 2.0,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "d d"]:
    r"""Random edge weights, uniform in `[-high, -low]` and `[low, high]`.

    Args:
      adjacency: Adjacency matrix (d, d); non-zero entries are edges.
      low: Smallest absolute value.
      high: Largest absolute value.
      key: A random key.

    Returns:
      A weighted adjacency matrix (d, d).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> w = dag.edge_weights(jnp.array([[0, 1], [0, 0]]), key=jax.random.key(0))
      >>> bool(0.5 <= abs(w[0, 1]) <= 2.0), w[1].tolist()
      (True, [0.0, 0.0])
    """
    size, sign = jax.random.split(key)
    dtype = jnp.result_type(float)
    moduli = jax.random.uniform(size, adjacency.shape, dtype, low, high)
    signs = jax.random.rademacher(sign, adjacency.shape, dtype)
    return jnp.where(adjacency != 0, moduli * signs, 0)


@checked(n_samples="[1, inf)")
def sample_sem(
    weights: Float[Array, "d d"],
    n_samples: int,
    scale: ArrayLike = 1.0,
    noise: Callable[..., Array] = jax.random.normal,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "n d"]:
    r"""Samples from a linear structural equation model, `X = X W + Z`, so `X = Z (I - W)^-1`.

    Args:
      weights: Weighted adjacency matrix (d, d) of an acyclic graph.
      n_samples: Number n of samples.
      scale: Standard deviations of the noise, a scalar or (d,).
      noise: Sampler of Z at unit scale, called as `noise(key, shape, dtype)`: `jax.random.normal`,
        `jax.random.laplace` (variance 2), `jax.random.exponential` (mean 1).
      key: A random key.

    Returns:
      Samples in rows, (n, d).

    Raises:
      ValueError: If (outside of jit) the graph has a cycle or a weight is not finite.

    Reference:
      Peters et al., Elements of Causal Inference, 2017.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> weights = jnp.array([[0.0, 2.0], [0.0, 0.0]])
      >>> dag.sample_sem(weights, 100, key=jax.random.key(0)).shape
      (100, 2)
    """
    check_callable("noise", noise, "key", "shape", "dtype")
    if np.shape(scale) not in ((), weights.shape[:1]):
        raise ValueError(
            f"sample_sem: scale must be a number or of shape ({len(weights)},), got "
            f"{np.shape(scale)}; scale=1.0."
        )
    checked_number("scale", scale, "dag.sample_sem(W, 100, scale=1.0, key=key)")
    check_finite("sample_sem", scale=scale, weights=weights)
    if known(weights):
        with jax.ensure_compile_time_eval():  # known weights, also inside jit
            if not is_acyclic(jnp.asarray(on_host(weights))):
                raise ValueError(
                    f"sample_sem: weights {weights.shape} must be those of an acyclic graph; "
                    "dag.threshold_to_dag(weights) removes edges."
                )
    z = noise(key, (n_samples, len(weights)), weights.dtype) * jnp.asarray(scale, weights.dtype)
    return jnp.linalg.solve((jnp.eye(len(weights), dtype=weights.dtype) - weights).T, z.T).T
