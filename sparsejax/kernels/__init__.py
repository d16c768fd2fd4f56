"""Products with compressed matrices: one function per operation, several implementations."""

from ._pointwise import group_conv, pointwise
from ._table import Implementation, implement, lowering_for, names
from ._tuning import measure
from .active import active_expand, active_ffn, active_reduce, gated_layer, gated_mlp, gated_products
from .attention import (
    KeyBlocks,
    block_sparse_attention,
    paged_attention,
)
from .matmul import explain, matmul, tune

__all__ = [
    "Implementation",
    "KeyBlocks",
    "active_expand",
    "active_ffn",
    "active_reduce",
    "block_sparse_attention",
    "explain",
    "gated_layer",
    "gated_mlp",
    "gated_products",
    "group_conv",
    "implement",
    "lowering_for",
    "matmul",
    "measure",
    "names",
    "paged_attention",
    "pointwise",
    "tune",
]
