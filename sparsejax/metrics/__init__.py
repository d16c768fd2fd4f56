"""What was achieved: reports, FLOPs, bytes, topology, calibration, plots, advice."""

from ._advise import Advice as Advice
from ._advise import advice_markdown as advice_markdown
from ._advise import advise as advise
from ._bytes import bytes_of as bytes_of
from ._calibration import Reliability as Reliability
from ._calibration import brier_score as brier_score
from ._calibration import expected_calibration_error as expected_calibration_error
from ._calibration import maximum_calibration_error as maximum_calibration_error
from ._calibration import negative_log_likelihood as negative_log_likelihood
from ._calibration import reliability as reliability
from ._essential import abrupt_change as abrupt_change
from ._essential import essential_sparsity as essential_sparsity
from ._essential import knee as knee
from ._essential import mask_similarity as mask_similarity
from ._essential import near_zero_count as near_zero_count
from ._findings import FINDINGS as FINDINGS
from ._findings import Finding as Finding
from ._fit import Fit as Fit
from ._fit import pattern as pattern
from ._flops import Flops as Flops
from ._flops import LeafFlops as LeafFlops
from ._flops import flops as flops
from ._flops import training_flops as training_flops
from ._history import Taxonomy as Taxonomy
from ._history import taxonomy as taxonomy
from ._plot import plot_masks as plot_masks
from ._plot import plot_reliability as plot_reliability
from ._plot import plot_sparsity as plot_sparsity
from ._plot import plot_training as plot_training
from ._report import LeafReport as LeafReport
from ._report import Report as Report
from ._report import report as report
from ._robustness import auroc as auroc
from ._robustness import fgsm as fgsm
from ._robustness import gradient_noise as gradient_noise
from ._robustness import max_softmax_probability as max_softmax_probability
from ._topology import Divergence as Divergence
from ._topology import exploration_rate as exploration_rate
from ._topology import flip_rate as flip_rate
from ._topology import live_units as live_units
from ._topology import mask_change as mask_change
from ._topology import sad as sad

__all__ = [
    "FINDINGS",
    "Advice",
    "Divergence",
    "Finding",
    "Fit",
    "Flops",
    "LeafFlops",
    "LeafReport",
    "Reliability",
    "Report",
    "Taxonomy",
    "abrupt_change",
    "advice_markdown",
    "advise",
    "auroc",
    "brier_score",
    "bytes_of",
    "essential_sparsity",
    "expected_calibration_error",
    "exploration_rate",
    "fgsm",
    "flip_rate",
    "flops",
    "gradient_noise",
    "knee",
    "live_units",
    "mask_change",
    "mask_similarity",
    "max_softmax_probability",
    "maximum_calibration_error",
    "near_zero_count",
    "negative_log_likelihood",
    "pattern",
    "plot_masks",
    "plot_reliability",
    "plot_sparsity",
    "plot_training",
    "reliability",
    "report",
    "sad",
    "taxonomy",
    "training_flops",
]
