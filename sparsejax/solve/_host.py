"""Paths of Lassos on the host: what is common to the solvers in C++ and in XLA."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._solution import Result
from ._design import Design
from ._duality import default_tol
from ._model import Model, block_norms, objective


class Task(NamedTuple):
    """Problems of one design and decreasing strengths, each started from the one before.

    Solved for X and y without their parts in `basis` (k, n), orthonormal rows. Several targets are
    rows of y (q, n). Weights are those of blocks.
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
    model: Model = Model()


class Found(NamedTuple):
    """Coefficients (s, p), offsets (s,) of the intercept, codes (s,) and statistics (s,).

    For q targets (s, q, p) and (s, q).
    """

    value: np.ndarray
    offset: np.ndarray
    result: np.ndarray
    stats: Mapping[str, np.ndarray]


class Solved(NamedTuple):
    """Coefficients (s, p), codes (s,), statistics (s,), and `X^T basis^T` (p, k).

    The offsets (s,) are those of a loss that is not squared.
    """

    value: np.ndarray
    result: np.ndarray
    stats: Mapping[str, np.ndarray]
    inner: np.ndarray
    offset: np.ndarray | None = None


Solver = Callable[[Task], Solved]

_ROW = 8192


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
    unpenalised = (task.weights == 0) & (task.l2 == 0)
    if unpenalised.any() and task.positive:
        raise ValueError(
            "weights must be > 0 with positive=True; use solve.proximal_gradient(smooth, "
            "prox.l1(strength * weights), w0)."
        )
    if task.model.loss != "squared":
        inside, means = _centred(task)
        found = solver(inside._replace(w0=_start(task)))
        if found.offset is not None:
            found = found._replace(offset=found.offset - found.value @ means)
        return _unscaled(task, found, units)
    free = task.model.features(unpenalised)
    columns = [task.design.dense(free)] if free.size else [np.zeros((task.y.shape[-1], 0))]
    if intercept is not None:
        columns.insert(0, intercept[:, None])
    columns = np.concatenate(columns, axis=1).astype(np.float64)
    basis, back = _orthonormal(columns)
    inside = task._replace(
        basis=basis.astype(task.y.dtype),
        weights=np.where(unpenalised, np.inf, task.weights),
    )
    inside = inside._replace(w0=_start(inside))
    found = solver(inside)
    # What is left of y in the basis, in coordinates of the projected columns.
    rest = (inner(task.y, basis) - inner(found.value, found.inner.T)) @ back.T
    found.value[..., free] = rest[..., columns.shape[1] - free.size :]
    offset = np.zeros(found.value.shape[:-1]) if intercept is None else rest[..., 0]
    return _unscaled(task, found._replace(offset=offset), units)


def _centred(task: Task) -> tuple[Task, np.ndarray]:
    """The task with features of large mean moved to mean 0, for an intercept, and those means.

    Coordinate descent moves such a feature and the intercept in turn, by tiny steps.
    """
    means = np.zeros(task.design.shape[1])
    if not task.model.intercept:
        return task, means
    sums, squares = task.design.moments()
    far = np.flatnonzero(squares - sums**2 < 1e-4 * sums**2)
    means[far] = sums[far]
    if not far.size:
        return task, means
    columns = task.design.dense(far).astype(np.float64) - means[far]
    columns[:, np.ptp(columns, axis=0) == 0] = 0  # without the rounding of the mean
    return task._replace(design=task.design.replaced(far, columns)), means


def _unscaled(task: Task, found: Solved, units: tuple[float, float]) -> Found:
    """The solutions in the units of X and y."""
    x, y = units
    with np.errstate(over="ignore", under="ignore"):  # of the objective, or of correlations
        gap = found.stats["gap"] * y * (y if task.model.is_convex else x)
    stats = {**found.stats, "gap": gap}
    offset = np.zeros(len(found.value)) if found.offset is None else found.offset
    return Found(found.value * (y / x), offset * y, found.result, stats)


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
    model: Model = Model(),  # noqa: B008
) -> Task:
    """A validated task."""
    p = design.shape[1]
    blocks = p if model.start is None else model.start.size - 1
    weights = np.ones(blocks) if weights is None else np.asarray(weights, np.float64)
    if w0 is not None:
        if np.iscomplexobj(w0):
            raise TypeError(f"w0 must be real, got {np.asarray(w0).dtype}.")
        with np.errstate(over="ignore"):
            w0 = np.asarray(w0, y.dtype)
        if w0.shape != (p,):
            raise ValueError(f"w0 must have shape ({p},), got {w0.shape}.")
    return Task(
        design, y, np.zeros((0, y.shape[-1]), y.dtype), weights,
        np.array(strengths, np.float64), float(l2), default_tol(tol, y.dtype), positive,
        max_steps, w0, model,
    )  # fmt: skip


def projected(y: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """`y` (..., n) without its part in orthonormal rows; twice, since the first leaves rounding."""
    for _ in range(2):
        y = y - np.einsum("...k,kn->...n", inner(y, basis), basis)
    return y


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b.T` of few rows, without the threads of BLAS, which wait for each other beside busy
    processes."""
    return np.einsum("...n,kn->...k", a, b)


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
    model, y = task.model, projected(task.y, task.basis)
    weights = task.weights if model.start is None else task.weights[model.labels()]
    usable = np.isfinite(task.w0) & np.isfinite(weights)
    w = np.where(usable & (task.w0 >= 0 if task.positive else True), task.w0, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        r = projected(task.y - task.design.product(w), task.basis)
        sizes = np.abs(w) if model.start is None else block_norms(model, w)
        penalty = task.strengths[0] * np.sum(np.where(sizes == 0, 0, task.weights) * sizes)
        ridge = task.l2 / 2 * _square(w.ravel())
        value, at_zero = _mean_loss(model, y, y - r), _mean_loss(model, y, 0 * y)
    return w if value + penalty + ridge < at_zero else None


def _mean_loss(model: Model, y: np.ndarray, u: np.ndarray) -> float:
    return float(np.average(objective(model, y, u), weights=model.samples))


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
    model = task.model
    y, x = _unit(task.y) if model.loss in ("squared", "huber") else 1.0, 1.0
    entries = task.design.values.ravel(order="K")
    far = float(np.finfo(task.y.dtype).max) ** 0.5
    # One pass where all is well. MCP and SCAD hold for one scale of the columns.
    square = _square(entries)
    if not 1 / far < square < far:
        if model.is_homogeneous or not _finite(entries):
            x = _unit(task.design.values)
        elif not (np.isfinite(square) and (square > 0 or not entries.any())):
            raise ValueError("X is out of the range of its squares; standardise X first.")
    if x == y == 1.0:
        return task, (1.0, 1.0)
    design = task.design if x == 1.0 else task.design._replace(values=task.design.values / x)
    info = np.finfo(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        w0 = None if task.w0 is None else task.w0 * (x / y)
        strengths = task.strengths / x**model.degree / y / y ** (1 - model.degree)
        strengths = np.maximum(strengths, info.tiny)
        l2 = min(float(np.float64(task.l2) / x / x), float(info.max) / 4)
    model = model._replace(delta=model.delta / y)
    scaled = task._replace(
        design=design, y=task.y / y, strengths=strengths, l2=l2, w0=w0, model=model
    )
    return scaled, (x, y)


def _square(values: np.ndarray) -> float:
    """The sum of squares of a vector, in rows too short for the threads of BLAS, see `inner`."""
    whole = values.size // _ROW * _ROW
    rows, rest = values[:whole].reshape(-1, 1, _ROW), values[whole:]
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.matmul(rows, rows.transpose(0, 2, 1)).sum() + np.vdot(rest, rest))


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


def _unit(values: np.ndarray) -> float:
    """The largest modulus rounded up to a power of two; NaN and infinity are refused."""
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    if not math.isfinite(largest):
        raise ValueError("X holds NaN or infinity; drop or impute those rows first.")
    return 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
