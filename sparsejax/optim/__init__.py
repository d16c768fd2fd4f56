"""How training gets there: optax gradient transformations."""

from ._decay import PrunedDecayState, add_pruned_decay, mask_decay_schedule, sr_ste, stage_schedule
from ._dynamic import DynamicState, rigl, set_
from ._movement import MovementState, movement, soft_movement
from ._penalty import add_penalty
from ._phases import PhaseState, acdc, acdc_phases
from ._proximal import ProximalAdamState, ProximalState, proximal, proximal_adam, proximal_sgd
from ._pruning import KeepState, PruneState, TrackState, get_masks, keep_masked, prune, track_masks
from ._shrink import ShrinkState, iterative_shrinkage
from ._subset import SubsetState, subset
from ._top_kast import TopKASTState, top_kast

__all__ = [
    "DynamicState",
    "KeepState",
    "MovementState",
    "PhaseState",
    "ProximalAdamState",
    "ProximalState",
    "PruneState",
    "PrunedDecayState",
    "ShrinkState",
    "SubsetState",
    "TopKASTState",
    "TrackState",
    "acdc",
    "acdc_phases",
    "add_penalty",
    "add_pruned_decay",
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
    "set_",
    "soft_movement",
    "sr_ste",
    "stage_schedule",
    "subset",
    "top_kast",
    "track_masks",
]
