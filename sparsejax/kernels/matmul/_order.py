"""The order in which implementations are tried by default."""

import functools
import math
from typing import Any

from ...formats import BlockArray, Entries, NMArray, TensorCoreArray

# On a TPU: rows of x up to which reading less of an N:M matrix pays, and the density up to which
# skipping blocks does. From a model of bytes and products, not yet measured.
NM_ROWS, BLOCK_DENSITY = 64, 0.6
# The same on a GPU, measured on an H200 (benchmarks/results/hopper.md): the density by the shorter
# side of a block; rows of x for which 2:4 tensor cores are slower than dense products even with W
# in their order, and rows from which they are faster even if W must be reordered each time.
GPU_DENSITY = {128: 0.6, 64: 0.45, 32: 0.1}
CORES_LOSE = range(65, 1024)
# Rows that a symbolic number of them, as of `jax.export`, is taken for: any form is right for all.
SYMBOLIC_ROWS = 512


def known_rows(rows: Any) -> int:
    """The number of rows to choose a form for."""
    return rows if isinstance(rows, int) else SYMBOLIC_ROWS


@functools.singledispatch
def order(w: Any, names: tuple[str, ...], rows: int, platform: str) -> tuple[str, ...]:
    """The names in the order of expected speed: dense first where kernels are slower."""
    del w, rows, platform
    return names


@order.register
def _(w: TensorCoreArray, names: tuple[str, ...], rows: int, platform: str) -> tuple[str, ...]:
    del w, platform
    return ("dense",) if rows in CORES_LOSE else names


@order.register
def _(w: NMArray, names: tuple[str, ...], rows: int, platform: str) -> tuple[str, ...]:
    if platform == "gpu":
        return ("sparse_cores", "dense") if rows >= CORES_LOSE.stop else ("dense", *names)
    if platform == "tpu" and (rows > NM_ROWS or 2 * w.n > w.m):
        return ("dense", *names)
    return names


@order.register
def _(w: BlockArray, names: tuple[str, ...], rows: int, platform: str) -> tuple[str, ...]:
    del rows
    most = {"tpu": BLOCK_DENSITY, "gpu": GPU_DENSITY.get(min(w.block), 0)}.get(platform, 1)
    return names if w.density <= most else ("dense", *names)


@order.register
def _(w: Entries, names: tuple[str, ...], rows: int, platform: str) -> tuple[str, ...]:
    del platform
    few = rows * w.values.shape[-1] <= math.prod(w.matrix)
    return names if few else ("dense", *names)


def case_of(x: Any, w: Any) -> str:
    """The key of a measurement: shapes, pattern and dtypes."""
    *stacked, k, n = w.shape
    rows = math.prod(x.shape[len(stacked) : -1])
    size = "x".join(map(str, (*stacked, rows, k, n)))
    return f"matmul {size}, {x.dtype} times {w.dtype}, {w.label}"
