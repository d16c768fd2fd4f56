"""What was achieved: reports, FLOPs, bytes, topology, calibration, plots, advice."""

from ._advise import Advice as Advice
from ._advise import advice_markdown as advice_markdown
from ._advise import advise as advise
from ._audit import privacy_audit as privacy_audit
from ._bytes import bytes_of as bytes_of
from ._calibration import Reliability as Reliability
from ._calibration import brier_score as brier_score
from ._calibration import expected_calibration_error as expected_calibration_error
from ._calibration import maximum_calibration_error as maximum_calibration_error
from ._calibration import negative_log_likelihood as negative_log_likelihood
from ._calibration import reliability as reliability
from ._coding import active_units as active_units
from ._coding import circular_variance as circular_variance
from ._coding import error_at_activity as error_at_activity
from ._coding import orientation_tuning as orientation_tuning
from ._design import design_value as design_value
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
from ._graph import EdgeScores as EdgeScores
from ._graph import cpdag as cpdag
from ._graph import edge_scores as edge_scores
from ._graph import shd as shd
from ._graph import shd_cpdag as shd_cpdag
from ._graph import sid as sid
from ._history import Taxonomy as Taxonomy
from ._history import taxonomy as taxonomy
from ._paired import PairedTest as PairedTest
from ._paired import paired_t_test as paired_t_test
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
from ._spectra import UnmixingErrors as UnmixingErrors
from ._spectra import hoyer_sparsity as hoyer_sparsity
from ._spectra import spectral_angle as spectral_angle
from ._spectra import unmixing_errors as unmixing_errors
from ._topology import Divergence as Divergence
from ._topology import exploration_rate as exploration_rate
from ._topology import flip_rate as flip_rate
from ._topology import live_units as live_units
from ._topology import mask_change as mask_change
from ._topology import sad as sad
from ._unlearning import UnlearningReport as UnlearningReport
from ._unlearning import membership_attack as membership_attack
from ._unlearning import unlearning_report as unlearning_report
from ._updates import UpdateOverlap as UpdateOverlap
from ._updates import UpdatePartition as UpdatePartition
from ._updates import UpdateSparsity as UpdateSparsity
from ._updates import update_overlap as update_overlap
from ._updates import update_partition as update_partition
from ._updates import update_rank as update_rank
from ._updates import update_sparsity as update_sparsity

__all__ = [
    "FINDINGS",
    "Advice",
    "Divergence",
    "EdgeScores",
    "Finding",
    "Fit",
    "Flops",
    "LeafFlops",
    "LeafReport",
    "PairedTest",
    "Reliability",
    "Report",
    "Taxonomy",
    "UnlearningReport",
    "UnmixingErrors",
    "UpdateOverlap",
    "UpdatePartition",
    "UpdateSparsity",
    "abrupt_change",
    "active_units",
    "advice_markdown",
    "advise",
    "auroc",
    "brier_score",
    "bytes_of",
    "circular_variance",
    "cpdag",
    "design_value",
    "edge_scores",
    "error_at_activity",
    "essential_sparsity",
    "expected_calibration_error",
    "exploration_rate",
    "fgsm",
    "flip_rate",
    "flops",
    "gradient_noise",
    "hoyer_sparsity",
    "knee",
    "live_units",
    "mask_change",
    "mask_similarity",
    "max_softmax_probability",
    "maximum_calibration_error",
    "membership_attack",
    "near_zero_count",
    "negative_log_likelihood",
    "orientation_tuning",
    "paired_t_test",
    "pattern",
    "plot_masks",
    "plot_reliability",
    "plot_sparsity",
    "plot_training",
    "privacy_audit",
    "reliability",
    "report",
    "sad",
    "shd",
    "shd_cpdag",
    "sid",
    "spectral_angle",
    "taxonomy",
    "training_flops",
    "unlearning_report",
    "unmixing_errors",
    "update_overlap",
    "update_partition",
    "update_rank",
    "update_sparsity",
]
