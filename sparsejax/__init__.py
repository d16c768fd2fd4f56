"""Sparse learning for JAX: penalties, masks, sparse training, compressed formats and kernels."""

from . import masks as masks
from . import optim as optim
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
from .optim import get_masks as get_masks
