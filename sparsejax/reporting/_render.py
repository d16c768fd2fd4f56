"""Reports as table cells, sentences and terminal tables."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

_WIDTH = 140
_ALIKE = 4  # findings with one code in a printed report
_ROWS = 40  # leaves in a printed report
COLUMNS = (
    "leaf",
    "shape",
    "kept",
    "sparsity",
    "zeros",
    "claimed",
    "fits",
    "FLOPs",
    "bytes",
)
NUMBERS = {"kept", "sparsity", "zeros", "FLOPs", "bytes"}


def text(report: Any) -> str:
    """The report as plain text."""
    out = io.StringIO()
    Console(file=out, width=_WIDTH, force_jupyter=False, color_system=None).print(
        rich_table(report)
    )
    lines = out.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def rich_table(report: Any) -> Group:
    """The table, the totals and the findings."""
    table = Table(title="sparsity report", title_style="bold", header_style="bold")
    for column in COLUMNS:
        justify = "right" if column in NUMBERS else "left"
        # Long paths wrap; numbers are never truncated.
        table.add_column(column, justify=justify, no_wrap=column != "leaf", overflow="fold")
    cells = rows(report)
    for row in cells[:_ROWS]:
        table.add_row(*row)
    if (more := len(cells) - _ROWS) > 0:
        table.add_row(f"... {more} more, in report.leaves and report.save")
    table.add_section()
    table.add_row(*total_row(report), style="bold")
    lines = [Text(line) for line in summary(report)]
    styles = {"error": "bold red", "warning": "yellow"}
    found = [Text(line, style=styles[level]) for level, line in _findings(report.findings)]
    return Group(table, *lines, *found)


def _findings(findings: Any) -> Iterator[tuple[str, str]]:
    """Level and text; of many with one code the first ones."""
    for code, group in itertools.groupby(findings, key=lambda f: f.code):
        alike = list(group)
        yield from ((f.level, str(f)) for f in alike[:_ALIKE])
        if (more := len(alike) - _ALIKE) > 0:
            yield alike[0].level, f"{code} ... {more} more, in report.findings"


def rows(report: Any) -> list[tuple[str, ...]]:
    """A row of text for each leaf that is prunable or pruned, and one for all others."""
    shown = [x for x in report.leaves if x.prunable or x.kept < x.size]
    cells = [
        (
            x.path,
            "x".join(map(str, x.shape)),
            f"{x.kept:,}",
            f"{x.sparsity:.4f}",
            "" if x.value_zeros is None else f"{x.value_zeros:,}",
            x.claimed or "",
            _fits(x),
            change(x.flops_dense, x.flops_sparse),
            f"{short(x.storage[1])} {x.storage[0]}",
        )
        for x in shown
    ]
    others = [x for x in report.leaves if not (x.prunable or x.kept < x.size)]
    if others:
        size = sum(x.size for x in others)
        work = sum(x.flops_dense for x in others)
        used = sum(x.bytes["dense"] for x in others)
        name = f"{len(others)} other{'s' if len(others) > 1 else ''}"
        flops = short(work) if work else ""
        cells.append(
            (name, "", f"{size:,}", "0.0000", "", "", "dense", flops, f"{short(used)} dense")
        )
    return cells


def total_row(report: Any) -> tuple[str, ...]:
    """The row of all parameters together."""
    work = change(report.flops_dense, report.flops_sparse)
    used = short(report.bytes_sparse)
    kept, total = f"{report.kept:,}", f"{report.total_sparsity:.4f}"
    return ("all parameters", "", kept, total, "", "", "", work, used)


def summary(report: Any) -> list[str]:
    """Sentences to accompany the headline."""
    asked = "" if report.asked is None else f" (asked {report.asked:.4f})"
    lines = [
        f"sparsity {report.sparsity:.4f}{asked} of {report.prunable_size:,} prunable entries, "
        f"{report.total_sparsity:.4f} of all {report.size:,}; counted: {report.source}"
    ]
    if report.dense_leaves:
        names = report.dense_leaves
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append(f"dense: {', '.join(names[:4])}{more}")
    lines.append(_flops_line(report))
    saved = report.bytes_dense / max(report.bytes_sparse, 1)
    state = report.optimizer_bytes
    lines.append(
        f"bytes: {short(report.bytes_dense)} dense, {short(report.bytes_sparse)} in the formats "
        f"named ({saved:.2f}x)" + ("" if state is None else f"; optimizer state {short(state)}")
    )
    if report.taxonomy is not None:
        t = report.taxonomy
        lines.append(
            f"training: {t}; explored R_s {t.explored:.3f}, {t.flips:.2g} flips per weight and "
            "record"
        )
    if report.training_cost is not None:
        lines.append(f"training FLOPs: {report.training_cost:.4f} of dense training, theoretical")
    return lines


def _flops_line(report: Any) -> str:
    where = "of the example" if report.traced else "per position"
    line = f"forward FLOPs {where}: {short(report.flops_dense)} dense"
    if report.flops_sparse:
        ratio = report.flops_dense / report.flops_sparse
        line += f", {short(report.flops_sparse)} sparse ({ratio:.2f}x in theory; speed is measured)"
    elif report.flops_dense:
        line += ", 0 sparse: every planned weight is zero"
    if report.activation_flops:
        line += f"; between activations {short(report.activation_flops)}"
    if report.uncounted:
        line += f"; not counted: {', '.join(report.uncounted)} (pass positions=)"
    if report.compiled_flops is not None:
        line += f"; compiled {short(report.compiled_flops)}"
    return line


def _fits(leaf: Any) -> str:
    if leaf.fits is None:
        return ""
    # A fit that random masks reach too is not shown.
    accident = leaf.chance is not None and leaf.chance > 1e-3
    return "unstructured" if accident and leaf.fits != "dense" else leaf.fits


def change(dense: int, sparse: int) -> str:
    """`dense → sparse`, once if they are equal; empty if there is nothing."""
    if not dense:
        return ""
    return short(dense) if dense == sparse else f"{short(dense)} → {short(sparse)}"


def short(n: int | float) -> str:
    """1234567 -> 1.23M."""
    for power, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= power:
            return f"{n / power:.3g}{unit}" if n < 999.5 * power else f"{n / power:.0f}{unit}"
    return f"{n:.3g}"
