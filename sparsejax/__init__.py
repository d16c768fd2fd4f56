"""Sparse learning for JAX: penalties, masks, sparse training, compressed formats and kernels."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from . import (
    formats as formats,
)
from . import (
    kernels as kernels,
)
from . import (
    masks as masks,
)
from . import (
    metrics as metrics,
)
from . import (
    models as models,
)
from . import (
    nn as nn,
)
from . import (
    optim as optim,
)
from . import (
    prox as prox,
)
from . import (
    recipes as recipes,
)
from . import (
    solve as solve,
)
from .formats import compress as compress
from .kernels import matmul as matmul
from .masks import (
    NM as NM,
)
from .masks import (
    Block as Block,
)
from .masks import (
    Channel as Channel,
)
from .masks import (
    Groups as Groups,
)
from .masks import (
    Unstructured as Unstructured,
)
from .masks import (
    plan as plan,
)
from .metrics import advise as advise
from .metrics import report as report
from .optim import get_masks as get_masks

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
    "formats",
    "get_masks",
    "kernels",
    "masks",
    "matmul",
    "metrics",
    "models",
    "nn",
    "optim",
    "plan",
    "prox",
    "recipes",
    "report",
    "solve",
]
