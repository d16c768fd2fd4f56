"""Metrics of sparse codes and receptive fields: activity, orientation tuning, matched errors."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from ..._arguments import checked
from ..._arrays import poison, wide_dtype


@checked()
def active_units(codes: Shaped[Array, "... atoms"]) -> Float[Array, "..."]:
    r"""The number of nonzero coefficients of each sample.

    Args:
      codes: Coefficients; the last axis indexes atoms.

    Returns:
      A count per sample; NaN if a coefficient is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.receptive_fields import active_units
      >>> active_units(jnp.array([[0.0, 1.0], [2.0, -3.0]])).tolist()
      [1.0, 2.0]
    """
    counted = jnp.where(codes == codes, codes != 0, jnp.nan)
    return jnp.sum(counted.astype(jnp.finfo(wide_dtype(codes)).dtype), axis=-1)


@checked(target="[0, inf)")
def error_at_activity(
    active: Float[ArrayLike, "..."], error: Float[ArrayLike, "..."], target: ArrayLike
) -> Float[Array, ""]:
    r"""The error at a given number of active units, interpolated between runs.

    Interpolates log error over log activity. Outside the range of the runs it is the error of the
    nearest run.

    Args:
      active: Mean number of active units of each run, (runs,).
      error: Error of each run, (runs,).
      target: The number of active units at which methods are compared.

    Returns:
      A scalar; NaN next to a run without active units or with error 0 (log of 0), and if the
      target or an activity is NaN.

    Raises:
      ValueError: If the two differ in length or are empty.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.receptive_fields import error_at_activity
      >>> round(float(error_at_activity(jnp.array([4.0, 16.0]), jnp.array([0.4, 0.1]), 8.0)), 4)
      0.2
    """
    active, error = jnp.asarray(active), jnp.asarray(error)
    if active.ndim != 1 or active.shape != error.shape or not active.size:
        raise ValueError(
            "error_at_activity: active and error must both have shape (runs,), got "
            f"{active.shape} and {error.shape}."
        )
    order = jnp.argsort(active)
    at = jnp.interp(jnp.log(target), jnp.log(active[order]), jnp.log(error[order]))
    return jnp.exp(at) + poison(active, jnp.asarray(target))


@checked(phases="[1, inf)")
def orientation_tuning(
    atoms: Float[Array, "pixels atoms"],
    angles: Float[Array, " angles"],
    frequencies: Float[Array, " frequencies"],
    phases: int = 8,
) -> Float[Array, "angles atoms"]:
    r"""Orientation tuning curves: the responses of each atom to gratings of several angles.

    The rectified response to `cos(2 pi f (x cos t + y sin t) + phase)`, at the frequency of the
    largest response of the atom and the best phase of each angle.

    Args:
      atoms: Square receptive fields, one flattened field per column, (size * size, atoms).
      angles: Angles t in radians, over [0, pi).
      frequencies: Spatial frequencies in cycles per pixel.
      phases: Number of phases.

    Returns:
      Responses (angles, atoms), >= 0.

    Raises:
      ValueError: If the atoms are not square.

    Reference:
      Ringach, Shapley and Hawken, Orientation Selectivity in Macaque V1, 2002.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.receptive_fields import orientation_tuning
      >>> bars = jnp.tile(jnp.array([1.0, -1.0]), 8)[:, None]  # rows of + - + -: varies along x
      >>> angles = jnp.array([0.0, jnp.pi / 2])
      >>> tuning = orientation_tuning(bars, angles, jnp.array([0.5]))
      >>> bool(tuning[0, 0] > 10 * tuning[1, 0])
      True
    """
    size = round(atoms.shape[0] ** 0.5)
    if size**2 != atoms.shape[0]:
        raise ValueError(f"orientation_tuning: atoms must be square, got {atoms.shape[0]} pixels.")
    y, x = (place.astype(atoms.dtype) for place in jnp.divmod(jnp.arange(size**2), size))
    along = jnp.outer(jnp.cos(angles), x) + jnp.outer(jnp.sin(angles), y)
    shift = 2 * jnp.pi * jnp.arange(phases, dtype=atoms.dtype) / phases
    # (frequencies, angles, phases, pixels)
    waves = 2 * jnp.pi * frequencies[:, None, None, None] * along[None, :, None]
    gratings = jnp.cos(waves + shift[None, None, :, None])
    response = jnp.maximum(gratings @ atoms, 0).max(axis=2)
    best = jnp.argmax(response.max(axis=1), axis=0)
    return jnp.take_along_axis(response, best[None, None], axis=0)[0]


@checked()
def circular_variance(
    responses: Float[Array, "angles ..."], angles: Float[Array, " angles"]
) -> Float[Array, "..."]:
    r"""The circular variance of tuning curves, `CV = 1 - |sum_j R_j e^{2 i t_j}| / sum_j R_j`.

    Args:
      responses: Responses >= 0 to gratings, one row per angle, as from `orientation_tuning`.
      angles: The angles t_j in radians, evenly spaced over [0, pi).

    Returns:
      A number from 0 (a response to one orientation only) to 1 (equal responses to all, or none).

    Reference:
      Ringach, Shapley and Hawken, Orientation Selectivity in Macaque V1, 2002.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax.contrib.receptive_fields import circular_variance
      >>> angles = jnp.arange(4) * jnp.pi / 4
      >>> tuning = jnp.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
      >>> circular_variance(tuning, angles).round(4).tolist()
      [0.0, 1.0]
    """
    total = jnp.sum(responses, axis=0)
    cosine = jnp.tensordot(jnp.cos(2 * angles), responses, 1)
    sine = jnp.tensordot(jnp.sin(2 * angles), responses, 1)
    # Dividing before squaring avoids underflow; the double where keeps the gradient at 0 finite.
    safe = jnp.where(total <= 0, 1, total)
    squares = (cosine / safe) ** 2 + (sine / safe) ** 2
    return 1 - jnp.where(squares <= 0, 0, jnp.sqrt(jnp.where(squares <= 0, 1, squares)))
