"""The Lasso on the host by coordinate descent in C++, compiled at first use."""

import ctypes
import functools
import os
import pathlib
from typing import Any

import numpy as np

from .._compile import built, for_this_processor
from .._files import cache_file
from ._host import Solved, Task, codes

SOURCE = pathlib.Path(__file__).with_name("coordinate.cc")
ANSWER = np.dtype([(n, "f8" if n == "gap" else "i8") for n in
                   ("gap", "n_iter", "n_rounds", "support_size", "failed")])  # fmt: skip


def solve(task: Task) -> Solved:
    """Solves the task; NotImplementedError without a compiler."""
    calls, design, dtype = library(), task.design, task.y.dtype
    (n, p), k, count = design.shape, len(task.basis), len(task.strengths)
    m, norms = np.zeros((p, k), dtype), np.zeros(p, dtype)
    matrix = (
        design.layout, _integer(n), _integer(p), _pointer(design.values), _pointer(design.start),
        _pointer(design.row),
    )  # fmt: skip
    basis = _pointer(task.basis), _integer(k)
    getattr(calls, f"lasso_{dtype}_norms")(*matrix, *basis, _pointer(m), _pointer(norms))
    y = task.y - (task.basis @ task.y) @ task.basis
    w, answers = np.zeros((count, p), dtype), np.zeros(count, ANSWER)
    w[0] = 0 if task.w0 is None else task.w0
    norms = _projected(task, norms, m)
    numbers = ctypes.c_double(task.l2), ctypes.c_double(task.tol), int(task.positive)
    getattr(calls, f"lasso_{dtype}_path")(
        *matrix, _pointer(y), _pointer(m), *basis, _pointer(norms),
        _pointer(task.weights), _pointer(task.strengths), _integer(count), *numbers,
        _integer(task.max_steps), _pointer(w), _pointer(answers),
    )  # fmt: skip
    stats = {name: answers[name] for name in ANSWER.names or () if name != "failed"}
    return Solved(w, codes(stats["gap"], answers["failed"] != 0), stats, m)


def library() -> ctypes.CDLL:
    """The compiled library, loaded once; another compiler or cache may succeed."""
    return _library(os.environ.get("CXX"), cache_file())


@functools.cache
def _library(compiler: str | None, cache: pathlib.Path) -> ctypes.CDLL:
    del compiler, cache
    file = built(SOURCE, *for_this_processor([SOURCE.with_name("designs.h")]))
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NotImplementedError(f"{file} cannot be loaded: {error}") from error


def _projected(task: Task, norms: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Squares of the projected columns; where little is left of a column, from the column."""
    left = norms - np.sum(m * m, axis=1)
    short = np.flatnonzero(left < 1e-3 * norms) if len(task.basis) else np.zeros(0, int)
    for part in np.array_split(short, max(1, short.size // 256)):
        columns = task.design.dense(part).astype(np.float64)
        columns -= task.basis.T.astype(np.float64) @ m[part].T
        own = np.sum(columns * columns, axis=0)
        # Of a column in the span of the basis only rounding errors are left.
        eps = 100 * np.finfo(task.y.dtype).eps
        left[part] = np.where(own > eps**2 * norms[part], own, 0)
    return left


def _pointer(x: np.ndarray | None) -> Any:
    return None if x is None else x.ctypes.data_as(ctypes.c_void_p)


_integer = ctypes.c_int64
