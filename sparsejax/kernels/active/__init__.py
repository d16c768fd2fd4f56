"""Products that touch the active units of a layer only."""

from ._api import active_expand as active_expand
from ._api import active_ffn as active_ffn
from ._api import active_reduce as active_reduce

__all__ = ["active_expand", "active_ffn", "active_reduce"]
