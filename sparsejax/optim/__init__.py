"""How training gets there: optax gradient transformations."""

from ._decay import (
    PrunedDecayState as PrunedDecayState,
)
from ._decay import (
    add_pruned_decay as add_pruned_decay,
)
from ._decay import (
    mask_decay_schedule as mask_decay_schedule,
)
from ._decay import (
    sr_ste as sr_ste,
)
from ._decay import (
    stage_schedule as stage_schedule,
)
from ._dynamic import DynamicState as DynamicState
from ._dynamic import rigl as rigl
from ._dynamic import set_ as set_
from ._movement import MovementState as MovementState
from ._movement import movement as movement
from ._movement import soft_movement as soft_movement
from ._penalty import add_penalty as add_penalty
from ._phases import PhaseState as PhaseState
from ._phases import acdc as acdc
from ._phases import acdc_phases as acdc_phases
from ._proximal import (
    ProximalAdamState as ProximalAdamState,
)
from ._proximal import (
    ProximalState as ProximalState,
)
from ._proximal import (
    proximal as proximal,
)
from ._proximal import (
    proximal_adam as proximal_adam,
)
from ._proximal import (
    proximal_sgd as proximal_sgd,
)
from ._pruning import (
    KeepState as KeepState,
)
from ._pruning import (
    PruneState as PruneState,
)
from ._pruning import (
    TrackState as TrackState,
)
from ._pruning import (
    get_masks as get_masks,
)
from ._pruning import (
    keep_masked as keep_masked,
)
from ._pruning import (
    prune as prune,
)
from ._pruning import (
    track_masks as track_masks,
)
from ._shrink import ShrinkState as ShrinkState
from ._shrink import iterative_shrinkage as iterative_shrinkage
from ._subset import SubsetState as SubsetState
from ._subset import subset as subset
from ._top_kast import TopKASTState as TopKASTState
from ._top_kast import top_kast as top_kast

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
