"""Layers for Flax NNX: compressed kernels, and models seen through masks."""

from . import surgery
from ._compress import compress
from ._grams import input_grams
from ._linear import SparseKernel, SparseLinear
from ._threshold import learned_threshold
from ._view import view

__all__ = [
    "SparseKernel",
    "SparseLinear",
    "compress",
    "input_grams",
    "learned_threshold",
    "surgery",
    "view",
]
