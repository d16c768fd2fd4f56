"""Permutes, masks or removes channels consistently in a whole network."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree, Shaped

from ..._arguments import checked
from ..._sharding import on_host
from ..._tree import is_array, map_named, name_of, named_leaves, pure
from .._frameworks import load_frameworks
from ._graph import GROUPS, ChannelGraph, Segment, is_module

Keep = Mapping[str, Shaped[Array | np.ndarray, "..."]]  # a vector of booleans by set
# Low-rank factors beside a kernel: the first has the input axis of the kernel, the second its
# output axis.
_LOW_RANK = re.compile(r"lora_(a|b)(/weight|/kernel)?$", re.IGNORECASE)
# Names of the size attributes of Flax and Equinox layers.
_INPUTS, _OUTPUTS = ("in_features", "in_channels"), ("out_features", "out_channels", "num_features")


@checked()
def permute_channels(
    model: PyTree, graph: ChannelGraph, permutations: Mapping[str, np.ndarray]
) -> PyTree:
    r"""The same network with permuted channels.

    Works on a module, on its parameters, and on every tree with the same paths: batch statistics,
    averaged weights, moments of an optimizer (`opt_state[0].mu`). Inverse permutations
    (`jnp.argsort`) restore the original tree. LoRA factors beside a kernel are permuted with it.

    Args:
      model: An NNX or Equinox module or a tree.
      graph: From `channel_graph`.
      permutations: By set, the channel at each position; other sets are unchanged.

    Returns:
      A tree or module of the same kind.

    Raises:
      ValueError: If a permutation is invalid for its set, a leaf does not have the channels, or the
        channel axes of a leaf beside a kernel are unknown.

    Example:
      >>> import jax.numpy as jnp, numpy as np, sparsejax as sj
      >>> from sparsejax.nn import surgery
      >>> params = {"a": {"kernel": jnp.eye(2)}, "b": {"kernel": jnp.eye(2)}}
      >>> graph = surgery.channel_graph(params)
      >>> swapped = surgery.permute_channels(params, graph, {"a": np.array([1, 0])})
      >>> (swapped["a"]["kernel"] @ swapped["b"]["kernel"]).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    for name, order in permutations.items():
        _check_set("permute_channels", name, graph)
        known = is_array(order) and np.ndim(order) == 1
        if not known or not np.array_equal(np.sort(order), np.arange(graph.sizes[name])):
            raise ValueError(
                f"permute_channels: permutations of {name} must hold each of 0 to "
                f"{graph.sizes[name] - 1} once."
            )
    return _gathered("permute_channels", model, graph, permutations)


@checked()
def remove_channels(
    model: PyTree, graph: ChannelGraph, keep: Keep, *, fold_bias: bool = False
) -> PyTree:
    r"""A smaller network without some channels: smaller layers instead of zeros.

    Channels are removed from the layers that produce them, the norms in between, and the layers
    that read them. A removed channel of a norm with a shift contributed the constant `relu(shift)`;
    `fold_bias` adds it to the biases of the readers, which is exact if a ReLU follows the norm and
    the readers are dense.

    Args:
      model: An NNX or Equinox module or a tree of parameters; it is not changed.
      graph: From `channel_graph`.
      keep: By set, True for the kept channels; other sets are unchanged.
      fold_bias: Whether to fold the constants of removed channels (at scale 0) into the biases.

    Returns:
      A module of the same class, or a tree.

    Raises:
      TypeError: If a mask is not a vector of booleans.
      ValueError: As for `permute_channels`, or if no channel of a set is kept.

    Reference:
      Liu et al., Network Slimming, 2017 (arXiv 1708.06519).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.nn import surgery
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 2, rngs=rngs))
      >>> keep = {"layers/0": jnp.array([True, False, True, True, False, True])}
      >>> small = surgery.remove_channels(model, surgery.channel_graph(model), keep)
      >>> small.layers[0].kernel.shape, small.layers[2].kernel.shape
      ((4, 4), (4, 2))
    """
    kept = _checked_masks("remove_channels", graph, keep)
    for name, mask in kept.items():
        if not mask.any():
            raise ValueError(
                f"remove_channels: keep must be True for at least one channel of {name}, got none."
            )
    if fold_bias:
        model = _map_leaves(_folded(model, graph, kept), model)
    load_frameworks()
    small = _gathered("remove_channels", model, graph, {n: m.nonzero()[0] for n, m in kept.items()})
    return resized(small, graph, {name: int(mask.sum()) for name, mask in kept.items()})


@checked()
def mask_channels(params: PyTree, graph: ChannelGraph, keep: Keep) -> PyTree:
    r"""The masks of `remove_channels`, at full size.

    A kernel has the mask `outer(inputs, outputs)`, leaves beside it the mask of its outputs. The
    next kernel ignores the value of the activation at 0.

    Args:
      params: A tree of parameters or a module.
      graph: From `channel_graph`.
      keep: By set, True for the kept channels; can be traced.

    Returns:
      A tree like the parameters of boolean arrays; None for leaves of layers that are not in the
      graph.

    Raises:
      TypeError: If a mask is not a vector of booleans.
      ValueError: As for `permute_channels`.

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from sparsejax.nn import surgery
      >>> params = {"a": {"kernel": jnp.ones((1, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
      >>> keep = {"a": jnp.array([True, False])}
      >>> surgery.mask_channels(params, surgery.channel_graph(params), keep)["b"]["kernel"].tolist()
      [[True, True], [False, False]]
    """
    for name, kept in keep.items():
        _check_mask("mask_channels", name, kept, graph)
    params = pure(params)
    layers = graph.makes.keys() | graph.kernels.keys()

    def mask(name: str, leaf: Any) -> Any:
        if _owner(name, layers) is None:
            return None
        ones = jnp.ones(leaf.shape, bool)
        for axis, segments in _carried("mask_channels", name, leaf, graph, keep):
            along = [_repeated(keep, graph, s) for s in segments]
            shape = [1] * leaf.ndim
            shape[axis] = -1
            ones &= jnp.concatenate(along).reshape(shape)
        return ones

    return map_named(mask, params)


@functools.singledispatch
def resized(model: Any, graph: ChannelGraph, sizes: Mapping[str, int], prefix: str = "") -> Any:
    """Updates the size attributes of layers after channels were removed, by framework."""

    def below(path: Any, node: Any) -> Any:
        if not is_module(node, model):
            return node
        return resized(node, graph, sizes, "/".join(filter(None, (prefix, name_of(path)))))

    return jax.tree.map_with_path(below, model, is_leaf=lambda x: is_module(x, model))


@resized.register
def _(model: nnx.Module, graph: ChannelGraph, sizes: Mapping[str, int], prefix: str = "") -> Any:
    del prefix
    for path, module in nnx.iter_modules(model):
        for name, value in sizes_of("/".join(map(str, path)), vars(module), graph, sizes):
            setattr(module, name, value)
    return model


def sizes_of(
    layer: str, about: Mapping[str, Any], graph: ChannelGraph, sizes: Mapping[str, int]
) -> Iterator[tuple[str, Any]]:
    """The names and new values of the size attributes of a layer."""
    made, read = graph.makes.get(layer, ()), graph.reads.get(layer, ())
    sides = [(_INPUTS, read), (_OUTPUTS, made)]
    if layer in graph.kernels and all(s.source != layer for s in made):  # depthwise
        sides.append((_INPUTS + GROUPS, made))
    for names, segments in sides:
        if not graph.touched(segments, sizes):
            continue
        old = sum(s.size * s.each for s in segments)
        new = sum(sizes.get(graph.sources[s.source] or "", s.size) * s.each for s in segments)
        for name in names:
            if isinstance(value := about.get(name), int):
                yield name, value * new // old


def _gathered(what: str, model: Any, graph: ChannelGraph, places: Mapping[str, Any]) -> Any:
    """Takes the channels at these positions of each set, in all leaves that carry them."""
    _check_network(what, nnx.state(model) if isinstance(model, nnx.Module) else model, graph)

    def at(name: str, leaf: Any) -> Any:
        for axis, segments in _carried(what, name, leaf, graph, places):
            # On the host, so that nothing is compiled.
            take = np.take if isinstance(leaf, np.ndarray) else jnp.take
            leaf = take(leaf, _flat_places(segments, graph, places), axis=axis)
        return leaf

    return _map_leaves(at, model)


def _map_leaves(f: Callable[[str, Any], Any], model: Any) -> Any:
    if not isinstance(model, nnx.Module):
        return map_named(f, model)
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, map_named(f, state))


def _carried(
    what: str, name: str, leaf: Any, graph: ChannelGraph, sets: Mapping[str, Any]
) -> Iterator[tuple[int, tuple[Segment, ...]]]:
    """The axes of a leaf that carry channels of these sets, with their segments."""
    layer = _owner(name, graph.makes.keys() | graph.kernels.keys())
    if layer is None or not getattr(leaf, "ndim", 0):
        return
    kernel, rest = graph.kernels.get(layer), name.removeprefix(layer).removeprefix("/")
    made, read = graph.makes.get(layer, ()), graph.reads.get(layer, ())
    touched = {"a": graph.touched(made, sets), "b": graph.touched(read, sets)}
    if not any(touched.values()):
        return
    low_rank = _LOW_RANK.search(rest) if kernel else None
    if "/" in rest and not low_rank:
        raise ValueError(
            f"{what}: {name} of shape {tuple(leaf.shape)} is below the layer {layer}, and "
            "its channel axes are unknown; declare its owner as a separate layer, "
            f'channel_graph(model, [..., ("{name.rpartition("/")[0]}", "same", ...)]), or '
            "merge it into the kernel."
        )
    outputs = kernel.outputs if kernel else -1
    is_kernel = kernel is not None and kernel.path == name
    found = []
    if kernel and (is_kernel or (low_rank and low_rank[1].lower() == "a")):
        found.append((kernel.inputs, read))
    if not low_rank or low_rank[1].lower() == "b":
        found.append((outputs, made))
    for axis, segments in found:
        if not graph.touched(segments, sets):
            continue
        length = sum(s.size * s.each for s in segments)
        if leaf.shape[axis] != length:
            raise ValueError(
                f"{what}: axis {axis} of {name} of shape {tuple(leaf.shape)} must have {length} "
                "channels; pass a tree of the network from which the graph was made."
            )
        yield axis, segments


def _owner(name: str, layers: Any) -> str | None:
    """The innermost layer that contains a leaf."""
    parts = name.split("/")
    above = ("/".join(parts[:count]) for count in reversed(range(len(parts))))
    return next((layer for layer in above if layer in layers), None)


def _flat_places(
    segments: tuple[Segment, ...], graph: ChannelGraph, places: Mapping[str, Any]
) -> np.ndarray:
    parts, start = [], 0
    for source, size, each in segments:
        chosen = np.asarray(places.get(graph.sources[source] or "", np.arange(size)))
        parts.append(start + (chosen[:, None] * each + np.arange(each)).ravel())
        start += size * each
    return np.concatenate(parts)


def _repeated(keep: Mapping[str, Any], graph: ChannelGraph, segment: Segment) -> Any:
    """Values by set, as an axis carries the channels of a segment; True where they are fixed."""
    values = keep.get(graph.sources[segment.source] or "", np.ones(segment.size, bool))
    return jnp.repeat(jnp.asarray(values), segment.each)


def _folded(model: Any, graph: ChannelGraph, keep: Mapping[str, np.ndarray]) -> Any:
    """A function that adds the constants of removed channels to the biases of readers."""
    leaves = named_leaves(nnx.state(model) if isinstance(model, nnx.Module) else pure(model))
    constants: dict[str, Any] = {}
    for layer, segments in graph.makes.items():
        shift = leaves.get(f"{layer}/bias")
        if layer in graph.kernels or shift is None or len(segments) != 1:
            continue
        name = graph.sources[segments[0].source]
        if name is not None and name in keep:
            constants[name] = constants.get(name, 0) + shift
    added: dict[str, Any] = {}
    for layer, segments in graph.reads.items():
        if not graph.touched(segments, keep):
            continue
        kernel = graph.kernels[layer]
        w, bias = leaves[kernel.path], f"{layer}/bias"
        if w.ndim > 2 or bias not in leaves:
            raise ValueError(
                f"remove_channels: fold_bias requires a dense layer {layer} with a bias."
            )
        left = {n: jnp.where(m, 0, jax.nn.relu(constants.get(n, 0.0))) for n, m in keep.items()}
        given = jnp.concatenate([_constants(left, graph, s) for s in segments])
        added[bias] = jnp.tensordot(given, w, (0, kernel.inputs % w.ndim))
    return lambda name, leaf: leaf + added[name] if name in added else leaf


def _constants(left: Mapping[str, Any], graph: ChannelGraph, segment: Segment) -> Any:
    values = left.get(graph.sources[segment.source] or "", jnp.zeros(segment.size))
    return jnp.repeat(values, segment.each)


def _checked_masks(what: str, graph: ChannelGraph, keep: Keep) -> dict[str, np.ndarray]:
    for name, mask in keep.items():
        _check_mask(what, name, mask, graph)
    return {name: on_host(mask) for name, mask in keep.items()}


def _check_mask(what: str, name: str, mask: Any, graph: ChannelGraph) -> None:
    _check_set(what, name, graph)
    if not is_array(mask):
        raise TypeError(f"{what}: keep must hold a vector of booleans for {name}, got {mask!r}.")
    if mask.dtype != bool or mask.ndim != 1:
        raise TypeError(
            f"{what}: the mask of {name} of shape {mask.shape} holds {mask.dtype}; it must be a "
            "vector of booleans, as keep != 0."
        )
    if mask.shape[0] != graph.sizes[name]:
        raise ValueError(
            f"{what}: the mask of {name} has {mask.shape[0]} entries for {graph.sizes[name]} "
            "channels."
        )


def _check_network(what: str, params: Any, graph: ChannelGraph) -> None:
    """Raises if the tree has no kernel of the network from which the graph was made."""
    kernels = [kernel.path for kernel in graph.kernels.values()]
    leaves = named_leaves(pure(params))
    if kernels and not any(path in leaves for path in kernels):
        raise ValueError(
            f"{what}: the model has none of the kernels of graph, {', '.join(kernels)}; it has "
            f"{', '.join(leaves)}. Pass the network from which the graph was made."
        )


def _check_set(what: str, name: str, graph: ChannelGraph) -> None:
    if name not in graph.sets:
        raise ValueError(
            f"{what}: {name} is not a set of channels that can be changed; the sets are "
            f"{', '.join(graph.sets) or 'none'}."
        )
