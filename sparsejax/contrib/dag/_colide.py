"""Linear acyclic graphs by sparse regression, with joint estimation of the noise scale."""

from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..._arguments import check_strength, known
from ..._solution import code, finish
from ...solve import Solution
from ._acyclicity import logdet_acyclicity, threshold_to_dag

Scale = Literal["equal", "unequal", "fixed"]


class DAGFit(NamedTuple):
    """A linear acyclic graph, the `value` of `colide` and `dagma`.

    Attributes:
      weights: Weighted adjacency matrix (d, d) of an acyclic graph; `weights[i, j]` is i -> j.
      scale: Standard deviations of the noise, a scalar or (d,).
      raw: The weights before thresholding.
    """

    weights: Float[Array, "d d"]
    scale: Float[Array, "..."]
    raw: Float[Array, "d d"]


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

    Returns:
      A `Solution` whose `value` is a `DAGFit`. `result` is that of the last stage: the earlier
      stages only initialise it. `stats` has one entry per stage: `objective`
      (`mu S(W, sigma) + h_s(W)`), `acyclicity` (`h_s(W)`), `n_iter` (steps since the stage last
      began), `learning_rate` (halved whenever a step left the domain) and `stage_result`.

    Raises:
      RuntimeError: If `throw` and the last stage does not converge.
      ValueError: If the samples are not a finite matrix, their squares overflow or underflow, a
        covariance is not symmetric, or the tuples are empty or differ in length.

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
    problem = _Problem(covariance, _number(strength, spread), jnp.maximum(floor, _tiny(spread)))
    stages = _stages("colide", spread, path, shifts, max_steps, learning_rate)
    kind = "equal" if equal_variance else "unequal"
    start = jnp.maximum(start, problem.floor)
    found = _fit(problem, start, stages, threshold, kind, tol, check_every)
    return finish("colide", found, throw)


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

    Returns:
      A `Solution` as returned by `colide`; its scale is 1.

    Raises:
      RuntimeError: If `throw` and the last stage does not converge.
      ValueError: If the samples are not a finite matrix, their squares overflow or underflow, a
        covariance is not symmetric, or the tuples are empty or differ in length.

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
    problem = _Problem(covariance, _number(strength, covariance), start)
    stages = _stages("dagma", covariance, path, shifts, max_steps, learning_rate)
    found = _fit(problem, start, stages, threshold, "fixed", tol, check_every)
    return finish("dagma", found, throw)


class _Problem(NamedTuple):
    covariance: Array
    strength: Array
    floor: Array


class _Stages(NamedTuple):
    mu: Array
    shift: Array
    max_steps: Array
    rate: Array


class _State(NamedTuple):
    """State of a stage. `pull` is `C (I - W)`, shared by the scale and the next gradient."""

    weights: Array
    scale: Array
    pull: Array
    adam: Any
    direction: Array
    rate: Array
    shift: Array
    steps: Array
    objective: Array
    due: Array
    done: Array
    converged: Array


_adam = optax.scale_by_adam(b1=0.99, b2=0.999, eps=1e-8)


def _fit(problem, start, stages, threshold, kind: Scale, tol, check_every) -> Solution:
    """Separates static from numeric arguments, so that new numbers do not recompile."""
    if check_every < 1:
        raise ValueError(f"check_every must be >= 1, got {check_every}; 1000 for example.")
    low = problem.covariance.dtype != jnp.float64
    domain = 1e-4 if low else 1e-6  # how negative an inverse may be by rounding
    tol = domain if tol is None else tol
    return _run(problem, start, stages, threshold, tol, domain, kind, check_every)


@jax.jit(static_argnames=("kind", "check_every"))
def _run(problem, start, stages, threshold, tol, domain, kind: Scale, check_every) -> Solution:
    def follow(point, stage):
        state = _minimise(problem, point, stage, tol, domain, kind, check_every)
        h = logdet_acyclicity(state.weights, state.shift)
        finite = jnp.isfinite(state.objective) & jnp.isfinite(state.weights).all()
        stats = {
            "objective": state.objective,
            "acyclicity": h,
            "n_iter": state.steps,
            "learning_rate": state.rate,
            "stage_result": code(finite, state.converged),
        }
        return (state.weights, state.scale), stats

    weights = jnp.zeros_like(problem.covariance)
    (raw, scale), stats = lax.scan(follow, (weights, start), stages)
    scale = scale if kind == "unequal" else scale[0]
    fit = DAGFit(threshold_to_dag(raw, threshold), scale, raw)
    return Solution(fit, stats["stage_result"][-1], stats)


def _minimise(problem, point, stage: _Stages, tol, domain, kind: Scale, every) -> _State:
    """One stage: alternates blocks of steps with a check for convergence."""
    begin = _begin(problem, point, stage)

    def until_due(state: _State) -> _State:
        state = state._replace(due=jnp.zeros_like(state.due))
        return lax.while_loop(
            lambda state: ~state.due & ~state.done,
            lambda state: _step(problem, begin, stage, state, domain, kind, every),
            state,
        )

    def check(state: _State) -> _State:
        state = until_due(state)
        new = _objective(problem, state, stage.mu, kind)
        change = jnp.abs((state.objective - new) / state.objective)
        met = state.due & (change <= tol)
        last = state.steps >= stage.max_steps
        return state._replace(objective=new, converged=met, done=state.done | met | last)

    return lax.while_loop(lambda state: ~state.done, check, begin)


def _begin(problem: _Problem, point, stage: _Stages) -> _State:
    weights, scale = point
    zero, no = jnp.zeros_like(weights), jnp.array(False)
    return _State(
        weights=weights,
        scale=scale,
        pull=problem.covariance @ (jnp.eye(len(weights), dtype=weights.dtype) - weights),
        adam=_adam.init(weights),
        direction=zero,
        rate=stage.rate,
        shift=stage.shift,
        steps=jnp.zeros((), jnp.int32),
        objective=jnp.asarray(1e16, weights.dtype),
        due=no,
        done=stage.max_steps <= 0,
        converged=no,
    )


def _step(problem, begin: _State, stage, state: _State, domain, kind: Scale, every) -> _State:
    """A step of Adam; outside the domain, halves the last step or restarts the stage."""
    eye = jnp.eye(len(state.weights), dtype=state.weights.dtype)
    inverse = jnp.linalg.inv(state.shift * eye - state.weights**2)
    inside = jnp.min(inverse) >= -domain  # False for NaN
    again = ~inside & ((state.steps == 0) | (state.shift <= 0.9))

    per_column = jnp.broadcast_to(state.scale, state.pull.shape)  # of all variables, or of each
    gradient = stage.mu * (problem.strength * jnp.sign(state.weights) - state.pull / per_column)
    gradient += 2 * state.weights * inverse.T
    direction, adam = cast(tuple[Array, Any], _adam.update(gradient, state.adam))

    # A restarted stage has direction = 0 and its initial weights.
    old = _pick(again, begin, state)
    rate = jnp.where(inside, state.rate, state.rate / 2)
    move = jnp.where(inside, -rate * direction, (state.rate - rate) * old.direction)
    weights = old.weights + move
    pull = problem.covariance @ (eye - weights)
    scale = jnp.where(again, begin.scale, _scale(problem, weights, pull, kind))
    steps = jnp.where(inside, state.steps + 1, old.steps)
    return state._replace(
        weights=weights,
        scale=scale,
        pull=pull,
        adam=_pick(inside, adam, old.adam),
        direction=jnp.where(inside, direction, old.direction),
        rate=rate,
        shift=jnp.where(again, state.shift + 0.1, state.shift),
        steps=steps,
        due=inside & ((steps % every == 0) | (steps >= stage.max_steps)),
        done=rate <= 1e-16,
    )


def _pick(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _variances(weights: Array, pull: Array) -> Array:
    """The diagonal of Q."""
    return jnp.sum((jnp.eye(len(weights), dtype=weights.dtype) - weights) * pull, axis=0)


def _scale(problem: _Problem, weights: Array, pull: Array, kind: Scale) -> Array:
    if kind == "fixed":
        return problem.floor
    variances = jnp.maximum(_variances(weights, pull), 0)
    if kind == "equal":
        variances = jnp.full_like(variances, jnp.mean(variances))
    return jnp.maximum(jnp.sqrt(variances), problem.floor)


def _objective(problem: _Problem, state: _State, mu: Array, kind: Scale) -> Array:
    score = jnp.sum(_variances(state.weights, state.pull) / state.scale) / 2
    score += 0 if kind == "fixed" else jnp.sum(state.scale) / 2
    score += problem.strength * jnp.sum(jnp.abs(state.weights))
    return mu * score + logdet_acyclicity(state.weights, state.shift)


def _covariance(caller: str, samples: ArrayLike, precomputed: bool) -> Array:
    x = jnp.asarray(samples)
    if x.ndim != 2 or not x.size or (precomputed and x.shape[0] != x.shape[1]):
        shape = "a covariance (d, d)" if precomputed else "samples in rows (n, d)"
        raise ValueError(f"{caller}: samples must be {shape}, got shape {x.shape}.")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
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


def _stages(caller, like: Array, path, shifts, max_steps, rate) -> _Stages:
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
    return _Stages(mu, shift, jnp.asarray(np.asarray(max_steps), jnp.int32), rates)


def _number(x: ArrayLike, like: Array) -> Array:
    check_strength("strength", x, (), like.dtype)
    return jnp.asarray(x, like.dtype)


def _tiny(like: Array) -> Array:
    return jnp.asarray(jnp.finfo(like.dtype).tiny, like.dtype)
