"""Adapters merged into the kernels, and taken out again."""

import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from ..._arguments import checked
from ..._tree import summary
from ...formats import Matrix, Sum, Transposed
from ...nn import linear_layer
from ._lora import Adapter, LoRAKernel, install_adapter


@checked()
def merge_lora(model: PyTree) -> Any:
    r"""A copy of a model with its adapters added to the kernels: dense layers as before `add_lora`.

    Args:
      model: The result of `add_lora`, trained or not.

    Returns:
      The model without adapters. Compressed kernels become dense arrays in trees.

    Raises:
      ValueError: If an NNX kernel below an adapter is compressed: a sum has no such format.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> params = {"kernel": jnp.ones((4, 3))}
      >>> adapted = lora_limits.add_lora(params, 2, key=jax.random.key(0))
      >>> lora_limits.merge_lora(adapted)["kernel"].tolist() == params["kernel"].tolist()
      True
    """
    return _merged(model)


@functools.singledispatch
def _merged(model: Any) -> Any:
    return jax.tree.map(_dense, model, is_leaf=lambda x: isinstance(x, Matrix))


def _dense(w: Any) -> Any:
    """The array of a sum with an adapter, in the dtype of its frozen part; others unchanged."""
    inner = w.matrix if isinstance(w, Transposed) else w
    if not isinstance(inner, Sum) or not isinstance(inner.trainable, Adapter):
        return w
    return w.todense().astype(inner.frozen.dtype)


@_merged.register
def _(model: nnx.Module) -> Any:
    model = nnx.clone(model)
    for path, name, module, kernel in _adapted(model):
        w = kernel.frozen[...]
        if isinstance(w, Matrix):
            place = "/".join(map(str, (*path, name)))
            raise ValueError(
                f"merge_lora: {place} must have a dense kernel below its adapter, got {w}; keep "
                "the adapter, or add it to the dense model."
            )
        for attribute, value in kernel.replaced:
            setattr(module, attribute, value)
        kernel.frozen.set_value(kernel.moved(w, 1.0))
        setattr(module, name, kernel.frozen)
    return model


def _adapted(model: nnx.Module) -> list[tuple[tuple[Any, ...], str, Any, LoRAKernel]]:
    """Of each kernel with an adapter the path of its layer, its name, the layer, and itself."""
    return [
        (path, name, module, kernel)
        for path, module in nnx.iter_modules(model)
        for name, kernel in vars(module).items()
        if isinstance(kernel, LoRAKernel)
    ]


@checked()
def unmerge_lora(merged: PyTree, adapted: PyTree) -> Any:
    r"""The inverse of `merge_lora`, up to rounding: subtracts adapters from merged kernels.

    For weights that were merged elsewhere, or trained further since.

    Args:
      merged: The result of `merge_lora`, or a model of the same structure.
      adapted: The model with the adapters, the argument of `merge_lora`.

    Returns:
      A model like `adapted`, with all other parameters of `merged`.

    Raises:
      ValueError: If `merged` has other parameters, or a kernel of another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> params = {"kernel": jnp.ones((4, 3))}
      >>> adapted = lora_limits.add_lora(params, 2, key=jax.random.key(0))
      >>> lora_limits.unmerge_lora(lora_limits.merge_lora(adapted), adapted)["kernel"]
      Sum(dense + rank 2, shape=(4, 3), dtype=float32)
    """
    return _unmerged(adapted, merged)


@functools.singledispatch
def _unmerged(adapted: Any, merged: Any) -> Any:
    def one(w: Any, new: Any) -> Any:
        inner = w.matrix if isinstance(w, Transposed) else w
        if not isinstance(inner, Sum) or not isinstance(inner.trainable, Adapter):
            return new
        _check_shape("a kernel", new, w)
        dense = new.T if isinstance(w, Transposed) else new
        part = Sum((dense - inner.trainable.todense()).astype(new.dtype), inner.trainable)
        return Transposed(part) if isinstance(w, Transposed) else part

    matrix = lambda x: isinstance(x, Matrix)  # noqa: E731
    paths = [
        [path for path, _ in jax.tree.leaves_with_path(tree, is_leaf=matrix)]
        for tree in (adapted, merged)
    ]
    if paths[0] != paths[1]:
        raise ValueError(
            f"unmerge_lora: merged must have the parameters of adapted, {summary(adapted)}, got "
            f"{summary(merged)}."
        )
    return jax.tree.map(one, adapted, merged, is_leaf=matrix)


@_unmerged.register
def _(adapted: nnx.Module, merged: Any) -> Any:
    model = nnx.clone(merged)
    layers = dict(nnx.iter_modules(model))
    for path, name, _, kernel in _adapted(adapted):
        layer, variable = linear_layer(layers[path]), getattr(layers[path], name)
        _check_shape("/".join(map(str, (*path, name))), variable[...], kernel.frozen[...])
        variable.set_value(kernel.moved(variable[...], -1.0))
        install_adapter(layers[path], layer, variable, kernel.adapter)  # pyright: ignore
    return model


def _check_shape(name: str, found: Any, wanted: Any) -> None:
    if tuple(found.shape) != tuple(wanted.shape):
        raise ValueError(
            f"unmerge_lora: {name} of merged must have the shape {tuple(wanted.shape)}, got "
            f"{tuple(found.shape)}."
        )
