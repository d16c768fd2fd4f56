"""Rotary positions in one or two dimensions, for both halves of doubled features."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked
from ..._arrays import wide_dtype


@checked(size="[2, inf)", base="(1, inf)")
def rotary_angles(
    positions: Shaped[Array | np.ndarray, "... axes"], size: int, *, base: float = 10_000.0
) -> Float[Array, "... pairs"]:
    r"""The angle of each pair of features, `position * base^-linspace(0, 1, size / 2 / axes)`.

    Args:
      positions: One coordinate for sequences; row and column for images, of which the first half of
        the pairs turns by the row and the second by the column.
      size: d, features of a head before they are doubled; a multiple of twice the axes.
      base: The largest wavelength over the smallest one.

    Returns:
      Angles in float32, (..., size / 2).

    Raises:
      ValueError: If `size` is not such a multiple.

    Reference:
      Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021 (arXiv
      2104.09864); Meng et al., NaLaFormer, 2025 (arXiv 2506.21137).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import linear_attention
      >>> linear_attention.rotary_angles(jnp.array([[0.0], [2.0]]), 4, base=100.0).round(2).tolist()
      [[0.0, 0.0], [2.0, 0.019999999552965164]]
    """
    positions = jnp.asarray(positions).astype(jnp.float32)
    axes = positions.shape[-1]
    if not axes or size % (2 * axes):
        raise ValueError(
            f"rotary_angles: size must be a multiple of twice the {axes} coordinates of positions, "
            f"got {size}."
        )
    speed = base ** -jnp.linspace(0, 1, size // (2 * axes), dtype=jnp.float32)
    angles = positions[..., None] * speed
    return angles.reshape(*positions.shape[:-1], size // 2)


@checked()
def rotate(
    features: Shaped[Array | np.ndarray, "... n h f"], angles: Shaped[Array | np.ndarray, "*b n p"]
) -> Shaped[Array, "... n h f"]:
    r"""Turns neighbouring pairs of features by angles, in each part of twice as many features.

    Args:
      features: Of tokens and heads; f is a multiple of 2 p. Of doubled features, both halves are
        turned by the same angles.
      angles: The result of `rotary_angles`.

    Returns:
      Features with the same norms, as `rotated=` of `linear_attention`.

    Raises:
      ValueError: If f is not such a multiple, or there are not angles for all tokens.

    Reference:
      Meng et al., NaLaFormer, 2025 (arXiv 2506.21137).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import linear_attention
      >>> right = jnp.full((1, 1), jnp.pi / 2)
      >>> linear_attention.rotate(jnp.array([[[1.0, 0.0, 0.0, 1.0]]]), right).round(2).tolist()
      [[[-0.0, 1.0, -1.0, -0.0]]]
    """
    features, angles = jnp.asarray(features), jnp.asarray(angles)
    pairs = angles.shape[-1]
    if not pairs or features.shape[-1] % (2 * pairs):
        raise ValueError(
            f"rotate: features {features.shape} must have a multiple of {2 * pairs} features, "
            f"two for each angle of {angles.shape}."
        )
    places = features.shape[:-2]
    if angles.shape[:-1] != places[len(places) - angles.ndim + 1 :]:
        raise ValueError(
            f"rotate: angles {angles.shape} must have the last axes of the tokens {places} of "
            "features."
        )
    wide = wide_dtype(features)
    parts = features.shape[-1] // (2 * pairs)
    x = features.astype(wide).reshape(*features.shape[:-1], parts, pairs, 2)
    cos, sin = (f(angles.astype(wide))[..., None, None, :] for f in (jnp.cos, jnp.sin))
    a, b = x[..., 0], x[..., 1]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return turned.reshape(features.shape).astype(features.dtype)
