"""Training procedures as functions of user-defined train and evaluate callables."""

from .._progress import Progress
from ._average import greedy_soup, soup_geometry, uniform_soup
from ._iterative import iterative_prune, prune_remaining, ticket
from ._retraining import retraining_schedule
from ._sequential import sequential_prune
from ._soups import sparse_model_soup
from ._sparsegpt import sparsegpt
from ._sweep import nested_masks, sparsity_sweep
from ._training import train_masked

__all__ = [
    "Progress",
    "greedy_soup",
    "iterative_prune",
    "nested_masks",
    "prune_remaining",
    "retraining_schedule",
    "sequential_prune",
    "soup_geometry",
    "sparse_model_soup",
    "sparsegpt",
    "sparsity_sweep",
    "ticket",
    "train_masked",
    "uniform_soup",
]
