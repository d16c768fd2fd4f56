"""Monomials whose products are the Taylor polynomial of the exponential."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype


class _Step(NamedTuple):
    """The monomials of one degree: each is one of the degree below times a coordinate."""

    below: np.ndarray
    coordinate: np.ndarray
    exponent: np.ndarray  # of the coordinate, after the product


@checked(degree="[0, inf)")
def polynomial_features(
    x: Shaped[Array | np.ndarray, "... d"], degree: int
) -> Float[Array, "... k"]:
    r"""All monomials `x^a / sqrt(a!)` up to a degree, so that `phi(x) phi(y) = sum_t (x y)^t / t!`.

    Args:
      x: Vectors.
      degree: g; even ones keep the sum above zero for all x and y.

    Returns:
      `C(d + g, g)` features in at least float32, by degree.

    Reference:
      Hu et al., Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer
      Models, 2024 (arXiv 2406.03136); Alman and Song, Fast Attention Requires Bounded Entries, 2023
      (arXiv 2302.13214).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import lora_limits
      >>> lora_limits.polynomial_features(jnp.array([2.0, 3.0]), 1).tolist()
      [1.0, 2.0, 3.0]
      >>> phi = lora_limits.polynomial_features(jnp.array([2.0, 3.0]), 2)
      >>> (phi @ phi).round(2).item(), 1 + 13 + 13**2 / 2
      (98.5, 98.5)
    """
    x = jnp.asarray(x)
    x = jnp.moveaxis(x.astype(wide_dtype(x)), -1, 0)
    return jnp.moveaxis(feature_rows(x, int(degree)), 0, -1)


def feature_rows(x: Array, degree: int) -> Array:
    """The features (k, ...) of vectors (d, ...), which are read and written by whole rows."""
    rows = [jnp.ones((1, *x.shape[1:]), x.dtype)]
    for step in _steps(x.shape[0], degree):
        scale = (1 / np.sqrt(step.exponent)).reshape(-1, *[1] * (x.ndim - 1))
        rows.append(rows[-1][step.below] * x[step.coordinate] * scale.astype(x.dtype))
    return jnp.concatenate(rows)


@functools.cache
def _steps(d: int, degree: int) -> list[_Step]:
    """Coordinates never fall within a monomial, so that each is made once."""
    last, exponent = np.zeros(1, np.int32), np.zeros(1, np.int32)
    steps = []
    for _ in range(degree):
        below, coordinate = np.nonzero(np.arange(d, dtype=np.int32) >= last[:, None])
        below, coordinate = below.astype(np.int32), coordinate.astype(np.int32)
        exponent = np.where(coordinate == last[below], exponent[below], 0) + 1
        last = coordinate
        steps.append(_Step(below, coordinate, exponent))
    return steps
