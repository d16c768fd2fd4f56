"""Reports as HTML: a fragment for notebooks, a page for files."""

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

from ._render import COLUMNS, NUMBERS, change, rows, summary, total_row

# Only transparent greys and two signal colours: readable on light and dark pages.
_STYLE = """
.sj-report { color: inherit; max-width: 72rem;
  font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.sj-report h3 { font-size: 15px; font-weight: 650; margin: .2rem 0 .5rem; }
.sj-report .big { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 .8rem; }
.sj-report .big div { border: 1px solid rgba(128,128,128,.3); border-radius: 8px;
  padding: .45rem .8rem; min-width: 7.5rem; }
.sj-report .big b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; }
.sj-report .big span { opacity: .7; font-size: 12px; }
.sj-report .scroll { overflow-x: auto; }
.sj-report table { border-collapse: collapse; width: 100%; margin: 0;
  font-variant-numeric: tabular-nums; }
.sj-report th { text-align: left; font-weight: 600; opacity: .7; white-space: nowrap;
  border-bottom: 1px solid rgba(128,128,128,.5); padding: .3rem .6rem; }
.sj-report td { text-align: left; white-space: nowrap; padding: .28rem .6rem;
  border-bottom: 1px solid rgba(128,128,128,.16); }
.sj-report td.n, .sj-report th.n { text-align: right; }
.sj-report td.leaf { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.sj-report tr.total td { font-weight: 650; border-bottom: 0;
  border-top: 1px solid rgba(128,128,128,.5); }
.sj-report .bar { display: inline-block; vertical-align: middle; width: 3.5rem; height: .55rem;
  border-radius: 3px; margin-right: .5rem; overflow: hidden; background: rgba(128,128,128,.18); }
.sj-report .bar i { display: block; height: 100%; background: #2a78b5; }
.sj-report ul { list-style: none; margin: .7rem 0 0; padding: 0; }
.sj-report li { margin: .15rem 0; }
.sj-report .code { display: inline-block; min-width: 1.7rem; text-align: center; color: #fff;
  border-radius: 4px; padding: 0 .35rem; margin-right: .5rem; font-weight: 650;
  font-size: 11.5px; }
.sj-report .error { background: #c0392b; }
.sj-report .warning { background: #b9770e; }
.sj-report .note { opacity: .75; }
"""


def html_table(report: Any, title: str = "Sparsity report") -> str:
    """The report as a self-contained HTML fragment."""
    heads = "".join(_cell("th", name, name) for name in COLUMNS)
    body = "".join(f"<tr>{_cells(cells)}</tr>" for cells in rows(report))
    total = f'<tr class="total">{_cells(total_row(report))}</tr>'
    notes = "".join(f'<li class="note">{html.escape(line)}</li>' for line in summary(report))
    found = "".join(_finding(f) for f in report.findings)
    return (
        f'<div class="sj-report"><style>{_STYLE}</style><h3>{html.escape(title)}</h3>'
        f'<div class="big">{_headline(report)}</div>'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}{total}</tbody></table></div>"
        f"<ul>{notes}</ul><ul>{found}</ul></div>"
    )


def html_page(reports: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """Reports by title, and figures by caption inside, as a standalone page."""
    pictures = "".join(_picture(caption, figure) for caption, figure in figures.items())
    tables = "".join(html_table(report, title) for title, report in reports.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Sparsity report</title>'
        "<style>:root { color-scheme: light dark } body { margin: 2rem auto; padding: 0 1rem; "
        "max-width: 72rem } .sj-report { margin-bottom: 2.5rem } figure { margin: 0 0 2rem } "
        "figure img { max-width: 100%; background: white }</style></head>"
        f"<body>{pictures}{tables}</body></html>\n"
    )


def _picture(caption: str, figure: Any) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    data, text = base64.b64encode(out.getvalue()).decode(), html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _headline(report: Any) -> str:
    big = [
        (f"{report.sparsity:.2%}", "sparsity, prunable"),
        (f"{report.total_sparsity:.2%}", "sparsity, all parameters"),
        (change(report.flops_dense, report.flops_sparse), "forward FLOPs"),
        (change(report.bytes_dense, report.bytes_sparse), "bytes"),
    ]
    return "".join(
        f"<div><b>{html.escape(value) or '&ndash;'}</b><span>{name}</span></div>"
        for value, name in big
    )


def _cells(cells: tuple[str, ...]) -> str:
    parts = []
    for name, value in zip(COLUMNS, cells):
        shown = html.escape(value)
        if name == "sparsity":
            share = min(max(float(value), 0.0), 1.0)
            shown = f'<span class="bar"><i style="width:{share:.0%}"></i></span>{shown}'
        parts.append(_cell("td", name, shown))
    return "".join(parts)


def _cell(tag: str, column: str, shown: str) -> str:
    kind = "n" if column in NUMBERS else "leaf" if column == "leaf" else ""
    return f'<{tag} class="{kind}">{shown}</{tag}>'


def _finding(finding: Any) -> str:
    where = f"<b>{html.escape(finding.path)}</b>: " if finding.path else ""
    code = f'<span class="code {finding.level}">{finding.code}</span>'
    return f"<li>{code}{where}{html.escape(finding.text)}</li>"
