"""Sparse learning for JAX: penalties, masks, sparse training, compressed formats and kernels."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError, version as _version
from typing import TYPE_CHECKING

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
    sae,
    select,
    solve,
)
from ._tree import register
from .kernels import matmul
from .masks import plan
from .nn import compress, load, save
from .optim import get_masks
from .patterns import NM, Block, Channel, Groups, Unstructured
from .reporting import advise, report

try:
    __version__ = _version("sparsejax")
except _PackageNotFoundError:  # from a source tree that is not installed
    __version__ = "0+unknown"

# For type checkers only: at run time `help(sparsejax)` would print every function in full.
if TYPE_CHECKING:
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
        "load",
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
        "register",
        "report",
        "reporting",
        "sae",
        "save",
        "select",
        "solve",
    ]

del TYPE_CHECKING


def __dir__() -> list[str]:
    return [name for name in globals() if not name.startswith("_")] + ["__version__"]
