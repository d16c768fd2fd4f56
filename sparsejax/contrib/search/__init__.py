"""Search for sparse architectures: random search, and masks learned with the architecture."""

from ._bilevel import bilevel_gradient
from ._cells import DartsCell, MixedOp, darts_ops, genotype
from ._dass import ScoredResult, SearchedNetwork, Stage, dass, score_prune
from ._nodes import random_nodes
from ._random_search import SearchComparison, SearchResult, compare_random_search, random_search
from ._scored import Score, Scored
from ._scores import apply_scores, scaled_scores, score_mask

__all__ = [
    "DartsCell",
    "MixedOp",
    "Score",
    "Scored",
    "ScoredResult",
    "SearchComparison",
    "SearchResult",
    "SearchedNetwork",
    "Stage",
    "apply_scores",
    "bilevel_gradient",
    "compare_random_search",
    "darts_ops",
    "dass",
    "genotype",
    "random_nodes",
    "random_search",
    "scaled_scores",
    "score_mask",
    "score_prune",
]
