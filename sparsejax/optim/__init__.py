"""Sparse training as optax gradient transformations."""

from ._decay import add_pruned_decay, mask_decay_schedule, sr_ste, stage_schedule
from ._dynamic import drop_and_grow, every_until, rigl, sparse_evolution
from ._movement import movement, soft_movement
from ._penalty import add_penalty
from ._phases import acdc, acdc_phases
from ._proximal import proximal, proximal_adam, proximal_sgd
from ._pruning import get_masks, keep_masked, prune, track_masks
from ._shrink import iterative_shrinkage
from ._subset import subset
from ._top_kast import top_kast
from ._unit_norm import unit_norm

__all__ = [
    "acdc",
    "acdc_phases",
    "add_penalty",
    "add_pruned_decay",
    "drop_and_grow",
    "every_until",
    "get_masks",
    "iterative_shrinkage",
    "keep_masked",
    "mask_decay_schedule",
    "movement",
    "proximal",
    "proximal_adam",
    "proximal_sgd",
    "prune",
    "rigl",
    "soft_movement",
    "sparse_evolution",
    "sr_ste",
    "stage_schedule",
    "subset",
    "top_kast",
    "track_masks",
    "unit_norm",
]
