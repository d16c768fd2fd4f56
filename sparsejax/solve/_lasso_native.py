"""The Lasso within XLA's programs on CPUs, in C++ compiled at first use."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._compile import compiled
from .._files import cache_file
from ._duality import Problem

SOURCE = pathlib.Path(__file__).with_name("lasso_batch.cc")
HEADERS = (
    *(
        SOURCE.with_name(f"{name}.h")
        for name in ("coordinate", "designs", "penalties", "steps", "working_sets")
    ),
    SOURCE.parents[1] / "native.h",
)
SYMBOLS = {"float32": "SparsejaxLassoFloat", "float64": "SparsejaxLassoDouble"}
CALLS = tuple((f"sparsejax_lasso_{dtype}", symbol) for dtype, symbol in SYMBOLS.items())


def problem_with_compiling() -> str | None:
    """The reason why the C++ does not run here, None if it does."""
    return compiled(SOURCE, HEADERS, CALLS, os.environ.get("CXX"), cache_file())


def solve(
    pb: Problem, w0: Array, norms: Array, tol: Any, max_steps: int, positive: bool
) -> tuple[Array, Array, Array]:
    """Coefficients, the gap, and numbers (4,): working sets, rounds, support, why it ended."""
    dtype = pb.y.dtype
    like = jax.ShapeDtypeStruct
    results = like(w0.shape, dtype), like((), dtype), like((4,), jnp.int32)
    # Of what is not mapped one copy serves all problems of a batch.
    call = jax.ffi.ffi_call(f"sparsejax_lasso_{dtype}", results, vmap_method="expand_dims")
    tol = jnp.asarray(tol, dtype)
    w, gap, counts = call(
        pb.X, pb.y, pb.thresholds, pb.l2, tol, norms**2, w0,
        max_steps=np.int64(max_steps), positive=positive,
    )  # fmt: skip
    return w, gap, counts
