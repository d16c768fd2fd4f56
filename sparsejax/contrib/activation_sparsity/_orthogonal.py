"""Rotation of a decoder, after which WINA's rule is optimal for the key and gate kernels."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped

from ..._arguments import checked
from ...models import Llama


class RotatedNorm(nnx.Module):
    """A norm followed by a rotation of its output, `norm(x) Q`.

    Args:
      norm: A module `(..., n)` to `(..., n)`.
      rotation: Q, `(n, n)`, orthogonal.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> norm = nnx.RMSNorm(2, rngs=nnx.Rngs(0))
      >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
      >>> activation_sparsity.RotatedNorm(norm, swap)(jnp.array([1.0, -1.0])).round(3).tolist()
      [-1.0, 1.0]
    """

    def __init__(self, norm: Any, rotation: Any):
        self.norm, self.rotation = norm, nnx.Param(rotation)

    def __call__(
        self, x: Shaped[Array | np.ndarray, "... n"]
    ) -> Shaped[Array | np.ndarray, "... n"]:
        return self.norm(x) @ self.rotation[...]


@checked()
def orthogonalize(model: Llama) -> Llama:
    r"""The same function with orthogonal rows of the key and gate kernels, by singular vectors.

    In each layer the gain of the norm is folded into the kernels that read the stream,
    `M <- gain[:, None] M`; with the full SVD `M^T = U S V^T` of the key (gate) kernel the normed
    stream becomes `rms(x) V` and the query, key and value (gate and up) kernels `V^T M`. The Gram
    matrix of the rows of `V^T M` is then diagonal. Computed in float64.

    Args:
      model: A decoder with its layers in a list; it is not changed.

    Returns:
      A decoder whose norms are `RotatedNorm`; its outputs are those of the model up to rounding. In
      bfloat16 the rounding of the rotated kernels adds to it.

    Raises:
      ValueError: If the layers are one stack.

    Reference:
      Chen et al., WINA, 2025 (arXiv 2505.19427); Ashkboos et al., SliceGPT, 2024 (arXiv
      2401.15024).

    Example:
      >>> import jax.numpy as jnp, sparsejax as sj
      >>> from flax import nnx
      >>> from sparsejax.contrib import activation_sparsity
      >>> config = sj.models.LlamaConfig(
      ...     vocabulary=50, width=16, hidden=32, layers=1, heads=4, key_heads=2, head_size=4)
      >>> model = sj.models.Llama(config, rngs=nnx.Rngs(0))
      >>> rotated, ids = activation_sparsity.orthogonalize(model), jnp.array([[1, 2, 3]])
      >>> bool(jnp.abs(rotated(ids) - model(ids)).max() < 1e-4)
      True
    """
    if model.scan:
        raise ValueError(
            "orthogonalize: model must hold its layers in a list, got one stack; load it with "
            "scan=False."
        )
    model = nnx.clone(model)
    for layer in model.layers:
        part, mlp = layer.attention, layer.mlp
        layer.attention_norm = _rotated(layer.attention_norm, part.key, (part.query, part.value))
        layer.norm = _rotated(layer.norm, mlp.gate, (mlp.up,))
    return model


def _rotated(norm: Any, first: Any, others: tuple[Any, ...]) -> RotatedNorm:
    """The rotated norm; changes the kernels that read it."""
    gain = np.asarray(norm.scale[...], np.float64)
    dtype = first.kernel[...].dtype
    kernels = [gain[:, None] * np.asarray(x.kernel[...], np.float64) for x in (first, *others)]
    rotation = np.linalg.svd(kernels[0].T)[2].T
    for layer, kernel in zip((first, *others), kernels):
        layer.kernel[...] = jnp.asarray(rotation.T @ kernel, dtype)
    norm.scale[...] = jnp.ones_like(norm.scale[...])
    return RotatedNorm(norm, jnp.asarray(rotation, dtype))
