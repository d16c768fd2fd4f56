"""Noisy images as files hold them, and the size of their noise."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from ..._arguments import check_finite, checked
from ..._arrays import wide_dtype
from ._step import check_unit_range


class PerturbationReport(NamedTuple):
    """The size of the noise of each image.

    Args:
      l0: Number of pixels that change in any channel.
      l2: Euclidean norm, in units of the images.
      linf: Largest modulus, in units of the images.
      psnr: Peak signal-to-noise ratio for images in [0, 1], in decibels; infinite without noise.
    """

    l0: Int[Array, " n"]
    l2: Float[Array, " n"]
    linf: Float[Array, " n"]
    psnr: Float[Array, " n"]


@checked()
def perturbation_report(noise: Float[Array, "n h w c"]) -> PerturbationReport:
    r"""Measures the noise of each image: changed pixels, norms and PSNR.

    `psnr = -10 log10(mean(noise^2))`.

    Args:
      noise: The differences of the noisy and the clean images, which lie in [0, 1].

    Returns:
      `PerturbationReport(l0, l2, linf, psnr)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearnable
      >>> found = unlearnable.perturbation_report(jnp.full((1, 2, 2, 1), 0.1).at[0, 0].set(0))
      >>> int(found.l0[0]), round(float(found.psnr[0]), 2)
      (2, 23.01)
    """
    noise = noise.astype(wide_dtype(noise))
    entries = (1, 2, 3)
    return PerturbationReport(
        l0=jnp.sum(jnp.any(noise != 0, -1), (1, 2)),
        l2=jnp.sqrt(jnp.sum(noise**2, entries)),
        linf=jnp.max(jnp.abs(noise), entries),
        psnr=-10 * jnp.log10(jnp.mean(noise**2, entries)),
    )


@checked()
def release(
    images: Float[Array, "n h w c"], noise: Float[Array, "n h w c"]
) -> UInt8[Array, "n h w c"]:
    """Noisy images as bytes: `round(255 clip(images + noise, 0, 1))`.

    Noise below half a level of 1 / 255 is lost.

    Args:
      images: Images in [0, 1].
      noise: Their noise.

    Raises:
      ValueError: If a value is not finite or an image is not in [0, 1], unless traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearnable
      >>> unlearnable.release(jnp.ones((1, 1, 1, 1)), -jnp.full((1, 1, 1, 1), 0.2)).item()
      204
    """
    check_unit_range("release", images)
    check_finite("release", noise=noise)
    return jnp.round(255 * jnp.clip(images + noise, 0, 1)).astype(jnp.uint8)
