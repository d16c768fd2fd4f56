"""The stages of `colide` and `dagma`: Adam with an exact scale, within the domain of h."""

from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from ..._arguments import check_count, known
from ..._progress import check_loop, outside, run_chunks
from ..._solution import code
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


class Problem(NamedTuple):
    """Covariance of the samples, strength of the l1 norm, and least scale of the noise."""

    covariance: Array
    strength: Array
    floor: Array


class Stages(NamedTuple):
    """One row a stage: weight of the fit, shift of the log-determinant, limit of steps, rate."""

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


def fit(
    what: str,
    problem,
    start,
    stages,
    threshold,
    kind: Scale,
    tol,
    every,
    *,
    callback,
    resume,
    progress,
) -> Solution:
    """Separates static from numeric arguments, so that new numbers do not recompile."""
    check_count("check_every", every)
    low = problem.covariance.dtype != jnp.float64
    domain = 1e-4 if low else 1e-6  # how negative an inverse may be by rounding
    tol = domain if tol is None else tol
    data = {"samples": problem.covariance, "numbers": (*problem[1:], start, stages, tol)}
    arguments = check_loop(what, resume, callback, data, kind=kind, check_every=every)
    weights = jnp.zeros_like(problem.covariance)
    if not known(*jax.tree.leaves((problem, stages, threshold, tol))):
        outside(what, callback, resume, progress)
        return _run(problem, (weights, start), stages, threshold, tol, domain, kind, every)

    def stage_of(state):
        return jax.tree.map(lambda x: x[len(state.stats)], stages)

    def advance(follow: _Follow, first, last):
        stage = stage_of(follow)
        begin = _begin(problem, follow.point, stage)
        state = begin if follow.state is None else follow.state
        if not state.done:
            state = _check(problem, begin, stage, state, tol, domain, kind, every)
        if not state.done:
            return follow._replace(state=state)
        point, stats = _end(state)
        return _Follow(point, None, (*follow.stats, stats))

    count, most = len(stages.mu), [0, *map(int, jnp.cumsum(stages.max_steps))]

    def shown(follow: _Follow) -> tuple[int, int]:
        steps = 0 if follow.state is None else int(follow.state.steps)
        return most[len(follow.stats)] + steps, most[-1]

    # A stage that is restarted counts its steps again: no number of checks is certain beforehand.
    end = run_chunks(
        what, _Follow((weights, start), None, ()), advance, 2**62, arguments, chunk=1,
        callback=callback, resume=resume, progress=progress, view=lambda follow: follow.point[0],
        finished=lambda follow: len(follow.stats) == count, shown=shown,
    )  # fmt: skip
    stats = jax.tree.map(lambda *x: jnp.stack(x), *end.stats)
    raw, scale = end.point
    return _solution(raw, scale, stats, threshold, kind)


class _Follow(NamedTuple):
    """The point that a stage begins from, its state, and the statistics of the stages before."""

    point: Any
    state: Any
    stats: tuple[Any, ...]


@jax.jit(static_argnames=("kind", "every"))
def _run(problem, start, stages, threshold, tol, domain, kind: Scale, every) -> Solution:
    def follow(point, stage):
        begin = _begin(problem, point, stage)
        state = lax.while_loop(
            lambda state: ~state.done,
            lambda state: _check(problem, begin, stage, state, tol, domain, kind, every),
            begin,
        )
        return _end(state)

    (raw, scale), stats = lax.scan(follow, start, stages)
    return _solution(raw, scale, stats, threshold, kind)


@jax.jit
def _end(state):
    """The point that a stage reached, and its statistics."""
    finite = jnp.isfinite(state.objective) & jnp.isfinite(state.weights).all()
    stats = {
        "objective": state.objective,
        "acyclicity": logdet_acyclicity(state.weights, state.shift),
        "n_iter": state.steps,
        "learning_rate": state.rate,
        "stage_result": code(finite, state.converged),
    }
    return (state.weights, state.scale), stats


def _solution(raw, scale, stats, threshold, kind: Scale) -> Solution:
    scale = scale if kind == "unequal" else scale[0]
    fit = DAGFit(threshold_to_dag(raw, threshold), scale, raw)
    return Solution(fit, stats["stage_result"][-1], stats)


@jax.jit(static_argnames=("kind", "every"))
def _check(problem, begin, stage: Stages, state, tol, domain, kind: Scale, every) -> _State:
    """Steps up to the next check for convergence, and the check."""
    state = lax.while_loop(
        lambda state: ~state.due & ~state.done,
        lambda state: _step(problem, begin, stage, state, domain, kind, every),
        state._replace(due=jnp.zeros_like(state.due)),
    )
    new = _objective(problem, state, stage.mu, kind)
    change = jnp.abs((state.objective - new) / state.objective)
    met = state.due & (change <= tol)
    last = state.steps >= stage.max_steps
    return state._replace(objective=new, converged=met, done=state.done | met | last)


@jax.jit
def _begin(problem: Problem, point, stage: Stages) -> _State:
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


def _scale(problem: Problem, weights: Array, pull: Array, kind: Scale) -> Array:
    if kind == "fixed":
        return problem.floor
    variances = jnp.maximum(_variances(weights, pull), 0)
    if kind == "equal":
        variances = jnp.full_like(variances, jnp.mean(variances))
    return jnp.maximum(jnp.sqrt(variances), problem.floor)


def _objective(problem: Problem, state: _State, mu: Array, kind: Scale) -> Array:
    score = jnp.sum(_variances(state.weights, state.pull) / state.scale) / 2
    score += 0 if kind == "fixed" else jnp.sum(state.scale) / 2
    score += problem.strength * jnp.sum(jnp.abs(state.weights))
    return mu * score + logdet_acyclicity(state.weights, state.shift)
