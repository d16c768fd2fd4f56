"""One step of noise on the pixels of largest gradient."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ..._arguments import check_finite, checked, known
from ..._arrays import wide_dtype
from ..._sharding import on_host
from ..._topk import topk_mask


@checked(ratio="[0, 1]")
def top_pixel_mask(grads: Float[Array, "n h w c"], ratio: float) -> Bool[Array, "n h w 1"]:
    r"""The pixels of each image with the largest gradient, `ceil(ratio h w)` of them.

    Pixels are compared by `sum_c |g|` within their image; the lower flat index wins ties.

    Args:
      grads: Gradients with respect to images.
      ratio: Fraction of the pixels, in [0, 1].

    Returns:
      A mask that broadcasts over channels.

    Reference:
      Sun et al., Medical Unlearnable Examples, 2024 (arXiv 2403.10573).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearnable
      >>> grads = jnp.array([1.0, -3.0, 0.0, 2.0]).reshape(1, 2, 2, 1)
      >>> unlearnable.top_pixel_mask(grads, 0.5).ravel().tolist()
      [False, True, False, True]
    """
    pixels = jnp.sum(jnp.abs(grads).astype(wide_dtype(grads)), -1)
    # The tolerance keeps 0.1 * 30 from counting 4 pixels.
    kept = math.ceil(ratio * math.prod(pixels.shape[1:]) - 1e-9)
    return topk_mask(pixels, kept, (1, 2))[..., None]


@checked(eps="[0, inf)", step="[0, inf)", ratio="[0, 1]")
def masked_step(
    noise: Float[Array, "n h w c"],
    grads: Float[Array, "n h w c"],
    images: Float[Array, "n h w c"] | None = None,
    *,
    eps: ArrayLike,
    step: ArrayLike,
    ratio: float = 0.1,
    mask: Bool[Array, "n h w 1"] | None = None,
) -> Float[Array, "n h w c"]:
    r"""Descends a loss by a signed step on the pixels of largest gradient, within `|noise| <= eps`.

    `noise - step sign(g) m`, clipped to [-eps, eps] and then to images `images + noise` in [0, 1].

    Args:
      noise: Current noise.
      grads: Gradients at the clipped images `clip(images + noise, 0, 1)`, not through the clip.
      images: Images in [0, 1]; None leaves the range of the noisy images alone, as for noise that
        several images share.
      eps: Largest noise of an entry, in units of the images.
      step: Length of the step, in units of the images.
      ratio: Fraction of the pixels that move; 1 is the step of plain error-minimising noise.
      mask: Pixels that move; None means `top_pixel_mask(grads, ratio)`.

    Returns:
      The new noise.

    Raises:
      ValueError: If an image is not in [0, 1], unless traced.

    Reference:
      Sun et al., 2024 (arXiv 2403.10573); Huang et al., Unlearnable Examples, 2021 (arXiv
      2101.04898).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unlearnable
      >>> noise, grads = jnp.zeros((1, 1, 2, 1)), jnp.array([[[[1.0], [-3.0]]]])
      >>> unlearnable.masked_step(noise, grads, eps=0.5, step=0.25, ratio=0.5).ravel().tolist()
      [0.0, 0.25]
    """
    if images is not None:
        check_unit_range("masked_step", images)
    mask = top_pixel_mask(grads, ratio) if mask is None else mask
    moved = noise - jnp.where(mask, step * jnp.sign(grads), 0).astype(noise.dtype)
    if images is None:
        return jnp.clip(moved, -eps, eps)
    # Both clips at once: `clip(images + noise) - images` would round to more than eps.
    return jnp.clip(moved, jnp.maximum(-eps, -images), jnp.minimum(eps, 1 - images))


def check_unit_range(caller: str, images: Array) -> None:
    """Raises unless concrete images are in [0, 1]: beyond, the clips would move them by force."""
    check_finite(caller, images=images)
    if not known(images) or not images.size:
        return
    low, high = float(on_host(images).min()), float(on_host(images).max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{caller}: images must be in [0, 1], they lie in [{low:.3g}, {high:.3g}]; pass "
            "images / 255."
        )
