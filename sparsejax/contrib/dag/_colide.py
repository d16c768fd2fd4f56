"""Linear acyclic graphs by sparse regression, with joint estimation of the noise scale."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_strength, checked, known
from ..._arrays import wide_dtype
from ..._solution import finish
from ...recipes import Progress
from ...solve import Solution
from ._stages import Problem, Stages, fit


@checked(
    strength="[0, inf)",
    threshold="[0, inf)",
    learning_rate="(0, inf)",
    scale_floor="[0, inf)",
    path="[0, inf)",
    shifts="(0, inf)",
    tol="[0, inf)",
    max_steps="[0, inf)",
    check_every="[1, inf)",
)
def colide(
    samples: Float[ArrayLike, "..."],
    strength: ArrayLike = 0.05,
    *,
    equal_variance: bool = True,
    precomputed: bool = False,
    threshold: ArrayLike = 0.3,
    path: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001),
    shifts: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7),
    learning_rate: ArrayLike = 3e-4,
    scale_floor: ArrayLike = 0.01,
    tol: float | None = None,
    max_steps: tuple[int, ...] = (20_000, 20_000, 20_000, 70_000),
    check_every: int = 1000,
    throw: bool = True,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Solution:
    r"""Concomitant linear DAG estimation: joint estimation of weights and noise in `X = X W + Z`.

    Stage k of the path minimises `mu_k S(W, sigma) + h_s(W)` with `Q = (I - W)^T C (I - W)` and

      `S = sum_j Q_jj / (2 sigma_j) + sum_j sigma_j / 2 + strength ||W||_1`

    where h is `logdet_acyclicity`. Each Adam step on W is followed by the exact minimiser
    `sigma_j = sqrt(Q_jj)` (for equal variances `sqrt(tr Q / d)`). Residuals are measured in units
    of their own scale, so that one strength serves all noise levels. All shapes are static: the
    function can be jitted with its tuples closed over, and mapped over data sets.

    A step that leaves the domain of h is halved. The samples are centred in a copy and never
    standardised, since their scales identify edge directions. float64 is recommended.

    Args:
      samples: Samples in rows (n, d), or their covariance (d, d) if `precomputed`.
      strength: Weight of the l1 norm, about `sqrt(log d / n)`.
      equal_variance: One noise level for all nodes (CoLiDE-EV) or one per node (CoLiDE-NV).
      precomputed: Whether `samples` is the covariance matrix.
      threshold: Final weights up to this modulus are set to zero.
      path: Weights mu of the score, decreasing.
      shifts: Shift s of the acyclicity function in each stage.
      learning_rate: Initial learning rate of Adam in each stage.
      scale_floor: Lower bound of the scales, as a fraction of those at W = 0; 0 for no bound.
      tol: A stage has converged when the objective changes by less than this fraction between two
        checks; 1e-6 by default, 1e-4 in float32.
      max_steps: Maximum number of steps of each stage.
      check_every: Steps between two checks.
      throw: Whether to raise if the last stage does not converge (outside jit).
      callback: Called with a `sj.recipes.Progress` after each check; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Solution` whose `value` is a `DAGFit`. `result` is that of the last stage: the earlier
      stages only initialise it. `stats` has one entry per stage: `objective`
      (`mu S(W, sigma) + h_s(W)`), `acyclicity` (`h_s(W)`), `n_iter` (steps since the stage last
      began), `learning_rate` (halved whenever a step left the domain) and `stage_result`.

    Raises:
      RuntimeError: If `throw` and the last stage does not converge.
      ValueError: If the samples are not a finite matrix, their squares overflow or underflow, a
        covariance is not symmetric, the tuples are empty or differ in length, or `resume` began
        with other samples or arguments.

    Reference:
      Saboksayr, Mateos and Tepper, CoLiDE: Concomitant Linear DAG Estimation, 2023
      (arXiv 2310.02895).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> truth = jnp.array([[0.0, 1.5, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
      >>> samples = dag.sample_sem(truth, 1000, scale=2.0, key=jax.random.key(0))
      >>> fit = dag.colide(samples, max_steps=(2000, 2000, 2000, 3000), learning_rate=2e-3).value
      >>> (fit.weights != 0).astype(int).tolist(), round(float(fit.scale), 1)
      ([[0, 1, 0], [0, 0, 1], [0, 0, 0]], 2.0)
    """
    covariance = _covariance("colide", samples, precomputed)
    spread = jnp.sqrt(jnp.diagonal(covariance))
    if equal_variance:
        start = jnp.full_like(spread, jnp.min(spread))
        floor = jnp.full_like(spread, jnp.sqrt(jnp.mean(spread**2)))
    else:
        start = floor = spread
    floor = floor * jnp.asarray(scale_floor, spread.dtype)
    problem = Problem(covariance, _number(strength, spread), jnp.maximum(floor, _tiny(spread)))
    stages = _stages("colide", spread, path, shifts, max_steps, learning_rate)
    kind = "equal" if equal_variance else "unequal"
    start = jnp.maximum(start, problem.floor)
    found = fit(
        "colide", problem, start, stages, threshold, kind, tol, check_every,
        callback=callback, resume=resume, progress=progress,
    )  # fmt: skip
    return finish("colide", found, throw)


@checked(
    strength="[0, inf)",
    threshold="[0, inf)",
    learning_rate="(0, inf)",
    path="[0, inf)",
    shifts="(0, inf)",
    tol="[0, inf)",
    max_steps="[0, inf)",
    check_every="[1, inf)",
)
def dagma(
    samples: Float[ArrayLike, "..."],
    strength: ArrayLike = 0.03,
    *,
    precomputed: bool = False,
    threshold: ArrayLike = 0.3,
    path: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001, 0.0001),
    shifts: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6),
    learning_rate: ArrayLike = 3e-4,
    tol: float | None = None,
    max_steps: tuple[int, ...] = (30_000, 30_000, 30_000, 30_000, 60_000),
    check_every: int = 1000,
    throw: bool = True,
    callback: Callable[[Progress], Any] | None = None,
    resume: Progress | None = None,
    progress: bool = False,
) -> Solution:
    r"""Linear DAGs by least squares: `colide` with all noise levels fixed at 1.

    Stage k of the path minimises `mu_k (tr(Q) / 2 + strength ||W||_1) + h_s(W)`. The strength
    depends on the noise level.

    Args:
      samples: Samples in rows (n, d), or their covariance (d, d) if `precomputed`.
      strength: Weight of the l1 norm.
      precomputed: Whether `samples` is the covariance matrix.
      threshold: Final weights up to this modulus are set to zero.
      path: Weights mu of the score, decreasing.
      shifts: Shift s of the acyclicity function in each stage.
      learning_rate: Initial learning rate of Adam in each stage.
      tol: As in `colide`.
      max_steps: Maximum number of steps of each stage.
      check_every: Steps between two checks.
      throw: Whether to raise if the last stage does not converge (outside jit).
      callback: Called with a `sj.recipes.Progress` after each check; not under jit or vmap.
      resume: A `Progress` to continue from; the result is that of an uninterrupted run.
      progress: Whether to show a progress bar.

    Returns:
      A `Solution` as returned by `colide`; its scale is 1.

    Raises:
      RuntimeError: If `throw` and the last stage does not converge.
      ValueError: If the samples are not a finite matrix, their squares overflow or underflow, a
        covariance is not symmetric, the tuples are empty or differ in length, or `resume` began
        with other samples or arguments.

    Reference:
      Bello et al., DAGMA, 2022 (arXiv 2209.08037).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> truth = jnp.array([[0.0, 1.5], [0.0, 0.0]])
      >>> samples = dag.sample_sem(truth, 1000, key=jax.random.key(0))
      >>> fit = dag.dagma(samples, max_steps=(1000,) * 4 + (3000,), learning_rate=2e-3).value
      >>> (fit.weights != 0).astype(int).tolist()
      [[0, 1], [0, 0]]
    """
    covariance = _covariance("dagma", samples, precomputed)
    start = jnp.ones(len(covariance), covariance.dtype)
    problem = Problem(covariance, _number(strength, covariance), start)
    stages = _stages("dagma", covariance, path, shifts, max_steps, learning_rate)
    found = fit(
        "dagma", problem, start, stages, threshold, "fixed", tol, check_every,
        callback=callback, resume=resume, progress=progress,
    )  # fmt: skip
    return finish("dagma", found, throw)


def _covariance(caller: str, samples: ArrayLike, precomputed: bool) -> Array:
    x = jnp.asarray(samples)
    if x.ndim != 2 or not x.size or (precomputed and x.shape[0] != x.shape[1]):
        shape = "a covariance (d, d)" if precomputed else "samples in rows (n, d)"
        raise ValueError(f"{caller}: samples must be {shape}, got shape {x.shape}.")
    x = x.astype(wide_dtype(x))
    if known(x) and not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"{caller}: samples of shape {x.shape} hold values that are not finite.")
    if not precomputed and known(x) and _like_covariance(np.asarray(x)):
        raise ValueError(
            f"{caller}: samples of shape {x.shape} are symmetric and positive semi-definite, like "
            f"a covariance; use {caller}(covariance, precomputed=True)."
        )
    if precomputed:
        covariance = x
    else:
        x = x - jnp.mean(x, axis=0, keepdims=True)
        covariance = x.T @ x / len(x)
    if known(covariance):
        _check_covariance(caller, np.asarray(covariance), bool(np.asarray(x).any()))
    return covariance


def _like_covariance(x: np.ndarray) -> bool:
    """Whether the samples look like a covariance matrix with correlated variables."""
    if x.shape[0] != x.shape[1] or (x != x.T).any() or not np.triu(x, 1).any():
        return False
    values = np.linalg.eigvalsh(x)
    return bool(values[0] >= -1e-5 * values[-1])


def _check_covariance(caller: str, covariance: np.ndarray, varies: bool) -> None:
    variances = np.diagonal(covariance)
    if not np.isfinite(covariance).all() or (varies and not variances.any()):
        raise ValueError(f"{caller}: squares are out of {covariance.dtype}'s range; rescale.")
    slack = 1e-4 * np.abs(covariance).max()
    if (variances < 0).any() or (np.abs(covariance - covariance.T) > slack).any():
        raise ValueError(f"{caller}: a covariance must be symmetric with a diagonal >= 0.")


def _stages(caller, like: Array, path, shifts, max_steps, rate) -> Stages:
    if known(*path, *shifts) and not all(x > 0 for x in (*path, *shifts)):
        raise ValueError(f"{caller}: path and shifts must be > 0, got {path} and {shifts}.")
    if not 1 <= len(path) == len(shifts) == len(max_steps):
        raise ValueError(
            f"{caller}: path, shifts and max_steps must have one entry for each stage, got "
            f"{len(path)}, {len(shifts)} and {len(max_steps)}; for example path=(1.0, 0.1), "
            "shifts=(1.0, 0.9), max_steps=(20_000, 70_000)."
        )
    mu, shift = (jnp.asarray(x, like.dtype) for x in (path, shifts))
    rates = jnp.full_like(mu, rate)
    return Stages(mu, shift, jnp.asarray(np.asarray(max_steps), jnp.int32), rates)


def _number(x: ArrayLike, like: Array) -> Array:
    check_strength("strength", x, (), like.dtype)
    return jnp.asarray(x, like.dtype)


def _tiny(like: Array) -> Array:
    return jnp.asarray(jnp.finfo(like.dtype).tiny, like.dtype)
