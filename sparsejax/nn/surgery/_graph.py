"""Channels that must move together, and trees whose channels are put in another order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from ..._tree import map_named, named_leaves, pure

KINDS = ("input", "dense", "depthwise", "same", "add", "concat", "flatten", "flatten_first")


class Segment(NamedTuple):
    """A stretch of an axis: the channels that `source` makes, each `each` entries long."""

    source: str
    size: int
    each: int = 1


class Axis(NamedTuple):
    """The segments of an axis, and how positions were flattened into it, if they were."""

    segments: tuple[Segment, ...]
    flat: str = ""


@dataclass(frozen=True)
class ChannelGraph:
    """Which axes carry the same channels, from `channel_graph`.

    Args:
      sets: By the first layer that makes them, the layers that make one set of channels; only the
        sets that may be permuted.
      sizes: Number of channels of each set.
      reads: By layer, the axis its kernel contracts.
      makes: By layer, its output axis, which its biases and norms have, too.
      sources: The set of each layer that makes channels; None where they are fixed.
    """

    sets: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    reads: dict[str, tuple[Segment, ...]]
    makes: dict[str, tuple[Segment, ...]]
    sources: dict[str, str | None]


def channel_graph(model: PyTree, layers: Sequence[tuple[str, str, Sequence[str]]]) -> ChannelGraph:
    r"""Finds the channels of a network that can be permuted without changing what it computes.

    The layers are given in order as `(path, kind, inputs)`, inputs being paths of earlier ones:

    - "input": the network's input, whose channels stay where they are;
    - "dense": a linear layer or a full convolution, kernel `(..., in, out)`;
    - "depthwise": a convolution of each channel by itself, kernel `(..., 1, channels)`;
    - "same": norms, biases, activations, pooling, anything that acts on each channel alike;
    - "add": the sum of its inputs; "concat": the channels of its inputs one after the other;
    - "flatten": positions and channels in one axis, channels fastest (images channel last);
      "flatten_first" where positions are fastest.

    What no layer reads is an output, whose channels stay. Channels that a grouped convolution
    reads or makes stay, too.

    Args:
      model: An NNX module or a tree of parameters, in which `path/kernel` is found.
      layers: As above; `model.channel_layers()` of a `sj.models.MobileNet`.

    Returns:
      A `ChannelGraph`.

    Raises:
      ValueError: If a kind or an input is unknown, a kernel is missing, or sizes do not match.

    Reference:
      Xu et al., SparseByteNN, 2023 (arXiv 2310.19509).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.ones((2, 4))}, "b": {"kernel": jnp.ones((4, 3))}}
      >>> layers = [("x", "input", ()), ("a", "dense", ("x",)), ("b", "dense", ("a",))]
      >>> sj.nn.surgery.channel_graph(params, layers).sets
      {'a': ('a',)}
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(pure(model)).items()}
    tracer = _Tracer(shapes)
    for name, kind, inputs in layers:
        tracer.add(name, kind, tuple(inputs))
    read = {source for _, _, inputs in layers for source in inputs}
    for name, _, _ in layers:
        if name not in read:
            tracer.freeze(tracer.axes[name])
    return tracer.graph()


def permute_channels(
    tree: PyTree, graph: ChannelGraph, permutations: Mapping[str, np.ndarray]
) -> PyTree:
    r"""The same network with the channels of some sets in another order.

    Works on a module, on its parameters, and on every tree with the same paths: batch statistics,
    averaged weights, moments of an optimizer (`opt_state[0].mu`). Inverse permutations
    (`jnp.argsort`) give the first tree back.

    Args:
      tree: An NNX module or a tree.
      graph: From `channel_graph`.
      permutations: By set, which channel comes at each place; sets left out stay.

    Returns:
      A tree or module of the same kind.

    Raises:
      ValueError: If a permutation is none of its set, or a leaf does not have the channels.

    Example:
      >>> import jax.numpy as jnp, numpy as np, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.eye(2)}, "b": {"kernel": jnp.eye(2)}}
      >>> layers = [("x", "input", ()), ("a", "dense", ("x",)), ("b", "dense", ("a",))]
      >>> graph = sj.nn.surgery.channel_graph(params, layers)
      >>> swapped = sj.nn.surgery.permute_channels(params, graph, {"a": np.array([1, 0])})
      >>> (swapped["a"]["kernel"] @ swapped["b"]["kernel"]).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    _check_permutations(graph, permutations)
    if isinstance(tree, nnx.Module):
        graphdef, state = nnx.split(tree)
        return nnx.merge(graphdef, permute_channels(state, graph, permutations))

    def at(name, leaf):
        layer, _, last = name.rpartition("/")
        if layer not in graph.makes or not getattr(leaf, "ndim", 0):
            return leaf
        leaf = _take(name, leaf, -1, graph.makes[layer], graph, permutations)
        if last == "kernel" and layer in graph.reads:
            leaf = _take(name, leaf, -2, graph.reads[layer], graph, permutations)
        return leaf

    return map_named(at, tree)


def _take(name, leaf, axis: int, segments, graph: ChannelGraph, permutations):
    if all(graph.sources[s.source] not in permutations for s in segments):
        return leaf
    parts, start = [], 0
    for source, size, each in segments:
        order = permutations.get(graph.sources[source], np.arange(size))
        order = np.asarray(order)[:, None] * each + np.arange(each)
        parts.append(start + order.ravel())
        start += size * each
    if leaf.shape[axis] != start:
        raise ValueError(
            f"permute_channels: axis {axis} of {name} of shape {leaf.shape} should have {start} "
            "channels; is this tree of the network that the graph was made from?"
        )
    # On the host nothing is compiled.
    take = np.take if isinstance(leaf, np.ndarray) else jnp.take
    return take(leaf, np.concatenate(parts), axis=axis)


def _check_permutations(graph: ChannelGraph, permutations: Mapping[str, Any]) -> None:
    for name, order in permutations.items():
        if name not in graph.sets:
            raise ValueError(
                f"permute_channels: {name} is no set that may be permuted; there are "
                f"{', '.join(graph.sets) or 'none'}."
            )
        if not np.array_equal(np.sort(np.asarray(order)), np.arange(graph.sizes[name])):
            raise ValueError(
                f"permute_channels: the permutation of {name} must hold each of 0 to "
                f"{graph.sizes[name] - 1} once."
            )


class _Tracer:
    """Follows axes from layer to layer; sets of channels are joined as they meet."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = shapes
        self.axes: dict[str, Axis | None] = {}  # None: channels of the input
        self.reads: dict[str, tuple[Segment, ...]] = {}
        self.parent: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.frozen: set[str] = set()

    def add(self, name: str, kind: str, inputs: tuple[str, ...]) -> None:
        if kind not in KINDS or name in self.axes or any(i not in self.axes for i in inputs):
            raise ValueError(
                f"channel_graph: ({name!r}, {kind!r}, {inputs}) must have a new path, a kind among "
                f"{', '.join(KINDS)}, and inputs among the layers before it."
            )
        wanted = {"input": len(inputs) == 0, "add": bool(inputs), "concat": bool(inputs)}
        if not wanted.get(kind, len(inputs) == 1):
            raise ValueError(f"channel_graph: {name} ({kind}) has {len(inputs)} inputs.")
        axes = [self.axes[i] for i in inputs]
        self.axes[name] = None if kind == "input" else getattr(self, f"_{kind}")(name, *axes)

    def _dense(self, name: str, axis: Axis | None) -> Axis:
        *window, inputs, outputs = self._kernel(name)
        made = Axis((Segment(name, outputs),))
        self.parent[name], self.sizes[name] = name, outputs
        if axis is None:
            return made
        length = _length(axis)
        if window and inputs < length and length % inputs == 0:
            self.freeze(axis)  # a grouped convolution
            self.freeze(made)
        else:
            self.reads[name] = self._resolve(name, axis, inputs)
        return made

    def _depthwise(self, name: str, axis: Axis | None) -> Axis | None:
        outputs = self._kernel(name)[-1]
        if axis is None:
            return None
        times, rest = divmod(outputs, _length(axis))
        if rest or not times:
            raise ValueError(
                f"channel_graph: {name}/kernel of shape {self._kernel(name)} is no convolution of "
                f"each of {_length(axis)} channels."
            )
        return Axis(tuple(s._replace(each=s.each * times) for s in axis.segments))

    def _same(self, name: str, axis: Axis | None) -> Axis | None:
        sizes = {s[-1] for n, s in self.shapes.items() if n.rpartition("/")[0] == name and s}
        if axis is None or not sizes:
            return axis
        return Axis(self._resolve(name, axis, max(sizes)))

    def _add(self, name: str, *axes: Axis | None) -> Axis | None:
        known = [axis for axis in axes if axis is not None]
        shapes = {(axis.flat, *((s.size, s.each) for s in axis.segments)) for axis in known}
        for axis in known:
            if len(known) < len(axes) or len(shapes) > 1:
                self.freeze(axis)
                continue
            for s, first in zip(axis.segments, known[0].segments):
                self._join(first.source, s.source)
        return known[0] if known else None

    def _concat(self, name: str, *axes: Axis | None) -> Axis:
        if any(axis is None or axis.flat for axis in axes):
            raise ValueError(
                f"channel_graph: {name} concatenates the input or a flattened axis, whose "
                "number of channels is not known; put a layer between."
            )
        return Axis(tuple(s for axis in axes if axis is not None for s in axis.segments))

    def _flatten(self, name: str, axis: Axis | None) -> Axis | None:
        return None if axis is None else axis._replace(flat="last")

    def _flatten_first(self, name: str, axis: Axis | None) -> Axis | None:
        return None if axis is None else axis._replace(flat="first")

    def _kernel(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(f"{name}/kernel", ())
        if len(shape) < 2:
            raise ValueError(
                f"channel_graph: there is no kernel {name}/kernel with two axes or more among "
                f"{', '.join(self.shapes)}; a compressed network is rearranged before compressing."
            )
        return shape

    def _resolve(self, name: str, axis: Axis, size: int) -> tuple[Segment, ...]:
        """The segments of an axis of this size, positions included."""
        positions, rest = divmod(size, _length(axis))
        if rest or (positions != 1 and not axis.flat):
            raise ValueError(
                f"channel_graph: {name} has {size} channels and reads {_length(axis)}; if "
                'positions were flattened in between, say so by a layer of the kind "flatten".'
            )
        if axis.flat == "first":
            return tuple(s._replace(each=s.each * positions) for s in axis.segments)
        return axis.segments * positions

    def freeze(self, axis: Axis | None) -> None:
        self.frozen |= {s.source for s in axis.segments} if axis else set()

    def _root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def _join(self, a: str, b: str) -> None:
        self.parent[self._root(b)] = self._root(a)

    def graph(self) -> ChannelGraph:
        fixed = {self._root(name) for name in self.frozen}
        sets: dict[str, tuple[str, ...]] = {}
        for name in self.parent:
            if self._root(name) not in fixed:
                sets[self._root(name)] = (*sets.get(self._root(name), ()), name)
        sources = {name: self._root(name) for name in self.parent}
        return ChannelGraph(
            sets,
            {name: self.sizes[name] for name in sets},
            self.reads,
            {name: axis.segments for name, axis in self.axes.items() if axis and not axis.flat},
            {name: root if root in sets else None for name, root in sources.items()},
        )


def _length(axis: Axis) -> int:
    return sum(s.size * s.each for s in axis.segments)
