"""Products with compressed matrices on a CPU, as ratios over dense and SciPy in the same run.

    python -m benchmarks matmul [--rounds 9]   every block size and the N:M table, 15 minutes
    python -m benchmarks matmul --quick        blocks of 64 and few rows, nothing is written

Once by XLA, which runs unless something is said, and once by implementation="native", the C++ that
`sj.kernels.tune` takes where it is faster. A ratio above 1 means that the product is faster. The
peers are `x @ W`; the best dense layout of the same run (that, or W stored transposed and
multiplied from either side); and SciPy's `csr_array(W^T) @ x^T`. The best of several interleaved
rounds counts on every side.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from rich.progress import track
from rich.table import Table

import sparsejax as sj
from benchmarks._report import save
from sparsejax.kernels.matmul._cases import DENSITIES, ROWS, Case, block_benchmarks, nm_benchmarks

PEERS = "x @ W / best dense layout / SciPy CSR"
# What we set out to reach with blocks of 64: rows -> density -> ratio over each of the peers.
GOALS = {
    1: {0.5: (2, 1.6, 2), 0.25: (3.5, 2.8, 2), 0.1: (5, 4, 2), 0.05: (7, 5.5, 2)},
    16: {0.5: (2.5, 0.7, 4), 0.25: (5, 1.2, 4), 0.1: (10, 2.2, 4), 0.05: (15, 3.3, 4)},
    128: {0.5: (1.4, 1.1, 2.5), 0.25: (2.8, 2, 2.5), 0.1: (5, 3.5, 2.5), 0.05: (7, 5, 2.5)},
    1024: {0.5: (1, 0.8, 2.5), 0.25: (2, 1.6, 2.5), 0.1: (4, 3, 2.5), 0.05: (6, 4.5, 2.5)},
}
Ratios = tuple[float, ...]
IMPLEMENTATIONS = {"xla": "XLA", "native": "C++"}


def main(quick: bool = False, rounds: int = 9) -> None:
    rounds = min(rounds, 2) if quick else rounds
    blocks, rows = ((64,), (1, 128)) if quick else ((16, 32, 64, 128), ROWS)
    cases = [case for case in block_benchmarks(blocks) if case.rows[0] in rows]
    measured = {
        (case.block[0], case.rows[0], case.density): compare(case, rounds)
        for case in track(cases, "blocks")
    }
    tables = []
    for name in IMPLEMENTATIONS:
        one = {key: ratios[name] for key, ratios in measured.items()}
        tables += [goal_table(one, name, rows), *(block_table(one, name, b, rows) for b in blocks)]
    if not quick:
        tables += nm_tables(rounds)
    save("matmul-cpu", *tables, quick=quick)


def compare(case: Case, rounds: int) -> dict[str, Ratios]:
    """How many times faster than each of the peers, by implementation."""
    x, w = case.make()
    dense = w.todense()
    transposed = jnp.asarray(np.ascontiguousarray(np.asarray(dense).T))
    csr, columns = scipy.sparse.csr_array(np.asarray(transposed)), np.ascontiguousarray(x.T)
    ours = {
        name: jitted(partial(sj.kernels.matmul, implementation=name), x, w)
        for name in IMPLEMENTATIONS
    }
    peers = {
        "x @ W": jitted(jnp.matmul, x, dense),
        "left": jitted(lambda x, wt: (wt @ x.T).T, x, transposed),
        "right": jitted(lambda x, wt: x @ wt.T, x, transposed),
        "CSR": lambda: csr @ columns,
    }
    for call in ours.values():
        np.testing.assert_allclose(call(), peers["x @ W"](), rtol=1e-3, atol=1e-3)
    t = sj.kernels.measure(ours | peers, rounds, seconds=0.03)
    best = min(t["x @ W"], t["left"], t["right"])
    return {name: tuple(peer / t[name] for peer in (t["x @ W"], best, t["CSR"])) for name in ours}


def jitted(f: Callable[..., Any], *args: Any) -> Callable[[], jax.Array]:
    compiled = jax.jit(f)
    return lambda: compiled(*args)


def goal_table(measured: dict[tuple, Ratios], name: str, rows: tuple[int, ...]) -> Table:
    """Goal and measurement, blocks of 64."""
    title = f"{IMPLEMENTATIONS[name]}, blocks of 64, measured (goal): over {PEERS}"
    table = Table(title=title)
    table.add_column("M")
    for d in DENSITIES:
        table.add_column(f"density {d}", justify="right")
    pairs = {(m, d): list(zip(measured[64, m, d], GOALS[m][d])) for m in rows for d in DENSITIES}
    for m in rows:
        table.add_row(str(m), *(" / ".join(beside(*p) for p in pairs[m, d]) for d in DENSITIES))
    met = [got >= goal for cells in pairs.values() for got, goal in cells]
    table.caption = f"{sum(met)} of {len(met)} goals met; ! marks a ratio below its goal"
    return table


def beside(ratio: float, goal: float) -> str:
    return f"{ratio:.2f}{'' if ratio >= goal else '!'} ({goal:g})"


def block_table(
    measured: dict[tuple, Ratios], name: str, block: int, rows: tuple[int, ...]
) -> Table:
    what = f"{IMPLEMENTATIONS[name]}, blocks of {block}x{block}"
    table = Table(title=f"{what}, K=N=2048, float32: over {PEERS}")
    table.add_column("M")
    for d in DENSITIES:
        table.add_column(f"density {d}", justify="right")
    for m in rows:
        table.add_row(str(m), *(cell(measured[block, m, d]) for d in DENSITIES))
    table.caption = "LOSES marks what is slower than the peer"
    return table


def nm_tables(rounds: int) -> list[Table]:
    """Compressed on every call."""
    measured = {
        (case.name, case.rows[0]): compare(case, rounds)
        for case in track(list(nm_benchmarks()), "N:M")
    }
    tables = []
    for name, what in IMPLEMENTATIONS.items():
        table = Table(title=f"{what}, N:M, K=N=2048, float32: over {PEERS}")
        table.add_column("pattern")
        for m in ROWS:
            table.add_column(f"M = {m}", justify="right")
        for pattern in dict.fromkeys(key[0] for key in measured):
            table.add_row(pattern, *(cell(measured[pattern, m][name]) for m in ROWS))
        table.caption = (
            "LOSES marks what is slower than the peer; where both lose, w.todense() once, outside, "
            "is 1.00 of x @ W"
        )
        tables.append(table)
    return tables


def cell(ratios: Ratios) -> str:
    return " / ".join(f"{r:.2f}" if r >= 1 else f"{r:.2f} LOSES" for r in ratios)
