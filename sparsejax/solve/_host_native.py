"""The Lasso on the host by coordinate descent in C++, compiled at first use."""

import ctypes
import pathlib
from typing import Any

import numpy as np

from .._compile import loaded
from ._design import LAYOUTS, Design
from ._host import Solved, Task, codes, projected

SOURCE = pathlib.Path(__file__).with_name("coordinate.cc")
HEADERS = ("coordinate", "designs", "paths", "penalties", "steps", "working_sets")
REALS = {"float32": "float", "float64": "double"}
ANSWER = np.dtype([(n, "f8" if n == "gap" else "i8") for n in
                   ("gap", "n_iter", "n_rounds", "support_size", "failed")])  # fmt: skip


def solve(task: Task) -> Solved:
    """Solves the task; NotImplementedError without a compiler."""
    dtype = task.y.dtype
    p, k, count = task.design.shape[1], len(task.basis), len(task.strengths)
    m, norms = norms_of(library(task.design.layout, dtype), task.design, task.basis)
    basis = _pointer(task.basis), _integer(k)
    design, norms, rest = projected_design(task, norms, m)
    y = projected(task.y, task.basis)
    w, answers = np.zeros((count, p), dtype), np.zeros(count, ANSWER)
    w[0] = 0 if task.w0 is None else task.w0
    numbers = ctypes.c_double(task.l2), ctypes.c_double(task.tol), int(task.positive)
    library(design.layout, dtype).lasso_path(
        *_matrix(design), _pointer(y), _pointer(rest), *basis, _pointer(norms),
        _pointer(task.weights), _pointer(task.strengths), _integer(count), *numbers,
        _integer(task.max_steps), _pointer(w), _pointer(answers),
    )  # fmt: skip
    stats = {name: answers[name] for name in ANSWER.names or () if name != "failed"}
    return Solved(w, codes(stats["gap"], answers["failed"] != 0), stats, m)


def norms_of(
    calls: ctypes.CDLL, design: Design, basis: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`X^T basis^T` (p, k), and the squares of the columns (p,)."""
    dtype, p, k = design.values.dtype, design.shape[1], len(basis)
    m, norms = np.zeros((p, k), dtype), np.zeros(p, dtype)
    calls.path_norms(*_matrix(design), _pointer(basis), _integer(k), _pointer(m), _pointer(norms))
    return m, norms


def library(layout: int, dtype: Any) -> ctypes.CDLL:
    """The library compiled for a layout of X and a dtype."""
    options = f"-DLAYOUT={LAYOUTS[layout]}", f"-DREAL={REALS[str(dtype)]}"
    return loaded(SOURCE, tuple(SOURCE.with_name(f"{name}.h") for name in HEADERS), options)


def projected_design(
    task: Task, norms: np.ndarray, m: np.ndarray
) -> tuple[Design, np.ndarray, np.ndarray]:
    """The design, the squares of its projected columns, and what is left to project, (p, k).

    Of columns far longer than their projections, inner products would cancel: these are projected
    in a copy.
    """
    design, left, rest = task.design, norms - np.sum(m * m, axis=1), m.copy()
    eps, basis = np.finfo(task.y.dtype).eps, task.basis.astype(np.float64)
    short = np.flatnonzero(left < eps**0.5 * norms) if len(basis) else np.zeros(0, int)
    if not short.size:
        return design, left, rest
    parts = []
    for part in np.array_split(short, max(1, short.size // 256)):
        columns = projected(design.dense(part).astype(np.float64).T, basis)
        own = np.sum(columns * columns, axis=1)
        # Of a column in the span of the basis only rounding errors are left.
        inside = own <= (100 * eps) ** 2 * norms[part]
        left[part] = np.where(inside, 0, own)
        parts.append((part[~inside], columns[~inside].T))
    far, columns = (np.concatenate(x, axis=-1) for x in zip(*parts))
    rest[far] = 0
    return (design.replaced(far, columns) if far.size else design), left, rest


def _matrix(design: Design) -> tuple[Any, ...]:
    n, p = map(_integer, design.shape)
    return n, p, _pointer(design.values), _pointer(design.start), _pointer(design.row)


def _pointer(x: np.ndarray | None) -> Any:
    return None if x is None else x.ctypes.data_as(ctypes.c_void_p)


_integer = ctypes.c_int64
