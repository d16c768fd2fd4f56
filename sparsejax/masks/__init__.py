"""Which entries stay: patterns, scores, allocations, plans."""

from ._allocate import (
    Allocation as Allocation,
)
from ._allocate import (
    erdos_renyi as erdos_renyi,
)
from ._allocate import (
    erk as erk,
)
from ._allocate import (
    from_scores as from_scores,
)
from ._allocate import (
    global_ as global_,
)
from ._allocate import (
    uniform as uniform,
)
from ._allocate import (
    uniform_plus as uniform_plus,
)
from ._apply import apply_masks as apply_masks
from ._apply import straight_through as straight_through
from ._iterative import iterative as iterative
from ._layerwise import sparsegpt as sparsegpt
from ._layerwise import wanda as wanda
from ._learned import apply_scores as apply_scores
from ._learned import scaled_scores as scaled_scores
from ._learned import score_mask as score_mask
from ._nm import NM as NM
from ._nm import Stages as Stages
from ._nm import nm_stages as nm_stages
from ._nodes import compact as compact
from ._nodes import edges_from_nodes as edges_from_nodes
from ._nodes import node_masks as node_masks
from ._pattern import FanIn as FanIn
from ._pattern import Pattern as Pattern
from ._pattern import Unstructured as Unstructured
from ._pattern import topk as topk
from ._plan import Plan as Plan
from ._plan import PlannedLeaf as PlannedLeaf
from ._plan import plan as plan
from ._score import (
    changed as changed,
)
from ._score import (
    fisher as fisher,
)
from ._score import (
    grasp as grasp,
)
from ._score import (
    magnitude as magnitude,
)
from ._score import (
    movement as movement,
)
from ._score import (
    random as random,
)
from ._score import (
    saliency as saliency,
)
from ._score import (
    synflow as synflow,
)
from ._structured import Block as Block
from ._structured import Channel as Channel
from ._structured import Groups as Groups
from ._structured import group_labels as group_labels
from ._threshold import above as above
from ._threshold import below_threshold as below_threshold
from ._threshold import energy_threshold as energy_threshold

__all__ = [
    "NM",
    "Allocation",
    "Block",
    "Channel",
    "FanIn",
    "Groups",
    "Pattern",
    "Plan",
    "PlannedLeaf",
    "Stages",
    "Unstructured",
    "above",
    "apply_masks",
    "apply_scores",
    "below_threshold",
    "changed",
    "compact",
    "edges_from_nodes",
    "energy_threshold",
    "erdos_renyi",
    "erk",
    "fisher",
    "from_scores",
    "global_",
    "grasp",
    "group_labels",
    "iterative",
    "magnitude",
    "movement",
    "nm_stages",
    "node_masks",
    "plan",
    "random",
    "saliency",
    "scaled_scores",
    "score_mask",
    "sparsegpt",
    "straight_through",
    "synflow",
    "topk",
    "uniform",
    "uniform_plus",
    "wanda",
]
