"""What the benchmarks share: tables, and where results are kept."""

import datetime
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

RESULTS = pathlib.Path(__file__).parent / "results"


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


def save(
    name: str, *tables: Table, quick: bool = False, seed: int | Sequence[int] | None = None
) -> None:
    """Prints the tables and, unless the run was quick, keeps them as benchmarks/results/NAME.md.

    The first line of the file says when, at which commit, with what and from which seeds.
    """
    console = Console(width=110)
    for table in tables:
        console.print(table)
    if quick:
        console.print("Quick, or a part only: nothing is kept in benchmarks/results.")
        return
    lines = [_first_line(seed), ""]
    for table in tables:
        lines += [f"## {table.title}", ""] + _markdown(table) + [""]
        if table.caption:
            lines += [str(table.caption), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))


def _first_line(seed: int | Sequence[int] | None) -> str:
    device = jax.devices()[0]
    seeds = ""
    if isinstance(seed, int):
        seeds = f", seed {seed}"
    elif seed is not None:
        seeds = f", seeds {', '.join(map(str, seed))}"
    return (
        f"Measured on {datetime.date.today()} at commit {_commit()} with JAX {jax.__version__} and "
        f"Python {platform.python_version()} on {device.platform} ({device.device_kind}){seeds}."
    )


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=RESULTS.parent, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _markdown(table: Table) -> list[str]:
    cells = [list(column.cells) for column in table.columns]
    header = [str(column.header) for column in table.columns]
    rows = [[str(c) for c in row] for row in zip(*cells)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
