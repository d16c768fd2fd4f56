"""Products with compressed matrices: one public function per operation, several implementations."""

from .matmul import explain as explain
from .matmul import matmul as matmul

__all__ = ["explain", "matmul"]
