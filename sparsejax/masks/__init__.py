"""Masks of kept entries: scores, allocations, plans."""

from ._allocate import Allocation, erdos_renyi, erk, from_scores, joint, uniform, uniform_plus
from ._apply import apply_masks, straight_through
from ._iterative import iterative
from ._make_plan import plan
from ._masks import Masks
from ._plan import Plan
from ._planned_leaf import PlannedLeaf
from ._score import fisher, grasp, magnitude, movement, random, saliency, synflow, update_mask
from ._threshold import above, energy_threshold
from ._topk import topk
from ._wanda import wanda

__all__ = [
    "Allocation",
    "Masks",
    "Plan",
    "PlannedLeaf",
    "above",
    "apply_masks",
    "energy_threshold",
    "erdos_renyi",
    "erk",
    "fisher",
    "from_scores",
    "grasp",
    "iterative",
    "joint",
    "magnitude",
    "movement",
    "plan",
    "random",
    "saliency",
    "straight_through",
    "synflow",
    "topk",
    "uniform",
    "uniform_plus",
    "update_mask",
    "wanda",
]
