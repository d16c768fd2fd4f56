"""Random directed acyclic graphs, and samples of the linear models on them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped


def erdos_renyi_dag(key: PRNGKeyArray, nodes: int, edges: float | int) -> Bool[Array, "d d"]:
    r"""A random acyclic graph: every pair in a random order is an edge with the same probability.

    Args:
      key: A random key.
      nodes: The number d of nodes.
      edges: The expected number of edges; `4 * nodes` is called ER4.

    Returns:
      An adjacency matrix (d, d); `[i, j]` is the edge i -> j.

    Raises:
      ValueError: If there are not so many pairs.

    Reference:
      Erdos and Renyi, On random graphs, 1959.

    Example:
      >>> import jax
      >>> from sparsejax.contrib import dag
      >>> graph = dag.erdos_renyi_dag(jax.random.key(0), 20, 40)
      >>> bool(dag.is_acyclic(graph))
      True
    """
    pairs = nodes * (nodes - 1) / 2
    if not 0 <= edges <= pairs:
        raise ValueError(
            f"erdos_renyi_dag: edges must lie between 0 and the {pairs:g} pairs of {nodes} nodes, "
            f"got {edges}; for example erdos_renyi_dag(key, {nodes}, {pairs / 4:g})."
        )
    chosen, order = jax.random.split(key)
    drawn = jax.random.bernoulli(chosen, edges / max(pairs, 1), (nodes, nodes))
    return _relabelled(order, jnp.tril(drawn, -1))


def scale_free_dag(key: PRNGKeyArray, nodes: int, per_node: int) -> Bool[Array, "d d"]:
    r"""A random acyclic graph with hubs: each new node points at earlier ones that many point at.

    Node t draws `min(t, per_node)` distinct earlier nodes, each draw in proportion to 1 + the
    number of edges that enter them; the nodes are relabelled at random.

    Args:
      key: A random key.
      nodes: The number d of nodes.
      per_node: Edges that leave a new node; 4 is called SF4.

    Returns:
      An adjacency matrix (d, d); `[i, j]` is the edge i -> j.

    Raises:
      ValueError: If per_node is not between 1 and nodes - 1.

    Reference:
      Barabasi and Albert, Emergence of Scaling in Random Networks, 1999.

    Example:
      >>> import jax
      >>> from sparsejax.contrib import dag
      >>> int(dag.scale_free_dag(jax.random.key(0), 20, 2).sum())
      37
    """
    if not 1 <= per_node < max(nodes, 2):
        raise ValueError(
            f"scale_free_dag: per_node must lie between 1 and nodes - 1 = {nodes - 1}, got "
            f"{per_node}; for example scale_free_dag(key, {nodes}, 1)."
        )
    growth, order = jax.random.split(key)
    earlier = jnp.arange(nodes)

    def grow(entering, now):
        t, key = now
        # The largest of log weight + Gumbel noise are a draw without replacement.
        score = jnp.log1p(entering) + jax.random.gumbel(key, (nodes,))
        _, best = lax.top_k(jnp.where(earlier < t, score, -jnp.inf), per_node)
        row = jnp.zeros(nodes, bool).at[best].set(True) & (earlier < t)
        return entering + row, row

    keys = jax.random.split(growth, nodes)
    _, rows = lax.scan(grow, jnp.zeros(nodes), (earlier, keys))
    return _relabelled(order, rows)


def _relabelled(key: PRNGKeyArray, graph: Array) -> Array:
    order = jax.random.permutation(key, len(graph))
    return graph[order][:, order]


def edge_weights(
    key: PRNGKeyArray,
    adjacency: Shaped[Array, "d d"],
    low: ArrayLike = 0.5,
    high: ArrayLike = 2.0,
) -> Float[Array, "d d"]:
    r"""Random weights on the edges of a graph, uniform in `[-high, -low]` and `[low, high]`.

    Args:
      key: A random key.
      adjacency: (d, d); entries that are not zero are edges.
      low: The smallest modulus.
      high: The largest modulus.

    Returns:
      A weighted adjacency matrix (d, d).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> w = dag.edge_weights(jax.random.key(0), jnp.array([[0, 1], [0, 0]]))
      >>> bool(0.5 <= abs(w[0, 1]) <= 2.0), w[1].tolist()
      (True, [0.0, 0.0])
    """
    size, sign = jax.random.split(key)
    dtype = jnp.result_type(float)
    moduli = jax.random.uniform(size, adjacency.shape, dtype, low, high)
    signs = jax.random.rademacher(sign, adjacency.shape, dtype)
    return jnp.where(adjacency != 0, moduli * signs, 0)


def sample_sem(
    key: PRNGKeyArray,
    weights: Float[Array, "d d"],
    samples: int,
    scale: ArrayLike = 1.0,
    noise: Callable[..., Array] = jax.random.normal,
) -> Float[Array, "n d"]:
    r"""Samples of a linear structural equation model, `X = X W + Z`, so `X = Z (I - W)^-1`.

    Args:
      key: A random key.
      weights: Weighted adjacency matrix (d, d) of an acyclic graph.
      samples: The number n of samples.
      scale: Standard deviations of the noise, a scalar or (d,).
      noise: Draws Z of unit scale, called as `noise(key, shape, dtype)`: `jax.random.normal`,
        `jax.random.laplace` (variance 2), `jax.random.exponential` (mean 1).

    Returns:
      Samples in rows, (n, d).

    Reference:
      Peters et al., Elements of Causal Inference, 2017.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> weights = jnp.array([[0.0, 2.0], [0.0, 0.0]])
      >>> dag.sample_sem(jax.random.key(0), weights, 100).shape
      (100, 2)
    """
    z = noise(key, (samples, len(weights)), weights.dtype) * jnp.asarray(scale, weights.dtype)
    return jnp.linalg.solve((jnp.eye(len(weights), dtype=weights.dtype) - weights).T, z.T).T
