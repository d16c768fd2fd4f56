"""How training gets there: optax gradient transformations."""

from ._decay import (
    PrunedDecayState as PrunedDecayState,
    add_pruned_decay as add_pruned_decay,
    mask_decay_schedule as mask_decay_schedule,
    sr_ste as sr_ste,
    stage_schedule as stage_schedule,
)
from ._pruning import (
    KeepState as KeepState,
    PruneState as PruneState,
    TrackState as TrackState,
    get_masks as get_masks,
    keep_masked as keep_masked,
    prune as prune,
    track_masks as track_masks,
)
from ._proximal import (
    ProximalAdamState as ProximalAdamState,
    ProximalState as ProximalState,
    proximal as proximal,
    proximal_adam as proximal_adam,
    proximal_sgd as proximal_sgd,
)

__all__ = [
    "KeepState",
    "ProximalAdamState",
    "ProximalState",
    "PruneState",
    "PrunedDecayState",
    "TrackState",
    "add_pruned_decay",
    "get_masks",
    "keep_masked",
    "mask_decay_schedule",
    "proximal",
    "proximal_adam",
    "proximal_sgd",
    "prune",
    "sr_ste",
    "stage_schedule",
    "track_masks",
]
