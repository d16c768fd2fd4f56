"""Sparse learning for JAX: penalties, masks, sparse training, compressed formats and kernels."""

from importlib.metadata import version as _version

from . import (
    formats as formats,
    kernels as kernels,
    masks as masks,
    metrics as metrics,
    nn as nn,
    optim as optim,
    prox as prox,
)
from .formats import compress as compress
from .kernels import matmul as matmul
from .masks import (
    NM as NM,
    Block as Block,
    Channel as Channel,
    Groups as Groups,
    Unstructured as Unstructured,
    plan as plan,
)
from .metrics import advise as advise, report as report
from .optim import get_masks as get_masks

__version__ = _version("sparsejax")

__all__ = [
    "NM",
    "Block",
    "Channel",
    "Groups",
    "Unstructured",
    "advise",
    "compress",
    "formats",
    "get_masks",
    "kernels",
    "masks",
    "matmul",
    "metrics",
    "nn",
    "optim",
    "plan",
    "prox",
    "report",
]
