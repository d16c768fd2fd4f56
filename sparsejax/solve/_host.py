"""Paths of Lassos on the host: what is common to the solvers in C++ and in XLA."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._solution import Result
from ._design import Design
from ._duality import default_tol


class Task(NamedTuple):
    """Lassos of one design and decreasing strengths, each started from the one before.

    Solved for X and y without their parts in `basis` (k, n), orthonormal rows.
    """

    design: Design
    y: np.ndarray
    basis: np.ndarray
    weights: np.ndarray
    strengths: np.ndarray
    l2: float
    tol: float
    positive: bool
    max_steps: int
    w0: np.ndarray | None


class Found(NamedTuple):
    """Coefficients (s, p), offsets (s,) of the intercept, codes (s,) and statistics (s,)."""

    value: np.ndarray
    offset: np.ndarray
    result: np.ndarray
    stats: Mapping[str, np.ndarray]


class Solved(NamedTuple):
    """Coefficients (s, p), codes (s,), statistics (s,), and `X^T basis^T` (p, k)."""

    value: np.ndarray
    result: np.ndarray
    stats: Mapping[str, np.ndarray]
    inner: np.ndarray


Solver = Callable[[Task], Solved]


def solve_path(task: Task, intercept: np.ndarray | None, solver: Solver) -> Found:
    """Solves the task with features of weight 0, and an intercept, projected out.

    Args:
      task: The task, without a basis.
      intercept: A column (n,) that gets a coefficient without a penalty, or None.
      solver: From a task to values, results and statistics.

    Returns:
      The solutions; coefficients of projected columns by least squares.
    """
    task, units = _balanced(task)
    free = np.flatnonzero(task.weights == 0) if task.l2 == 0 else np.zeros(0, int)
    if free.size and task.positive:
        raise ValueError(
            "weights must be > 0 with positive=True; use solve.proximal_gradient(smooth, "
            "prox.l1(strength * weights), w0)."
        )
    columns = [] if intercept is None else [intercept[:, None]]
    columns = np.concatenate([*columns, task.design.dense(free)], axis=1).astype(np.float64)
    basis, back = _orthonormal(columns)
    inside = task._replace(
        basis=basis.astype(task.y.dtype),
        weights=np.where(np.isin(np.arange(task.weights.size), free), np.inf, task.weights),
    )
    inside = inside._replace(w0=_start(inside))
    value, result, stats, inner = solver(inside)
    # What is left of y in the basis, in coordinates of the projected columns.
    rest = (basis @ task.y - value @ inner) @ back.T
    value[:, free] = rest[:, columns.shape[1] - free.size :]
    offset = np.zeros(len(value)) if intercept is None else rest[:, 0]
    with np.errstate(over="ignore", under="ignore"):
        stats = {**stats, "gap": stats["gap"] * units[1] * units[1]}
    return Found(value * (units[1] / units[0]), offset * units[1], result, stats)


def task(
    design: Design,
    y: np.ndarray,
    strengths: np.ndarray,
    *,
    weights: Any,
    l2: float,
    tol: float | None,
    positive: bool,
    max_steps: int,
    w0: Any,
) -> Task:
    """A validated task."""
    p = design.shape[1]
    weights = np.ones(p) if weights is None else np.asarray(weights, np.float64)
    if w0 is not None:
        with np.errstate(over="ignore"):
            w0 = np.asarray(w0, y.dtype)
        if w0.shape != (p,):
            raise ValueError(f"w0 must have shape ({p},), got {w0.shape}.")
    return Task(
        design, y, np.zeros((0, len(y)), y.dtype), weights, np.array(strengths, np.float64),
        float(l2), default_tol(tol, y.dtype), positive, max_steps, w0,
    )  # fmt: skip


def projected(y: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """`y` (..., n) without its part in orthonormal rows; twice, since the first leaves rounding."""
    for _ in range(2):
        y = y - (y @ basis.T) @ basis
    return y


def geometric(largest: float, count: int, eps: float) -> np.ndarray:
    """Strengths from the largest down to eps times it."""
    return largest * eps ** (np.arange(count) / max(count - 1, 1))


def codes(gap: np.ndarray, failed: np.ndarray) -> np.ndarray:
    """Result codes (s,)."""
    return np.where(np.isfinite(gap), np.where(failed, Result.MAX_STEPS, 0), Result.NONFINITE)


def _start(task: Task) -> np.ndarray | None:
    """The initial value if its objective is below that at 0; None otherwise."""
    if task.w0 is None:
        return None
    usable = np.isfinite(task.w0) & np.isfinite(task.weights)
    w = np.where(usable & (task.w0 >= 0 if task.positive else True), task.w0, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        r = projected(task.y - task.design.product(w), task.basis)
        penalty = task.strengths[0] * np.where(w == 0, 0, task.weights) @ np.abs(w)
        value = r @ r / (2 * r.size) + penalty + task.l2 / 2 * (w @ w)
    y = projected(task.y, task.basis)
    return w if value < y @ y / (2 * y.size) else None


def _orthonormal(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal rows (k, n) that span the columns (n, c), and their inverse (c, k)."""
    size = np.linalg.norm(columns, axis=0)
    size = np.where(size > 0, size, np.inf)
    if columns.shape[1] <= 1:  # without the threads of an SVD
        return np.ascontiguousarray((columns / size).T), np.diag(1 / size)
    u, s, v = np.linalg.svd(columns / size, full_matrices=False)
    kept = s > max(columns.shape) * np.finfo(np.float64).eps * s[0]
    return np.ascontiguousarray(u[:, kept].T), (v[kept] / s[kept, None]).T / size[:, None]


def _balanced(task: Task) -> tuple[Task, tuple[float, float]]:
    """y of size 1, and X where its squares leave the float range; powers of two, so exactly."""
    y, x = _unit(task.y), 1.0
    entries = task.design.values.ravel(order="K")
    far = float(np.finfo(task.y.dtype).max) ** 0.5
    if not 1 / far < np.vdot(entries, entries) < far:  # one pass where all is well
        x = _unit(task.design.values)
    if x == y == 1.0:
        return task, (1.0, 1.0)
    design = task.design if x == 1.0 else task.design._replace(values=task.design.values / x)
    info = np.finfo(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        w0 = None if task.w0 is None else task.w0 * (x / y)
        strengths = np.maximum(task.strengths / x / y, info.tiny)
        l2 = min(float(np.float64(task.l2) / x / x), float(info.max) / 4)
    scaled = task._replace(design=design, y=task.y / y, strengths=strengths, l2=l2, w0=w0)
    return scaled, (x, y)


def _unit(values: np.ndarray) -> float:
    """The largest modulus rounded up to a power of two; NaN and infinity are refused."""
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    if not math.isfinite(largest):
        raise ValueError("X holds NaN or infinity; drop or impute those rows first.")
    return 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
