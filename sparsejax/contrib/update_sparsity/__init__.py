"""How sparse updates are: which weights fine-tuning and reinforcement learning change."""

from ._updates import (
    UpdateOverlap,
    UpdatePartition,
    UpdateSparsity,
    update_overlap,
    update_partition,
    update_rank,
    update_sparsity,
)

__all__ = [
    "UpdateOverlap",
    "UpdatePartition",
    "UpdateSparsity",
    "update_overlap",
    "update_partition",
    "update_rank",
    "update_sparsity",
]
