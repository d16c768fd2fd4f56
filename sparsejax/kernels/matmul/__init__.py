"""The product of a dense and a compressed matrix."""

from . import _implementations  # noqa: F401 - fills the table
from ._api import explain, matmul
from ._tune import tune

__all__ = [
    "explain",
    "matmul",
    "tune",
]
