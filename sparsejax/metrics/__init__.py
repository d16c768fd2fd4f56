"""What was achieved: reports, FLOPs, bytes, topology, calibration, plots, advice."""

from ._calibration import (
    Reliability,
    brier_score,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
    reliability,
)
from ._essential import abrupt_change, essential_sparsity, knee, mask_similarity, near_zero_count
from ._robustness import auroc, fgsm, gradient_noise, max_softmax_probability
from ._topology import Divergence, exploration_rate, flip_rate, live_units, mask_change, sad
from ._updates import (
    UpdateOverlap,
    UpdatePartition,
    UpdateSparsity,
    update_overlap,
    update_partition,
    update_rank,
    update_sparsity,
)

__all__ = [
    "Divergence",
    "Reliability",
    "UpdateOverlap",
    "UpdatePartition",
    "UpdateSparsity",
    "abrupt_change",
    "auroc",
    "brier_score",
    "essential_sparsity",
    "expected_calibration_error",
    "exploration_rate",
    "fgsm",
    "flip_rate",
    "gradient_noise",
    "knee",
    "live_units",
    "mask_change",
    "mask_similarity",
    "max_softmax_probability",
    "maximum_calibration_error",
    "near_zero_count",
    "negative_log_likelihood",
    "reliability",
    "sad",
    "update_overlap",
    "update_partition",
    "update_rank",
    "update_sparsity",
]
