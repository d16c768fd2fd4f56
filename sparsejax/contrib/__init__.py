"""One subject a folder: methods of single papers with their metrics."""

from . import (
    activation_sparsity,
    bandits,
    dag,
    iso_flop,
    multitask,
    private,
    random_support,
    receptive_fields,
    reprogramming,
    sara,
    search,
    sparse_attention,
    unlearning,
    unmixing,
    update_sparsity,
)

__all__ = [
    "activation_sparsity",
    "bandits",
    "dag",
    "iso_flop",
    "multitask",
    "private",
    "random_support",
    "receptive_fields",
    "reprogramming",
    "sara",
    "search",
    "sparse_attention",
    "unlearning",
    "unmixing",
    "update_sparsity",
]
