"""Sparse learning for JAX: penalties, masks, sparse training, compressed formats and kernels."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError, version as _version

from . import (
    contrib,
    formats,
    kernels,
    masks,
    metrics,
    models,
    nn,
    optim,
    patterns,
    prox,
    recipes,
    reporting,
    select,
    solve,
)
from .formats import compress
from .kernels import matmul
from .masks import plan
from .optim import get_masks
from .patterns import NM, Block, Channel, Groups, Unstructured
from .reporting import advise, report

try:
    __version__ = _version("sparsejax")
except _PackageNotFoundError:  # from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "NM",
    "Block",
    "Channel",
    "Groups",
    "Unstructured",
    "advise",
    "compress",
    "contrib",
    "formats",
    "get_masks",
    "kernels",
    "masks",
    "matmul",
    "metrics",
    "models",
    "nn",
    "optim",
    "patterns",
    "plan",
    "prox",
    "recipes",
    "report",
    "reporting",
    "select",
    "solve",
]
