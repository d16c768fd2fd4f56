"""Non-negative factors of spectra: robust to bad channels, as sparse as each pixel is pure."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from ...prox._check import known
from ...solve._dictionary import finite
from ...solve._duality import check_number
from ._endmembers import fcls, pure_pixels
from ._metrics import hoyer_sparsity

FLOOR = 1e-9  # of abundances inside powers, and of denominators


class Unmixing(NamedTuple):
    """Endmembers and their abundances.

    Attributes:
      endmembers: Spectra in columns, (channels, k), >= 0.
      abundances: Shares (k, pixels), >= 0, of a sum near 1.
      guidance: h (pixels,): the penalty of a pixel is `sum_k a_k^(1 - h)`.
      channel_weights: The weight of each channel; small for outliers.
      objective: After each step, (max_steps,); after the last step its last value.
      steps: Steps taken.
      converged: Whether the objective had come to rest.
    """

    endmembers: Float[Array, "channels k"]
    abundances: Float[Array, "k pixels"]
    guidance: Float[Array, " pixels"]
    channel_weights: Float[Array, " channels"]
    objective: Float[Array, " max_steps"]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def unmix(
    pixels: Float[ArrayLike, "..."],
    count: int,
    strength: ArrayLike = 0.05,
    *,
    robust: bool = True,
    guidance: Float[Array, " pixels"] | None = None,
    start: Float[Array, "channels k"] | None = None,
    max_steps: int = 300,
    tolerance: ArrayLike = 1e-6,
    sum_weight: ArrayLike = 1.0,
    largest_guidance: ArrayLike = 0.8,
    warm_up: int = 30,
    every: int = 10,
    floor: ArrayLike = 1e-8,
) -> Unmixing:
    r"""Finds the spectra of which pixels are mixed, and in which shares.

    Minimises `sum_l ||(Y - M A)_l||_2 + strength sum_n sum_k A_kn^(1 - h_n)` over M, A >= 0 by
    multiplicative updates. The norm of a whole channel is not squared, so that a bad channel counts
    little. h is learned on the way from how sparse a pixel's abundances are: nearly pure pixels get
    a penalty near l_0, mixed ones near l_1. The sum of the abundances is held near one.

    With `robust=False` the data term is `||Y - M A||^2 / 2`: then `strength=0` is plain NMF, and
    `guidance=jnp.full(n, 0.5)` is l_1/2-NMF. May be jitted and mapped over images.

    Args:
      pixels: Spectra in columns, (channels, pixels), in [0, 1]; negative values count as 0.
      count: The number k of endmembers.
      strength: Of the penalty; for the robust norm in proportion to 1 / sqrt(pixels), the default
        is for 900.
      robust: Whether channels are weighted.
      guidance: h in [0, 1) for each pixel, fixed; by default it is learned. `spatial_guidance`
        makes one from an image.
      start: Endmembers to start from, by default the pixels of `pure_pixels`.
      max_steps: The largest number of steps.
      tolerance: Stop when the objective changes by less than this share, unless h has moved.
      sum_weight: How strongly abundances sum to one; 0 for not at all.
      largest_guidance: h stays below: 1 would make the penalty a count.
      warm_up: Steps before h is first learned. Random abundances would freeze into wrong supports.
      every: Steps between two updates of h.
      floor: Channels with a smaller residual norm are weighted as if it were this. Without any
        noise a channel may be fitted exactly long before the others and then hold them up: there
        something like 0.01 helps.

    Returns:
      An `Unmixing`.

    Raises:
      ValueError: If the pixels are not of shape (channels, pixels), fewer than endmembers, not
        finite or far from [0, 1], or guidance or start do not fit.

    Reference:
      Zhu et al., Effective Spectral Unmixing via Robust Representation and Learning-based
      Sparsity, 2014 (arXiv 1409.0685).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> spectra = jnp.array([[1.0, 0.1], [0.5, 0.5], [0.1, 1.0]])
      >>> share = jnp.linspace(0.0, 1.0, 100)
      >>> shares = jnp.stack([share, 1 - share])
      >>> fit = unmixing.unmix(spectra @ shares, 2, floor=0.01)
      >>> errors = unmixing.unmixing_errors(*fit[:2], spectra, shares)
      >>> bool(errors.angles.max() < 0.1), bool(errors.rmse.max() < 0.06)
      (True, True)
    """
    y = jnp.asarray(pixels)
    if y.ndim != 2 or not 1 <= count <= min(y.shape):
        raise ValueError(
            f"unmix: {count} endmembers cannot be found in an array of shape {y.shape}; it must be "
            "(channels, pixels), such as image.reshape(height * width, channels).T."
        )
    y = jnp.maximum(finite("unmix", y, 2), 0)
    numbers = {"strength": strength, "sum_weight": sum_weight, "tolerance": tolerance}
    for name, x in numbers.items():
        check_number(name, x, (), y.dtype)
    _check(y, count, guidance, start, max_steps, every)
    m = jnp.maximum(y[:, pure_pixels(y, count)] if start is None else start, FLOOR)
    a = jnp.maximum(fcls(y, m), FLOOR)
    h = jnp.zeros(y.shape[1], y.dtype) if guidance is None else guidance
    strength = jnp.asarray(strength, y.dtype)
    learned = guidance is None and count > 1

    def step(state: _State) -> _State:
        u = _weights(y, state.m, state.a, robust, floor)
        a = update_abundances(y, state.m, state.a, u, state.h, strength, sum_weight)
        m = update_endmembers(y, state.m, a)
        moved = jnp.array(learned) & (state.t >= warm_up) & (state.t % every == 0)
        h = jnp.where(moved, learn_guidance(state.h, a, largest_guidance), state.h)
        new = _objective(y, m, a, h, strength, robust)
        old = state.history[jnp.maximum(state.t - 1, 0)]
        rest = ~moved & (state.t > 0) & (jnp.abs(old - new) < tolerance * jnp.abs(old))
        rest &= jnp.array(not learned) | (state.t > warm_up)
        history = jnp.where(jnp.arange(max_steps) >= state.t, new, state.history)
        return _State(m, a, h, history, state.t + 1, rest)

    begin = _State(
        m, a, h, jnp.zeros(max_steps, y.dtype), jnp.zeros((), jnp.int32), jnp.array(False)
    )
    end = lax.while_loop(lambda s: (s.t < max_steps) & ~s.rest, step, begin)
    u = _weights(y, end.m, end.a, robust, floor)
    return Unmixing(end.m, end.a, end.h, u, end.history, end.t, end.rest)


def _check(y: Array, count: int, guidance, start, max_steps: int, every: int) -> None:
    if max_steps < 1 or every < 1:
        raise ValueError(f"unmix: max_steps and every must be >= 1, got {max_steps} and {every}.")
    for name, x, shape in (("guidance", guidance, y.shape[1:]), ("start", start, (len(y), count))):
        if x is not None and jnp.shape(x) != shape:
            raise ValueError(f"unmix: {name} must have shape {shape}, got {jnp.shape(x)}.")
    h = np.asarray(guidance) if guidance is not None and known(guidance) else np.zeros(1)
    if not ((h >= 0) & (h < 1)).all():
        raise ValueError("unmix: guidance must be in [0, 1): at 1 the penalty would be a count.")
    largest = float(np.max(np.asarray(y))) if known(y) else 0.0
    if largest and not 1e-3 <= largest <= 1e3:  # the strength, the floors and the sum have units
        raise ValueError(f"unmix: pixels must be in [0, 1], got {largest:.3g}; divide by that.")


class _State(NamedTuple):
    m: Array
    a: Array
    h: Array
    history: Array
    t: Array
    rest: Array


def irls_weights(
    residual: Float[Array, "..."], axis: int | tuple[int, ...] = -1, floor: ArrayLike = 1e-8
) -> Float[Array, "..."]:
    r"""Weights that make a sum of norms a sum of squares, `u = 1 / max(||r||_2, floor)`.

    `||r|| <= u ||r||^2 / 2 + 1 / (2 u)` with equality at the r of the weights, so that a step that
    lowers the weighted squares lowers the norms (iteratively reweighted least squares).

    Args:
      residual: Residuals.
      axis: The axes of one norm.
      floor: Residuals below count as this.

    Returns:
      A weight for each norm.

    Reference:
      Nie et al., Efficient and Robust Feature Selection via Joint l2,1-Norms Minimization, 2010.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.irls_weights(jnp.array([[0.0, 4.0], [0.5, 0.0]])).tolist()
      [0.25, 2.0]
    """
    return 1 / jnp.maximum(jnp.sqrt(jnp.sum(residual**2, axis=axis)), floor)


def _weights(y: Array, m: Array, a: Array, robust: bool, floor: ArrayLike) -> Array:
    return irls_weights(y - m @ a, floor=floor) if robust else jnp.ones(len(y), y.dtype)


def update_abundances(
    pixels: Float[Array, "channels pixels"],
    endmembers: Float[Array, "channels k"],
    abundances: Float[Array, "k pixels"],
    weights: Float[Array, " channels"],
    guidance: Float[Array, " pixels"],
    strength: ArrayLike,
    sum_weight: ArrayLike = 0.0,
) -> Float[Array, "k pixels"]:
    r"""One multiplicative update of the abundances, which never increases the weighted objective.

    `A <- A * (M^T U Y + d^2) / (M^T U M A + d^2 1 1^T A + strength (1 - h) A^(-h))`, where U holds
    the weights and `d^2 = sum_weight^2 mean(u)`.

    Args:
      pixels: (channels, pixels).
      endmembers: (channels, k).
      abundances: (k, pixels).
      weights: u of each channel.
      guidance: h of each pixel.
      strength: Of the penalty.
      sum_weight: How strongly abundances sum to one.

    Returns:
      New abundances; what was 0 stays.

    Reference:
      Zhu et al., 2014 (arXiv 1409.0685); Lee and Seung, 2001.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.update_abundances(
      ...     jnp.array([[2.0]]), jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), jnp.zeros(1), 0.0
      ... ).tolist()
      [[2.0]]
    """
    delta = jnp.asarray(sum_weight, pixels.dtype) ** 2 * jnp.mean(weights)
    weighted = endmembers * weights[:, None]
    pull = weighted.T @ pixels + delta
    push = (weighted.T @ endmembers + delta) @ abundances
    push += strength * (1 - guidance) * jnp.maximum(abundances, FLOOR) ** (-guidance)
    return abundances * pull / jnp.maximum(push, FLOOR)


def update_endmembers(
    pixels: Float[Array, "channels pixels"],
    endmembers: Float[Array, "channels k"],
    abundances: Float[Array, "k pixels"],
) -> Float[Array, "channels k"]:
    r"""One multiplicative update of the endmembers, `M <- M * (Y A^T) / (M A A^T)`.

    Weights of channels would cancel: every channel has its own row of M.

    Args:
      pixels: (channels, pixels).
      endmembers: (channels, k).
      abundances: (k, pixels).

    Returns:
      New endmembers; what was 0 stays.

    Reference:
      Lee and Seung, Algorithms for Non-negative Matrix Factorization, 2001.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> one = jnp.ones((1, 1))
      >>> unmixing.update_endmembers(2 * one, one, one).tolist()
      [[2.0]]
    """
    return (
        endmembers
        * (pixels @ abundances.T)
        / jnp.maximum(endmembers @ (abundances @ abundances.T), FLOOR)
    )


def learn_guidance(
    guidance: Float[Array, " pixels"],
    abundances: Float[Array, "k pixels"],
    largest: ArrayLike = 0.8,
) -> Float[Array, " pixels"]:
    r"""Moves the guidance half way to the sparsity of each pixel's abundances.

    `h <- clip(h / 2 + hoyer(a) / 2, 0, largest)`.

    Args:
      guidance: h (pixels,).
      abundances: (k, pixels).
      largest: The upper bound.

    Returns:
      The new guidance.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.learn_guidance(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.0, 0.5]])).round(4)
      Array([0.5, 0. ], dtype=float32)
    """
    return jnp.clip((guidance + hoyer_sparsity(abundances, axis=0)) / 2, 0, largest)


def spatial_guidance(
    image: Float[Array, "h w channels"], width: ArrayLike = 0.1, largest: ArrayLike = 0.8
) -> Float[Array, " pixels"]:
    r"""Guidance from the data: pixels like their eight neighbours are taken for pure.

    `h_n` is the mean over neighbours j of `exp(-||y_n - y_j||^2 / (channels width^2))`.

    Args:
      image: A spectral image (h, w, channels).
      width: Root mean squared difference of spectra that still counts as alike.
      largest: The upper bound.

    Returns:
      h for the pixels in the order of `image.reshape(h * w, channels)`.

    Reference:
      Zhu et al., Spectral Unmixing via Data-guided Sparsity, 2014 (arXiv 1403.3155).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.spatial_guidance(jnp.ones((2, 2, 3))).tolist() == [jnp.float32(0.8)] * 4
      True
    """
    rows, columns, _ = image.shape
    framed = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    inside = jnp.pad(jnp.ones((rows, columns), image.dtype), 1)
    total = count = jnp.zeros((rows, columns), image.dtype)
    for i, j in [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]:
        near = framed[i : i + rows, j : j + columns]
        there = inside[i : i + rows, j : j + columns]
        alike = jnp.exp(-jnp.mean((image - near) ** 2, axis=-1) / jnp.asarray(width) ** 2)
        total, count = total + there * alike, count + there
    return jnp.clip(total / jnp.maximum(count, 1), 0, largest).reshape(-1)


def _objective(y, m, a, h, strength, robust: bool) -> Array:
    residual = y - m @ a
    norms = jnp.linalg.norm(residual, axis=1)
    fit = jnp.sum(norms) if robust else jnp.sum(norms**2) / 2
    return fit + strength * jnp.sum(jnp.maximum(a, FLOOR) ** (1 - h))
