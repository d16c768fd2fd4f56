"""Unlearnable examples: images with small noise on which networks do not learn to generalise."""

from ._generate import Unlearnable, unlearnable_noise
from ._report import PerturbationReport, perturbation_report, release
from ._step import masked_step, top_pixel_mask

__all__ = [
    "PerturbationReport",
    "Unlearnable",
    "masked_step",
    "perturbation_report",
    "release",
    "top_pixel_mask",
    "unlearnable_noise",
]
