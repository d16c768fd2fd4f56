"""Layers for Flax NNX: compressed kernels, and models seen through masks."""

from ._cells import DartsCell as DartsCell
from ._cells import MixedOp as MixedOp
from ._cells import darts_ops as darts_ops
from ._cells import genotype as genotype
from ._compress import compress as compress
from ._inputs import input_grams as input_grams
from ._iso_flop import Doped as Doped
from ._iso_flop import Factorized as Factorized
from ._iso_flop import Parallel as Parallel
from ._iso_flop import doped_rank as doped_rank
from ._iso_flop import factorized_rank as factorized_rank
from ._iso_flop import log2_masks as log2_masks
from ._iso_flop import match_flops as match_flops
from ._iso_flop import parallel_branches as parallel_branches
from ._iso_flop import wide_width as wide_width
from ._linear import SparseKernel as SparseKernel
from ._linear import SparseLinear as SparseLinear
from ._scored import Score as Score
from ._scored import Scored as Scored
from ._slim import remove_channels as remove_channels
from ._threshold import learned_threshold as learned_threshold
from ._view import view as view

__all__ = [
    "DartsCell",
    "Doped",
    "Factorized",
    "MixedOp",
    "Parallel",
    "Score",
    "Scored",
    "SparseKernel",
    "SparseLinear",
    "compress",
    "darts_ops",
    "doped_rank",
    "factorized_rank",
    "genotype",
    "input_grams",
    "learned_threshold",
    "log2_masks",
    "match_flops",
    "parallel_branches",
    "remove_channels",
    "view",
    "wide_width",
]
