"""What the benchmarks share: interleaved timing, tables, and where results are kept."""

import datetime
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

RESULTS = pathlib.Path(__file__).parent / "results"


def measure(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 7, seconds: float = 0.05
) -> dict[str, float]:
    """Best seconds per call of each candidate, in interleaved rounds.

    The best, not the mean: what else the machine does only ever adds time. Interleaved, so that a
    slow minute hits all candidates.
    """
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())  # compile
        start = time.perf_counter()
        jax.block_until_ready(call())
        repeats[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-9)))
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                out = call()
            jax.block_until_ready(out)
            best[name] = min(best[name], (time.perf_counter() - start) / repeats[name])
    return best


def table_of(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = ""
) -> Table:
    """A table; a last boolean in a row says whether it won, losing rows are marked."""
    table = Table(title=title, caption=caption)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        *cells, won = row if isinstance(row[-1], bool) else (*row, True)
        table.add_row(*map(str, cells), style=None if won else "red")
        if not won:
            table.columns[0]._cells[-1] = f"{cells[0]} (below the goal)"
    return table


def save(name: str, *tables: Table) -> None:
    """Prints the tables and keeps them as benchmarks/results/NAME.md."""
    console = Console(width=110)
    for table in tables:
        console.print(table)
    device = jax.devices()[0]
    lines = [
        f"Measured on {datetime.date.today()} with JAX {jax.__version__} on "
        f"{device.platform} ({device.device_kind}).",
        "",
    ]
    for table in tables:
        lines += [f"## {table.title}", ""] + _markdown(table) + [""]
        if table.caption:
            lines += [str(table.caption), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))


def _markdown(table: Table) -> list[str]:
    cells = [list(column.cells) for column in table.columns]
    header = [str(column.header) for column in table.columns]
    rows = [[str(c) for c in row] for row in zip(*cells)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
