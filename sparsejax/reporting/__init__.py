"""What was achieved: reports, advice, FLOPs, bytes, pictures."""

from ._advise import Advice, advice_markdown, advise
from ._bytes import bytes_of
from ._findings import FINDINGS, Finding
from ._fit import Fit, pattern
from ._flops import Flops, LeafFlops, flops, training_flops
from ._history import Taxonomy, taxonomy
from ._plot import plot_masks, plot_reliability, plot_sparsity, plot_training
from ._report import LeafReport, Report, report

__all__ = [
    "FINDINGS",
    "Advice",
    "Finding",
    "Fit",
    "Flops",
    "LeafFlops",
    "LeafReport",
    "Report",
    "Taxonomy",
    "advice_markdown",
    "advise",
    "bytes_of",
    "flops",
    "pattern",
    "plot_masks",
    "plot_reliability",
    "plot_sparsity",
    "plot_training",
    "report",
    "taxonomy",
    "training_flops",
]
