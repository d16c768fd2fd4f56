"""Layers for Flax NNX: compressed kernels, and models seen through masks."""

from ._compress import compress as compress
from ._inputs import input_grams as input_grams
from ._linear import SparseKernel as SparseKernel
from ._linear import SparseLinear as SparseLinear
from ._slim import remove_channels as remove_channels
from ._threshold import learned_threshold as learned_threshold
from ._view import view as view

__all__ = [
    "SparseKernel",
    "SparseLinear",
    "compress",
    "input_grams",
    "learned_threshold",
    "remove_channels",
    "view",
]
