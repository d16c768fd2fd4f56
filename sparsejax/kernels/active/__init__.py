"""Products with only the active units of a layer."""

from . import _implementations  # noqa: F401 - fills the table
from ._api import active_expand, active_ffn, active_reduce
from ._gated import gated_mlp, gated_products
from ._layer import gated_layer

__all__ = [
    "active_expand",
    "active_ffn",
    "active_reduce",
    "gated_layer",
    "gated_mlp",
    "gated_products",
]
