"""The graph of axes that carry the same channels."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree

from ..._arguments import checked
from ..._frameworks import kernel_order, kernel_orders
from ..._tree import is_array, is_kernel, name_of, named_leaves, natural_order, pure
from .._frameworks import load_frameworks

KINDS = (
    "input", "dense", "grouped", "depthwise", "same", "add", "concat", "flatten", "flatten_first",
)  # fmt: skip
# Names of the attribute of Flax and Equinox layers with the number of groups.
GROUPS = ("feature_group_count", "groups")


class Segment(NamedTuple):
    """A segment of an axis: the channels produced by `source`, each `each` entries long."""

    source: str
    size: int
    each: int = 1


class Kernel(NamedTuple):
    """The kernel of a layer: its path, the axis of its inputs, and that of its outputs.

    A bias, scale or shift of the layer has its channels along the same axis as the outputs.
    """

    path: str
    inputs: int
    outputs: int


class Axis(NamedTuple):
    """The segments of an axis, and how positions were flattened into it, if at all."""

    segments: tuple[Segment, ...]
    flat: str = ""


@dataclass(frozen=True)
class ChannelGraph:
    """The axes that carry the same channels, from `channel_graph`.

    Args:
      sets: By their first producer, the layers that produce one set of channels; only permutable
        sets.
      sizes: Number of channels of each set.
      reads: By layer, the axis contracted by its kernel.
      makes: By layer, its output axis, shared by its biases and norms.
      sources: The set of each layer that produces channels; None if they are fixed.
      kernels: The kernel of each layer that has a kernel.
    """

    sets: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    reads: dict[str, tuple[Segment, ...]]
    makes: dict[str, tuple[Segment, ...]]
    sources: dict[str, str | None]
    kernels: dict[str, Kernel]

    def touched(self, segments: Sequence[Segment], sets: Mapping[str, Any]) -> bool:
        """Whether an axis has channels of some of the sets."""
        return any(self.sources[s.source] in sets for s in segments)


@checked()
def channel_graph(
    model: PyTree,
    layers: Sequence[tuple[str, str, Sequence[str]]] | None = None,
    layout: str | Mapping[str, str] | None = None,
) -> ChannelGraph:
    r"""Finds the channels of a network that can be permuted, masked or removed.

    The layers are given in order as `(path, kind, inputs)`, where inputs are paths of earlier
    layers:

    - "input": the network's input, whose channels are fixed;
    - "dense": a linear layer or a full convolution, kernel `(..., in, out)`;
    - "grouped": a convolution in several groups of channels;
    - "depthwise": a convolution of each channel separately, kernel `(..., 1, channels)`;
    - "same": norms, biases, activations, pooling, and other channel-wise operations;
    - "add": the sum of its inputs; "concat": the channels of its inputs in sequence;
    - "flatten": positions and channels in one axis, channels fastest (images channel last);
      "flatten_first" if positions are fastest.

    A layer that no other layer reads is an output; its channels are fixed. Channels that a grouped
    convolution reads or produces are fixed, too: it is found by the attributes of a module or where
    its kernel has a part of the channels; elsewhere declare it.

    Args:
      model: An NNX or Equinox module or a tree of parameters, in which `path/kernel` or
        `path/weight` is found.
      layers: As above; `model.channel_layers()` of a `sj.models.MobileNet`. None: a sequence of the
        kernels in the order of their names (`layer_2` before `layer_10`), each with the norms
        that follow it: numbered alike (`layers/0`, `layers/1`) or named after it (`a`, `a_norm`).
      layout: "in_out" or "out_in", for all kernels or by regular expressions over paths, as for
        `sj.plan`; None uses that of the framework.

    Returns:
      A `ChannelGraph`.

    Raises:
      ValueError: If a kind or an input is unknown, a kernel is missing, sizes do not match, the
        layout of a kernel is unknown, or (without `layers`) the names do not show which channels
        a norm carries.

    Reference:
      Xu et al., SparseByteNN, 2023 (arXiv 2310.19509).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> params = {"a": {"kernel": jnp.ones((2, 4))}, "b": {"kernel": jnp.ones((4, 3))}}
      >>> layers = [("x", "input", ()), ("a", "dense", ("x",)), ("b", "dense", ("a",))]
      >>> sj.nn.surgery.channel_graph(params, layers).sets
      {'a': ('a',)}
    """
    leaves = {name: leaf for name, leaf in named_leaves(pure(model)).items() if is_array(leaf)}
    orders = kernel_orders(model, layout)
    load_frameworks()
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    tracer = _Tracer(shapes, orders, group_counts(model))
    if layers is None:
        layers = _chain(tracer, [name for name, leaf in leaves.items() if is_kernel(name, leaf)])
    else:
        for name, kind, inputs in layers:
            tracer.add(name, kind, tuple(inputs))
    read = {source for _, _, inputs in layers for source in inputs}
    for name, _, _ in layers:
        if name not in read:
            tracer.freeze(tracer.axes[name])
    return tracer.graph()


@functools.singledispatch
def group_counts(model: Any) -> dict[str, int]:
    """The number of groups of each convolution by path, by framework; none in plain trees."""
    found = {}
    for path, node in jax.tree.leaves_with_path(model, is_leaf=lambda x: is_module(x, model)):
        if is_module(node, model):
            counts = group_counts(node).items()
            found |= {"/".join(filter(None, (name_of(path), p))): n for p, n in counts}
    return found


def is_module(node: Any, container: Any) -> bool:
    """Whether a node inside a container is a module of a framework."""
    return node is not container and kernel_order(node) is not None


@group_counts.register
def _(model: nnx.Module) -> dict[str, int]:
    return groups_of(("/".join(map(str, path)), m) for path, m in nnx.iter_modules(model))


def groups_of(modules: Iterable[tuple[str, Any]]) -> dict[str, int]:
    """The number of groups of the modules that have it."""
    about = {path: [vars(m)[n] for n in GROUPS if n in vars(m)] for path, m in modules}
    return {path: found[0] for path, found in about.items() if found}


def _chain(tracer: "_Tracer", kernels: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Adds the kernels and norms as a sequence of layers, and returns it."""
    layers: list[tuple[str, str, tuple[str, ...]]] = []
    dense = [name.rpartition("/")[0] for name in sorted(kernels, key=natural_order)]
    widths, unplaced = _widths(tracer.shapes, dense), {}

    def add(name: str, kind: str) -> None:
        layers.append((name, kind, (layers[-1][0],) if layers else ()))
        tracer.add(*layers[-1])

    add("the input", "input")
    before = ""
    for name in sorted({*dense, *widths}, key=natural_order):
        if name in dense:
            add(name, "dense")
            before = name
        elif before and _beside(name, before) and tracer.carries(layers[-1][0], widths[name]):
            add(name, "same")
        elif before or not dense or not _beside(name, dense[0]):  # else a norm of the input
            unplaced[name] = widths[name]
    sizes = {tracer.sizes[name] for name in dense[:-1]}
    lost = [name for name, width in unplaced.items() if width in sizes]
    if lost:
        raise ValueError(
            f"channel_graph: the names do not show which channels {', '.join(lost)} carries; "
            f"declare the layers: channel_graph(model, [('x', 'input', ()), ('{dense[0]}', "
            f"'dense', ('x',)), ('{lost[0]}', 'same', ('{dense[0]}',)), ...])."
        )
    return layers


def _widths(shapes: Mapping[str, tuple[int, ...]], dense: Sequence[str]) -> dict[str, int]:
    """The width of each layer of vectors only, such as a norm, outside of layers with a kernel."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        layer = name.rpartition("/")[0]
        if len(shape) == 1 and not any(layer == x or layer.startswith(f"{x}/") for x in dense):
            found[layer] = max(found.get(layer, 0), shape[0])
    deep = {name.rpartition("/")[0] for name, shape in shapes.items() if len(shape) > 1}
    return {layer: width for layer, width in found.items() if layer and layer not in deep}


def _beside(name: str, layer: str) -> bool:
    """Whether a name is that of a layer with another number, or begins with it."""
    stem, other = (re.sub(r"\d+$", "", x) for x in (name, layer))
    return stem == other or name.startswith(layer)


class _Tracer:
    """Follows axes from layer to layer and merges the sets of channels that are added."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        orders: Mapping[str, str | None],
        groups: Mapping[str, int],
    ):
        self.shapes, self.orders, self.groups = shapes, orders, groups
        self.kernels: dict[str, Kernel] = {}
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
        window, inputs, outputs = self._kernel(name)
        made = Axis((Segment(name, outputs),))
        self.parent[name], self.sizes[name] = name, outputs
        part = axis is not None and inputs < _length(axis) and _length(axis) % inputs == 0
        if self.groups.get(name, 1) > 1 or (window and part):
            self.freeze(axis)
            self.freeze(made)
        elif axis is not None:
            self.reads[name] = self._resolve(name, axis, inputs)
        return made

    def _grouped(self, name: str, axis: Axis | None) -> Axis:
        self.groups = {**self.groups, name: 2}  # more than one
        return self._dense(name, axis)

    def _depthwise(self, name: str, axis: Axis | None) -> Axis | None:
        *_, outputs = self._kernel(name)
        if axis is None:
            return None
        times, rest = divmod(outputs, _length(axis))
        if rest or not times:
            raise ValueError(
                f"channel_graph: {name} with {outputs} outputs is not a depthwise convolution of "
                f"{_length(axis)} channels."
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
                "number of channels is unknown; insert a layer in between."
            )
        return Axis(tuple(s for axis in axes if axis is not None for s in axis.segments))

    def _flatten(self, name: str, axis: Axis | None) -> Axis | None:
        return None if axis is None else axis._replace(flat="last")

    def _flatten_first(self, name: str, axis: Axis | None) -> Axis | None:
        return None if axis is None else axis._replace(flat="first")

    def _kernel(self, name: str) -> tuple[bool, int, int]:
        """Whether the kernel of a layer has a window, its inputs (of a group) and its outputs."""
        paths = ("/".join(filter(None, (name, last))) for last in ("kernel", "weight"))
        path = next((path for path in paths if len(self.shapes.get(path, ())) >= 2), None)
        if path is None:
            raise ValueError(
                f"channel_graph: no kernel {name}/kernel with two axes or more among "
                f"{', '.join(self.shapes)}; rearrange a network before compressing it."
            )
        axes = {"in_out": (-2, -1), "out_in": (1, 0)}.get(self.orders.get(path) or "")
        shape = self.shapes[path]
        if axes is None:
            raise ValueError(
                f"channel_graph: {path} of shape {shape} in a plain tree may be (in, out) or (out, "
                'in); pass channel_graph(model, layers, layout="out_in") for PyTorch and '
                'safetensors, layout="in_out" for Flax.'
            )
        self.kernels[name] = Kernel(path, *axes)
        return len(shape) > 2, shape[axes[0]], shape[axes[1]]

    def _resolve(self, name: str, axis: Axis, size: int) -> tuple[Segment, ...]:
        """The segments of an axis of this size, positions included."""
        positions, rest = divmod(size, _length(axis))
        if rest or (positions != 1 and not axis.flat):
            raise ValueError(
                f"channel_graph: {name} has {size} channels and reads {_length(axis)}; if "
                'positions were flattened in between, add a layer of the kind "flatten".'
            )
        if axis.flat == "first":
            return tuple(s._replace(each=s.each * positions) for s in axis.segments)
        return axis.segments * positions

    def carries(self, name: str, size: int) -> bool:
        """Whether the axis of a layer has so many channels."""
        axis = self.axes[name]
        return axis is not None and _length(axis) == size

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
            self.kernels,
        )


def _length(axis: Axis) -> int:
    return sum(s.size * s.each for s in axis.segments)
