"""Reports on sparse networks: advice, FLOPs, bytes, plots."""

from ._advise import Advice, advice_markdown, advise
from ._bytes import bytes_of
from ._findings import FINDINGS, Finding
from ._fit import fit_pattern
from ._flops import flops, training_flops
from ._history import Taxonomy, taxonomy
from ._plot import plot_masks, plot_reliability, plot_sparsity, plot_tradeoff, plot_training
from ._report import Report, report, save_reports

__all__ = [
    "FINDINGS",
    "Advice",
    "Finding",
    "Report",
    "Taxonomy",
    "advice_markdown",
    "advise",
    "bytes_of",
    "fit_pattern",
    "flops",
    "plot_masks",
    "plot_reliability",
    "plot_sparsity",
    "plot_tradeoff",
    "plot_training",
    "report",
    "save_reports",
    "taxonomy",
    "training_flops",
]
