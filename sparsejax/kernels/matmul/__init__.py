"""The product of a dense and a compressed matrix."""

from ._api import explain, matmul
from ._tune import tune

__all__ = [
    "explain",
    "matmul",
    "tune",
]
