"""Metrics of sparse networks: calibration, robustness, mask topology, essential sparsity."""

from ._calibration import (
    Reliability,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
)
from ._essential import abrupt_change, essential_sparsity, knee, mask_similarity
from ._robustness import fgsm, gradient_noise, max_softmax_probability
from ._topology import exploration_rate, flip_rate, live_units, mask_change, sad

__all__ = [
    "Reliability",
    "abrupt_change",
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
    "reliability",
    "sad",
]
