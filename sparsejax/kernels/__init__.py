"""Products with compressed matrices: one public function per operation, several implementations."""

from ._pointwise import group_conv as group_conv
from ._pointwise import pointwise as pointwise
from .active import active_expand as active_expand
from .active import active_ffn as active_ffn
from .active import active_reduce as active_reduce
from .matmul import explain as explain
from .matmul import matmul as matmul
from .matmul import tune as tune

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
