"""Linear acyclic graphs by sparse regression, with the scale of the noise estimated along."""

from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from ...solve._duality import check_number
from ._acyclicity import logdet_acyclicity, threshold_to_dag

Scale = Literal["equal", "unequal", "fixed"]


class DAGFit(NamedTuple):
    """A linear acyclic graph; the last five have one entry for each stage of the path.

    Attributes:
      weights: Weighted adjacency matrix (d, d) of an acyclic graph; `weights[i, j]` is i -> j.
      scale: Standard deviations of the noise, a scalar or (d,).
      raw: The weights before they were thresholded.
      objective: `mu S(W, scale) + h_s(W)` where the stage ended.
      acyclicity: `h_s(W)` where the stage ended.
      steps: Steps taken since the stage (last) began.
      learning_rate: What is left of the learning rate; it is halved when a step leaves the domain.
      converged: Whether the stage ended by its tolerance; if not, it ran out of steps.
    """

    weights: Float[Array, "d d"]
    scale: Float[Array, "..."]
    raw: Float[Array, "d d"]
    objective: Float[Array, " stages"]
    acyclicity: Float[Array, " stages"]
    steps: Int[Array, " stages"]
    learning_rate: Float[Array, " stages"]
    converged: Bool[Array, " stages"]


def colide(
    samples: Float[ArrayLike, "..."],
    strength: ArrayLike = 0.05,
    *,
    equal_variance: bool = True,
    precomputed: bool = False,
    threshold: ArrayLike = 0.3,
    path: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001),
    shifts: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7),
    max_steps: tuple[int, ...] = (20_000, 20_000, 20_000, 70_000),
    learning_rate: ArrayLike = 3e-4,
    tolerance: float | None = None,
    check_every: int = 1000,
    scale_floor: ArrayLike = 0.01,
) -> DAGFit:
    r"""Concomitant linear DAG estimation: weights and noise levels of `X = X W + Z` together.

    Stage k of the path minimises `mu_k S(W, sigma) + h_s(W)` with `Q = (I - W)^T C (I - W)` and

      `S = sum_j Q_jj / (2 sigma_j) + sum_j sigma_j / 2 + strength ||W||_1`

    by Adam steps on W and, after each, the minimiser `sigma_j = sqrt(Q_jj)` (or for equal variances
    `sqrt(tr Q / d)`), where h is `logdet_acyclicity`. Since residuals are measured in units of
    their own scale, one strength serves all noise levels. Everything is of fixed shape: the
    function may be jitted with its tuples closed over, and mapped over data sets.

    A step that leaves the domain of h is halved. The samples are centred in a copy, and never
    standardised: their scales are what tells directions apart. float64 is advised.

    Args:
      samples: Samples in rows (n, d), or their covariance (d, d) if `precomputed`.
      strength: Weight of the l1 norm, about `sqrt(log d / n)`.
      equal_variance: One noise level for all nodes (CoLiDE-EV) or one for each (CoLiDE-NV).
      precomputed: Whether `samples` is the covariance matrix.
      threshold: Weights up to this modulus are set to zero at the end.
      path: Weights mu of the score, falling.
      shifts: s of the acyclicity of each stage.
      max_steps: Largest number of steps of each stage.
      learning_rate: Of Adam, at the beginning of each stage.
      tolerance: A stage ends when the objective changes by less than this share between two
        checks; by default 1e-6, in float32 1e-4.
      check_every: Steps between two checks.
      scale_floor: The scales are kept above this share of those of W = 0, so that they cannot
        vanish; 0 for no floor.

    Returns:
      A `DAGFit`.

    Raises:
      ValueError: If the samples are no finite matrix, their squares overflow or vanish, a
        covariance is not symmetric, or the tuples are empty or differ in length.

    Reference:
      Saboksayr, Mateos and Tepper, CoLiDE: Concomitant Linear DAG Estimation, 2023
      (arXiv 2310.02895).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> truth = jnp.array([[0.0, 1.5, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
      >>> samples = dag.sample_sem(jax.random.key(0), truth, 1000, scale=2.0)
      >>> fit = dag.colide(samples, max_steps=(2000, 2000, 2000, 2000), learning_rate=2e-3)
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
    return _fit(problem, start, stages, threshold, kind, tolerance, check_every)


def dagma(
    samples: Float[ArrayLike, "..."],
    strength: ArrayLike = 0.03,
    *,
    precomputed: bool = False,
    threshold: ArrayLike = 0.3,
    path: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001, 0.0001),
    shifts: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.6),
    max_steps: tuple[int, ...] = (30_000, 30_000, 30_000, 30_000, 60_000),
    learning_rate: ArrayLike = 3e-4,
    tolerance: float | None = None,
    check_every: int = 1000,
) -> DAGFit:
    r"""Linear DAGs by least squares: `colide` with all noise levels held at 1.

    Stage k of the path minimises `mu_k (tr(Q) / 2 + strength ||W||_1) + h_s(W)`. The strength has
    to be chosen for the noise level.

    Args:
      samples: Samples in rows (n, d), or their covariance (d, d) if `precomputed`.
      strength: Weight of the l1 norm.
      precomputed: Whether `samples` is the covariance matrix.
      threshold: Weights up to this modulus are set to zero at the end.
      path: Weights mu of the score, falling.
      shifts: s of the acyclicity of each stage.
      max_steps: Largest number of steps of each stage.
      learning_rate: Of Adam, at the beginning of each stage.
      tolerance: As in `colide`.
      check_every: Steps between two checks.

    Returns:
      A `DAGFit` whose scale is 1.

    Raises:
      ValueError: If the samples are no finite matrix, their squares overflow or vanish, a
        covariance is not symmetric, or the tuples are empty or differ in length.

    Reference:
      Bello et al., DAGMA, 2022 (arXiv 2209.08037).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from sparsejax.contrib import dag
      >>> truth = jnp.array([[0.0, 1.5], [0.0, 0.0]])
      >>> samples = dag.sample_sem(jax.random.key(0), truth, 1000)
      >>> fit = dag.dagma(samples, max_steps=(1000,) * 5, learning_rate=2e-3)
      >>> (fit.weights != 0).astype(int).tolist()
      [[0, 1], [0, 0]]
    """
    covariance = _covariance("dagma", samples, precomputed)
    start = jnp.ones(len(covariance), covariance.dtype)
    problem = _Problem(covariance, _number(strength, covariance), start)
    stages = _stages("dagma", covariance, path, shifts, max_steps, learning_rate)
    return _fit(problem, start, stages, threshold, "fixed", tolerance, check_every)


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
    """Where a stage stands. `pull` is `C (I - W)`, which scale and next gradient share."""

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


def _fit(problem, start, stages, threshold, kind: Scale, tolerance, check_every) -> DAGFit:
    """Sees to what is static, so that the core compiles once for all numbers."""
    if check_every < 1:
        raise ValueError(f"check_every must be >= 1, got {check_every}; 1000 for example.")
    low = problem.covariance.dtype != jnp.float64
    domain = 1e-4 if low else 1e-6  # how negative an inverse may be by rounding
    tolerance = domain if tolerance is None else tolerance
    return _run(problem, start, stages, threshold, tolerance, domain, kind, check_every)


@jax.jit(static_argnames=("kind", "check_every"))
def _run(problem, start, stages, threshold, tolerance, domain, kind: Scale, check_every) -> DAGFit:
    def follow(point, stage):
        state = _minimise(problem, point, stage, tolerance, domain, kind, check_every)
        h = logdet_acyclicity(state.weights, state.shift)
        out = state.objective, h, state.steps, state.rate, state.converged
        return (state.weights, state.scale), out

    weights = jnp.zeros_like(problem.covariance)
    (raw, scale), history = lax.scan(follow, (weights, start), stages)
    scale = scale if kind == "unequal" else scale[0]
    return DAGFit(threshold_to_dag(raw, threshold), scale, raw, *history)


def _minimise(problem, point, stage: _Stages, tolerance, domain, kind: Scale, every) -> _State:
    """One stage: steps until a check is due, the check, and so on until it has converged."""
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
        met = state.due & (change <= tolerance)
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
    """A step of Adam; outside the domain, half the last step, or the stage from its beginning."""
    eye = jnp.eye(len(state.weights), dtype=state.weights.dtype)
    inverse = jnp.linalg.inv(state.shift * eye - state.weights**2)
    inside = jnp.min(inverse) >= -domain  # False for NaN
    again = ~inside & ((state.steps == 0) | (state.shift <= 0.9))

    gradient = stage.mu * (problem.strength * jnp.sign(state.weights) - state.pull / state.scale)
    gradient += 2 * state.weights * inverse.T
    direction, adam = cast(tuple[Array, Any], _adam.update(gradient, state.adam))

    # direction = 0 and weights = those of the beginning: a stage that starts anew.
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
    """The diagonal of Q, of which nothing else is needed."""
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
        raise ValueError(f"{caller} needs {shape}, got shape {x.shape}.")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if not isinstance(x, Tracer) and not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"{caller}: there are values that are not finite in {x.shape} samples.")
    if not precomputed and not isinstance(x, Tracer) and _like_covariance(np.asarray(x)):
        raise ValueError(
            f"{caller}: samples of shape {x.shape} are symmetric and positive semi-definite, as a "
            f"covariance is: {caller}(covariance, precomputed=True)."
        )
    if precomputed:
        covariance = x
    else:
        x = x - jnp.mean(x, axis=0)
        covariance = x.T @ x / len(x)
    if not isinstance(covariance, Tracer):
        _check_covariance(caller, np.asarray(covariance), bool(np.asarray(x).any()))
    return covariance


def _like_covariance(x: np.ndarray) -> bool:
    """Whether what is said to be samples is a covariance with some correlation."""
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
        raise ValueError(f"{caller}: a covariance must be symmetric, its diagonal >= 0.")


def _stages(caller, like: Array, path, shifts, max_steps, rate) -> _Stages:
    known_numbers = not any(isinstance(x, Tracer) for x in (*path, *shifts))
    if known_numbers and not all(x > 0 for x in (*path, *shifts)):
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
    check_number("strength", x, (), like.dtype)
    return jnp.asarray(x, like.dtype)


def _tiny(like: Array) -> Array:
    return jnp.asarray(jnp.finfo(like.dtype).tiny, like.dtype)
