"""Sparse unmixing of spectral images."""

from ._endmembers import channel_noise, clean_channels, fcls, pure_pixels, spa, vca
from ._metrics import UnmixingErrors, hoyer_sparsity, spectral_angle, unmixing_errors
from ._unmix import Unmixing, irls_weights, learn_guidance, spatial_guidance, unmix

__all__ = [
    "Unmixing",
    "UnmixingErrors",
    "channel_noise",
    "clean_channels",
    "fcls",
    "hoyer_sparsity",
    "irls_weights",
    "learn_guidance",
    "pure_pixels",
    "spa",
    "spatial_guidance",
    "spectral_angle",
    "unmix",
    "unmixing_errors",
    "vca",
]
