"""Random node masks."""

import jax
from jaxtyping import Array, Bool, Key

from ..._arguments import check_key, checked
from ..._topk import topk_mask
from ...nn import surgery


@checked(sparsity="[0, 1]")
def random_nodes(
    graph: surgery.ChannelGraph, sparsity: float, *, key: Key[Array, ""]
) -> dict[str, Bool[Array, "_"]]:
    r"""Draws random node masks that keep `max(1, n - round(n * sparsity))` of n nodes per layer.

    Node sparsity differs from weight sparsity: between two hidden layers a fraction
    `(1 - sparsity)^2` of the weights is kept. Count them on the masks of
    `sj.nn.surgery.mask_channels`.

    Args:
      graph: From `sj.nn.surgery.channel_graph`.
      sparsity: Fraction of the nodes pruned in each layer, in [0, 1]; at least one node is kept.
      key: A key from `jax.random.key`.

    Returns:
      A mask for each set of nodes, True where the node is kept, for `mask_channels` and
      `remove_channels`.

    Raises:
      ValueError: If the sparsity is outside [0, 1].

    Reference:
      Farahani, Random Search as a Baseline for Sparse Neural Network Architecture Search, 2024
      (arXiv 2403.08265).

    Example:
      >>> import jax, jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.contrib import search
      >>> params = {"a": {"kernel": jnp.ones((2, 8))}, "b": {"kernel": jnp.ones((8, 3))}}
      >>> graph = sj.nn.surgery.channel_graph(params)
      >>> nodes = search.random_nodes(graph, 0.75, key=jax.random.key(0))
      >>> {name: int(mask.sum()) for name, mask in nodes.items()}
      {'a': 2}
    """
    check_key("key", key)
    if not 0 <= sparsity <= 1:
        raise ValueError(
            f"random_nodes: sparsity={sparsity} must be the fraction of nodes to prune, in [0, 1]."
        )

    def draw(key, n):
        return topk_mask(jax.random.uniform(key, (n,)), max(1, n - round(n * sparsity)))

    keys = jax.random.split(key, max(len(graph.sizes), 1))
    return {name: draw(k, n) for k, (name, n) in zip(keys, graph.sizes.items())}
