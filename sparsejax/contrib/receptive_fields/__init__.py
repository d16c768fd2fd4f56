"""Sparse codes of natural images, and their receptive fields."""

from ._metrics import active_units, circular_variance, error_at_activity, orientation_tuning
from ._patches import sample_patches, whiten_image

__all__ = [
    "active_units",
    "circular_variance",
    "error_at_activity",
    "orientation_tuning",
    "sample_patches",
    "whiten_image",
]
