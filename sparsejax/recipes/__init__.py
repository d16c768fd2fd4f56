"""Whole procedures: functions over the train and evaluate callables of the user."""

from ._average import greedy_soup as greedy_soup
from ._average import soup_geometry as soup_geometry
from ._average import uniform_soup as uniform_soup
from ._channels import ChannelGraph as ChannelGraph
from ._channels import channel_graph as channel_graph
from ._channels import permute_channels as permute_channels
from ._iterative import IterativeResult as IterativeResult
from ._iterative import Round as Round
from ._iterative import iterative_prune as iterative_prune
from ._iterative import prune_remaining as prune_remaining
from ._rearrange import Rearranged as Rearranged
from ._rearrange import rearrange as rearrange
from ._reprogram import Prompt as Prompt
from ._reprogram import few_shot as few_shot
from ._reprogram import frequency_mapping as frequency_mapping
from ._reprogram import linear_probe as linear_probe
from ._reprogram import prompt_images as prompt_images
from ._reprogram import random_mapping as random_mapping
from ._reprogram import visual_prompt as visual_prompt
from ._retraining import retraining_schedule as retraining_schedule
from ._sara import SaRAState as SaRAState
from ._sara import sara as sara
from ._soups import Phase as Phase
from ._soups import SoupResult as SoupResult
from ._soups import sparse_model_soup as sparse_model_soup
from ._sweep import Sweep as Sweep
from ._sweep import nested_masks as nested_masks
from ._sweep import sparsity_sweep as sparsity_sweep
from ._training import train_masked as train_masked
from ._unlearning import fisher_diagonal as fisher_diagonal
from ._unlearning import fisher_forgetting as fisher_forgetting
from ._unlearning import forget_split as forget_split
from ._unlearning import influence_unlearning as influence_unlearning
from ._unlearning import unlearn as unlearn

__all__ = [
    "ChannelGraph",
    "IterativeResult",
    "Phase",
    "Prompt",
    "Rearranged",
    "Round",
    "SaRAState",
    "SoupResult",
    "Sweep",
    "channel_graph",
    "few_shot",
    "fisher_diagonal",
    "fisher_forgetting",
    "forget_split",
    "frequency_mapping",
    "greedy_soup",
    "influence_unlearning",
    "iterative_prune",
    "linear_probe",
    "nested_masks",
    "permute_channels",
    "prompt_images",
    "prune_remaining",
    "random_mapping",
    "rearrange",
    "retraining_schedule",
    "sara",
    "soup_geometry",
    "sparse_model_soup",
    "sparsity_sweep",
    "train_masked",
    "uniform_soup",
    "unlearn",
    "visual_prompt",
]
