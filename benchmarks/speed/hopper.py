"""Products on an H200: every kernel built, checked and timed over cuBLAS, in one command.

    python -m benchmarks hopper              on a Hopper GPU, some 3 minutes
    python -m benchmarks hopper --compile    without one: compiled ahead of time, with the CUDA
                                             plugin, JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 and
                                             JAX_PLATFORMS=cpu,cuda

A ratio above 1 means that the sparse product is faster than `jnp.matmul` with the dense matrix in
bfloat16. Both run as loops of products with several weights in turn, more than the cache holds, on
random data; the best of several rounds counts. Processes compile side by side and take turns on the
GPU. A cell that fails or does not end is reported in the table and costs no other.
"""

import contextlib
import fcntl
import glob
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes, one GPU

import jax
import jax.numpy as jnp
from rich.table import Table

import sparsejax as sj
from benchmarks._report import save
from sparsejax.kernels import _mosaic
from sparsejax.kernels._finish import How
from sparsejax.kernels.matmul import _cusparselt, _gpu_block, _gpu_nm, _sparse_cores
from sparsejax.kernels.matmul._cases import Case

SIDE = 8192
HOW = How(dtype=jnp.bfloat16)
WORKERS = 8
# The same benchmark, in the folder of which `benchmarks` is a package.
AGAIN = [sys.executable, "-m", "benchmarks", "hopper"]
ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 40  # seconds that a cell may hold the GPU
DENSITIES = (0.5, 0.25, 0.1, 0.05)
# Goals over cuBLAS.
BLOCK_GOALS = {128: (1.7, 3.3, 7.5, 13), 64: (1.4, 2.8, 6, 11)}
CORES_GOALS = {8192: 1.3, 4096: 1.3, 1024: 1.15, 256: 1.0}  # by rows; 1.15 of 8192 is the least
NM_GOALS = {(2, 4): 1.4, (4, 8): 1.3, (1, 4): 2.3, (1, 8): 4.2, (2, 16): 4.5}


class Cell(NamedTuple):
    """One product: where it stands in the tables, how W is made and multiplied."""

    table: str
    row: str
    column: str
    rows: int
    make: Callable[[Any], Any]
    product: Callable[[Any, Any], Any]
    dense: Callable[[Any, Any], Any] = jnp.matmul
    prepare: Callable[[Any], Any] = lambda w: w
    full: Callable[[Any], Any] = lambda w: w.todense()
    goal: float | None = None


def cells() -> Iterator[Cell]:
    """All products, the most important first."""
    title = f"2:4 on sparse tensor cores, K = N = {SIDE}"
    cores, packed = partial(multiplied, "sparse_cores"), sj.formats.TensorCoreArray.fromnm
    for rows in (8192, 4096, 1024, 512, 256, 128, 64, 16, 1):
        two_four: Any = (title, f"M = {rows}", rows, nm_of(2, 4), CORES_GOALS.get(rows))
        yield _cell("TensorCoreArray", *two_four, product=cores, prepare=packed)
        if rows >= 256:
            yield _cell("NMArray, reordered each time", *two_four, product=cores)
            yield _cell("cuSPARSELt", *two_four, product=library, prepare=_cusparselt.compressed)
    for density_at, density in enumerate(DENSITIES):
        for block in (128, 64, 32, 16):
            goal = BLOCK_GOALS[block][density_at] if block in BLOCK_GOALS else None
            title, column = f"Block-sparse, {SIDE}^3", f"density {density}"
            case: Any = (title, column, SIDE, blocks_of(block, density))
            yield _cell(
                f"blocks of {block}", *case, goal, product=partial(multiplied, "pallas_gpu")
            )
            if block >= 64:
                name = f"blocks of {block}, backward"
                yield _cell(name, *case, product=backward, dense=dense_backward)
                name, case = f"blocks of {block}, 16 rows", (title, column, 16, case[-1])
                yield _cell(name, *case, product=partial(multiplied, "pallas_gpu"))
    for (n, m), goal in NM_GOALS.items():
        for rows in (1, 16, 64):
            yield _cell(
                f"{n}:{m}", f"N:M in software, K = N = {SIDE}", f"M = {rows}", rows, nm_of(n, m),
                goal if rows < 64 else None, product=partial(multiplied, "pallas_gpu"),
            )  # fmt: skip
    for tokens in (1, 16, 256):
        yield _cell(
            "units of 64", f"Active sets, 10 % of {SIDE} neurons, {SIDE} features",
            f"{tokens} tokens", tokens, active, product=active_ffn, dense=dense_ffn, full=ffn,
        )  # fmt: skip


def _cell(row, table, column, rows, make, goal=None, **more) -> Cell:
    return Cell(table, row, column, rows, make, goal=goal, **more)


def normal(key, shape):
    return jax.random.normal(key, shape, jnp.bfloat16) / shape[-2] ** 0.5


def nm_of(n: int, m: int):
    return lambda key: sj.formats.NMArray.fromdense(normal(key, (SIDE, SIDE)), n, m)


def blocks_of(block: int, density: float):
    """A random matrix with as many blocks in each block column."""
    side = SIDE // block
    kept = max(1, round(density * side))
    # No block row has so many more than the others.
    most = min(side, kept + 8 * int(kept**0.5) + 8)

    def make(key):
        rank = jax.random.uniform(key, (side, side)).argsort(0).argsort(0)
        mask = jnp.repeat(jnp.repeat(rank < kept, block, 0), block, 1)
        w = normal(key, (SIDE, SIDE))
        return sj.formats.BlockArray.fromdense(w, block, mask=mask, slots=kept, slots_t=most)

    return make


def active(key):
    up, down, score = jax.random.split(key, 3)
    shape = SIDE // 64, 64, SIDE
    s = sj.select.TopK(shape[0] // 10).set(jax.random.uniform(score, shape[:1]))
    return normal(up, shape), normal(down, shape), s


def active_ffn(x, w):
    return sj.kernels.active_ffn(x, *w, implementation="pallas_gpu")


def ffn(w):
    up, down, s = w
    mask = jnp.zeros(up.shape[0], up.dtype).at[s.index].set(1)
    return up.reshape(SIDE, SIDE), (down * mask[:, None, None]).reshape(SIDE, SIDE)


def dense_ffn(x, w):
    return jax.nn.relu(x @ w[0].T) @ w[1]


def multiplied(name, x, w):
    return sj.matmul(x, w, implementation=name)


def library(x, packed):
    return _cusparselt.multiplied(x, packed, columns=SIDE)


def backward(x, w):
    return _gpu_block.transposed(x, w, HOW), _gpu_block.sampled(x, x, w, HOW)


def dense_backward(x, w):
    return jnp.matmul(x, w.T), jnp.matmul(x.T, x)


def timed(cell: Cell, turn: Callable[[], Any]) -> dict[str, Any]:
    """Compiles a cell, then checks and times it when it is its turn on the GPU."""
    few = cell.rows < 256
    count, trips = (6, 32) if few else (3, 2)
    key = jax.random.key(0)
    if cell.product is library:
        _cusparselt.register()
    x = jax.ShapeDtypeStruct((cell.rows, SIDE), jnp.bfloat16)
    sparse = jax.jit(cell.product)
    made = jax.jit(lambda key: (cell.prepare(w := cell.make(key)), cell.full(w)))
    w, full = jax.eval_shape(made, key)
    one, make = _compiled(sparse, x, w), _compiled(made, key)
    run = _compiled(loop(sparse, count, trips), x, (w,) * count)
    with turn():
        dense_one = _compiled(jax.jit(cell.dense), x, full)
        dense_run = _compiled(loop(cell.dense, count, trips), x, (full,) * count)
        x = jax.random.normal(jax.random.key(9), x.shape, x.dtype)
        ws, fulls = zip(*(make(jax.random.key(i)) for i in range(count)))
        error = _error(one(x, ws[0]), dense_one(x, fulls[0]))
        calls = {"sparse": partial(run, x, ws), "dense": partial(dense_run, x, fulls)}
        best = {k: v / count / trips for k, v in sj.kernels.measure(calls, 5, 0.03).items()}
    return {"error": error, **best}


def loop(product: Callable[..., Any], count: int, trips: int) -> Callable[..., Any]:
    """Products with the weights in turn, none of which can be left out or shared."""

    def body(_, carry):
        x, ys, ws = carry
        ys = list(ys)
        for i in range(count):
            ys[i] = product(x, ws[i])
            x, ys, ws = jax.lax.optimization_barrier((x, ys, ws))
        return x, tuple(ys), ws

    @jax.jit
    def run(x, ws):
        y = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(product, x, ws[0]))
        return jax.lax.fori_loop(0, trips, body, (x, (y,) * count, ws))[1]

    return run


def _compiled(f: Any, *shapes: Any) -> Any:
    return f.lower(*shapes).compile()


@jax.jit
def _error(got: Any, want: Any) -> Any:
    """The largest relative error of the results that have the same shape."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want))
    pairs = [[a.astype(jnp.float32).ravel() for a in p] for p in pairs if p[0].shape == p[1].shape]
    errors = [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in pairs]
    return jnp.stack(errors).max()


def take_cells(folder: pathlib.Path) -> None:
    """Takes one cell after the other that no other process has taken."""

    @contextlib.contextmanager
    def turn():
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "holder").write_text(f"{os.getpid()} {time.time()}")
            yield
            (folder / "holder").write_text("")

    for number, cell in enumerate(cells()):
        with contextlib.suppress(FileExistsError):
            (folder / f"{number}.taken").mkdir()
            try:
                found = timed(cell, turn)
            except Exception as error:  # told in the table
                found = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
            found = {k: v if isinstance(v, str) else float(v) for k, v in found.items()}
            (folder / f"{number}.json").write_text(json.dumps(found))
            jax.clear_caches()


def results(seconds: float) -> dict[int, dict[str, Any]]:
    """Of all cells by number, from several processes; one that holds the GPU too long is ended."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)

        def start() -> Any:
            return subprocess.Popen([*AGAIN, "--work", name], cwd=ROOT)

        workers = [start() for _ in range(WORKERS)]
        while time.monotonic() < end and any(w.poll() is None for w in workers):
            time.sleep(1)
            holder = folder / "holder"
            held = holder.read_text().split() if holder.exists() else []
            if held and time.time() - float(held[1]) > PATIENCE:
                os.kill(int(held[0]), signal.SIGKILL)
                holder.write_text("")
                workers.append(start())
        for worker in workers:
            worker.kill()
        files = glob.glob(f"{name}/*.json")
        return {int(pathlib.Path(f).stem): json.loads(pathlib.Path(f).read_text()) for f in files}


def tables(found: dict[int, dict[str, Any]]) -> list[Table]:
    """Ratios by title, row and column, with the goals in brackets."""
    shown: dict[str, dict[str, dict[str, str]]] = {}
    for number, cell in enumerate(cells()):
        row = shown.setdefault(cell.table, {}).setdefault(cell.row, {})
        row[cell.column] = _shown(found.get(number, {"failed": "no result"}), cell.goal)
    made = []
    for title, rows in shown.items():
        columns = list(dict.fromkeys(c for row in rows.values() for c in row))
        table = Table(title=f"{title}, bfloat16: over cuBLAS (goal)")
        for column in ("", *columns):
            table.add_column(column, justify="right")
        for name, row in rows.items():
            table.add_row(name, *(row.get(c, "") for c in columns))
        made.append(table)
    return made


def _shown(found: dict[str, Any], goal: float | None) -> str:
    if "failed" in found:
        return found["failed"]
    if not found["error"] < 1e-2:
        return f"WRONG by {found['error']:.1e}"
    ratio = f"{found['dense'] / found['sparse']:.2f}, {1e6 * found['sparse']:.0f} us"
    return f"{ratio} ({goal})" if goal else ratio


def compiled() -> Table:
    """Registers, spills and shared memory of what the compiler makes for an H200."""
    table = Table(
        title="Compiled ahead of time for an H200",
        caption="Spills are bytes; shared memory is KiB of 227. Times are in hopper.md.",
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
        kernels = _gpu_block if isinstance(w, sj.formats.BlockArray) else _gpu_nm
        return kernels.product(x, w, None, how)

    for block in (128, 64, 32, 16):
        for rows in (4096, 16):
            case = Case("", (1,), 2048, 2048, block=(block, block), density=0.25)
            w = case.make(jnp.bfloat16)[1]
            yield f"blocks of {block}, {rows} rows", forward, rows, w
            if rows > 16:
                yield (
                    f"blocks of {block}, transposed",
                    lambda x, w: _gpu_block.transposed(x, w, how),
                    rows,
                    w,
                )
            if rows > 16 and block >= 64:
                yield (
                    f"blocks of {block}, sampled",
                    lambda x, w: _gpu_block.sampled(x, x, w, how),
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


def main(
    quick: bool = False, compile: bool = False, seconds: float = 240.0, work: str = ""
) -> None:
    """What is left after `seconds` waits; `work` is the folder of a process among several."""
    if compile:
        os.environ |= {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_PTXAS": "1"}
        save("hopper-compiled", compiled(), quick=quick)
    elif work:
        take_cells(pathlib.Path(work))
    elif jax.default_backend() == "gpu":
        seconds = min(seconds, 60.0) if quick else seconds
        save("hopper", *tables(results(seconds)), quick=quick)
    else:
        print("hopper: no GPU here; `python -m benchmarks hopper --compile` compiles for one.")
