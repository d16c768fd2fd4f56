"""Taps of NNX modules, and how NNX layers use their kernels."""

import functools
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from flax.errors import TraceContextError

from .._tree import named_leaves, pure
from ..formats import SparseArray
from ..masks import Plan, apply_masks, magnitude
from ._compress import Form, compress_leaf, compress_model
from ._grams import Grams, compiled_grams, grams_of
from ._linear import SparseKernel
from ._linear_layer import (
    DotGeneral,
    EinsumOp,
    LinearLayer,
    is_product,
    letters,
    linear_layer,
    patches,
    promote,
    rows_of,
)
from ._taps import (
    Choose,
    Kind,
    Recorder,
    check_found,
    kept_inside,
    outermost,
    run_recording,
    with_taps,
)


class Record(nnx.Variable):
    """A recorded value; variables can leave `nnx.scan` and `nnx.vmap`."""


@dataclass(frozen=True)
class _Tapped:
    """A static tap of an instance, compared by identity."""

    path: str
    tap: Any


@functools.cache
def _tapped_class(cls: type, kind: type) -> type:
    """A subclass in which the taps intercept the call of `kind`, a base of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = functools.partial(kind.__call__, self)
        for tap in self._sparsejax_taps:
            own = functools.partial(tap.tap, self, tap.path, own)
        return own(*args, **kwargs)

    tapped = type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})
    if cls is kind:
        return tapped
    return type(cls.__name__, (cls, tapped), {"__module__": cls.__module__})


def copied(model: Any) -> Any:
    """The same module with separate variables."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x, state))


def _installer(kind: type, layer: Any, injected: str, operation: Any) -> Any:
    """Installs a compressed kernel in the layer; None if the layer has a custom product."""
    defaults = inspect.signature(kind.__init__).parameters
    names = {injected, "dot_general_cls", "promote_dtype"} & defaults.keys()
    if any(getattr(layer, name) is not defaults[name].default for name in names):
        return None

    def install(kernel: Any) -> None:
        layer.kernel, layer.promote_dtype = kernel, promote
        setattr(layer, injected, operation)

    return install


def modules(model: Any) -> list[tuple[str, Any]]:
    """The modules by path, the model itself first."""
    found = [("/".join(map(str, path)), module) for path, module in nnx.iter_modules(model)]
    return sorted(found, key=lambda item: item[0].count("/") + bool(item[0]))


def _install(model: Any, choose: Any, kind: Kind) -> list[str]:
    paths = []
    for path, module in modules(model):
        paths.append(path)
        tap = choose(path, module)
        if tap is not None and callable(module):
            before = vars(module).get("_sparsejax_taps", ())
            module._sparsejax_taps = nnx.static((*before, _Tapped(path, tap)))
            if not before:
                module.__class__ = _tapped_class(type(module), kind(type(module)))
    return paths


@with_taps.register(nnx.Module)
def _(model: Any, choose: Choose, wheres: tuple[str, ...]) -> Any:
    copy = copied(model)

    def chosen(path: str, module: Any) -> Any:
        tap = choose(path, module)
        if tap is None:
            return None
        return lambda self, path, call, *args, **kwargs: tap(path, call, *args, **kwargs)

    check_found(wheres, _install(copy, chosen, outermost))
    return copy


@run_recording.register(nnx.Module)
def _(model: Any, choose: Any, recorder: Recorder, call: Any, args: Any, kwargs: Any):
    copy, order = copied(model), []

    def chosen(path: str, module: Any) -> Any:
        reduce = choose(path, module)
        if reduce is None:
            return None

        def tap(self, path, call, *args, **kwargs):
            y = call(*args, **kwargs)
            value, before = reduce(args, y), vars(self).get("sparsejax_record")
            if before is not None:
                value = recorder.merged(path, before.get_value(), value)
            try:
                self.sparsejax_record = Record(value)
            except TraceContextError as error:
                raise kept_inside(path) from error
            order.append(path)
            return y

        return tap

    _install(copy, chosen, recorder.kind)
    y = copy(*args, **kwargs) if call is None else call(copy, *args, **kwargs)
    values = dict(recorder.values)
    for path, module in nnx.iter_modules(copy):
        if (record := vars(module).get("sparsejax_record")) is not None:
            values["/".join(map(str, path))] = record.get_value()
    ran = [*recorder.order, *order]
    return y, dict(sorted(values.items(), key=lambda item: ran.index(item[0])))


@linear_layer.register
def _(layer: nnx.Linear) -> LinearLayer | None:
    return LinearLayer(
        path="kernel",
        ndim=2,
        contraction=(0,),
        rows=lambda x: rows_of(x, (-1,)),
        install=_installer(nnx.Linear, layer, "dot_general", DotGeneral((layer.out_features,))),
    )


@linear_layer.register
def _(layer: nnx.LinearGeneral) -> LinearLayer | None:
    if layer.batch_axis:
        return None
    contracted = len(layer.in_features)
    axes = layer.axis if isinstance(layer.axis, Iterable) else (layer.axis,)
    return LinearLayer(
        path="kernel",
        ndim=contracted + len(layer.out_features),
        contraction=tuple(range(contracted)),
        rows=lambda x: rows_of(x, tuple(axes)),
        install=_installer(
            nnx.LinearGeneral, layer, "dot_general", DotGeneral(tuple(layer.out_features))
        ),
    )


@linear_layer.register
def _(layer: nnx.Einsum) -> LinearLayer | None:
    if not is_product(layer.einsum_str):
        return None
    left, right, out = letters(layer.einsum_str)
    contraction = tuple(i for i, c in enumerate(right) if c not in out)
    axes = tuple(left.index(right[i]) for i in contraction)
    operation = EinsumOp(layer.einsum_str, tuple(layer.kernel_shape))
    return LinearLayer(
        path="kernel",
        ndim=len(right),
        contraction=contraction,
        rows=lambda x: rows_of(x, axes),
        install=_installer(nnx.Einsum, layer, "einsum_op", operation),
    )


@linear_layer.register
def _(layer: nnx.Conv) -> LinearLayer | None:
    window = layer.kernel_size if isinstance(layer.kernel_size, Iterable) else (layer.kernel_size,)
    grouped, masked = layer.feature_group_count != 1, layer.mask is not None
    if grouped or masked or not isinstance(layer.padding, str) or layer.padding == "CIRCULAR":
        return None
    size = len(tuple(window))
    return LinearLayer(
        path="kernel",
        ndim=size + 2,
        contraction=tuple(range(size + 1)),
        rows=lambda x: patches(
            x, tuple(window), layer.strides, layer.padding, layer.kernel_dilation
        ),
    )


@compress_model.register(nnx.Module)
def _(model: Any, plan: Plan, masks: Any, form: Form) -> Any:
    _check_dense(model, plan)
    params = pure(model)
    if masks is None:
        masks = plan.masks(magnitude(params))
    model = apply_masks(copied(model), masks)
    found, weights = named_leaves(masks), named_leaves(pure(model))
    planned = {leaf.name: leaf for leaf in plan.leaves if leaf.name in found}
    for names, layers in tied_layers(model):
        name = next((name for name in names if name in planned), None)
        if name is not None:
            _replace_kernel(layers, planned[name], weights[name], found[name], form)
    return model


def _check_dense(model: Any, plan: Plan) -> None:
    for name, module in modules(model):
        if isinstance(module, SparseKernel) and name in plan:
            raise ValueError(
                f"compress: {name} is already compressed; pass the dense model, once: "
                "sj.compress(model, plan, masks)."
            )


def tied_layers(model: Any) -> Iterator[tuple[list[str], list[LinearLayer]]]:
    """The names of each kernel and the layers that use it, several if it is tied.

    A kernel that is also used outside of linear layers, such as an embedding, is excluded.
    """
    holders: dict[int, list[tuple[str, LinearLayer | None]]] = {}
    for path, module in modules(model):
        layer = linear_layer(module)
        for attribute, value in vars(module).items():
            if isinstance(value, nnx.Variable):
                own = layer if layer is not None and layer.path == attribute else None
                name = "/".join(filter(None, (path, attribute)))
                holders.setdefault(id(value), []).append((name, own))
    for held in holders.values():
        names, layers = zip(*held)
        if None not in layers:
            yield list(names), list(layers)


def _replace_kernel(
    layers: list[LinearLayer], leaf: Any, weights: Any, mask: Any, form: Form
) -> None:
    if not all(_agrees(layer, leaf.layout) for layer in layers):
        return
    array = compress_leaf(weights, leaf, mask, form)
    if isinstance(array, SparseArray):
        kernel = SparseKernel(array)
        for layer in layers:
            layer.install(kernel)  # pyright: ignore[reportOptionalCall] - checked by _agrees


def _agrees(layer: LinearLayer, layout: Any) -> bool:
    """Whether the layer can use a compressed kernel and contracts the axes of the layout."""
    if layer.install is None or not layout.contraction:
        return False
    stacked = len(layout.shape) - layer.ndim  # the axes added by nnx.vmap
    contraction = tuple(axis - stacked for axis in layout.contraction)
    return len(layout.stacked) == stacked and contraction == layer.contraction


@compiled_grams.register(nnx.Module)
def _(model: Any, call: Any) -> Any:
    return functools.partial(_grams, *nnx.split(model), call)


# One program for all modules of the same structure, such as the layers of a network.
@functools.partial(jax.jit, static_argnums=(0, 2))
def _grams(graphdef: Any, state: Any, call: Any, batch: Any) -> Grams:
    return grams_of(nnx.merge(graphdef, state), batch, call)
