"""Whole procedures: functions over the train and evaluate callables of the user."""

from ._active_mtl import ActiveMTL as ActiveMTL
from ._active_mtl import active_mtl as active_mtl
from ._active_mtl import allocate_samples as allocate_samples
from ._active_mtl import multitask_als as multitask_als
from ._active_mtl import task_relevance as task_relevance
from ._average import greedy_soup as greedy_soup
from ._average import soup_geometry as soup_geometry
from ._average import uniform_soup as uniform_soup
from ._bilevel import bilevel_gradient as bilevel_gradient
from ._channels import ChannelGraph as ChannelGraph
from ._channels import channel_graph as channel_graph
from ._channels import permute_channels as permute_channels
from ._iterative import IterativeResult as IterativeResult
from ._iterative import Round as Round
from ._iterative import iterative_prune as iterative_prune
from ._iterative import prune_remaining as prune_remaining
from ._learned_masks import ScoredResult as ScoredResult
from ._learned_masks import SearchedNetwork as SearchedNetwork
from ._learned_masks import Stage as Stage
from ._learned_masks import dass as dass
from ._learned_masks import score_prune as score_prune
from ._random_search import SearchComparison as SearchComparison
from ._random_search import SearchResult as SearchResult
from ._random_search import compare_random_search as compare_random_search
from ._random_search import random_search as random_search
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
from ._sequential import SequentialResult as SequentialResult
from ._sequential import sequential_sparsegpt as sequential_sparsegpt
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
    "ActiveMTL",
    "ChannelGraph",
    "IterativeResult",
    "Phase",
    "Prompt",
    "Rearranged",
    "Round",
    "SaRAState",
    "ScoredResult",
    "SearchComparison",
    "SearchResult",
    "SearchedNetwork",
    "SequentialResult",
    "SoupResult",
    "Stage",
    "Sweep",
    "active_mtl",
    "allocate_samples",
    "bilevel_gradient",
    "channel_graph",
    "compare_random_search",
    "dass",
    "few_shot",
    "fisher_diagonal",
    "fisher_forgetting",
    "forget_split",
    "frequency_mapping",
    "greedy_soup",
    "influence_unlearning",
    "iterative_prune",
    "linear_probe",
    "multitask_als",
    "nested_masks",
    "permute_channels",
    "prompt_images",
    "prune_remaining",
    "random_mapping",
    "random_search",
    "rearrange",
    "retraining_schedule",
    "sara",
    "score_prune",
    "sequential_sparsegpt",
    "soup_geometry",
    "sparse_model_soup",
    "sparsity_sweep",
    "task_relevance",
    "train_masked",
    "uniform_soup",
    "unlearn",
    "visual_prompt",
]
