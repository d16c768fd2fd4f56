"""The product of a dense and a compressed matrix."""

from ._api import explain as explain
from ._api import matmul as matmul
from ._tune import tune as tune

__all__ = ["explain", "matmul", "tune"]
