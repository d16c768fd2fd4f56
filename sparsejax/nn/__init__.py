"""Sparse layers, taps, compression and surgery for Flax NNX, Linen and Equinox models."""

from . import surgery
from ._compress import compress
from ._grams import input_grams
from ._linear import SparseKernel, SparseLinear
from ._linear_layer import LinearLayer, linear_layer
from ._linen import linen_compressed
from ._recalibrate import recalibrate
from ._save import load, save
from ._taps import observe, record, replace
from ._threshold import learned_threshold

__all__ = [
    "LinearLayer",
    "SparseKernel",
    "SparseLinear",
    "compress",
    "input_grams",
    "learned_threshold",
    "linear_layer",
    "linen_compressed",
    "load",
    "observe",
    "recalibrate",
    "record",
    "replace",
    "save",
    "surgery",
]
