"""The Lasso with host-driven, growing working sets, for one large problem."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arguments import checked, known
from .._arrays import Units
from .._solution import Result, Solution, finish, refuse_infinite
from ._duality import Problem, balanced, correlations, default_tol, gap_of, problem
from ._gram import Quadratic, solve_gram
from ._gram_cache import GramCache
from ._lasso import falling, least_squares

# Below this fraction of max_strength a short path is faster than one solve.
SHORT = 1 / 30


class _Problem(NamedTuple):
    data: Problem
    units: Units
    norms: Array
    b: np.ndarray
    grams: GramCache
    scale: float
    yy: Array
    tol: float
    positive: bool


@checked(tol="(0, inf)", max_steps="[0, inf)", l2="[0, inf)")
def lasso_host(
    X: ArrayLike,
    y: ArrayLike,
    strength: ArrayLike,
    *,
    w0: ArrayLike | None = None,
    tol: float | None = None,
    max_steps: int = 100,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
    throw: bool = True,
) -> Solution:
    """`lasso` with adaptive working-set sizes, for one large problem.

    Does not support jit, vmap or grad. Sizes are rounded up, so that few programs are compiled.
    Without a warm start, a small strength is solved along a short path.

    Args:
      X: Design (n, p).
      y: Target (n,).
      strength: Strength.
      w0: Initial value (p,).
      tol: Duality gap over the objective at 0: by default 1e-6, or 1e-5 in float32.
      max_steps: Maximum number of working sets.
      weights: A weight > 0 per feature (p,).
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.
      throw: Whether to raise if the gap is not reached.

    Returns:
      A `Solution`, as for `lasso`.

    Raises:
      RuntimeError: If `throw` and the gap is not reached.
      TypeError: Inside jit, vmap or grad.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(4), jnp.array([4.0, 1.0, 0.0, -2.0])
      >>> solve.lasso_host(X, y, 1.0).value.tolist()
      [1.0, 0.0, 0.0, 0.0]
    """
    at = _prepare(X, y, strength, tol, weights, positive, l2)
    if float(strength) == 0:  # pyright: ignore[reportArgumentType]
        return least_squares(at.data, at.units, positive, float(l2) > 0)  # pyright: ignore
    w = np.zeros(at.norms.size, at.data.y.dtype)
    if w0 is not None:
        w = np.nan_to_num(at.units.inside(jnp.asarray(w0, w.dtype)), nan=0.0)
    if w.shape != at.norms.shape:
        raise ValueError(f"w0 must have shape {at.norms.shape}, got {w.shape}.")
    steps = 0
    if w0 is None:
        for factor in _short_path(at):
            easier = at.data._replace(thresholds=at.data.thresholds * factor)
            loose = at._replace(data=easier, tol=max(at.tol, 1e-3))
            w, stats, _ = _solve(loose, w, max_steps)
            steps += stats["n_iter"]
    w, stats, result = _solve(at, w, max_steps)
    stats = {**stats, "n_iter": stats["n_iter"] + steps}
    value = at.units.outside(jnp.asarray(w))
    return finish("lasso_host", Solution(value, refuse_infinite(value, result), stats), throw)


@checked(n_strengths="[1, inf)", eps="(0, 1]", tol="(0, inf)", max_steps="[0, inf)", l2="[0, inf)")
def lasso_path_host(
    X: ArrayLike,
    y: ArrayLike,
    strengths: ArrayLike | None = None,
    *,
    n_strengths: int = 100,
    eps: float = 1e-2,
    tol: float | None = None,
    max_steps: int = 100,
    weights: ArrayLike | None = None,
    positive: bool = False,
    l2: ArrayLike = 0.0,
    throw: bool = True,
) -> Solution:
    """`lasso_path` with host-driven working sets, for one large problem.

    Args:
      X: Design (n, p).
      y: Target (n,).
      strengths: Strengths (k,), preferably decreasing; None for a geometric sequence.
      n_strengths: Number of strengths, if `strengths` is None.
      eps: Ratio of the last strength to the first, if `strengths` is None.
      tol: As for `lasso_host`.
      max_steps: Maximum number of working sets per strength.
      weights: A weight > 0 per feature (p,).
      positive: Whether w must be >= 0.
      l2: Strength of the ridge term.
      throw: Whether to raise if one of them does not converge.

    Returns:
      A `Solution`, as for `lasso_path`.

    Example:
      >>> import jax.numpy as jnp
      >>> from sparsejax import solve
      >>> X, y = 2 * jnp.eye(2), jnp.array([4.0, 1.0])
      >>> solve.lasso_path_host(X, y, jnp.array([4.0, 2.0, 1.0])).value[:, 0].tolist()
      [0.0, 1.0, 1.5]
    """
    at = _prepare(X, y, 1.0, tol, weights, positive, l2)
    strengths = falling(X, y, strengths, n_strengths, eps, weights, positive)
    w = np.zeros(at.norms.size, at.data.y.dtype)
    found = []
    for strength in np.asarray(strengths):
        scaled = at.data._replace(thresholds=at.data.thresholds * strength)
        w, stats, result = _solve(at._replace(data=scaled), w, max_steps)
        found.append((w, result, stats))
    stats = {name: np.array([s[name] for *_, s in found]) for name in found[0][2]}
    values = at.units.outside(jnp.asarray(np.stack([w for w, *_ in found])))
    results = np.array([result for _, result, _ in found])
    stats = {**stats, "strengths": np.asarray(strengths)}
    results = refuse_infinite(values, results)
    return finish("lasso_path_host", Solution(values, results, stats), throw)


def _prepare(
    X: Any, y: Any, strength: Any, tol: Any, weights: Any, positive: bool, l2: Any
) -> _Problem:
    for x in (X, y, strength, weights, l2):
        if not known(x):
            raise TypeError("lasso_host runs on the host: in jit, vmap or grad use solve.lasso.")
    data = problem(X, y, strength, weights, l2)
    one = jnp.ones((), data.y.dtype)
    # No scaled copy of X is needed if its squares are in the float range.
    data, units = (data, Units(one, one)) if _moderate(data) else balanced(data)
    norms, b, scale = _sizes(data)
    tol, grams = default_tol(tol, data.y.dtype), GramCache(np.asarray(data.X))
    return _Problem(
        data, units, norms, np.asarray(b), grams, float(scale), 2 * scale, tol, positive
    )


def _moderate(pb: Problem) -> bool:
    return all(1e-6 <= max(np.max(x), -np.min(x)) <= 1e6 for x in map(np.asarray, (pb.X, pb.y)))


@jax.jit
def _sizes(pb: Problem) -> tuple[Array, Array, Array]:
    """Column norms, `X^T y / n`, and the objective at 0."""
    n = pb.y.size
    return jnp.sqrt(jnp.sum(pb.X**2, axis=0)), pb.y @ pb.X / n, jnp.vdot(pb.y, pb.y) / (2 * n)


def _short_path(at: _Problem) -> np.ndarray:
    """Decreasing multiples of the strength from near max_strength, if it is small."""
    size = np.maximum(at.b, 0) if at.positive else np.abs(at.b)
    a = np.asarray(at.data.thresholds)
    largest = np.max(size / np.where(a > 0, a, np.inf), initial=0)
    if not np.isfinite(largest) or largest <= 1 / SHORT:
        return np.zeros(0)
    return np.geomspace(largest, 1, 8)[1:-1]


@functools.partial(jax.jit, static_argnames="positive")
def _look(pb: Problem, w: Array, part: Array, where: Array, norms: Array, positive: bool) -> Any:
    """The gap, and the scores of all features; screened ones are negative."""
    r = pb.y - pb.X[:, where] @ part
    movable = (norms > 0) & jnp.isfinite(pb.thresholds)
    c = jnp.where(movable, correlations(pb, w, r), 0)
    gap, s = gap_of(pb, w, r, c, positive)
    size = jnp.maximum(c, 0) if positive else jnp.abs(c)
    column = jnp.sqrt(norms**2 / pb.y.size + pb.l2)
    safe = s * size < pb.thresholds - jnp.sqrt(2 * gap) * column
    return gap, jnp.where(movable & ~safe, size / jnp.where(movable, pb.thresholds, 1), -1)


@functools.partial(jax.jit, static_argnames=("room", "positive"))
def _inner(
    q: Quadratic, l2: Array, w: Array, count: Any, target: Any, room: int, positive: bool
) -> Any:
    active = jnp.arange(w.size) < count
    gram = q.gram + jnp.diag(jnp.where(active, l2, 0))
    q = q._replace(gram=gram, thresholds=jnp.where(active, q.thresholds, 1))
    return solve_gram(q, jnp.where(active, w, 0), target, positive, 200, True, room)


def _solve(at: _Problem, w: np.ndarray, max_steps: int) -> tuple[np.ndarray, dict, Result]:
    thresholds = np.asarray(at.data.thresholds)
    w = np.maximum(w, 0) if at.positive else w.copy()
    w[(np.asarray(at.norms) == 0) | np.isinf(thresholds)] = 0
    floor, rounds, outer = 0.3 * at.tol * at.scale, 0, 0
    while True:
        support = np.flatnonzero(w)
        where = padded(support, bucket(support.size, w.size))
        part = np.where(np.arange(where.size) < support.size, w[where], 0)
        arrays = map(jnp.asarray, (w, part, where))  # without jit NumPy would be passed on
        gap, score = _look(at.data, *arrays, at.norms, at.positive)
        gap = float(gap)
        if not np.isfinite(gap) or gap <= at.tol * at.scale or outer >= max_steps:
            break
        outer += 1
        chosen = _working_set(np.array(score), support)
        where = padded(chosen, bucket(chosen.size, w.size))
        gram = at.grams.of(chosen, where.size)
        q = Quadratic(*map(jnp.asarray, (gram, at.b[where], thresholds[where], at.yy)))
        # Room for the support to grow, of a size for which a program may already be compiled.
        room = bucket(int(1.1 * support.size) + 32, where.size, 128)
        target = max(0.3 * gap, floor)
        inner, _, n = _inner(
            q, at.data.l2, jnp.asarray(w[where]), chosen.size, target, room, at.positive
        )
        w[chosen] = np.asarray(inner)[: chosen.size]
        rounds += int(n)
    stats = {
        "gap": float(at.units.objective(jnp.asarray(gap))),
        "n_iter": outer,
        "n_rounds": rounds,
        "support_size": np.count_nonzero(w),
    }
    if not np.isfinite(gap):
        return w, stats, Result.NONFINITE
    return w, stats, Result.SUCCESSFUL if gap <= at.tol * at.scale else Result.MAX_STEPS


def _working_set(score: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The support and the features with the largest violations, at most a quarter more.

    Faster growth adds features that are removed again, and their Gram matrix dominates the cost.
    """
    violating = np.count_nonzero(score > 1)
    more = max(support.size // 20, min(violating, support.size // 4))
    room = max(256, support.size + more)
    score[support] = np.inf
    count = min(room, np.count_nonzero(score >= 0))
    chosen = np.argpartition(-score, count - 1)[:count] if count < score.size else score.argsort()
    return np.sort(chosen[score[chosen] >= 0])


def bucket(size: int, most: int, step: int = 256) -> int:
    """A size rounded up to one of few, to limit the number of compilations."""
    return min(most, max(step, -(-size // step) * step))


def padded(indices: np.ndarray, size: int) -> np.ndarray:
    """Zero-padded indices; the caller masks the padding."""
    return np.concatenate([indices, np.zeros(size - indices.size, indices.dtype)])
