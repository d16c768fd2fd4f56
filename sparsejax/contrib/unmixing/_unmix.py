"""Robust non-negative factorisation of spectra with per-pixel sparsity."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_strength, checked, checked_axis, finite_array, known
from ..._progress import Progress, check_loop, run_chunks
from ..._solution import code, finish
from ...solve import Solution
from ._endmembers import fcls, pure_pixels
from ._metrics import hoyer_sparsity

FLOOR = 1e-9  # of abundances inside powers, and of denominators


class Unmixing(NamedTuple):
    """Endmembers and their abundances, the `value` of `unmix`.

    Attributes:
      endmembers: Spectra in columns, (channels, k), >= 0.
      abundances: Abundances (k, pixels), >= 0, with a sum near 1.
      guidance: h (pixels,): the penalty of a pixel is `sum_k a_k^(1 - h)`.
      channel_weights: Weight of each channel; small for outlier channels.
    """

    endmembers: Float[Array, "channels k"]
    abundances: Float[Array, "k pixels"]
    guidance: Float[Array, " pixels"]
    channel_weights: Float[Array, " channels"]


@checked(
    strength="[0, inf)",
    tol="[0, inf)",
    max_steps="[1, inf)",
    sum_weight="[0, inf)",
    largest_guidance="[0, 1)",
    warm_up="[0, inf)",
    every="[1, inf)",
    floor="[0, inf)",
)
def unmix(
    pixels: Float[ArrayLike, "..."],
    count: int,
    strength: ArrayLike = 0.05,
    *,
    robust: bool = True,
    guidance: Float[Array, " pixels"] | None = None,
    w0: Float[Array, "channels k"] | None = None,
    tol: ArrayLike = 1e-5,
    max_steps: int = 5000,
    sum_weight: ArrayLike = 1.0,
    largest_guidance: ArrayLike = 0.8,
    warm_up: int = 30,
    every: int = 10,
    floor: ArrayLike = 1e-8,
    throw: bool = True,
    chunk: int = 200,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Solution:
    r"""Estimates endmember spectra and the abundances of each pixel.

    Minimises `sum_l ||(Y - M A)_l||_2 + strength sum_n sum_k A_kn^(1 - h_n)` over M, A >= 0 by
    multiplicative updates. The norm of a channel is not squared, so that outlier channels have
    little influence. The guidance h is learned from the sparsity of each pixel's abundances: nearly
    pure pixels get a penalty near l_0, mixed pixels near l_1. A soft constraint keeps the sum of
    the abundances near one.

    With `robust=False` the data term is `||Y - M A||^2 / 2`: then `strength=0` is plain NMF, and
    `guidance=jnp.full(n, 0.5)` is l_1/2-NMF. May be jitted and mapped over images.

    Args:
      pixels: Spectra in columns, (channels, pixels), in [0, 1]; negative values count as 0.
      count: Number k of endmembers.
      strength: Strength of the penalty. With the robust norm it scales as 1 / sqrt(pixels); the
        default suits 900 pixels.
      robust: Whether to use the robust norm.
      guidance: Fixed h in [0, 1) per pixel, such as `spatial_guidance`; learned by default.
      w0: Initial endmembers (channels, k); the pixels selected by `pure_pixels` by default.
      tol: Converged when the relative change of the objective in a step is below `tol` and h was
        not updated.
      max_steps: Maximum number of steps.
      sum_weight: Weight of the sum-to-one constraint; 0 disables it.
      largest_guidance: Upper bound of h, below 1: h = 1 would make the penalty a count.
      warm_up: Steps before h is first learned; abundances that are still random would fix wrong
        supports.
      every: Steps between two updates of h.
      floor: Lower bound of the residual norms in the channel weights. In noise-free data some
        channels may be fitted exactly long before the others and then dominate the weights; use
        `floor=0.01`.
      throw: Whether to raise if the tolerance is not reached (outside jit).
      chunk: Number of steps between two calls of the callback.
      callback: Called with a `sj.recipes.Progress` after each chunk; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Solution` whose `value` is an `Unmixing`. `stats` holds `n_iter` and `objective`, the
      objective after each step (max_steps,), with the last value repeated after convergence.

    Raises:
      RuntimeError: If `throw` and the tolerance is not reached.
      ValueError: If `pixels` does not have shape (channels, pixels), has fewer channels or pixels
        than endmembers, is not finite or far from [0, 1], guidance or w0 has the wrong shape, or
        `resume` began with other pixels or arguments.

    Reference:
      Zhu et al., Effective Spectral Unmixing via Robust Representation and Learning-based
      Sparsity, 2014 (arXiv 1409.0685).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> spectra = jnp.array([[1.0, 0.1], [0.5, 0.5], [0.1, 1.0]])
      >>> share = jnp.linspace(0.0, 1.0, 100)
      >>> abundances = jnp.stack([share, 1 - share])
      >>> fit = unmixing.unmix(spectra @ abundances, 2, floor=0.01).value
      >>> errors = unmixing.unmixing_errors(*fit[:2], spectra, abundances)
      >>> bool(errors.angles.max() < 0.1), bool(errors.rmse.max() < 0.06)
      (True, True)
    """
    y = jnp.asarray(pixels)
    if y.ndim != 2 or not 1 <= count <= min(y.shape):
        raise ValueError(
            f"unmix: pixels must have shape (channels, pixels) with at least count={count} of "
            f"both, got {y.shape}; for example image.reshape(height * width, channels).T."
        )
    y = jnp.maximum(finite_array("unmix", "pixels", y, 2), 0)
    for name, x in {"strength": strength, "sum_weight": sum_weight, "tol": tol}.items():
        check_strength(name, x, (), y.dtype)
    _check(y, count, guidance, w0, max_steps, every)
    m = jnp.maximum(y[:, pure_pixels(y, count)] if w0 is None else w0, FLOOR)
    a = jnp.maximum(fcls(y, m), FLOOR)
    h = jnp.zeros(y.shape[1], y.dtype) if guidance is None else guidance
    strength = jnp.asarray(strength, y.dtype)
    learned = guidance is None and count > 1

    scalars = strength, sum_weight, largest_guidance, tol, floor, warm_up, every

    def advance(state: _State, first: int, last: int) -> _State:
        state = state._replace(last=jnp.asarray(last, jnp.int32))
        return _advance(state, y, *scalars, robust=robust, learned=learned)

    zero = jnp.zeros((), jnp.int32)
    begin = _State(m, a, h, jnp.zeros(max_steps, y.dtype), zero, jnp.array(False), zero)
    numbers = {"strength": strength, "sum_weight": sum_weight, "tol": tol, "floor": floor}
    arguments = check_loop(
        "unmix", resume, callback, count=count, robust=robust, max_steps=max_steps,
        warm_up=warm_up, every=every, chunk=chunk,
        data={"pixels": y, "begin": (m, h), "numbers": numbers | {"guidance": largest_guidance}},
    )  # fmt: skip
    end = run_chunks(
        "unmix", begin, advance, max_steps, arguments, chunk=chunk, callback=callback,
        resume=resume, progress=progress, finished=lambda state: bool(state.done),
    )  # fmt: skip
    value = Unmixing(end.m, end.a, end.h, _weights(y, end.m, end.a, robust, floor))
    result = code(jnp.isfinite(end.history[-1]), end.done)
    stats = {"n_iter": end.t, "objective": end.history}
    return finish("unmix", Solution(value, result, stats), throw)


def _check(y: Array, count: int, guidance, w0, max_steps: int, every: int) -> None:
    if max_steps < 1 or every < 1:
        raise ValueError(f"unmix: max_steps and every must be >= 1, got {max_steps} and {every}.")
    for name, x, shape in (("guidance", guidance, y.shape[1:]), ("w0", w0, (len(y), count))):
        if x is not None and jnp.shape(x) != shape:
            raise ValueError(f"unmix: {name} must have shape {shape}, got {jnp.shape(x)}.")
        if jnp.iscomplexobj(x):
            raise TypeError(f"unmix: {name} must be real, got {jnp.result_type(x)}.")
    h = np.asarray(guidance) if guidance is not None and known(guidance) else np.zeros(1)
    if not ((h >= 0) & (h < 1)).all():
        raise ValueError("unmix: guidance must be in [0, 1): at 1 the penalty would be a count.")
    largest = float(np.max(np.asarray(y))) if known(y) else 0.0
    if largest and not 1e-3 <= largest <= 1e3:  # strength, floors and sum depend on the units
        raise ValueError(f"unmix: pixels must be in [0, 1], got {largest:.3g}; divide by that.")


class _State(NamedTuple):
    m: Array
    a: Array
    h: Array
    history: Array
    t: Array
    done: Array
    last: Array


@partial(jax.jit, static_argnames=("robust", "learned"))
def _advance(
    state: _State,
    y: Array,
    strength: ArrayLike,
    sum_weight: ArrayLike,
    largest_guidance: ArrayLike,
    tol: ArrayLike,
    floor: ArrayLike,
    warm_up: ArrayLike,
    every: ArrayLike,
    *,
    robust: bool,
    learned: bool,
) -> _State:
    """The state after the steps up to `state.last`, or at convergence."""

    def step(state: _State) -> _State:
        u = _weights(y, state.m, state.a, robust, floor)
        a = update_abundances(y, state.m, state.a, u, state.h, strength, sum_weight)
        m = update_endmembers(y, state.m, a)
        moved = jnp.array(learned) & (state.t >= warm_up) & (state.t % every == 0)
        h = jnp.where(moved, learn_guidance(state.h, a, largest_guidance), state.h)
        new = _objective(y, m, a, h, strength, robust)
        old = state.history[jnp.maximum(state.t - 1, 0)]
        done = ~moved & (state.t > 0) & (jnp.abs(old - new) < tol * jnp.abs(old))
        done &= jnp.array(not learned) | (state.t > warm_up)
        history = jnp.where(jnp.arange(len(state.history)) >= state.t, new, state.history)
        return _State(m, a, h, history, state.t + 1, done, state.last)

    return lax.while_loop(lambda state: (state.t < state.last) & ~state.done, step, state)


@checked(floor="[0, inf)")
def irls_weights(
    residual: Float[Array, "... n"], axis: int | tuple[int, ...] = -1, floor: ArrayLike = 1e-8
) -> Float[Array, "..."]:
    r"""Weights of iteratively reweighted least squares (IRLS), `u = 1 / max(||r||_2, floor)`.

    `||r|| <= u ||r||^2 / 2 + 1 / (2 u)`, with equality at the residual that defines the weights, so
    that decreasing the weighted squares decreases the sum of norms.

    Args:
      residual: Residuals.
      axis: The axes of one norm.
      floor: Lower bound of the norms.

    Returns:
      One weight per norm.

    Reference:
      Nie et al., Efficient and Robust Feature Selection via Joint l2,1-Norms Minimization, 2010.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.irls_weights(jnp.array([[0.0, 4.0], [0.5, 0.0]])).tolist()
      [0.25, 2.0]
    """
    return 1 / jnp.maximum(jnp.sqrt(jnp.sum(residual**2, axis=checked_axis(axis))), floor)


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

    `A <- A * (M^T U Y + d^2) / (M^T U M A + d^2 1 1^T A + strength (1 - h) A^(-h))`, where U is the
    diagonal matrix of the channel weights and `d^2 = sum_weight^2 mean(u)`. Zeros are kept.
    """
    delta = jnp.asarray(sum_weight, pixels.dtype) ** 2 * jnp.mean(weights)
    weighted = endmembers * weights[:, None]
    pull = weighted.T @ pixels + delta
    push = (weighted.T @ endmembers + delta) @ abundances
    push += strength * (1 - guidance[None]) * jnp.maximum(abundances, FLOOR) ** (-guidance[None])
    return abundances * pull / jnp.maximum(push, FLOOR)


def update_endmembers(
    pixels: Float[Array, "channels pixels"],
    endmembers: Float[Array, "channels k"],
    abundances: Float[Array, "k pixels"],
) -> Float[Array, "channels k"]:
    r"""One multiplicative update of the endmembers, `M <- M * (Y A^T) / (M A A^T)`.

    Channel weights would cancel, since every channel has its own row of M (Lee and Seung,
    Algorithms for Non-negative Matrix Factorization, 2001). Zeros are kept.
    """
    return (
        endmembers
        * (pixels @ abundances.T)
        / jnp.maximum(endmembers @ (abundances @ abundances.T), FLOOR)
    )


@checked(largest="[0, 1)")
def learn_guidance(
    guidance: Float[Array, " pixels"],
    abundances: Float[Array, "k pixels"],
    largest: ArrayLike = 0.8,
) -> Float[Array, " pixels"]:
    r"""Averages the guidance with the Hoyer sparsity of each pixel's abundances.

    `h <- clip(h / 2 + hoyer(a) / 2, 0, largest)`.

    Args:
      guidance: h (pixels,).
      abundances: Abundances (k, pixels).
      largest: Upper bound of h.

    Returns:
      The new guidance (pixels,).

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib import unmixing
      >>> unmixing.learn_guidance(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.0, 0.5]])).round(4)
      Array([0.5, 0. ], dtype=float32)
    """
    return jnp.clip((guidance + hoyer_sparsity(abundances, axis=0)) / 2, 0, largest)


@checked(width="(0, inf)", largest="[0, 1)")
def spatial_guidance(
    image: Float[Array, "h w channels"], width: ArrayLike = 0.1, largest: ArrayLike = 0.8
) -> Float[Array, " pixels"]:
    r"""Guidance from the image: pixels similar to their eight neighbours are considered pure.

    `h_n` is the mean over neighbours j of `exp(-||y_n - y_j||^2 / (channels width^2))`.

    Args:
      image: A spectral image (h, w, channels).
      width: Bandwidth, a root mean squared difference of spectra.
      largest: Upper bound of h.

    Returns:
      h (pixels,), in the order of `image.reshape(h * w, channels)`.

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
    return fit + strength * jnp.sum(jnp.maximum(a, FLOOR) ** (1 - h[None]))
