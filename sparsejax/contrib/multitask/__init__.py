"""Sparse multi-task learning with active sampling."""

from ._active import ActiveMTL, active_mtl, allocate_samples, multitask_als, task_relevance
from ._design import design_value

__all__ = [
    "ActiveMTL",
    "active_mtl",
    "allocate_samples",
    "design_value",
    "multitask_als",
    "task_relevance",
]
