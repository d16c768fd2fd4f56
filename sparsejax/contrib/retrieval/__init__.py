"""Learned sparse retrieval whose queries need no model (inference-free)."""

from ._encoder import SpladeEncoder
from ._flops import flops_loss, quadratic_ramp
from ._index import Hits, InvertedIndex
from ._losses import candidate_scores, ensemble_scores, info_nce, kl_distill, margin_mse
from ._metrics import flops, ndcg, recall, reciprocal_rank
from ._pool import prune_vectors, splade_pool
from ._query import document_frequencies, idf, idf_query
from ._train import Pairs, Retriever, train_retriever

__all__ = [
    "Hits",
    "InvertedIndex",
    "Pairs",
    "Retriever",
    "SpladeEncoder",
    "candidate_scores",
    "document_frequencies",
    "ensemble_scores",
    "flops",
    "flops_loss",
    "idf",
    "idf_query",
    "info_nce",
    "kl_distill",
    "margin_mse",
    "ndcg",
    "prune_vectors",
    "quadratic_ramp",
    "recall",
    "reciprocal_rank",
    "splade_pool",
    "train_retriever",
]
