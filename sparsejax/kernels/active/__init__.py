"""Products that touch the active units of a layer only."""

from ._api import active_expand, active_ffn, active_reduce

__all__ = [
    "active_expand",
    "active_ffn",
    "active_reduce",
]
