"""Whole procedures: functions over the train and evaluate callables of the user."""

from ._average import greedy_soup, soup_geometry, uniform_soup
from ._iterative import IterativeResult, Round, iterative_prune, prune_remaining
from ._retraining import retraining_schedule
from ._sequential import SequentialResult, sequential_sparsegpt
from ._soups import Phase, SoupResult, sparse_model_soup
from ._sparsegpt import sparsegpt
from ._sweep import Sweep, nested_masks, sparsity_sweep
from ._training import train_masked

__all__ = [
    "IterativeResult",
    "Phase",
    "Round",
    "SequentialResult",
    "SoupResult",
    "Sweep",
    "greedy_soup",
    "iterative_prune",
    "nested_masks",
    "prune_remaining",
    "retraining_schedule",
    "sequential_sparsegpt",
    "soup_geometry",
    "sparse_model_soup",
    "sparsegpt",
    "sparsity_sweep",
    "train_masked",
    "uniform_soup",
]
