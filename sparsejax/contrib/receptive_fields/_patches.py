"""Whitened patches of natural images, the input of sparse coding."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..._arguments import check_finite, checked


@checked(cutoff="(0, inf)")
def whiten_image(image: Float[ArrayLike, "..."], cutoff: ArrayLike = 0.4) -> Float[Array, "h w"]:
    r"""Whitens a natural image: flattens its 1/f spectrum below a smooth cutoff.

    The spectrum is multiplied by `|f| exp(-(f / cutoff)^4)`; the result has mean 0 and variance 1.

    Args:
      image: A grayscale image (h, w).
      cutoff: Cutoff in cycles per pixel; 0.5 is the highest frequency along an axis.

    Returns:
      The whitened image (h, w); zeros for a constant image.

    Raises:
      ValueError: If the image is not a matrix.

    Reference:
      Olshausen and Field, Sparse coding with an overcomplete basis set, 1997.

    Example:
      >>> import jax
      >>> from sparsejax.contrib import receptive_fields
      >>> image = jax.random.normal(jax.random.key(0), (32, 32)).cumsum(0)
      >>> white = receptive_fields.whiten_image(image)
      >>> round(float(white.std()), 4)
      1.0
    """
    x = jnp.asarray(image)
    check_finite("whiten_image", image=x)
    if x.ndim != 2:
        raise ValueError(
            f"whiten_image takes one grey image (height, width), got shape {x.shape}; average the "
            "colors with image.mean(-1), and map over several images with jax.vmap."
        )
    rows, columns = jnp.fft.fftfreq(x.shape[0])[:, None], jnp.fft.rfftfreq(x.shape[1])[None]
    frequency = jnp.sqrt(rows**2 + columns**2)
    filtered = jnp.fft.rfft2(x) * frequency * jnp.exp(-((frequency / cutoff) ** 4))
    white = jnp.fft.irfft2(filtered, x.shape)
    white = white - jnp.mean(white)
    spread = jnp.std(white)
    # Rounding errors of the transform.
    noise = 10 * jnp.finfo(white.dtype).eps * jnp.max(jnp.abs(x))
    return jnp.where(spread > noise, white / jnp.where(spread > 0, spread, 1), 0)


@checked(count="[1, inf)", size="[1, inf)")
def sample_patches(
    image: Float[ArrayLike, "..."], count: int, size: int, *, key: PRNGKeyArray
) -> Float[Array, "count pixels"]:
    r"""Samples square patches of an image at random positions and subtracts the mean of each.

    Args:
      image: A grayscale image (h, w).
      count: Number of patches.
      size: Height and width of a patch.
      key: A random key.

    Returns:
      Flattened patches, (count, size * size).

    Raises:
      ValueError: If the image is not a matrix, or smaller than a patch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import receptive_fields
      >>> receptive_fields.sample_patches(jnp.eye(32), 10, 8, key=jax.random.key(0)).shape
      (10, 64)
    """
    x = jnp.asarray(image)
    if x.ndim != 2 or min(x.shape) < size:
        raise ValueError(
            f"sample_patches takes one grey image of at least {size} x {size}, got shape {x.shape}."
        )
    room = jnp.asarray([x.shape]) - size + 1
    corners = jax.random.randint(key, (count, 2), 0, room)
    cut = jax.vmap(lambda corner: lax.dynamic_slice(x, corner, (size, size)))(corners)
    flat = cut.reshape(count, size * size)
    return flat - jnp.mean(flat, axis=1, keepdims=True)
