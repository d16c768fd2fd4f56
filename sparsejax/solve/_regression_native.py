"""Regression on the host beyond the Lasso in C++, compiled at first use."""

import ctypes
import pathlib
from typing import Any

import numpy as np

from .._compile import loaded
from ._design import COLUMNS, LAYOUTS, Design
from ._host import Solved, Task, codes, projected
from ._host_native import ANSWER, norms_of, projected_design

SOURCE = pathlib.Path(__file__).with_name("regression.cc")
HEADERS = (
    "coordinate",
    "curved",
    "designs",
    "losses",
    "paths",
    "penalties",
    "steps",
    "working_sets",
)
# The names of `regression.cc`.
SHAPES = {"l1": "L1_NORM", "groups": "GROUPS", "mcp": "MCP", "scad": "SCAD", "l_half": "L_HALF"}
_KINDS: dict[str, Any] = {"i": ctypes.c_int64, "d": ctypes.c_double, "p": ctypes.c_void_p}


class Input(ctypes.Structure):
    """The arguments of the call: integers, numbers, and pointers to arrays."""

    _fields_ = [  # noqa: RUF012
        (name, _KINDS[kind]) for name, kind in (
            ("n", "i"), ("p", "i"), ("x", "p"), ("start", "p"), ("row", "p"),
            ("y", "p"), ("samples", "p"), ("tasks", "i"), ("blocks", "i"),
            ("block_start", "p"), ("member", "p"), ("weights", "p"), ("strengths", "p"),
            ("count", "i"), ("k", "i"), ("m", "p"), ("basis", "p"),
            ("norms", "p"), ("l2", "d"), ("tol", "d"), ("delta", "d"), ("gamma", "d"),
            ("positive", "i"), ("intercept", "i"), ("max_steps", "i"), ("w", "p"),
            ("offset", "p"), ("answers", "p"),
        )
    ]  # fmt: skip


def solve(task: Task) -> Solved:
    """Solves the task in float64; NotImplementedError without a compiler."""
    model = task.model
    design = in_columns(task.design)
    p, k, count = design.shape[1], len(task.basis), len(task.strengths)
    q = len(task.y) if task.y.ndim == 2 else 1
    basis = task.basis.astype(np.float64)
    calls = library(design.layout, model.loss, "groups" if q > 1 else model.shape, q > 1)
    m, norms = norms_of(calls, design, basis)
    inside = task._replace(design=design, basis=basis)
    near, norms, rest = projected_design(inside, norms, m)
    y = projected(task.y.astype(np.float64), basis)
    if q > 1:  # a block for the coefficients of a feature
        rest, basis, norms = np.kron(rest, np.eye(q)), _repeated(basis, q), np.repeat(norms, q)
        model = model._replace(shape="groups", start=q * np.arange(p + 1), member=np.arange(p * q))
    w, offset, answers = np.zeros((count, p * q)), np.zeros(count), np.zeros(count, ANSWER)
    w[0] = 0 if task.w0 is None else task.w0
    samples = np.ones(design.shape[0]) if model.samples is None else model.samples
    weights, strengths = np.asarray(task.weights, np.float64), task.strengths / q
    arrays: dict[str, Any] = {
        "x": near.values, "start": near.start, "row": near.row, "y": y, "samples": samples,
        "block_start": model.start, "member": model.member, "weights": weights,
        "strengths": strengths, "m": rest, "basis": basis, "norms": norms, "w": w,
        "offset": offset, "answers": answers,
    }  # fmt: skip
    kept = {name: None if x is None else np.ascontiguousarray(x.T).T if name == "x" and x.ndim == 2
            else np.ascontiguousarray(x) for name, x in arrays.items()}  # fmt: skip
    given = Input(
        n=design.shape[0], p=p, tasks=q, blocks=weights.size, count=count, k=k * q,
        l2=task.l2 / q, tol=task.tol, delta=model.delta, gamma=model.gamma,
        positive=task.positive, intercept=model.intercept, max_steps=task.max_steps,
        **{name: None if x is None else x.ctypes.data for name, x in kept.items()},
    )  # fmt: skip
    calls.regression_path(ctypes.byref(given))
    stats = {name: answers[name] for name in ANSWER.names or () if name != "failed"}
    stats["gap"] = stats["gap"] * q
    value = w if task.y.ndim == 1 else np.moveaxis(w.reshape(count, p, q), 2, 1)
    return Solved(value, codes(stats["gap"], answers["failed"] != 0), stats, m, offset)


def in_columns(design: Design) -> Design:
    """The design in float64, by columns: a copy unless it is."""
    if design.layout != COLUMNS and design.start is None:
        return Design(COLUMNS, design.shape, np.asfortranarray(design.values, np.float64))
    return design._replace(values=np.asarray(design.values, np.float64))


def _repeated(basis: np.ndarray, q: int) -> np.ndarray:
    """The basis (k, n) for each of q targets, (k q, q n)."""
    k, n = basis.shape
    return np.einsum("un,ts->utsn", basis, np.eye(q)).reshape(k * q, q * n)


def library(layout: int, loss: str, shape: str, repeated: bool) -> ctypes.CDLL:
    """The library compiled for a layout of X, a loss and a penalty, and for several targets."""
    kinds = {"LAYOUT": LAYOUTS[layout], "LOSS": loss.upper(), "SHAPE": SHAPES[shape]}
    kinds |= {"REPEATED": str(int(repeated)), "REAL": "double"}
    options = tuple(f"-D{name}={kind}" for name, kind in kinds.items())
    return loaded(SOURCE, tuple(SOURCE.with_name(f"{name}.h") for name in HEADERS), options)
