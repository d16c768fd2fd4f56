"""Channels taken out of a model: smaller layers instead of zeros."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from ..._tree import natural_order

Module = TypeVar("Module", bound=nnx.Module)


def remove_channels(
    model: Module,
    keep: Bool[Array, " n"] | Bool[np.ndarray, " n"],
    *,
    outputs: Sequence[str],
    norms: Sequence[str] = (),
    inputs: Sequence[str] = (),
    fold_bias: bool = False,
) -> Module:
    r"""A smaller copy of the model without some channels of one group of layers.

    Channel c goes from the outputs of the layers that make it, the norms on the way, and the
    inputs of the layers that read it. Layers that residual additions join make one group. A norm
    with a shift leaves the constant `relu(shift)` behind; `fold_bias` adds it to the biases of the
    readers, exact where a ReLU follows the norm and the readers are dense.

    Args:
      model: An NNX module; it is not changed.
      keep: True for the channels that stay.
      outputs: Paths of the `nnx.Linear` and `nnx.Conv` layers that make the channels.
      norms: Paths of the `nnx.BatchNorm` layers that act on them.
      inputs: Paths of the layers that read them; a dense layer after flattening, too.
      fold_bias: Whether what the removed channels give when their scale is 0 moves to the biases.

    Returns:
      A module of the same class.

    Raises:
      TypeError: If `keep` is no vector of booleans.
      ValueError: If a path leads nowhere, a layer has another number of channels, or none is kept.

    Reference:
      Liu et al., Network Slimming, 2017 (arXiv 1708.06519).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 2, rngs=rngs))
      >>> keep = jnp.array([True, False, True, True, False, True])
      >>> small = sj.nn.surgery.remove_channels(model, keep, outputs=["layers/0"], inputs=["layers/2"])
      >>> small.layers[0].kernel.shape, small.layers[2].kernel.shape
      ((4, 4), (4, 2))
    """
    keep = np.asarray(keep)
    if keep.dtype != bool or keep.ndim != 1:
        raise TypeError(
            f"remove_channels: keep of shape {keep.shape} holds {keep.dtype}; it must be a vector "
            "of booleans, as keep != 0."
        )
    if not keep.any():
        raise ValueError("remove_channels: no channel is kept; keep one, as sj.masks.above does.")
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, jax.tree.map(lambda x: x, state))
    layers = {"/".join(map(str, path)): layer for path, layer in nnx.iter_modules(model)}
    group = {"outputs": outputs, "norms": norms, "inputs": inputs}
    found = {kind: [_at(layers, path) for path in paths] for kind, paths in group.items()}
    rest = _constants(found["norms"], keep) if fold_bias else None
    for path, layer in zip(inputs, found["inputs"]):
        _cut_inputs(path, layer, keep, rest)
    for path, layer in zip(outputs, found["outputs"]):
        _cut(path, layer, keep, ("kernel", "bias"), "out_features")
    for path, layer in zip(norms, found["norms"]):
        _cut(path, layer, keep, ("scale", "bias", "mean", "var"), "num_features")
    return model


def _at(layers: dict[str, Any], path: str) -> Any:
    if path not in layers:
        known = sorted((name for name in layers if name), key=natural_order)
        raise ValueError(
            f"remove_channels: there is no layer {path}; there are {', '.join(known)}."
        )
    return layers[path]


def _cut(path: str, layer: Any, keep: np.ndarray, names: Sequence[str], size: str) -> None:
    """The last axis of each of these parameters."""
    for name in names:
        variable = getattr(layer, name, None)
        if variable is not None:
            value = variable[...]
            if value.shape[-1] != keep.size:
                raise ValueError(
                    f"remove_channels: {path}/{name} has shape {value.shape} and keep has "
                    f"{keep.size} channels."
                )
            variable.set_value(value[..., keep])
    setattr(layer, size, int(keep.sum()))


def _cut_inputs(path: str, layer: Any, keep: np.ndarray, rest: Any) -> None:
    kernel = layer.kernel[...]
    width = kernel.shape[-2]
    if width % keep.size or (width != keep.size and kernel.ndim > 2):
        raise ValueError(
            f"remove_channels: {path}/kernel has shape {kernel.shape} and reads {width} channels, "
            f"keep has {keep.size}."
        )
    # After flattening, channels are the fastest axis.
    kept = np.tile(keep, width // keep.size)
    if rest is not None:
        if kernel.ndim > 2 or layer.bias is None:
            raise ValueError(f"remove_channels: fold_bias needs a dense {path} with a bias.")
        gone = jnp.tile(rest, width // keep.size)[~kept] @ kernel[~kept]
        layer.bias.set_value(layer.bias[...] + gone)
    layer.kernel.set_value(kernel[..., kept, :])
    layer.in_features = int(kept.sum())


def _constants(norms: list[Any], keep: np.ndarray) -> jax.Array:
    shifts = [norm.bias[...] for norm in norms if norm.bias is not None]
    return jax.nn.relu(sum(shifts, jnp.zeros(keep.size)))
