"""Products with compressed matrices: one function per operation, several implementations."""

from ._pointwise import group_conv, pointwise
from ._table import Implementation, implement, lowering_for, names
from ._tuning import measure
from .active import active_expand, active_ffn, active_reduce
from .matmul import explain, matmul, tune

__all__ = [
    "Implementation",
    "active_expand",
    "active_ffn",
    "active_reduce",
    "explain",
    "group_conv",
    "implement",
    "lowering_for",
    "matmul",
    "measure",
    "names",
    "pointwise",
    "tune",
]
