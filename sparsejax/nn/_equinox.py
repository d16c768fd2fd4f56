"""Taps of Equinox modules, and Equinox models with compressed weights."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._tree import map_named, name_of, named_leaves
from ..formats import SparseArray, Transposed
from ..masks import Plan, apply_masks, magnitude
from ._compress import Form, compress_leaf, compress_model
from ._grams import compiled_grams, grams_of
from ._linear_layer import LinearLayer, linear_layer, patches, rows_of
from ._taps import Choose, Kind, Recorder, check_found, outermost, run_recording, with_taps
from .surgery import ChannelGraph
from .surgery._channels import resized, sizes_of
from .surgery._graph import group_counts, groups_of


@functools.cache
def _tapped_class(cls: type, kind: type) -> type:
    """A subclass in which the tap intercepts the call of `kind`, a base of the class."""

    def __init__(self):
        raise TypeError("tapped modules cannot be constructed directly; use sj.nn.replace.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path, tap = self.sparsejax_tap
        return tap(path, functools.partial(kind.__call__, self), *args, **kwargs)

    content = {
        "__init__": __init__,
        "__call__": __call__,
        "__module__": kind.__module__,
        "__annotations__": {"sparsejax_tap": Any},
        "sparsejax_tap": eqx.field(static=True),
    }
    tapped = type(kind)(kind.__name__, (kind,), content)
    if cls is kind:
        return tapped
    rest = {"__init__": __init__, "__module__": cls.__module__}
    return type(cls)(cls.__name__, (cls, tapped), rest)


def _copied(model: eqx.Module, cls: type, **changes: Any) -> Any:
    """A copy of a module of another class, with other values of some fields."""
    copy, fields = object.__new__(cls), dataclasses.fields(model)
    for name, value in ({f.name: getattr(model, f.name) for f in fields} | changes).items():
        object.__setattr__(copy, name, value)
    return copy


def modules(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The modules by path, the model itself first."""
    yield prefix, model
    below = jax.tree.leaves_with_path(
        model, is_leaf=lambda x: isinstance(x, eqx.Module) and x is not model
    )
    for path, node in below:
        if isinstance(node, eqx.Module):
            yield from modules(node, "/".join(filter(None, (prefix, name_of(path)))))


def _map_modules(f: Callable[[str, Any], Any], model: Any, prefix: str) -> Any:
    """The model with `f(path, module)` in place of its direct submodules."""

    def one(path, node):
        if not isinstance(node, eqx.Module):
            return node
        return f("/".join(filter(None, (prefix, name_of(path)))), node)

    inside = lambda x: isinstance(x, eqx.Module) and x is not model  # noqa: E731
    return jax.tree.map_with_path(one, model, is_leaf=inside)


def _tapped(model: Any, choose: Any, kind: Kind, prefix: str = "") -> Any:
    """The model with taps, innermost first."""
    inner = _map_modules(lambda path, node: _tapped(node, choose, kind, path), model, prefix)
    tap = choose(prefix, model) if callable(model) else None
    if tap is None:
        return inner
    cls = _tapped_class(type(model), kind(type(model)))
    return _copied(inner, cls, sparsejax_tap=(prefix, tap))


@with_taps.register(eqx.Module)
def _(model: Any, choose: Choose, wheres: tuple[str, ...]) -> Any:
    check_found(wheres, [path for path, _ in modules(model)])
    return _tapped(model, choose, outermost)


@run_recording.register(eqx.Module)
def _(model: Any, choose: Any, recorder: Recorder, call: Any, args: Any, kwargs: Any):
    def chosen(path: str, module: Any) -> Any:
        reduce = choose(path, module)
        if reduce is None:
            return None

        def tap(path, call, *args, **kwargs):
            y = call(*args, **kwargs)
            recorder.add(path, reduce(args, y))
            return y

        return tap

    tapped: Any = _tapped(model, chosen, recorder.kind)
    y = tapped(*args, **kwargs) if call is None else call(tapped, *args, **kwargs)
    return y, recorder.values


@linear_layer.register
def _(layer: eqx.nn.Linear) -> LinearLayer | None:
    return LinearLayer("weight", 2, (1,), lambda x: rows_of(jnp.atleast_1d(x), (-1,)))


@linear_layer.register
def _(layer: eqx.nn.Conv) -> LinearLayer | None:
    if layer.groups != 1:
        return None
    size = layer.num_spatial_dims

    def rows(x):
        last = jnp.moveaxis(x, -size - 1, -1)
        return patches(last, layer.kernel_size, layer.stride, layer.padding, layer.dilation)

    return LinearLayer("weight", size + 2, (*range(2, size + 2), 1), rows)


@compress_model.register(eqx.Module)
def _(model: Any, plan: Plan, masks: Any, form: Form) -> Any:
    params, rest = eqx.partition(model, eqx.is_array)
    if masks is None:
        masks = plan.masks(magnitude(params))
    linear = {
        "/".join(filter(None, (path, "weight")))
        for path, module in modules(model)
        if isinstance(module, eqx.nn.Linear)
    }
    # The product of a layer contracts axis 1 of its weight; others remain dense with zeros.
    planned = {x.name: x for x in plan.leaves if x.name in linear and x.layout.contraction == (1,)}

    def one(name, w, leaf, mask):
        del name
        if leaf is None or mask is None:
            return w
        array = compress_leaf(w, leaf, mask, form)
        return Transposed(array) if isinstance(array, SparseArray) else array

    masked = eqx.combine(apply_masks(params, masks), rest)
    return map_named(one, masked, planned, named_leaves(masks))


@compiled_grams.register(eqx.Module)
def _(model: Any, call: Any) -> Any:
    def of_batch(model, batch):
        if call is not None:
            return grams_of(model, batch, call)
        each = jax.vmap(lambda x: grams_of(model, x, None))(batch)
        return jax.tree.map(lambda gram: gram.sum(0), each)

    return functools.partial(eqx.filter_jit(of_batch), model)


@resized.register
def _(model: eqx.Module, graph: ChannelGraph, sizes: Mapping[str, int], prefix: str = "") -> Any:
    inner = _map_modules(lambda path, node: resized(node, graph, sizes, path), model, prefix)
    return _copied(inner, type(model), **dict(sizes_of(prefix, vars(model), graph, sizes)))


@group_counts.register
def _(model: eqx.Module) -> dict[str, int]:
    return groups_of(modules(model))
