"""Sparse attention without training: six methods, and the accounting that compares them."""

from ._blocks import BlockTopK
from ._density import computed_density, pair_density
from ._flops import DecoderFlops, decoder_flops
from ._iso_flops import IsoFlopsRow, isoflops, pareto_front
from ._law import ScalingLaw, fit_scaling_law
from ._method import SparseAttention, TokenCache
from ._quest import Quest, QuestCache
from ._snapkv import AdaSnapKV, SnapKV
from ._stripes import FlexPrefill, Stripes, VerticalSlash
from ._tolerance import Tolerance, tolerable_sparsity

__all__ = [
    "AdaSnapKV",
    "BlockTopK",
    "DecoderFlops",
    "FlexPrefill",
    "IsoFlopsRow",
    "Quest",
    "QuestCache",
    "ScalingLaw",
    "SnapKV",
    "SparseAttention",
    "Stripes",
    "TokenCache",
    "Tolerance",
    "VerticalSlash",
    "computed_density",
    "decoder_flops",
    "fit_scaling_law",
    "isoflops",
    "pair_density",
    "pareto_front",
    "tolerable_sparsity",
]
