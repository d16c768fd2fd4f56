"""Products with compressed matrices: one public function per operation, several implementations."""

from .matmul import matmul as matmul

__all__ = ["matmul"]
