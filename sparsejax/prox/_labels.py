"""Labels of structured groups: weights of a network that are pruned together."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import PyTree

from .._arguments import checked
from .._tree import is_kernel, map_named, named_leaves
from ..patterns import layout

KINDS = ("neuron", "filter", "channel", "filter_shape", "layer", "element")


class GroupLabels(NamedTuple):
    """Labels in the structure of the parameters (None elsewhere), and the number of groups."""

    labels: PyTree
    num_groups: int


@checked()
def group_labels(
    params: PyTree, kind: str = "neuron", axis: int | tuple[int, ...] | None = None
) -> GroupLabels:
    r"""Group labels by kind, for `prox.wgsef`, `prox.group_lasso` and similar penalties.

    | kind | a group, of kernels `(in, out)` and `(h, w, in, out)` |
    |---|---|
    | neuron, filter | the weights that compute one output: a column and its bias |
    | channel | the weights that read one input channel: a row, or all `(h, w, ., out)` |
    | filter_shape | one position of all filters: a row of the kernel reshaped to a matrix |
    | layer | a kernel and its bias |
    | element | each weight by itself |

    A bias is included if it is in the same module as the kernel and a group consists of whole
    outputs. Different kernels have different groups.

    Args:
      params: A pytree of parameters.
      kind: One of the above.
      axis: The contraction axes of the kernels, if they differ from the default of `sj.plan`.

    Returns:
      The labels, int32 arrays in the structure of params with None for leaves in no group, and the
      number of groups.

    Raises:
      ValueError: If the kind is unknown, params has no kernel, or axes must be given.

    Reference:
      Wen, Wu, Wang, Chen and Li, Learning Structured Sparsity in Deep Neural Networks, 2016,
      arXiv 1608.03665.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import prox
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> labels, num_groups = prox.group_labels(params, "neuron")
      >>> labels["dense"]["kernel"].tolist(), labels["dense"]["bias"].tolist(), num_groups
      ([[0, 1, 2], [0, 1, 2]], [0, 1, 2], 3)
      >>> penalty = prox.wgsef(2, groups=labels)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    leaves = named_leaves(params)
    kernels = {name: leaf for name, leaf in leaves.items() if is_kernel(name, leaf)}
    if not kernels:
        raise ValueError(f"no leaf is named kernel or weight among {', '.join(leaves)}.")
    labels: dict[str, Any] = {}
    count = 0
    for name, kernel in kernels.items():
        bias = _bias_name(name)
        own, outputs, groups = _labels(kernel.shape, kind, axis)
        labels[name] = (own + count).astype(jnp.int32)
        if outputs is not None and bias in leaves and leaves[bias].shape == outputs.shape:
            labels[bias] = (outputs + count).astype(jnp.int32)
        count += groups
    return GroupLabels(map_named(lambda name, leaf: labels.get(name), params), count)


def _labels(shape: tuple[int, ...], kind: str, axis: Any) -> tuple[Any, Any, int]:
    """Labels of a kernel, of its bias (None: in no group), and the number of groups."""
    if kind == "element":
        size = math.prod(shape)
        return jnp.arange(size).reshape(shape), None, size
    view = layout(shape, axis)
    outputs = tuple(shape[a] for a in view.sides[1])
    rows, columns = view.matrix_shape
    if kind == "layer":
        return jnp.zeros(shape, int), jnp.zeros(outputs, int), 1
    if kind in ("neuron", "filter"):
        matrix = jnp.broadcast_to(jnp.arange(columns), (rows, columns))
        return view.from_matrix(matrix), jnp.arange(columns).reshape(outputs), columns
    if kind == "filter_shape":
        matrix = jnp.broadcast_to(jnp.arange(rows)[:, None], (rows, columns))
        return view.from_matrix(matrix), None, rows
    # The last contraction axis indexes input channels, those before it positions.
    channels = shape[view.sides[0][-1]] if len(shape) > 2 and axis is None else rows
    matrix = jnp.broadcast_to((jnp.arange(rows) % channels)[:, None], (rows, columns))
    return view.from_matrix(matrix), None, channels


def _bias_name(name: str) -> str:
    return "/".join([*name.split("/")[:-1], "bias"])
