"""Products with only the active units of a layer."""

from . import _implementations  # noqa: F401 - fills the table
from ._api import active_expand, active_ffn, active_reduce

__all__ = [
    "active_expand",
    "active_ffn",
    "active_reduce",
]
