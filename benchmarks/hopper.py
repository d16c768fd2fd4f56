"""Products on an H200: every kernel built, checked and timed over cuBLAS, in one command.

    python benchmarks/hopper.py              on a Hopper GPU, some 10 minutes
    python benchmarks/hopper.py --probe      only whether the sparse tensor cores are read right
    python benchmarks/hopper.py --compile    without one: compiled ahead of time, with the CUDA
                                             plugin, JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 and
                                             JAX_PLATFORMS=cpu,cuda

A ratio above 1 means that the sparse product is faster than `jnp.dot` with the dense matrix in
bfloat16. Both sides run as chains of products with three weights in turn, more than the cache
holds, on random data; the best of several rounds counts.
"""

import argparse
import glob
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import measure, save
from rich.table import Table

import sparsejax as sj
from sparsejax.kernels import _mosaic
from sparsejax.kernels.matmul import _cusparselt, _pallas_gpu, _sparse_cores
from sparsejax.kernels.matmul._cases import Case
from sparsejax.kernels.matmul._finish import How

SIDE = 8192
WEIGHTS, CHAIN = 3, 6
DENSITIES = (0.5, 0.25, 0.1, 0.05)
# Goals over cuBLAS.
BLOCK_GOALS = {128: (1.7, 3.3, 7.5, 13), 64: (1.4, 2.8, 6, 11)}
CORES_GOALS = {8192: 1.3, 4096: 1.3, 1024: 1.15, 256: 1.0}  # by rows; 1.15 of 8192 is the least
PASSES = "The probe passes in bfloat16 and float16."
NM_GOALS = {(2, 4): 1.4, (4, 8): 1.3, (1, 4): 2.3, (1, 8): 4.2, (2, 16): 4.5}


def blocks_of(block: int, density: float, seed: int, side: int = SIDE) -> Any:
    """A random matrix with as many blocks in each block column, made on the device."""
    key = jax.random.key(seed)
    lists, kept = side // block, max(1, round(density * side // block))
    scores = np.random.default_rng(seed).random((lists, lists))
    mask = jnp.asarray(np.kron(scores.argsort(0).argsort(0) < kept, np.ones((block, block), bool)))
    return sj.formats.BlockArray.fromdense(_normal(key, (side, side)), block, mask=mask)


def nm_of(n: int, m: int, seed: int, side: int = SIDE) -> Any:
    """A random N:M matrix."""
    return sj.formats.NMArray.fromdense(_normal(jax.random.key(seed), (side, side)), n, m)


def _normal(key, shape):
    return jax.random.normal(key, shape, jnp.bfloat16) / shape[0] ** 0.5


def chain(product: Callable[..., Any]) -> Callable[..., Any]:
    """Products one after the other, with the weights in turn."""

    @jax.jit
    def run(x, weights):
        for i in range(CHAIN):
            y = product(x, weights[i % WEIGHTS])
            # So that nothing is computed once for several products.
            x, y, weights = jax.lax.optimization_barrier((x, y, weights))
        return y

    return run


def ratio(
    sparse: Callable[..., Any],
    dense: Callable[..., Any],
    x: Any,
    make: Any,
    prepare: Callable[..., Any] = lambda w: w,
) -> str:
    """Time of dense over time of sparse, with the error of the result."""
    weights = [make(seed) for seed in range(WEIGHTS)]
    full = [w.todense() for w in weights]
    weights = [prepare(w) for w in weights]
    got, want = sparse(x, weights[0]), dense(x, full[0])
    error = max(
        float(jnp.linalg.norm((a - b).astype(jnp.float32)) / jnp.linalg.norm(b.astype(jnp.float32)))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want))
    )
    best = measure(
        {
            "sparse": partial(chain(sparse), x, weights),
            "dense": partial(chain(dense), x, full),
        },
        rounds=5,
    )
    found = best["dense"] / best["sparse"]
    return f"{found:.2f}" if error < 1e-2 else f"WRONG by {error:.1e}"


def attempted(*arguments: Any) -> str:
    try:
        return ratio(*arguments)
    except Exception as error:  # a kernel that fails is a cell of the table, not its end
        return f"{type(error).__name__}: {str(error)[:60]}"


def measure_blocks() -> Table:
    table = Table(title=f"Block-sparse, {SIDE}^3, bfloat16: over cuBLAS (goal)")
    for column in ("blocks", *(f"density {d}" for d in DENSITIES)):
        table.add_column(column, justify="right")
    x = _normal(jax.random.key(9), (SIDE, SIDE))
    sparse = partial(sj.matmul, implementation="pallas_gpu")
    for block, goals in BLOCK_GOALS.items():
        cells = [
            f"{attempted(sparse, jnp.matmul, x, partial(blocks_of, block, d))} ({goal})"
            for d, goal in zip(DENSITIES, goals)
        ]
        table.add_row(str(block), *cells)
        backward = [
            attempted(_backward, _dense_backward, x, partial(blocks_of, block, d))
            for d in DENSITIES
        ]
        table.add_row(f"{block}, backward", *backward)
    return table


def _backward(x, w):
    how = How(dtype=x.dtype)
    return _pallas_gpu.transposed(x, w, how), _pallas_gpu.sampled(x, x, w, how).sum((-1, -2))


def _dense_backward(x, w):
    full = jnp.matmul(x.T, x)
    return jnp.matmul(x, w.T), full


def measure_nm() -> Table:
    table = Table(title=f"N:M, K = N = {SIDE}, bfloat16: over cuBLAS (goal for M up to 16)")
    rows = (1, 16, 64, 128)
    for column in ("pattern", *(f"M = {m}" for m in rows)):
        table.add_column(column, justify="right")
    sparse = partial(sj.matmul, implementation="pallas_gpu")
    for (n, m), goal in NM_GOALS.items():
        cells = []
        for count in rows:
            x = _normal(jax.random.key(9), (count, SIDE))
            cells.append(attempted(sparse, jnp.matmul, x, partial(nm_of, n, m)))
        table.add_row(f"{n}:{m} ({goal})", *cells)
    return table


def measure_sparse_cores() -> Table:
    """2:4 on the sparse tensor cores: whether the probe passes, and times for many rows."""
    found = probed_apart()
    table = Table(
        title=f"2:4 on sparse tensor cores, K = N = {SIDE}, bfloat16: over cuBLAS (goal)",
        caption=found,
    )
    for column in ("weights", *(f"M = {m}" for m in CORES_GOALS)):
        table.add_column(column, justify="right")
    ways: dict[str, tuple[Any, Any]] = {}  # products, and what is done to W beforehand
    if found == PASSES:
        product = partial(sj.matmul, implementation="sparse_cores")
        ways["TensorCoreArray"] = product, sj.formats.TensorCoreArray.fromnm
        ways["NMArray, reordered each time"] = product, lambda w: w
    else:
        _sparse_cores.probe = lambda dtype: found  # whoever asks next in this process
    try:
        _cusparselt.register()
        product = partial(_cusparselt.multiplied, columns=SIDE)
        ways["cuSPARSELt, compressed once"] = product, _cusparselt.compressed
    except NotImplementedError as error:  # a yardstick that may not be at hand
        table.add_row(f"cuSPARSELt: {error}")
    for name, (product, prepare) in ways.items():
        cells = []
        for rows, goal in CORES_GOALS.items():
            x = _normal(jax.random.key(9), (rows, SIDE))
            ratio_found = attempted(product, jnp.matmul, x, partial(nm_of, 2, 4), jax.jit(prepare))
            cells.append(f"{ratio_found} ({goal})")
        table.add_row(name, *cells)
    return table


def probed_apart() -> str:
    """What the probe finds, in a process that can be ended if the kernel does not end."""
    try:
        run = subprocess.run(
            [sys.executable, __file__, "--probe"],
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            timeout=180,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return "the probe does not end"
    return ((run.stdout or run.stderr).strip().splitlines() or ["no output"])[-1]


def probed() -> str:
    """What the probe finds in this process, and what W the device sees if it fails."""
    reasons = [_sparse_cores.probe(dtype) for dtype in ("bfloat16", "float16")]
    return "; ".join([*filter(None, reasons), seen()]) if any(reasons) else PASSES


def seen() -> str:
    """What a failing probe is looked into with: W as the device reads it, from a product with I."""
    try:
        w = sj.formats.NMArray.fromdense(_normal(jax.random.key(0), (128, 64)), 2, 4)
        packed = sj.formats.TensorCoreArray.fromnm(w)
        got = _sparse_cores.multiply(jnp.eye(128, dtype=w.dtype), packed, None, How())
        wrong = np.argwhere(np.asarray(got) != np.asarray(w.todense(), np.float32))
        rows, columns = (sorted(set(axis.tolist())) for axis in wrong.T)
        return f"{len(wrong)} of {got.size} entries are read wrong, rows {rows}, columns {columns}"
    except Exception as error:  # told, not raised: the other tables are still wanted
        return f"{type(error).__name__}: {str(error)[:200]}"


def measure_tuned() -> Table:
    """What `sj.kernels.tune` finds for 2:4, with nothing kept in the user's file."""
    table = Table(title=f"Milliseconds by sj.kernels.tune, 2:4, K = N = {SIDE}, bfloat16")
    for column in ("M", "fastest first"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSEJAX_CACHE"] = f"{folder}/tuning.json"
        for rows in (16, 1024, 8192):
            x = _normal(jax.random.key(9), (rows, SIDE))
            times = sj.kernels.tune(x, nm_of(2, 4, 0))
            table.add_row(str(rows), ", ".join(f"{n} {1e3 * t:.2f}" for n, t in times.items()))
    return table


def compiled() -> Table:
    """Registers, spills and shared memory of what the compiler makes for an H200."""
    table = Table(
        title="Compiled ahead of time for an H200",
        caption="Not yet measured on hardware. Spills are bytes; shared memory is KiB of 227.",
    )
    for column in ("kernel", "registers", "spills", "shared memory", "wgmma"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    how = How(activation=jax.nn.silu, dtype=jnp.bfloat16)
    for name, product, rows, w in _kernels(how):
        x = jax.ShapeDtypeStruct((rows, 2048), jnp.bfloat16)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MOSAIC_GPU_DUMP_TO"] = folder
            _mosaic.compile_for_hopper(product, x, w)
            table.add_row(name, *_resources(pathlib.Path(folder)))
    return table


def _kernels(how: How):
    def forward(x, w):
        return _pallas_gpu.product(x, w, None, how)

    for block in (128, 64, 32, 16):
        for rows in (4096, 16):
            case = Case("", (1,), 2048, 2048, block=(block, block), density=0.25)
            w = case.make(jnp.bfloat16)[1]
            yield f"blocks of {block}, {rows} rows", forward, rows, w
            if rows > 16:
                yield (
                    f"blocks of {block}, transposed",
                    lambda x, w: _pallas_gpu.transposed(x, w, how),
                    rows,
                    w,
                )
            if rows > 16 and block >= 64:
                yield (
                    f"blocks of {block}, sampled",
                    lambda x, w: _pallas_gpu.sampled(x, x, w, how),
                    rows,
                    w,
                )
    for n, m in NM_GOALS:
        w = Case("", (1,), 2048, 2048, nm=(n, m)).make(jnp.bfloat16)[1]
        yield f"{n}:{m}, 16 rows", forward, 16, w
    w = Case("", (1,), 2048, 2048, nm=(2, 4)).make(jnp.bfloat16)[1]
    for rows in (4096, 100, 16):
        yield (
            f"2:4 on sparse tensor cores, {rows} rows",
            lambda x, w: _sparse_cores.multiply(x, sj.formats.TensorCoreArray.fromnm(w), None, how),
            rows,
            w,
        )


def _resources(folder: pathlib.Path) -> tuple[str, ...]:
    report = "".join(pathlib.Path(f).read_text() for f in glob.glob(f"{folder}/*.ptxas"))
    code = "".join(pathlib.Path(f).read_text() for f in glob.glob(f"{folder}/*.ptx"))
    memory = "".join(pathlib.Path(f).read_text() for f in glob.glob(f"{folder}/*.resources.txt"))
    shared = int(re.search(r"smem_scratch_bytes=(\d+)", memory)[1])  # pyright: ignore
    return (
        re.search(r"Used (\d+) registers", report)[1],  # pyright: ignore
        re.search(r"(\d+) bytes spill stores", report)[1],  # pyright: ignore
        f"{shared / 1024:.0f}",
        str(code.count("wgmma.mma_async")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="ahead of time, without a GPU")
    parser.add_argument("--probe", action="store_true", help="of the sparse tensor cores only")
    chosen = parser.parse_args()
    if chosen.probe:
        print(probed())
    elif chosen.compile:
        os.environ |= {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_PTXAS": "1"}
        save("hopper-compiled", compiled())
    elif jax.default_backend() == "gpu":
        tables: list[Table] = []  # kept one by one: a kernel that does not end costs no other
        for make in (measure_nm, measure_blocks, measure_sparse_cores, measure_tuned):
            tables.append(make())
            save("hopper", *tables)
    else:
        print("hopper: no GPU here; `python benchmarks/hopper.py --compile` compiles for one.")


if __name__ == "__main__":
    main()
