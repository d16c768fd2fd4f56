"""Which entries stay: patterns, scores, allocations, plans."""

from ._allocate import Allocation, erdos_renyi, erk, from_scores, global_, uniform, uniform_plus
from ._apply import apply_masks, straight_through
from ._iterative import iterative
from ._plan import Plan, PlannedLeaf, plan
from ._score import changed, fisher, grasp, magnitude, movement, random, saliency, synflow
from ._threshold import above, energy_threshold
from ._topk import topk
from ._wanda import wanda

__all__ = [
    "Allocation",
    "Plan",
    "PlannedLeaf",
    "above",
    "apply_masks",
    "changed",
    "energy_threshold",
    "erdos_renyi",
    "erk",
    "fisher",
    "from_scores",
    "global_",
    "grasp",
    "iterative",
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
    "wanda",
]
