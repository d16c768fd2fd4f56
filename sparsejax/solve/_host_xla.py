"""The Lasso on the host with growing working sets, in XLA: for machines without a C++ compiler."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._solution import Result
from ._design import ROWS, Design
from ._duality import Problem, correlations, gap_of
from ._gram import Quadratic, solve_gram
from ._gram_cache import GramCache
from ._host import Solved, Task, projected, solve_path

# Below this fraction of max_strength a short path is faster than one solve.
SHORT = 1 / 30


class _Problem(NamedTuple):
    data: Problem
    norms: Array
    b: np.ndarray
    grams: GramCache
    scale: float
    yy: Array
    tol: float
    positive: bool


def solve(task: Task) -> Solved:
    """Solves the task, X dense."""
    if task.l2 > 0 and np.any(task.weights == 0):
        return _augmented(task)
    with jax.enable_x64(task.y.dtype == np.float64):
        return _path(task)


def _path(task: Task) -> Solved:
    at = _prepare(task)
    w = np.zeros(at.norms.size, task.y.dtype) if task.w0 is None else task.w0
    strengths = task.strengths
    if task.w0 is None and len(strengths) == 1:
        for strength in strengths[0] * _short_path(at, strengths[0]):
            w, _, _ = _solve(at._replace(tol=max(at.tol, 1e-3)), strength, w, task.max_steps)
    found = []
    for strength in strengths:
        w, stats, result = _solve(at, strength, w, task.max_steps)
        found.append((w, stats, result))
    stats = {name: np.array([s[name] for _, s, _ in found]) for name in found[0][1]}
    values = np.stack([np.array(w) for w, *_ in found])
    results = np.array([result for *_, result in found])
    return Solved(values, results, stats, _inner_products(task))


def _augmented(task: Task) -> Solved:
    """With a ridge on features without a threshold: rows for the ridge, then projected out."""
    n, p = task.design.shape
    rows = np.sqrt(n * task.l2) * np.eye(p, dtype=task.y.dtype)
    X = np.concatenate([_dense(task), rows]) * np.sqrt((n + p) / n)
    y = np.concatenate([_target(task), np.zeros(p)]) * np.sqrt((n + p) / n)
    larger = task._replace(
        design=Design(ROWS, X.shape, X.astype(task.y.dtype)), y=y.astype(task.y.dtype), l2=0.0
    )
    found = solve_path(larger, None, solve)
    return Solved(found.value, found.result, found.stats, _inner_products(task))


def _dense(task: Task) -> np.ndarray:
    """The projected design."""
    X = task.design.dense()
    return X - task.basis.T @ (task.basis @ X) if len(task.basis) else X


def _inner_products(task: Task) -> np.ndarray:
    return task.design.dense().T @ task.basis.T


def _target(task: Task) -> np.ndarray:
    return projected(task.y, task.basis)


def _prepare(task: Task) -> _Problem:
    X = _dense(task)
    n, y, l2 = len(X), jnp.asarray(_target(task)), jnp.asarray(task.l2, X.dtype)
    data = Problem(jnp.asarray(X), y, jnp.asarray(task.weights, X.dtype), l2)
    norms = jnp.sqrt(jnp.sum(data.X**2, axis=0))
    if len(task.basis):  # rounding errors are left of a column in the span of the basis
        own = np.sqrt(np.sum(np.square(task.design.dense()), axis=0))
        norms = jnp.where(norms > 100 * jnp.finfo(X.dtype).eps * own, norms, 0)
    scale = float(jnp.vdot(y, y) / (2 * n))
    b = np.asarray(y @ data.X / n)
    grams = GramCache(np.asarray(data.X))
    return _Problem(data, norms, b, grams, scale, jnp.asarray(2 * scale, X.dtype), task.tol,
                    task.positive)  # fmt: skip


def _short_path(at: _Problem, strength: float) -> np.ndarray:
    """Decreasing multiples of the strength from near max_strength, if it is small."""
    size = np.maximum(at.b, 0) if at.positive else np.abs(at.b)
    a = strength * np.asarray(at.data.thresholds)
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


def _solve(
    at: _Problem, strength: float, w: np.ndarray, max_steps: int
) -> tuple[np.ndarray, dict, Result]:
    never = np.isinf(np.asarray(at.data.thresholds))
    thresholds = np.where(never, np.inf, np.where(never, 0, at.data.thresholds) * strength)
    data = at.data._replace(thresholds=jnp.asarray(thresholds, at.data.y.dtype))
    thresholds = np.asarray(data.thresholds)
    w = np.maximum(w, 0) if at.positive else w.copy()
    w[(np.asarray(at.norms) == 0) | np.isinf(thresholds)] = 0
    floor, rounds, outer = 0.3 * at.tol * at.scale, 0, 0
    while True:
        support = np.flatnonzero(w)
        where = padded(support, bucket(support.size, w.size))
        part = np.where(np.arange(where.size) < support.size, w[where], 0)
        arrays = map(jnp.asarray, (w, part, where))  # without jit NumPy would be passed on
        gap, score = _look(data, *arrays, at.norms, at.positive)
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
            q, data.l2, jnp.asarray(w[where]), chosen.size, target, room, at.positive
        )
        w[chosen] = np.asarray(inner)[: chosen.size]
        rounds += int(n)
    stats = {
        "gap": gap,
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
