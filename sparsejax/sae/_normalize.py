"""Normalisation of inputs, by sample; outputs are mapped back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._arrays import wide_dtype
from ._norms import row_norms


class Units(NamedTuple):
    """`normalised = (x - shift) / scale`, and back with `back`, for each sample."""

    scale: Any = 1.0
    shift: Any = 0.0
    back: Any = 1.0

    def inside(self, x: Array) -> Array:
        """The normalised sample."""
        return ((x - self.shift) / self.scale).astype(x.dtype)

    def outside(self, y: Array) -> Array:
        """A normalised sample in the original units."""
        return (y * self.back + self.shift).astype(y.dtype)

    def gradient_inside(self, g: Array) -> Array:
        """A gradient in x as one in the normalised sample."""
        return (g * self.scale).astype(g.dtype)


def _none(x: Array) -> Units:
    return Units()


def _constant_norm(x: Array) -> Units:
    """To the norm sqrt(d); zeros stay zeros."""
    norm = row_norms(x)[..., None] / x.shape[-1] ** 0.5
    scale = jnp.where(norm > 0, norm, 1)
    return Units(scale, 0.0, scale)


def _layer_norm(x: Array) -> Units:
    """To mean 0 and standard deviation 1, with ddof 1; only divides by it plus 1e-5."""
    wide = x.astype(wide_dtype(x))
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    deviation = row_norms(wide - mean)[..., None] / (x.shape[-1] - 1) ** 0.5
    return Units(deviation + 1e-5, mean, deviation)


# By the names of SAELens. The scale of expected_average_only_in is one number for all samples,
# `sj.sae.expected_scale`, which the caller applies or folds into the weights.
UNITS: dict[str, Callable[[Array], Units]] = {
    "none": _none,
    "expected_average_only_in": _none,
    "constant_norm_rescale": _constant_norm,
    "layer_norm": _layer_norm,
}
