"""Selectors of the active units of an activation, and active sets."""

from ._active_set import ActiveSet
from ._selectors import BatchTopK, NonZero, Selector, Threshold, TopK, TopP

__all__ = [
    "ActiveSet",
    "BatchTopK",
    "NonZero",
    "Selector",
    "Threshold",
    "TopK",
    "TopP",
]
