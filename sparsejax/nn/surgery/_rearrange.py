"""Reordering of the channels of a network for group pruning."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from ..._arguments import checked
from ..._sharding import on_host
from ..._tree import named_leaves, pure
from ...masks import Plan, magnitude
from ...patterns import Block
from ._channels import permute_channels
from ._graph import ChannelGraph, Kernel


class Rearranged(NamedTuple):
    """A network with permuted channels, the permutations, and the kept fraction of |W|."""

    model: Any
    permutations: dict[str, np.ndarray]
    before: float
    after: float


@checked()
def rearrange(
    model: PyTree,
    graph: ChannelGraph,
    plan: Plan,
    *,
    method: Literal["l1", "greedy"] = "l1",
) -> Rearranged:
    r"""Reorders the channels of a network so that pruning in groups keeps more magnitude.

    The function of the network is unchanged up to rounding: a permutation of the channels of a
    layer is applied to all layers that read them, through norms, depthwise convolutions, residual
    sums, concatenations and flattening. For each set of coupled channels

    - "l1" sorts them by `sum |W[..., c]|` over all layers that produce them, in descending order;
    - "greedy" also tries groups grown from the strongest remaining channel; the next channel is the
      one that maximises the sum of the largest entries of the sum of |W| over the group, as many as
      the plan keeps;

    and uses an order only if it increases the kept fraction, `sum |W| mask / sum |W|`. Rearrange
    before constructing the optimizer, or call `permute_channels` on its moments, too.

    Args:
      model: An NNX module or a tree of parameters; it is not changed.
      graph: From `channel_graph`.
      plan: The plan to prune by, such as `sj.plan(model, {r"project/kernel$": sj.Block((1, 16),
        0.5)})`.
      method: "l1" or "greedy".

    Returns:
      A `Rearranged` with a model of the same kind; `after >= before`.

    Raises:
      ValueError: If no leaf of the model is planned, or the method is unknown.

    Reference:
      Xu et al., SparseByteNN, 2023 (arXiv 2310.19509).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.nn import surgery
      >>> params = {"a": {"kernel": jnp.array([[9.0, 1.0, 9.0, 1.0]])},
      ...           "b": {"kernel": jnp.ones((4, 2))}}
      >>> layers = [("x", "input", ()), ("a", "dense", ("x",)), ("b", "dense", ("a",))]
      >>> graph = surgery.channel_graph(params, layers)
      >>> plan = sj.plan(params, {"a": sj.Block((1, 2), 0.5)})
      >>> found = surgery.rearrange(params, graph, plan)
      >>> found.permutations["a"].tolist(), found.before, found.after
      ([0, 2, 1, 3], 0.5, 0.9)
    """
    Plan.require("surgery.rearrange", plan)
    if method not in ("l1", "greedy"):
        raise ValueError(f'rearrange(method={method!r}) must be "l1" or "greedy".')
    # Sort and gather on the host, so that nothing is compiled.
    params = jax.tree.map(on_host, pure(model))
    best = before = _kept(params, plan)
    permutations: dict[str, np.ndarray] = {}
    for name in graph.sets:
        for order in _candidates(name, params, graph, plan, method):
            tried = jax.tree.map(np.asarray, permute_channels(params, graph, {name: order}))
            kept = _kept(tried, plan)
            if kept > best * (1 + 1e-9):
                best, permutations[name] = kept, order
    if isinstance(model, nnx.Module) or permutations:
        model = permute_channels(model, graph, permutations)
    return Rearranged(model, permutations, before, _kept(pure(model), plan))


@partial(jax.jit, static_argnames="plan")
def _masks(params: PyTree, plan: Plan) -> PyTree:
    return plan.masks(magnitude(params))


def _kept(params: PyTree, plan: Plan) -> float:
    leaves, kept, total = named_leaves(params), 0.0, 0.0
    for name, mask in named_leaves(_masks(params, plan)).items():
        size = np.abs(np.asarray(leaves[name], np.float64))
        kept, total = kept + size[on_host(mask)].sum(), total + size.sum()
    return float(kept / total) if total else 1.0


def _candidates(name: str, params: PyTree, graph: ChannelGraph, plan: Plan, method: str):
    strength = _strength(name, params, graph)
    order = np.argsort(-strength, kind="stable")
    yield order
    if method == "greedy":
        leaves = named_leaves(params)
        made = [graph.kernels[layer] for layer in graph.sets[name]]
        blocks = [k for k in made if k.path in plan and isinstance(plan[k.path].pattern, Block)]
        if blocks:
            planned = [plan[kernel.path] for kernel in blocks]
            n = max(leaf.pattern.shape[1] for leaf in planned)  # pyright: ignore
            sizes = [_by_output(leaves[k.path], k) for k in blocks]
            yield _grown(sizes, [1 - x.sparsity for x in planned], order, n)


def _strength(name: str, params: PyTree, graph: ChannelGraph) -> np.ndarray:
    """The sum of |W| over the kernels with this output channel, depthwise ones included."""
    total = np.zeros(graph.sizes[name])
    leaves = named_leaves(params)
    for layer, segments in graph.makes.items():
        kernel = graph.kernels.get(layer)
        if kernel is None or kernel.path not in leaves:
            continue
        column = _by_output(np.asarray(leaves[kernel.path], np.float64), kernel).sum(0)
        start = 0
        for source, size, each in segments:
            if graph.sources[source] == name:
                total += column[start : start + size * each].reshape(size, each).sum(1)
            start += size * each
    return total


def _by_output(w: np.ndarray, kernel: Kernel) -> np.ndarray:
    """|W| with one column for each output."""
    return np.abs(np.moveaxis(w, kernel.outputs, -1)).reshape(-1, w.shape[kernel.outputs])


def _grown(sizes: list[np.ndarray], rates: list[float], order: np.ndarray, n: int) -> np.ndarray:
    """Groups of n channels, each grown from the strongest remaining channel."""
    left, grown = list(order), []
    while left:
        group = [left.pop(0)]
        while left and len(group) < n:
            gain = sum(
                _largest(x[:, group].sum(1, keepdims=True) + x[:, left], rate)
                for x, rate in zip(sizes, rates)
            )
            group.append(left.pop(int(np.argmax(gain))))
        grown += group
    return np.array(grown)


def _largest(x: np.ndarray, rate: float) -> np.ndarray:
    """The sum of the largest entries of each column."""
    cut = len(x) - max(1, round(rate * len(x)))
    return (x if cut == 0 else np.partition(x, cut, axis=0)[cut:]).sum(0)
