"""Initialisation of unmixing: pure pixels by SPA or VCA, channel noise, FCLS abundances."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..._arguments import checked, finite_array
from ..._arrays import magnitude


@checked()
def spa(pixels: ArrayLike, count: int) -> Int[Array, " count"]:
    r"""The successive projection algorithm (SPA): pixels at the vertices of the data simplex.

    Repeatedly selects the pixel of largest norm and projects all pixels onto its orthogonal
    complement.

    Args:
      pixels: Spectra in columns, (channels, pixels).
      count: Number of endmembers.

    Returns:
      Distinct indices of pixels; if the pixels span fewer dimensions, the lowest unused indices.

    Raises:
      ValueError: If there are fewer channels or pixels than endmembers, or values are not finite.

    Reference:
      Araujo et al., The successive projections algorithm for variable selection, 2001; Gillis and
      Vavasis, 2012 (arXiv 1208.1237).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.spa(jnp.array([[0.5, 2.0, 0.0], [0.5, 0.0, 1.0]]), 2).tolist()
      [1, 2]
    """
    return _spa(_enough("spa", pixels, count), count)


@partial(jax.jit, static_argnames="count")
def _spa(pixels: Array, count: int) -> Array:
    def take(state, _):
        rest, free = state
        best = jnp.argmax(jnp.where(free, jnp.sum(rest**2, axis=0), -1))
        direction = _unit(rest[:, best])
        return (rest - jnp.outer(direction, direction @ rest), free.at[best].set(False)), best

    return lax.scan(take, (pixels, jnp.ones(pixels.shape[1], bool)), length=count)[1]


@checked()
def vca(pixels: ArrayLike, count: int, *, key: PRNGKeyArray) -> Int[Array, " count"]:
    r"""Vertex component analysis (VCA): extreme pixels along random orthogonal directions.

    Pixels are projected onto their `count` principal directions and divided by their component
    along the mean. If the signal-to-noise ratio is below 15 + 10 log10(count) dB, they are
    projected onto `count - 1` principal directions around the mean instead.

    Args:
      pixels: Spectra in columns, (channels, pixels).
      count: Number of endmembers.
      key: A random key.

    Returns:
      Distinct indices of pixels; if the pixels span fewer dimensions, the lowest unused indices.

    Raises:
      ValueError: If there are fewer channels or pixels than endmembers, or values are not finite.

    Reference:
      Nascimento and Dias, Vertex Component Analysis, 2005.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> pixels = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
      >>> sorted(unmixing.vca(pixels, 2, key=jax.random.key(0)).tolist())
      [0, 2]
    """
    return _vca(_enough("vca", pixels, count), count, key)


@partial(jax.jit, static_argnames="count")
def _vca(pixels: Array, count: int, key: PRNGKeyArray) -> Array:
    seen = jnp.where(_noisy(pixels, count), _around(pixels, count), _projective(pixels, count))

    def take(state, key):
        found, place, free = state  # found: an orthonormal basis of the selected pixels
        direction = jax.random.normal(key, (count,), pixels.dtype)
        for _ in range(2):  # orthogonalise twice against rounding
            direction = _unit(direction - found @ (found.T @ direction))
        best = jnp.argmax(jnp.where(free, jnp.abs(direction @ seen), -1))
        corner = seen[:, best]
        for _ in range(2):
            corner = _unit(corner - found @ (found.T @ corner))
        return (found.at[:, place].set(corner), place + 1, free.at[best].set(False)), best

    start = jnp.zeros((count, count), pixels.dtype), 0, jnp.ones(pixels.shape[1], bool)
    return lax.scan(take, start, jax.random.split(key, count))[1]


def _noisy(pixels: Array, count: int) -> Array:
    """Whether the signal-to-noise ratio in decibels is below 15 + 10 log10(count)."""
    mean = jnp.mean(pixels, axis=1, keepdims=True)
    centred = pixels - mean
    power = jnp.mean(jnp.sum(pixels**2, axis=0))
    kept = jnp.mean(jnp.sum((_top(centred, count).T @ centred) ** 2, axis=0)) + jnp.sum(mean**2)
    signal = kept - count / len(pixels) * power
    return signal < 10**1.5 * count * (power - kept)


def _around(pixels: Array, count: int) -> Array:
    """Projection onto `count - 1` directions around the mean, with a constant last coordinate."""
    centred = pixels - jnp.mean(pixels, axis=1, keepdims=True)
    seen = _top(centred, count - 1).T @ centred
    far = jnp.sqrt(jnp.max(jnp.sum(seen**2, axis=0)))
    return jnp.concatenate([seen, jnp.full((1, pixels.shape[1]), far)])


def _projective(pixels: Array, count: int) -> Array:
    seen = _top(pixels, count).T @ pixels
    along = jnp.mean(seen, axis=1) @ seen
    return seen / jnp.where(jnp.abs(along) > 0, along, 1)[None]


def _top(pixels: Array, count: int) -> Array:
    """The leading left singular vectors."""
    return jnp.linalg.eigh(pixels @ pixels.T)[1][:, ::-1][:, :count]


def _unit(x: Array) -> Array:
    length = jnp.linalg.norm(x)
    return x / jnp.where(length > 0, length, 1)


@checked()
def channel_noise(pixels: ArrayLike) -> Float[Array, " channels"]:
    r"""The noise of each channel: the residual of its ridge regression on the other channels.

    `std_l = 1 / sqrt((C + 1e-3 tr(C)/L I)^-1_ll)`, `C = Y Y^T / N`.

    Args:
      pixels: Spectra in columns, (channels, pixels).

    Returns:
      One standard deviation per channel.

    Reference:
      Roger and Arnold, Reliably estimating the noise in AVIRIS hyperspectral images, 1996.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> shares = jax.random.uniform(jax.random.key(0), (2, 100))
      >>> pixels = (jnp.ones((5, 2)) @ shares).at[3].add(jax.random.normal(jax.random.key(1), 100))
      >>> int(unmixing.channel_noise(pixels).argmax())
      3
    """
    pixels = finite_array("channel_noise", "pixels", pixels, 2)
    size, channels = magnitude(pixels), len(pixels)
    pixels = pixels / size
    covariance = pixels @ pixels.T / pixels.shape[1]
    ridge = 1e-3 * jnp.trace(covariance) / channels
    ridge = jnp.where(ridge > 0, ridge, 1) * jnp.eye(channels, dtype=pixels.dtype)
    return size / jnp.sqrt(jnp.diagonal(jnp.linalg.inv(covariance + ridge)))


@checked()
def clean_channels(pixels: ArrayLike) -> Bool[Array, " channels"]:
    r"""Selects channels whose precision `1 / std` is at least half the median precision.

    Args:
      pixels: Spectra in columns, (channels, pixels).

    Returns:
      One boolean per channel, from `channel_noise`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> shares = jax.random.uniform(jax.random.key(0), (2, 100))
      >>> pixels = (jnp.ones((5, 2)) @ shares).at[3].add(jax.random.normal(jax.random.key(1), 100))
      >>> unmixing.clean_channels(pixels).tolist()
      [True, True, True, False, True]
    """
    noise = channel_noise(pixels)
    precision = magnitude(noise) / noise
    return precision >= jnp.median(precision) / 2


@checked()
def pure_pixels(pixels: ArrayLike, count: int) -> Int[Array, " count"]:
    r"""SPA robust to outlier channels: on the leading directions of the clean channels.

    Args:
      pixels: Spectra in columns, (channels, pixels).
      count: Number of endmembers.

    Returns:
      Indices of pixels. Their columns of `pixels` are spectra with all channels.

    Raises:
      ValueError: If there are fewer channels or pixels than endmembers, or values are not finite.

    Reference:
      Zhu et al., Effective Spectral Unmixing via Robust Representation and Learning-based
      Sparsity, 2014 (arXiv 1409.0685).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.pure_pixels(jnp.array([[0.5, 2.0, 0.0], [0.5, 0.0, 1.0]]), 2).tolist()
      [1, 2]
    """
    pixels = _enough("pure_pixels", pixels, count)
    usable = jnp.where(clean_channels(pixels)[:, None], pixels, 0)
    return _spa(_top(usable, count).T @ usable, count)


@checked(weight="[0, inf)", steps="[0, inf)")
def fcls(
    pixels: ArrayLike,
    endmembers: ArrayLike,
    *,
    weight: ArrayLike = 15.0,
    steps: int = 500,
) -> Float[Array, "k pixels"]:
    r"""Fully constrained least squares (FCLS): abundances >= 0 with a soft sum-to-one constraint.

    Minimises `||Y - M A||^2 + weight^2 ||1 - 1^T A||^2` over `A >= 0` by a fixed number of monotone
    multiplicative updates, initialised at `1 / k`.

    Args:
      pixels: Spectra in columns, (channels, pixels); negative values count as 0.
      endmembers: Endmember spectra in columns, (channels, k); negative values count as 0.
      weight: Weight of the sum-to-one constraint; larger values slow convergence.
      steps: Number of updates.

    Returns:
      Abundances (k, pixels).

    Raises:
      ValueError: If the two differ in their channels, are empty or not finite.

    Reference:
      Heinz and Chang, Fully constrained least squares linear spectral mixture analysis, 2001.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.fcls(jnp.array([[0.25], [0.75]]), jnp.eye(2), weight=1.0).round(2)
      Array([[0.25],
             [0.75]], dtype=float32)
    """
    pixels, endmembers = (
        finite_array("fcls", "pixels", pixels, 2),
        finite_array("fcls", "endmembers", endmembers, 2),
    )
    if len(pixels) != len(endmembers):
        raise ValueError(
            "fcls: pixels and endmembers must have the same number of channels in rows, got "
            f"{pixels.shape} and {endmembers.shape}."
        )
    return _fcls(pixels, endmembers, jnp.asarray(weight, pixels.dtype), steps)


@jax.jit
def _fcls(pixels: Array, endmembers: Array, weight: Array, steps: ArrayLike) -> Array:
    size = magnitude(pixels, endmembers, weight)
    pixels, endmembers = jnp.maximum(pixels / size, 0), jnp.maximum(endmembers / size, 0)
    weight = weight / size
    pull = endmembers.T @ pixels + weight**2
    gram = endmembers.T @ endmembers + weight**2
    shares = jnp.full(pull.shape, 1 / endmembers.shape[1], pixels.dtype)
    return lax.fori_loop(0, steps, lambda _, a: a * pull / jnp.maximum(gram @ a, 1e-9), shares)


def _enough(caller: str, pixels: ArrayLike, count: int) -> Array:
    """The pixels as floats, scaled so that no square overflows or underflows."""
    if jnp.ndim(pixels) != 2 or not 1 <= count <= min(jnp.shape(pixels)):
        raise ValueError(
            f"{caller}: pixels must have shape (channels, pixels) with at least count={count} of "
            f"both, got {jnp.shape(pixels)}; for example image.reshape(height * width, channels).T."
        )
    pixels = finite_array(caller, "pixels", pixels, 2)
    return pixels / magnitude(pixels)
