"""Products with compressed matrices on a CPU, as ratios over dense and SciPy in the same run.

    python benchmarks/matmul.py            every block size and the N:M table, about 10 minutes
    python benchmarks/matmul.py --quick    blocks of 64 only, nothing is written

A ratio above 1 means that `sj.kernels.matmul` is faster. The peers are `x @ W`; the best dense
layout of the same run (that, or W stored transposed and multiplied from either side); and SciPy's
`csr_array(W^T) @ x^T`. The best of several interleaved rounds counts on every side.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from _timing import measure, save
from rich.console import Console
from rich.progress import track
from rich.table import Table

import sparsejax as sj
from sparsejax.kernels.matmul._cases import (
    DENSITIES,
    ROWS,
    Case,
    block_benchmarks,
    nm_benchmarks,
)

PEERS = "x @ W / best dense layout / SciPy CSR"
# What we set out to reach with blocks of 64: rows -> density -> ratio over each of the peers.
GOALS = {
    1: {0.5: (2, 1.6, 2), 0.25: (3.5, 2.8, 2), 0.1: (5, 4, 2), 0.05: (7, 5.5, 2)},
    16: {0.5: (2.5, 0.7, 4), 0.25: (5, 1.2, 4), 0.1: (10, 2.2, 4), 0.05: (15, 3.3, 4)},
    128: {0.5: (1.4, 1.1, 2.5), 0.25: (2.8, 2, 2.5), 0.1: (5, 3.5, 2.5), 0.05: (7, 5, 2.5)},
    1024: {0.5: (1, 0.8, 2.5), 0.25: (2, 1.6, 2.5), 0.1: (4, 3, 2.5), 0.05: (6, 4.5, 2.5)},
}
Ratios = tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="blocks of 64 only")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of timing")
    options = parser.parse_args()
    blocks = (64,) if options.quick else (16, 32, 64, 128)
    measured = {
        (case.block[0], case.rows[0], case.density): compare(case, options.rounds)
        for case in track(list(block_benchmarks(blocks)), "blocks")
    }
    tables = [goal_table(measured), *(block_table(measured, b) for b in blocks)]
    if options.quick:
        console = Console(width=110)
        for table in tables:
            console.print(table)
    else:
        save("matmul-cpu", *tables, nm_table(options.rounds))


def compare(case: Case, rounds: int) -> Ratios:
    """How many times faster than each of the peers."""
    x, w = case.make()
    dense = w.todense()
    transposed = jnp.asarray(np.ascontiguousarray(np.asarray(dense).T))
    csr, columns = scipy.sparse.csr_array(np.asarray(transposed)), np.ascontiguousarray(x.T)
    calls = {
        "sparse": jitted(sj.kernels.matmul, x, w),
        "x @ W": jitted(jnp.matmul, x, dense),
        "left": jitted(lambda x, wt: (wt @ x.T).T, x, transposed),
        "right": jitted(lambda x, wt: x @ wt.T, x, transposed),
        "CSR": lambda: csr @ columns,
    }
    np.testing.assert_allclose(calls["sparse"](), calls["x @ W"](), rtol=1e-3, atol=1e-3)
    t = measure(calls, rounds, seconds=0.03)
    best = min(t["x @ W"], t["left"], t["right"])
    return tuple(peer / t["sparse"] for peer in (t["x @ W"], best, t["CSR"]))


def jitted(f: Callable[..., Any], *args: Any) -> Callable[[], jax.Array]:
    compiled = jax.jit(f)
    return lambda: compiled(*args)


def goal_table(measured: dict[tuple, Ratios]) -> Table:
    """Goal and measurement, blocks of 64."""
    table = Table(title=f"Blocks of 64, measured (goal): over {PEERS}")
    table.add_column("M")
    for d in DENSITIES:
        table.add_column(f"density {d}", justify="right")
    pairs = {(m, d): list(zip(measured[64, m, d], GOALS[m][d])) for m in ROWS for d in DENSITIES}
    for m in ROWS:
        table.add_row(str(m), *(" / ".join(beside(*p) for p in pairs[m, d]) for d in DENSITIES))
    met = [got >= goal for cells in pairs.values() for got, goal in cells]
    table.caption = f"{sum(met)} of {len(met)} goals met; ! marks a ratio below its goal"
    return table


def beside(ratio: float, goal: float) -> str:
    return f"{ratio:.2f}{'' if ratio >= goal else '!'} ({goal:g})"


def block_table(measured: dict[tuple, Ratios], block: int) -> Table:
    table = Table(title=f"Blocks of {block}x{block}, K=N=2048, float32: over {PEERS}")
    table.add_column("M")
    for d in DENSITIES:
        table.add_column(f"density {d}", justify="right")
    for m in ROWS:
        table.add_row(str(m), *(cell(measured[block, m, d]) for d in DENSITIES))
    table.caption = "LOSES marks what is slower than the peer"
    return table


def nm_table(rounds: int) -> Table:
    """Compressed on every call."""
    table = Table(title=f"N:M, K=N=2048, float32: over {PEERS}")
    table.add_column("pattern")
    rows: dict[str, list[str]] = {}
    for case in track(list(nm_benchmarks()), "N:M"):
        rows.setdefault(case.name, []).append(cell(compare(case, rounds)))
    for m in ROWS:
        table.add_column(f"M = {m}", justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    table.caption = (
        "LOSES marks what is slower than the peer. With share 1 no XLA form beats dense on a CPU: "
        "w.todense() once, outside, is 1.00 of x @ W"
    )
    return table


def cell(ratios: Ratios) -> str:
    return " / ".join(f"{r:.2f}" if r >= 1 else f"{r:.2f} LOSES" for r in ratios)


if __name__ == "__main__":
    main()
