"""Whole procedures: functions over the train and evaluate callables of the user."""

from ._iterative import IterativeResult as IterativeResult
from ._iterative import Round as Round
from ._iterative import iterative_prune as iterative_prune
from ._iterative import prune_remaining as prune_remaining
from ._training import train_masked as train_masked

__all__ = ["IterativeResult", "Round", "iterative_prune", "prune_remaining", "train_masked"]
