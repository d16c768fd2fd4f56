"""Which units of an activation are used: selectors as values, and the set that they give."""

from ._active_set import ActiveSet, select_nonzero, select_threshold, select_topk, select_union

__all__ = [
    "ActiveSet",
    "select_nonzero",
    "select_threshold",
    "select_topk",
    "select_union",
]
