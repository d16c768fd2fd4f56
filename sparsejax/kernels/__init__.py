"""Products with compressed matrices: one public function per operation, several implementations."""

from ._pointwise import group_conv, pointwise
from .active import active_expand, active_ffn, active_reduce
from .matmul import explain, matmul, tune

__all__ = [
    "active_expand",
    "active_ffn",
    "active_reduce",
    "explain",
    "group_conv",
    "matmul",
    "pointwise",
    "tune",
]
