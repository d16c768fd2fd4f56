"""Sub-networks made of nodes: which neurons of a chain of layers are there."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree

from ..._arguments import check_key
from ..._topk import topk_mask
from ..._tree import is_kernel, map_named, named_leaves, natural_order, pure


def node_masks(
    key: Key[Array, ""], widths: Sequence[int], sparsity: float
) -> tuple[Bool[Array, "_"], ...]:
    r"""Random nodes of each hidden layer: `max(1, n - round(n * sparsity))` of n, drawn uniformly.

    Node sparsity is not weight sparsity: between two hidden layers the fraction
    `(1 - sparsity)^2` of the weights is left. Count them on the masks of `edges_from_nodes`.

    Args:
      key: A key made by `jax.random.key`.
      widths: Number of nodes of each hidden layer.
      sparsity: Fraction of the nodes of each layer that are absent, in [0, 1]; one always stays.

    Returns:
      A mask for each layer, True where the node stays.

    Raises:
      ValueError: If the sparsity is outside [0, 1] or a layer has no nodes.

    Reference:
      Farahani, Random Search as a Baseline for Sparse Neural Network Architecture Search, 2024
      (arXiv 2403.08265).

    Example:
      >>> import jax, sparsejax as sj
      >>> nodes = sj.nn.surgery.node_masks(jax.random.key(0), [8, 4], 0.75)
      >>> [int(m.sum()) for m in nodes]
      [2, 1]
    """
    check_key("key", key)
    if not 0 <= sparsity <= 1 or any(n < 1 for n in widths):
        raise ValueError(
            f"node_masks(widths={list(widths)}, sparsity={sparsity}): the widths must be at least "
            "1 and the sparsity the fraction of nodes that are absent, in [0, 1]."
        )

    def draw(key, n):
        return topk_mask(jax.random.uniform(key, (n,)), max(1, n - round(n * sparsity)))

    return tuple(map(draw, jax.random.split(key, max(len(widths), 1)), widths))


def edges_from_nodes(params: PyTree, nodes: Sequence[Bool[Array, "_"]]) -> PyTree:
    r"""The masks of weights and biases that leave only the edges between nodes that stay.

    The kernels are a chain, in the order of their names (`layer_2` before `layer_10`): kernel l
    has the mask `outer(m_(l-1), m_l)` over its inputs and outputs and the bias beside it `m_l`;
    network inputs and outputs all stay. Convolutions are masked by channel. Whatever the
    activation gives at 0, the next kernel does not see it.

    Args:
      params: A tree of arrays whose kernels follow each other.
      nodes: A mask for each hidden layer.

    Returns:
      A tree like `params` of boolean arrays; None for other leaves.

    Raises:
      ValueError: If there is not one more kernel than layers of nodes, or their sizes differ.
      TypeError: If the masks are not boolean.

    Reference:
      Farahani, 2024 (arXiv 2403.08265).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 1))}}
      >>> masks = sj.nn.surgery.edges_from_nodes(params, [jnp.array([True, False, True])])
      >>> masks["a"]["kernel"].astype(int).tolist(), masks["b"]["kernel"].ravel().tolist()
      ([[1, 0, 1], [1, 0, 1]], [True, False, True])
    """
    params = pure(params)
    sides = _sides(params, nodes)

    def mask(name, leaf):
        if name in sides:
            inputs, outputs = sides[name]
            return jnp.broadcast_to(jnp.outer(inputs, outputs), leaf.shape)
        kernel = _kernel_beside(name, sides)
        return sides[kernel][1] if kernel else None

    return map_named(mask, params)


def compact(params: PyTree, nodes: Sequence[Bool[Array, "_"]]) -> PyTree:
    r"""The parameters of the network that has only the nodes that stay: the same function, smaller.

    Args:
      params: A tree of arrays whose kernels follow each other.
      nodes: A mask for each hidden layer; not traced, since they say the shapes.

    Returns:
      A tree like `params` with smaller kernels and biases.

    Raises:
      ValueError: As `edges_from_nodes`.
      TypeError: As `edges_from_nodes`.

    Reference:
      Farahani, 2024 (arXiv 2403.08265).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 1))}}
      >>> small = sj.nn.surgery.compact(params, [jnp.array([True, False, True])])
      >>> small["a"]["kernel"].shape, small["b"]["kernel"].shape
      ((2, 2), (2, 1))
    """
    params = pure(params)
    sides = _sides(params, nodes)

    def cut(name, leaf):
        if name in sides:
            inputs, outputs = map(np.asarray, sides[name])
            return leaf[..., inputs, :][..., outputs]
        kernel = _kernel_beside(name, sides)
        return leaf[np.asarray(sides[kernel][1])] if kernel else leaf

    return map_named(cut, params)


def _sides(params: PyTree, nodes: Sequence[Array]) -> dict[str, tuple[Array, Array]]:
    """The masks of the inputs and the outputs of each kernel."""
    kernels = {name: leaf for name, leaf in named_leaves(params).items() if is_kernel(name, leaf)}
    ordered = sorted(kernels, key=natural_order)
    if len(ordered) != len(nodes) + 1:
        raise ValueError(
            f"{len(nodes)} hidden layers of nodes lie between {len(nodes) + 1} kernels, and the "
            f"parameters have {len(ordered)}: {', '.join(ordered)}."
        )
    first, last = kernels[ordered[0]].shape[-2], kernels[ordered[-1]].shape[-1]
    masks = [jnp.ones(first, bool), *map(jnp.asarray, nodes), jnp.ones(last, bool)]
    for i, mask in enumerate(masks[1:-1]):
        if mask.dtype != bool:
            raise TypeError(f"nodes[{i}] holds {mask.dtype}, not booleans; pass nodes != 0.")
    for name, inputs, outputs in zip(ordered, masks, masks[1:]):
        if kernels[name].shape[-2:] != (inputs.size, outputs.size):
            raise ValueError(
                f"{name} has shape {kernels[name].shape} and lies between {inputs.size} and "
                f"{outputs.size} nodes; the kernels must follow each other in the order of their "
                "names."
            )
    return dict(zip(ordered, zip(masks, masks[1:])))


def _kernel_beside(name: str, sides: Mapping[str, Any]) -> str | None:
    """The path of the kernel of the layer whose bias this is, if it is one of the chain."""
    where, slash, leaf = name.rpartition("/")
    beside = (f"{where}{slash}{kernel}" for kernel in ("kernel", "weight"))
    return next((path for path in beside if leaf == "bias" and path in sides), None)
